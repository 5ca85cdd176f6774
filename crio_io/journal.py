"""Keeps the node's records: two SQLite files with the same content.

A server keeps one on disk and one in memory that outlives it (`/run`), which is lost at a reboot, and so is every
container. What destroys or fills one file system leaves the other.

- A write is acknowledged when the file in memory has it: a killed server loses nothing. The disk is owed it, and one
  thread writes what is owed a moment later, many writes in one transaction. So nobody waits for a disk, or for a turn
  of another thread. A power cut may lose the last writes, and containers do not outlive that anyway; what does, such
  as the addresses that plugins give away, asks for a `sync`.
- Without a file in memory that takes it, a write waits for that thread, and is acknowledged when the disk has it.
- WAL, and on disk `synchronous=NORMAL`. Idle, nothing runs.
- Every row has a checksum over its kind, id and data, and every commit stores a number, the count of rows and the sum
  of their checksums. What that is good for is told in `journal_open.py`; one file by itself is `journal_file.py`.
"""

import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from pathlib import Path

import anyio

from crio_core.errors import Code, LocalError, OperationError
from crio_core.values import dataclass
from crio_io import mounts
from crio_io.journal_file import (
    DISK,
    MEMORY,
    Head,
    Key,
    clone,
    connect,
    error_code,
    is_damage,
    move_aside,
    sync_log,
    write_head,
)
from crio_io.journal_open import LoadResult, make_good
from crio_io.record_files import DURABLE, RecordFiles, checksum

log = logging.getLogger(__name__)

BEHIND_MAX = 4096
"""Rows that a file may be behind with. Where its disk is full, it is then made anew when there is room; where the disk
hangs, writes wait for it from then on."""
WAITING_MAX = 4096
"""Writes that may wait for the writer; more make their callers wait."""
GROUP_MAX = 512
"""Writes that share one transaction."""
DATA_MAX_BYTES = 16 * 1024 * 1024
NAME_MAX_BYTES = 1024
LINGER_S = 0.01
"""How long the disk may lag behind, so that writes of that time share its transaction."""
QUICK_BYTES_MAX = 256 * 1024
"""Of one write that is committed in memory at once; a larger one would hold up the event loop."""


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
        checksums: dict[Key, int],
        *,
        aside: frozenset[Key],
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
            None if path in behind else connect(path, durable=index == DISK) for index, path in enumerate(paths)
        ]
        self._damaged = [False, False]
        self._behind: tuple[dict[Key, Change], ...] = ({}, {})
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
            head = Head(self._commits, len(self._checksums), self._total)
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
            if is_damage(error) or len(owed) > BEHIND_MAX:
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
            if error_code(error) == sqlite3.SQLITE_FULL:
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
            elif is_damage(refusals[index]) or len(owed) + len(final) > BEHIND_MAX:
                self._give_up(index, refusals[index])  # Made anew from the other before the next write.
            else:
                owed.update(final)
        for index in (DISK, MEMORY):
            self._copy_beside(final, index)
        return None

    def _copy_beside(self, changes: Mapping[Key, Change], index: int) -> None:
        """Keep copies of what was committed beside what it tells of, of that which lies on disk or in memory."""
        if self._files is None:
            return
        for (kind, name), change in changes.items():
            if (kind in DURABLE) == (index == DISK):
                if isinstance(change, Put):
                    self._files.put(kind, name, change.data)
                else:
                    self._files.remove(kind, name)

    def _plan(self, changes: Sequence[Change]) -> tuple[dict[Key, Change], dict[Key, int], Head]:
        """The last change of each row, the checksums of what is put, and what the head says once that is committed."""
        final = {(change.kind, change.id): change for change in changes}
        after = {key: checksum(*key, change.data) for key, change in final.items() if isinstance(change, Put)}
        before = [self._checksums[key] for key in final if key in self._checksums]
        total = self._total - sum(before) + sum(after.values())
        return final, after, Head(self._commits + 1, len(self._checksums) - len(before) + len(after), total)

    def _adopt(self, final: Mapping[Key, Change], after: Mapping[Key, int], head: Head) -> None:
        self._commits, self._total = head.commits, head.total
        for key in final:
            self._checksums.pop(key, None)
        self._checksums.update(after)

    def sync(self, *, repair: bool) -> None:
        """Sync the file on disk, and log what keeps it from having all, if anything does.

        Args:
            repair: Make a file that was given up anew before. Nobody else may make use of the one in memory meanwhile.
        """
        if repair:
            self._repair()
        if self._refusal is None:
            try:
                sync_log(self._paths[DISK])
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
            self._damaged[index] = isinstance(error, sqlite3.Error) and is_damage(error)
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
                        move_aside(self._paths[index])
                        self._damaged[index] = False
                    self._copies[index] = clone(other, self._paths[index], durable=index == DISK)
                except (sqlite3.Error, OSError) as error:
                    refusal = error
                if index == DISK:
                    self._refusal = refusal


def _apply(
    copy: sqlite3.Connection,
    changes: Mapping[Key, Change],
    checksums: Mapping[Key, int],
    head: Head,
    cleared: Collection[Key],
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
        write_head(copy, head)
        copy.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            copy.execute("ROLLBACK")
        raise


def _open(paths: tuple[Path, Path], files: RecordFiles | None, keep_files: bool) -> tuple[_Store, LoadResult]:
    try:
        found = make_good(paths, files, keep_files=keep_files)
        aside = frozenset((kind, name) for kind, name, _ in found.result.quarantined)
        kept = files if keep_files else None
        store = _Store(paths, found.commits, found.checksums, aside=aside, behind=found.behind, files=kept)
    except (sqlite3.Error, OSError) as error:
        raise OperationError(Code.UNAVAILABLE, "JOURNAL_UNAVAILABLE", f"{paths[0]}: {error}") from error
    return store, found.result


def _check(change: Change) -> None:
    for name in (change.kind, change.id):
        if not name or "\0" in name or len(name.encode()) > NAME_MAX_BYTES:
            raise LocalError(f"{name[:80]!r} is not the kind or id of a row")
    if isinstance(change, Put) and len(change.data) > DATA_MAX_BYTES:
        raise LocalError(f"{change.kind} {change.id}: {len(change.data)} bytes, above the bound of {DATA_MAX_BYTES}")
