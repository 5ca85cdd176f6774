"""A client of a container's first process: its monitor's attach socket on one side, the client on the other.

The socket keeps packets apart: one to us is a byte, the stream (2 standard output, 3 standard error), and output; one
from us is input. Sizes of the terminal go through the monitor's control FIFO (conmon 2.1). A client that is behind for
long is let go by the monitor, since a container's output waits for nobody.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

import anyio

from crio_core import effects as fx
from crio_core.errors import Code, OperationError
from crio_core.streaming.remotecommand import Stream
from crio_core.streaming.status import Exited
from crio_io import mounts
from crio_io.monitor_files import write_control
from crio_io.streaming.client import CommandClient
from crio_io.streaming.streams import Connection, Ending

SOCKET_FILE = "attach"
PACKET_BYTES = 8192 + 1
"""What a monitor sends at most in one packet."""
INPUT_BYTES = 8192
"""What a monitor is sent at most in one; it reads up to 32 KiB."""
SIDE_MAX = 1000
"""Rows and columns of a terminal that a monitor takes."""
LAST_WORDS_S = 5.0
"""How long what a container has written last may be on its way, once the container has ended."""
_STREAMS = {2: Stream.STDOUT, 3: Stream.STDERR}


class AttachSocket:
    """A connection to a monitor.

    Args:
        sock: The connected socket.
        bundle: Where the monitor has its control FIFO.
        terminal: Whether the process has a terminal.
    """

    def __init__(self, sock: socket.socket, bundle: Path, *, terminal: bool) -> None:
        self._sock = sock
        self._bundle = bundle
        self._terminal = terminal
        self._deaf = False

    async def write(self, data: bytes) -> None:
        """Pass input on, as fast as the monitor takes it; what nobody will read is dropped."""
        for at in range(0, len(data), INPUT_BYTES):
            while not self._deaf:
                try:
                    self._sock.send(data[at : at + INPUT_BYTES])
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)
                except OSError:
                    self._deaf = True
                else:
                    break

    def end_input(self) -> None:
        """There is no more input; the monitor knows whether the process is to see that."""
        self._deaf = True
        with suppress(OSError):  # The monitor has hung up.
            self._sock.shutdown(socket.SHUT_WR)

    def resize(self, width: int, height: int) -> None:
        """Give the terminal this size, in characters, or the largest that a monitor takes."""
        if self._terminal:
            rows, columns = min(height, SIDE_MAX), min(width, SIDE_MAX)
            with suppress(OperationError, BlockingIOError):  # It is ending, or more sizes come than it can read.
                write_control(self._bundle, b"1 %d %d\n" % (rows, columns))

    async def pump(self, client: CommandClient) -> None:
        """Send the client what the process writes, until the monitor hangs up."""
        while True:
            try:
                packet = self._sock.recv(PACKET_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._sock)
                continue
            except OSError:
                return
            if not packet:
                return
            stream = _STREAMS.get(packet[0])
            if stream is not None and len(packet) > 1:
                await client.send(stream, packet[1:])


def _connect(bundle: Path) -> socket.socket:
    """A connection to the attach socket in a bundle, whose path may be longer than a socket's address."""
    folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{SOCKET_FILE}")
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


async def serve_attach(bundle: Path, order: fx.ServeAttach, connection: Connection, ending: Ending) -> None:
    """Join a client to the streams of a container's first process.

    Raises:
        OperationError: MONITOR_GONE, of which the client was told; or the client did not speak.
    """
    client = CommandClient(connection, order.streams)
    await client.ready()
    try:
        sock = await mounts.in_thread(f"connect to the monitor in {bundle}", _connect, bundle)
    except OSError as error:
        message = f"container {order.container_id}: nobody has its streams: {error.strerror}"
        failure = OperationError(Code.FAILED_PRECONDITION, "MONITOR_GONE", message)
        await client.fail(failure)
        raise failure from error
    with sock:
        await _join(client, AttachSocket(sock, bundle, terminal=order.terminal), ending)
    await client.finish(Exited(code=0))


async def _join(client: CommandClient, attached: AttachSocket, ending: Ending) -> None:
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            await client.listen(attached)
            client.leave()
            tasks.cancel_scope.cancel()

        async def obey() -> None:
            await ending.wait()
            if ending.server_stops:
                client.leave()  # The process goes on: nothing is said of its end.
            else:
                await anyio.sleep(LAST_WORDS_S)  # Usually the monitor hangs up by itself, after what it has last.
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        tasks.start_soon(obey)
        await attached.pump(client)
        tasks.cancel_scope.cancel()
