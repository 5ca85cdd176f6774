"""Unpacking processes, seen from the server: started on demand, told how much of a blob is there, and reaped."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio

from crio_core.errors import Code, OperationError
from crio_core.image.digest import Digest, parse_digest
from crio_core.image.manifest import layer_compression
from crio_core.image.resolved import LayerDescriptor
from crio_core.values import dataclass
from crio_io.spawn import REAP_S, kill_group, start

ANSWER_BYTES_MAX = 64 * 1024 * 1024
FORK_S = 10.0
UNPACKED_BYTES_FLOOR = 1024**3
UNPACKED_RATIO_MAX = 200
ENTRIES_MAX = 1_000_000
DISK_RESERVE_BYTES = 64 * 1024 * 1024
CPU_S_FLOOR = 600
CPU_BYTES_PER_S = 1024 * 1024
# The package's own `__init__` is passed over: it offers the whole engine, which the template has no use for.
_PROGRAM = (
    "import sys,types;sys.path[:0]=sys.argv[2:];package=types.ModuleType('crio_io');"
    "package.__path__=[sys.argv[2]+'/crio_io'];sys.modules['crio_io']=package;"
    "from crio_io.storage.unpack_template import main;main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one layer may take.

    A layer may unpack to `ratio` times its blob, and to `floor_bytes` in any case. Its work may take a processor
    `cpu_s`, and a second more for each megabyte of its blob: the slowest machine needs a tenth of that for honest ones.
    """

    floor_bytes: int = UNPACKED_BYTES_FLOOR
    ratio: int = UNPACKED_RATIO_MAX
    entries: int = ENTRIES_MAX
    cpu_s: int = CPU_S_FLOOR

    def unpacked_bytes(self, blob_bytes: int, free_bytes: int) -> int:
        """The most that a blob may unpack to, given what the disk has."""
        return max(0, min(max(self.floor_bytes, self.ratio * blob_bytes), free_bytes - DISK_RESERVE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What an unpacking process made; sizes are as stored."""

    diff_id: Digest
    entries: int
    replaced: bool
    implied: tuple[str, ...]
    size_bytes: int
    inodes: int


class Template:
    """The process that unpacking processes are forked from. Its functions block: call them in a worker thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def fork(self, arguments: dict[str, int | str], fds: list[int]) -> int:
        """Start a process with these arguments and descriptors, and give its pidfd.

        Raises:
            OperationError: SPAWN_FAILED.
        """
        with self._lock:
            if self._connection is None:
                self._start()
            assert self._connection is not None
            try:
                socket.send_fds(self._connection, [json.dumps(arguments).encode()], fds)
                _, [pidfd], _, _ = socket.recv_fds(self._connection, 1, 1)
            except (OSError, ValueError) as error:
                self._stop()
                message = f"the unpacking template went away: {error}"
                raise OperationError(Code.INTERNAL, "SPAWN_FAILED", message) from error
            return pidfd

    def close(self, is_unused: Callable[[], bool]) -> None:
        """End the process, if it still is unused when it is this call's turn; the next `fork` starts another."""
        with self._lock:
            if is_unused():
                self._stop()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.settimeout(FORK_S)
            program = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, str(theirs.fileno()), *_import_paths()]
            try:
                self._popen = start(program, pass_fds=(theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        self._connection = ours

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._popen is not None:
            try:
                self._popen.wait(FORK_S)
            except subprocess.TimeoutExpired:
                kill_group(self._popen)
                self._popen.wait()
            self._popen = None


class Unpacking:
    """One running unpacking process. Whoever starts one must await `end`, also after a cancellation."""

    def __init__(self, pidfd: int, control_fd: int, answer_fd: int, layer: LayerDescriptor, directory: Path) -> None:
        self._pidfd = pidfd
        self._control_fd = control_fd
        self._answer_fd = answer_fd
        self._told_bytes = 0
        self._ended = False
        self.layer = layer
        self.directory = directory

    def available(self, size_bytes: int) -> None:
        """Say how much of the blob's file can be read; when all is said, the process finishes by itself.

        Never blocks: a process that does not read is told again with the next word, and its pipe holds thousands.
        """
        if self._ended or size_bytes <= self._told_bytes:
            return
        try:
            os.write(self._control_fd, b"%d\n" % size_bytes)
        except BlockingIOError:
            return
        except BrokenPipeError:
            size_bytes = self.layer.size_bytes  # it has failed, and `result` says why
        self._told_bytes = size_bytes

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return not self._ended and not select.select([self._pidfd], [], [], 0)[0]

    async def result(self) -> Unpacked:
        """Wait for the end and check the diff id.

        Raises:
            OperationError: The layer was refused, or its content is not what the image's configuration says.
        """
        self.available(self.layer.size_bytes)
        while self._told_bytes < self.layer.size_bytes:
            await anyio.wait_writable(self._control_fd)
            self.available(self.layer.size_bytes)
        try:
            answer = json.loads(await self._answer())
        except ValueError:
            raise self._failed("UNPACK_FAILED", "the unpacking process ended without an answer") from None
        if "error" in answer:
            raise self._failed(str(answer["reason"]), str(answer["error"]))
        found = parse_digest(answer["diff_id"])
        if found != self.layer.diff_id:
            raise self._failed("DIFF_ID_MISMATCH", f"its content is {found}, the image says {self.layer.diff_id}")
        return Unpacked(
            diff_id=found,
            entries=answer["entries"],
            replaced=answer["replaced"],
            implied=tuple(answer["implied"]),
            size_bytes=answer["size_bytes"],
            inodes=answer["inodes"],
        )

    async def end(self) -> None:
        """Kill the process if it has not ended, and let go of everything but the directory."""
        if self._ended:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with anyio.move_on_after(REAP_S, shield=True):
            await anyio.wait_readable(self._pidfd)
        self._ended = True
        for fd in (self._pidfd, self._control_fd, self._answer_fd):
            os.close(fd)

    async def _answer(self) -> bytes:
        parts: list[bytes] = []
        total_bytes = 0
        while total_bytes < ANSWER_BYTES_MAX:
            await anyio.wait_readable(self._answer_fd)
            part = os.read(self._answer_fd, 65536)
            if not part:
                break
            parts.append(part)
            total_bytes += len(part)
        return b"".join(parts)

    def _failed(self, reason: str, message: str) -> OperationError:
        code = {
            "NO_SPACE": Code.RESOURCE_EXHAUSTED,
            "LAYER_TOO_LARGE": Code.RESOURCE_EXHAUSTED,
            "DIFF_ID_MISMATCH": Code.DATA_LOSS,
            "CAPABILITIES_UNSUPPORTED": Code.FAILED_PRECONDITION,
            "XATTR_UNSUPPORTED": Code.FAILED_PRECONDITION,
            "UNPACK_FAILED": Code.INTERNAL,
            "ABORTED": Code.INTERNAL,
        }.get(reason, Code.INVALID_ARGUMENT)
        return OperationError(code, reason, f"layer {self.layer.digest}: {message}")


def start_unpacking(
    template: Template, layer: LayerDescriptor, blob: Path, directory: Path, limits: Limits
) -> Unpacking:
    """Start a process that unpacks a blob's file, which may still be growing, into an empty directory.

    Raises:
        OperationError: LAYER_TYPE_UNKNOWN and others for a layer that is not one; SPAWN_FAILED.
    """
    compression = layer_compression(layer.media_type)
    free = os.statvfs(directory)
    arguments: dict[str, int | str] = {
        "size_bytes": layer.size_bytes,
        "compression": compression,
        "algorithm": layer.diff_id.algorithm,
        "bytes_max": limits.unpacked_bytes(layer.size_bytes, free.f_bavail * free.f_frsize),
        "entries_max": limits.entries,
        "reserve_bytes": DISK_RESERVE_BYTES,
        "cpu_s": limits.cpu_s + layer.size_bytes // CPU_BYTES_PER_S,
    }
    with contextlib.ExitStack() as stack:

        def owned(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        root_fd = owned(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
        blob_fd = owned(os.open(blob, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        control_read, control_write = os.pipe2(os.O_CLOEXEC)
        owned(control_read)
        answer_read, answer_write = os.pipe2(os.O_CLOEXEC)
        owned(answer_write)
        os.set_blocking(control_write, False)
        try:
            pidfd = template.fork(arguments, [root_fd, blob_fd, control_read, answer_write])
        except BaseException:
            os.close(control_write)
            os.close(answer_read)
            raise
        return Unpacking(pidfd, control_write, answer_read, layer, directory)


def _import_paths() -> list[str]:
    """Where this project and the decompression libraries are: the process starts without site-packages."""
    here = str(Path(__file__).parent.parent.parent)
    return [here, *(path for path in sys.path if path and Path(path).name.endswith("-packages"))]
