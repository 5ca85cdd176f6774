"""Random programs on the simulated node: whatever goes wrong, the invariants of `spec/invariants.md` hold.

A failure prints the program, shrunk, as JSON: put it into `corpus/` and it is run first from then on.
"""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crio_core.sim.checks import run_program, shrink
from crio_core.sim.coverage import Coverage
from crio_core.sim.profiles import FAULTS
from crio_core.sim.programs import WEIGHTS, Action, Program, from_json, random_program, to_json
from tests.property.test_node_layers import STORIES as LAYER_STORIES
from tests.property.test_node_races import STORIES

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
FIRST_SEED = 1
PROGRAMS = int(os.environ.get("CRIO_SIM_PROGRAMS", "2500"))
"""Random programs in a test run; `scripts/soak.py` explores for longer."""
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
    """I1 to I14, for programs that Hypothesis thinks up and shrinks."""
    _hold(program)


def test_a_fixed_run_of_seeds_keeps_the_invariants_and_takes_every_transition() -> None:
    """I1 to I14 for the same programs each time; a row of a table that none of them reaches is dead, or untested."""
    with Coverage() as coverage:
        for story in (*STORIES, *LAYER_STORIES):
            story()
        for seed in range(FIRST_SEED, FIRST_SEED + PROGRAMS):
            program = random_program(seed)
            if run_program(program).problems:
                _hold(shrink(program))
                _hold(program)
    assert not coverage.missing()
