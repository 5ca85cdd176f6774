"""Where connections meet their orders, and the sockets under them, on every loop that can host an engine."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.errors import Code, OperationError
from crio_core.streaming.protocol import Protocol, Wire
from crio_core.streaming.remotecommand import Stream
from crio_core.streaming.status import Exited
from crio_io.streaming import streams
from crio_io.streaming.client import CommandClient
from crio_io.streaming.ports import PortForwarder
from crio_io.streaming.sockets import SocketStream
from crio_io.streaming.streams import Connection, Ending, Streams

pytestmark = pytest.mark.anyio
LIMIT_S = 20


@pytest.fixture(
    params=[("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})], ids=["asyncio", "uvloop", "trio"]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every loop that can host the executors."""
    return request.param


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection over TCP: the server's end, and a client's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), timeout=LIMIT_S)
        accepted, _ = server.accept()
    yield accepted, client
    accepted.close()
    client.close()


def connection(accepted: socket.socket, early: bytes = b"") -> Connection:
    stream = SocketStream(accepted)
    return Connection(stream, stream, Protocol(wire=Wire.SPDY, name=""), early)


async def test_connection_and_order_meet_whichever_is_first(pair: tuple[socket.socket, socket.socket]) -> None:
    """The code of the work is the order's result, and afterwards nobody uses the connection."""
    streams, one = Streams(), connection(pair[0], b"early")

    async def work(found: Connection, ending: Ending) -> int:
        assert await found.receive() == b"early"
        assert await found.send(b"hello")
        return 7

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(streams.serve, "first", work)
        await anyio.wait_all_tasks_blocked()
        streams.hand("first", one)
        with anyio.fail_after(LIMIT_S):
            await one.served.wait()
    assert pair[1].recv(100) == b"hello"
    other = connection(pair[0], b"early")
    streams.hand("second", other)
    assert await streams.serve("second", work) == 7
    assert other.served.is_set()


async def test_order_whose_connection_got_lost_fails() -> None:
    """It must not wait for ever."""
    streams = Streams()

    async def work(found: Connection, ending: Ending) -> None:
        raise AssertionError("there is nothing to work with")

    streams.forget("lost")
    with pytest.raises(OperationError, match="its client is gone"):
        await streams.serve("lost", work)


async def test_work_that_fails_fails_its_order_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    """With its own error, not a group of them."""
    streams, one = Streams(), connection(pair[0])

    async def work(found: Connection, ending: Ending) -> None:
        raise OperationError(Code.INTERNAL, "BROKEN", "it broke")

    streams.hand("one", one)
    with pytest.raises(OperationError, match="it broke"):
        await streams.serve("one", work)
    assert one.served.is_set()


async def test_idle_stream_is_cut_off_and_a_busy_one_is_not(pair: tuple[socket.socket, socket.socket]) -> None:
    """Every byte counts, in both directions."""
    streams, one = Streams(idle_s=0.5), connection(pair[0])
    received = 0

    async def work(found: Connection, ending: Ending) -> None:
        nonlocal received
        while data := await found.receive():
            received += len(data)

    async def talk() -> None:
        for _ in range(20):
            pair[1].send(b"x")
            await anyio.sleep(0.1)  # The pace of the client is what is tested.

    streams.hand("one", one)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        with anyio.fail_after(LIMIT_S):
            assert await streams.serve("one", work) is None
    assert received == 20


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "server"])
async def test_end_is_told_and_waited_for(pair: tuple[socket.socket, socket.socket], whole: bool) -> None:
    """Of a server that stops, to every stream; of a container that has ended, to its own."""
    streams = Streams()
    told: list[bool] = []
    streams.hand("one", connection(pair[0]))

    async def work(found: Connection, ending: Ending) -> None:
        await ending.wait()
        told.append(ending.server_stops)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(streams.serve, "one", work)
        await anyio.wait_all_tasks_blocked()
        streams.end("another")
        with anyio.fail_after(LIMIT_S):
            if whole:
                await streams.aclose()
                assert told == [True]
            else:
                streams.end("one")
    assert told == [whole]


async def test_hanging_up_is_noticed_beside_what_is_not_read(pair: tuple[socket.socket, socket.socket]) -> None:
    """What was sent before is still there."""
    stream = SocketStream(pair[0])
    async with anyio.create_task_group() as tasks:

        async def leave() -> None:
            pair[1].sendall(b"last words")
            pair[1].close()

        tasks.start_soon(leave)
        with anyio.fail_after(LIMIT_S):
            await stream.hung_up()
    assert await stream.receive() == b"last words"
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()
    await stream.aclose()


async def test_much_is_sent_no_faster_than_it_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    """Sending waits for the peer; what was sent is then all there."""
    stream, size, sent = SocketStream(pair[0]), 32 * 1024 * 1024, False

    async def send() -> None:
        nonlocal sent
        await stream.send(bytes(size))
        await stream.send_eof()
        sent = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert not sent
        received = await anyio.to_thread.run_sync(_read_all, pair[1])
    assert (received, sent) == (size, True)
    await stream.aclose()


def _read_all(sock: socket.socket) -> int:
    size = 0
    while data := sock.recv(1024 * 1024):
        size += len(data)
    return size


class Slow:
    """A client that takes nothing until it is told to."""

    protocol = Protocol(wire=Wire.WEBSOCKET, name="v4.channel.k8s.io")

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.takes = anyio.Event()

    async def send(self, data: bytes) -> bool:
        await self.takes.wait()
        self.taken.append(data)
        return True

    async def end(self) -> None:
        self.taken.append(b"end")


class Bytes:
    """What there is to send."""

    def __init__(self) -> None:
        self.waiting = b""

    def take(self) -> bytes:
        data, self.waiting = self.waiting, b""
        return data


async def test_connection_that_is_dropped_cuts_no_frame_of_another() -> None:
    """Its task is cancelled while it waits; what is being sent has also the data of the others, and is sent whole."""
    slow, there = Slow(), Bytes()
    order = fx.ServePorts(session_id="s", sandbox_id="p", netns=None, ports=())
    forwarder = PortForwarder(slow, order)  # type: ignore[arg-type]
    forwarder._forwarding = there  # type: ignore[assignment]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forwarder._write)
        there.waiting = b"one frame"
        with anyio.move_on_after(0.05) as dropped:
            await forwarder._flush()
        assert dropped.cancelled_caught
        there.waiting = b", another frame"
        slow.takes.set()
        await forwarder._flush()
        assert b"".join(slow.taken) == b"one frame, another frame"
        tasks.cancel_scope.cancel()


async def test_client_whose_output_was_cut_off_is_sent_no_status_behind_it() -> None:
    """It would take the status for the rest of the output, and print it."""
    slow = Slow()
    client = CommandClient(slow, rq.Streams(stdout=True))  # type: ignore[arg-type]
    with anyio.move_on_after(0.05):
        await client.send(Stream.STDOUT, b"output")
    slow.takes.set()
    await client.finish(Exited(code=0))
    assert client.gone and slow.taken == []


async def test_client_that_reads_slowly_and_says_something_gets_the_end(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing with something unread makes a reset of it, and what was on its way is lost: output, and the exit code."""
    monkeypatch.setattr(streams, "LINGER_S", 0.1)
    accepted, client = pair
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    got = 0

    def read_slowly() -> None:
        nonlocal got
        while data := client.recv(1 << 14):
            got += len(data)
            client.sendall(b"ping")
            time.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, read_slowly)
        served = connection(accepted)
        await served.send(bytes(1 << 20))
        await served.end()
        accepted.close()
    assert got == 1 << 20
