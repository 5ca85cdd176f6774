"""The journal's two files with the same content: what is committed to which, and what each is owed.

Everything here blocks. How callers wait for it is told in `journal.py`.
"""

import logging
import sqlite3
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from crio_core.errors import Code, LocalError, OperationError
from crio_core.values import dataclass
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
from crio_io.record_files import DURABLE, RecordFiles, checksum

log = logging.getLogger(__name__)

BEHIND_MAX = 4096
"""Rows that a file may be behind with. Where its disk is full, it is then made anew when there is room; where the disk
hangs, writes wait for it from then on."""
DATA_MAX_BYTES = 16 * 1024 * 1024
NAME_MAX_BYTES = 1024


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


def check_change(change: Change) -> None:
    """Raises LocalError: no row can be like that."""
    for name in (change.kind, change.id):
        if not name or "\0" in name or len(name.encode()) > NAME_MAX_BYTES:
            raise LocalError(f"{name[:80]!r} is not the kind or id of a row")
    if isinstance(change, Put) and len(change.data) > DATA_MAX_BYTES:
        raise LocalError(f"{change.kind} {change.id}: {len(change.data)} bytes, above the bound of {DATA_MAX_BYTES}")


class JournalPair:
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
