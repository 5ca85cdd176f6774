"""`python -m bench`: measure, show a table, write JSON and plots."""

import argparse
import datetime
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import images, peers, report, scenarios, starts
from bench.place import missing_tools, place
from bench.scenarios import FULL, QUICK, Run
from scripts.local_registry import LocalRegistry

QUICK_IMAGE_BYTES = 128 * 1024 * 1024

SCENARIOS: dict[str, Callable[[Run], None]] = {
    "idle": scenarios.idle,
    "lives": scenarios.lives,
    "output": scenarios.output,
    "at-once": scenarios.at_once,
    "records": scenarios.records,
    "starts": starts.starts,
    "growth": scenarios.growth,
    "pulls": scenarios.pulls,
    "core": scenarios.simulated,
}


def main() -> int:
    """Run what was asked for; 0 when all of it could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 2 minutes instead of 10")
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="one scenario; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("bench/out"), help="directory of results (bench/out)")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: pods, mounts and namespaces need root")
    if missing := missing_tools():
        sys.exit(f"error: missing: {', '.join(missing)}; `make system.test` installs them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to end"))  # So that the place is swept then, too.
    size = QUICK if asked.quick else FULL
    chosen = asked.only or list(SCENARIOS)
    about = report.machine(datetime.datetime.now(datetime.UTC), asked.quick)
    with place() as here, LocalRegistry(here.directory / "registry") as registry:
        _say("images")
        made = images.fill(registry, large_bytes=QUICK_IMAGE_BYTES if asked.quick else images.LARGE_BYTES)
        with peers.serving(here, made.pause) as servers:
            run = Run(place=here, peers=servers, images=made, size=size)
            scenarios.pull_work(run)
            scenarios.open_floor(run)
            for name in chosen:
                _say(name)
                SCENARIOS[name](run)
    report.write(run.samples, asked.out, about)
    return 0


_started_s = time.monotonic()


def _say(what: str) -> None:
    sys.stderr.write(f"{time.monotonic() - _started_s:6.1f} s  {what}\n")


if __name__ == "__main__":
    sys.exit(main())
