"""Our monitor beside Debian's conmon, in one run: memory, time to the runtime's start, log throughput.

    python -m bench.monitor [containers]

The runtime is a stand-in of a few lines of C that notes when it started and leaves a process behind, so that only the
monitor is measured. Throughput uses real containers. Numbers are printed as a table; compare columns, not runs.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

from tests.integration.conmon_suite import Case, Rig, until

RUNTIME = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (int i = 1; i < argc - 1; i++)
        if (!strcmp(argv[i], "--pid-file")) {
            char path[4096];
            snprintf(path, sizeof path, "%s.started", argv[i + 1]);
            FILE *started = fopen(path, "w");
            fprintf(started, "%lld", now.tv_sec * 1000000000LL + now.tv_nsec);
            fclose(started);
            pid_t pid = fork();
            if (!pid) { close(0); pause(); _exit(0); }
            FILE *file = fopen(argv[i + 1], "w");
            fprintf(file, "%d", pid);
            fclose(file);
        }
    return 0;
}
"""
ROUNDS = 3
WRITERS = {
    "2-byte lines": "yes | head -n 20000000",
    "80-byte lines": f"yes {'x' * 79} | head -n 2000000",
    "4096-byte lines": f"yes {'y' * 4095} | head -n 50000",
}


def pss_kb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0])


def small(rig: Rig, runtime: Path, count: int) -> tuple[float, float]:
    """PSS per monitor in kB with `count` of them, and the median time to the runtime's start in ms."""
    cases: list[Case] = []
    launches: list[tuple[Case, list[str]]] = []
    started_ms: list[float] = []
    for number in range(count):
        folder = rig.folder / f"idle-{number}"
        folder.mkdir()
        case = Case(rig=rig, cid=f"idle-{number}", folder=folder)
        arguments = ["--api-version", "-c", case.cid, "-u", case.cid, "-n", case.cid, "-r", str(runtime)]
        arguments += ["--full-attach", "-b", str(folder), "-p", f"{folder}/pidfile", "-l", f"{folder}/log"]
        launches.append((case, arguments))

    def note(case: Case, before_ns: int) -> None:
        case.read_sync()
        started_ms.append((int((case.folder / "pidfile.started").read_text()) - before_ns) / 1e6)
        cases.append(case)

    async def from_server() -> None:
        """As a server does it: its loop runs already."""
        for case, arguments in launches:
            before_ns = time.monotonic_ns()
            await rig.spawn(case, arguments)
            note(case, before_ns)

    if rig.kind == "zygote":
        anyio.run(from_server)
    else:
        for case, arguments in launches:
            before_ns = time.monotonic_ns()
            rig.launch(case, arguments)
            note(case, before_ns)
    memory = statistics.mean(pss_kb(case.monitor_pid) for case in cases)
    for case in cases:
        os.kill(case.pid, signal.SIGKILL)
        os.close(case.sync_fd)
    for case in cases:
        case.gone()
    return memory, statistics.median(started_ms)


def throughput(rig: Rig, script: str) -> float:
    """Seconds from the first byte to the exit file."""
    case = rig.create("/bin/sh", "-c", f"read x; {script}", stdin=True).start()
    with case.attach() as client:
        begin = time.perf_counter()
        client.send(b"\n")
    until((case.folder / "exits" / case.cid).exists, "no exit", 120)
    took = time.perf_counter() - begin
    case.gone()
    case.log.unlink()
    return took


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    kinds = ("debian", "alone", "zygote")
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="criotest-", dir="/dev/shm") as name:
        runtime = Path(name) / "runtime"
        subprocess.run(["cc", "-O1", "-x", "c", "-", "-o", str(runtime)], input=RUNTIME, text=True, check=True)
        for kind in kinds:
            folder = Path(name) / kind
            folder.mkdir()
            rig = Rig(kind, folder)
            try:
                memory, started_ms = small(rig, runtime, count)
                rows.setdefault(f"PSS per monitor, {count} of them (kB)", {})[kind] = memory
                rows.setdefault("asked until the runtime starts, p50 (ms)", {})[kind] = started_ms
                for writer, script in WRITERS.items():
                    best = min(throughput(rig, script) for _ in range(ROUNDS))
                    rows.setdefault(f"{writer}, best of {ROUNDS} (s)", {})[kind] = best
            finally:
                rig.close()
                shutil.rmtree(rig.folder)
    print(f"{'':44}" + "".join(f"{kind:>10}" for kind in kinds))
    for label, values in rows.items():
        print(f"{label:44}" + "".join(f"{values[kind]:10.2f}" for kind in kinds))


if __name__ == "__main__":
    main()
