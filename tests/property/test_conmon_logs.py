"""A log on a disk that fails in every way: whole records, an exact count of what is lost, no trace in a new file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from conmon import logs
from conmon.logs import RecordFile

HEADER = b"2026-11-22T10:00:00.000000001+00:00 stdout F "
LOG = "/log"


class Disk:
    """Files in memory behind the calls of `os` that a log makes; it can be full, and it can be read-only."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.open_files: dict[int, bytearray] = {}
        self.room = 1 << 40
        self.writable = True
        self.O_WRONLY, self.O_APPEND, self.O_CREAT = os.O_WRONLY, os.O_APPEND, os.O_CREAT
        self.O_TRUNC, self.O_CLOEXEC = os.O_TRUNC, os.O_CLOEXEC

    def open(self, path: str, flags: int, mode: int) -> int:
        if not self.writable:
            raise OSError(errno.EROFS, "read-only")
        file = self.files.setdefault(path, bytearray())
        if flags & os.O_TRUNC:
            file.clear()
        fd = len(self.open_files) + 100
        self.open_files[fd] = file
        return fd

    def close(self, fd: int) -> None:
        self.open_files[fd] = bytearray()

    def dup2(self, fd: int, target: int, *, inheritable: bool) -> None:
        assert not inheritable
        self.open_files[target] = self.open_files[fd]

    def write(self, fd: int, data: bytes) -> int:
        if not self.writable:
            raise OSError(errno.EROFS, "read-only")
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        taken = data[: self.room]
        self.open_files[fd] += taken
        self.room -= len(taken)
        return len(taken)

    def writev(self, fd: int, pieces: list[bytes]) -> int:
        return self.write(fd, b"".join(pieces))

    def ftruncate(self, fd: int, size: int) -> None:
        if not self.writable:
            raise OSError(errno.EROFS, "read-only")
        del self.open_files[fd][size:]

    def rename(self, old: str, new: str) -> None:
        if not self.writable:
            raise OSError(errno.EROFS, "read-only")
        self.files[new] = self.files.pop(old)

    def fstat(self, fd: int) -> os.stat_result:
        file = self.open_files[fd]
        return os.stat_result((0o600, id(file), 1, 1, 0, 0, len(file), 0, 0, 0))


@contextmanager
def disk_of_logs() -> Iterator[Disk]:
    disk = Disk()
    with mock.patch.object(logs, "os", disk):
        yield disk


def record(number: int, size: int) -> bytes:
    return HEADER + (b"%d " % number + b"x" * size) + b"\n"


class Half(Disk):
    """Takes a part of the first write, then fails until it is mended, also to take that back: a device in error."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.room = part
        self.mended = False

    def write(self, fd: int, data: bytes) -> int:
        if not self.mended and not self.room:
            raise OSError(errno.EIO, "broken")
        return super().write(fd, data)

    def ftruncate(self, fd: int, size: int) -> None:
        raise OSError(errno.EIO, "broken")


@given(st.integers(1, len(HEADER) + 20), st.booleans())
def test_torn_record_that_cannot_be_taken_back_leaves_no_trace_in_the_next_file(part: int, renamed: bool) -> None:
    """R38: the line after it begins a line of its own, and a file that is new begins with a record."""
    disk = Half(part)
    with mock.patch.object(logs, "os", disk):
        file = RecordFile(LOG)
        file.write([record(1, 30)], len(HEADER))
        assert file.dropped_bytes == len(b"1 ") + 30
        torn = bytes(disk.files[LOG])
        if renamed:
            disk.files["/log.1"] = disk.files.pop(LOG)
        disk.mended, disk.room = True, 1 << 40
        file.reopen()
        file.write([record(2, 3)], len(HEADER))
        file.write([record(3, 3)], len(HEADER))
    after = record(2, 3) + record(3, 3)
    if renamed:
        assert bytes(disk.files[LOG]) == after
    else:
        assert bytes(disk.files[LOG]) == torn + b"\n" + after


ACTIONS = st.one_of(
    st.tuples(st.just("write"), st.lists(st.integers(0, 60), min_size=1, max_size=4)),
    st.tuples(st.just("room"), st.integers(0, 400)),
    st.tuples(st.just("writable"), st.booleans()),
    st.tuples(st.just("rotate"), st.booleans()),
)


@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=30), st.sampled_from((0, 150, 1000)))
def test_full_and_read_only_disks_cost_whole_records_that_are_counted(
    actions: list[tuple[str, object]], size_max: int
) -> None:
    """R40: what is in the files and what is counted are together what was written; every line is a record."""
    numbers = iter(range(1, 10_000))
    written = 0
    with disk_of_logs() as disk:
        file = RecordFile(LOG, size_max)
        kept: list[bytes] = []
        for kind, value in actions:
            if kind == "write":
                assert isinstance(value, list)
                records = [record(next(numbers), size) for size in value]
                written += sum(len(one) - len(HEADER) - 1 for one in records)
                file.write(records, len(HEADER))
            elif kind == "room":
                assert isinstance(value, int)
                disk.room = value
            elif kind == "writable":
                disk.writable = bool(value)
            else:
                if value and disk.writable and LOG in disk.files:
                    kept.append(bytes(disk.files.pop(LOG)))
                file.reopen()
    found = [bytes(content) for content in disk.files.values()] + kept
    lines = [line for content in found for line in content.splitlines(keepends=True)]
    assert all(line.startswith(HEADER) and line.endswith(b"\n") for line in lines)
    in_files = sum(len(line) - len(HEADER) - 1 for line in lines)
    if not size_max:
        assert in_files + file.dropped_bytes == written
    else:
        assert in_files + file.dropped_bytes <= written
        assert all(
            len(content) <= max(size_max, max(map(len, content.splitlines(keepends=True)), default=0))
            for content in found
        )


def test_file_that_can_neither_be_replaced_nor_emptied_does_not_end_the_monitor() -> None:
    """R40: the disk turned read-only when the file was full; the container goes on."""
    with disk_of_logs() as disk:
        file = RecordFile(LOG, 100)
        file.write([record(1, 40)], len(HEADER))
        disk.writable = False
        file.write([record(2, 40)], len(HEADER))
        assert file.dropped_bytes == len(b"2 ") + 40
        disk.writable = True
        file.write([record(3, 40)], len(HEADER))
    assert bytes(disk.files[LOG]).endswith(record(3, 40))
