"""One command as it runs: input and terminal sizes go to the server, output comes back, until it has ended."""

import contextlib
import itertools
import os
import signal

import anyio

from crio_core.streaming.client import CommandClient, CommandClientEvent, Output
from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.streaming.remotecommand import Ready, Wants
from crio_core.streaming.remotecommand import Stream as OutputStream
from crio_core.streaming.status import Ended, Exited, Failed
from crio_server.crioctl import terminal
from crio_server.crioctl.detach import DetachKeys
from crio_server.crioctl.errors import Refused
from crio_server.crioctl.streaming import Stream

INPUT_BYTES = 64 << 10
_DESCRIPTORS = {OutputStream.STDOUT: 1, OutputStream.STDERR: 2}


class Detached:
    """The user has left, and the command goes on."""


Result = Ended | Detached | signal.Signals


async def follow(stream: Stream, wants: Wants, keys: bytes) -> Result:
    """Follow a command until it has ended, the user has typed the keys, or this process was asked to end.

    Args:
        keys: Those that detach, typed at a terminal.

    Raises:
        Refused: The connection was lost, or the server broke the protocol.
    """
    has_keyboard = wants.tty and wants.stdin and os.isatty(terminal.STDIN)
    session = _Session(stream, wants, keys if has_keyboard else b"")
    try:
        with contextlib.ExitStack() as stack:
            if has_keyboard:
                stack.enter_context(terminal.raw(session.finish))
            if wants.tty:
                stack.enter_context(terminal.resizes(session.resize))
            return await session.run()
    except ExceptionGroup as group:
        # One task failed, and the others were ended for it.
        raise group.exceptions[0] from group
    finally:
        await stream.close()


class _Session:
    def __init__(self, stream: Stream, wants: Wants, keys: bytes) -> None:
        self._stream = stream
        self._wants = wants
        self._detach = DetachKeys(keys)
        self._machine = CommandClient(stream.protocol, wants)
        self._is_ready = False
        self._size: tuple[int, int] | None = None
        self._sending = anyio.Lock()
        self._tasks = anyio.create_task_group()
        self._result: Result | None = None

    def resize(self, width: int, height: int) -> None:
        """The terminal has this size."""
        self._size = (width, height)
        if self._is_ready:
            self._machine.resize(width, height)
            self._tasks.start_soon(self._flush)

    def finish(self, result: Result) -> None:
        """Follow no longer."""
        if self._result is None:
            self._result = result
        self._tasks.cancel_scope.cancel()

    async def run(self) -> Result:
        async with self._tasks:
            self._take(self._machine.start())
            await self._flush()
            while self._result is None:
                try:
                    events = self._machine.receive(await self._stream.receive())
                except ProtocolError as error:
                    raise Refused(f"the server broke the protocol of streams: {error}") from error
                self._take(events)
                # What the machine answers does not wait for input that is on its way: the server may be busy, too.
                self._tasks.start_soon(self._flush)
        assert self._result is not None
        return self._result

    def _take(self, events: list[CommandClientEvent]) -> None:
        # A read has many small frames: what goes to one descriptor is written at once.
        for stream, group in itertools.groupby(events, lambda one: one.stream if isinstance(one, Output) else None):
            if stream is not None:
                _write(_DESCRIPTORS[stream], b"".join(one.data for one in group if isinstance(one, Output)))
                continue
            for event in group:
                match event:
                    case Ready():
                        self._begin()
                    case Exited() | Failed():
                        self.finish(event)
                    case Left():
                        self.finish(Failed(message="the connection to the server was lost before the command ended"))

    def _begin(self) -> None:
        self._is_ready = True
        if self._size is not None:
            self._machine.resize(*self._size)
        if self._wants.stdin:
            self._tasks.start_soon(self._send_input)

    async def _send_input(self) -> None:
        while data := await _read_input():
            passed, is_detached = self._detach.feed(data)
            if passed:
                self._machine.send_input(passed)
                await self._flush()
            if is_detached:
                self.finish(Detached())
                return
        self._machine.end_input()
        await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
            data = self._machine.take()
            if data:
                await self._stream.send(data)


async def _read_input() -> bytes:
    """What stands in standard input; a file, which cannot be waited for, is read at once."""
    try:
        with contextlib.suppress(PermissionError):  # of epoll
            await anyio.wait_readable(terminal.STDIN)
        return os.read(terminal.STDIN, INPUT_BYTES)
    except OSError:  # the terminal has gone (EIO), or there is no standard input (EBADF)
        return b""


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
