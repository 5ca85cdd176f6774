"""A command that runs in a container for a client: its process behind pipes or a terminal, and the client before them.

The terminal is one of ours, in raw mode; the runtime makes the container's own and copies between the two, as it does
for a person who calls it in a shell. It takes over our terminal's size when it is told that it has changed.
"""

import fcntl
import os
import struct
import termios
import tty
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

import anyio

from crio_core import effects as fx
from crio_core.errors import Code, OperationError
from crio_core.requests import Streams
from crio_core.streaming.remotecommand import Stream
from crio_core.streaming.status import Exited
from crio_io import spawn
from crio_io.runtime import OciRuntime
from crio_io.runtime.execs import StreamedExec
from crio_io.streaming.client import CommandClient
from crio_io.streaming.streams import Connection, Ending

READ_BYTES = 256 * 1024
PIPE_BYTES = 256 * 1024
"""What the kernel keeps between a command and us; a client that is behind stops the command there."""


class Ends:
    """Both ends of a command's streams; those that it inherits are closed here when it has them.

    Args:
        streams: Which there are; the others are /dev/null.
    """

    def __init__(self, streams: Streams) -> None:
        self._ours = ExitStack()
        self._theirs = ExitStack()
        self._input = -1
        self._terminal = -1
        self._resized: Callable[[], None] | None = None
        self._waits: set[anyio.CancelScope] = set()
        self._over = False
        self.outputs: dict[Stream, int] = {}
        try:
            self.stdio = self._open_terminal() if streams.tty else self._open_pipes(streams)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all that is left."""
        self.end_input()
        self._theirs.close()
        self._ours.close()

    def _open_pipes(self, streams: Streams) -> tuple[int, int, int]:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._theirs.callback(os.close, null)
        stdout = stderr = null
        if streams.stdout:
            self.outputs[Stream.STDOUT], stdout = self._pipe()
        if streams.stderr:
            self.outputs[Stream.STDERR], stderr = self._pipe()
        return self._open_input() if streams.stdin else null, stdout, stderr

    def _pipe(self) -> tuple[int, int]:
        """A pipe for output: our end, and the command's."""
        ours, theirs = os.pipe()
        self._ours.callback(os.close, ours)
        self._theirs.callback(os.close, theirs)
        os.set_blocking(ours, False)
        with suppress(PermissionError):  # Where this user's pipes have taken all that they may.
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return ours, theirs

    def _open_input(self) -> int:
        theirs, self._input = os.pipe()
        self._theirs.callback(os.close, theirs)
        os.set_blocking(self._input, False)
        return theirs

    def _open_terminal(self) -> tuple[int, int, int]:
        ours, theirs = os.openpty()
        self._ours.callback(os.close, ours)
        self._theirs.callback(os.close, theirs)
        # The runtime does the same when it begins; what is typed before that must not be echoed here.
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        self._terminal = ours
        self.outputs[Stream.STDOUT] = ours
        return theirs, theirs, theirs

    def started(self, resized: Callable[[], None]) -> None:
        """The command has its ends; `resized` is to be called when the terminal has another size."""
        self._theirs.close()
        self._resized = resized

    # --- what the client says -----------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Pass input on, as fast as the command takes it; what it will never read is dropped."""
        view = memoryview(data)
        while view:
            fd = self._terminal if self._terminal >= 0 else self._input
            if fd < 0:
                return
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                await anyio.wait_writable(fd)
            except OSError:
                self.end_input()
                return

    def end_input(self) -> None:
        """There is no more input. A terminal has no end of its input: whoever types says it, by its own character."""
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def resize(self, width: int, height: int) -> None:
        """Give the terminal this size, in characters."""
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
            if self._resized is not None:
                self._resized()

    # --- what the command says ----------------------------------------------------------------------------------

    async def pump(self, stream: Stream, client: CommandClient) -> None:
        """Send the client what the command writes, until nobody can write there any more."""
        fd = self.outputs[stream]
        while True:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                if not await self._more(fd):
                    return
                continue
            except OSError:
                return  # EIO: nobody has the terminal open.
            if not data:
                return
            await client.send(stream, data)

    async def _more(self, fd: int) -> bool:
        """Wait for output; False when the command is over and none comes."""
        with anyio.CancelScope() as wait:
            self._waits.add(wait)
            if self._over:
                wait.deadline = anyio.current_time() + spawn.DRAIN_S
            try:
                await anyio.wait_readable(fd)
            finally:
                self._waits.discard(wait)
        return not wait.cancelled_caught

    def over(self) -> None:
        """The command has ended. What it left behind may hold its output open, and is not waited for."""
        self._over = True
        for wait in self._waits:
            wait.deadline = anyio.current_time() + spawn.DRAIN_S


async def serve_exec(runtime: OciRuntime, order: fx.ServeExec, connection: Connection, ending: Ending) -> int | None:
    """Run a command for a client; returns its exit code.

    Raises:
        OperationError: The command could not be run, of which the client was told; or the client did not speak.
    """
    client = CommandClient(connection, order.streams)
    await client.ready()
    try:
        with (
            Ends(order.streams) as ends,
            runtime.exec_streamed(order.container_id, order.process, ends.stdio) as running,
        ):
            ends.started(running.resized)
            await _run(client, ends, running, ending)
            code = running.result()
    except OSError as error:
        message = f"container {order.container_id}: the command cannot have its streams: {error.strerror}"
        failure = OperationError(Code.RESOURCE_EXHAUSTED, "STREAM_FAILED", message)
        await client.fail(failure)
        raise failure from error
    except OperationError as error:
        await client.fail(error)
        raise
    await client.finish(Exited(code=code))
    return code


async def _run(client: CommandClient, ends: Ends, running: StreamedExec, ending: Ending) -> None:
    """See a command through to its end: by itself, or because its client leaves, or because it is told to."""

    async def listen() -> None:
        await client.listen(ends)
        client.leave()
        await running.kill()

    async def obey() -> None:
        await ending.wait()
        await running.kill()

    try:
        async with anyio.create_task_group() as others:
            others.start_soon(listen)
            others.start_soon(obey)
            async with anyio.create_task_group() as pumps:
                for stream in ends.outputs:
                    pumps.start_soon(ends.pump, stream, client)
                await running.wait()
                ends.over()
            others.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await running.end()
