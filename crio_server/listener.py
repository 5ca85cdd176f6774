"""One socket for two protocols: gRPC for the kubelet, and HTTP/1.1 for whoever looks into the node with curl.

gRPC is HTTP/2 with prior knowledge, whose connections begin with `PRI * HTTP/2.0`; no method of HTTP/1 is called PRI.
So the first four bytes decide, and from then on the connection belongs to the one protocol alone.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from grpclib.server import Server

from crio_server.services.rpc import CachedCodec, Servable
from crio_server.status import Answering
from crio_server.unary import UnaryProtocol

if TYPE_CHECKING:
    from crio_server.http1 import HttpServer

HTTP2 = b"PRI "
FIRST_BYTES_S = 20.0
"""How long a connection may say nothing before it is closed."""
SILENT_MAX = 64
"""How many connections may say nothing at the same time: one more, and the oldest of them is closed."""


class SocketServer(Server):
    """A gRPC server that hands the connections of HTTP/1 to another one.

    Args:
        services: The gRPC services.
        answering: Answers the requests of HTTP/1.
    """

    def __init__(self, services: Sequence[Servable], answering: Answering) -> None:
        super().__init__(services, codec=CachedCodec())
        self._at_once = {path: method for one in services for path, method in one.at_once.items()}
        self._answering = answering
        self._http: HttpServer | None = None
        self._silent: _Silent = {}

    def _protocol_factory(self) -> asyncio.Protocol:  # type: ignore[override]
        return _FirstBytes(self._grpc_protocol, self._http_protocol, self._silent)

    def _grpc_protocol(self) -> asyncio.Protocol:
        return UnaryProtocol(super()._protocol_factory(), self._at_once)

    def _http_protocol(self) -> asyncio.Protocol:
        if self._http is None:
            # Only now: most servers are never asked, and their memory is better used.
            from crio_server.http1 import HttpServer

            self._http = HttpServer(self._answering)
        return self._http.protocol()

    def close(self) -> None:
        """Stop accepting connections, and end those that there are."""
        super().close()
        if self._http is not None:
            self._http.close()


_Silent = dict["_FirstBytes", asyncio.Transport]
"""Connections that have not said what they speak, oldest first."""


class _FirstBytes(asyncio.Protocol):
    """A connection of which it is not known yet what it speaks."""

    def __init__(
        self, grpc: Callable[[], asyncio.Protocol], http: Callable[[], asyncio.Protocol], silent: _Silent
    ) -> None:
        self._grpc = grpc
        self._http = http
        self._silent = silent
        self._came = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._limit = asyncio.get_running_loop().call_later(FIRST_BYTES_S, self._transport.abort)
        self._silent[self] = self._transport
        if len(self._silent) > SILENT_MAX:
            # Not the newest: that may be the kubelet, which is about to speak.
            self._silent.pop(next(iter(self._silent))).abort()

    def data_received(self, data: bytes) -> None:
        self._came += data
        if len(self._came) < len(HTTP2) and HTTP2.startswith(self._came):
            return
        self._let_go()
        protocol = self._grpc() if self._came.startswith(HTTP2) else self._http()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._came)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self._limit.cancel()
        self._silent.pop(self, None)
