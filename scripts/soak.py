"""Explores the core on the simulated node: random programs from seed after seed, until the time is over.

python -m scripts.soak [--minutes N] [--seed FIRST] [--programs N] [--keep DIRECTORY]

Prints the rate, the transitions that were never taken, and for each program that breaks an invariant the shrunk one,
which `--keep` also writes as a file for `tests/property/corpus/`.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from crio_core.sim.checks import run_program, shrink
from crio_core.sim.coverage import Coverage
from crio_core.sim.programs import Program, random_program, to_json

FINDS_MAX = 20
"""Failing programs after which exploring ends: they are rarely so many bugs."""


def explore(*, first_seed: int, programs_max: int, seconds_max: float, keep: Path | None) -> int:
    """Run programs; returns how many broke an invariant."""
    found: Counter[str] = Counter()
    calls = steps = programs = 0
    began = time.monotonic()
    with Coverage() as coverage:
        while programs < programs_max and time.monotonic() - began < seconds_max and sum(found.values()) < FINDS_MAX:
            program = random_program(first_seed + programs)
            verdict = run_program(program)
            programs += 1
            calls += verdict.calls
            steps += verdict.steps
            if verdict.problems:
                _report(program, keep, found)
    seconds = time.monotonic() - began
    print(f"{programs} programs, {calls} calls, {steps} steps in {seconds:.1f} s: {calls / seconds:.0f} calls/s")
    for line in coverage.report():
        print(line)
    for kind, count in sorted(found.items()):
        print(f"{count} programs break {kind}")
    return sum(found.values())


def _report(program: Program, keep: Path | None, found: Counter[str]) -> None:
    small = shrink(program)
    problems = run_program(small).problems or run_program(program).problems
    found[problems[0].partition(":")[0]] += 1
    print(f"seed {program.seed} ({program.faults} faults):")
    for problem in problems[:4]:
        print(f"  {problem[:400]}")
    text = json.dumps(to_json(small))
    print(f"  {text}")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"seed-{program.seed}.json").write_text(text + "\n")


def main() -> None:
    """Explore as the command line says; exit code 1 when something was found."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--programs", type=int, default=sys.maxsize)
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    finds = explore(
        first_seed=options.seed,
        programs_max=options.programs,
        seconds_max=options.minutes * 60,
        keep=options.keep,
    )
    sys.exit(1 if finds else 0)


if __name__ == "__main__":
    main()
