"""Asks the zygote for monitors: one small process that forks a monitor in a fraction of a millisecond.

The zygote is a program of its own (`crio-conmon --zygote SOCKET`) that outlives the server; this is the other end of
its protocol, which the module `conmon.zygote` describes. A server that finds nobody listening starts one; two servers
that do so at once get one zygote between them, because it holds a lock. Monitors do not notice when it dies.
"""

import array
import errno
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from crio_core.errors import Code, OperationError, RemoteError
from crio_core.values import dataclass

START_S = 10.0
"""How long a new zygote may take until it answers."""
REPLY_S = 10.0
"""How long a request may wait for its answer; opening a log on a disk that hangs is the slow part."""
REPLY_MAX_BYTES = 8192
POLL_S = 0.01
TITLE_ROOM_BYTES = 384
"""Room that the zygote's own command line leaves for the titles of monitors: an id and a name."""
PIPES = ("sync", "start", "attach", "hold")


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorProcess:
    """A monitor that was forked.

    Args:
        pid: Its process id.
        pidfd: Readable when it is gone; the owner of this value closes it.
    """

    pid: int
    pidfd: int


def default_command() -> tuple[str, ...]:
    """How to start our own zygote: an interpreter with nothing loaded but what a monitor needs.

    Raises:
        OperationError: The package `conmon` is not installed.
    """
    found = importlib.util.find_spec("conmon")
    if found is None or not found.submodule_search_locations:
        raise OperationError(Code.FAILED_PRECONDITION, "MONITOR_MISSING", "the package conmon is not installed")
    root = str(Path(next(iter(found.submodule_search_locations))).parent)
    code = f"import os, sys\nsys.path.insert(0, {root!r})\nfrom conmon.cli import main\nos._exit(main())"
    return (sys.executable, "-I", "-S", "-c", code)


class ZygoteClient:
    """The server's side of one zygote.

    Args:
        path: Its socket; the folder has to exist.
        command: The program and its arguments before `--zygote`; `default_command` when empty.
    """

    def __init__(self, path: Path, *, command: Sequence[str] = ()) -> None:
        self._path = path
        self._command = tuple(command)
        self._starting = anyio.Lock()

    async def ensure(self) -> int:
        """The pid of the zygote, started if nobody answers.

        Raises:
            OperationError: It did not start in `START_S`.
        """
        async with self._starting:
            found = await self._ping()
            if found:
                return found
            said = await to_thread.run_sync(self._start)
            with anyio.move_on_after(START_S):
                while True:
                    found = await self._ping()
                    if found:
                        return found
                    if said:
                        break
                    await anyio.sleep(POLL_S)
        why = said or f"it does not answer after {START_S:g} s"
        raise OperationError(Code.UNAVAILABLE, "ZYGOTE_NOT_STARTED", f"no zygote on {self._path}: {why}")

    def _start(self) -> str:
        """Start it, and wait until it listens or has ended: then its stderr is closed. What it said last, or nothing.

        Raises:
            OperationError: Its program cannot be run, or did neither in `START_S`.
        """
        command = self._command or default_command()
        try:
            done = subprocess.run(
                [*command, "--zygote", str(self._path), " " * TITLE_ROOM_BYTES],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                check=False,
                timeout=START_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OperationError(
                Code.UNAVAILABLE, "ZYGOTE_NOT_STARTED", f"no zygote on {self._path}: {error}"
            ) from error
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("crio-conmon: ") if lines else ""

    async def _ping(self) -> int:
        try:
            reply, fds = await self._ask(b"ping", ())
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
                return 0
            raise
        _close(fds)
        word, _, number = reply.partition(b" ")
        return int(number) if word == b"pong" and number.isdigit() else 0

    async def spawn(
        self, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], pipes: Mapping[str, int]
    ) -> MonitorProcess:
        """Have a monitor forked; a zygote that died is replaced once.

        Args:
            arguments: The command line of `crio-conmon`, without its name.
            cwd: The working directory of the monitor and of the runtime that it calls.
            environment: What the runtime and the exit command get.
            pipes: `sync`, `start` and `attach`, as conmon knows them; the caller's copies stay open.

        Raises:
            OperationError: The monitor was refused, with the reason, or there is no zygote.
        """
        unknown = [name for name in pipes if name not in PIPES]
        if unknown:
            raise ValueError(f"no pipe is called {unknown[0]!r}")
        entries = [f"{key}={value}" for key, value in environment.items()]
        fields = ["spawn", str(cwd), ",".join(pipes), str(len(entries)), *entries, *arguments]
        if any("\0" in field for field in fields):
            raise OperationError(Code.INVALID_ARGUMENT, "INVALID_FIELD", "a NUL in an argument of a monitor")
        packet = "\0".join(fields).encode(errors="surrogateescape")
        try:
            reply, fds = await self._ask(packet, tuple(pipes.values()))
        except (FileNotFoundError, ConnectionError):
            await self.ensure()
            reply, fds = await self._ask(packet, tuple(pipes.values()))
        return self._read_spawned(reply, fds)

    def _read_spawned(self, reply: bytes, fds: list[int]) -> MonitorProcess:
        word, _, rest = reply.partition(b" ")
        if word == b"spawned" and rest.isdigit() and len(fds) == 1:
            return MonitorProcess(pid=int(rest), pidfd=fds[0])
        _close(fds)
        if word == b"refused":
            raise OperationError(Code.INTERNAL, "MONITOR_REFUSED", rest.decode(errors="replace"))
        raise RemoteError(f"the zygote on {self._path} answered {reply[:80]!r}")

    async def quit(self) -> None:
        """End the zygote; its monitors live on. A zygote that is not there is no error."""
        try:
            _close((await self._ask(b"quit", ()))[1])
        except (FileNotFoundError, ConnectionError):
            return

    async def _ask(self, packet: bytes, fds: tuple[int, ...]) -> tuple[bytes, list[int]]:
        """One connection, one request, one reply.

        Raises:
            OSError: Nobody listens, or it hung up.
            OperationError: No reply came in `REPLY_S`.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.setblocking(False)
            with anyio.move_on_after(REPLY_S):
                await self._connect(connection)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                connection.sendmsg([packet], rights)
                await anyio.wait_readable(connection)
                reply, got, _, _ = socket.recv_fds(connection, REPLY_MAX_BYTES, 1)
                if not reply:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                for fd in got:
                    os.set_inheritable(fd, False)
                return reply, list(got)
        raise OperationError(
            Code.DEADLINE_EXCEEDED, "ZYGOTE_SILENT", f"the zygote on {self._path} did not answer in {REPLY_S:g} s"
        )

    async def _connect(self, connection: socket.socket) -> None:
        while True:
            try:
                connection.connect(str(self._path))
            except BlockingIOError:
                # Its backlog is full: a unix socket has nothing to wait on until there is room.
                await anyio.sleep(POLL_S)
            else:
                return


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
