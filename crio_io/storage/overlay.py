"""Mounting image layers as root filesystems with overlayfs (Documentation/filesystems/overlayfs.rst).

The options of a mount must fit in one page. Lower directories are therefore named relative to the directory of layers,
by a thread that has a working directory of its own.

For a pod with a user namespace each layer is mounted under that namespace's ids first, in a mount namespace that ends
with the thread: the files stay root's on disk, are the pod's root's for the pod, and a crash leaves nothing.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from crio_core.errors import Code, OperationError
from crio_core.values import dataclass
from crio_io import idmap
from crio_io.host import kernel_version
from crio_io.libc import checked, libc
from crio_io.mounts import MS_PRIVATE, MS_RDONLY, MS_REC, is_mounted, mount
from crio_io.openat2 import BENEATH, NO_SYMLINKS, openat2
from crio_io.own_thread import in_own_thread
from crio_io.storage import deep

OPTIONS_BYTES_MAX = 4095
ROOT_MODE = 0o755
LOOKUPS_MAX = 1_000_000
CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
VOLATILE = ",volatile" if kernel_version(os.uname().release) >= (5, 10) else ""
"""What containers write is not brought to the disk on purpose: after a crash of the machine nobody reads it again, as
containers end with it. Without this an unmount waits for the disk."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lower:
    """An unpacked layer: its directory relative to the directory of layers, and what its archive left undescribed."""

    directory: str
    implied: tuple[str, ...]


def mount_writable(layers: Path, lowers: Sequence[Lower], writable: Path, target: Path, users: str = "") -> None:
    """Mount layers (lowest first) with a writable one of its own; blocking, and nothing when it is mounted already.

    Args:
        layers: The directory that `Lower.directory` is relative to; an absolute path.
        lowers: The image's layers; none gives an empty root.
        writable: Directory for what the container writes, on a disk; an absolute path.
        target: The mount point.
        users: Path of the user namespace under whose ids the files are seen; empty for the node's.

    Raises:
        OperationError: TOO_MANY_LAYERS, MOUNT_FAILED or IDMAP_NOT_AVAILABLE.
    """
    target = target.absolute()
    upper, work = writable / "upper", writable / "work"
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_mounted(str(target)):
        return
    deep.delete(work)  # A volatile mount leaves a mark that keeps another from being made.
    work.mkdir(mode=0o700, parents=True)
    where = f",upperdir={_escape(upper)},workdir={_escape(work)}{VOLATILE}"
    if users:
        _mount_mapped(layers, lowers, target, users, where, 0, upper)
        return
    _make_upper(layers, lowers, upper, (0, 0))
    _mount(layers, "overlay", lowerdir(lowers) + where, target, 0)


def mount_read_only(layers: Path, lowers: Sequence[Lower], target: Path, users: str = "") -> None:
    """Mount layers alone, read-only: an image as a volume; blocking, and nothing when it is mounted already.

    Raises:
        OperationError: As `mount_writable`.
    """
    target = target.absolute()
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_mounted(str(target)):
        return
    if users:
        _mount_mapped(layers, lowers, target, users, "", MS_RDONLY, None)
    elif not lowers:
        # Overlayfs wants two lower directories where there is no upper one.
        _mount(layers, "tmpfs", f"mode={ROOT_MODE:o}", target, MS_RDONLY)
    else:
        _mount(layers, "overlay", lowerdir(lowers, with_empty=len(lowers) == 1), target, MS_RDONLY)


def _make_upper(layers: Path, lowers: Sequence[Lower], upper: Path, owner: tuple[int, int]) -> None:
    """Make it whole before it has its name: what a container has written there later is never walked through."""
    if upper.exists():
        return
    fresh = upper.with_name("fresh")
    deep.delete(fresh)
    fresh.mkdir(mode=0o700)
    describe_implied(layers, lowers, fresh, owner)
    fresh.rename(upper)


def describe_implied(layers: Path, lowers: Sequence[Lower], upper: Path, owner: tuple[int, int] = (0, 0)) -> None:
    """Give directories that a layer implied, but did not describe, what the layers below it say of them.

    An archive may hold `tmp/x` without `tmp`: its directory would show with made-up owner and mode, over those of
    the layer below. The root itself is the most common case: the upper directory's owner and mode always show.

    Args:
        upper: An empty directory.
        owner: User and group of what no layer describes.

    Raises:
        OperationError: TOO_MANY_IMPLIED, which no honest image reaches.
    """
    with ExitStack() as stack:

        def opened(path: Path) -> int:
            fd = os.open(path, _DIRECTORY)
            stack.callback(os.close, fd)
            return fd

        top = opened(upper)
        view = _View([opened(layers / lower.directory) for lower in lowers], lowers, owner)
        view.describe(".", top)
        made = {"."}
        for path in sorted({path for lower in lowers for path in lower.implied if path != "."}):
            if not view.is_misdescribed(path):
                continue
            parts = path.split("/")
            for depth in range(1, len(parts) + 1):
                here = "/".join(parts[:depth])
                if here not in made:
                    made.add(here)
                    os.mkdir(here, 0o700, dir_fd=top)
                    fd = os.open(here, _DIRECTORY, dir_fd=top)
                    try:
                        view.describe(here, fd)
                    finally:
                        os.close(fd)


class _View:
    """Which layers' directories overlayfs would show together at a path, found without following any link.

    A path is looked up through the layers that show its parent, each of which was looked up before: so the work is
    bounded by the directories that layers imply, times the layers that truly have them.
    """

    def __init__(self, roots: Sequence[int], lowers: Sequence[Lower], owner: tuple[int, int]) -> None:
        self._owner = owner
        self._roots = roots
        self._implied = [frozenset(lower.implied) for lower in lowers]
        self._shown: dict[str, tuple[int, ...]] = {".": tuple(reversed(range(len(roots))))}
        self._lookups = 0

    def is_misdescribed(self, path: str) -> bool:
        """Whether the topmost layer only implies the directory, and one below describes it."""
        shown = self._layers(path)
        return bool(shown) and path in self._implied[shown[0]] and self._describing(path) is not None

    def describe(self, path: str, target: int) -> None:
        """Copy to an open directory what the topmost layer that describes `path` says of it."""
        index = self._describing(path)
        if index is None:
            os.fchown(target, *self._owner)
            os.fchmod(target, ROOT_MODE)
            return
        source = openat2(self._roots[index], path, _DIRECTORY, BENEATH | NO_SYMLINKS)
        try:
            info = os.fstat(source)
            os.fchown(target, info.st_uid, info.st_gid)
            os.fchmod(target, stat.S_IMODE(info.st_mode))
            for name in os.listxattr(source):
                if name != _OPAQUE:
                    os.setxattr(target, name, os.getxattr(source, name))
            os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(source)

    def _describing(self, path: str) -> int | None:
        return next((index for index in self._layers(path) if path not in self._implied[index]), None)

    def _layers(self, path: str) -> tuple[int, ...]:
        """Numbers of the layers whose directory shows at a path, topmost first."""
        known = self._shown.get(path)
        if known is not None:
            return known
        found = []
        for index in self._layers(path.rpartition("/")[0] or "."):
            self._lookups += 1
            if self._lookups > LOOKUPS_MAX:
                message = f"more than {LOOKUPS_MAX} directories of the image's layers are not described by them"
                raise OperationError(Code.INVALID_ARGUMENT, "TOO_MANY_IMPLIED", message)
            try:
                fd = openat2(self._roots[index], path, _DIRECTORY, BENEATH | NO_SYMLINKS)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                break  # something else has the name here, and hides what is below
            try:
                found.append(index)
                if _OPAQUE in os.listxattr(fd):
                    break
            finally:
                os.close(fd)
        self._shown[path] = tuple(found)
        return self._shown[path]


def lowerdir(lowers: Sequence[Lower], *, with_empty: bool = False) -> str:
    """The option that names the layers, topmost first."""
    names = [lower.directory for lower in reversed(lowers)]
    if with_empty or not names:
        names.append("empty")
    return "lowerdir=" + ":".join(names)


def _mount_mapped(
    layers: Path, lowers: Sequence[Lower], target: Path, users: str, where: str, flags: int, upper: Path | None
) -> None:
    """Mount layers under the ids of a user namespace; `where` has the options of the writable layer, if there is one.

    The kernel wants each mapped layer mounted somewhere while it puts them together. That is on `target`, where nobody
    but this thread sees it; the result is then taken over to where everybody is.
    """

    def work() -> None:
        with idmap.opened("/proc/thread-self/ns/mnt") as everybody, idmap.opened(users) as namespace:
            checked("unshare", libc.unshare(CLONE_NEWNS))
            mount("", "/", None, MS_REC | MS_PRIVATE)
            with ExitStack() as trees:
                directories = [lower.directory for lower in lowers] + ["empty"]
                mapped = [trees.enter_context(idmap.tree(str(layers / one))) for one in directories]
                mount("tmpfs", str(target), "tmpfs", 0, "mode=0700")
                os.chdir(target)
                for number, fd in enumerate(mapped):
                    idmap.set_ids(fd, namespace, str(layers / directories[number]))
                    Path(str(number)).mkdir()
                    idmap.attach(fd, str(number))
            renamed = [Lower(directory=str(number), implied=lower.implied) for number, lower in enumerate(lowers)]
            empty = Path(str(len(lowers)))
            if upper is not None:
                root = empty.stat()
                _make_upper(Path(), renamed, upper, (root.st_uid, root.st_gid))
            Path("whole").mkdir()
            names = [*(lower.directory for lower in reversed(renamed)), str(empty)]
            if upper is None and not lowers:
                Path("lowest").mkdir()  # Overlayfs wants two lower directories where there is no upper one.
                names.append("lowest")
            options = "lowerdir=" + ":".join(names) + where
            _check_length(options)
            mount("overlay", "whole", "overlay", flags, options)
            with idmap.tree("whole") as whole:
                checked("setns", libc.setns(everybody, CLONE_NEWNS))
                idmap.attach(whole, str(target))

    try:
        _in_directory(layers, work)
    except OSError as error:
        message = f"overlay with mapped ids on {target}: {error.strerror}"
        raise OperationError(Code.INTERNAL, "MOUNT_FAILED", message) from error


def _check_length(options: str) -> None:
    if len(options) > OPTIONS_BYTES_MAX:
        count = options.count(":") + 1
        raise OperationError(
            Code.FAILED_PRECONDITION, "TOO_MANY_LAYERS", f"{count} layers do not fit in the options of one mount"
        )


def _mount(layers: Path, kind: str, options: str, target: Path, flags: int) -> None:
    _check_length(options)
    try:
        _in_directory(layers, lambda: mount(kind, str(target), kind, flags, options))
    except OSError as error:
        raise OperationError(Code.INTERNAL, "MOUNT_FAILED", f"{kind} on {target}: {error.strerror}") from error


def _in_directory(directory: Path, work: Callable[[], None]) -> None:
    """Run `work` with another working directory, which threads share unless one lets go of it: so in a thread's own."""

    def body() -> None:
        checked("unshare", libc.unshare(CLONE_FS))
        os.chdir(directory)
        work()

    in_own_thread(body)


def _escape(path: Path) -> str:
    """A path inside mount options, where these three characters separate."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
