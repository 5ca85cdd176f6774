"""The client's side of a command, on each wire. Pure."""

from crio_core.errors import LocalError
from crio_core.streaming.client import CommandClientEvent, Output
from crio_core.streaming.command_spdy import ERROR, RESIZE, STDERR, STDIN, STDOUT, TYPE, expected_types
from crio_core.streaming.protocol import Left, Protocol, ProtocolError
from crio_core.streaming.remotecommand import Ready, Stream, Wants
from crio_core.streaming.spdy import Connection, SpdyEvent, StreamData, StreamEnded, StreamReplied, StreamReset
from crio_core.streaming.status import STATUS_BYTES_MAX, Failed, decode, has_json
from crio_core.streaming.terminal import encode_size

_OUTPUTS = {STDOUT: Stream.STDOUT, STDERR: Stream.STDERR}


class StatusReader:
    """Puts together what comes on the error stream."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._data = b""

    def feed(self, data: bytes) -> None:
        if len(self._data) + len(data) > STATUS_BYTES_MAX:
            raise ProtocolError(f"the status of the command takes more than {STATUS_BYTES_MAX} bytes")
        self._data += data

    @property
    def is_empty(self) -> bool:
        return not self._data

    def end(self) -> CommandClientEvent:
        if not self._data and has_json(self._protocol):
            return Failed(message="the server has closed the streams without saying how the command ended")
        return decode(self._data, self._protocol)


class SpdyCommandClient:
    """What `CommandClient` is over SPDY."""

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        self._connection = Connection(client=True, streams_max=0)
        kinds = expected_types(protocol, wants)
        self._types = {self._connection.open({TYPE: kind}): kind for kind in kinds}
        self._ids = {kind: number for number, kind in self._types.items()}
        self._unreplied = dict.fromkeys(self._types)
        self._unended = dict.fromkeys(kind for kind in kinds if kind in (ERROR, STDOUT, STDERR))
        self._status = StatusReader(protocol)

    def start(self) -> list[CommandClientEvent]:
        return []

    def receive(self, data: bytes) -> list[CommandClientEvent]:
        events: list[CommandClientEvent] = []
        for event in self._connection.receive(data):
            self._take(event, events)
        return events

    def send_input(self, data: bytes) -> None:
        self._check_ready()
        self._connection.send(self._ids[STDIN], data)

    def end_input(self) -> None:
        self._check_ready()
        self._connection.end(self._ids[STDIN])

    def resize(self, width: int, height: int) -> None:
        self._check_ready()
        if RESIZE in self._ids:
            self._connection.send(self._ids[RESIZE], encode_size(width, height))

    def take(self) -> bytes:
        return self._connection.take()

    def _check_ready(self) -> None:
        # spdystream drops what comes on a stream before it has replied.
        if self._unreplied:
            raise LocalError("the server has not accepted all streams yet: wait for Ready")

    def _take(self, event: SpdyEvent, events: list[CommandClientEvent]) -> None:
        match event:
            case StreamReplied(id=number):
                if number in self._unreplied:
                    del self._unreplied[number]
                    if not self._unreplied:
                        events.append(Ready())
            case StreamData(id=number, data=data):
                kind = self._types[number]
                if kind in _OUTPUTS:
                    events.append(Output(stream=_OUTPUTS[kind], data=data))
                elif kind == ERROR:
                    self._status.feed(data)
            case StreamEnded(id=number) | StreamReset(id=number):
                if number in self._unreplied and isinstance(event, StreamReset):
                    raise ProtocolError(f"the server refuses the {self._types[number].decode()} stream")
                if self._types[number] in self._unended:
                    del self._unended[self._types[number]]
                    if not self._unended:
                        events.append(self._status.end())
            case Left():
                if self._unended and not self._status.is_empty:
                    self._unended.clear()
                    events.append(self._status.end())
                events.append(event)
            case _:
                raise ProtocolError("the server opens a stream, which only clients do")
