"""Unpacking processes, seen from the server: started on demand, told how much of a blob is there, and reaped."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import anyio

from crio_core.errors import Code, OperationError
from crio_core.image.digest import Digest, parse_digest
from crio_core.image.manifest import layer_compression
from crio_core.image.resolved import LayerDescriptor
from crio_io.spawn import Child

OUTPUT_BYTES_MAX = 64 * 1024 * 1024
UNPACKED_BYTES_FLOOR = 1024**3
UNPACKED_RATIO_MAX = 200
ENTRIES_MAX = 1_000_000
DISK_RESERVE_BYTES = 64 * 1024 * 1024
_PROGRAM = "import sys;sys.path[:0]=sys.argv[2:];from crio_io.storage.unpack_worker import main;main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one layer may take. A layer may unpack to `ratio` times its blob, and to `floor_bytes` in any case."""

    floor_bytes: int = UNPACKED_BYTES_FLOOR
    ratio: int = UNPACKED_RATIO_MAX
    entries: int = ENTRIES_MAX

    def unpacked_bytes(self, blob_bytes: int, free_bytes: int) -> int:
        """The most that a blob may unpack to, given what the disk has."""
        return max(0, min(max(self.floor_bytes, self.ratio * blob_bytes), free_bytes - DISK_RESERVE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What an unpacking process made; sizes are as stored."""

    diff_id: Digest
    entries: int
    implied: tuple[str, ...]
    size_bytes: int
    inodes: int


class Unpacking:
    """One running unpacking process. Whoever starts one must await `end`, also after a cancellation."""

    def __init__(self, child: Child, control_fd: int, layer: LayerDescriptor, directory: Path) -> None:
        self._child = child
        self._control_fd = control_fd
        self._told_bytes = 0
        self.layer = layer
        self.directory = directory

    def available(self, size_bytes: int) -> None:
        """Say how much of the blob's file can be read; when all is said, the process finishes by itself.

        Never blocks: a process that does not read is told again with the next word, and its pipe holds thousands.
        """
        if self._control_fd < 0 or size_bytes <= self._told_bytes:
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
        return self._child.popen.poll() is None

    async def result(self) -> Unpacked:
        """Wait for the end and check the diff id.

        Raises:
            OperationError: The layer was refused, or its content is not what the image's configuration says.
        """
        self.available(self.layer.size_bytes)
        while self._told_bytes < self.layer.size_bytes:
            await anyio.wait_writable(self._control_fd)
            self.available(self.layer.size_bytes)
        await self._child.wait_exit()
        await self._child.wait_output()
        completed = self._child.completed(self._child.returncode or 0)
        try:
            answer = json.loads(completed.stdout)
        except ValueError:
            message = f"unpacking ended with {completed.returncode}: {completed.stderr_text()}"
            raise self._failed("UNPACK_FAILED", message) from None
        if "error" in answer:
            raise self._failed(str(answer["reason"]), str(answer["error"]))
        found = parse_digest(answer["diff_id"])
        if found != self.layer.diff_id:
            raise self._failed("DIFF_ID_MISMATCH", f"its content is {found}, the image says {self.layer.diff_id}")
        return Unpacked(
            diff_id=found,
            entries=answer["entries"],
            implied=tuple(answer["implied"]),
            size_bytes=answer["size_bytes"],
            inodes=answer["inodes"],
        )

    async def end(self) -> None:
        """Kill the process if it has not ended, and let go of everything but the directory."""
        if self._control_fd >= 0:
            os.close(self._control_fd)
            self._control_fd = -1
        await self._child.end()

    def _failed(self, reason: str, message: str) -> OperationError:
        code = {"NO_SPACE": Code.RESOURCE_EXHAUSTED, "LAYER_TOO_LARGE": Code.RESOURCE_EXHAUSTED}.get(
            reason, Code.DATA_LOSS if reason == "DIFF_ID_MISMATCH" else Code.INVALID_ARGUMENT
        )
        if reason in ("UNPACK_FAILED", "ABORTED"):
            code = Code.INTERNAL
        return OperationError(code, reason, f"layer {self.layer.digest}: {message}")


def start_unpacking(layer: LayerDescriptor, blob: Path, directory: Path, limits: Limits) -> Unpacking:
    """Start a process that unpacks a blob's file, which may still be growing, into an empty directory.

    Raises:
        OperationError: LAYER_TYPE_UNKNOWN and others for a layer that is not one; SPAWN_FAILED.
    """
    compression = layer_compression(layer.media_type)
    free = os.statvfs(directory)
    fds: list[int] = []
    try:
        fds.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
        fds.append(os.open(blob, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        control_read, control_write = os.pipe2(os.O_CLOEXEC)
        fds.append(control_read)
        arguments = {
            "root_fd": fds[0],
            "blob_fd": fds[1],
            "control_fd": fds[2],
            "size_bytes": layer.size_bytes,
            "compression": compression,
            "algorithm": layer.diff_id.algorithm,
            "bytes_max": limits.unpacked_bytes(layer.size_bytes, free.f_bavail * free.f_frsize),
            "entries_max": limits.entries,
        }
        program = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, json.dumps(arguments), *_import_paths()]
        os.set_blocking(control_write, False)
        try:
            child = Child(program, pass_fds=fds, output_max_bytes=OUTPUT_BYTES_MAX)
        except BaseException:
            os.close(control_write)
            raise
        return Unpacking(child, control_write, layer, directory)
    finally:
        for fd in fds:
            os.close(fd)


def _import_paths() -> list[str]:
    """Where this project and the decompression libraries are: the process starts without site-packages."""
    here = str(Path(__file__).parent.parent.parent)
    return [here, *(path for path in sys.path if path and Path(path).name.endswith("-packages"))]
