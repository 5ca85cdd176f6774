"""The log of a container in the CRI's format, made from bytes without looking at single lines.

A record is `<RFC 3339 time with nanoseconds> <stream> <P or F> <bytes>`: F ends a line, P is a part of one
(kubelet's log format, `kubelet/logs`). One read gives one timestamp and one write. A line that is longer than the limit
becomes P records of exactly the limit and one F record with the rest. The unfinished end of a read is held for
`PARTIAL_HOLD_NS` in case the rest of its line comes; then it is written as a P record, so a prompt is seen at once.

A disk that is full or read-only never stops the container: the records that do not fit are dropped whole and their
bytes are counted. A record that was written in part is taken back, so that the file holds whole records only.
"""

import os
import time

from conmon.low import Suppress

LINE_BYTES_MAX = 16384  # the length at which other CRI runtimes part a line
PARTIAL_HOLD_NS = 50_000_000
PIECES_MAX = 510  # of one writev(2), which takes IOV_MAX = 1024; a multiple of a record's three
STDOUT, STDERR = 2, 3  # the numbers that conmon's attach protocol gives the streams
LogState = tuple[bool, bool, bool, int, int]
_NAMES = {STDOUT: b" stdout ", STDERR: b" stderr "}


class Stamps:
    """RFC 3339 timestamps in local time; the part up to the second is made once a second."""

    __slots__ = ("_head", "_second", "_zone")

    def __init__(self) -> None:
        self._second = -1
        self._head = b""
        self._zone = b""

    def stamp(self, now_ns: int) -> bytes:
        """The time `now_ns` (nanoseconds since the epoch) as text."""
        second, nanosecond = divmod(now_ns, 1_000_000_000)
        if second != self._second:
            local = time.localtime(second)
            sign = "-" if local.tm_gmtoff < 0 else "+"
            hours, minutes = divmod(abs(local.tm_gmtoff) // 60, 60)
            self._head = time.strftime("%Y-%m-%dT%H:%M:%S.", local).encode()
            self._zone = f"{sign}{hours:02d}:{minutes:02d}".encode()
            self._second = second
        return b"%s%09d%s" % (self._head, nanosecond, self._zone)


class Formatter:
    """Turns the bytes of one stream into records; pure.

    Args:
        stream: `STDOUT` or `STDERR`.
        line_bytes_max: The most bytes of a line that one record holds.
    """

    __slots__ = ("_limit", "_stream", "held", "open")

    def __init__(self, stream: int, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._stream = _NAMES[stream]
        self._limit = line_bytes_max
        self.open = False  # the last record is a part
        self.held = b""

    def header_bytes(self, stamp: bytes) -> int:
        """What a record has besides the bytes of the container and the newline that ends it."""
        return len(stamp) + len(self._stream) + 2

    def feed(self, data: bytes, stamp: bytes) -> list[bytes]:
        """The records that `data` completes, in pieces to be written one after the other; the rest is held."""
        if self.held:
            data = self.held + data
        cut = data.rfind(b"\n") + 1
        tail = data[cut:]
        out: list[bytes] = []
        if cut:
            self._lines(data, cut, stamp + self._stream, out)
            self.open = False
        if len(tail) > self._limit:
            part = stamp + self._stream + b"P "
            whole = (len(tail) - 1) // self._limit * self._limit
            for at in range(0, whole, self._limit):
                out += (part, tail[at : at + self._limit], b"\n")
            self.open = True
            tail = tail[whole:]
        self.held = tail
        return out

    def _lines(self, data: bytes, size: int, header: bytes, out: list[bytes]) -> None:
        full = header + b"F "
        between = b"\n" + full
        limit, at = self._limit, 0
        while at < size:
            # The last newline within reach: every line up to it is short enough, however many there are.
            reach = min(at + limit + 1, size)
            end = data.rfind(b"\n", at, reach) + 1
            if end > at:
                out += (full, data[at : end - 1].replace(b"\n", between), b"\n")
                at = end
            else:
                out += (header + b"P ", data[at : at + limit], b"\n")
                at += limit

    def expire(self, stamp: bytes) -> bytes:
        """What was held long enough, as a P record."""
        if not self.held:
            return b""
        out = stamp + self._stream + b"P " + self.held + b"\n"
        self.held = b""
        self.open = True
        return out

    def finish(self, stamp: bytes) -> bytes:
        """A closing record for a last line that has no newline."""
        if not self.held and not self.open:
            return b""
        out = stamp + self._stream + b"F " + self.held + b"\n"
        self.held = b""
        self.open = False
        return out


class RecordFile:
    """A log file that takes whole records and counts what it could not take.

    Args:
        path: The file; it is made when it is missing, and appended to.
        size_max: The file starts anew, in its place, before it would grow beyond this many bytes; 0 for no limit.
        total_max: The most bytes written over all of the file's lives; 0 for no limit.
        fd: The file, when it is open already.

    Raises:
        OSError: The file cannot be opened.
    """

    __slots__ = ("_fd", "_path", "_size", "_size_max", "_total_max", "dropped_bytes", "torn", "total")

    def __init__(self, path: str, size_max: int = 0, total_max: int = 0, fd: int = -1) -> None:
        self._path = path
        self._size_max = size_max
        self._total_max = total_max
        self.total = 0
        self.torn = False  # the file ends with a record that was cut off
        self.dropped_bytes = 0
        self._fd = fd if fd >= 0 else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def fileno(self) -> int:
        return self._fd

    def write(self, pieces: list[bytes], header_bytes: int) -> None:
        """Append records; what does not fit or fails is counted, less `header_bytes` and a newline each."""
        if not self._size_max and not self._total_max and not self.torn:
            self._append_pieces(pieces, header_bytes)
        else:
            self._append_within(b"".join(pieces), header_bytes)

    def _append_pieces(self, pieces: list[bytes], header_bytes: int) -> None:
        for at in range(0, len(pieces), PIECES_MAX):
            some = pieces[at : at + PIECES_MAX]
            try:
                done = os.writev(self._fd, some)
            except OSError:
                done = 0
            self._size += done
            self.total += done
            if done < sum(map(len, some)):
                self._append(b"".join(some), header_bytes, done)

    def _append_within(self, records: bytes, header_bytes: int) -> None:
        at = 0
        while at < len(records):
            end = len(records)
            if self._total_max and self.total >= self._total_max:
                self._drop(records[at:], header_bytes)
                return
            if self._size_max and self._size + end - at > self._size_max:
                end = records.rfind(b"\n", at, at + max(self._size_max - self._size, 0)) + 1
                if end <= at and self._size:
                    if self._replace():
                        continue
                    self._drop(records[at:], header_bytes)
                    return
                if end <= at:
                    end = records.index(b"\n", at) + 1
            if self._total_max and self.total + end - at > self._total_max:
                end = records.index(b"\n", min(at + self._total_max - self.total, end) - 1) + 1
            self._append(records[at:end], header_bytes, 0)
            at = end

    def _append(self, records: bytes, header_bytes: int, done: int) -> None:
        """Append records of which the first `done` bytes are written."""
        before = done
        try:
            if self.torn:
                os.write(self._fd, b"\n")
                self.torn = False
            while done < len(records):
                done += os.write(self._fd, records[done:])
        except OSError:
            done = self._take_back(records, done)
            self._drop(records[done:], header_bytes)
        self._size += done - before
        self.total += done - before

    def _take_back(self, records: bytes, done: int) -> int:
        """Cut off a record that was written in part; the number of bytes that stay."""
        whole = records.rfind(b"\n", 0, done) + 1
        if whole < done:
            try:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (done - whole))
            except OSError:
                self.torn = True
        return whole

    def _drop(self, records: bytes, header_bytes: int) -> None:
        self.dropped_bytes += len(records) - records.count(b"\n") * (header_bytes + 1)

    def reopen(self) -> None:
        """Go on in the file that has the name now: it was renamed away, or it is still the same.

        A directory that is full or gone leaves the old file in use, so that nothing is lost. The descriptor keeps its
        number, by which other processes know it.
        """
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        old, new = os.fstat(self._fd), os.fstat(fd)
        self._take(fd)
        self._size = new.st_size
        self.torn = self.torn and (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino)

    def _take(self, fd: int) -> None:
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)

    def _replace(self) -> bool:
        """Put an empty file in the place of the full one; a reader of the old one keeps it.

        Returns:
            False when the file stays full: the disk has turned read-only.
        """
        fresh = self._path + ".tmp"
        fd = -1
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.rename(fresh, self._path)
            self._take(fd)
        except OSError:
            if fd >= 0:
                os.close(fd)
            try:
                os.ftruncate(self._fd, 0)
            except OSError:
                return False
        self.torn = False
        self._size = 0
        return True

    def sync(self) -> None:
        """Bring the file to the disk; a disk that fails now has nothing to add to what was counted."""
        with Suppress(OSError):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the descriptor, once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileLog:
    """The `k8s-file` driver: both streams of a container in one file."""

    __slots__ = ("_err", "_file", "_out", "_stamps", "deadline_ns", "path")

    def __init__(
        self, path: str, *, size_max: int = 0, total_max: int = 0, line_bytes_max: int = LINE_BYTES_MAX, fd: int = -1
    ) -> None:
        self.path = path
        self._file = RecordFile(path, size_max, total_max, fd)
        self._stamps = Stamps()
        self._out = Formatter(STDOUT, line_bytes_max)
        self._err = Formatter(STDERR, line_bytes_max)
        self.deadline_ns = 0  # monotonic time at which held bytes have to be written; 0 when nothing is held

    @property
    def dropped_bytes(self) -> int:
        """Bytes of the container, newlines not counted, that are in no log."""
        return self._file.dropped_bytes

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, stream: int, data: bytes) -> None:
        formatter = self._out if stream == STDOUT else self._err
        stamp = self._stamps.stamp(time.time_ns())
        pieces = formatter.feed(data, stamp)
        if pieces:
            self._file.write(pieces, formatter.header_bytes(stamp))
        if not self._out.held and not self._err.held:
            self.deadline_ns = 0
        elif not self.deadline_ns:
            self.deadline_ns = time.monotonic_ns() + PARTIAL_HOLD_NS

    def expire(self) -> None:
        """Write what is held."""
        self.deadline_ns = 0
        stamp = self._stamps.stamp(time.time_ns())
        for formatter in (self._out, self._err):
            records = formatter.expire(stamp)
            if records:
                self._file.write([records], formatter.header_bytes(stamp))

    def reopen(self) -> None:
        self._file.reopen()

    @property
    def resting(self) -> bool:
        """Nothing is held: `state` is all that another process needs to go on."""
        return not self._out.held and not self._err.held

    @property
    def state(self) -> LogState:
        """What the file itself does not tell."""
        return self._out.open, self._err.open, self._file.torn, self._file.total, self._file.dropped_bytes

    def resume(self, state: LogState) -> None:
        """Go on from the `state` of another log with the same descriptor."""
        self._out.open, self._err.open, self._file.torn, self._file.total, self._file.dropped_bytes = state

    def finish(self) -> None:
        """Close the last lines."""
        self.deadline_ns = 0
        stamp = self._stamps.stamp(time.time_ns())
        for formatter in (self._out, self._err):
            records = formatter.finish(stamp)
            if records:
                self._file.write([records], formatter.header_bytes(stamp))

    def close(self, *, sync: bool = False) -> None:
        """Close the file as it is, on disk if asked for."""
        if sync:
            self._file.sync()
        self._file.close()
