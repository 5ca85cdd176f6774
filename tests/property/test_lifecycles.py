"""Every machine, discovered: each pair of state and event is a row or a refusal that changes nothing.

Here a machine is taken alone, so that a pair needs no story. That each row is taken by `Node.step` too, in races of
calls, outcomes, timers and restarts, and that no race comes upon a pair without a row, is what `test_simulation` shows
with random programs and the stories of `test_node_races` and `test_node_layers`: a row that none takes fails it.
"""

import itertools
import types
import typing
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from typing import Any

import pytest

from crio_core.lifecycle.engine import Lifecycle, NoSuchTransition
from crio_core.lifecycle.image import Pull
from crio_core.lifecycle.layer import Layer
from crio_core.lifecycle.session import Session
from crio_core.records import ContainerRecord, SandboxRecord
from scripts.lifecycles import discover

Machine = Lifecycle[Any]
KINDS = {"sandbox": SandboxRecord, "container": ContainerRecord, "image": Pull, "layer": Layer, "session": Session}
MACHINES = discover()
PAIRS = [
    pytest.param(machine, state, event, id=f"{machine.name}-{state.value}-{event.__name__}")
    for machine in MACHINES
    for state, event in itertools.product(machine.states, machine.events)
]


def test_the_machines_are_discovered() -> None:
    """A machine that discovery misses would be checked by nothing below."""
    assert [machine.name for machine in MACHINES] == ["container", "image", "layer", "sandbox", "session"]


def some(hint: Any) -> Any:
    """A value of a type: the plainest one that there is."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case types.UnionType | typing.Union:
            return None if type(None) in arguments else some(arguments[0])
        case origin if origin is not None:
            return () if origin is tuple else {}
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        needed = [one for one in fields(hint) if one.default is MISSING and one.default_factory is MISSING]
        return typing.cast(type, hint)(**{one.name: some(hints[one.name]) for one in needed})
    return next(iter(hint)) if issubclass(hint, Enum) else hint()


def record_in(machine: Machine, state: Enum) -> Any:
    """A record of the machine's kind in a state."""
    record = replace(some(KINDS[machine.name]), state=state)
    return replace(record, request="{}") if isinstance(record, SandboxRecord | ContainerRecord) else record


@pytest.mark.parametrize(("machine", "state", "event"), PAIRS)
def test_an_event_in_any_state_takes_the_row_or_is_refused_and_changes_nothing(
    machine: Machine, state: Enum, event: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that runs, with its entry functions: no pair fails in another way, and none is quietly ignored."""
    taken: list[tuple[Enum, type, Enum]] = []
    monkeypatch.setattr(machine, "on_transition", lambda _, source, kind, to: taken.append((source, kind, to)))
    record, wanted = record_in(machine, state), machine.table.get((state, event))
    before = replace(record)
    if wanted is None:
        with pytest.raises(NoSuchTransition):
            machine.step(record, some(event))
        assert taken == []
    else:
        after, _ = machine.step(record, some(event))
        assert taken[0] == (state, event, wanted)
        assert after.state is taken[-1][2], "the record is where the last transition led"
    assert record == before


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_final_states_are_final_and_the_others_lead_to_one(machine: Machine) -> None:
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
def test_every_state_can_be_reached(machine: Machine) -> None:
    """A state that nothing leads to is dead code in the table."""
    reached = {machine.initial}
    while True:
        more = {to for (source, _), to in machine.table.items() if source in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(machine.states)
