"""Files that images are read from: a directory, or an archive that may be compressed.

Names in them come from strangers. In a directory they are resolved by the kernel with the directory as their ceiling,
and only regular files are opened; in an archive they are looked up. A compressed archive is decompressed once, into a
file without a name and within the bounds of a layer, for blobs are read from the middle of it.
"""

import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from crio_core.errors import Code, OperationError
from crio_core.image.tar import SPECIAL_BYTES_MAX
from crio_core.values import dataclass
from crio_io.openat2 import IN_ROOT, open_regular
from crio_io.storage.layer_tree import LayerRefusedError
from crio_io.storage.unpack import Limits

MEMBERS_MAX = 100_000
LINKS_FOLLOWED_MAX = 4
MAGIC_BYTES = 6
AT_FDCWD = -100
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where some bytes are: in a file of an open source, from an offset."""

    source: "Source"
    name: str
    offset: int
    size_bytes: int

    def open(self) -> BinaryIO:
        """The file, at the offset.

        Raises:
            OSError: As the kernel said.
        """
        file = os.fdopen(self.source.open(self.name), "rb")
        file.seek(self.offset)
        return file


class Source(Protocol):
    """Named files; `path` is where they were said to be, for messages."""

    @property
    def path(self) -> Path: ...

    def place(self, name: str) -> Place:
        """Where a file's bytes are.

        Raises:
            OSError: It is not there, or no regular file.
        """

    def open(self, name: str) -> int:
        """A descriptor, with a position of its own, of the file that a place is in."""

    def close(self) -> None:
        """Let go of everything; places are worth nothing afterwards."""


def open_source(path: Path, scratch: Path, limits: Limits | None = None) -> Source:
    """Open a directory or an archive; blocking.

    Args:
        path: What somebody asks to be read.
        scratch: A directory with room for what is decompressed.
        limits: What it may decompress to; as a layer by default.

    Raises:
        OperationError: IMAGE_FILE_INVALID.
    """
    try:
        return _Directory(path) if path.is_dir() else _Archive(path, scratch, limits or Limits())
    except (OSError, tarfile.TarError, LayerRefusedError) as error:
        raise unreadable(path, f"no OCI layout, and no archive of an image: {error}") from error


def unreadable(path: Path, why: str) -> OperationError:
    """What is there is no image that can be read."""
    return OperationError(Code.INVALID_ARGUMENT, "IMAGE_FILE_INVALID", f"{path}: {why}"[:500])


class _Directory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def place(self, name: str) -> Place:
        fd = self.open(name)
        try:
            return Place(source=self, name=name, offset=0, size_bytes=os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def open(self, name: str) -> int:
        return open_regular(self._root, name, IN_ROOT)

    def close(self) -> None:
        os.close(self._root)


class _Archive:
    """The members of a tar archive, by name; links among them are followed a few times."""

    def __init__(self, path: Path, scratch: Path, limits: Limits) -> None:
        self.path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(os.fdopen(open_regular(AT_FDCWD, str(path), 0), "rb"))
            compression = next((name for magic, name in _MAGIC.items() if _head(file).startswith(magic)), "")
            if compression:
                file = stack.enter_context(_decompressed(path, file, compression, scratch, limits))
            with tarfile.open(fileobj=cast(IO[bytes], _Headers(path, file)), mode="r:") as archive:
                for member in archive:
                    if len(self._members) >= MEMBERS_MAX:
                        raise unreadable(path, f"it has more than {MEMBERS_MAX} members")
                    self._members[os.path.normpath(member.name)] = member
            self._file = file
            self._opened = stack.pop_all()

    def place(self, name: str) -> Place:
        for _ in range(LINKS_FOLLOWED_MAX):
            member = self._members.get(os.path.normpath(name))
            if member is None:
                raise FileNotFoundError(2, "no such member", name)
            if member.isreg() and not member.issparse():
                return Place(source=self, name=name, offset=member.offset_data, size_bytes=member.size)
            if not (member.issym() or member.islnk()):
                break
            name = member.linkname if member.islnk() else f"{os.path.dirname(member.name)}/{member.linkname}"
        raise unreadable(self.path, f"{name} is no regular file")

    def open(self, name: str) -> int:
        return os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        self._opened.close()


class _Headers:
    """An archive as tarfile looks for its members: block by block, and extension headers whole, however long."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > SPECIAL_BYTES_MAX:
            raise unreadable(self._path, f"an extension header has {size} bytes, at most {SPECIAL_BYTES_MAX} are read")
        return self._file.read(size)


class _Compressed:
    """A file as the decompressors read it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, bytes_max: int = tarfile.RECORDSIZE) -> bytes:
        return self._file.read(bytes_max)


def _head(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), MAGIC_BYTES, 0)


def _decompressed(path: Path, file: BinaryIO, compression: str, scratch: Path, limits: Limits) -> BinaryIO:
    if compression not in ("gzip", "zstd"):
        raise unreadable(path, f"it is compressed with {compression}: gzip, zstd and none are read")
    disk = os.statvfs(scratch)
    size_bytes = os.fstat(file.fileno()).st_size
    bytes_max = limits.unpacked_bytes(size_bytes, disk.f_bavail * disk.f_frsize)
    with ExitStack() as stack:
        plain = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
        for chunk in _chunks(file, compression):
            plain.write(chunk)
            if plain.tell() > bytes_max:
                raise unreadable(path, f"it decompresses to more than {bytes_max} bytes")
        plain.seek(0)
        stack.pop_all()
        return plain


def _chunks(file: BinaryIO, compression: str) -> Iterator[bytes]:
    from crio_io.storage.unpack_worker import decompressor

    return decompressor(compression)(_Compressed(file))
