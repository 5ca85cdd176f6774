"""One SQLite file of a journal: how it is opened, written anew, put in place, and moved aside when it is damaged."""

import os
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from crio_core.values import dataclass
from crio_io.storage.files import sync_directory

SCHEMA_VERSION = 1
QUARANTINE_MAX = 1000
"""Rows that are kept in quarantine, the newest."""
ASIDE_MAX = 32
"""Damaged files that are kept; the last name is then used again."""
BUSY_S = 2.0
"""How long a file that somebody else has open is waited for."""
DISK, MEMORY = 0, 1
"""The two files of a journal, by their place in every pair."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (kind TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (number INTEGER PRIMARY KEY, kind TEXT, id TEXT, data BLOB, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL,
    commits INTEGER NOT NULL, rows INTEGER NOT NULL, total INTEGER NOT NULL, checksum INTEGER NOT NULL);
"""
# Refusals that say nothing about the content of the file: moving it aside would lose it for want of disk space.
_NOT_DAMAGE = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_AUTH,
    )
)

Key = tuple[str, str]
"""Kind and id of a row."""


@dataclass(slots=True)
class Head:
    """What a commit says about the whole: how many there were, and what all rows add up to."""

    commits: int = 0
    rows: int = 0
    total: int = 0

    def checksum(self) -> int:
        """What tells that these numbers are those that were stored."""
        return zlib.crc32(f"{SCHEMA_VERSION} {self.commits} {self.rows} {self.total}".encode())


def connect(path: Path, *, durable: bool = True) -> sqlite3.Connection:
    """Open a file, made with mode 0600, for us alone: another server is refused, and there is no shared memory file.

    One that is not `durable` is never flushed, not even now and then: it is not meant to outlive the machine's run.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        synchronous = "NORMAL" if durable else "OFF"
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", f"synchronous={synchronous}", "cache_size=-512"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def fill(
    path: Path,
    rows: Mapping[Key, tuple[bytes, int]],
    quarantined: Mapping[Key, tuple[bytes, str]],
    head: Head,
) -> None:
    """Write a file anew; the one that is there stays until the new one is whole."""
    new = path.with_name(path.name + "-new")
    _remove_files(new)
    with closing(_created(new)) as connection:
        connection.executescript(_SCHEMA)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO record VALUES (?, ?, ?, ?)", ((*key, *row) for key, row in rows.items()))
        bad = list(quarantined.items())[-QUARANTINE_MAX:]
        connection.executemany(
            "INSERT INTO quarantine (kind, id, data, reason) VALUES (?, ?, ?, ?)", ((*key, *row) for key, row in bad)
        )
        write_head(connection, head)
        connection.execute("COMMIT")
    _put_in_place(new, path)


def clone(source: sqlite3.Connection, path: Path, *, durable: bool) -> sqlite3.Connection:
    """Write a file anew from another one, and open it."""
    new = path.with_name(path.name + "-new")
    _remove_files(new)
    with closing(_created(new)) as target:
        source.backup(target)
    _put_in_place(new, path)
    return connect(path, durable=durable)


def _created(path: Path) -> sqlite3.Connection:
    """A new file, whole when it is closed: without a write-ahead log."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)


def _put_in_place(new: Path, path: Path) -> None:
    _remove_files(path)
    new.replace(path)
    sync_directory(path.parent)


def sync_log(path: Path) -> None:
    """Make what was committed to a file durable: its write-ahead log is synced.

    The log's own file is opened, never the database: to close that would drop SQLite's lock on it. Where there is no
    log, nothing was written since the file was put in place.

    Raises:
        OSError: Of open(2) or fsync(2).
    """
    with suppress(FileNotFoundError):
        fd = os.open(path.with_name(path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_head(connection: sqlite3.Connection, head: Head) -> None:
    """Say what the whole is after a commit; a part of its transaction."""
    values = (SCHEMA_VERSION, head.commits, head.rows, head.total, head.checksum())
    connection.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?, ?)", values)


def move_aside(path: Path) -> Path:
    """Keep a damaged file, with its write-ahead log, under the first free name."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in range(1, ASIDE_MAX + 1))
    aside = next((name for name in names if not name.exists()), path.with_name(f"{path.name}.damaged-{ASIDE_MAX}"))
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    return aside


def _remove_files(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def error_code(error: sqlite3.Error) -> int:
    """The primary result code of SQLite."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the content of the file is bad."""
    return error_code(error) not in _NOT_DAMAGE
