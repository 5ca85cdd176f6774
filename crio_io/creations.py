"""What of a creation is there, by looking at processes: for one that nobody waits for any more."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from crio_io.runtime import processes

KILL_S = 2.0
"""How long it is looked again whether there is one more process to kill."""


def monitors(bundle: Path) -> Mapping[int, int]:
    """Start times, by pid, of the monitors that serve a bundle which has no record of them."""
    wanted = os.fsencode(bundle)
    return {
        pid: start
        for pid, start, words in _command_lines()
        if (wanted in words and b"--exit-dir" in words) or _has_title(words, bundle)
    }


def under_way(container_id: str, bundle: Path) -> bool:
    """Whether a runtime makes this container, or its monitor is about to have one do so."""
    return bool(_runtimes(container_id, bundle)) or (not (bundle / "pidfile").exists() and bool(monitors(bundle)))


def kill(container_id: str, bundle: Path) -> None:
    """Kill the monitors of a container and the runtimes that create it.

    The container's id among their arguments makes them nobody else's. The monitor forks and leaves its parent's group,
    so between two looks there may be one more: look until none is.
    """
    deadline_s = time.monotonic() + KILL_S
    while time.monotonic() < deadline_s:
        found = {**monitors(bundle), **_runtimes(container_id, bundle)}
        if not found:
            return
        for pid, start in found.items():
            processes.kill(pid, start)


def _runtimes(container_id: str, bundle: Path) -> Mapping[int, int]:
    """Start times, by pid, of the runtimes that create a container: their arguments end with its id."""
    wanted = {b"create", os.fsencode(bundle)}
    return {
        pid: start
        for pid, start, words in _command_lines()
        if words[-1] == os.fsencode(container_id) and wanted.issubset(words)
    }


def _has_title(words: Sequence[bytes], bundle: Path) -> bool:
    """Whether a command line is the title of a forked monitor, which says no more than container and name."""
    return words[0].startswith(b"conmon -c " + os.fsencode(bundle.name) + b" ")


def _command_lines() -> Iterator[tuple[int, int, list[bytes]]]:
    """Pid, start time and command line of every live process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            pid = int(entry.name)
            try:
                words = (entry / "cmdline").read_bytes().removesuffix(b"\0").split(b"\0")
            except OSError:
                continue  # Ended meanwhile.
            facts = processes.look(pid)
            if facts is not None and processes.is_alive(facts):
                yield pid, facts.start_ticks, words
