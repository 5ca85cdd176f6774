"""What a `runtime exec` needs besides its command line, whether its output is collected or streamed to a client.

The runtime gets the process to run and writes its log in files in memory, which it inherits; only the pid of what it
has started comes through a file with a name.
"""

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from crio_core.errors import Code, OperationError
from crio_core.values import dataclass
from crio_io import mounts, spawn
from crio_io.runtime import messages, processes

LOG_MAX_BYTES = 65536
KILLS_MAX = 20
"""How often a command is looked for and killed, a tenth of a second apart, before the runtime itself is killed."""

_numbers = itertools.count(1)


@contextmanager
def memory_file(name: str, content: bytes = b"") -> Iterator[int]:
    """A file without a name, for a program that inherits it."""
    fd = os.memfd_create(f"crio-{name}", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        yield fd
    finally:
        os.close(fd)


def read_memory(fd: int) -> bytes:
    """The end of what a program has written to such a file."""
    size = os.fstat(fd).st_size
    return os.pread(fd, LOG_MAX_BYTES, max(0, size - LOG_MAX_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecFiles:
    """The files of one exec: its OCI process, its log, and where the pid of its first process will be."""

    process_fd: int
    log_fd: int
    pid_file: Path

    @property
    def fds(self) -> tuple[int, int]:
        """What the runtime inherits."""
        return (self.process_fd, self.log_fd)

    @property
    def options(self) -> tuple[str, ...]:
        """Where the runtime is told to find them."""
        return ("--process", f"/proc/self/fd/{self.process_fd}", "--pid-file", str(self.pid_file))

    def log(self) -> bytes:
        """What the runtime has logged."""
        return read_memory(self.log_fd)

    def kill(self, runtime_pid: int) -> None:
        """Kill everything that the exec has started; blocks."""
        exec_pid: int | None = None
        with suppress(OSError, ValueError):
            exec_pid = int(self.pid_file.read_text())
        processes.kill_exec(runtime_pid, exec_pid)


@contextmanager
def exec_files(scratch: Path, process: bytes) -> Iterator[ExecFiles]:
    """The files of one exec, gone afterwards; no other exec of this process has the same names.

    Args:
        scratch: A directory of ours, made when needed.
        process: The OCI process, JSON.
    """
    pid_file = scratch / f"exec-{os.getpid()}-{next(_numbers)}"
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with memory_file("process", process) as process_fd, memory_file("log") as log_fd:
            yield ExecFiles(process_fd=process_fd, log_fd=log_fd, pid_file=pid_file)
    finally:
        pid_file.unlink(missing_ok=True)
        pid_file.with_name(f".{pid_file.name}").unlink(missing_ok=True)  # Where runc writes it before it renames it.


def check_exec(runtime: str, container_id: str, returncode: int, log: bytes) -> None:
    """Tell the failure of an exec from the exit of what it has run.

    Raises:
        OperationError: The process could not be started, with the runtime's own words; or the runtime was killed.
    """
    failed = messages.errors_in_log(log)
    if failed:
        raise messages.failure(runtime, f"exec in {container_id}", failed)
    if returncode < 0:
        message = f"{runtime} exec in {container_id}: the runtime was killed by signal {-returncode}"
        raise OperationError(Code.INTERNAL, "RUNTIME_FAILED", message)


class StreamedExec:
    """A running `runtime exec` whose streams are somebody else's. Whoever has one must await its `end`.

    Args:
        runtime: What configuration calls the runtime.
        container_id: Where it runs.
        argv: The whole command.
        files: Its files.
        stdio: What becomes its standard streams; they stay the caller's.
    """

    def __init__(
        self, runtime: str, container_id: str, argv: Sequence[str], files: ExecFiles, stdio: tuple[int, int, int]
    ) -> None:
        self._runtime = runtime
        self._container_id = container_id
        self._files = files
        self._popen: subprocess.Popen[bytes] = spawn.start(argv, pass_fds=files.fds, stdio=stdio)
        self._pidfd = -1
        self._ended = anyio.Event()

    def __enter__(self) -> Self:
        try:
            self._pidfd = os.pidfd_open(self._popen.pid)
        except OSError:
            spawn.kill_group(self._popen)
            self._popen.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        spawn.kill_group(self._popen)
        self._popen.poll()
        os.close(self._pidfd)

    async def wait(self) -> None:
        """Wait until the runtime has ended, and with it the command; only one task may wait at a time."""
        while self._popen.poll() is None:
            await anyio.wait_readable(self._pidfd)
        self._ended.set()

    def result(self) -> int:
        """The exit code of the command, which has ended.

        Raises:
            OperationError: It could not be started; EXECUTABLE_NOT_FOUND when it is missing.
        """
        returncode = -9 if self._popen.returncode is None else self._popen.returncode
        check_exec(self._runtime, self._container_id, returncode, self._files.log())
        return returncode

    async def kill(self) -> None:
        """Kill what the command has started, while somebody waits for the end, until that has come.

        A runtime that is only beginning has started nothing yet, or not all: so it is looked at again and again.
        """
        for _ in range(KILLS_MAX):
            if self._ended.is_set():
                return
            await mounts.in_thread(f"kill exec in {self._container_id}", self._files.kill, self._popen.pid)
            with anyio.move_on_after(spawn.DRAIN_S):
                await self._ended.wait()
        spawn.kill_group(self._popen)

    async def end(self) -> None:
        """Kill everything that has not ended, and reap it; nobody may be waiting any more."""
        if self._popen.poll() is not None:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.kill)
            with anyio.move_on_after(KILLS_MAX * spawn.DRAIN_S + spawn.REAP_S):
                await self.wait()
            tasks.cancel_scope.cancel()

    def resized(self) -> None:
        """Have the runtime look at the size of its terminal again."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGWINCH)
