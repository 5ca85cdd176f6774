"""`ctr logs`: the log file of a container, wholly or its end, and on as it grows.

The file belongs to the container's monitor, and is read on this machine at the path that the status names. Following
looks at the file again and again instead of trusting notifications: rotation (another file under the same name),
truncation and the container's end are then all seen, whoever causes them.
"""

import asyncio
import errno
import os
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from crio_core.logformat import HEADER_BYTES_MAX, Damage, LogParser, Piece, parse_header
from crio_server.crioctl.errors import Refused

CHUNK_BYTES = 64 * 1024
LOOK_EVERY_S = 0.1
ASK_EVERY_LOOKS = 10  # how many idle looks at the file go with one question to the server
FINAL_LOOKS = 5  # idle looks after the container has ended: its monitor may still be writing what it had buffered

Alive = Callable[[], Awaitable[bool]]


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> object: ...

    def flush(self) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records, and how to show them."""

    tail_lines: int | None = None
    since_ns: int = 0
    timestamps: bool = False


class Printer:
    """Writes pieces to the two streams, and remembers which of them stand in the middle of a line."""

    def __init__(self, wanted: Wanted, stdout: Sink, stderr: Sink) -> None:
        self.wanted = wanted
        self.sinks: dict[str, Sink] = {"stdout": stdout, "stderr": stderr}
        self.mid_line: set[str] = set()
        self.damaged = 0

    def show(self, item: Piece | Damage) -> None:
        """Write one piece, if it is wanted."""
        if isinstance(item, Damage):
            self.damaged += 1
            return
        if item.time_ns < self.wanted.since_ns:
            return
        sink = self.sinks[item.stream]
        if self.wanted.timestamps and item.starts_record and item.stream not in self.mid_line:
            sink.write(item.time.encode() + b" ")
        sink.write(item.data + (b"\n" if item.ends_line else b""))
        if item.ends_line:
            self.mid_line.discard(item.stream)
        else:
            self.mid_line.add(item.stream)

    def flush(self) -> None:
        """Let everything so far be seen."""
        for sink in self.sinks.values():
            sink.flush()


def open_log(path: Path) -> BinaryIO:
    """Open a log file for reading.

    A symlink, a pipe or a device under that name is refused: someone put it there, and it is not what a monitor wrote.

    Raises:
        Refused: It is not there, not readable or not a regular file.
    """
    try:
        return _open_regular(path)
    except OSError as error:
        raise Refused(f"log {path}: {error.strerror} (logs are read from the server's own machine)") from error


def _open_regular(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def tail_offset(descriptor: int, lines: int) -> int:
    """The offset where the last `lines` lines of output begin, found from the end of the file.

    Lines are counted, not records: the parts of a long line belong to it, and a line that is not finished yet comes on
    top. With two streams whose parts interleave, the records between two ends of lines count to the later one.
    """
    ended = 0
    record_end = os.fstat(descriptor).st_size
    for newline in _newlines_from_end(descriptor, record_end):
        record_start = newline + 1
        if record_start < record_end:
            parsed = parse_header(os.pread(descriptor, HEADER_BYTES_MAX, record_start).partition(b"\n")[0])
            ended += parsed is not None and parsed[0].full
            if ended > lines:
                return record_end
            record_end = record_start
    return 0


def _newlines_from_end(descriptor: int, end: int) -> Iterator[int]:
    """The offsets of newlines, last first, and then the one that one imagines before the file."""
    position = end
    while position > 0:
        start = max(0, position - CHUNK_BYTES)
        data = os.pread(descriptor, position - start, start)
        found = data.rfind(b"\n")
        while found >= 0:
            yield start + found
            found = data.rfind(b"\n", 0, found)
        position = start
    yield -1


async def show(path: Path, wanted: Wanted, *, alive: Alive | None) -> None:
    """Print a log file on standard output and standard error.

    Args:
        alive: Given to follow the log: whether the container may still write. None ends at the end of the file.

    Raises:
        Refused: The log cannot be read.
    """
    printer = Printer(wanted, sys.stdout.buffer, sys.stderr.buffer)
    parser = LogParser()
    stream = await asyncio.to_thread(open_log, path)
    try:
        if wanted.tail_lines is not None:
            offset = await asyncio.to_thread(tail_offset, stream.fileno(), wanted.tail_lines)
            stream.seek(offset)
        await _drain(stream, parser, printer)
        if alive is not None:
            stream = await _follow(path, stream, parser, printer, alive)
    finally:
        stream.close()
        printer.flush()
    if printer.damaged:
        print(f"crioctl: {path}: {printer.damaged} lines are not log records and were left out", file=sys.stderr)


async def _follow(path: Path, stream: BinaryIO, parser: LogParser, printer: Printer, alive: Alive) -> BinaryIO:
    """Go on printing until the container has ended and its log is read to the end; returns the open file."""
    looks = 0
    ended = False
    while True:
        read_bytes = await _drain(stream, parser, printer)
        successor = await asyncio.to_thread(_successor, path, stream)
        if successor is not None:
            # A monitor may open the new file a moment before it lets go of the old one.
            await asyncio.sleep(LOOK_EVERY_S)
            await _drain(stream, parser, printer)
            stream.close()
            stream = successor
            continue
        if await asyncio.to_thread(_truncated, stream):
            stream.seek(0)
            parser.restart()
            continue
        looks = 0 if read_bytes else looks + 1
        if ended and looks >= FINAL_LOOKS:
            return stream
        if not ended and looks % ASK_EVERY_LOOKS == 1:
            ended = not await alive()
            looks = 0 if ended else looks
        await asyncio.sleep(LOOK_EVERY_S)


async def _drain(stream: BinaryIO, parser: LogParser, printer: Printer) -> int:
    """Print to the end of the file as it is now; returns how many bytes that was."""
    total_bytes = 0
    while chunk := await asyncio.to_thread(stream.read, CHUNK_BYTES):
        total_bytes += len(chunk)
        for item in parser.feed(chunk):
            printer.show(item)
    printer.flush()
    return total_bytes


def _successor(path: Path, stream: BinaryIO) -> BinaryIO | None:
    """The file that has taken the name since `stream` was opened; None when there is none (yet)."""
    try:
        candidate = _open_regular(path)
    except OSError:
        return None  # in the middle of a rotation, or removed with its container: the open file is still the log
    mine, theirs = os.fstat(stream.fileno()), os.fstat(candidate.fileno())
    if (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino):
        candidate.close()
        return None
    return candidate


def _truncated(stream: BinaryIO) -> bool:
    return os.fstat(stream.fileno()).st_size < stream.tell()
