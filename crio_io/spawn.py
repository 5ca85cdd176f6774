"""Runs one short-lived program and collects what it says.

How it works:

- One task and no threads. The process (by pidfd) and its pipes sit in one epoll set, and the event loop waits for that
  set; there is no SIGCHLD handler and no child watcher, so any loop can host it.
- The program gets its own process group, and only descriptors 0-2 and those listed (CVE-2024-21626). Not its own
  session: where the scheduler groups by session, each program would wait for a share of the processor of its own.
- Exit of the program ends the call, not the end of its output: a daemon that it left behind may hold the pipes.
- Whatever ends the call, the program is reaped; on timeout or cancellation its process group is killed first.
"""

import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import anyio

from crio_core.errors import Code, LocalError, OperationError
from crio_core.values import dataclass

READ_BYTES = 65536
DRAIN_S = 0.1
"""How long output may still arrive after the program has exited."""
REAP_S = 2.0
"""How long a killed program may take to die before the call gives up on it (it may hang in the kernel)."""
STDERR_IN_MESSAGE_CHARS = 2048
SUBJECT_VARIABLES = ("CNI_COMMAND", "CNI_CONTAINERID")
"""Variables that tell what a program works on where its arguments do not: network plugins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that runs now: its arguments and what it works on; `started_s` is on the monotonic clock."""

    words: tuple[str, ...]
    pid: int
    started_s: float


_running: dict[int, Program] = {}


def running_programs() -> tuple[Program, ...]:
    """The programs that have not ended, oldest first: for a status."""
    return tuple(_running.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a program left: `returncode` is negative when a signal ended it."""

    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool

    def stderr_text(self) -> str:
        """The end of stderr, fit for an error message."""
        return self.stderr.decode("utf-8", "replace").strip()[-STDERR_IN_MESSAGE_CHARS:]


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
    timeout_s: float,
    output_max_bytes: int = 65536,
) -> Completed:
    """Run a program to its end.

    Args:
        argv: The program (a path, or a name to look up in PATH) and its arguments.
        stdin: What it reads; nothing means /dev/null.
        env: Its whole environment; None passes on our own.
        pass_fds: Descriptors it inherits under the same numbers, besides 0-2.
        cwd: Its working directory.
        timeout_s: When to kill its process group.
        output_max_bytes: How much of stdout, and of stderr, is kept; the rest is read and thrown away.

    Raises:
        OperationError: EXECUTABLE_NOT_FOUND, SPAWN_FAILED or TIMEOUT.
    """
    child = Child(argv, stdin=stdin, env=env, pass_fds=pass_fds, cwd=cwd, output_max_bytes=output_max_bytes)
    try:
        with anyio.move_on_after(timeout_s):
            await child.wait_exit()
        if child.returncode is None:
            message = f"{_named(argv)} did not finish within {timeout_s:g} s and was killed"
            raise OperationError(Code.DEADLINE_EXCEEDED, "TIMEOUT", message)
        with anyio.move_on_after(DRAIN_S):
            await child.wait_output()
        return child.completed(child.returncode)
    finally:
        await child.end()


class _Room:
    """How many bytes may still be kept, by one stream or by two together."""

    __slots__ = ("left_bytes", "truncated")

    def __init__(self, max_bytes: int) -> None:
        self.left_bytes = max_bytes
        self.truncated = False


class _Output:
    """What one stream said, as far as there was room."""

    __slots__ = ("chunks", "room")

    def __init__(self, room: _Room) -> None:
        self.chunks: list[bytes] = []
        self.room = room

    def add(self, data: bytes) -> None:
        if len(data) > self.room.left_bytes:
            self.room.truncated = True
            data = data[: self.room.left_bytes]
        self.room.left_bytes -= len(data)
        if data:
            self.chunks.append(data)


class Child:
    """A started program: its pidfd and pipes in one epoll set. Whoever makes one must await its `end`.

    The arguments are those of `run`; with `output_shared`, stdout and stderr are bounded together.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
        output_max_bytes: int,
        output_shared: bool = False,
    ) -> None:
        stdio = (subprocess.PIPE if stdin else subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE)
        self.popen = start(argv, env=env, pass_fds=pass_fds, cwd=cwd, stdio=stdio)
        self.returncode: int | None = None
        self._unsent = memoryview(stdin)
        self._stack = ExitStack()
        subject = tuple((env or {}).get(name, "") for name in SUBJECT_VARIABLES)
        _running[id(self)] = Program(words=(*argv, *subject), pid=self.popen.pid, started_s=time.monotonic())
        self._stack.callback(_running.pop, id(self), None)
        try:
            self._pidfd = os.pidfd_open(self.popen.pid)
            self._stack.callback(os.close, self._pidfd)
            self._epoll = self._stack.enter_context(select.epoll())
            self._epoll.register(self._pidfd, select.EPOLLIN)
            assert self.popen.stdout is not None and self.popen.stderr is not None
            room = _Room(output_max_bytes)
            self._stdout = _Output(room)
            self._stderr = _Output(room if output_shared else _Room(output_max_bytes))
            self._outputs = {self.popen.stdout.fileno(): self._stdout, self.popen.stderr.fileno(): self._stderr}
            for fd in self._outputs:
                os.set_blocking(fd, False)
                self._epoll.register(fd, select.EPOLLIN)
            if self.popen.stdin is not None:
                os.set_blocking(self.popen.stdin.fileno(), False)
                self._epoll.register(self.popen.stdin.fileno(), select.EPOLLOUT)
                self._send()
        except BaseException:
            kill_group(self.popen)
            self.popen.wait()
            self._close()
            raise

    async def wait_exit(self) -> None:
        """Serve the pipes until the program has been reaped."""
        while self.returncode is None:
            await anyio.wait_readable(self._epoll.fileno())
            self._serve()

    async def wait_output(self) -> None:
        """Serve the pipes until both outputs have ended."""
        while self._outputs:
            await anyio.wait_readable(self._epoll.fileno())
            self._serve()

    def _serve(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if fd == self._pidfd:
                self._epoll.unregister(fd)
                self.returncode = self.popen.poll()
                # What was written before the exit is in the pipes already: usually all of it, so no second wait.
                for output_fd in tuple(self._outputs):
                    self._receive(output_fd)
            elif fd in self._outputs:
                self._receive(fd)
            elif self.popen.stdin is not None:
                self._send()

    def _receive(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._outputs[fd].add(data)
        else:
            self._epoll.unregister(fd)
            del self._outputs[fd]

    def _send(self) -> None:
        pipe = self.popen.stdin
        assert pipe is not None
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(pipe.fileno(), self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")  # A program need not read its input.
        self._epoll.unregister(pipe.fileno())
        pipe.close()
        self.popen.stdin = None

    def completed(self, returncode: int) -> Completed:
        return Completed(
            returncode=returncode,
            stdout=b"".join(self._stdout.chunks),
            stderr=b"".join(self._stderr.chunks),
            truncated=self._stdout.room.truncated or self._stderr.room.truncated,
        )

    async def end(self) -> None:
        """Kill the process group if the program has not ended, reap it, and close every descriptor.

        A program that does not die (it hangs in the kernel) is reaped by `subprocess` at a later start.
        """
        if self.returncode is None:
            kill_group(self.popen)  # Not reaped yet, so the number is still its own.
            with anyio.move_on_after(REAP_S, shield=True):
                await self.wait_exit()
        self._close()

    def _close(self) -> None:
        self._stack.close()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
    stdio: tuple[int, int, int] = (subprocess.DEVNULL,) * 3,
) -> "subprocess.Popen[bytes]":
    """Start a program in a process group of its own; it must be reaped by the caller.

    Descriptors in `stdio` stay the caller's.

    Neither `preexec_fn` nor a change of user is used, so that CPython takes vfork: cost does not grow with the server.

    Raises:
        OperationError: EXECUTABLE_NOT_FOUND or SPAWN_FAILED.
    """
    if not argv:
        raise LocalError("a program to run needs at least a name")
    stdin, stdout, stderr = stdio
    try:
        return subprocess.Popen(
            argv,
            bufsize=0,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            close_fds=True,
            process_group=0,
        )
    except OSError as error:
        if error.errno == errno.ENOENT and (cwd is None or error.filename != cwd):
            message = f"{argv[0]}: no such program"
            raise OperationError(Code.NOT_FOUND, "EXECUTABLE_NOT_FOUND", message) from error
        message = f"{_named(argv)} could not be started: {error}"
        raise OperationError(Code.INTERNAL, "SPAWN_FAILED", message) from error
    except ValueError as error:  # A NUL byte in an argument or in the environment.
        message = f"{_named(argv)} could not be started: {error}"
        raise OperationError(Code.INVALID_ARGUMENT, "SPAWN_FAILED", message) from error


def kill_group(popen: "subprocess.Popen[bytes]") -> None:
    """Kill the group of a program from `start` that has not been reaped."""
    if popen.returncode is None:
        try:
            os.killpg(popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # Dead already; only the reaping is left.


def _named(argv: Sequence[str]) -> str:
    """The command as a person would look for it: the program and its first words, bounded."""
    return " ".join(argv)[:200]
