"""Explanations: bounded, always possible, and true."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import LocalError, OperationError
from crio_core.node import Node
from crio_core.node.checkpoint import take
from crio_core.node.history import DEPARTED_MAX, PATH_MAX, TROUBLES_MAX
from crio_core.replies import Created, Explained
from crio_core.sim import SETTINGS, Simulation
from crio_core.sim.checks import run_program
from crio_core.sim.images import APP
from crio_core.sim.programs import container_config, pod_config, random_program


def _explained(sim: Simulation, kind: str, record_id: str = "") -> Any:
    answer = sim.ask(rq.Explain(kind=kind, id=record_id))
    assert isinstance(answer, Explained)
    return orjson.loads(orjson.dumps(answer.about))


def _made(answer: object) -> str:
    assert isinstance(answer, Created)
    return answer.id


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1_000_000))
def test_every_record_of_a_random_run_can_be_explained_at_any_step(seed: int) -> None:
    """An explanation is asked for when something is wrong: it must never be what fails, whatever the state."""
    steps = 0

    def watch(sim: Simulation) -> None:
        inner = sim.on_event

        def look(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
            nonlocal steps
            if inner is not None:
                inner(event, effects)
            steps += 1
            if steps % 7 or sim.node is None:
                return
            before = take(sim.node)
            state = sim.node._state
            asked = [("pod", one.id) for one in state.sandboxes.values()]
            asked += [("container", one.id) for one in state.containers.values()]
            asked += [*(("image", one.id) for one in state.images.values()), ("node", "")]
            for kind, record_id in asked:
                call = ev.CallArrived(
                    call_id=10**9, request=rq.Explain(kind=kind, id=record_id), at_ns=state.at_ns, wall_ns=state.wall_ns
                )
                (reply,) = sim.node.step(call)
                assert isinstance(reply.order, fx.Reply)
                assert isinstance(reply.order.result, Explained), reply.order.result
                orjson.dumps(reply.order.result.about)
            state.next_effect = before.scalars[0]
            assert take(sim.node) == before, "asking changes nothing"

        sim.on_event = look

    assert not run_program(random_program(seed), watch=watch).problems


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1_000_000))
def test_memory_of_what_happened_is_bounded_and_ends_with_its_record(seed: int) -> None:
    """Every list has a bound: a pod that is retried for years must not fill the node's memory with its story."""
    nodes: list[Node] = []

    def watch(sim: Simulation) -> None:
        inner = sim.on_event

        def look(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
            if inner is not None:
                inner(event, effects)
            assert sim.node is not None
            nodes[:] = [sim.node]
            history = sim.node._state.history
            assert all(len(path) <= PATH_MAX for path in history.paths.values())
            assert all(len(one) <= TROUBLES_MAX for one in history.troubles.values())
            assert len(history.departed) <= DEPARTED_MAX
            assert sorted(one for lane in history.lanes.values() for one in lane) == sorted(history.inflight.keys())

        sim.on_event = look

    run_program(random_program(seed), watch=watch)
    state = nodes[0]._state
    known = {
        *state.sandboxes.keys(),
        *state.containers.keys(),
        *state.images.keys(),
        *state.layers.keys(),
        *state.pulls.keys(),
    }
    assert set(state.history.paths.keys()) <= known


def test_a_stuck_effect_is_what_its_pod_waits_for_and_what_stands_behind_it_is_said() -> None:
    """F6: what it waits for, since when, and who waits for it."""
    sim = Simulation(5)
    sim.run()
    sim.stuck_lanes[""] = True
    call = sim.call(rq.RunPodSandbox(config=pod_config(0)))
    sim.run(for_ns=3_000_000_000)
    (about,) = _explained(sim, "node")["creating"]
    assert about["name"] == "default/pod0"
    assert about["state"] == "reserved"
    assert about["listed"] is False
    assert about["callers"] == {"create": 1}
    (wait,) = about["waitsFor"]
    assert wait["what"] == "SaveRecord"
    assert wait["forS"] == pytest.approx(3.0, abs=0.1)
    sim.release()
    sim.run()
    pod_id = _made(sim.calls[call].result)
    about = _explained(sim, "pod", pod_id)
    assert about["waitsFor"] == []
    assert [step["to"] for step in about["path"]] == ["reserved", "preparing", "network", "ready"]


def test_a_network_that_cannot_be_released_is_owed_with_its_next_retry() -> None:
    """Owed work is shown: the part, how often it failed, why, and when it is tried again."""
    sim = Simulation(6)
    pod_id = _made(sim.ask(rq.RunPodSandbox(config=pod_config(0))))
    sim.hands.network_broken = True
    sim.ask(rq.StopPodSandbox(sandbox_id=pod_id))
    about = _explained(sim, "pod", pod_id)
    owes = about["owes"]
    assert isinstance(owes, dict)
    assert "network" in owes["parts"]
    assert owes["reason"] == "CNI_PLUGIN_MISSING"
    assert owes["nextRetryNs"] > about["nowNs"]
    assert [one["id"] for one in _explained(sim, "node")["owing"]] == [pod_id]
    sim.hands.network_broken = False
    sim.run(for_ns=60_000_000_000)
    assert _explained(sim, "pod", pod_id)["owes"] is None


def test_a_creation_that_failed_is_remembered_after_its_record_is_gone() -> None:
    """Why a pod could not be made is asked when nothing of it is left."""
    sim = Simulation(7)
    sim.hands.network_broken = True
    with pytest.raises(OperationError):
        sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    sim.hands.network_broken = False
    sim.run()
    departed = _explained(sim, "node")["departed"]
    assert isinstance(departed, list)
    assert departed[0]["name"] == "default/pod0"
    assert departed[0]["errors"][0]["what"] == "AttachNetwork"
    assert "AttachNetwork failed: CNI_PLUGIN_MISSING" in [step["because"] for step in departed[0]["path"]]


def test_a_failure_is_remembered_longer_than_what_went_well() -> None:
    """On a busy node pods come and go by the hundred; the one that failed must not drown among them."""
    sim = Simulation(7)
    sim.hands.network_broken = True
    with pytest.raises(OperationError):
        sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    sim.hands.network_broken = False
    sim.run()
    for attempt in range(DEPARTED_MAX + 5):
        pod_id = _made(sim.ask(rq.RunPodSandbox(config=pod_config(3, attempt=attempt))))
        sim.ask(rq.RemovePodSandbox(sandbox_id=pod_id))
    departed = _explained(sim, "node")["departed"]
    assert len(departed) == DEPARTED_MAX
    assert [one["name"] for one in departed if one["errors"]] == ["default/pod0"]


def test_a_removed_image_is_remembered_by_its_name() -> None:
    """A removal has no reference of its own; a person knows the image by its tag."""
    sim = Simulation(9)
    sim.ask(rq.PullImage(image=ImageSpec(image=APP)))
    sim.ask(rq.RemoveImage(image=ImageSpec(image=APP)))
    sim.run()
    assert {one["name"] for one in _explained(sim, "node")["departed"]} == {APP}


def test_a_request_refused_at_once_is_remembered_by_name_and_counted_once() -> None:
    """A kubelet tries again and again: one entry, with the latest refusals."""
    sim = Simulation(8)
    sim.set_network("")
    for _ in range(TROUBLES_MAX + 3):
        with pytest.raises(OperationError):
            sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    (one,) = _explained(sim, "node")["departed"]
    assert one["state"] == "refused"
    assert len(one["errors"]) == TROUBLES_MAX
    assert one["errors"][-1]["reason"] == "NETWORK_NOT_READY"


def test_an_image_shows_the_pull_that_brought_it_and_who_uses_it() -> None:
    """The path of an image begins before it has an id."""
    sim = Simulation(9)
    sim.ask(rq.PullImage(image=ImageSpec(image=APP)))
    pod_id = _made(sim.ask(rq.RunPodSandbox(config=pod_config(0))))
    config = replace(container_config(0, 0), image=ImageSpec(image=APP), command=("sleep", "inf"))
    container_id = _made(sim.ask(rq.CreateContainer(sandbox_id=pod_id, config=config)))
    assert sim.node is not None
    about = _explained(sim, "image", sim.node._state.images.keys()[0])
    states = [step["to"] for step in about["path"]]
    assert states == ["resolving", "fetching", "recording", "gone", "ready"]
    assert about["usedBy"] == [container_id]


def test_a_refused_event_leaves_no_trace_in_the_history() -> None:
    """A step is whole or not at all; the history is part of it."""
    node = Node(SETTINGS)
    before = take(node)
    for event in (
        ev.EffectEnded(effect_id=99, outcome=ev.RecordSaved(), at_ns=1, wall_ns=1),
        ev.TimerFired(timer_id="nobody/strange", at_ns=1, wall_ns=1),
    ):
        with pytest.raises(LocalError):
            node.step(event)
        assert take(node) == before


def test_asking_for_a_kind_that_there_is_not_is_refused() -> None:
    """The kind comes from a program, and may come from another version of it."""
    with pytest.raises(OperationError, match="pod, container, image, pulls or node"):
        _explained(Simulation(1), "volume")
    for kind in ("pod", "container", "image"):
        with pytest.raises(OperationError, match="not found"):
            _explained(Simulation(1), kind, "f" * 64)


def test_layers_of_a_pull_tell_how_far_they_have_come() -> None:
    """Somebody looks at a pull: of each layer the step, what came of how much, and how fast, until it is over."""
    sim = Simulation(3)
    node = sim.node
    assert node is not None
    sim.call(rq.PullImage(image=ImageSpec(image=APP)))
    told: dict[str, list[tuple[str, int, bool]]] = {}
    while sim.tick():
        for pull in _explained(sim, "pulls")["pulls"]:
            for layer in pull["layers"]:
                assert layer["totalBytes"] == 1000
                seen = (layer["step"], layer["receivedBytes"], layer.get("bytesPerS", 0) > 0)
                if seen not in told.setdefault(layer["digest"], []):
                    told[layer["digest"]].append(seen)
    coming = [("waiting", 0, False), *(("fetching", part, True) for part in (250, 500, 750))]
    assert [*told.values()] == [[*coming, ("applying", 1000, False), ("done", 1000, False)]] * 2
    assert not len(node._state.history.progress)


@given(progressed=st.builds(ev.LayerProgressed))
def test_progress_of_a_layer_that_is_not_fetched_leaves_no_trace(progressed: ev.LayerProgressed) -> None:
    """News of a download may come after its end; it is no event that anything follows from."""
    sim = Simulation(3)
    assert sim.node is not None
    before = take(sim.node)
    assert sim.node.step(progressed) == ()
    assert take(sim.node) == before
    assert not len(sim.node._state.history.progress)
