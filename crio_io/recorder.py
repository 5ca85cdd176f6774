"""Keeps what a node is told: always the latest of it in memory, and all of it in a file when asked to.

The ring keeps references to events and effects, which are values, and costs nearly nothing until it is written out. It
is made of segments, each with the node's state at its beginning, so that what is left of it can be replayed
(`crio_core/replay.py`). The file is written by a thread of its own; when that cannot keep up, or fails, the server goes
on and the recording has a gap, after which a new segment begins.
"""

import errno
import logging
import os
import queue
import stat
import threading
from collections.abc import Iterable
from dataclasses import field, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes
from typing import IO

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import replies as rp
from crio_core.errors import Code, OperationError
from crio_core.node import Node, Settings
from crio_core.node.checkpoint import Checkpoint, take
from crio_core.redact import Mask, keyed_mask
from crio_core.replay import is_question, segment_line, settings_line, step_line
from crio_core.values import dataclass
from crio_io import mounts

log = logging.getLogger(__name__)

RING_STEPS = 1024
"""Steps in a segment of the ring; it has the present segment and the one before."""
RING_BYTES = 2 * 1024 * 1024
"""What the large parts of a segment's steps may take until it ends: specs, configurations, files of images."""
FILE_BYTES_MAX = 64 * 1024 * 1024
"""When a file of a recording is full; one full file is kept beside the one that is being written."""
WAITING_MAX = 4096
"""Steps that may wait for the thread that writes; more leave a gap."""
DUMPS_MAX = 8
"""Rings that were written out and are kept, the newest."""
KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begin:
    settings: Settings
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reloaded:
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    number: int
    asked: int
    event: ev.Event
    effects: tuple[fx.Effect, ...]


_Entry = _Begin | _Reloaded | _Step


@dataclass(slots=True, kw_only=True)
class _Segment:
    begin: _Begin
    entries: list[_Step | _Reloaded] = field(default_factory=list)
    weight_bytes: int = 0

    @property
    def full(self) -> bool:
        return len(self.entries) >= RING_STEPS or self.weight_bytes >= RING_BYTES


class Recorder:
    """Told every step of a node; give `note` to its driver.

    Args:
        node: The node, which nothing has been told yet.
        version: Of the program, for the recording's first line.
        path: Where all is written to as well; None for the ring alone.

    Raises:
        OperationError: RECORDING_FAILED, the file cannot be written.
    """

    def __init__(self, node: Node, *, version: str, path: Path | None = None) -> None:
        self._node = node
        self._version = version
        self._number = 0
        self._asked = 0
        self._segments = [_Segment(begin=self._beginning())]
        self._file = _File(path, version) if path is not None else None
        if self._file is not None:
            self._file.put(self._beginning())

    def _beginning(self) -> _Begin:
        return _Begin(settings=self._node.settings, checkpoint=take(self._node))

    def note(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        """A step was made."""
        if is_question(event):
            self._asked += 1
            return
        if isinstance(event, ev.LayerProgressed):
            return  # Nothing follows from it, and a long pull would drive out what something follows from.
        self._number += 1
        step = _Step(number=self._number, asked=self._asked, event=_slim(event), effects=_slimmed(effects))
        self._asked = 0
        if isinstance(event, ev.JournalLoaded):
            # The state after it says the same, and shares its records with the node.
            self._segments = [_Segment(begin=self._beginning())]
        else:
            self._keep(step)
        if self._file is not None and self._file.wants_beginning:
            self._file.put(self._beginning())
        elif self._file is not None:
            self._file.put(step)

    def reloaded(self, settings: Settings) -> None:
        """The node decides by other settings from now on."""
        entry = _Reloaded(settings=settings)
        self._segments[-1].entries.append(entry)
        if self._file is not None:
            self._file.put(entry)

    def _keep(self, step: _Step) -> None:
        segment = self._segments[-1]
        segment.entries.append(step)
        segment.weight_bytes += _weight(step)
        if segment.full:
            self._segments = [segment, _Segment(begin=self._beginning())]

    async def dump(self, directory: Path) -> Path:
        """Write the ring into a new file, mode 0600; returns its path.

        Raises:
            OperationError: RECORDING_FAILED.
        """
        segments = [(one.begin, tuple(one.entries)) for one in self._segments]
        return await mounts.in_thread(f"write a recording in {directory}", _dump, directory, self._version, segments)

    async def aclose(self) -> None:
        """Write what is left to write, and close the file."""
        if self._file is not None:
            await mounts.in_thread("close the recording", self._file.close)


def _slim(event: ev.Event) -> ev.Event:
    """The event without what is never written, which may be large."""
    if isinstance(event, ev.EffectEnded) and isinstance(event.outcome, ev.ExecFinished):
        return replace(event, outcome=replace(event.outcome, stdout=b"", stderr=b""))
    return event


def _slimmed(effects: tuple[fx.Effect, ...]) -> tuple[fx.Effect, ...]:
    return tuple(
        replace(one, order=replace(one.order, result=replace(one.order.result, stdout=b"", stderr=b"")))
        if isinstance(one.order, fx.Reply) and isinstance(one.order.result, rp.Executed)
        else one
        for one in effects
    )


def _weight(step: _Step) -> int:
    weight = sum(len(one.order.spec) for one in step.effects if isinstance(one.order, fx.CreateContainer))
    if isinstance(step.event, ev.EffectEnded):
        match step.event.outcome:
            case ev.RootfsMounted() as mounted:
                facts = mounted.facts
                weight += len(facts.passwd) + len(facts.group) + len(mounted.seccomp_profile)
            case ev.ImageResolved() as resolved:
                weight += len(resolved.config)
    return weight


class _Writer:
    """Turns entries into lines. The key of the mask lives as long as this object, and nowhere else."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._mask: Mask = keyed_mask(token_bytes(KEY_BYTES))

    def line(self, entry: _Entry) -> bytes:
        match entry:
            case _Begin():
                return segment_line(self._version, entry.settings, entry.checkpoint, self._mask)
            case _Reloaded():
                return settings_line(entry.settings, self._mask)
            case _:
                return step_line(entry.number, entry.asked, entry.event, entry.effects, self._mask)


def _failed(path: Path, error: OSError) -> OperationError:
    return OperationError(
        Code.FAILED_PRECONDITION, "RECORDING_FAILED", f"the recording {path} cannot be written: {error.strerror}"
    )


def _opened(path: Path, flags: int) -> IO[bytes]:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "it is no regular file")
    os.fchmod(opened, 0o600)
    return os.fdopen(opened, "wb")


def _dump(directory: Path, version: str, segments: Iterable[tuple[_Begin, tuple[_Step | _Reloaded, ...]]]) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    path = directory / f"ring-{stamp}.jsonl"
    writer = _Writer(version)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(directory.glob("ring-*.jsonl"))[: -DUMPS_MAX + 1 or None]:
            old.unlink(missing_ok=True)
        with _opened(path, os.O_EXCL) as file:
            for begin, entries in segments:
                file.write(writer.line(begin))
                file.writelines(writer.line(entry) for entry in entries)
    except OSError as error:
        raise _failed(path, error) from error
    return path


class _File:
    """A recording in a file, written by a thread of its own. A file of an earlier run is kept as the older one."""

    def __init__(self, path: Path, version: str) -> None:
        self._path = path
        self._writer = _Writer(version)
        self._queue: queue.Queue[_Entry | None] = queue.Queue(WAITING_MAX)
        self._full = False
        self._gap = False
        self._broken = False
        try:
            self._file = self._rotated()
        except OSError as error:
            raise _failed(path, error) from error
        self._thread = threading.Thread(target=self._run, name="crio-recorder", daemon=True)
        self._thread.start()

    @property
    def wants_beginning(self) -> bool:
        """Whether the next entry must begin a segment: the file is full, or steps were lost."""
        return self._full or self._gap

    def put(self, entry: _Entry) -> None:
        """Have an entry written. Never waits."""
        if self._broken or (self._gap and not isinstance(entry, _Begin)):
            return
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            if not self._gap:
                log.warning("recording %s: steps come faster than they can be written; there is a gap", self._path)
            self._gap = True
            return
        if isinstance(entry, _Begin):
            self._gap = self._full = False

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        written = 0
        while (entry := self._queue.get()) is not None:
            if self._broken:
                continue
            try:
                if isinstance(entry, _Begin) and written >= FILE_BYTES_MAX:
                    self._file.close()
                    self._file = self._rotated()
                    written = 0
                written += self._file.write(self._writer.line(entry))
                self._full = self._full or written >= FILE_BYTES_MAX
                if self._queue.empty():
                    self._file.flush()
            except OSError as error:
                log.error("recording %s ends here: %s", self._path, error)
                self._broken = True
        try:
            self._file.close()
        except OSError as error:
            log.error("recording %s: %s", self._path, error)

    def _rotated(self) -> IO[bytes]:
        if self._path.exists() and self._path.stat().st_size:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        return _opened(self._path, os.O_TRUNC)
