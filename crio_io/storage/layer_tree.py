"""Writing the entries of a layer into the directory that the unpacking process has as its root.

A whiteout becomes a 0:0 character device and an opaque directory gets `trusted.overlay.opaque`, which is what overlayfs
reads. A layer never looks at the layers below it, so directories that the archive implies but does not describe are
remembered: whoever mounts the layers gives them what the layers below say of them.
"""

# Names are bytes as the archive has them, and this runs in a process that must start fast: no pathlib.

import errno
import os
import stat
from collections import deque
from collections.abc import Callable

from crio_core.image import tar
from crio_io.storage.deep import delete

CHUNK_BYTES = 512 * 1024
DEPTH_MAX = 256
LINKS_FOLLOWED_MAX = 40
IMPLIED_MAX = 100_000
IMPLIED_BYTES_MAX = 4 * 1024 * 1024
"""Of the paths of directories that are left out; whoever stores the layer has them in memory as long as it does."""
REMEMBERED_BYTES_MAX = 64 * 1024 * 1024
"""Of the paths of directories and whiteouts, which are remembered until the layer is whole."""
PATH_BYTES_MAX = 4096
"""What the kernel takes at most (PATH_MAX)."""
OPAQUE_XATTR = b"trusted.overlay.opaque"
_WHITEOUT = b".wh."
_OPAQUE_MARK = b".wh..wh..opq"
_AUFS = b".wh..wh."


class LayerRefusedError(Exception):
    """The layer cannot be unpacked; `reason` is a stable word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Tree:
    """The directory that is being filled. Paths are relative to the process's root, which is that directory.

    `replaced` tells whether an entry took the place of another: what that had is not stored.
    """

    def __init__(self, entries_max: int, file_bytes_max: int) -> None:
        self._entries_max = entries_max
        self._file_bytes_max = file_bytes_max
        self.entries = 0
        self.replaced = False
        self.implied: dict[bytes, None] = {b".": None}
        self._implied_bytes = self._remembered_bytes = 0
        self._directory_times: dict[bytes, tuple[int, tuple[int, int]]] = {}
        """The inode that a directory had, and its times."""
        self._whiteouts: set[bytes] = set()
        # Through links a short name leads deep, so it is by inodes that it is known how deep a directory is.
        self._depths = {os.stat(".").st_ino: 0}

    def count(self) -> None:
        """Take one from the budget of inodes."""
        self.entries += 1
        if self.entries > self._entries_max:
            raise LayerRefusedError("TOO_MANY_ENTRIES", f"the layer has more than {self._entries_max} entries")

    def _remember(self, path: bytes) -> None:
        self._remembered_bytes += len(path)
        if self._remembered_bytes > REMEMBERED_BYTES_MAX:
            message = f"the paths of directories and whiteouts have more than {REMEMBERED_BYTES_MAX} bytes"
            raise LayerRefusedError("ARCHIVE_INVALID", message)

    def file_path(self, entry: tar.Entry) -> bytes:
        """Where a regular file's content will be; empty for what says something else, such as a whiteout."""
        path = clean(entry.name)
        return b"" if path.rpartition(b"/")[2].startswith(_WHITEOUT) else path

    def add(self, entry: tar.Entry, reader: tar.TarReader) -> None:
        """Make one entry, replacing what an earlier one made under its name."""
        self.count()
        path = clean(entry.name)
        directory, _, base = path.rpartition(b"/")
        if base.startswith(_WHITEOUT):
            self._whiteout(directory, base)
            return
        if path in self._whiteouts:
            self._take_whiteout(path, entry)
        kind = entry.kind
        if kind == tar.DIRECTORY:
            self._retry(path, lambda: self._make_directory(path))
            self.implied.pop(path, None)
        elif path == b".":
            raise LayerRefusedError("ARCHIVE_INVALID", "the archive's root is not a directory")
        elif kind == tar.REGULAR:
            self._retry(path, lambda: self._make_file(path, entry, reader))
            return
        elif kind == tar.HARDLINK:
            target = clean(entry.link)
            self._retry(path, lambda: os.link(target, path, follow_symlinks=False), target=target)
            return
        elif kind == tar.SYMLINK:
            self._retry(path, lambda: os.symlink(entry.link, path))
        else:
            file_type = {tar.CHAR_DEVICE: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[kind]
            device = os.makedev(entry.device_major, entry.device_minor)
            self._retry(path, lambda: os.mknod(path, file_type | 0o600, device))
        self._metadata(path, entry)

    def finish(self) -> None:
        """Set what later entries would have disturbed: the times of directories."""
        for path, (inode, times) in self._directory_times.items():
            # A later entry may have replaced it, or what it is in, also by a link to another directory or to itself.
            try:
                if os.lstat(path).st_ino == inode:
                    os.utime(path, ns=times, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise

    def _make_directory(self, path: bytes) -> None:
        try:
            self._mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise

    def _mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode)
        depth = self._depths[os.stat(path.rpartition(b"/")[0] or b".").st_ino] + 1
        if depth > DEPTH_MAX:
            raise LayerRefusedError("ARCHIVE_INVALID", f"{shown(path)} leads more than {DEPTH_MAX} directories deep")
        self._depths[os.lstat(path).st_ino] = depth

    def _make_file(self, path: bytes, entry: tar.Entry, reader: tar.TarReader) -> None:
        if entry.real_bytes > self._file_bytes_max:
            raise LayerRefusedError("LAYER_TOO_LARGE", f"a file has {entry.real_bytes} bytes")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if entry.segments is None:
                while (data := reader.data(CHUNK_BYTES)) is not None:
                    write_all(fd, data)
            else:
                for offset, length in entry.segments:
                    os.lseek(fd, offset, os.SEEK_SET)
                    while length and (data := reader.data(min(length, CHUNK_BYTES))) is not None:
                        write_all(fd, data)
                        length -= len(data)
                os.ftruncate(fd, entry.real_bytes)
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            for name, value in entry.xattrs:
                set_xattr(path, name, value, fd)
            os.utime(fd, ns=times_of(entry))
        finally:
            os.close(fd)

    def _metadata(self, path: bytes, entry: tar.Entry) -> None:
        """Owner before mode and attributes: a change of owner clears set-id bits and capabilities."""
        os.lchown(path, entry.uid, entry.gid)
        if entry.kind != tar.SYMLINK:
            os.chmod(path, entry.mode)
        for name, value in entry.xattrs:
            set_xattr(path, name, value)
        if entry.kind == tar.DIRECTORY:
            self._remember(path)
            self._directory_times[path] = os.lstat(path).st_ino, times_of(entry)
        else:
            os.utime(path, ns=times_of(entry), follow_symlinks=False)

    def _retry(self, path: bytes, make: Callable[[], None], target: bytes | None = None) -> None:
        """Make something; on the way make missing parents and take away what is under the name."""
        for _ in range(3):
            try:
                make()
                return
            except FileNotFoundError:
                if target is not None and not os.path.lexists(target):
                    message = f"hard link {shown(path)} to {shown(target)}, which the layer does not have"
                    raise LayerRefusedError("HARDLINK_TARGET_MISSING", message) from None
                self._make_parents(path)
            except NotADirectoryError:
                self._make_parents(path)
            except FileExistsError:
                self.replaced = True
                delete(path)
        raise LayerRefusedError("ARCHIVE_INVALID", f"{shown(path)} cannot be made")

    def _make_parents(self, path: bytes) -> None:
        """Make the directories above `path` that the archive left out; links among them lead inside the root."""
        parts = deque(path.split(b"/")[:-1])
        done = b""
        followed = 0
        while parts:
            part = parts.popleft()
            if part == b"..":
                done = done.rpartition(b"/")[0]
                continue
            here = done + b"/" + part if done else part
            try:
                mode = os.lstat(here).st_mode
            except FileNotFoundError:
                self.count()
                self._mkdir(here, 0o755)
                self.implied[here] = None
                self._implied_bytes += len(here)
                if len(self.implied) > IMPLIED_MAX or self._implied_bytes > IMPLIED_BYTES_MAX:
                    message = f"more than {IMPLIED_MAX} directories are left out, or their paths have too many bytes"
                    raise LayerRefusedError("ARCHIVE_INVALID", message) from None
            else:
                if stat.S_ISLNK(mode):
                    followed += 1
                    link = os.readlink(here)
                    if followed > LINKS_FOLLOWED_MAX or len(parts) > DEPTH_MAX:
                        raise LayerRefusedError("ARCHIVE_INVALID", f"too many links above {shown(path)}")
                    if link.startswith(b"/"):
                        done = b""
                    parts.extendleft(reversed([word for word in link.split(b"/") if word not in (b"", b".")]))
                    continue
                if not stat.S_ISDIR(mode):
                    self.replaced = True
                    delete(here)
                    self._whiteouts.discard(here)
                    self._mkdir(here, 0o755)
                    os.setxattr(here, OPAQUE_XATTR, b"y")
            done = here

    def _whiteout(self, directory: bytes, base: bytes) -> None:
        """Hide what lower layers have under a name, or in a directory; what this layer itself has stays."""
        if base == _OPAQUE_MARK:
            self._make_opaque(directory or b".")
            return
        if base.startswith(_AUFS):
            return  # bookkeeping of aufs, which is no content
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise LayerRefusedError("ARCHIVE_INVALID", f"whiteout of {name!r}")
        path = directory + b"/" + name if directory else name
        try:
            mode = os.lstat(path).st_mode
        except NotADirectoryError:
            return  # below a file of this layer, which hides all that was there: umoci says it twice
        except FileNotFoundError:
            self._retry(path, lambda: os.mknod(path, stat.S_IFCHR, os.makedev(0, 0)))
            self._remember(path)
            self._whiteouts.add(path)
            return
        if stat.S_ISDIR(mode):
            os.setxattr(path, OPAQUE_XATTR, b"y")

    def _make_opaque(self, path: bytes) -> None:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except NotADirectoryError:
            return
        except FileNotFoundError:
            self._make_parents(path + b"/x")
            is_directory = True
        if is_directory:
            os.setxattr(path, OPAQUE_XATTR, b"y")

    def _take_whiteout(self, path: bytes, entry: tar.Entry) -> None:
        """The layer has something where it hid a lower name: a directory then hides the lower one's content."""
        self._whiteouts.discard(path)
        delete(path)
        if entry.kind == tar.DIRECTORY:
            self._mkdir(path, 0o700)
            os.setxattr(path, OPAQUE_XATTR, b"y")


def clean(name: bytes) -> bytes:
    """A name as a path below the root, without empty words, `.` and `..`."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise LayerRefusedError("ARCHIVE_INVALID", f"{shown(name)} leads above the root")
            parts.pop()
        else:
            parts.append(part)
    if len(parts) > DEPTH_MAX:
        raise LayerRefusedError("ARCHIVE_INVALID", f"an entry is more than {DEPTH_MAX} directories deep")
    if len(name) > PATH_BYTES_MAX:
        raise LayerRefusedError("ARCHIVE_INVALID", f"{shown(name)} has {len(name)} bytes, at most {PATH_BYTES_MAX}")
    return b"/".join(parts) or b"."


def set_xattr(path: bytes, name: bytes, value: bytes, fd: int | None = None) -> None:
    """Set an attribute that an image may have; what overlayfs or the host's policy would act on is dropped.

    Args:
        fd: Of a regular file, which is open.
    """
    of_user = name.startswith(b"user.") and not name.startswith(b"user.overlay.")
    if not of_user and name != b"security.capability" and not name.startswith(b"system.posix_acl_"):
        return
    try:
        if fd is None:
            os.setxattr(path, name, value, follow_symlinks=False)
        else:
            os.setxattr(fd, name, value)
    except OSError as error:
        if _does_not_fit(error):
            message = f"{shown(name)} of {shown(path)} has {len(value)} bytes, which this file system cannot store"
            raise LayerRefusedError("XATTR_UNSUPPORTED", message) from error
        if error.errno not in (errno.ENOTSUP, errno.EPERM):  # links and devices cannot have them
            raise
        if fd is not None and name == b"security.capability":
            # A program without its capabilities would fail later, and far from the reason.
            message = f"the capabilities of {shown(path)} cannot be stored: {error.strerror}"
            raise LayerRefusedError("CAPABILITIES_UNSUPPORTED", message) from error


def _does_not_fit(error: OSError) -> bool:
    """Whether an attribute is too big for a file system, some of which say that they are full."""
    room = os.statvfs(".")
    return error.errno == errno.E2BIG or (error.errno == errno.ENOSPC and room.f_bavail > 0 and room.f_favail > 0)


def times_of(entry: tar.Entry) -> tuple[int, int]:
    """Access and modification time; an archive without the first means the second."""
    return (entry.atime_ns if entry.atime_ns is not None else entry.mtime_ns, entry.mtime_ns)


def write_all(fd: int, data: memoryview) -> None:
    """write(2) until all is written."""
    while data:
        data = data[os.write(fd, data) :]


def shown(path: bytes) -> str:
    """A path for a message."""
    return ascii(path.decode("utf-8", "backslashreplace"))[:200]
