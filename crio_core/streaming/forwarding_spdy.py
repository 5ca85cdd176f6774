"""Port forwarding over SPDY, the server's side: for each connection a stream with its data and one for its error. Pure.

The two have the same `requestid`. A client may open either first, and ends its side of the error stream at once.
"""

from collections.abc import Mapping

from crio_core.streaming.portforward import Connected, Data, DataEnded, Dropped, ForwardingEvent
from crio_core.streaming.protocol import PORT_MAX, Left, ProtocolError
from crio_core.streaming.spdy import Connection, SpdyEvent, StreamData, StreamEnded, StreamOpened, StreamReset

TYPE, PORT, REQUEST = b"streamtype", b"port", b"requestid"
DATA, ERROR = b"data", b"error"
_TYPES = (DATA, ERROR)


class _Half:
    """One of two streams, whose other one has not come."""

    __slots__ = ("ended", "id", "kind", "port")

    def __init__(self, id: int, kind: bytes, port: int) -> None:
        self.id, self.kind, self.port = id, kind, port
        self.ended = False


class _Pair:
    """The two streams of one connection, until it is over."""

    __slots__ = ("error", "ours_ended", "theirs_ended")

    def __init__(self, error: int) -> None:
        self.error = error
        self.ours_ended = False
        self.theirs_ended = False


class SpdyForwarding:
    """What `Forwarding` is over SPDY, or over SPDY in a WebSocket; connections are named by their data streams."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._halves: dict[bytes, _Half] = {}  # by request; bounded by the streams of the connection
        self._requests: dict[int, bytes] = {}  # of streams that are one half
        self._pairs: dict[int, _Pair] = {}  # by data stream

    def start(self) -> list[ForwardingEvent]:
        return []

    def receive(self, data: bytes) -> list[ForwardingEvent]:
        events: list[ForwardingEvent] = []
        for event in self._connection.receive(data):
            self._take(event, events)
        return events

    def send(self, id: int, data: bytes) -> None:
        if id in self._pairs:
            self._connection.send(id, data)

    def end(self, id: int) -> None:
        pair = self._pairs.get(id)
        if pair is not None:
            # Clients wait for the end of the error stream: without a word in it, all went well.
            self._connection.end(id)
            self._connection.end(pair.error)
            pair.ours_ended = True
            self._forget_when_over(id, pair)

    def fail(self, id: int, text: str) -> None:
        pair = self._pairs.pop(id, None)
        if pair is not None:
            self._connection.send(pair.error, text.encode())
            self._connection.end(pair.error)
            self._connection.reset(id)

    def close(self) -> None:
        for id, pair in self._pairs.items():
            self._connection.end(pair.error)
            self._connection.reset(id)
        self._pairs.clear()
        self._connection.go_away()

    def take(self) -> bytes:
        return self._connection.take()

    def _forget_when_over(self, id: int, pair: _Pair) -> None:
        if pair.ours_ended and pair.theirs_ended:
            del self._pairs[id]

    def _take(self, event: SpdyEvent, events: list[ForwardingEvent]) -> None:
        match event:
            case StreamOpened():
                self._take_opened(event, events)
            case StreamData(id=id, data=data):
                if id in self._pairs:
                    events.append(Data(id=id, data=data))
                elif id in self._requests:
                    raise ProtocolError("the client sends data for a connection before it has opened its error stream")
            case StreamEnded(id=id):
                self._take_ended(id, events)
            case StreamReset(id=id):
                self._take_reset(id, events)
            case Left():
                events.append(event)
            case _:
                raise ProtocolError("the client accepts a stream that nobody has opened")

    def _take_opened(self, event: StreamOpened, events: list[ForwardingEvent]) -> None:
        kind, port, request = _described(event.headers)
        self._connection.reply(event.id)
        new, other = _Half(event.id, kind, port), self._halves.pop(request, None)
        if other is None:
            self._halves[request] = new
            self._requests[event.id] = request
            return
        del self._requests[other.id]
        if other.kind == kind or other.port != port:
            pair = f"{other.kind.decode()} for port {other.port} and {kind.decode()} for port {port}"
            raise ProtocolError(f"the streams of request {request[:64]!r} are {pair}: expected data and error for one")
        data, error = (new, other) if kind == DATA else (other, new)
        self._pairs[data.id] = _Pair(error.id)
        events.append(Connected(id=data.id, port=port))
        if data.ended:
            self._take_ended(data.id, events)

    def _take_ended(self, id: int, events: list[ForwardingEvent]) -> None:
        pair = self._pairs.get(id)
        if pair is not None:
            events.append(DataEnded(id=id))
            pair.theirs_ended = True
            self._forget_when_over(id, pair)
        elif id in self._requests:
            self._halves[self._requests[id]].ended = True

    def _take_reset(self, id: int, events: list[ForwardingEvent]) -> None:
        request = self._requests.pop(id, None)
        if request is not None:
            del self._halves[request]
        pair = self._pairs.pop(id, None)
        if pair is not None:
            self._connection.end(pair.error)
            events.append(Dropped(id=id))


def _described(headers: Mapping[bytes, bytes]) -> tuple[bytes, int, bytes]:
    """Type, port and request of a stream, from its headers."""
    kind, text, request = (headers.get(name, b"") for name in (TYPE, PORT, REQUEST))
    if kind not in _TYPES:
        raise ProtocolError(f"the stream type {kind[:64]!r} is not known: expected data or error")
    if not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= PORT_MAX:
        raise ProtocolError(f"{text[:64]!r} is not a port: expected 1 to {PORT_MAX}")
    if not request:
        raise ProtocolError("the client opened a stream without the header requestid, which joins data and error")
    return kind, int(text), request
