"""R35: everybody who listens is told each change once, in order, or is told that something was missed."""

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.errors import Code, OperationError
from crio_core.records import ContainerState, SandboxState
from crio_core.replies import CONTAINER_STATES, LISTED_SANDBOX_STATES, Result
from crio_core.sim import Simulation
from crio_core.sim.checks import run_program
from crio_core.sim.programs import random_program
from crio_io.feed import QUEUE_MAX, Feed, Happening, Kind, Listening
from tests.property.test_node_regressions import run_container, run_pod, simulation

WORDS = {"created": Kind.CREATED, "running": Kind.STARTED, "exited": Kind.STOPPED}


def _feed(sim: Simulation) -> Feed:
    def ask(question: rq.Request) -> Result:
        answer = sim.calls[sim.call(question)].result
        assert answer is not None
        return answer

    feed = Feed(ask)
    inner = sim.on_event

    def note(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        if inner is not None:
            inner(event, effects)
        feed.note(event, effects)

    sim.on_event = note
    return feed


def _taken(listening: Listening) -> list[Happening]:
    """What can be taken without waiting."""

    async def take() -> list[Happening]:
        found = []
        with anyio.move_on_after(0):
            async for happening in listening:
                found.append(happening)
        return found

    return anyio.run(take)


class Follower:
    """A client that believes what it is told, and looks after each step whether that is what there is."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.believed: dict[str, Kind] = {}
        self.over = False
        self.steps = 0
        self.listening = _feed(sim).listen()
        self.inner = sim.on_event
        sim.on_event = self.note

    def note(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        assert self.inner is not None
        self.inner(event, effects)
        # A server that starts again has nobody who listens: clients list, and listen anew.
        self.over = self.over or isinstance(event, ev.JournalLoaded)
        if self.over or self.sim.node is None:
            return
        self.steps += 1
        while self.listening._queue:
            self.hear(self.listening._queue.popleft())
        self.compare()

    def hear(self, told: Happening) -> None:
        before = self.believed.get(told.id)
        assert told.kind is not before, "told once"
        assert (told.kind is Kind.CREATED) == (before is None), "the first is the creation"
        if told.kind is Kind.DELETED:
            del self.believed[told.id]
        else:
            self.believed[told.id] = told.kind
            about = [one for one in told.containers if one.id == told.id]
            assert [WORDS[CONTAINER_STATES[one.state]] for one in about] == [told.kind] * len(about)
            assert about or (told.sandbox is not None and told.sandbox.id == told.id)

    def compare(self) -> None:
        assert self.sim.node is not None
        state = self.sim.node._state
        containers = [one for one in state.containers.values() if one.state in CONTAINER_STATES and not one.infra]
        pods = {one.id: one.state for one in state.sandboxes.values() if one.state in LISTED_SANDBOX_STATES}
        assert self.believed.keys() == pods.keys() | {one.id for one in containers}
        for one in containers:
            # One that is ended while it is being started is not told of as started.
            ending = one.state in (ContainerState.STOPPING, ContainerState.KILLING)
            believed = self.believed[one.id]
            assert believed is WORDS[CONTAINER_STATES[one.state]] or (ending and believed is Kind.CREATED)
        for key, found in pods.items():
            # One that is stopping is told of when its containers have stopped.
            if found is not SandboxState.STOPPING:
                assert (self.believed[key] is Kind.STARTED) == (found is SandboxState.READY)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1_000_000))
def test_who_believes_what_is_told_knows_what_there_is(seed: int) -> None:
    """After every step of a random run: states of all containers and pods follow from the happenings alone."""
    followers: list[Follower] = []
    problems = run_program(random_program(seed), watch=lambda sim: followers.append(Follower(sim))).problems
    assert not problems


def test_a_life_is_told_with_the_pod_and_its_containers_as_they_were() -> None:
    """Also the last happening of a pod says which pod it was: a kubelet finds its own by the uid."""
    sim = simulation()
    listening = _feed(sim).listen()
    pod = run_pod(sim)
    container = run_container(sim, pod)
    sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
    told = _taken(listening)
    assert [(one.kind, one.id) for one in told] == [
        (Kind.CREATED, pod),
        (Kind.STARTED, pod),
        (Kind.CREATED, container),
        (Kind.STARTED, container),
        (Kind.STOPPED, container),
        (Kind.STOPPED, pod),
        (Kind.DELETED, container),
        (Kind.DELETED, pod),
    ]
    assert {one.sandbox.metadata.uid for one in told if one.sandbox is not None} == {"uid0"}
    assert [len(one.containers) for one in told] == [0, 0, 1, 1, 1, 1, 0, 0]
    assert [one.wall_ns for one in told] == sorted(one.wall_ns for one in told)
    assert told[0].wall_ns > 0


def test_who_comes_later_hears_of_what_was_there_before() -> None:
    """The first event after a reconnect is not lost: what there was is known, though nobody listened."""
    sim = simulation()
    feed = _feed(sim)
    pod = run_pod(sim)
    container = run_container(sim, pod)
    early = feed.listen()
    sim.ask(rq.StopContainer(container_id=container, grace_ns=0))
    late = feed.listen()
    sim.ask(rq.RemoveContainer(container_id=container))
    assert [one.kind for one in _taken(early)] == [Kind.STOPPED, Kind.DELETED]
    assert [one.kind for one in _taken(late)] == [Kind.DELETED]
    assert feed._containers == {}


def test_who_does_not_keep_up_is_told_so_and_holds_up_nobody() -> None:
    """What was waiting is still told, in order; then that later ones are missed, and the code of it."""
    sim = simulation()
    feed = _feed(sim)
    slow, quick = feed.listen(), feed.listen()
    pods, heard = 0, 0
    while len(slow._queue) < QUEUE_MAX or not slow._missed:
        sim.ask(rq.RemovePodSandbox(sandbox_id=run_pod(sim)))
        pods += 1
        heard += len(_taken(quick))
    assert heard == 4 * pods

    assert len(_taken(quick)) == 0 and len(slow._queue) == QUEUE_MAX
    slow._queue.popleft()
    sim.ask(rq.RemovePodSandbox(sandbox_id=run_pod(sim)))
    assert len(slow._queue) == QUEUE_MAX - 1, "what follows a gap is not told"
    slow._queue.clear()
    with pytest.raises(OperationError, match="list again") as raised:
        _taken(slow)
    assert raised.value.code is Code.RESOURCE_EXHAUSTED


def test_who_has_gone_costs_nothing() -> None:
    """Nobody says goodbye: a client that is killed has a listening that is dropped."""
    sim = simulation()
    feed = _feed(sim)
    listening = feed.listen()
    run_pod(sim)
    assert len(_taken(listening)) == 2
    del listening
    assert not feed._listenings
