"""Waits for the end of containers, and finds out the true exit code.

The container's process is watched by pidfd, which cannot be missed and needs no other process's help. The code comes
from the file that the monitor writes. When both are gone and there is no file, nobody knows the code: it is None, and
never 0 (R17). A monitor is known to be the container's own when it is older than the container: a process that got
its number later is younger.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

import anyio

from crio_core.values import dataclass
from crio_io import mounts
from crio_io.cgroups import Cgroups
from crio_io.runtime import processes

RECONCILE_S = 60.0
"""How often a live container is looked at, besides being watched."""
NO_WATCH_S = 1.0
"""How often when it cannot be watched, because descriptors have run out."""
MONITOR_S = 30.0
"""How long a live monitor may take to write the exit file: it writes the rest of the log first."""
GRACE_S = 0.5
"""How long after the end of both processes the exit file may still appear."""
LOOK_S = 0.02
EXIT_FILE_MAX_BYTES = 32
OOM_KILLED_CODE = 137


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended. `reason` is empty, `OOMKilled` or `Unknown`; `finished_at_ns` is wall-clock time."""

    code: int | None
    finished_at_ns: int
    oom: bool
    reason: str


class ExitWatcher:
    """Waits for containers whose monitors write into one exit directory.

    Args:
        exit_dir: Where monitors write exit codes.
        bundles: The directory of all bundles, where they leave word of want of memory.
        cgroups: For the kernel's own counters of that.
    """

    def __init__(self, exit_dir: Path, bundles: Path, cgroups: Cgroups) -> None:
        self._exit_dir = exit_dir
        self._bundles = bundles
        self._cgroups = cgroups

    async def wait(self, container_id: str, pid: int, pid_start_ticks: int, monitor_pid: int) -> Exit:
        """Wait until a container has ended, for however long that takes; one that ended long ago is answered at once.

        Args:
            container_id: Which.
            pid: Its first process.
            pid_start_ticks: When that started, in clock ticks since boot: a process that reuses the number is not it.
            monitor_pid: Its monitor, which need not be alive.
        """
        memory_cgroup = self._cgroups.memory_path(pid) if _is(pid, pid_start_ticks) else None
        kills_before = await self._oom_kills(memory_cgroup)
        await self._wait_process(container_id, pid, pid_start_ticks)
        kills = await self._oom_kills(memory_cgroup) - kills_before
        code = await self._wait_code(container_id, pid_start_ticks, monitor_pid)
        if code is None:
            return Exit(code=None, finished_at_ns=time.time_ns(), oom=False, reason="Unknown")
        status, finished_at_ns = code
        # The kernel may have killed a child and nothing else: only a first process that was itself killed counts (R20).
        oom = status == OOM_KILLED_CODE and (kills > 0 or self._monitor_saw_oom(container_id))
        return Exit(code=status, finished_at_ns=finished_at_ns, oom=oom, reason="OOMKilled" if oom else "")

    async def _wait_process(self, container_id: str, pid: int, start_ticks: int) -> None:
        while _is(pid, start_ticks) and self._read(container_id) is None:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            except OSError:
                await anyio.sleep(NO_WATCH_S)
                continue
            try:
                # Looked at again behind the handle: now the number cannot change hands.
                if _is(pid, start_ticks):
                    with anyio.move_on_after(RECONCILE_S):
                        await anyio.wait_readable(handle)
            finally:
                os.close(handle)

    async def _wait_code(self, container_id: str, start_ticks: int, monitor_pid: int) -> tuple[int, int] | None:
        """The code and its time; None when the monitor is gone, or has had all its time, without writing one."""
        try:
            handle = os.pidfd_open(monitor_pid) if monitor_pid > 0 else None
        except OSError:
            handle = None
        try:
            facts = processes.look(monitor_pid) if handle is not None else None
            if handle is not None and facts is not None and facts.start_ticks <= start_ticks:
                with anyio.move_on_after(MONITOR_S):
                    found = await self._wait_file_or_end(container_id, handle)
                    if found is not None:
                        return found
        finally:
            if handle is not None:
                os.close(handle)
        deadline_s = time.monotonic() + GRACE_S
        while (found := self._read(container_id)) is None and time.monotonic() < deadline_s:
            await anyio.sleep(LOOK_S)
        return found

    async def _wait_file_or_end(self, container_id: str, monitor_handle: int) -> tuple[int, int] | None:
        """The monitor ends after it has written the file, so its end is the signal; looking is for one that lingers."""
        while True:
            found = self._read(container_id)
            if found is not None:
                return found
            with anyio.move_on_after(LOOK_S):
                await anyio.wait_readable(monitor_handle)
                return self._read(container_id)

    def _read(self, container_id: str) -> tuple[int, int] | None:
        """The exit file, which is renamed into place whole: its number, and its time."""
        try:
            fd = os.open(self._exit_dir / container_id, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            text = os.read(fd, EXIT_FILE_MAX_BYTES)
            with suppress(ValueError):
                status = int(text)
                return (status, os.fstat(fd).st_mtime_ns) if status >= 0 else None  # Negative: it does not know either.
            return None
        except OSError:
            return None
        finally:
            os.close(fd)

    async def _oom_kills(self, memory_cgroup: str | None) -> int:
        if memory_cgroup is None or memory_cgroup.strip("/") == "":
            return 0
        return await mounts.in_thread(f"read {memory_cgroup}", self._cgroups.oom_kills, memory_cgroup)

    def _monitor_saw_oom(self, container_id: str) -> bool:
        return (self._bundles / container_id / "oom").exists()


def _is(pid: int, start_ticks: int) -> bool:
    """Whether the process with this number is alive and the one that started then."""
    facts = processes.look(pid)
    return facts is not None and facts.start_ticks == start_ticks and processes.is_alive(facts)
