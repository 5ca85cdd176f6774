"""Memory and processor time of all own processes of a server: itself, its helpers, shims, monitors and pauses."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAUSE = "/pause"
"""How the process of a pause container calls itself: part of what a pod costs."""


def pids() -> Iterator[int]:
    """Every process there is."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield int(entry.name)


def own_processes(mark: str) -> dict[int, str]:
    """Command lines, by pid, of all processes that serve.

    Args:
        mark: A directory that only this server uses: what names it in its command line or environment is a part of the
            server, and so are their descendants, except for what runs in containers.
    """
    own: dict[int, str] = {}
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    host = Path("/proc/self/ns/pid").readlink()
    inside: set[int] = set()
    for pid in pids():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            stat = Path(f"/proc/{pid}/stat").read_text()
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            if Path(f"/proc/{pid}/ns/pid").readlink() != host:
                inside.add(pid)
        except OSError:
            continue  # It ended meanwhile, or is a thread of the kernel.
        lines[pid] = line
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
        if mark in line or mark.encode() in environ:
            own[pid] = line
    found: dict[int, str] = {}
    for pid, line in lines.items():
        above: int | None = pid
        while above and above not in own:
            above = parents.get(above)
        if above and (pid not in inside or line.startswith(PAUSE)):
            found[pid] = line
    return found


def pss_bytes(pid: int) -> int:
    """Proportional memory of a process; 0 when it has ended."""
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open() as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def memory_mb(mark: str) -> float:
    """Proportional memory of a server's own processes, in MB (2**20)."""
    return sum(pss_bytes(pid) for pid in own_processes(mark)) / 2**20


def cpu_s(mark: str) -> float:
    """Processor time that a server's own processes have used so far."""
    ticks = 0
    for pid in own_processes(mark):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


class Peak:
    """Watches the memory of a server while the block runs; `most_mb` is the most that it was."""

    INTERVAL_S = 0.1

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most_mb = 0.0

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self.INTERVAL_S):
            self.most_mb = max(self.most_mb, memory_mb(self._mark))


def wait_until(holds: Callable[[], bool], what: str, within_s: float = 30.0, every_s: float = 0.002) -> None:
    """Look until something holds.

    Raises:
        TimeoutError: It did not hold in time.
    """
    pause = threading.Event()
    left = int(within_s / every_s)
    while not holds():
        left -= 1
        if left <= 0:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        pause.wait(every_s)
