"""How a layer's archive was made of its files: what is needed to make the very same bytes again.

An image that is saved must keep its layers' diff ids, which are digests of archives; and the archive of a layer cannot
be guessed from its files (order of entries, header dialects, padding). So while a layer is unpacked, everything of its
archive but the content of files is written down, compressed, as frames:

    L  length (4 bytes)  bytes                                   they stand in the archive as they are
    F  length (2)  path  count (4)  count x (offset (8) length (8))    the content of a file follows, by segments
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from crio_core.errors import Code, OperationError
from crio_core.image.digest import Digest

if TYPE_CHECKING:
    from crio_core.image.tar import Entry
    from crio_io.storage.unpack_worker import Stream

FILE_NAME = "recipe"
FLUSH_BYTES = 256 * 1024
CHUNK_BYTES = 1024 * 1024
SEGMENTS_MAX = 1_000_000
_LITERAL = struct.Struct(">cI")
_FILE = struct.Struct(">cH")
_COUNT = struct.Struct(">I")
_SEGMENT = struct.Struct(">QQ")


class Recorder:
    """Stands between the archive's bytes and the tar reader, and writes down what goes by.

    Args:
        fd: The file to write to; this closes it.
        stream: The archive's bytes.
    """

    def __init__(self, fd: int, stream: "Stream") -> None:
        self._fd = fd
        self._stream = stream
        self._deflate = zlib.compressobj(1)
        self._literal: list[bytes] = []
        self._literal_bytes = 0
        self._content_bytes = 0

    def read_exact(self, size: int) -> bytes:
        """As the stream's; such bytes are always of headers."""
        found = self._stream.read_exact(size)
        self._note(found)
        return found

    def read_some(self, bytes_max: int) -> memoryview:
        """As the stream's; the content of a file if one is expected, else padding."""
        found = self._stream.read_some(bytes_max)
        if self._content_bytes:
            self._content_bytes -= len(found)
        else:
            self._note(bytes(found))
        return found

    def expect(self, path: bytes, entry: "Entry") -> None:
        """What follows is the content of a file that will be at `path`."""
        if not entry.size_bytes:
            return
        self._flush()
        segments = entry.segments if entry.segments is not None else ((0, entry.size_bytes),)
        frame = [_FILE.pack(b"F", len(path)), path, _COUNT.pack(len(segments))]
        frame += [_SEGMENT.pack(*segment) for segment in segments]
        self._write(b"".join(frame))
        self._content_bytes = entry.size_bytes

    def finish(self) -> str:
        """Write down what follows the archive's end, and give the hash of the whole stream."""
        while part := self._stream.rest():
            self._note(part)
        self._flush()
        self._put(self._deflate.flush())
        os.close(self._fd)
        return self._stream.drain()

    def _note(self, data: bytes) -> None:
        self._literal.append(data)
        self._literal_bytes += len(data)
        if self._literal_bytes >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._literal_bytes:
            self._write(b"".join((_LITERAL.pack(b"L", self._literal_bytes), *self._literal)))
            self._literal, self._literal_bytes = [], 0

    def _write(self, data: bytes) -> None:
        self._put(self._deflate.compress(data))

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class _Frames:
    """Reads a recipe; what is damaged ends in an error, and nothing is read that is larger than it says."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._inflate = zlib.decompressobj()
        self._buffer = bytearray()

    def close(self) -> None:
        self._file.close()

    def take(self, size: int) -> bytes:
        while len(self._buffer) < size and not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(CHUNK_BYTES)
            if not data:
                break
            self._buffer += self._inflate.decompress(data, CHUNK_BYTES)
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        if found and len(found) < size:
            raise zlib.error("the recipe ends in the middle of a frame")
        return found


def why_changed(place: Path, diff_id: Digest) -> str:
    """Why a layer's archive cannot be made again: empty when it can, so that each byte is what it was; blocking.

    Only for a layer of which no entry took another's place.

    Args:
        place: The layer's directory in the store.
    """
    digest = hashlib.new(diff_id.algorithm)
    try:
        for chunk in _archive(place):
            digest.update(chunk)
    except FileNotFoundError as error:
        return f"{error.filename} is not there"
    except (OSError, zlib.error, struct.error) as error:
        return str(error)
    return "" if digest.hexdigest() == diff_id.hex else "its content is not what was unpacked"


def pack_layer(place: Path, diff_id: Digest, output: Path) -> int:
    """Make a layer's archive again, into a new file; blocking. Returns its size in bytes.

    Args:
        place: The layer's directory in the store.
        diff_id: What the archive must be.
        output: The file to make; what an error leaves of it is removed.

    Raises:
        OperationError: LAYER_NOT_REPRODUCIBLE: it was stored without a recipe, has a file twice, or is damaged.
    """
    digest = hashlib.new(diff_id.algorithm)
    size_bytes = 0
    try:
        with output.open("xb") as file:
            for chunk in _archive(place):
                digest.update(chunk)
                size_bytes += len(chunk)
                file.write(chunk)
        if digest.hexdigest() != diff_id.hex:
            raise _irreproducible(diff_id, f"what is stored makes sha256:{digest.hexdigest()}")
    except FileNotFoundError as error:
        output.unlink(missing_ok=True)
        raise _irreproducible(diff_id, f"{error.filename} is not there: pull the image again") from error
    except (OSError, zlib.error, struct.error) as error:
        output.unlink(missing_ok=True)
        raise _irreproducible(diff_id, str(error)) from error
    except OperationError:
        output.unlink(missing_ok=True)
        raise
    return size_bytes


def _irreproducible(diff_id: Digest, why: str) -> OperationError:
    message = f"layer {diff_id} cannot be packed as it came: {why}"
    return OperationError(Code.FAILED_PRECONDITION, "LAYER_NOT_REPRODUCIBLE", message)


def _archive(place: Path) -> Iterator[bytes]:
    from crio_io.rootfs import open_inside

    frames = _Frames(place / FILE_NAME)
    root = os.open(place / "fs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while kind := frames.take(1):
            if kind == b"L":
                yield frames.take(_COUNT.unpack(frames.take(4))[0])
                continue
            path = frames.take(int.from_bytes(frames.take(2), "big"))
            count = _COUNT.unpack(frames.take(4))[0]
            if kind != b"F" or count > SEGMENTS_MAX:
                raise zlib.error("the recipe has an unknown frame")
            segments = [_SEGMENT.unpack(frames.take(_SEGMENT.size)) for _ in range(count)]
            fd = open_inside(root, os.fsdecode(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                for offset, length in segments:
                    yield from _content(fd, offset, length)
            finally:
                os.close(fd)
    finally:
        os.close(root)
        frames.close()


def _content(fd: int, offset: int, length: int) -> Iterator[bytes]:
    while length:
        data = os.pread(fd, min(length, CHUNK_BYTES), offset)
        if not data:
            raise zlib.error("a file is shorter than it was")
        offset += len(data)
        length -= len(data)
        yield data
