"""Starts one monitor process per container and talks to it: any program with conmon's command line (conmon(8), 2.1).

How a container is created through it: the monitor is started with the read end of a start pipe and waits there. It is
moved into its own cgroup, outside of the pod's (CVE-2019-14891), and then told to go on. It leaves our process group,
has the runtime create the container, and reports the container's pid, or the runtime's complaint, on a sync pipe.

What of both processes lies in the bundle is told in `monitor_files.py`.
"""

import os
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import orjson

from crio_core.errors import Code, OperationError, RemoteError
from crio_core.values import dataclass
from crio_io import creations, mounts, spawn
from crio_io.bundle import cgroup_of
from crio_io.cgroups import Cgroups, systemd_scope
from crio_io.monitor_files import (
    Created,
    clear_bundle,
    existing_in,
    has_opened,
    record,
    recorded,
    remove_unfinished,
    write_control,
)
from crio_io.runtime import OciRuntime, messages, processes
from crio_io.zygote import ZygoteClient

CREATE_S = 240.0
"""How long a creation may take before all of it is killed; the runtime may have to wait for slow filesystems."""
SYNC_MAX_BYTES = 65536
REOPEN_S = 5.0
"""How long a monitor may take to open its log anew."""
STOP_S = 2.0
"""How long a monitor may take to notice that its container is gone, before it is killed."""
POLL_S = 0.005
SCOPE = "crio-conmon"
"""What the scopes of monitors are called, before the container's id."""
_REOPEN_LOG = b"2 0 0\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    """One container to create.

    `bundle` holds its `config.json`; `log_path` is empty for no log.
    """

    container_id: str
    name: str
    bundle: Path
    log_path: str
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False


class ConmonMonitor:
    """Creates containers of one runtime under monitors.

    Args:
        path: The monitor program.
        runtime: What it is to run.
        exit_dir: Where it writes exit codes, one file a container.
        socket_dir: Where it links the directories of its attach sockets; a short path, as sockets need.
        cgroups: For moving it into its cgroup.
        cgroup: Its own: an absolute path, or a slice that systemd is to make a scope in; empty leaves it where we are.
        log_size_max_bytes: Where it rotates a log; negative for never.
        no_sync_log: Not to wait for the disk at the end of a log.
        env: Its environment, besides what it needs to talk to us.
        zygote: Forks monitors of our own, in place of executing `path`.
    """

    def __init__(
        self,
        path: str,
        runtime: OciRuntime,
        *,
        exit_dir: Path,
        socket_dir: Path,
        cgroups: Cgroups,
        cgroup: str = "",
        log_size_max_bytes: int = -1,
        no_sync_log: bool = False,
        env: Mapping[str, str] | None = None,
        zygote: ZygoteClient | None = None,
    ) -> None:
        self.path = path
        self._zygote = zygote
        self.runtime = runtime
        self._exit_dir = exit_dir
        self._socket_dir = socket_dir
        self._cgroups = cgroups
        self._cgroup = cgroup
        self._log_size_max_bytes = log_size_max_bytes
        self._no_sync_log = no_sync_log
        self._env = dict(env or {})

    async def create(
        self, request: MonitorRequest, *, first: Callable[[], None] | None = None, timeout_s: float = CREATE_S
    ) -> Created:
        """Create a container; one that was created before and still lives is left as it is.

        On failure, timeout or cancellation, whatever was started is killed and removed again.

        Args:
            request: The container.
            first: What is to be done before, in the thread that makes the bundle ready: one turn of a thread for both.
            timeout_s: When to give up.

        Raises:
            OperationError: The runtime's complaint, MONITOR_FAILED or TIMEOUT; what `first` raises.
        """

        def ready() -> tuple[Created | None, bool]:
            if first is not None:
                first()
            mounts.entering(f"prepare bundle {request.bundle}")
            existing = existing_in(request.bundle)
            had_log = bool(request.log_path) and os.path.exists(request.log_path)
            if existing is None:
                self._prepare(request)
            return existing, had_log

        existing, had_log = await mounts.in_thread(f"prepare container {request.container_id}", ready)
        if existing is not None:
            return existing
        try:
            with anyio.move_on_after(timeout_s):
                return await self._create(request)
            message = f"container {request.container_id} was not created within {timeout_s:g} s"
            raise OperationError(Code.DEADLINE_EXCEEDED, "TIMEOUT", message)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                try:
                    await self._abandon(request, had_log)
                except OperationError as second:
                    # The first failure is the one to report; what is left is removed when the container is deleted.
                    error.add_note(f"and cleaning up: {second.message}")
            raise

    async def reopen_log(self, bundle: Path, log_path: str) -> None:
        """Have the monitor write to a new file at the log's path; returns when that file is there.

        Raises:
            OperationError: MONITOR_GONE, or TIMEOUT.
        """
        # The path is free when the caller has renamed the file away; then the new file is the sign that it worked.
        renamed = not await mounts.in_thread(f"look at log {log_path}", os.path.exists, log_path)
        await mounts.in_thread(f"tell the monitor in {bundle}", write_control, bundle, _REOPEN_LOG)
        with anyio.move_on_after(REOPEN_S):
            while renamed and not await mounts.in_thread(f"look at log {log_path}", has_opened, bundle, log_path):
                await anyio.sleep(POLL_S)
            return
        message = f"the monitor did not open {log_path} within {REOPEN_S:g} s"
        raise OperationError(Code.DEADLINE_EXCEEDED, "TIMEOUT", message)

    async def delete(self, container_id: str, bundle: Path) -> None:
        """Delete a container in the runtime, by force, end its monitor, and forget how it ended; absent is success.

        A creation that a killed server has left under way is over first: else it could come to its end after this.

        Raises:
            OperationError: The runtime's complaint.
        """
        unfinished = recorded(bundle) is None
        if unfinished:
            await self._end_creation(container_id, bundle)
        await self.runtime.delete(container_id)
        if unfinished:
            await self._end_cgroup(container_id, bundle)
        await self.stop(container_id, bundle)

    async def _end_creation(self, container_id: str, bundle: Path) -> None:
        """Wait for a creation that nobody waits for any more, and kill what of it takes too long.

        Ending it by itself is better: a runtime that is killed half-way may leave a cgroup that it does not know.
        """
        step = f"look for the creation of {container_id}"
        with anyio.move_on_after(STOP_S):
            while await mounts.in_thread(step, creations.under_way, container_id, bundle):
                await anyio.sleep(POLL_S)
        await mounts.in_thread(f"end the creation of {container_id}", creations.kill, container_id, bundle)

    async def stop(self, container_id: str, bundle: Path) -> None:
        """End a monitor whose container is gone, and remove what it left, its exit file too; absent is success.

        A monitor ends by itself once its container has; only one that does not is killed.
        """
        created = recorded(bundle)
        if created is not None:
            monitors: Mapping[int, int] = {created.monitor_pid: created.monitor_start_ticks}
        else:
            monitors = await mounts.in_thread(f"look for the monitor of {container_id}", creations.monitors, bundle)
        for pid, start_ticks in monitors.items():
            with anyio.move_on_after(STOP_S):
                await _wait_gone(pid, start_ticks)
            if processes.kill(pid, start_ticks):
                await mounts.in_thread(f"clear {self._exit_dir}", remove_unfinished, self._exit_dir, container_id)
        await mounts.in_thread(f"clear bundle {bundle}", self._clear, container_id, bundle)

    def _argv(self, request: MonitorRequest) -> Sequence[str]:
        bundle = str(request.bundle)
        argv = [
            *(self.path, "-b", bundle, "-c", request.container_id, "-u", request.container_id, "-n", request.name),
            *("-r", self.runtime.path, *(f"--runtime-arg={option}" for option in self._runtime_options())),
            *("-p", f"{bundle}/pidfile", "-P", f"{bundle}/conmon-pidfile"),
            *("--exit-dir", str(self._exit_dir), "--persist-dir", bundle, "--socket-dir-path", str(self._socket_dir)),
            *("--log-level", "error", "-l", f"k8s-file:{request.log_path}" if request.log_path else "none:"),
        ]
        if self.runtime.systemd_cgroup:
            argv.append("-s")
        if self._no_sync_log:
            argv.append("--no-sync-log")
        if self._log_size_max_bytes >= 0:
            argv += ("--log-size-max", str(self._log_size_max_bytes))
        if request.terminal:
            argv.append("-t")
        if request.stdin:
            argv.append("-i")
            if not request.stdin_once:
                argv.append("--leave-stdin-open")
        return tuple(argv)

    def _runtime_options(self) -> tuple[str, ...]:
        """The monitor adds `--systemd-cgroup` by itself."""
        return tuple(option for option in self.runtime.global_options() if option != "--systemd-cgroup")

    def _prepare(self, request: MonitorRequest) -> None:
        """Make the directories, and remove what an earlier attempt left: a monitor refuses to start beside it."""
        for directory in (self._exit_dir, self._socket_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clear(request.container_id, request.bundle)
        if self._cgroup.startswith("/"):
            self._cgroups.create(self._cgroup)

    async def _create(self, request: MonitorRequest) -> Created:
        self.runtime.moves.expect()
        with _Pipes() as pipes:
            report, said = await (self._fork if self._zygote else self._execute)(request, pipes)
        return record(request.bundle, self._pid_of(request, report, said))

    async def _execute(self, request: MonitorRequest, pipes: "_Pipes") -> tuple[bytes, bytes]:
        """Run the monitor program; returns its report, and what it said if there is none."""
        child = spawn.Child(
            self._argv(request),
            env=self._env | {"_OCI_SYNCPIPE": str(pipes.sync_write), "_OCI_STARTPIPE": str(pipes.start_read)},
            pass_fds=(pipes.sync_write, pipes.start_read),
            cwd=str(request.bundle),
            output_max_bytes=spawn.READ_BYTES,
        )
        try:
            await self._let_go(request, pipes, child.popen.pid)
            await child.wait_exit()
            report = await _read_line(pipes.sync_read) if child.returncode == 0 else b""
        finally:
            await child.end()
        said = child.completed(child.returncode or 0)
        return report, said.stderr + said.stdout

    async def _fork(self, request: MonitorRequest, pipes: "_Pipes") -> tuple[bytes, bytes]:
        """Have the zygote fork a monitor; returns its report."""
        assert self._zygote is not None
        # One that is not moved to a cgroup has nothing to wait for.
        start = {"start": pipes.start_read} if self._cgroup else {}
        process = await self._zygote.spawn(
            self._argv(request)[1:],
            cwd=request.bundle,
            environment=self._env,
            pipes={"sync": pipes.sync_write, **start},
        )
        try:
            if start:
                await self._let_go(request, pipes, process.pid)
            else:
                pipes.close_theirs()
            return await _read_line(pipes.sync_read), b""
        except BaseException:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            raise
        finally:
            os.close(process.pidfd)

    async def _let_go(self, request: MonitorRequest, pipes: "_Pipes", monitor_pid: int) -> None:
        """Put a monitor that waits at its start pipe into its cgroup, and let it begin."""
        pipes.close_theirs()
        if self._cgroup.startswith("/"):
            step = f"move the monitor of {request.container_id}"
            await mounts.in_thread(step, self._cgroups.join, self._cgroup, monitor_pid)
        elif self._cgroup:
            await systemd_scope(f"{SCOPE}-{request.container_id}.scope", parent_slice=self._cgroup, pid=monitor_pid)
        with suppress(BrokenPipeError):  # It ended already; its complaint is read from the other pipe.
            os.write(pipes.start_write, b"\0")
        pipes.close_start()

    def _pid_of(self, request: MonitorRequest, report: bytes, said: bytes) -> int:
        """The container's pid from the monitor's report, or the reason that there is none."""
        what = f"create {request.container_id}"
        if not report:
            text = messages.readable(b"", said) or "it ended without a report"
            raise OperationError(Code.INTERNAL, "MONITOR_FAILED", f"monitor {self.path}: {what}: {text}")
        try:
            fields: Any = orjson.loads(report)
            pid = int(fields.get("pid", fields.get("data", -1)))
            complaint = str(fields.get("message", ""))
        except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
            raise RemoteError(f"monitor {self.path}: {what}: report {report[:200]!r} is not understood") from error
        if pid <= 0:
            raise messages.failure(self.runtime.name, what, messages.readable(b"", complaint.encode()))
        return pid

    async def _abandon(self, request: MonitorRequest, had_log: bool) -> None:
        """Kill and remove everything that a failed creation may have started."""
        step = f"kill the monitor of {request.container_id}"
        await mounts.in_thread(step, creations.kill, request.container_id, request.bundle)
        await mounts.in_thread(f"clear bundle {request.bundle}", self._clear, request.container_id, request.bundle)
        await mounts.in_thread(f"clear {self._exit_dir}", remove_unfinished, self._exit_dir, request.container_id)
        if request.log_path and not had_log:
            await mounts.in_thread(f"remove log {request.log_path}", Path(request.log_path).unlink, True)
        await self.runtime.delete(request.container_id)
        await self._end_cgroup(request.container_id, request.bundle)

    async def _end_cgroup(self, container_id: str, bundle: Path) -> None:
        """A runtime killed half-way leaves a cgroup that it does not know, and for a moment a process in it."""

        def end() -> None:
            if path := cgroup_of(bundle):
                self._cgroups.kill(path)
                self._cgroups.remove(path)

        await mounts.in_thread(f"remove the cgroup of {container_id}", end)

    def _clear(self, container_id: str, bundle: Path) -> None:
        link = self._socket_dir / container_id
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(link.lstat().st_mode):
                link.unlink()
        clear_bundle(bundle)
        (self._exit_dir / container_id).unlink(missing_ok=True)


class _Pipes:
    """The two pipes of a creation: the monitor reports on `sync`, and waits at `start` until it may begin."""

    def __init__(self) -> None:
        self.sync_read, self.sync_write = os.pipe()
        self.start_read, self.start_write = os.pipe()
        self._open = {self.sync_read, self.sync_write, self.start_read, self.start_write}

    def __enter__(self) -> "_Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        self._close(*self._open)

    def close_theirs(self) -> None:
        """Close our copies of the monitor's ends, so that its end is seen as one."""
        self._close(self.sync_write, self.start_read)

    def close_start(self) -> None:
        """Close our end of the start pipe."""
        self._close(self.start_write)

    def _close(self, *fds: int) -> None:
        for fd in fds:
            if fd in self._open:
                self._open.discard(fd)
                os.close(fd)


async def _read_line(fd: int) -> bytes:
    """Bytes up to the first newline, or what there is when the other end closes."""
    os.set_blocking(fd, False)
    line = b""
    while b"\n" not in line and len(line) < SYNC_MAX_BYTES:
        await anyio.wait_readable(fd)
        data = os.read(fd, SYNC_MAX_BYTES)
        if not data:
            break
        line += data
    return line.partition(b"\n")[0]


async def _wait_gone(pid: int, start_ticks: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        facts = processes.look(pid)
        if facts is not None and facts.start_ticks == start_ticks:
            await anyio.wait_readable(handle)
    finally:
        os.close(handle)
