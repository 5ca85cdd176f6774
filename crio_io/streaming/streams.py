"""Where connections meet the orders that serve them.

`Streams.hand` brings a connection whose session was opened, `Streams.serve` is the order of that session; whichever is
first waits for the other. Limits that need no decision are kept here: a stream on which nothing moves is idle and ends,
and one that was told to end and does not is cut off.
"""

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import ByteStream

from crio_core.errors import Code, OperationError
from crio_core.streaming.protocol import Protocol
from crio_io.streaming.sockets import SocketStream

log = logging.getLogger(__name__)

MEET_S = 10.0
"""How long a connection and its order wait for each other: both come from one event."""
IDLE_S = 4 * 3600.0
"""How long nothing may move on a stream, unless it is configured otherwise; as in a kubelet."""
END_S = 8.0
"""How long a stream may take to end after it was told to; the core waits a little longer."""
LINGER_S = 2.0
"""How long a client may take to hang up after it was sent everything."""
LINGER_MOST_S = 60.0
"""The same for one that says something now and then, or is slow to take what was sent."""
LINGER_BYTES_MAX = 16 * 1024 * 1024
READ_BYTES = 65536
ANSWERS_BYTES_MAX = 64 * 1024
"""What a client may say that is only to be answered, such as pings, while it takes nothing of what it is sent."""


class Connection:
    """A client's connection after its upgrade.

    Args:
        stream: Its bytes, decrypted where they are.
        socket: The socket under it.
        protocol: What is spoken on it from now on.
        early: What came together with the request.
    """

    def __init__(self, stream: ByteStream, socket: SocketStream, protocol: Protocol, early: bytes) -> None:
        self.protocol = protocol
        self.served = anyio.Event()
        """Nobody needs the connection any more."""
        self._stream = stream
        self._socket = socket
        self._early = early
        self._idle_s = IDLE_S
        self._idle: anyio.CancelScope | None = None

    def limit(self, idle: anyio.CancelScope, idle_s: float) -> None:
        """Cancel this scope when nothing has moved for so long."""
        self._idle, self._idle_s = idle, idle_s
        self._moved()

    def _moved(self) -> None:
        if self._idle is not None:
            self._idle.deadline = anyio.current_time() + self._idle_s

    async def receive(self) -> bytes:
        """What the client sends next; nothing when it has ended its side or is lost."""
        data, self._early = self._early, b""
        if not data:
            try:
                data = await self._stream.receive(READ_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return b""
        self._moved()
        return data

    async def send(self, data: bytes) -> bool:
        """Send everything, however long the client takes; False when it is lost."""
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        self._moved()
        return True

    async def hung_up(self) -> None:
        """Wait until the client has ended its side, also while nobody reads."""
        await self._socket.hung_up()

    async def end(self) -> None:
        """Wait for the client to hang up, so that it gets all that was sent; what it still says is not read.

        Closing with something unread would make the kernel forget what is still on its way.
        """
        left = LINGER_BYTES_MAX
        with anyio.move_on_after(LINGER_MOST_S):
            while left > 0:
                with anyio.move_on_after(LINGER_S) as patience:
                    data = await self.receive()
                if not patience.cancelled_caught:
                    left = left - len(data) if data else 0
                elif not self._socket.unsent_bytes():
                    return


class Ending:
    """Tells who serves a stream that it is to end."""

    def __init__(self) -> None:
        self._told = anyio.Event()
        self.server_stops = False
        """It is not what the stream is for that is over, but the server."""

    def tell(self, *, server_stops: bool = False) -> None:
        """Say so; whoever says it first gives the reason."""
        if not self._told.is_set():
            self.server_stops = server_stops
            self._told.set()

    async def wait(self) -> None:
        """Wait until it is said."""
        await self._told.wait()


Work = Callable[[Connection, Ending], Awaitable[int | None]]
"""Serves a connection until it is over, or soon after it was told to end; returns the exit code of a command."""


class _Session:
    """A stream that is about to be served, or is."""

    def __init__(self) -> None:
        self.met = anyio.Event()
        self.ending = Ending()
        self.connection: Connection | None = None


class Streams:
    """All streams of a node.

    Args:
        idle_s: How long nothing may move on a stream.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._sessions: dict[str, _Session] = {}
        self._empty = anyio.Event()
        self._closing = False

    def _session(self, session_id: str) -> _Session:
        return self._sessions.setdefault(session_id, _Session())

    def hand(self, session_id: str, connection: Connection) -> None:
        """Bring the connection of a session that was opened; when it is `served`, nobody uses it any more."""
        session = self._session(session_id)
        session.connection = connection
        session.met.set()

    def forget(self, session_id: str) -> None:
        """The connection of a session that was opened will not come: it got lost on the way."""
        self._session(session_id).met.set()

    async def serve(self, session_id: str, work: Work) -> int | None:
        """Serve a session with its connection; returns the exit code of its command, if it has one.

        Raises:
            OperationError: The work's own failure, or STREAM_NOT_TAKEN when there is no connection.
        """
        session = self._session(session_id)
        if self._closing:
            session.ending.tell(server_stops=True)
        try:
            with anyio.move_on_after(MEET_S):
                await session.met.wait()
            if session.connection is None:
                raise OperationError(Code.CANCELLED, "STREAM_NOT_TAKEN", f"{session_id}: its client is gone")
            return await self._serve(session, session.connection, work)
        finally:
            if session.connection is not None:
                session.connection.served.set()
            del self._sessions[session_id]
            self._empty.set()

    async def _serve(self, session: _Session, connection: Connection, work: Work) -> int | None:
        code: int | None = None
        failure: OperationError | None = None
        with anyio.CancelScope() as idle:
            connection.limit(idle, self._idle_s)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cut_off, session.ending, tasks.cancel_scope)
                try:
                    code = await work(connection, session.ending)
                except OperationError as error:
                    failure = error
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return code

    def end(self, session_id: str) -> None:
        """Have a stream end soon; one that is over has done so."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.ending.tell()

    async def aclose(self) -> None:
        """End every stream, and wait for that."""
        self._closing = True
        for session in self._sessions.values():
            session.ending.tell(server_stops=True)
        with anyio.move_on_after(END_S + LINGER_S):
            while self._sessions:
                self._empty = anyio.Event()
                await self._empty.wait()


async def _cut_off(ending: Ending, scope: anyio.CancelScope) -> None:
    await ending.wait()
    await anyio.sleep(END_S)
    log.warning("a stream that was told to end did not within %g s and is cut off", END_S)
    scope.cancel()
