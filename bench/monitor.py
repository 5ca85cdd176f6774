"""Our monitor beside Debian's conmon, in one run: memory, time to the runtime's start, log throughput.

    python -m bench.monitor [containers]

The runtime is a stand-in of a few lines of C that notes when it started and leaves a process behind, so that only the
monitor is measured. Memory is that of monitors that have seen nothing yet, and again when each has logged a line and is
quiet. Requests, and the containers of the throughput, go to each monitor in turn, so that other work on the machine
disturbs all alike. Throughput uses real containers. Numbers are printed as a table; compare columns, not runs.
"""

import argparse
import os
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
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct timespec now;
    sigset_t asked;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sigemptyset(&asked);
    sigaddset(&asked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &asked, 0);
    for (int i = 1; i < argc - 1; i++)
        if (!strcmp(argv[i], "--pid-file")) {
            char path[4096];
            snprintf(path, sizeof path, "%s.started", argv[i + 1]);
            FILE *started = fopen(path, "w");
            fprintf(started, "%lld", now.tv_sec * 1000000000LL + now.tv_nsec);
            fclose(started);
            pid_t pid = fork();
            if (!pid) {
                int signum;
                close(0);
                sigwait(&asked, &signum);
                write(1, "a line\n", 7);
                pause();
                _exit(0);
            }
            FILE *file = fopen(argv[i + 1], "w");
            fprintf(file, "%d", pid);
            fclose(file);
        }
    return 0;
}
"""
KINDS = ("debian", "alone", "zygote")
ROUNDS = 3
REQUESTS = 40
QUIET_DEADLINE_S = 60.0
WRITERS = {
    "2-byte lines": "yes | head -n 20000000",
    "80-byte lines": f"yes {'x' * 79} | head -n 2000000",
    "4096-byte lines": f"yes {'y' * 4095} | head -n 50000",
}
Rows = dict[str, dict[str, float]]


def pss_kb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0])


async def begin(rig: Rig, runtime: Path, name: str) -> tuple[Case, float]:
    """Have a container created; milliseconds from the request until its runtime started.

    A monitor of the zygote is asked for from a loop that runs already, as a server does it.
    """
    folder = rig.folder / name
    folder.mkdir()
    case = Case(rig=rig, cid=name, folder=folder)
    arguments = ["--api-version", "-c", name, "-u", name, "-n", name, "-r", str(runtime), "--full-attach"]
    arguments += ["-b", str(folder), "-p", f"{folder}/pidfile", "-l", f"{folder}/log"]
    before_ns = time.monotonic_ns()
    if rig.kind == "zygote":
        await rig.spawn(case, arguments)
    else:
        rig.launch(case, arguments)
    case.read_sync()
    return case, (int((folder / "pidfile.started").read_text()) - before_ns) / 1e6


def end(cases: list[Case]) -> None:
    """Kill the containers and wait for their monitors."""
    for case in cases:
        os.kill(case.pid, signal.SIGKILL)
        os.close(case.sync_fd)
    for case in cases:
        case.gone()


async def starts(rigs: dict[str, Rig], runtime: Path, rows: Rows) -> None:
    """Time to the runtime's start, each monitor asked in turn."""
    found: dict[str, list[float]] = {kind: [] for kind in rigs}
    for number in range(REQUESTS):
        for kind, rig in rigs.items():
            case, started_ms = await begin(rig, runtime, f"start-{number}")
            found[kind].append(started_ms)
            end([case])
    for kind, times in found.items():
        rows.setdefault("asked until the runtime starts, min (ms)", {})[kind] = min(times)
        for name, at in (("p25", 0), ("p50", 1), ("p75", 2)):
            rows.setdefault(f"asked until the runtime starts, {name} (ms)", {})[kind] = statistics.quantiles(times)[at]


async def memory(rig: Rig, runtime: Path, count: int, rows: Rows) -> None:
    """PSS per monitor with `count` of them, before anything happened and after one line of log each."""
    cases = [(await begin(rig, runtime, f"idle-{number}"))[0] for number in range(count)]
    label = f"PSS per monitor, {count} of them"
    rows.setdefault(f"{label}, silent (kB)", {})[rig.kind] = statistics.mean(pss_kb(case.monitor_pid) for case in cases)
    for case in cases:
        os.kill(case.pid, signal.SIGUSR2)
    for case in cases:
        until(lambda: case.log.stat().st_size, "no line")  # noqa: B023
        until(lambda: len(family(case)) == 2, "somebody works", QUIET_DEADLINE_S)  # noqa: B023
    after = statistics.mean(pss_kb(case.monitor_pid) for case in cases)
    rows.setdefault(f"{label}, after a line (kB)", {})[rig.kind] = after
    end(cases)


def family(case: Case) -> list[int]:
    """The monitor, its container, and whatever else it has made."""
    return [
        case.monitor_pid,
        *map(int, Path(f"/proc/{case.monitor_pid}/task/{case.monitor_pid}/children").read_text().split()),
    ]


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
    parser = argparse.ArgumentParser(
        prog="python -m bench.monitor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("containers", type=int, nargs="?", default=100, help="beside which memory is measured (100)")
    count = parser.parse_args().containers
    if os.geteuid() != 0:
        sys.exit("error: containers need root")
    rows: Rows = {}
    with tempfile.TemporaryDirectory(prefix="criobench-", dir="/dev/shm") as name:
        runtime = Path(name) / "runtime"
        subprocess.run(
            ["cc", "-O1", "-static", "-w", "-x", "c", "-", "-o", str(runtime)], input=RUNTIME, text=True, check=True
        )
        rigs: dict[str, Rig] = {}
        try:
            for kind in KINDS:
                (Path(name) / kind).mkdir()
                rigs[kind] = Rig(kind, Path(name) / kind)
            for rig in rigs.values():
                anyio.run(memory, rig, runtime, count, rows)
            anyio.run(starts, rigs, runtime, rows)
            for writer, script in WRITERS.items():
                row = rows.setdefault(f"{writer}, best of {ROUNDS} (s)", {})
                for _ in range(ROUNDS):
                    for kind, rig in rigs.items():
                        row[kind] = min(row.get(kind, 1e9), throughput(rig, script))
        finally:
            for rig in rigs.values():
                rig.close()
    print(f"{'':52}" + "".join(f"{kind:>10}" for kind in KINDS))
    for label, values in rows.items():
        print(f"{label:52}" + "".join(f"{values[kind]:10.2f}" for kind in KINDS))


if __name__ == "__main__":
    main()
