"""The count of OOM kills in a container's memory cgroup, on version 1 and version 2, and when it changes.

The kernel counts kills in `memory.oom_control` (version 1) and `memory.events` (version 2), both as `oom_kill <n>`. The
file is opened while the container lives, so that the count can be read after it ended. On version 2 the file itself
polls as urgent when it changes; on version 1 an eventfd does (Documentation/admin-guide/cgroup-v1/memory.rst, section
10).
"""

import os
import select

from conmon.low import Suppress

CGROUP_ROOT = "/sys/fs/cgroup"
COUNTERS_BYTES_MAX = 4096


def memory_cgroup(proc_cgroup: bytes) -> tuple[int, bytes] | None:
    """The version and path of the memory cgroup in the text of /proc/<pid>/cgroup (cgroups(7)).

    A version 1 memory controller wins over the unified hierarchy, as on hosts that mount both.
    """
    unified: bytes | None = None
    for line in proc_cgroup.splitlines():
        _, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if b"memory" in controllers.split(b","):
            return 1, path
        if not controllers and line.startswith(b"0:"):
            unified = path
    return None if unified is None else (2, unified)


def oom_kills(counters: bytes) -> int:
    """The number after `oom_kill` in the text of `memory.events` or `memory.oom_control`; 0 when it is absent."""
    for line in counters.splitlines():
        name, _, number = line.partition(b" ")
        if name == b"oom_kill" and number.isdigit():
            return int(number)
    return 0


class OomWatch:
    """Open descriptors on the counter of one cgroup; kills before the watch began are not counted."""

    __slots__ = ("_counter_fd", "_event_fd", "_kills_before")

    def __init__(self, counter_fd: int, event_fd: int, kills_before: int) -> None:
        self._counter_fd = counter_fd
        self._event_fd = event_fd
        self._kills_before = kills_before

    @property
    def fd(self) -> int:
        """The descriptor to poll for `events`."""
        return self._counter_fd if self._event_fd < 0 else self._event_fd

    @property
    def events(self) -> int:
        return select.EPOLLPRI if self._event_fd < 0 else select.EPOLLIN

    def read(self) -> int | None:
        """Kills since the watch began; None when the cgroup is gone. From then on its file polls as ready for ever."""
        if self._event_fd >= 0:
            with Suppress(BlockingIOError):  # no event since the last look; the counter is still worth reading
                os.read(self._event_fd, 8)
        try:
            kills = oom_kills(os.pread(self._counter_fd, COUNTERS_BYTES_MAX, 0))
        except OSError:
            return None
        return max(kills - self._kills_before, 0)

    def close(self) -> None:
        os.close(self._counter_fd)
        if self._event_fd >= 0:
            os.close(self._event_fd)


def watch(pid: int, root: str = CGROUP_ROOT) -> tuple[int, int, int] | None:
    """Begin to watch the memory cgroup of a process: what `OomWatch` is made of.

    Returns:
        The counter, the eventfd or -1, and the kills so far; None when the process has ended or the host has no such
        cgroup.
    """
    try:
        with open(f"/proc/{pid}/cgroup", "rb", buffering=0) as cgroup:
            found = memory_cgroup(cgroup.read())
        if found is None:
            return None
        version, path = found
        if version == 2:
            counter_fd = os.open(os.fsencode(root) + path + b"/memory.events", os.O_RDONLY | os.O_CLOEXEC)
            return counter_fd, -1, _kills_so_far(counter_fd)
        return _watch_v1(os.fsencode(root) + b"/memory" + path)
    except OSError:
        return None


def _kills_so_far(counter_fd: int) -> int:
    try:
        return oom_kills(os.pread(counter_fd, COUNTERS_BYTES_MAX, 0))
    except OSError:
        return 0


def _watch_v1(folder: bytes) -> tuple[int, int, int]:
    counter_fd = os.open(folder + b"/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control_fd = os.open(folder + b"/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            os.close(event_fd)
            return counter_fd, -1, _kills_so_far(counter_fd)
        try:
            os.write(control_fd, b"%d %d" % (event_fd, counter_fd))
        finally:
            os.close(control_fd)
    except OSError:
        os.close(counter_fd)
        raise
    return counter_fd, event_fd, _kills_so_far(counter_fd)
