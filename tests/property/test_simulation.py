"""Random programs on the simulated node: whatever goes wrong, the invariants of `spec/invariants.md` hold.

A failure prints the program, shrunk, as JSON: put it into `corpus/` and it is run first from then on.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import OperationError
from crio_core.sim import Simulation
from crio_core.sim.checks import run_program, shrink
from crio_core.sim.coverage import Coverage
from crio_core.sim.hands import steps_of
from crio_core.sim.images import BASE
from crio_core.sim.profiles import FAULTS, Faults
from crio_core.sim.programs import (
    WEIGHTS,
    Action,
    Program,
    from_json,
    pod_config,
    random_program,
    swarm_program,
    to_json,
)
from tests.property.test_node_layers import STORIES as LAYER_STORIES
from tests.property.test_node_races import STORIES

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
FIRST_SEED = 1
PROGRAMS = int(os.environ.get("CRIO_SIM_PROGRAMS", "2500"))
"""Random programs in a test run; `scripts/soak.py` explores for longer."""
ONE_SIDED = PROGRAMS // 5
EXAMPLES = int(os.environ.get("CRIO_SIM_EXAMPLES", "300"))

NUMBERS = st.integers(0, 999)
ACTIONS = st.builds(
    Action, name=st.sampled_from([name for _, name in WEIGHTS]), a=NUMBERS, b=st.integers(0, 7), c=NUMBERS
)
PROGRAM = st.builds(
    Program,
    seed=st.integers(0, 1 << 32),
    faults=st.sampled_from(tuple(FAULTS)),
    actions=st.lists(ACTIONS, min_size=1, max_size=40).map(tuple),
)


def _hold(program: Program) -> None:
    problems = run_program(program).problems
    assert not problems, f"{json.dumps(to_json(program))}\n" + "\n".join(problems[:10])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_programs_that_once_broke_an_invariant_keep_them_all(path: Path) -> None:
    """What was found once is looked for first."""
    _hold(from_json(json.loads(path.read_text())))


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(PROGRAM)
def test_any_program_keeps_the_invariants(program: Program) -> None:
    """The invariants, for programs that Hypothesis thinks up and shrinks."""
    _hold(program)


@pytest.mark.timeout(900)
def test_a_fixed_run_of_seeds_keeps_the_invariants_and_takes_every_transition(summary: list[str]) -> None:
    """The same programs each time; a row of a table that none of them reaches is dead, or untested."""
    with Coverage() as coverage:
        for story in (*STORIES, *LAYER_STORIES):
            story()
        calls, began = 0, time.process_time()
        for seed in range(FIRST_SEED, FIRST_SEED + PROGRAMS):
            program = random_program(seed)
            verdict = run_program(program)
            calls += verdict.calls
            if verdict.problems:
                _hold(shrink(program))
                _hold(program)
    seconds = time.process_time() - began
    summary.append(f"{PROGRAMS} programs, {calls} calls in {seconds:.0f} CPU s: {calls / seconds:.0f} calls/s")
    summary.extend(coverage.report())
    assert not coverage.missing()


def test_one_sided_programs_keep_the_invariants() -> None:
    """Half of what can happen never does in each, so what is rare in the others is common in some of them."""
    for seed in range(FIRST_SEED, FIRST_SEED + ONE_SIDED):
        program = swarm_program(seed)
        if run_program(program).problems:
            _hold(shrink(program))
            _hold(program)


def test_the_weather_of_a_profile_fills_the_disk_breaks_plugins_and_takes_the_network_away() -> None:
    """A simulated server has the faults of a whole node too, not only those of one effect; and they pass."""
    sim = Simulation(seed=1, faults=Faults(disk_fills=1.0))
    sim.change_weather()
    with pytest.raises(OperationError, match="no space left"):
        sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    sim.faults = Faults(plugins_break=1.0)
    sim.change_weather()
    with pytest.raises(OperationError, match="plugin"):
        sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    sim.faults = Faults(network_goes=1.0)
    sim.change_weather()
    with pytest.raises(OperationError, match="no pod network"):
        sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    sim.faults = Faults()
    sim.change_weather()
    sim.ask(rq.RunPodSandbox(config=pod_config(0)))


def test_an_order_that_is_to_fail_may_do_so_after_all_of_its_work() -> None:
    """Those with the most steps never did: for all alike the number was drawn from one range, which was too short."""
    taken: dict[type, int] = {}

    def watch(sim: Simulation) -> None:
        advance = sim._advance

        def noted(running: Any, steps_max: int | None) -> None:
            advance(running, steps_max)
            kind = type(running.effect.order)
            taken[kind] = max(taken.get(kind, 0), running.done)

        sim._advance = noted  # type: ignore[method-assign]

    for seed in range(1, 60):
        run_program(random_program(seed), watch=watch)
    del taken[fx.SweepStorage]  # One for each thing that it removes.
    assert {kind: steps + 1 for kind, steps in taken.items()} == {kind: steps_of(kind) for kind in taken}
    assert {fx.PrepareSandbox, fx.DeleteContainer, fx.CreateContainer, fx.AttachNetwork} <= taken.keys()
