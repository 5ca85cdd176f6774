"""Looks at processes as the host sees them, and finds and kills those of one exec."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from crio_core.values import dataclass

PROCESSES_MAX = 10_000
"""How many processes one exec may have before the rest are left to the container's own end."""
ROUNDS_MAX = 8
"""How often the search is repeated, against processes that fork while they are being killed."""

_STAT_STATE, _STAT_SESSION, _STAT_START = 0, 3, 19


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What /proc/PID/stat says, as far as anything here needs it. `start_ticks` tells a process from a later one."""

    state: str
    session: int
    start_ticks: int


def look(pid: int) -> ProcessFacts | None:
    """The facts of a process; None when there is none (proc_pid_stat(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # A program may have any name, even `1) R (`.
    return ProcessFacts(
        state=fields[_STAT_STATE], session=int(fields[_STAT_SESSION]), start_ticks=int(fields[_STAT_START])
    )


def is_alive(facts: ProcessFacts | None) -> bool:
    """Whether a process is there and is not a zombie."""
    return facts is not None and facts.state not in ("Z", "X")


def children(pid: int) -> tuple[int, ...]:
    """The children of every thread of a process."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found.extend(int(word) for word in (task / "children").read_text().split())
    return tuple(found)


def kill_exec(runtime_pid: int, exec_pid: int | None) -> None:
    """Kill everything that an exec has started, and not the runtime's own process, whose reaping is its owner's.

    That is the descendants of the runtime's process, and what has left that tree but is still in the session that the
    exec's first process began (runtimes make it a session leader, and a session keeps the number of its leader).

    Args:
        runtime_pid: The running `runtime exec`, not yet reaped.
        exec_pid: The exec's first process, which may have ended; None when unknown.
    """
    sessions = set() if exec_pid is None else {exec_pid}
    for _ in range(ROUNDS_MAX):
        tree = set(_descendants(runtime_pid))
        facts = {pid: found for pid in _all_pids() if is_alive(found := look(pid)) and found is not None}
        sessions.update(pid for pid in tree if pid in facts and facts[pid].session == pid)
        victims = {pid: found for pid, found in facts.items() if pid in tree or found.session in sessions}
        if not victims:
            return
        for pid, found in victims.items():
            kill(pid, found.start_ticks)


def kill(pid: int, start_ticks: int, signal_number: int = signal.SIGKILL) -> bool:
    """Signal a process if it still is the one that started at that time; say whether it was there."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        facts = look(pid)
        if facts is None or facts.start_ticks != start_ticks:
            return False
        signal.pidfd_send_signal(handle, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _all_pids() -> tuple[int, ...]:
    return tuple(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _descendants(pid: int) -> tuple[int, ...]:
    found: dict[int, None] = {}
    waiting = list(children(pid))
    while waiting and len(found) < PROCESSES_MAX:
        child = waiting.pop()
        if child not in found:
            found[child] = None
            waiting.extend(children(child))
    return tuple(found)
