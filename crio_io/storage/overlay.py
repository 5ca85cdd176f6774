"""Mounting image layers as root filesystems with overlayfs (Documentation/filesystems/overlayfs.rst).

The options of a mount must fit in one page. Lower directories are therefore named relative to the directory of layers,
by a thread that has a working directory of its own.
"""

import ctypes
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from crio_core.errors import Code, OperationError
from crio_core.values import dataclass
from crio_io.mounts import MS_RDONLY, is_mounted, mount

OPTIONS_BYTES_MAX = 4095
ROOT_MODE = 0o755
CLONE_FS = 0x200
_OPAQUE = "trusted.overlay.opaque"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lower:
    """An unpacked layer: its directory relative to the directory of layers, and what its archive left undescribed."""

    directory: str
    implied: tuple[str, ...]


def mount_writable(layers: Path, lowers: Sequence[Lower], writable: Path, target: Path) -> None:
    """Mount layers (lowest first) with a writable one of its own; blocking, and nothing when it is mounted already.

    Args:
        layers: The directory that `Lower.directory` is relative to.
        lowers: The image's layers; none gives an empty root.
        writable: Directory for what the container writes, on a disk.
        target: The mount point.

    Raises:
        OperationError: TOO_MANY_LAYERS or MOUNT_FAILED.
    """
    upper, work = writable / "upper", writable / "work"
    for directory in (writable, work, target):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_mounted(str(target)):
        return
    upper.mkdir(mode=0o700, exist_ok=True)
    describe_implied(layers, lowers, upper)
    options = f"{_lowerdir(lowers)},upperdir={_escape(upper)},workdir={_escape(work)}"
    _mount(layers, options, target, 0)


def mount_read_only(layers: Path, lowers: Sequence[Lower], target: Path) -> None:
    """Mount layers alone, read-only: an image as a volume; blocking, and nothing when it is mounted already.

    Raises:
        OperationError: TOO_MANY_LAYERS or MOUNT_FAILED.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_mounted(str(target)):
        _mount(layers, _lowerdir(lowers, with_empty=len(lowers) == 1), target, MS_RDONLY)


def describe_implied(layers: Path, lowers: Sequence[Lower], upper: Path) -> None:
    """Give directories that a layer implied, but did not describe, what the layers below it say of them.

    An archive may hold `tmp/x` without `tmp`: its directory would show with made-up owner and mode, over those of
    the layer below. The root itself is the most common case: the upper directory's owner and mode always show.
    """
    implied = sorted({path for lower in lowers for path in lower.implied if path != "."})
    _copy_description(_describing(layers, lowers, "."), upper)
    for path in implied:
        source = _describing(layers, lowers, path)
        if source is None:
            continue
        here = upper
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            here = here / parts[depth - 1]
            if not here.exists():
                here.mkdir(mode=0o700)
                _copy_description(_describing(layers, lowers, "/".join(parts[:depth])), here)


def _describing(layers: Path, lowers: Sequence[Lower], path: str) -> Path | None:
    """The directory of the topmost layer that describes `path` itself, unless something hides it."""
    for lower in reversed(lowers):
        place = layers / lower.directory / path
        try:
            mode = place.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(mode):
            return None
        if path not in lower.implied:
            return place
        if _OPAQUE in os.listxattr(place, follow_symlinks=False):
            return None
    return None


def _copy_description(source: Path | None, target: Path) -> None:
    if source is None:
        target.chmod(ROOT_MODE)
        return
    info = source.lstat()
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    target.chmod(stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        if name != _OPAQUE:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _lowerdir(lowers: Sequence[Lower], *, with_empty: bool = False) -> str:
    names = [lower.directory for lower in reversed(lowers)]
    if with_empty or not names:
        names.append("empty")
    return "lowerdir=" + ":".join(names)


def _mount(layers: Path, options: str, target: Path, flags: int) -> None:
    if len(options) > OPTIONS_BYTES_MAX:
        count = options.count(":") + 1
        raise OperationError(
            Code.FAILED_PRECONDITION, "TOO_MANY_LAYERS", f"{count} layers do not fit in the options of one mount"
        )
    try:
        _in_directory(layers, lambda: mount("overlay", str(target), "overlay", flags, options))
    except OSError as error:
        raise OperationError(Code.INTERNAL, "MOUNT_FAILED", f"overlay on {target}: {error.strerror}") from error


def _in_directory(directory: Path, work: Callable[[], None]) -> None:
    """Run `work` with another working directory, which threads share unless one lets go of it: so in a thread's own."""
    failures: list[OSError] = []

    def body() -> None:
        try:
            if _libc.unshare(CLONE_FS) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            os.chdir(directory)
            work()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _escape(path: Path) -> str:
    """A path inside mount options, where these three characters separate."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
