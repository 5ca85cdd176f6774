"""The listener of the streaming server: one HTTP/1.1 request on each connection, and then a stream.

    POST /exec/TOKEN HTTP/1.1        `attach` and `portforward` likewise; GET for a WebSocket

What is wrong with a request is said of its headers, which are the client's own; of tokens nothing is told but that
there is no such stream.
"""

import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ByteStream, TaskGroup

from crio_core.errors import Code, OperationError
from crio_core.requests import OpenStream
from crio_core.values import dataclass
from crio_io import mounts
from crio_io.driver import Caller
from crio_io.streaming.sockets import SocketStream

if TYPE_CHECKING:
    from crio_io.streaming.streams import Streams

log = logging.getLogger(__name__)

BACKLOG = 128
KEEPALIVE_S = 30
CONNECTIONS_MAX = 1000
"""Connections at the same time; one more is closed at once."""
SILENT_MAX = 128
"""Connections that have not said what they want; one more, and the oldest of them is closed."""
REQUEST_S = 20.0
"""How long a connection may take to say what it wants, with the handshake of TLS."""
ACCEPT_PAUSE_S = 0.2
"""How long nobody is accepted when the process has run out of descriptors."""
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files for TLS: certificate and key of the server, and the authority of its clients; empty to let anyone come."""

    certificate: str
    key: str
    authority: str = ""

    def context(self) -> ssl.SSLContext:
        """What the files say now, so that new ones are taken without a restart; blocks.

        Raises:
            OperationError: They cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.authority:
                context.load_verify_locations(self.authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(repr(one) for one in (self.certificate, self.key, self.authority) if one)
            message = f"stream_tls_cert, stream_tls_key, stream_tls_ca: {names} cannot be used: {error}"
            raise OperationError(Code.INVALID_ARGUMENT, "INVALID_CONFIG", message) from error
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """Where to listen: an IP address, a port (0 for any), and TLS if it is to be used."""

    address: str = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None


def _bound(options: ListenerOptions) -> socket.socket:
    family = socket.AF_INET6 if ip_address(options.address).version == 6 else socket.AF_INET
    try:
        return socket.create_server(
            (options.address, options.port),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=options.address == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        message = f"stream_address, stream_port: cannot listen at {options.address} port {options.port}: {error}"
        raise OperationError(Code.FAILED_PRECONDITION, "STREAM_ADDRESS_TAKEN", message) from error


class StreamListener:
    """Takes up offers for clients.

    Args:
        options: Where to listen.
        caller: Asked to open what a token is for.
        streams: Gets the connections.

    Raises:
        OperationError: It cannot listen there, or not with these files.
    """

    def __init__(self, options: ListenerOptions, caller: Caller, streams: "Streams") -> None:
        if options.tls is not None:
            options.tls.context()
        self._options = options
        self._caller = caller
        self._streams = streams
        self._listening = _bound(options)
        self._listening.setblocking(False)
        self._connections = 0
        self._silent: dict[anyio.CancelScope, None] = {}

    @property
    def url(self) -> str:
        """What the addresses of streams begin with: the address that is listened at, as CRI-O has it."""
        host, port = self._listening.getsockname()[:2]
        scheme = "http" if self._options.tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve until the block ends; then streams that are open are ended, and waited for."""
        accepting = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._accept, tasks, accepting)
            try:
                yield
            finally:
                accepting.cancel()
                with anyio.CancelScope(shield=True):
                    await self._streams.aclose()
                tasks.cancel_scope.cancel()

    async def _accept(self, tasks: TaskGroup, scope: anyio.CancelScope) -> None:
        with scope, self._listening:
            await self._accept_all(tasks)

    async def _accept_all(self, tasks: TaskGroup) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._listening)
                continue
            except OSError as error:
                if error.errno in FULL:
                    log.warning("no stream can be accepted now: %s", error.strerror)
                    await anyio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._connections >= CONNECTIONS_MAX:
                log.warning("a stream is turned away: there are %d connections already", CONNECTIONS_MAX)
                accepted.close()
                continue
            self._connections += 1
            tasks.start_soon(self._serve, accepted)

    async def _serve(self, accepted: socket.socket) -> None:
        sock = SocketStream(accepted)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Of a client that is gone with something unsent nothing else ever tells, while nobody reads its connection.
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S)
        try:
            await self._serve_connection(sock)
        except (anyio.EndOfStream, anyio.BrokenResourceError, ssl.SSLError):
            log.debug("a client of a stream left before it had one")
        except Exception:
            log.exception("a connection for a stream failed")
        finally:
            self._connections -= 1
            await sock.aclose()

    async def _serve_connection(self, sock: SocketStream) -> None:
        # Only now: most servers are never asked, and their memory is better used.
        from crio_io.streaming import taking

        taken = None
        with anyio.move_on_after(REQUEST_S) as limit:
            self._silent[limit] = None
            if len(self._silent) > SILENT_MAX:
                oldest = next(iter(self._silent))
                del self._silent[oldest]
                oldest.cancel()
            try:
                taken = await taking.request_of(await self._encrypted(sock))
            finally:
                self._silent.pop(limit, None)
        if taken is None:
            return
        try:
            opened = await self._caller.call(OpenStream(purpose=taken.purpose, token=taken.token))
        except OperationError as error:
            await taken.refuse(404 if error.code is Code.NOT_FOUND else 503, error.message)
            return
        await taken.hand(opened, self._streams, sock)

    async def _encrypted(self, sock: SocketStream) -> ByteStream:
        if self._options.tls is None:
            return sock
        from anyio.streams.tls import TLSStream

        context = await mounts.in_thread("read the certificates of streams", self._options.tls.context)
        return await TLSStream.wrap(sock, server_side=True, ssl_context=context)
