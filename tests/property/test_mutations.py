"""The simulation notices when the core is broken on purpose: each mutation, at a program that is known to show it.

`scripts/mutate.py` has the mutations and hunts for such programs; that they are still found keeps the list true.
"""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from crio_core.sim.checks import run_program
from crio_core.sim.programs import random_program
from scripts.mutate import MUTATIONS, Mutation

SEEDS: dict[str, int] = json.loads((Path(__file__).parent / "mutation_seeds.json").read_text())


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_core_that_is_broken_on_purpose_is_noticed(mutation: Mutation) -> None:
    """After a change of the programs: `python -m scripts.mutate --keep tests/property/mutation_seeds.json`."""
    program = random_program(SEEDS[mutation.name])
    with ExitStack() as stack:
        mutation.apply(stack)
        broken = run_program(program).problems
    assert broken
    assert not run_program(program).problems
