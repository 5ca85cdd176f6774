"""Processes as /proc shows them: who started whom, for the tree of pods."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND_BYTES_MAX = 4096
THREADS_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process; its name and command are data of whoever runs it."""

    pid: int
    parent: int
    name: str
    command: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All processes at one moment."""

    processes: Mapping[int, Process]
    children: Mapping[int, tuple[int, ...]]

    def parent_of(self, pid: int) -> int | None:
        """The process that watches another: its parent, unless that is init or gone."""
        process = self.processes.get(pid)
        return process.parent if process is not None and process.parent > 1 else None


def look(proc: Path = Path("/proc")) -> Table:
    """Read the process table; processes that end meanwhile are left out."""
    found: dict[int, Process] = {}
    for entry in proc.iterdir():
        if entry.name.isascii() and entry.name.isdigit():
            process = _read(entry, int(entry.name))
            if process is not None:
                found[process.pid] = process
    children: dict[int, list[int]] = {}
    for process in sorted(found.values(), key=lambda one: one.pid):
        children.setdefault(process.parent, []).append(process.pid)
    return Table(processes=found, children={pid: tuple(pids) for pid, pids in children.items()})


def _read(entry: Path, pid: int) -> Process | None:
    try:
        stat = (entry / "stat").read_bytes()
        with (entry / "cmdline").open("rb") as stream:
            command = stream.read(COMMAND_BYTES_MAX)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may contain any of them, so what follows is found from the right.
    before, _, after = stat.rpartition(b")")
    fields = after.split()
    name = before.partition(b"(")[2].decode(errors="replace")
    words = command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid=pid, parent=int(fields[1]), name=name, command=words or f"[{name}]", threads=int(fields[17]))


def thread_names(pid: int, proc: Path = Path("/proc")) -> Counter[str]:
    """The names of the threads besides the first, counted, as process pictures show them."""
    names: Counter[str] = Counter()
    try:
        tasks = sorted((proc / str(pid) / "task").iterdir(), key=lambda task: int(task.name))
        for task in tasks[:THREADS_MAX]:
            if task.name != str(pid):
                names[(task / "comm").read_text(errors="replace").rstrip("\n")] += 1
    except (FileNotFoundError, ProcessLookupError):
        return names  # it ended while it was looked at
    return names
