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
  of their checksums. What that is good for is told in `journal_open.py`; the two files together are `journal_pair.py`,
  one by itself is `journal_file.py`.
"""

import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from pathlib import Path

import anyio

from crio_core.errors import Code, LocalError, OperationError
from crio_io import mounts
from crio_io.journal_open import LoadResult, make_good
from crio_io.journal_pair import Change, JournalPair, Put, check_change
from crio_io.record_files import RecordFiles

WAITING_MAX = 4096
"""Writes that may wait for the writer; more make their callers wait."""
GROUP_MAX = 512
"""Writes that share one transaction."""
LINGER_S = 0.01
"""How long the disk may lag behind, so that writes of that time share its transaction."""
QUICK_BYTES_MAX = 256 * 1024
"""Of one write that is committed in memory at once; a larger one would hold up the event loop."""


class Journal:
    """An open journal. Make one with `open`; end it with `close`."""

    def __init__(self, pair: JournalPair) -> None:
        self._pair = pair
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
        pair, result = await mounts.in_thread(f"open journal {path}", _open, (path, copy), files, keep_files)
        return cls(pair), result

    async def write(self, changes: Sequence[Change]) -> None:
        """Make changes, all of them or none; returns when they are committed.

        A caller that is cancelled while it waits for a place among `WAITING_MAX` has changed nothing; afterwards it
        waits on until the write is made.

        Raises:
            OperationError: JOURNAL_FULL or JOURNAL_FAILED; nothing was changed.
        """
        for change in changes:
            check_change(change)
        if self._closed:
            raise LocalError("the journal is closed")
        size_bytes = sum(len(change.data) for change in changes if isinstance(change, Put))
        if not self._tickets and size_bytes <= QUICK_BYTES_MAX and self._pair.commit_in_memory(changes):
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
        alone = not self._pair.has_disk
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
            failure = self._pair.commit(changes)
            if not changes:
                self._pair.catch_up()
            if any(ticket.durable for ticket in tickets):
                self._pair.sync(repair=any(ticket.repairs for ticket in tickets))
            for ticket in tickets:
                ticket.finish(failure)
        self._pair.close()

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


def _open(paths: tuple[Path, Path], files: RecordFiles | None, keep_files: bool) -> tuple[JournalPair, LoadResult]:
    try:
        found = make_good(paths, files, keep_files=keep_files)
        aside = frozenset((kind, name) for kind, name, _ in found.result.quarantined)
        kept = files if keep_files else None
        pair = JournalPair(paths, found.commits, found.checksums, aside=aside, behind=found.behind, files=kept)
    except (sqlite3.Error, OSError) as error:
        raise OperationError(Code.UNAVAILABLE, "JOURNAL_UNAVAILABLE", f"{paths[0]}: {error}") from error
    return pair, found.result
