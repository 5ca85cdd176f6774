"""A command over SPDY, the server's side: a stream for each of error, stdin, stdout, stderr and resize. Pure."""

from crio_core.streaming.protocol import Left, Protocol, ProtocolError
from crio_core.streaming.remotecommand import CommandEvent, Input, InputEnded, Ready, Resized, Stream, Wants
from crio_core.streaming.spdy import Connection, SpdyEvent, StreamData, StreamEnded, StreamOpened, StreamReset
from crio_core.streaming.status import Ended, encode
from crio_core.streaming.terminal import SizeReader

TYPE = b"streamtype"
ERROR, STDIN, STDOUT, STDERR, RESIZE = b"error", b"stdin", b"stdout", b"stderr", b"resize"
_TYPES = (ERROR, STDIN, STDOUT, STDERR, RESIZE)


def expected_types(protocol: Protocol, wants: Wants) -> tuple[bytes, ...]:
    """The types of the streams that a client opens, in the order in which it does."""
    resizes = wants.tty and protocol.name.startswith(("v3.", "v4.", "v5."))
    asked = (True, wants.stdin, wants.stdout, wants.stderr and not wants.tty, resizes)
    return tuple(kind for kind, is_wanted in zip(_TYPES, asked, strict=True) if is_wanted)


class SpdyCommand:
    """What `Command` is over SPDY."""

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        self.ready = False
        self._protocol = protocol
        self._connection = Connection(client=False, streams_max=len(_TYPES))
        self._missing = list(expected_types(protocol, wants))
        self._ids: dict[bytes, int] = {}
        self._types: dict[int, bytes] = {}
        self._sizes = SizeReader()
        self._wants = wants
        self._last_size: Resized | None = None  # that came before the last stream was there
        self._input_ended = False

    def start(self) -> list[CommandEvent]:
        return []

    def receive(self, data: bytes) -> list[CommandEvent]:
        events: list[CommandEvent] = []
        for event in self._connection.receive(data):
            self._take(event, events)
        return events

    def send_output(self, stream: Stream, data: bytes) -> None:
        number = self._ids.get(STDOUT if stream is Stream.STDOUT else STDERR)
        if number is not None:
            self._connection.send(number, data)

    def send_status(self, status: Ended) -> None:
        for kind in (STDOUT, STDERR):
            self._end(kind)
        self._connection.send(self._ids[ERROR], encode(status, self._protocol))
        # Clients wait for the end of stdin before they end their own side of it.
        for kind in (ERROR, STDIN, RESIZE):
            self._end(kind)
        self._connection.go_away()

    def take(self) -> bytes:
        return self._connection.take()

    def _end(self, kind: bytes) -> None:
        if kind in self._ids:
            self._connection.end(self._ids[kind])

    def _take(self, event: SpdyEvent, events: list[CommandEvent]) -> None:
        match event:
            case StreamOpened():
                self._take_opened(event, events)
            case StreamData(id=number, data=data):
                self._take_data(self._types[number], data, events)
            case StreamEnded(id=number) | StreamReset(id=number):
                if self._types[number] == STDIN and self._wants.stdin and not self._input_ended:
                    self._input_ended = True
                    if self.ready:
                        events.append(InputEnded())
            case Left():
                events.append(event)
            case _:
                raise ProtocolError("the client accepts a stream that nobody has opened")

    def _take_opened(self, event: StreamOpened, events: list[CommandEvent]) -> None:
        kind = event.headers.get(TYPE, b"")
        if kind not in _TYPES:
            known = ", ".join(one.decode() for one in _TYPES)
            raise ProtocolError(f"the stream type {kind[:64]!r} is not known: expected one of {known}")
        if kind in self._ids:
            raise ProtocolError(f"the client opened the {kind.decode()} stream twice")
        self._ids[kind], self._types[event.id] = event.id, kind
        self._connection.reply(event.id)
        if kind in self._missing:
            self._missing.remove(kind)
        if not self._missing and not self.ready:
            self.ready = True
            events.append(Ready())
            if self._last_size is not None:
                events.append(self._last_size)
            if self._input_ended:
                events.append(InputEnded())

    def _take_data(self, kind: bytes, data: bytes, events: list[CommandEvent]) -> None:
        if kind == STDIN and self._wants.stdin:
            if not self.ready:
                missing = b", ".join(self._missing).decode()
                raise ProtocolError(f"the client sends input before it has opened all streams: {missing} is missing")
            events.append(Input(data=data))
        elif kind == RESIZE and self._wants.tty:
            sizes = self._sizes.feed(data)
            if self.ready:
                events += sizes
            elif sizes:
                self._last_size = sizes[-1]
