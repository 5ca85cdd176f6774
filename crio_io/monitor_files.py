"""What lies in a container's bundle for its monitor and from it: which processes they are, so that a server that comes
later can tell them from others that got the same numbers; what the monitor has written; and the FIFO by which it is
told something.
"""

import os
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from crio_core.errors import Code, OperationError, RemoteError
from crio_core.values import dataclass
from crio_io.runtime import processes

PROCESSES_FILE = "monitor.json"
RECORD_FILE = "exit.json"
"""What our own monitors write at the exit."""
DROPPED_FILE = "log-dropped"
"""Where they say how many bytes they could not log."""
# With a dot: where the runtime writes its pid file before it renames it.
_LEFTOVERS = (
    *(".pidfile", "pidfile", "conmon-pidfile", "ctl", "winsz", "attach"),
    *("oom", "exit", RECORD_FILE, DROPPED_FILE, PROCESSES_FILE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The two processes; start times, in clock ticks since boot, tell them from later ones with the same number."""

    pid: int
    pid_start_ticks: int
    monitor_pid: int
    monitor_start_ticks: int


def record(bundle: Path, pid: int) -> Created:
    """Note in the bundle which processes a container has. It lies in memory: not worth a turn of a thread.

    Raises:
        OperationError: CONTAINER_DIED.
        RemoteError: The monitor did not say who it is.
    """
    try:
        monitor_pid = int((bundle / "conmon-pidfile").read_text())
    except (OSError, ValueError) as error:
        raise RemoteError(f"the monitor left no pid in {bundle}/conmon-pidfile: {error}") from error
    container, monitor = processes.look(pid), processes.look(monitor_pid)
    if container is None:
        message = f"process {pid} of the container in {bundle} ended before it was started"
        raise OperationError(Code.INTERNAL, "CONTAINER_DIED", message)
    created = Created(
        pid=pid,
        pid_start_ticks=container.start_ticks,
        monitor_pid=monitor_pid,
        monitor_start_ticks=monitor.start_ticks if monitor is not None else 0,
    )
    temporary = bundle / f"{PROCESSES_FILE}.new"
    temporary.write_bytes(orjson.dumps(asdict(created)))
    temporary.replace(bundle / PROCESSES_FILE)
    return created


def recorded(bundle: Path) -> Created | None:
    """The processes of the container that was created in a bundle; None when it never was, or nobody can read it.

    The file is a help for looking and not a record: damage to it must not keep a container from being removed (R9).
    """
    try:
        fields: Any = orjson.loads((bundle / PROCESSES_FILE).read_bytes())
        return Created(**{name: int(fields[name]) for name in Created.__slots__})
    except (OSError, TypeError, ValueError, KeyError):
        return None


def remove_unfinished(directory: Path, name: str) -> None:
    """Remove what a monitor was writing when it was killed: conmon to NAME.XXXXXX, ours to NAME.<pid>.tmp."""
    unfinished = re.compile(re.escape(name) + r"\.([A-Za-z0-9]{6}|[0-9]+\.tmp)")
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            if unfinished.fullmatch(path.name):
                path.unlink(missing_ok=True)


def existing_in(bundle: Path) -> Created | None:
    """The processes of a container that was created in a bundle, if it still lives."""
    created = recorded(bundle)
    if created is None:
        return None
    facts = processes.look(created.pid)
    return created if facts is not None and facts.start_ticks == created.pid_start_ticks else None


def clear_bundle(bundle: Path) -> None:
    """Remove what a monitor has left in a bundle; absent is success."""
    for name in _LEFTOVERS:
        (bundle / name).unlink(missing_ok=True)
    for name in ("conmon-pidfile", "exit", RECORD_FILE, DROPPED_FILE, "oom"):
        remove_unfinished(bundle, name)


def write_control(bundle: Path, message: bytes) -> None:
    """Tell a monitor something, by a line of its control FIFO.

    Raises:
        OperationError: MONITOR_GONE.
        BlockingIOError: It has not read what it was told before.
    """
    fd = _open_control(bundle)
    try:
        os.write(fd, message)
    finally:
        os.close(fd)


def _open_control(bundle: Path) -> int:
    try:
        return os.open(bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        message = f"no monitor listens at {bundle}/ctl: {error.strerror}"
        raise OperationError(Code.FAILED_PRECONDITION, "MONITOR_GONE", message) from error


def has_opened(bundle: Path, log_path: str) -> bool:
    """Whether a monitor that was told to open its log anew has; one that ended meanwhile never will."""
    try:
        os.close(_open_control(bundle))
    except OperationError:
        # It may have done so before it ended.
        if os.path.exists(log_path):
            return True
        raise
    return os.path.exists(log_path)
