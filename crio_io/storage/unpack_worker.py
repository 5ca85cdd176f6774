"""The program that unpacks one layer: it shuts itself into the layer's new directory and writes the archive there.

It is forked by `unpack_template.py`. It follows the blob's file while that is still growing, decompresses and hashes in
one thread, and writes files in the other. The directory is its root (chroot), so no name, link or race in an archive
leads outside (CVE-2025-47290, CVE-2021-32760).

Its arguments: `root_fd`, `blob_fd`, `control_fd`, `answer_fd`, `size_bytes`, `compression`, `algorithm`; and what it
may take: `bytes_max`, `entries_max`, `cpu_s` of a processor, and the disk but for `reserve_bytes`, which it looks at
itself, as it is not alone in filling it. The control pipe carries the number of bytes of the blob that can be read, one
decimal a line; its end before the whole size means to give up. The answer is one JSON object: `diff_id`, `entries`,
`replaced`, `implied`, `size_bytes` and `inodes` as on disk, or `error` and `reason`.
"""

import errno
import json
import os
import resource
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

from crio_core.image import tar
from crio_io.storage import deep
from crio_io.storage.layer_tree import CHUNK_BYTES, LayerRefusedError, Tree, write_all
from crio_io.storage.recipe import FILE_NAME, Recorder

READ_BYTES = 128 * 1024
QUEUE_CHUNKS_MAX = 8
GZIP_MEMBERS_MAX = 1_000_000
ZSTD_WINDOW_BYTES_MAX = 128 * 1024 * 1024
MESSAGE_CHARS_MAX = 500
ROOM_BYTES = 8 * 1024 * 1024
CPU_S_TO_ANSWER = 5
_REASONS = {
    errno.ENOSPC: "NO_SPACE",
    errno.EDQUOT: "NO_SPACE",
    # Names that no kernel takes are the archive's fault: trying again is no use.
    errno.ENAMETOOLONG: "ARCHIVE_INVALID",
    errno.ELOOP: "ARCHIVE_INVALID",
}


class Compressed(Protocol):
    """What is decompressed, some bytes at a time; `b""` is its end."""

    def read(self, bytes_max: int = READ_BYTES, /) -> bytes: ...


Decompressor = Callable[[Compressed], Iterator[bytes]]


class Blob:
    """The compressed bytes, as far as the control pipe says that they are there."""

    def __init__(self, blob_fd: int, control_fd: int, size_bytes: int) -> None:
        self._blob_fd = blob_fd
        self._control_fd = control_fd
        self._size_bytes = size_bytes
        self._available_bytes = 0
        self._line = b""
        self._position = 0
        self._poll = select.poll()
        self._poll.register(control_fd, 0)

    def read(self, bytes_max: int = READ_BYTES) -> bytes:
        """Some bytes, waiting for them; `b""` at the end of the whole blob."""
        if self._position >= self._size_bytes:
            return b""
        while self._position >= self._available_bytes:
            self._wait()
        if self._poll.poll(0):
            raise LayerRefusedError("ABORTED", "the server went away")
        count = min(bytes_max, READ_BYTES, self._available_bytes - self._position)
        data = os.pread(self._blob_fd, count, self._position)
        if not data:
            raise LayerRefusedError("BLOB_TRUNCATED", "the blob's file is shorter than it was said to be")
        self._position += len(data)
        return data

    def _wait(self) -> None:
        data = os.read(self._control_fd, 4096)
        if not data:
            raise LayerRefusedError("ABORTED", "the download was given up")
        *lines, self._line = (self._line + data).split(b"\n")
        if lines:
            self._available_bytes = min(int(lines[-1]), self._size_bytes)


def decompressor(compression: str) -> Decompressor:
    """The function that gives a blob's decompressed chunks; its library is loaded here, before the root changes."""
    if compression == "gzip":
        return _gzip()
    return _zstd() if compression == "zstd" else _plain


def _plain(blob: Compressed) -> Iterator[bytes]:
    while data := blob.read(CHUNK_BYTES):
        yield data


def _gzip() -> Decompressor:
    try:
        from isal import isal_zlib as library
    except ImportError:  # a machine that isa-l does not know
        import zlib as library  # type: ignore[no-redef]

    def gunzip(blob: Compressed) -> Iterator[bytes]:
        """A gzip stream of any number of members (RFC 1952, 2.2)."""
        members = 1
        stream = library.decompressobj(31)
        data = blob.read()
        while data:
            try:
                chunk = stream.decompress(data, CHUNK_BYTES)
            except library.error as error:  # type: ignore[misc]  # its stubs call it an instance
                raise LayerRefusedError("DECOMPRESSION_FAILED", f"gzip: {error}") from error
            if chunk:
                yield chunk
            if not stream.eof:
                data = stream.unconsumed_tail or blob.read()
                continue
            data = stream.unused_data or blob.read()
            if not data:
                return
            members += 1
            if members > GZIP_MEMBERS_MAX:
                raise LayerRefusedError("DECOMPRESSION_FAILED", f"gzip: more than {GZIP_MEMBERS_MAX} members")
            stream = library.decompressobj(31)
        raise LayerRefusedError("DECOMPRESSION_FAILED", "gzip: the stream ends in the middle")

    return gunzip


def _zstd() -> Decompressor:
    import zstandard

    def unzstd(blob: Compressed) -> Iterator[bytes]:
        """A zstd stream of any number of frames."""
        context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        reader = context.stream_reader(blob, read_size=READ_BYTES, read_across_frames=True)  # type: ignore[arg-type]
        try:
            while data := reader.read(CHUNK_BYTES):
                yield data
        except zstandard.ZstdError as error:
            raise LayerRefusedError("DECOMPRESSION_FAILED", f"zstd: {error}") from error

    return unzstd


class Stream:
    """The decompressed archive: produced and hashed in a thread of its own, read by the unpacker."""

    def __init__(self, chunks: Iterator[bytes], algorithm: str, bytes_max: int, reserve_bytes: int) -> None:
        import hashlib

        self._hash = hashlib.new(algorithm)
        self._chunks = chunks
        self._bytes_max = bytes_max
        self._reserve_bytes = reserve_bytes
        self._queue: deque[bytes] = deque()
        self._room = threading.Semaphore(QUEUE_CHUNKS_MAX)
        self._ready = threading.Semaphore(0)
        self._failure: BaseException | None = None
        self._current = memoryview(b"")
        self._ended = False
        self._thread = threading.Thread(target=self._produce, daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        total = unlooked = 0
        try:
            for chunk in self._chunks:
                total += len(chunk)
                unlooked += len(chunk)
                if unlooked >= ROOM_BYTES:
                    unlooked = 0
                    self._look_for_room()
                if total > self._bytes_max:
                    message = f"the layer unpacks to more than {self._bytes_max} bytes"
                    raise LayerRefusedError("LAYER_TOO_LARGE", message)
                self._room.acquire()
                self._queue.append(chunk)
                self._ready.release()
                self._hash.update(chunk)
        except BaseException as error:  # carried to the other thread, which raises it
            self._failure = error
        self._ready.release()

    def _look_for_room(self) -> None:
        disk = os.statvfs(".")  # the layer's directory
        if disk.f_bavail * disk.f_frsize < self._reserve_bytes:
            raise LayerRefusedError("NO_SPACE", f"less than {self._reserve_bytes} bytes are left on the disk")

    def _fill(self) -> bool:
        """Have bytes at hand; False at the end."""
        while not self._current:
            if self._ended:
                return False
            self._ready.acquire()
            if self._queue:
                self._current = memoryview(self._queue.popleft())
                self._room.release()
            else:
                self._ended = True
                self._thread.join()
                if self._failure is not None:
                    raise self._failure
        return True

    def read_some(self, bytes_max: int) -> memoryview:
        """Between one and `bytes_max` bytes, without a copy."""
        if not self._fill():
            raise LayerRefusedError("ARCHIVE_INVALID", "the archive ends in the middle of an entry")
        found = self._current[:bytes_max]
        self._current = self._current[len(found) :]
        return found

    def read_exact(self, size: int) -> bytes:
        """Exactly `size` bytes, or nothing at the end."""
        if len(self._current) >= size:
            found = bytes(self._current[:size])
            self._current = self._current[size:]
            return found
        if not self._fill():
            return b""
        parts = []
        while size:
            part = self.read_some(size)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def rest(self) -> bytes:
        """What is at hand of what was not read, or nothing at the end."""
        if not self._fill():
            return b""
        found = bytes(self._current)
        self._current = memoryview(b"")
        return found

    def drain(self) -> str:
        """Read what follows the archive's end, and give the hash of the whole stream."""
        while self._fill():
            self._current = memoryview(b"")
        return self._hash.hexdigest()


def unpack(arguments: dict[str, int | str]) -> dict[str, object]:
    """Do the work; see the module's description for the arguments and the answer."""
    number = {name: value for name, value in arguments.items() if isinstance(value, int)}
    algorithm = str(arguments["algorithm"])
    blob = Blob(number["blob_fd"], number["control_fd"], number["size_bytes"])
    chunks = decompressor(str(arguments["compression"]))(blob)
    os.fchdir(number["root_fd"])
    stream = Stream(chunks, algorithm, number["bytes_max"], number["reserve_bytes"])
    # A file's descriptor, unlike a directory's, is no way out of the new root.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    recorder = Recorder(os.open(f"../{FILE_NAME}", flags, 0o600, dir_fd=number["root_fd"]), stream)
    os.chroot(".")
    os.close(number["root_fd"])
    os.umask(0)
    tree = Tree(number["entries_max"], number["bytes_max"])
    reader = tar.TarReader(recorder.read_exact, recorder.read_some)
    while (entry := reader.next()) is not None:
        if entry.kind == tar.REGULAR and (path := tree.file_path(entry)):
            recorder.expect(path, entry)
        tree.add(entry, reader)
    tree.finish()
    found = f"{algorithm}:{recorder.finish()}"
    size_bytes, inodes = deep.measure(".")
    return {
        "diff_id": found,
        "entries": tree.entries,
        "replaced": tree.replaced,
        "implied": [os.fsdecode(path) for path in tree.implied],
        "size_bytes": size_bytes,
        "inodes": inodes,
    }


def preload() -> None:
    """Load what most layers need, once, in the process that workers are forked from."""
    decompressor("gzip")
    __import__("hashlib")


def _limit_work(cpu_s: int) -> None:
    """End this process when it has worked for so long: first by a signal, so that it can say why, then by force."""

    def refuse(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        raise LayerRefusedError("TOO_MUCH_WORK", f"it takes a processor more than {cpu_s} s to unpack")

    signal.signal(signal.SIGXCPU, refuse)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + CPU_S_TO_ANSWER))


def work(arguments: dict[str, int | str]) -> NoReturn:
    """Unpack, answer on `answer_fd`, and end the process."""
    answer: dict[str, object]
    try:
        _limit_work(int(arguments["cpu_s"]))
        answer = unpack(arguments)
    except LayerRefusedError as error:
        answer = {"error": str(error), "reason": error.reason}
    except tar.TarInvalidError as error:
        answer = {"error": str(error), "reason": "ARCHIVE_INVALID"}
    except OSError as error:
        answer = {"error": str(error), "reason": _REASONS.get(error.errno or 0, "UNPACK_FAILED")}
    except (RecursionError, MemoryError, ValueError, OverflowError) as error:
        answer = {"error": f"{type(error).__name__}: {error}", "reason": "ARCHIVE_INVALID"}
    except BaseException as error:  # a bug here, which must not become a second process that forks
        answer = {"error": f"{type(error).__name__}: {error}", "reason": "UNPACK_FAILED"}
    if "error" in answer:
        answer["error"] = str(answer["error"])[:MESSAGE_CHARS_MAX]
    write_all(int(arguments["answer_fd"]), memoryview(json.dumps(answer).encode()))
    # Straight out: the other thread may be waiting for room that nobody will make.
    os._exit(1 if "error" in answer else 0)
