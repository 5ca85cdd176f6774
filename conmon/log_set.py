"""All logs of one container together, as its options name them, and how much of them is lost."""

from __future__ import annotations

import time

from conmon.journald import SHORT_ID_LETTERS, JournalLog
from conmon.logs import LINE_BYTES_MAX, FileLog
from conmon.options import Options, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from conmon.diagnostics import Diagnostics
    from conmon.handover import Handover

DROPPED_NOTE_NS = 1_000_000_000


class Logs:
    """The logs of a container that runs.

    Args:
        given: Has the open files, and what another process has done with them.
        say: Where to say what goes wrong with the note of what is lost.
    """

    __slots__ = ("_all", "_noted_bytes", "_noted_ns", "_path", "_say")

    def __init__(self, given: Handover, say: Diagnostics) -> None:
        options = given.options
        files = tuple(_file_log(options, *log) for log in given.log_fds)
        for log, state in zip(files, given.log_states, strict=False):
            log.resume(state)
        self._all: tuple[FileLog | JournalLog, ...] = files
        if given.journal:
            self._all += (_journal_log(options),)
        self._say = say
        self._path = f"{options.bundle or '.'}/log-dropped"
        self._noted_ns = 0
        self._noted_bytes = given.noted_bytes

    def __len__(self) -> int:
        return len(self._all)

    @property
    def resting(self) -> bool:
        """Nothing is held: what `hand_over` leaves is all that another process needs to go on."""
        return all(log.resting for log in self._all)

    @property
    def dropped_bytes(self) -> int:
        """How much could not be written."""
        return sum(log.dropped_bytes for log in self._all)

    def deadlines_ns(self) -> list[int]:
        """The monotonic times at which held bytes have to be written."""
        return [log.deadline_ns for log in self._all if log.deadline_ns]

    def write(self, stream: int, data: bytes) -> None:
        """Take what the container wrote."""
        for log in self._all:
            log.write(stream, data)
            if log.dropped_bytes:
                self.note_dropped()

    def expire(self, now_ns: int) -> None:
        """Write what was held until now."""
        for log in self._all:
            if log.deadline_ns and log.deadline_ns <= now_ns:
                log.expire()

    def note_dropped(self, *, at_last: bool = False) -> None:
        """Show the loss in the bundle, at most once a second, and at last in any case."""
        dropped = self.dropped_bytes
        now_ns = time.monotonic_ns()
        if dropped == self._noted_bytes or not (at_last or now_ns - self._noted_ns >= DROPPED_NOTE_NS):
            return
        self._noted_ns, self._noted_bytes = now_ns, dropped
        self._say.write_file(self._path, b"%d\n" % dropped)

    def reopen(self) -> None:
        """Open the files anew, under the names that they have."""
        for log in self._all:
            log.reopen()

    def finish(self) -> None:
        """Close the last lines."""
        for log in self._all:
            log.finish()

    def hand_over(self, given: Handover) -> None:
        """Leave what another process needs to go on, and close what it opens by itself."""
        given.log_states = tuple(log.state for log in self._all if isinstance(log, FileLog))
        given.noted_bytes = self._noted_bytes
        for log in self._all:
            if isinstance(log, JournalLog):
                log.close()

    def close(self, *, sync: bool) -> None:
        """Close them as they are, on disk if asked for."""
        for log in self._all:
            log.close(sync=sync)


def open_logs(options: Options) -> tuple[tuple[FileLog | JournalLog, ...], bool]:
    """The log drivers that `--log-path` names, and whether one of them is `passthrough`.

    Raises:
        UsageError: There is no such driver.
        OSError: A log file cannot be opened.
    """
    logs: list[FileLog | JournalLog] = []
    passthrough = False
    for word in options.log_path:
        driver, colon, path = word.partition(":")
        if not driver and path:
            driver = "k8s-file"
        if driver in ("off", "null", "none"):
            continue
        if driver == "passthrough":
            passthrough = True
        elif driver == "journald":
            if len(options.cuuid or options.cid) <= SHORT_ID_LETTERS:
                raise UsageError("Container ID must be longer than 12 characters")
            logs.append(_journal_log(options))
        elif driver == "k8s-file" or (driver and not colon):
            if driver == "k8s-file" and not path:
                raise UsageError("the log driver k8s-file needs a filename, as in k8s-file:PATH")
            logs.append(_file_log(options, path if colon else driver))
        else:
            raise UsageError(f"No such log driver {driver}" if driver else "log-path must not be empty")
    if options.log_tag and any(isinstance(log, FileLog) for log in logs) and len(logs) == 1:
        raise UsageError("k8s-file doesn't support --log-tag")
    return tuple(logs), passthrough


def _file_log(options: Options, path: str, fd: int = -1) -> FileLog:
    """The log file that the options describe.

    Raises:
        OSError: It cannot be opened.
    """
    return FileLog(
        path,
        size_max=max(options.log_size_max, 0),
        total_max=max(options.log_global_size_max, 0),
        line_bytes_max=options.log_line_max if options.log_line_max > 0 else LINE_BYTES_MAX,
        fd=fd,
    )


def _journal_log(options: Options) -> JournalLog:
    """The journal, under the names that the options give."""
    return JournalLog(cuuid=options.cuuid or options.cid, name=options.name, tag=options.log_tag)
