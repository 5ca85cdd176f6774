"""mount(2) and umount2(2), and looking at what is mounted.

The plain functions block, and are for code that is in a worker thread already. `in_thread` is how async code gets
there: every blocking step has a name and a start time, and a step that hangs on a dead filesystem holds one thread and
nothing else (R2).
"""

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from crio_core.errors import Code, OperationError
from crio_core.values import dataclass

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

THREADS_MAX = 256
"""Worker threads for blocking steps; well above what is ever busy, so that some stuck ones stop nobody else."""
STACKED_MOUNTS_MAX = 64
"""How many mounts on one path `unmount` takes off before it says that something keeps mounting there."""

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800
_AT_STATX_DONT_SYNC = 0x4000
_STATX_BYTES = 256
_STATX_ATTRIBUTES = slice(8, 16)
_STATX_ATTRIBUTES_MASK = slice(56, 64)
_STATX_ATTR_MOUNT_ROOT = 0x2000

_libc = ctypes.CDLL(None, use_errno=True)

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


@dataclass(slots=True, kw_only=True)
class Step:
    """A step that may take long, and runs now; `started_s` is on the monotonic clock."""

    name: str
    started_s: float


_current: ContextVar[Step] = ContextVar("crio_io.current_step")
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("crio_io.blocking_steps")
_running: dict[int, Step] = {}


async def in_thread(step: str, function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """Run a blocking function in a worker thread; a cancelled caller still waits for it, so nothing is left half-way.

    Args:
        step: What happens, with the path or id that it happens to.
        function: What to run.
        arguments: Its arguments.
    """
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS_MAX)
        _limiter.set(limiter)
    with named_step(step):
        return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)


@contextmanager
def named_step(name: str) -> Iterator[None]:
    """Show a step by its name, for the length of the block, to those who ask what is waited for."""
    running = Step(name=name, started_s=time.monotonic())
    _running[id(running)] = running
    _current.set(running)  # The worker thread runs in a copy of this context.
    try:
        yield
    finally:
        del _running[id(running)]


def entering(step: str) -> None:
    """Say, in a worker thread, that what `in_thread` runs has come to its next step."""
    running = _current.get(None)
    if running is not None:
        running.name, running.started_s = step, time.monotonic()


def running_steps() -> tuple[Step, ...]:
    """The steps that have not ended, oldest first: for a status, and for a watchdog with a budget."""
    return tuple(_running.values())


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2).

    Raises:
        OSError: As the kernel said, with the target's path.
    """
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def unmount(path: str, flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    """Take off every mount on a path, detaching so that users elsewhere cannot hold it (R28); none is success.

    Raises:
        OSError: As the kernel said; EBUSY when mounts keep appearing.
    """
    for _ in range(STACKED_MOUNTS_MAX):
        if _libc.umount2(os.fsencode(path), flags) == 0:
            continue
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOENT):
            return
        raise OSError(number, os.strerror(number), path)
    raise OSError(errno.EBUSY, f"more than {STACKED_MOUNTS_MAX} mounts", path)


def is_mounted(path: str) -> bool:
    """Whether something is mounted at exactly this path.

    Asks the kernel for facts that it has already, so that the dead server of a network filesystem cannot hang it.

    Raises:
        OSError: As the kernel said, except that an absent path is simply not mounted.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _libc.statx(_AT_FDCWD, os.fsencode(path), flags, ctypes.c_uint(0), buffer) != 0:
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise OSError(number, os.strerror(number), path)
    if not int.from_bytes(buffer.raw[_STATX_ATTRIBUTES_MASK], "little") & _STATX_ATTR_MOUNT_ROOT:
        real = os.path.realpath(path)  # A kernel before 5.8.
        return any(entry.mountpoint == real for entry in mountinfo())
    return bool(int.from_bytes(buffer.raw[_STATX_ATTRIBUTES], "little") & _STATX_ATTR_MOUNT_ROOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line of mountinfo (proc_pid_mountinfo(5)), as far as anything here needs it."""

    root: str
    mountpoint: str
    kind: str
    super_options: tuple[str, ...]


def mountinfo() -> Iterator[MountEntry]:
    """Every mount of our mount namespace."""
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        yield MountEntry(
            root=_unescape(fields[3]),
            mountpoint=_unescape(fields[4]),
            kind=rest[0],
            super_options=tuple(rest[2].split(",")) if len(rest) > 2 else (),
        )


def _unescape(field: str) -> str:
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field


async def detach(path: str) -> None:
    """Unmount everything on a path, even when in use; nothing there is success.

    Raises:
        OperationError: UNMOUNT_FAILED.
    """
    await in_thread(f"unmount {path}", unmount_or_report, path)


def mount_tmpfs(target: str, size_bytes: int, owner: tuple[int, int]) -> None:
    """Mount a tmpfs that all may write to, without devices, set-id programs or execution; mounted already is success.

    Args:
        target: The mount point, which exists.
        size_bytes: How much it may hold.
        owner: User and group of its root.

    Raises:
        OperationError: MOUNT_FAILED.
    """
    try:
        if not is_mounted(target):
            options = f"mode=1777,size={size_bytes},uid={owner[0]},gid={owner[1]}"
            mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    except OSError as error:
        raise _failed("MOUNT_FAILED", f"tmpfs of {size_bytes} bytes on {target}", error) from error


def unmount_or_report(path: str) -> None:
    """The blocking body of `detach`."""
    try:
        unmount(path)
    except OSError as error:
        raise _failed("UNMOUNT_FAILED", f"unmounting {path}", error) from error


def _failed(reason: str, what: str, error: OSError) -> OperationError:
    return OperationError(Code.INTERNAL, reason, f"{what}: {error.strerror}")
