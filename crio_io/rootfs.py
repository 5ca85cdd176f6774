"""A container's root filesystem, read and made ready from outside, before anything runs in it.

Whatever is in it was put there by an image: links that lead out, device nodes, endless files. So paths are resolved by
the kernel with the root as their ceiling (openat2(2), RESOLVE_IN_ROOT), file by file descriptor; files are looked at
before they are opened, and read up to a bound (CVE-2025-4437, CVE-2024-9676, CVE-2024-5154).
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio.to_thread

from crio_core.errors import Code, OperationError
from crio_core.oci.facts import ROOTFS_FILE_BYTES_MAX, RootfsFacts
from crio_core.oci.paths import clean_path, is_within
from crio_io.openat2 import IN_ROOT, NO_SYMLINKS, openat2

LINKS_MAX = 40  # what the kernel itself follows
PARTS_MAX = 2048

_KERNEL_DIRECTORIES = ("dev", "proc", "sys")


def gather(rootfs: Path) -> RootfsFacts:
    """What the image says about users: its passwd and group, each up to 1 MiB; empty for one that is not there. Blocks.

    Args:
        rootfs: The mounted root filesystem.

    Raises:
        OperationError: one of them is too large, or no regular file (IMAGE_FILE_REFUSED); or the root is not there.
    """
    with _opened(rootfs) as root:
        return RootfsFacts(passwd=_read(root, "/etc/passwd"), group=_read(root, "/etc/group"))


def prepare(
    rootfs: Path,
    *,
    directories: Sequence[str] = (),
    files: Sequence[str] = (),
    targets: Sequence[str] = (),
    owner: tuple[int, int] = (0, 0),
) -> None:
    """Make what a container needs inside its root: directories, empty files to mount on, and /etc/mtab. Blocks.

    Nothing outside the root is made or changed, whatever links the image has (CVE-2026-55686, CVE-2024-9341). What is
    there already stays as it is, so doing it twice is doing it once.

    Args:
        directories: The working directory and image volumes, made with mode 0755 where missing.
        files: Mount points for single files, made empty where missing.
        targets: Further mount targets, which are only checked.
        owner: User and group of the directories that are made.

    Raises:
        OperationError: a path that a link of the image leads into /proc or /sys (PATH_REFUSED; CVE-2024-21626,
            CVE-2023-28642), or that cannot be made (ROOTFS_FAILED).
    """
    with _opened(rootfs) as root:
        for name in _KERNEL_DIRECTORIES:
            _refuse_link(root, name)
        for path in targets:
            if _checked(root, path) == "/":
                raise _led_away(path, "/")
        for path in directories:
            with _failing(path):
                os.close(_make_directory(root, _checked(root, path), owner))
        for path in files:
            with _failing(path):
                _make_file(root, _checked(root, path))
        with _failing("/etc/mtab"):
            _link_mtab(root)


async def inside(root: Path, path: str) -> Path:
    """Where a path of an image leads, with its links followed and the image's root as their ceiling.

    Args:
        root: Where the image is mounted; nothing may change in it.
        path: A path in the image; empty for its root.

    Raises:
        OperationError: IMAGE_PATH_NOT_FOUND, there is nothing.
    """
    return await anyio.to_thread.run_sync(_inside, root, path, abandon_on_cancel=True)


def _inside(root: Path, path: str) -> Path:
    with _opened(root) as descriptor:
        try:
            os.close(_openat2(descriptor, f"/{path}", os.O_PATH, 0))
            return root / _resolve(descriptor, path).lstrip("/")
        except OSError as error:
            message = f"image_sub_path: {path!r}: {error.strerror} in the image"
            raise OperationError(Code.FAILED_PRECONDITION, "IMAGE_PATH_NOT_FOUND", message) from error


@contextmanager
def _opened(rootfs: Path) -> Iterator[int]:
    with _failing(str(rootfs)):
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)


@contextmanager
def _failing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"root filesystem: {path}: {error.strerror}"
        raise OperationError(Code.INTERNAL, "ROOTFS_FAILED", message) from error


def _refused(path: str, why: str) -> OperationError:
    return OperationError(Code.INVALID_ARGUMENT, "IMAGE_FILE_REFUSED", f"{path} of the image: {why}")


def _openat2(root: int, path: str, flags: int, resolve: int) -> int:
    """Open a path below a directory that it cannot leave."""
    return openat2(root, path, flags, resolve | IN_ROOT)


def open_inside(root: int, path: str, flags: int) -> int:
    """Open a path below a directory's descriptor, its links followed as if the directory were the root.

    Raises:
        OSError: As the kernel said.
    """
    return _openat2(root, path, flags, 0)


def _read(root: int, path: str) -> bytes:
    """The content of a regular file of the image; empty when there is no such file."""
    try:
        # O_PATH opens nothing yet: a FIFO would wait, and a device could act, on being opened for reading.
        found = _openat2(root, path, os.O_PATH, 0)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return b""
        raise _refused(path, error.strerror or str(error)) from error
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "it is no regular file")
        if status.st_size > ROOTFS_FILE_BYTES_MAX:
            raise _refused(path, f"it has {status.st_size} bytes, and at most {ROOTFS_FILE_BYTES_MAX} are read")
        with _failing(path), open(f"/proc/self/fd/{found}", "rb", opener=_nonblocking) as file:
            content = file.read(ROOTFS_FILE_BYTES_MAX + 1)
    finally:
        os.close(found)
    if len(content) > ROOTFS_FILE_BYTES_MAX:
        raise _refused(path, f"more than {ROOTFS_FILE_BYTES_MAX} bytes came out of it")
    return content


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _resolve(root: int, path: str) -> str:
    """Where a path leads inside the root, with every link followed, also through parts that do not exist.

    The kernel resolves only what exists. A dangling link matters too: it may come to life once /proc is mounted.
    """
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while waiting:
        if len(waiting) + len(done) > PARTS_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        part = waiting.pop()
        if part == "..":
            del done[-1:]
            continue
        target = _read_link(root, done, part)
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            done.clear()
        waiting.extend(piece for piece in reversed(target.split("/")) if piece not in ("", "."))
    return "/" + "/".join(done)


def _read_link(root: int, parents: list[str], name: str) -> str | None:
    """Where a link points; None for what is no link, or not there."""
    try:
        parent = _openat2(root, "/" + "/".join(parents), os.O_PATH | os.O_DIRECTORY, NO_SYMLINKS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    finally:
        os.close(parent)


def _checked(root: int, path: str) -> str:
    """Where a path leads, if that is no place that the request could not have named itself."""
    asked = clean_path("path in the root filesystem", path)
    with _failing(asked):
        found = _resolve(root, asked)
    for guarded in ("/proc", "/sys"):
        if is_within(found, guarded) and not is_within(asked, guarded):
            raise _led_away(asked, found)
    if found == "/dev" and asked != found:
        raise _led_away(asked, found)
    return found


def _led_away(path: str, found: str) -> OperationError:
    message = f"{path}: a link of the image leads it to {found}"
    return OperationError(Code.INVALID_ARGUMENT, "PATH_REFUSED", message)


def _refuse_link(root: int, name: str) -> None:
    """The kernel's own file systems are mounted on real directories: a link there would move them (CVE-2026-41579)."""
    with _failing(f"/{name}"):
        target = _read_link(root, [], name)
    if target is not None:
        raise _led_away(f"/{name}", target)


def _make_directory(root: int, resolved: str, owner: tuple[int, int] = (0, 0)) -> int:
    """Open a directory by a path without links, making what is missing of it."""
    flags = os.O_PATH | os.O_DIRECTORY
    current = _openat2(root, "/", flags, NO_SYMLINKS)
    try:
        for part in resolved.split("/")[1:]:
            if not part:
                continue
            try:
                following = _openat2(current, part, flags, NO_SYMLINKS)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=current)
                following = _openat2(current, part, flags, NO_SYMLINKS)
                os.chmod(f"/proc/self/fd/{following}", 0o755)  # whatever the umask took away
                os.chown(f"/proc/self/fd/{following}", *owner)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _make_file(root: int, resolved: str) -> None:
    directory, _, name = resolved.rpartition("/")
    parent = _make_directory(root, directory)
    try:
        os.close(
            os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent)
        )
    except FileExistsError:
        return
    finally:
        os.close(parent)


def _link_mtab(root: int) -> None:
    """Point /etc/mtab at the container's own mounts, where the image has an /etc and nothing of that name in it."""
    try:
        parent = _openat2(root, "/etc", os.O_PATH | os.O_DIRECTORY, 0)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    try:
        os.symlink("/proc/mounts", "mtab", dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EROFS):
            raise
    finally:
        os.close(parent)
