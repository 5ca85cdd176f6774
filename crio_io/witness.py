"""What can be seen of a container's monitor from outside: whether it lives, and what it wrote about log and exit.

A monitor that was killed takes log, attach and exit code of its container along, and the container runs on. A disk that
is full costs bytes of the log, and the container does not notice. Both are only found by looking.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from crio_core.values import dataclass
from crio_io.monitor_files import DROPPED_FILE, RECORD_FILE, recorded
from crio_io.runtime import processes

FILE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How our own monitors write down an exit; `code` is negative when the monitor does not know it."""

    code: int
    finished_at_ns: int
    oom: bool
    log_dropped_bytes: int


def exit_record(bundle: Path) -> ExitRecord | None:
    """The exit record in a bundle; None when there is none, as with monitors of others, or it cannot be read."""
    try:
        fields: Any = orjson.loads(read_small(bundle / RECORD_FILE))
        return ExitRecord(
            code=int(fields["exit_code"]),
            finished_at_ns=int(fields["finished_at_ns"]),
            oom=bool(fields["oom_killed"]),
            log_dropped_bytes=int(fields["log_dropped_bytes"]),
        )
    except (OSError, TypeError, ValueError, KeyError):
        return None


def log_dropped_bytes(bundle: Path) -> int:
    """How many bytes of the container's output are in no log, as far as its monitor has said so."""
    record = exit_record(bundle)
    if record is not None:
        return record.log_dropped_bytes
    with suppress(OSError, ValueError):
        return int(read_small(bundle / DROPPED_FILE))
    return 0


def is_unwatched(bundle: Path) -> bool:
    """Whether the container in a bundle lives and its monitor does not."""
    created = recorded(bundle)
    if created is None:
        return False
    container, monitor = processes.look(created.pid), processes.look(created.monitor_pid)
    if container is None or container.start_ticks != created.pid_start_ticks or not processes.is_alive(container):
        return False
    return monitor is None or monitor.start_ticks != created.monitor_start_ticks or not processes.is_alive(monitor)


def facts(bundle: Path) -> dict[str, Any]:
    """Both, under the names that verbose container status gives them."""
    return {"unwatched": is_unwatched(bundle), "logDroppedBytes": log_dropped_bytes(bundle)}


def read_small(path: Path) -> bytes:
    """The first `FILE_BYTES_MAX` bytes of a regular file.

    Raises:
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, FILE_BYTES_MAX)
    finally:
        os.close(fd)
