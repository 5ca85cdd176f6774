"""Every machine, discovered: each pair of state and event is a row or a refusal that changes nothing."""

import itertools
from enum import Enum

import pytest

from crio_core.lifecycle.engine import Lifecycle, NoSuchTransition
from scripts.lifecycles import discover

MACHINES = discover()
PAIRS = [
    pytest.param(machine, state, event, id=f"{machine.name}-{state.value}-{event.__name__}")
    for machine in MACHINES
    for state, event in itertools.product(machine.states, machine.events)
]


def test_the_machines_are_discovered() -> None:
    """A machine that discovery misses would be checked by nothing below."""
    assert [machine.name for machine in MACHINES] == ["container", "image", "layer", "sandbox", "session"]


@pytest.mark.parametrize(("machine", "state", "event"), PAIRS)
def test_every_pair_is_a_row_or_a_refusal(machine: Lifecycle, state: Enum, event: type) -> None:  # type: ignore[type-arg]
    """The machine that runs does what the table says, and nothing that the table does not say."""
    wanted = machine.table.get((state, event))
    if wanted is None:
        with pytest.raises(NoSuchTransition):
            machine.next_state(state, event)
    else:
        assert machine.next_state(state, event) is wanted


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_final_states_are_final_and_the_others_lead_to_one(machine: Lifecycle) -> None:  # type: ignore[type-arg]
    """A record that could never end would be owed for ever."""
    for state in machine.final:
        assert all(to is state for (source, _), to in machine.table.items() if source is state)
    ending = set(machine.final)
    while True:
        more = {source for (source, _), to in machine.table.items() if to in ending} - ending
        if not more:
            break
        ending |= more
    assert ending == set(machine.states)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_every_state_can_be_reached(machine: Lifecycle) -> None:  # type: ignore[type-arg]
    """A state that nothing leads to is dead code in the table."""
    reached = {machine.initial}
    while True:
        more = {to for (source, _), to in machine.table.items() if source in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(machine.states)
