"""Opens a journal: reads both of its files, and brings them to the same good content.

Damage never stops it (R9, R10). By the checksums of rows and commits a copy from which anything is missing is known, be
it a flipped bit, a lost page or a lost file; the other copy then speaks, and the bad file is moved aside and made anew.
The copies that lie beside what they tell of (`record_files.py`) add what the disk was owed when memory is lost. Only
when both files are damaged or lost are rows picked one by one, and joined by these copies. What is damaged there too
goes into quarantine, and stays there, whatever is opened how often, until its row is written anew or deleted (`crio
check --repair`).
"""

import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import field
from pathlib import Path

from crio_core.errors import Code, OperationError
from crio_core.records import LOST
from crio_core.values import dataclass
from crio_io.journal_file import DISK, SCHEMA_VERSION, Head, Key, connect, fill, is_damage, move_aside
from crio_io.record_files import RecordFiles, checksum


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What both files hold once they were brought to the same good content."""

    commits: int
    checksums: dict[Key, int]
    behind: frozenset[Path]
    """Files that could not be brought there, for want of space."""
    result: LoadResult


def make_good(paths: tuple[Path, Path], files: RecordFiles | None, *, keep_files: bool) -> Opened:
    """Read both files and the copies of records, and bring all of them to the same content. Blocks.

    Args:
        paths: The file on disk, and the one in memory.
        files: Where copies of records are looked for, when neither file is whole.
        keep_files: Whether these copies are completed, too.

    Raises:
        OperationError: JOURNAL_TOO_NEW.
        OSError, sqlite3.Error: A file is in use or may not be touched, or there is no space; never for damage.
    """
    for path in paths:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copies = tuple(_read(each) for each in paths)
    best, other = sorted(copies, key=lambda copy: copy.rank, reverse=True)
    rows, quarantined, rebuilt = best.rows, best.aside, ""
    if not best.whole:
        rows, quarantined, rebuilt = _salvaged(best, other, files)
    elif files is not None and best is copies[DISK] and not other.whole:
        rows = _with_the_last_moment(best, files)
    head = best.head if rows is best.rows and best.whole and best.head is not None else _head_of(rows, copies)
    repairs, behind = _make_whole(copies, best, rows, quarantined, head)
    if files is not None and keep_files:
        files.complete({key: data for key, (data, _) in rows.items()})
    return Opened(
        commits=head.commits,
        checksums={key: value for key, (_, value) in rows.items()},
        behind=behind,
        result=LoadResult(
            rows=tuple(Row(kind=kind, id=name, data=data) for (kind, name), (data, _) in rows.items()),
            quarantined=tuple((kind, name, reason) for (kind, name), (_, reason) in quarantined.items()),
            repairs=(*repairs, rebuilt) if rebuilt else repairs,
        ),
    )


@dataclass(slots=True)
class _Copy:
    """What could be read of one file. `whole` says that nothing is missing and nothing is damaged."""

    path: Path
    present: bool
    head: Head | None = None
    rows: dict[Key, tuple[bytes, int]] = field(default_factory=dict)
    damaged: dict[Key, tuple[bytes, str]] = field(default_factory=dict)
    aside: dict[Key, tuple[bytes, str]] = field(default_factory=dict)
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


def _with_the_last_moment(disk: _Copy, files: RecordFiles) -> dict[Key, tuple[bytes, int]]:
    """What the disk knows, and what it was owed when the server ended: the file in memory is lost, the copies are not.

    A row that was deleted in that moment comes back; that nothing is there any more is found out by looking.
    """
    good, _ = files.read()
    newer = {key: (data, checksum(*key, data)) for key, data in good.items()}
    return disk.rows if newer.items() <= disk.rows.items() else disk.rows | newer


def _salvaged(
    best: _Copy, other: _Copy, files: RecordFiles | None
) -> tuple[dict[Key, tuple[bytes, int]], dict[Key, tuple[bytes, str]], str]:
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
    rows: Mapping[Key, tuple[bytes, int]],
    quarantined: Mapping[Key, tuple[bytes, str]],
    head: Head,
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
            aside = move_aside(copy.path)
            reason = copy.trouble or (f"{len(copy.damaged)} damaged rows" if copy.damaged else "rows are missing")
            repairs.append(f"{copy.path} was damaged ({reason}) and is kept as {aside.name}")
        elif was_whole and not copy.present and copy is copies[0]:
            repairs.append(f"{copy.path} was missing and was made anew")
        elif was_whole and copy.present and copy.head != head and copy is not copies[DISK]:
            repairs.append(f"{copy.path} was behind and was brought up to date")
    for copy in copies:
        if not copy.whole or copy.head != head:
            try:
                fill(copy.path, rows, quarantined, head)
            except sqlite3.Error as error:
                if not best.whole or is_damage(error):
                    raise
                behind.add(copy.path)
                repairs.append(f"{copy.path} is behind for now: {error}")
    return tuple(repairs), frozenset(behind)


def _head_of(rows: Mapping[Key, tuple[bytes, int]], copies: Sequence[_Copy]) -> Head:
    commits = max(copy.head.commits if copy.head is not None else 0 for copy in copies)
    return Head(commits + 1, len(rows), sum(checksum for _, checksum in rows.values()))


def _read(path: Path) -> _Copy:
    """Read a file row by row, for as long as it can be read."""
    copy = _Copy(path=path, present=path.exists() or path.with_name(path.name + "-wal").exists())
    if not copy.present:
        return copy
    if path.is_dir():
        copy.trouble = "it is a directory"
        return copy
    try:
        with closing(connect(path)) as connection:
            connection.text_factory = bytes
            _read_head(connection, copy)
            for row in connection.execute("SELECT kind, id, data, checksum FROM record"):
                _take(copy, *row)
            for *key, data, reason in connection.execute("SELECT kind, id, data, reason FROM quarantine"):
                copy.aside[_text(key[0]), _text(key[1])] = (data, _text(reason))
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        copy.trouble = str(error)
    return copy


def _read_head(connection: sqlite3.Connection, copy: _Copy) -> None:
    found = connection.execute("SELECT version, commits, rows, total, checksum FROM head").fetchone()
    if found is None:
        copy.trouble = "no head"
        return
    version, commits, rows, total, checksum = found
    head = Head(commits, rows, total)
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


def _text(word: object) -> str:
    return word.decode("utf-8", "backslashreplace") if isinstance(word, bytes) else repr(word)
