"""Trees of any depth, deleted and measured by descriptors: no recursion, no path longer than one name.

A container can make directories deeper than any path can name and any stack can follow. So a tree is walked from
directory to directory with openat(2), with a bounded number of them open, and never through a link. What is measured
may change meanwhile: a way back up is only taken when it leads to the directory that one came from.

This is also used in the unpacking process, which must start fast: no pathlib.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from crio_io.openat2 import NO_SYMLINKS, NO_XDEV, openat2

LEVELS_OPEN_MAX = 24
ROUNDS_MAX = 1_000_000
ATTEMPTS_MAX = 8
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
AnyPath = str | bytes | os.PathLike[str]
_GONE = (FileNotFoundError, NotADirectoryError)


def delete(path: AnyPath) -> None:
    """Delete a tree without following links out of it; absent is success, also when somebody else deletes it too.

    Raises:
        OSError: As the kernel said, such as EBUSY for a mount point in it, of which nothing is touched.
    """
    try:
        os.unlink(path)
        return
    except _GONE:
        return
    except IsADirectoryError:
        pass
    for _ in range(ATTEMPTS_MAX):
        try:
            _empty(path)
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # somebody else was at it, and left some for another attempt
                raise
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fsdecode(path))


def _empty(path: AnyPath) -> None:
    """Delete what is in a directory, a bounded number of levels in each round.

    What is deeper is moved up for the next round, into a directory that is new, so that each entry is read once.
    """
    top = os.open(path, _DIRECTORY)
    token = os.urandom(8).hex()
    here = "."
    try:
        for number in range(ROUNDS_MAX):
            aside = f".{token}.{number}"
            moved = _empty_levels(top, here, aside)
            if here != ".":
                _unless_gone(os.rmdir, here, dir_fd=top)
            if not moved:
                return
            here = aside
    finally:
        os.close(top)


def _empty_levels(top: int, name: str, aside: str) -> int:
    """Delete a directory's entries down to the deepest level that is opened; returns how many were moved aside."""
    moved = 0
    levels = [_Level(top, name)]
    try:
        while levels:
            level = levels[-1]
            item = next(level.entries, None)
            if item is None:
                levels.pop().close()
                if levels:
                    _unless_gone(os.rmdir, level.name, dir_fd=levels[-1].fd)
            elif not item.is_dir(follow_symlinks=False):
                _unless_gone(os.unlink, item.name, dir_fd=level.fd)
            elif len(levels) < LEVELS_OPEN_MAX:
                with suppress(*_GONE):
                    levels.append(_Level(level.fd, item.name))
            else:
                if not moved:
                    os.mkdir(aside, 0o700, dir_fd=top)
                _unless_gone(os.rename, item.name, f"{aside}/{moved}", src_dir_fd=level.fd, dst_dir_fd=top)
                moved += 1
    finally:
        for level in levels:
            level.close()
    return moved


class _Level:
    """An open directory and what is still to be read of it."""

    def __init__(self, parent: int, name: str) -> None:
        self.name = name
        try:
            self.fd = openat2(parent, name, _DIRECTORY, NO_XDEV | NO_SYMLINKS)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise OSError(errno.EBUSY, "something is mounted there", name) from None
        self.entries: Iterator[os.DirEntry[str]] = os.scandir(self.fd)

    def close(self) -> None:
        self.entries.close()  # type: ignore[attr-defined]  # scandir's iterator has it, its declared type has not
        os.close(self.fd)


def _unless_gone(function: Callable[..., None], *arguments: str, **descriptors: int) -> None:
    with suppress(*_GONE):
        function(*arguments, **descriptors)


def measure(path: AnyPath) -> tuple[int, int]:
    """Bytes and inodes that a tree takes on disk; a file with several names counts once.

    Raises:
        OSError: As the kernel said; FileNotFoundError when there is no such directory.
    """
    top = os.open(path, _DIRECTORY)
    here = os.dup(top)
    count = _Count()
    way = [count.directory("", here)]
    try:
        while way:
            if way[-1].waiting:
                name = way[-1].waiting.pop()
                try:
                    inner = os.open(name, _DIRECTORY, dir_fd=here)
                except _GONE:
                    continue
                os.close(here)
                here = inner
                way.append(count.directory(name, here))
            else:
                way.pop()
                here = _climb(top, here, way)
    finally:
        os.close(here)
        os.close(top)
    return count.size_bytes, count.inodes


class _Step:
    """A directory on the way from the top: its name and identity, and the names in it that wait to be visited."""

    __slots__ = ("identity", "name", "waiting")

    def __init__(self, name: str, identity: tuple[int, int], waiting: list[str]) -> None:
        self.name = name
        self.identity = identity
        self.waiting = waiting


class _Count:
    def __init__(self) -> None:
        self.size_bytes = 0
        self.inodes = 0
        self._seen: set[int] = set()

    def directory(self, name: str, fd: int) -> _Step:
        """Count a directory and what is in it but directories."""
        info = os.fstat(fd)
        self.inodes += 1
        self.size_bytes += info.st_blocks * 512
        waiting = []
        with os.scandir(fd) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    waiting.append(item.name)
                else:
                    with suppress(*_GONE):
                        self._file(item.stat(follow_symlinks=False))
        return _Step(name, _identity(info), waiting)

    def _file(self, info: os.stat_result) -> None:
        if info.st_nlink > 1:
            if info.st_ino in self._seen:
                return
            self._seen.add(info.st_ino)
        self.inodes += 1
        self.size_bytes += info.st_blocks * 512


def _climb(top: int, here: int, way: list[_Step]) -> int:
    """Go to the directory that the way now ends in; where it has moved meanwhile, to the last that can be found again.

    Returns its descriptor; `here` is closed.
    """
    if not way:
        return here
    parent = os.open("..", _DIRECTORY, dir_fd=here)
    os.close(here)
    if _identity(os.fstat(parent)) == way[-1].identity:
        return parent
    os.close(parent)
    here = os.dup(top)
    for index, step in enumerate(way[1:], start=1):
        try:
            inner = os.open(step.name, _DIRECTORY, dir_fd=here)
        except _GONE:
            inner = -1
        if inner < 0 or _identity(os.fstat(inner)) != step.identity:
            if inner >= 0:
                os.close(inner)
            del way[index:]
            break
        os.close(here)
        here = inner
    return here


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino
