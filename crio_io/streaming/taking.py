"""The one HTTP/1.1 request of a connection: what it asks for, and its answer (RFC 9110, section 7.8, Upgrade)."""

import anyio
import h11
from anyio.abc import ByteStream

from crio_core.replies import Opened, Result
from crio_core.streaming.protocol import Endpoint
from crio_core.streaming.upgrade import Accepted, Refused, decide
from crio_io.streaming.sockets import SocketStream
from crio_io.streaming.streams import Connection, Streams

HEAD_BYTES_MAX = 16 * 1024
READ_BYTES = 65536
ENDPOINTS = {"exec": Endpoint.COMMAND, "attach": Endpoint.COMMAND, "portforward": Endpoint.FORWARDING}
"""By the first part of a path; the second is the token."""
TOKEN_CHARS_MAX = 256
CLOSE_S = 1.0
"""How long a client may take to end TLS."""


class Taken:
    """A request for a stream, whose headers are in order.

    Args:
        stream: Where it came from.
        http: The connection in terms of HTTP.
        purpose: What its path says that it is for.
        token: What its path says that opens it.
        accepted: How to answer when it does.
    """

    def __init__(self, stream: ByteStream, http: h11.Connection, purpose: str, token: str, accepted: Accepted) -> None:
        self.purpose = purpose
        self.token = token
        self._stream = stream
        self._http = http
        self._accepted = accepted

    async def refuse(self, status: int, text: str) -> None:
        """Answer that there is no stream."""
        await _answer(self._stream, self._http, Refused(status=status, text=text))

    async def hand(self, opened: Result, streams: Streams, sock: SocketStream) -> None:
        """Answer that there is one, and leave the connection to it until it is over."""
        assert isinstance(opened, Opened)
        connection = None
        try:
            upgrade = h11.InformationalResponse(status_code=101, headers=list(self._accepted.headers))
            await self._stream.send(self._http.send(upgrade) or b"")
            connection = Connection(self._stream, sock, self._accepted.protocol, self._http.trailing_data[0])
        finally:
            if connection is None:
                streams.forget(opened.session_id)
        streams.hand(opened.session_id, connection)
        await connection.served.wait()
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self._stream.aclose()


async def request_of(stream: ByteStream) -> Taken | None:
    """Read a request; None when it was refused, and was told why.

    Raises:
        EndOfStream: There was none.
        BrokenResourceError: The client is gone.
    """
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    try:
        request = await _head(stream, http)
    except h11.RemoteProtocolError as error:
        await _answer(stream, http, Refused(status=error.error_status_hint, text="not a request for a stream"))
        return None
    _, _, path = request.target.partition(b"/")
    purpose, _, token = path.partition(b"?")[0].decode("ascii", "replace").partition("/")
    endpoint = ENDPOINTS.get(purpose)
    if endpoint is None or not token or len(token) > TOKEN_CHARS_MAX:
        await _answer(stream, http, Refused(status=404, text="no such stream"))
        return None
    decided = decide(request.method, request.headers, endpoint)
    if isinstance(decided, Refused):
        await _answer(stream, http, decided)
        return None
    return Taken(stream, http, purpose, token, decided)


async def _head(stream: ByteStream, http: h11.Connection) -> h11.Request:
    """The request, which has no body.

    Raises:
        RemoteProtocolError: It is none, or has one.
    """
    request: h11.Request | None = None
    while True:
        event = http.next_event()
        match event:
            case h11.NEED_DATA:
                http.receive_data(await stream.receive(READ_BYTES))
            case h11.Request():
                request = event
            case h11.EndOfMessage() if request is not None:
                return request
            case _:
                raise h11.RemoteProtocolError("a request for a stream has no body")


async def _answer(stream: ByteStream, http: h11.Connection, refused: Refused) -> None:
    """Refuse, and end the connection."""
    body = f"{refused.text}\n".encode()
    headers = [
        *refused.headers,
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    parts = (h11.Response(status_code=refused.status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
    await stream.send(b"".join(http.send(part) or b"" for part in parts))
