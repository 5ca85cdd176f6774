"""Keeps the node's records: two SQLite files with the same content.

A server keeps one on disk and one in memory that outlives it (`/run`), which is lost at a reboot, and so is every
container. What destroys or fills one file system leaves the other.

- A write is acknowledged when the file in memory has it: a killed server loses nothing. The disk is owed it, and one
  thread writes what is owed a moment later, many writes in one transaction. So nobody waits for a disk, or for a turn
  of another thread. A power cut may lose the last writes, and containers do not outlive that anyway; what does, such
  as the addresses that plugins give away, asks for a `sync`.
- Without a file in memory that takes it, a write waits for that thread, and is acknowledged when the disk has it.
- WAL, and on disk `synchronous=NORMAL`. Idle, nothing runs.
- Damage never stops the opening (R9, R10). Every row has a checksum over its kind, id and data, and every commit
  stores a number, the count of rows and the sum of their checksums. So a copy from which anything is missing is known,
  be it a flipped bit, a lost page or a lost file; the other copy then speaks, and the bad file is moved aside and made
  anew. Only when both are damaged or lost are rows picked one by one, and joined by the copies that lie beside what
  they tell of (`record_files.py`). What is damaged there too goes into quarantine, and stays there, whatever is opened
  how often, until its row is written anew or deleted (`crio check --repair`).
"""

import logging
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import field
from enum import Enum, auto
from pathlib import Path

import anyio

from crio_core.errors import Code, LocalError, OperationError
from crio_core.records import LOST
from crio_core.values import dataclass
from crio_io import mounts
from crio_io.record_files import DURABLE, RecordFiles, checksum
from crio_io.storage.files import sync_directory

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
BEHIND_MAX = 4096
"""Rows that a file may be behind with. Where its disk is full, it is then made anew when there is room; where the disk
hangs, writes wait for it from then on."""
WAITING_MAX = 4096
"""Writes that may wait for the writer; more make their callers wait."""
GROUP_MAX = 512
"""Writes that share one transaction."""
DATA_MAX_BYTES = 16 * 1024 * 1024
NAME_MAX_BYTES = 1024
QUARANTINE_MAX = 1000
"""Rows that are kept in quarantine, the newest."""
ASIDE_MAX = 32
"""Damaged files that are kept; the last name is then used again."""
BUSY_S = 2.0
LINGER_S = 0.01
"""How long the disk may lag behind, so that writes of that time share its transaction."""
QUICK_BYTES_MAX = 256 * 1024
"""Of one write that is committed in memory at once; a larger one would hold up the event loop."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Store a row, in place of any with its kind and id."""

    kind: str
    id: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove a row, also one in quarantine; absent is success."""

    kind: str
    id: str


Change = Put | Delete
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One stored record."""

    kind: str
    id: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What an opening found: good rows, what is in quarantine (kind, id, reason), and repairs, in sentences.

    `LOST` is the kind and id of what is in quarantine when nobody knows how many rows are missing.
    """

    rows: tuple[Row, ...]
    quarantined: tuple[tuple[str, str, str], ...]
    repairs: tuple[str, ...]


class Journal:
    """An open journal. Make one with `open`; end it with `close`."""

    def __init__(self, store: "_Store") -> None:
        self._store = store
        self._waiting: queue.SimpleQueue[_Ticket | _Word] = queue.SimpleQueue()
        self._tickets = 0
        """Writes on their way through the thread: while there are any, it alone touches the files."""
        self._told = False
        """The thread knows already that the disk is owed something."""
        self._room = anyio.Semaphore(WAITING_MAX, fast_acquire=True)
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="crio-journal", daemon=True)
        self._thread.start()

    @classmethod
    async def open(
        cls, path: Path, copy: Path | None = None, files: RecordFiles | None = None, *, keep_files: bool = True
    ) -> tuple["Journal", LoadResult]:
        """Open or make a journal and read all of it.

        Args:
            path: The first file. Both have mode 0600.
            copy: The second, which may be absent after a reboot; beside the first when it is not given.
            files: Where a copy of each record is kept, and looked for when both are damaged or lost.
            keep_files: Whether these copies may be changed; otherwise they are only read.

        Raises:
            OperationError: JOURNAL_UNAVAILABLE (in use, no permission, disk full) or JOURNAL_TOO_NEW; never for damage.
        """
        copy = copy or path.with_name(path.name + "-copy")
        store, result = await mounts.in_thread(f"open journal {path}", _open, (path, copy), files, keep_files)
        return cls(store), result

    async def write(self, changes: Sequence[Change]) -> None:
        """Make changes, all of them or none; returns when they are committed.

        A caller that is cancelled while it waits for a place among `WAITING_MAX` has changed nothing; afterwards it
        waits on until the write is made.

        Raises:
            OperationError: JOURNAL_FULL or JOURNAL_FAILED; nothing was changed.
        """
        for change in changes:
            _check(change)
        if self._closed:
            raise LocalError("the journal is closed")
        size_bytes = sum(len(change.data) for change in changes if isinstance(change, Put))
        if not self._tickets and size_bytes <= QUICK_BYTES_MAX and self._store.commit_in_memory(changes):
            if not self._told:
                self._told = True
                self._waiting.put(_Word.OWED)
            return
        self._tickets += 1
        try:
            await self._write_by_thread(tuple(changes))
        finally:
            self._tickets -= 1

    async def _write_by_thread(self, changes: tuple[Change, ...]) -> None:
        async with self._room:
            if self._closed:
                raise LocalError("the journal is closed")
            ticket = _Ticket(changes)
            self._waiting.put(ticket)
            await self._done(ticket)
        if ticket.failure is not None:
            raise ticket.failure

    async def _done(self, ticket: "_Ticket") -> None:
        try:
            # The files are the thread's until it is done with them: leaving sooner would let another write in.
            with anyio.CancelScope(shield=True):
                await anyio.wait_readable(ticket.signal)
        finally:
            ticket.leave()

    @asynccontextmanager
    async def syncing(self) -> AsyncIterator[None]:
        """Until the block ends, make what was written so far outlive a power cut, and with it what was changed on its
        file system before.

        Whoever asks while a sync is under way shares the next one. A file on disk that was given up is made anew first.
        Where the disk does not take what it is owed, or cannot be synced, that is logged, and nothing is promised: a
        node goes on with the file in memory.
        """
        if self._closed:
            raise LocalError("the journal is closed")
        # To be made anew from the file in memory, to which nobody may write meanwhile.
        alone = not self._store.has_disk
        self._tickets += alone
        ticket = _Ticket((), durable=True, repairs=alone)
        self._waiting.put(ticket)
        try:
            yield
        finally:
            try:
                await self._done(ticket)
            finally:
                self._tickets -= alone

    async def sync(self) -> None:
        """The same, with nothing to do meanwhile."""
        async with self.syncing():
            pass

    async def close(self) -> None:
        """Commit what is waiting and close the files; done twice is done once."""
        if not self._closed:
            self._closed = True
            self._waiting.put(_Word.CLOSE)
        await mounts.in_thread("close journal", self._thread.join)

    def _serve(self) -> None:
        """The thread: wait for something to do, take along all that waits behind it, commit, tell everybody."""
        more = True
        while more:
            tickets, more = self._turn()
            changes = [change for ticket in tickets for change in ticket.changes]
            failure = self._store.commit(changes)
            if not changes:
                self._store.catch_up()
            if any(ticket.durable for ticket in tickets):
                self._store.sync(repair=any(ticket.repairs for ticket in tickets))
            for ticket in tickets:
                ticket.finish(failure)
        self._store.close()

    def _turn(self) -> tuple[list["_Ticket"], bool]:
        """What to do next, and whether anything comes after it. What is owed lingers until somebody waits."""
        tickets: list[_Ticket] = []
        due_s: float | None = None
        more = True
        with suppress(queue.Empty):
            while more and len(tickets) < GROUP_MAX:
                wait_s = 0.0 if tickets else None if due_s is None else max(due_s - time.monotonic(), 0.0)
                word = self._waiting.get(timeout=wait_s) if wait_s != 0.0 else self._waiting.get_nowait()
                if isinstance(word, _Ticket):
                    tickets.append(word)
                elif word is _Word.OWED:
                    due_s = time.monotonic() + LINGER_S
                else:
                    more = False
        if due_s is not None:
            self._told = False  # Before looking: what is owed from now on is told again.
        return tickets, more


class _Word(Enum):
    """What the thread is told besides writes."""

    OWED = auto()
    CLOSE = auto()


class _Ticket:
    """One write or sync on its way through the thread, and the eventfd that its caller waits for."""

    def __init__(self, changes: tuple[Change, ...], *, durable: bool = False, repairs: bool = False) -> None:
        self.changes = changes
        self.durable = durable
        self.repairs = repairs
        self.failure: OperationError | None = None
        self.signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def finish(self, failure: OperationError | None) -> None:
        """Called by the thread."""
        self.failure = failure
        os.eventfd_write(self.signal, 1)

    def leave(self) -> None:
        """Called by the caller, once it has its signal."""
        os.close(self.signal)


@dataclass(slots=True)
class _Head:
    """What a commit says about the whole: how many there were, and what all rows add up to."""

    commits: int = 0
    rows: int = 0
    total: int = 0

    def checksum(self) -> int:
        return zlib.crc32(f"{SCHEMA_VERSION} {self.commits} {self.rows} {self.total}".encode())


DISK, MEMORY = 0, 1


class _Store:
    """The two files.

    Of the one in memory, and of what is known of the rows, one thread at a time may make use: the event loop's, or the
    journal's own while a write is on its way through it. The one on disk is the journal's thread's. What the disk is
    owed passes from one to the other, under a lock that nobody holds for longer than a few lines.

    The checksum of every row is kept in memory, so that the head of a commit never rests on what a damaged file says.
    """

    def __init__(
        self,
        paths: tuple[Path, Path],
        commits: int,
        checksums: dict[_Key, int],
        *,
        aside: frozenset[_Key],
        behind: Collection[Path],
        files: RecordFiles | None,
    ) -> None:
        self._paths = paths
        self._commits = commits
        self._checksums = checksums
        self._aside = aside
        """What was in quarantine when the files were opened."""
        self._files = files
        self._total = sum(checksums.values())
        self._copies = [
            None if path in behind else _connect(path, durable=index == DISK) for index, path in enumerate(paths)
        ]
        self._damaged = [False, False]
        self._behind: tuple[dict[_Key, Change], ...] = ({}, {})
        """What each file has not taken yet, and takes with the next commit: for want of space, or of a turn."""
        self._refusal: Exception | None = None
        """Why the disk has not taken what it was owed when it was last asked to. The journal's thread's."""
        self._lock = threading.Lock()

    @property
    def has_disk(self) -> bool:
        """Whether there is a file on disk; one that was given up is made anew by the next write or sync."""
        return self._copies[DISK] is not None

    def commit_in_memory(self, changes: Sequence[Change]) -> bool:
        """Commit to the file in memory, and owe it to the disk; False when it cannot be had: nothing has changed.

        Nor can it be had while the disk is owed too much: a disk that hangs says nothing.
        """
        memory = self._copies[MEMORY]
        if memory is None or not self.has_disk or self._behind[MEMORY] or len(self._behind[DISK]) >= BEHIND_MAX:
            return False
        if not changes:
            return True
        final, after, head = self._plan(changes)
        try:
            _apply(memory, final, after, head, self._aside & final.keys())
        except sqlite3.Error:
            return False  # Why is looked into by the thread, which meets it again.
        with self._lock:
            self._adopt(final, after, head)
            self._behind[DISK].update(final)
        self._copy_beside(final, MEMORY)
        return True

    def catch_up(self) -> None:
        """Commit to the disk what it is owed; what it cannot take now it takes later."""
        disk = self._copies[DISK]
        with self._lock:
            owed = dict(self._behind[DISK])
            head = _Head(self._commits, len(self._checksums), self._total)
            checksums = {key: self._checksums[key] for key, change in owed.items() if isinstance(change, Put)}
        if disk is None:
            return
        self._refusal = None
        if not owed:
            return
        try:
            _apply(disk, owed, checksums, head, self._aside & owed.keys())
        except sqlite3.Error as error:
            self._refusal = error
            if _is_damage(error) or len(owed) > BEHIND_MAX:
                self._give_up(DISK, error)  # Made anew by the next write, which comes through the thread, or sync.
            return
        self._copy_beside(owed, DISK)
        with self._lock:
            behind = self._behind[DISK]
            for key, change in owed.items():
                if behind.get(key) is change:
                    del behind[key]

    def commit(self, changes: Sequence[Change]) -> OperationError | None:
        """Commit to both; a failure means that neither has the changes. One copy is enough for success."""
        if not changes:
            return None
        try:
            return self._commit(changes)
        except sqlite3.Error as error:
            if _error_code(error) == sqlite3.SQLITE_FULL:
                return OperationError(Code.RESOURCE_EXHAUSTED, "JOURNAL_FULL", f"{self._paths[0]}: {error}")
            return OperationError(Code.INTERNAL, "JOURNAL_FAILED", f"{self._paths[0]}: {error}")

    def _commit(self, changes: Sequence[Change]) -> OperationError | None:
        self._repair()
        final, after, head = self._plan(changes)
        refusals: dict[int, sqlite3.Error] = {}
        for index, copy in enumerate(self._copies):
            if copy is not None:
                due = self._behind[index] | final
                try:
                    sums = self._checksums | after if len(due) > len(final) else after
                    _apply(copy, due, sums, head, self._aside & due.keys())
                except sqlite3.Error as error:
                    refusals[index] = error
        if self.has_disk:
            self._refusal = refusals.get(DISK)
        if len(refusals) == sum(copy is not None for copy in self._copies):
            raise next(iter(refusals.values()))
        self._adopt(final, after, head)
        for index, owed in enumerate(self._behind):
            if index not in refusals:
                owed.clear()
            elif _is_damage(refusals[index]) or len(owed) + len(final) > BEHIND_MAX:
                self._give_up(index, refusals[index])  # Made anew from the other before the next write.
            else:
                owed.update(final)
        for index in (DISK, MEMORY):
            self._copy_beside(final, index)
        return None

    def _copy_beside(self, changes: Mapping[_Key, Change], index: int) -> None:
        """Keep copies of what was committed beside what it tells of, of that which lies on disk or in memory."""
        if self._files is None:
            return
        for (kind, name), change in changes.items():
            if (kind in DURABLE) == (index == DISK):
                if isinstance(change, Put):
                    self._files.put(kind, name, change.data)
                else:
                    self._files.remove(kind, name)

    def _plan(self, changes: Sequence[Change]) -> tuple[dict[_Key, Change], dict[_Key, int], "_Head"]:
        """The last change of each row, the checksums of what is put, and what the head says once that is committed."""
        final = {(change.kind, change.id): change for change in changes}
        after = {key: checksum(*key, change.data) for key, change in final.items() if isinstance(change, Put)}
        before = [self._checksums[key] for key in final if key in self._checksums]
        total = self._total - sum(before) + sum(after.values())
        return final, after, _Head(self._commits + 1, len(self._checksums) - len(before) + len(after), total)

    def _adopt(self, final: Mapping[_Key, Change], after: Mapping[_Key, int], head: "_Head") -> None:
        self._commits, self._total = head.commits, head.total
        for key in final:
            self._checksums.pop(key, None)
        self._checksums.update(after)

    def sync(self, *, repair: bool) -> None:
        """Sync the file on disk, and log what keeps it from having all, if anything does.

        The log's own file is opened, never the database: to close that would drop SQLite's lock on it.

        Args:
            repair: Make a file that was given up anew before. Nobody else may make use of the one in memory meanwhile.
        """
        if repair:
            self._repair()
        if self._refusal is None:
            try:
                _sync(self._paths[DISK].with_name(self._paths[DISK].name + "-wal"))
            except OSError as error:
                self._refusal = error
                if self._copies[MEMORY] is not None and not self._behind[MEMORY]:
                    # The kernel may have dropped what it could not write, and the next fsync would know nothing of it.
                    self._give_up(DISK, error)
        if self._refusal is not None:
            log.warning("what was written last may not outlive a power cut: %s: %s", self._paths[DISK], self._refusal)

    def close(self) -> None:
        self._repair()
        for copy in self._copies:
            if copy is not None:
                copy.close()

    def _give_up(self, index: int, error: sqlite3.Error | OSError) -> None:
        copy = self._copies[index]
        with self._lock:
            self._copies[index] = None
            self._damaged[index] = isinstance(error, sqlite3.Error) and _is_damage(error)
            self._behind[index].clear()
        if copy is not None:
            with suppress(sqlite3.Error):
                copy.close()

    def _repair(self) -> None:
        """Make a copy that was given up anew from the other; when even that fails, go on with one."""
        for index, copy in enumerate(self._copies):
            other = self._copies[1 - index]
            if copy is None and other is not None:
                refusal: Exception | None = None
                try:
                    if self._damaged[index]:
                        _move_aside(self._paths[index])
                        self._damaged[index] = False
                    self._copies[index] = _clone(other, self._paths[index], durable=index == DISK)
                except (sqlite3.Error, OSError) as error:
                    refusal = error
                if index == DISK:
                    self._refusal = refusal


def _apply(
    copy: sqlite3.Connection,
    changes: Mapping[_Key, Change],
    checksums: Mapping[_Key, int],
    head: _Head,
    cleared: Collection[_Key],
) -> None:
    """One transaction: the last change of each row, and the head; `cleared` is in quarantine no longer."""
    copy.execute("BEGIN IMMEDIATE")
    try:
        for key, change in changes.items():
            if isinstance(change, Put):
                row = (*key, change.data, checksums[key])
                copy.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", row)
            else:
                copy.execute("DELETE FROM record WHERE kind = ? AND id = ?", key)
        copy.executemany("DELETE FROM quarantine WHERE kind = ? AND id = ?", cleared)
        _write_head(copy, head)
        copy.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            copy.execute("ROLLBACK")
        raise


@dataclass(slots=True)
class _Copy:
    """What could be read of one file. `whole` says that nothing is missing and nothing is damaged."""

    path: Path
    present: bool
    head: _Head | None = None
    rows: dict[_Key, tuple[bytes, int]] = field(default_factory=dict)
    damaged: dict[_Key, tuple[bytes, str]] = field(default_factory=dict)
    aside: dict[_Key, tuple[bytes, str]] = field(default_factory=dict)
    """What an earlier opening has put into quarantine."""
    trouble: str = ""

    @property
    def whole(self) -> bool:
        head = self.head
        if head is None or self.damaged or self.trouble:
            return False
        return head.rows == len(self.rows) and head.total == sum(checksum for _, checksum in self.rows.values())

    @property
    def counted(self) -> bool:
        """Whether no row is missing, though some may be damaged."""
        found = len(self.rows) + len(self.damaged)
        return self.head is not None and not self.trouble and self.head.rows == found

    @property
    def rank(self) -> tuple[bool, int, int]:
        return self.whole, self.head.commits if self.head is not None else -1, len(self.rows)


def _open(paths: tuple[Path, Path], files: RecordFiles | None, keep_files: bool) -> tuple[_Store, LoadResult]:
    try:
        for path in paths:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        copies = tuple(_read(each) for each in paths)
        best, other = sorted(copies, key=lambda copy: copy.rank, reverse=True)
        rows, quarantined, rebuilt = best.rows, best.aside, ""
        if not best.whole:
            rows, quarantined, rebuilt = _salvaged(best, other, files)
        head = best.head if best.whole and best.head is not None else _head_of(rows, copies)
        repairs, behind = _make_whole(copies, best, rows, quarantined, head)
        if not keep_files:
            files = None
        if files is not None:
            files.complete({key: data for key, (data, _) in rows.items()})
        result = LoadResult(
            rows=tuple(Row(kind=kind, id=name, data=data) for (kind, name), (data, _) in rows.items()),
            quarantined=tuple((kind, name, reason) for (kind, name), (_, reason) in quarantined.items()),
            repairs=(*repairs, rebuilt) if rebuilt else repairs,
        )
        checksums = {key: value for key, (_, value) in rows.items()}
        aside = frozenset(quarantined)
        return _Store(paths, head.commits, checksums, aside=aside, behind=behind, files=files), result
    except (sqlite3.Error, OSError) as error:
        raise OperationError(Code.UNAVAILABLE, "JOURNAL_UNAVAILABLE", f"{paths[0]}: {error}") from error


def _salvaged(
    best: _Copy, other: _Copy, files: RecordFiles | None
) -> tuple[dict[_Key, tuple[bytes, int]], dict[_Key, tuple[bytes, str]], str]:
    """Rows, quarantine, and what was rebuilt, when both files are damaged or there is none (yet).

    All that is good anywhere. A row that was deleted just before may come back this way; a record of something that is
    not there is found out by looking. A copy counts more than a row, which may be of a file that lost its newest pages.
    """
    good, bad = files.read() if files is not None else ({}, {})
    rows = other.rows | best.rows | {key: (data, checksum(*key, data)) for key, data in good.items()}
    put_away = bad | other.damaged | best.damaged | other.aside | best.aside
    quarantined = {key: reason for key, reason in put_away.items() if key not in rows}
    used = any(copy.present for copy in (best, other)) or (files is not None and files.traces())
    if used and not best.counted:
        # Whatever is in no record may have been in a row that is gone.
        reason = f"the journal was lost or damaged; {len(rows)} records are known, others may have been lost with it"
        quarantined[LOST] = (b"", reason)
    rebuilt = good.keys() - best.rows.keys() - other.rows.keys()
    return rows, quarantined, f"{len(rebuilt)} records were rebuilt from their copies" if rebuilt else ""


def _make_whole(
    copies: Sequence[_Copy],
    best: _Copy,
    rows: Mapping[_Key, tuple[bytes, int]],
    quarantined: Mapping[_Key, tuple[bytes, str]],
    head: _Head,
) -> tuple[tuple[str, ...], frozenset[Path]]:
    """Bring both files to the same good content; says what was done to which, and which could not be for want of space.

    A reboot empties the place of the second: that it is absent then is no damage. Nor is it that the first is behind
    the second, as it is whenever a server was killed.
    """
    repairs: list[str] = []
    behind: set[Path] = set()
    was_whole = best.whole
    for copy in copies:
        if copy.present and not copy.whole:
            aside = _move_aside(copy.path)
            reason = copy.trouble or (f"{len(copy.damaged)} damaged rows" if copy.damaged else "rows are missing")
            repairs.append(f"{copy.path} was damaged ({reason}) and is kept as {aside.name}")
        elif was_whole and not copy.present and copy is copies[0]:
            repairs.append(f"{copy.path} was missing and was made anew")
        elif was_whole and copy.present and copy.head != head and copy is not copies[DISK]:
            repairs.append(f"{copy.path} was behind and was brought up to date")
    for copy in copies:
        if not copy.whole or copy.head != head:
            try:
                _fill(copy.path, rows, quarantined, head)
            except sqlite3.Error as error:
                if not best.whole or _is_damage(error):
                    raise
                behind.add(copy.path)
                repairs.append(f"{copy.path} is behind for now: {error}")
    return tuple(repairs), frozenset(behind)


def _head_of(rows: Mapping[_Key, tuple[bytes, int]], copies: Sequence[_Copy]) -> _Head:
    commits = max(copy.head.commits if copy.head is not None else 0 for copy in copies)
    return _Head(commits + 1, len(rows), sum(checksum for _, checksum in rows.values()))


def _read(path: Path) -> _Copy:
    """Read a file row by row, for as long as it can be read."""
    copy = _Copy(path=path, present=path.exists() or path.with_name(path.name + "-wal").exists())
    if not copy.present:
        return copy
    if path.is_dir():
        copy.trouble = "it is a directory"
        return copy
    try:
        with closing(_connect(path)) as connection:
            connection.text_factory = bytes
            _read_head(connection, copy)
            for row in connection.execute("SELECT kind, id, data, checksum FROM record"):
                _take(copy, *row)
            for *key, data, reason in connection.execute("SELECT kind, id, data, reason FROM quarantine"):
                copy.aside[_text(key[0]), _text(key[1])] = (data, _text(reason))
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
        copy.trouble = str(error)
    return copy


def _read_head(connection: sqlite3.Connection, copy: _Copy) -> None:
    found = connection.execute("SELECT version, commits, rows, total, checksum FROM head").fetchone()
    if found is None:
        copy.trouble = "no head"
        return
    version, commits, rows, total, checksum = found
    head = _Head(commits, rows, total)
    if version != SCHEMA_VERSION and checksum == zlib.crc32(f"{version} {commits} {rows} {total}".encode()):
        message = f"{copy.path} was written by another version (schema {version}, this one knows {SCHEMA_VERSION})"
        raise OperationError(Code.FAILED_PRECONDITION, "JOURNAL_TOO_NEW", message)
    if version != SCHEMA_VERSION or checksum != head.checksum():
        copy.trouble = "damaged head"
        return
    copy.head = head


def _take(copy: _Copy, raw_kind: object, raw_name: object, raw_data: object, raw_sum: object) -> None:
    """Sort one row into good or damaged; nothing about it is to be trusted, not even its types."""
    kind, name = _text(raw_kind), _text(raw_name)
    data = raw_data if isinstance(raw_data, bytes) else repr(raw_data).encode()
    if isinstance(raw_sum, int) and checksum(kind, name, data) == raw_sum:
        copy.rows[kind, name] = (data, raw_sum)
    else:
        copy.damaged[kind, name] = (data, "checksum does not match")


def _connect(path: Path, *, durable: bool = True) -> sqlite3.Connection:
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


def _fill(
    path: Path,
    rows: Mapping[_Key, tuple[bytes, int]],
    quarantined: Mapping[_Key, tuple[bytes, str]],
    head: _Head,
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
        _write_head(connection, head)
        connection.execute("COMMIT")
    _put_in_place(new, path)


def _clone(source: sqlite3.Connection, path: Path, *, durable: bool) -> sqlite3.Connection:
    new = path.with_name(path.name + "-new")
    _remove_files(new)
    with closing(_created(new)) as target:
        source.backup(target)
    _put_in_place(new, path)
    return _connect(path, durable=durable)


def _created(path: Path) -> sqlite3.Connection:
    """A new file, whole when it is closed: without a write-ahead log."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)


def _put_in_place(new: Path, path: Path) -> None:
    _remove_files(path)
    new.replace(path)
    sync_directory(path.parent)


def _sync(log_path: Path) -> None:
    """Make a write-ahead log durable. Where there is none, nothing was written since its file was put in place."""
    with suppress(FileNotFoundError):
        fd = os.open(log_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_head(connection: sqlite3.Connection, head: _Head) -> None:
    values = (SCHEMA_VERSION, head.commits, head.rows, head.total, head.checksum())
    connection.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?, ?)", values)


def _move_aside(path: Path) -> Path:
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


def _text(word: object) -> str:
    return word.decode("utf-8", "backslashreplace") if isinstance(word, bytes) else repr(word)


def _check(change: Change) -> None:
    for name in (change.kind, change.id):
        if not name or "\0" in name or len(name.encode()) > NAME_MAX_BYTES:
            raise LocalError(f"{name[:80]!r} is not the kind or id of a row")
    if isinstance(change, Put) and len(change.data) > DATA_MAX_BYTES:
        raise LocalError(f"{change.kind} {change.id}: {len(change.data)} bytes, above the bound of {DATA_MAX_BYTES}")


def _error_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    return _error_code(error) not in _NOT_DAMAGE
