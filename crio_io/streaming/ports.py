"""Connections of a client to ports of a pod: sockets of ours that were made in the pod's network.

A socket belongs to the network namespace of the thread that made it, for as long as it lives; so a thread enters the
pod's namespace, makes one, and ends. No program is started in the pod or beside it.
"""

import errno
import os
import socket

import anyio
from anyio.abc import TaskGroup

from crio_core import effects as fx
from crio_core.records import Pin
from crio_core.streaming.portforward import Connected, Data, DataEnded, Dropped, Forwarding, ForwardingEvent
from crio_core.streaming.protocol import Left, ProtocolError
from crio_io import mounts
from crio_io.libc import checked, libc
from crio_io.own_thread import in_own_thread
from crio_io.streaming.sockets import SocketStream
from crio_io.streaming.streams import ANSWERS_BYTES_MAX, Connection, Ending

CONNECT_S = 30.0
"""How long a connection inside a pod may take to be made."""
CONNECTIONS_MAX = 1024
"""Connections that one client may have at the same time; one more is refused."""
WAITING_BYTES_MAX = 1024 * 1024
"""What a client may have sent to a port that does not take it; with more, the client has to wait."""
READ_BYTES = 65536
HUNG_UP_S = 5.0
"""How long what a client said before it hung up may wait for ports to take it."""
CLONE_NEWNET = 0x40000000
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def _make_socket(netns: Pin | None, family: socket.AddressFamily) -> socket.socket:
    """A socket in a network namespace; blocks."""

    def make() -> socket.socket:
        assert netns is not None
        fd = os.open(netns.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_ino != netns.inode:
                raise FileNotFoundError(errno.ENOENT, "the pod's network is not there any more")
            checked("setns", libc.setns(fd, CLONE_NEWNET))
        finally:
            os.close(fd)
        return socket.socket(family, socket.SOCK_STREAM)

    return socket.socket(family, socket.SOCK_STREAM) if netns is None else in_own_thread(make)


async def connect(netns: Pin | None, port: int) -> socket.socket:
    """A connection to a port of a pod, by its loopback addresses, the one of IPv4 first.

    Raises:
        OSError: Neither could be made; that of IPv4 says why.
    """
    failure: OSError | None = None
    for family, address in LOOPBACK:
        try:
            sock = await mounts.in_thread("make a socket in a pod's network", _make_socket, netns, family)
        except OSError as error:
            failure = failure or error
            continue
        try:
            await _connect(sock, address, port)
        except OSError as error:
            sock.close()
            failure = failure or error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert failure is not None
    raise failure


async def _connect(sock: socket.socket, address: str, port: int) -> None:
    sock.setblocking(False)
    number = sock.connect_ex((address, port))
    if number == errno.EINPROGRESS:
        await anyio.wait_writable(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number != 0:
        raise OSError(number, os.strerror(number))


class _Port:
    """One connection: what the client has sent and the pod has not taken."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self.waiting: list[bytes] = []
        self.waiting_bytes = 0
        self.ended = False
        self.moved = anyio.Event()

    def move(self) -> None:
        """Wake whoever waits for this connection to get or to lose something."""
        self.moved.set()
        self.moved = anyio.Event()


class PortForwarder:
    """All connections of one client.

    Args:
        connection: Where the client is.
        order: Which pod, and which ports.
    """

    def __init__(self, connection: Connection, order: fx.ServePorts) -> None:
        self._connection = connection
        self._order = order
        self._forwarding = Forwarding(connection.protocol, order.ports)
        self._ports: dict[int, _Port] = {}
        self._wanted = anyio.Event()
        """Set when the writer is to look whether there is something to send."""
        self._turned = anyio.Event()
        self._begun = self._done = 0
        """Turns of the writer: how many it has begun, and how many it has done."""
        self._gone = False
        self._answered_bytes = 0
        """Of what the client has said lately that is only to be answered, while the writer waits for it."""

    async def run(self, ending: Ending) -> None:
        """Forward until the client leaves, or until it is told to end."""
        async with anyio.create_task_group() as tasks:

            async def obey() -> None:
                await ending.wait()
                self._forwarding.close()
                await self._flush()
                tasks.cancel_scope.cancel()

            async def notice() -> None:
                await self._connection.hung_up()
                await anyio.sleep(HUNG_UP_S)
                tasks.cancel_scope.cancel()

            tasks.start_soon(self._write)
            tasks.start_soon(obey)
            tasks.start_soon(notice)
            events = self._forwarding.start()
            await self._flush()
            while await self._pass_on(tasks, events):
                events = await self._receive()
            tasks.cancel_scope.cancel()

    async def _receive(self) -> list[ForwardingEvent]:
        data = await self._connection.receive()
        try:
            events = self._forwarding.receive(data)
        except ProtocolError:
            return [Left()]
        # The writer may have to wait for the client; one that has very many answers made, and takes none, is not read.
        self._answered_bytes = self._answered_bytes + len(data) if self._begun > self._done and not events else 0
        self._wanted.set()
        if self._answered_bytes > ANSWERS_BYTES_MAX:
            await self._flush()
        return events if data or events else [Left()]

    async def _write(self) -> None:
        """Send what there is, turn by turn. Nobody else does: a frame that was cut off would swallow the next."""
        while not self._gone:
            wanted = self._wanted = anyio.Event()
            self._begun += 1
            data = self._forwarding.take()
            self._gone = bool(data) and not await self._connection.send(data)
            self._done = self._begun
            self._turned.set()
            self._turned = anyio.Event()
            if not data:
                await wanted.wait()

    async def _flush(self) -> None:
        """Wait until what there is now has been sent."""
        turn = self._begun + 1
        self._wanted.set()
        while self._done < turn and not self._gone:
            await self._turned.wait()

    async def _pass_on(self, tasks: TaskGroup, events: list[ForwardingEvent]) -> bool:
        """Do what the client wants; False when it has left."""
        for event in events:
            match event:
                case Connected(id=number, port=port):
                    await self._begin(tasks, number, port)
                case Data(id=number, data=data):
                    await self._queue(number, data)
                case DataEnded(id=number):
                    if (found := self._ports.get(number)) is not None:
                        found.ended = True
                        found.move()
                case Dropped(id=number):
                    if (found := self._ports.get(number)) is not None:
                        found.scope.cancel()
                case Left():
                    return False
        return True

    async def _queue(self, number: int, data: bytes) -> None:
        """Leave data for a connection, and wait while it has too much of it."""
        port = self._ports.get(number)
        if port is None:
            return
        port.waiting.append(data)
        port.waiting_bytes += len(data)
        port.move()
        while port.waiting_bytes > WAITING_BYTES_MAX and self._ports.get(number) is port:
            await port.moved.wait()

    async def _begin(self, tasks: TaskGroup, number: int, port: int) -> None:
        if len(self._ports) >= CONNECTIONS_MAX:
            await self._fail(number, f"{CONNECTIONS_MAX} connections are open already")
            return
        self._ports[number] = found = _Port(anyio.CancelScope())
        tasks.start_soon(self._serve, number, port, found)

    async def _serve(self, number: int, port: int, found: _Port) -> None:
        try:
            with found.scope:
                await self._connect_and_copy(number, port, found)
        finally:
            del self._ports[number]
            found.move()

    async def _connect_and_copy(self, number: int, port: int, found: _Port) -> None:
        try:
            with anyio.fail_after(CONNECT_S):
                sock = await connect(self._order.netns, port)
        except OSError as error:  # A time limit is one as well.
            why = error.strerror or f"no answer within {CONNECT_S:g} s"
            await self._fail(number, f"pod {self._order.sandbox_id}: cannot connect to port {port}: {why}")
            return
        stream = SocketStream(sock)
        try:
            async with anyio.create_task_group() as both:
                both.start_soon(self._to_pod, found, stream)
                failure = await self._from_pod(number, stream)
                if failure:
                    both.cancel_scope.cancel()
        finally:
            await stream.aclose()
        if failure:
            await self._fail(number, f"pod {self._order.sandbox_id}: port {port}: {failure}")

    async def _fail(self, number: int, why: str) -> None:
        self._forwarding.fail(number, why)
        await self._flush()

    async def _from_pod(self, number: int, stream: SocketStream) -> str:
        """Send the client what comes; returns what went wrong, if anything."""
        while True:
            try:
                data = await stream.receive(READ_BYTES)
            except anyio.EndOfStream:
                self._forwarding.end(number)
                await self._flush()
                return ""
            except anyio.BrokenResourceError as error:
                return str(error.__cause__)
            self._forwarding.send(number, data)
            await self._flush()

    async def _to_pod(self, found: _Port, stream: SocketStream) -> None:
        """Send the pod what the client has left for it."""
        try:
            while True:
                moved = found.moved
                if found.waiting:
                    data = b"".join(found.waiting)
                    found.waiting.clear()
                    await stream.send(data)
                    found.waiting_bytes -= len(data)
                    found.move()
                elif found.ended:
                    await stream.send_eof()
                    return
                else:
                    await moved.wait()
        except anyio.BrokenResourceError:
            return  # Whoever reads finds out the same.


async def serve_ports(order: fx.ServePorts, connection: Connection, ending: Ending) -> None:
    """Connect a client to ports of a pod until it leaves."""
    await PortForwarder(connection, order).run(ending)
