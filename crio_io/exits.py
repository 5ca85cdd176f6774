"""Waits for the end of containers, and finds out the true exit code.

The container's process is watched by pidfd, which cannot be missed and needs no other process's help. The code comes
from the files that the monitor writes: ours a record in the bundle, any monitor a number in the exit directory, which
may be full or read-only. When both processes are gone and there is no file, nobody knows the code: it is None, and
never 0 (R17). A monitor is known to be the container's own when it is older than the container: a process that got its
number later is younger.

The monitor is watched as well. Without one nobody writes the log or sees the exit; that is said when it happens.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import anyio

from crio_core.values import dataclass
from crio_io import mounts, witness
from crio_io.cgroups import Cgroups
from crio_io.runtime import processes

log = logging.getLogger(__name__)

RECONCILE_S = 60.0
"""How often a live container is looked at, besides being watched."""
NO_WATCH_S = 1.0
"""How often when it cannot be watched, because descriptors have run out."""
MONITOR_S = 30.0
"""How long a live monitor may take to write the exit file: it writes the rest of the log first."""
GRACE_S = 0.5
"""How long after the end of both processes the exit file may still appear."""
LOOK_S = 0.02
"""How often the exit file is looked for at the least."""
FIRST_LOOK_S = 0.001
LATE = 0.25
"""How much too late it may be found at first, when it is most likely to come: seconds, and for each second waited."""
BEGINNINGS_MAX = 4
"""Watches that are begun at the same time."""
OOM_KILLED_CODE = 137


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended. `reason` is empty, `OOMKilled` or `Unknown`; `finished_at_ns` is wall-clock time."""

    code: int | None
    finished_at_ns: int
    oom: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a monitor has written about an exit; `oom` is None when it does not tell."""

    code: int
    finished_at_ns: int
    oom: bool | None


class ExitWatcher:
    """Waits for containers whose monitors write into one exit directory.

    Args:
        exit_dir: Where monitors write exit codes.
        bundles: The directory of all bundles, where they leave word of want of memory, and ours a record.
        cgroups: For the kernel's own counters of that.
    """

    def __init__(self, exit_dir: Path, bundles: Path, cgroups: Cgroups) -> None:
        self._exit_dir = exit_dir
        self._bundles = bundles
        self._cgroups = cgroups
        # After a start there is one for every container: a few at a time, so that calls come in between (R31).
        self._beginnings = anyio.CapacityLimiter(BEGINNINGS_MAX)

    async def wait(self, container_id: str, pid: int, pid_start_ticks: int, monitor_pid: int) -> Exit:
        """Wait until a container has ended, for however long that takes; one that ended long ago is answered at once.

        Args:
            container_id: Which.
            pid: Its first process.
            pid_start_ticks: When that started, in clock ticks since boot: a process that reuses the number is not it.
            monitor_pid: Its monitor, which need not be alive.
        """
        async with self._beginnings:
            memory_cgroup = self._cgroups.memory_path(pid) if _is(pid, pid_start_ticks) else None
            kills_before = await self._oom_kills(memory_cgroup)
        await self._wait_process(container_id, pid, pid_start_ticks, monitor_pid)
        kills = await self._oom_kills(memory_cgroup) - kills_before
        written = await self._wait_written(container_id, pid_start_ticks, monitor_pid)
        if written is None:
            return Exit(code=None, finished_at_ns=time.time_ns(), oom=False, reason="Unknown")
        oom = written.oom
        if oom is None:
            # The kernel may have killed a child and nothing else: only a first process that was itself killed counts
            # (R20). Our own monitor has seen signal, counter and time together (decision 0012).
            oom = written.code == OOM_KILLED_CODE and (kills > 0 or self._monitor_saw_oom(container_id))
        reason = "OOMKilled" if oom else ""
        return Exit(code=written.code, finished_at_ns=written.finished_at_ns, oom=oom, reason=reason)

    async def _wait_process(self, container_id: str, pid: int, start_ticks: int, monitor_pid: int) -> None:
        said = _Said(container_id, self._bundles / container_id)
        while _is(pid, start_ticks) and self._read(container_id) is None:
            said.dropped()
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                break
            except OSError:
                await anyio.sleep(NO_WATCH_S)
                continue
            monitor_handle = None
            try:
                monitor_handle = _own_monitor(monitor_pid, start_ticks)
                # Looked at again behind the handle: now the number cannot change hands.
                if _is(pid, start_ticks):
                    if not _is_monitor(monitor_pid, start_ticks):
                        said.unwatched(monitor_pid)
                    with anyio.move_on_after(RECONCILE_S):
                        await _wait_either(handle, monitor_handle)
            finally:
                os.close(handle)
                if monitor_handle is not None:
                    os.close(monitor_handle)
        said.dropped()

    async def _wait_written(self, container_id: str, start_ticks: int, monitor_pid: int) -> _Written | None:
        """What the monitor wrote; None when it is gone, or has had all its time, without writing anything."""
        handle = _own_monitor(monitor_pid, start_ticks)
        began_s = time.monotonic()
        try:
            with anyio.move_on_after(MONITOR_S):
                while _is_monitor(monitor_pid, start_ticks):
                    found = self._read(container_id)
                    if found is not None:
                        return found
                    # It ends after it has written the file, so its end is the signal; looking is for one that lingers
                    # or that cannot be watched.
                    late_s = max(FIRST_LOOK_S, LATE * (time.monotonic() - began_s))
                    with anyio.move_on_after(min(late_s, LOOK_S)):
                        await (anyio.wait_readable(handle) if handle is not None else anyio.sleep_forever())
        finally:
            if handle is not None:
                os.close(handle)
        deadline_s = time.monotonic() + GRACE_S
        while (found := self._read(container_id)) is None and time.monotonic() < deadline_s:
            await anyio.sleep(LOOK_S)
        return found

    def _read(self, container_id: str) -> _Written | None:
        """The record or the exit file, each renamed into place whole. A negative code says that nobody knows it."""
        record = witness.exit_record(self._bundles / container_id)
        if record is not None and record.code >= 0:
            return _Written(code=record.code, finished_at_ns=record.finished_at_ns, oom=record.oom)
        path = self._exit_dir / container_id
        with suppress(OSError, ValueError):
            code = int(witness.read_small(path))
            return _Written(code=code, finished_at_ns=path.stat().st_mtime_ns, oom=None) if code >= 0 else None
        return None

    async def _oom_kills(self, memory_cgroup: str | None) -> int:
        if memory_cgroup is None or memory_cgroup.strip("/") == "":
            return 0
        return await mounts.in_thread(f"read {memory_cgroup}", self._cgroups.oom_kills, memory_cgroup)

    def _monitor_saw_oom(self, container_id: str) -> bool:
        return (self._bundles / container_id / "oom").exists()


class _Said:
    """What went wrong with one container's monitor: each thing is said once.

    Args:
        container_id: Which.
        bundle: Its bundle.
    """

    def __init__(self, container_id: str, bundle: Path) -> None:
        self._container_id = container_id
        self._bundle = bundle
        self._dropped = False
        self._unwatched = False

    def dropped(self) -> None:
        """Say when bytes of the log have been lost."""
        if not self._dropped and (count := witness.log_dropped_bytes(self._bundle)):
            self._dropped = True
            log.warning("container %s: its log takes no more: %d bytes are lost so far", self._container_id, count)

    def unwatched(self, monitor_pid: int) -> None:
        """Say that the monitor has gone before the container."""
        if not self._unwatched and monitor_pid > 0:
            self._unwatched = True
            log.warning(
                "container %s: its monitor %d has ended before it: nobody writes its log or sees its exit code",
                *(self._container_id, monitor_pid),
            )


def _own_monitor(monitor_pid: int, start_ticks: int) -> int | None:
    """A pidfd of the monitor of a container that started then; None when it is gone or cannot be watched."""
    if monitor_pid <= 0:
        return None
    try:
        handle = os.pidfd_open(monitor_pid)
    except OSError:
        return None
    if _is_monitor(monitor_pid, start_ticks):
        return handle
    os.close(handle)
    return None


def _is_monitor(pid: int, start_ticks: int) -> bool:
    """Whether the process with this number is alive and no younger than a container that started then."""
    facts = processes.look(pid)
    return facts is not None and facts.start_ticks <= start_ticks and processes.is_alive(facts)


async def _wait_either(handle: int, other: int | None) -> None:
    """Wait until one of two handles is readable; nothing is opened for it, since there are two for every container."""
    if other is None:
        await anyio.wait_readable(handle)
        return

    async def wait_other(handle: int) -> None:
        await anyio.wait_readable(handle)
        either.cancel_scope.cancel()

    async with anyio.create_task_group() as either:
        either.start_soon(wait_other, other)
        await anyio.wait_readable(handle)
        either.cancel_scope.cancel()


def _is(pid: int, start_ticks: int) -> bool:
    """Whether the process with this number is alive and the one that started then."""
    facts = processes.look(pid)
    return facts is not None and facts.start_ticks == start_ticks and processes.is_alive(facts)
