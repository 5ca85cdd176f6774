"""The client's side of port forwarding, on each wire. Pure."""

import orjson

from crio_core.errors import LocalError
from crio_core.streaming.client import Broken, ForwardingClientEvent, Opened
from crio_core.streaming.forwarding_spdy import DATA, ERROR, PORT, REQUEST, TYPE
from crio_core.streaming.portforward import Data, DataEnded, Dropped
from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.streaming.spdy import Connection, SpdyEvent, StreamData, StreamEnded, StreamReplied, StreamReset

ERROR_BYTES_MAX = 64 << 10


class _Forwarded:
    """One connection, until it is over."""

    __slots__ = ("error", "error_ended", "ours_ended", "port", "text", "theirs_ended", "unreplied")

    def __init__(self, error: int, port: int) -> None:
        self.error, self.port = error, port
        self.unreplied = 2
        self.ours_ended = self.theirs_ended = self.error_ended = False
        self.text = b""


class SpdyForwardingClient:
    """What `ForwardingClient` is over SPDY, or over SPDY in a WebSocket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests = 0
        self._forwarded: dict[int, _Forwarded] = {}  # by data stream
        self._data: dict[int, int] = {}  # error stream: data stream

    def connect(self, port: int) -> int:
        headers = {PORT: b"%d" % port, REQUEST: b"%d" % self._requests}
        self._requests += 1
        error = self._connection.open({TYPE: ERROR, **headers})
        self._connection.end(error)
        data = self._connection.open({TYPE: DATA, **headers})
        self._forwarded[data], self._data[error] = _Forwarded(error, port), data
        return data

    def receive(self, data: bytes) -> list[ForwardingClientEvent]:
        events: list[ForwardingClientEvent] = []
        for event in self._connection.receive(data):
            self._take(event, events)
        return events

    def send(self, id: int, data: bytes) -> None:
        known = self._forwarded.get(id)
        if known is not None:
            if known.unreplied:
                raise LocalError("the server has not accepted this connection yet: wait for Opened")
            self._connection.send(id, data)

    def end(self, id: int) -> None:
        known = self._forwarded.get(id)
        if known is not None:
            self._connection.end(id)
            known.ours_ended = True
            self._forget_when_over(id, known)

    def drop(self, id: int) -> None:
        known = self._forget(id)
        if known is not None:
            self._connection.reset(id)
            self._connection.reset(known.error)

    def take(self) -> bytes:
        return self._connection.take()

    def _forget(self, id: int) -> _Forwarded | None:
        known = self._forwarded.pop(id, None)
        if known is not None:
            self._data.pop(known.error, None)
        return known

    def _forget_when_over(self, id: int, known: _Forwarded) -> None:
        """A connection is over when its error stream is, too: until then it may still be told to have broken."""
        if known.ours_ended and known.theirs_ended and known.error_ended:
            self._forget(id)

    def _take(self, event: SpdyEvent, events: list[ForwardingClientEvent]) -> None:
        match event:
            case StreamReplied(id=stream):
                id = self._data.get(stream, stream)
                known = self._forwarded.get(id)
                if known is not None and known.unreplied:
                    known.unreplied -= 1
                    if not known.unreplied:
                        events.append(Opened(id=id))
            case StreamData(id=stream, data=data):
                if stream in self._forwarded:
                    events.append(Data(id=stream, data=data))
                elif stream in self._data:
                    known = self._forwarded[self._data[stream]]
                    known.text = (known.text + data)[:ERROR_BYTES_MAX]
            case StreamEnded(id=stream) | StreamReset(id=stream):
                id = self._data.get(stream, stream)
                known = self._forwarded.get(id)
                if known is not None:
                    self._take_end(id, known, stream == known.error, isinstance(event, StreamReset), events)
            case Left():
                events.append(event)
            case _:
                raise ProtocolError("the server opens a stream, which only clients do")

    def _take_end(
        self, id: int, known: _Forwarded, is_error: bool, is_reset: bool, events: list[ForwardingClientEvent]
    ) -> None:
        if is_reset and known.unreplied:
            self._break(id, f"the server refuses a connection to port {known.port}", events)
        elif is_error and known.text:
            self._break(id, _message(known.text), events)
        elif is_error:
            known.error_ended = True
            self._forget_when_over(id, known)
        elif is_reset:
            self.drop(id)
            events.append(Dropped(id=id))
        else:
            known.theirs_ended = True
            events.append(DataEnded(id=id))
            self._forget_when_over(id, known)

    def _break(self, id: int, text: str, events: list[ForwardingClientEvent]) -> None:
        self.drop(id)
        events.append(Broken(id=id, text=text))


def _message(text: bytes) -> str:
    """What an error stream says: plain text, or since Kubernetes 1.31 an object with it."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        answer = None
    message = answer.get("message") if isinstance(answer, dict) else None
    return message if isinstance(message, str) else text.decode(errors="replace")
