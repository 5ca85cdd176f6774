"""The few Linux calls that the standard library lacks: prctl, and a title in the memory of the arguments.

Each call is prepared once and tried once when this module is loaded, so that a process forked later finds everything
resolved and writes to as few of the shared pages as possible.
"""

import ctypes
import os
from sys import byteorder

from conmon.low import SIGKILL, Suppress

MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_MEMORY_MERGE = 67
PAGEMAP_ENTRY_BYTES = 8
PAGE_PRESENT = 1 << 63
PAGE_OWN = PAGE_PRESENT | 1 << 56  # mapped by this process alone
TASK_NAME_BYTES = 15  # TASK_COMM_LEN without its NUL

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def prctl(option: int, value: int) -> None:
    """Call prctl(2) with one number.

    Raises:
        OSError: The kernel refused.
    """
    if _prctl(option, value, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl({option}, {value}): {os.strerror(errno)}")


def set_subreaper(enabled: bool) -> None:
    """Inherit orphaned descendants: the container's process, once the runtime that made it has ended."""
    prctl(PR_SET_CHILD_SUBREAPER, int(enabled))


def allow_page_merging(allowed: bool) -> None:
    """Let the kernel share pages of equal content between monitors, on hosts where KSM runs (Linux 6.4, prctl(2)).

    Monitors write nearly the same to nearly the same pages. Programs that a process runs inherit this, so it has to be
    taken back by whatever runs the runtime: nobody may learn from the time of a write what other containers hold in
    memory. A kernel that does not know the call changes nothing.
    """
    _prctl(PR_SET_MEMORY_MERGE, int(allowed), 0, 0, 0)


Areas = tuple[tuple[int, int], ...]  # address and size each


def private_areas() -> tuple[Areas, Areas]:
    """The private mappings of this process (proc(5), `maps`): those that it may write to, and the others."""
    written: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            area, mode = line.split()[:2]
            if mode.endswith(b"p") and not line.endswith((b"[stack]\n", b"[vsyscall]\n")):
                start, end = (int(number, 16) for number in area.split(b"-"))
                (written if mode == b"rw-p" else read).append((start, end - start))
    return tuple(written), tuple(read)


def touched_areas(areas: Areas, mark: int) -> Areas:
    """What of these areas this process has touched since it was forked (proc(5), `pagemap`).

    Args:
        mark: `PAGE_OWN` for what it has written to; `PAGE_PRESENT` for what it has read of files, of which a fork
            inherits nothing.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    found: list[tuple[int, int]] = []
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for start, size in areas:
            pagemap.seek(start // page_bytes * PAGEMAP_ENTRY_BYTES)
            entries = pagemap.read(size // page_bytes * PAGEMAP_ENTRY_BYTES)
            for at in range(0, len(entries), PAGEMAP_ENTRY_BYTES):
                entry = int.from_bytes(entries[at : at + PAGEMAP_ENTRY_BYTES], byteorder)
                if entry & mark == mark:
                    page = start + at // PAGEMAP_ENTRY_BYTES * page_bytes
                    if found and page == sum(found[-1]):
                        found[-1] = (found[-1][0], page + page_bytes - found[-1][0])
                    else:
                        found.append((page, page_bytes))
    return tuple(found)


def populate(written: Areas, read: Areas) -> None:
    """Have the pages of a forked process copied, or mapped, now instead of one by one when they are touched
    (Linux 5.14)."""
    for start, size in written:
        _madvise(start, size, MADV_POPULATE_WRITE)
    for start, size in read:
        _madvise(start, size, MADV_POPULATE_READ)


def set_task_name(name: bytes) -> None:
    """The name that `ps` and /proc/self/comm show for this process."""
    if _prctl(PR_SET_NAME, name[:TASK_NAME_BYTES], 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NAME)")


def argument_area() -> tuple[int, int]:
    """Address and size of this process's arguments, as /proc/self/stat has them (proc(5), fields 48 and 49)."""
    with open("/proc/self/stat", "rb", buffering=0) as stat:
        fields = stat.read(4096).rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return start, end - start


def open_memory(pid: int) -> int:
    """The memory of a process (proc(5), `mem`); -1 where the kernel denies it (Yama, a security module)."""
    try:
        return os.open(f"/proc/{pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def set_title_in(memory_fd: int, area: tuple[int, int], title: bytes) -> None:
    """`set_title` for another process, which was forked from this one or from the same; one that is gone needs none."""
    start, size = area
    with Suppress(OSError):
        os.pwrite(memory_fd, title[: size - 1].ljust(size, b"\0"), start)


def set_title(area: tuple[int, int], title: bytes) -> None:
    """Show `title` as the command line of this process, cut to the room that the original arguments had."""
    start, size = area
    if size > 0:
        ctypes.memmove(start, title[: size - 1].ljust(size, b"\0"), size)


def kill_children() -> None:
    """Kill every child of this process, which has one thread (proc(5), `children`)."""
    pid = os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as children:
        for child in children.read(4096).split():
            os.kill(int(child), SIGKILL)


def parent_of(pid: int) -> int:
    """The parent of a process, also of a zombie; 0 when there is no such process (proc(5), field 4)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            return int(stat.read(4096).rpartition(b")")[2].split()[1])
    except OSError:
        return 0
