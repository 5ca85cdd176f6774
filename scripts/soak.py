"""Explores the core on the simulated node: random programs from seed after seed, until the time is over.

python -m scripts.soak [--minutes N] [--seed FIRST] [--programs N] [--keep DIRECTORY] [--kills N] [--churn N]

Prints the rate, the transitions that were never taken (after 2,500 programs each of them is a failure), and for each
program that breaks an invariant the shrunk one, which `--keep` also writes as a file for `tests/property/corpus/`.
Every minute it says how far it is; Ctrl-C ends the exploring early, and the figures of what was done are printed.

With `--kills` the real server follows: killed that often at random moments under busy clients, as root, and then at
each effect of a pod's life and of a pull. With `--churn` that many containers come and go while monitors, their zygote
and the server are killed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from crio_core.sim.checks import run_program, shrink
from crio_core.sim.coverage import Coverage
from crio_core.sim.programs import Program, random_program, swarm_program, to_json
from tests.property.test_node_layers import STORIES as LAYER_STORIES
from tests.property.test_node_races import STORIES

KINDS = (random_program, swarm_program)
"""Programs of these kinds take turns."""

FINDS_MAX = 20
"""Failing programs after which exploring ends: they are rarely so many bugs."""

COVERING_PROGRAMS = 2500
"""So many programs, and the stories of races that chance seldom meets, must take every transition."""

TOLD_EVERY_S = 60

KILL_S = 5
"""How long one kill, its restart and what comes with it may take before the test is given up."""
KILL_TESTS = (
    "tests/integration/test_server_restart.py::test_killed_at_random_under_busy_clients_loses_nothing",
    "tests/integration/test_server_effects.py",
)
CHURN_S = 4
"""How long one container of the churn may take."""
CHURN_TESTS = (
    "tests/integration/test_conmon_churn.py::test_churn_with_kills_of_monitors_zygote_and_server_loses_no_exit",
    "tests/integration/test_conmon_faults.py::test_churn_with_random_kills_loses_no_exit",
)


def explore(*, first_seed: int, programs_max: int, seconds_max: float, keep: Path | None) -> int:
    """Run programs; returns how many broke an invariant, and how many transitions none of very many took."""
    found: Counter[str] = Counter()
    calls = steps = programs = 0
    began = told = time.monotonic()
    with Coverage() as coverage, suppress(KeyboardInterrupt):
        for story in (*STORIES, *LAYER_STORIES):
            story()
        while programs < programs_max and time.monotonic() - began < seconds_max and sum(found.values()) < FINDS_MAX:
            program = KINDS[programs % len(KINDS)](first_seed + programs)
            verdict = run_program(program)
            programs += 1
            calls += verdict.calls
            steps += verdict.steps
            if verdict.problems:
                _report(program, keep, found)
            if time.monotonic() - told >= TOLD_EVERY_S:
                told = time.monotonic()
                print(
                    f"{(told - began) / 60:.0f} min: {programs} programs, {calls} calls, {found.total()} found",
                    flush=True,
                )
    seconds = time.monotonic() - began
    print(f"{programs} programs, {calls} calls, {steps} steps in {seconds:.1f} s: {calls / seconds:.0f} calls/s")
    for line in coverage.report():
        print(line)
    for kind, count in sorted(found.items()):
        print(f"{count} programs break {kind}")
    unreached = len(coverage.missing()) if programs >= COVERING_PROGRAMS else 0
    return sum(found.values()) + unreached


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


def kill_for_real(kills: int, seed: int) -> bool:
    """Run the tests that kill a real server; says whether they passed."""
    print(f"{kills} kills of the real server, seed {seed}, and one at each effect", flush=True)
    environ = os.environ | {"CRIO_TEST_KILLS": str(kills), "CRIO_TEST_SEED": str(seed)}
    return _pass(KILL_TESTS, environ, 120 + kills * KILL_S)


def churn_for_real(containers: int, seed: int) -> bool:
    """Run the tests in which containers come and go; says whether they passed."""
    print(f"{containers} containers under kills of monitors, zygote and server, seed {seed}", flush=True)
    environ = os.environ | {"CONMON_CHURN": str(containers), "CRIO_TEST_SEED": str(seed)}
    return _pass(CHURN_TESTS, environ, 120 + containers * CHURN_S)


def _pass(tests: tuple[str, ...], environ: dict[str, str], timeout_s: int) -> bool:
    command = [sys.executable, "-m", "pytest", "--timeout", str(timeout_s), *tests]
    return subprocess.run(command, env=environ, check=False).returncode == 0


def main() -> None:
    """Explore as the command line says; exit code 1 when something was found."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--programs", type=int, default=sys.maxsize)
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--churn", type=int, default=0)
    options = parser.parse_args()
    finds = explore(
        first_seed=options.seed,
        programs_max=options.programs,
        seconds_max=options.minutes * 60,
        keep=options.keep,
    )
    survived = options.kills == 0 or kill_for_real(options.kills, options.seed)
    kept = options.churn == 0 or churn_for_real(options.churn, options.seed)
    sys.exit(0 if survived and kept and not finds else 1)


if __name__ == "__main__":
    main()
