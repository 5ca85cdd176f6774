"""Records that cannot be read: what is there of them goes on, and nothing that would have to end it is a success."""

import pytest

from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import Code, OperationError
from crio_core.node.specs import infra_id
from crio_core.records import ContainerState, SandboxState, is_current
from crio_core.sim import Simulation
from crio_core.sim.images import BASE
from tests.property.test_node_regressions import pod_state, restart, run_container, run_pod, simulation


def damage(sim: Simulation, *rows: tuple[str, str], lose: bool = False) -> None:
    """Both files of the journal are damaged while the server is away."""
    sim.crash_server()
    for row in rows:
        sim.damage(row, lose=lose)
    sim.start_server()
    sim.run()


def repair(sim: Simulation) -> None:
    """Stop the server, have `crio check --repair` do its work, and start it again."""
    sim.crash_server()
    sim.repair()
    sim.start_server()
    sim.run()


def refused(sim: Simulation, request: rq.Request) -> str:
    """Why a request is refused."""
    with pytest.raises(OperationError) as found:
        sim.ask(request)
    assert (found.value.code, found.value.reason) == (Code.FAILED_PRECONDITION, "RECORD_QUARANTINED")
    assert "crio check --repair" in found.value.message
    return found.value.message


@pytest.mark.parametrize("lose", [False, True])
def test_a_pod_is_not_stopped_while_a_container_runs_that_no_record_tells_of(lose: bool) -> None:
    """R9, I5: its stop and removal were answered with success, and the process and its mount stayed for ever."""
    sim = simulation()
    pod = run_pod(sim)
    key = run_container(sim, pod)
    damage(sim, ("container", key), lose=lose)
    for _ in range(2):
        assert key in refused(sim, rq.StopPodSandbox(sandbox_id=pod))
        assert key in refused(sim, rq.RemovePodSandbox(sandbox_id=pod))
        assert key in refused(sim, rq.StopContainer(container_id=key, grace_ns=0))
        assert key in refused(sim, rq.RemoveContainer(container_id=key))
        restart(sim)
    assert sim.world.alive(key)
    repair(sim)
    sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
    assert not sim.world.alive(key)
    assert not sim.world.mounts


def test_the_other_containers_of_such_a_pod_are_stopped_all_the_same() -> None:
    """R9: one bad record costs nobody else anything."""
    sim = simulation()
    pod = run_pod(sim)
    garbled, good = run_container(sim, pod), run_container(sim, pod, number=1)
    other = run_pod(sim, 1)
    damage(sim, ("container", garbled))
    refused(sim, rq.StopPodSandbox(sandbox_id=pod))
    sim.run()
    assert not sim.world.alive(good)
    sim.ask(rq.RemovePodSandbox(sandbox_id=other))


@pytest.mark.parametrize("lose", [False, True])
def test_a_pod_whose_infra_container_cannot_be_read_is_not_stopped(lose: bool) -> None:
    """I5: specs call such a pod by its infra container's id, and that is the one whose record is damaged."""
    sim = simulation()
    pod = run_pod(sim, 2)
    damage(sim, ("container", infra_id(pod)), lose=lose)
    assert infra_id(pod) in refused(sim, rq.StopPodSandbox(sandbox_id=pod))
    assert sim.world.alive(infra_id(pod))


@pytest.mark.parametrize("lose", [False, True])
def test_a_pod_of_which_no_record_is_left_is_not_stopped_while_a_container_of_it_runs(lose: bool) -> None:
    """I5: with the pod's own record lost too nobody knew that its infra container's id stands for it."""
    sim = simulation()
    pod = run_pod(sim, 2)
    damage(sim, ("sandbox", pod), ("container", infra_id(pod)), lose=lose)
    refused(sim, rq.StopPodSandbox(sandbox_id=pod))
    refused(sim, rq.RemovePodSandbox(sandbox_id=pod))
    assert sim.world.alive(infra_id(pod))


@pytest.mark.parametrize("lose", [False, True])
def test_containers_of_a_pod_that_cannot_be_read_go_on_and_can_be_stopped(lose: bool) -> None:
    """I6: they were shown as exited, of an unknown code, because nobody knew of which boot their process ids are."""
    sim = simulation()
    pod = run_pod(sim)
    key = run_container(sim, pod)
    damage(sim, ("sandbox", pod), lose=lose)
    found = sim.ask(rq.ContainerStatus(container_id=key))
    assert isinstance(found, rp.ContainerFound)
    assert found.container.state is ContainerState.RUNNING
    refused(sim, rq.StopPodSandbox(sandbox_id=pod))
    sim.ask(rq.StopContainer(container_id=key, grace_ns=0))
    assert not sim.world.alive(key)


def test_a_new_pod_takes_the_name_of_one_that_cannot_be_read_and_leaves_nothing() -> None:
    """R8, R9: a client that does not see its pod makes it again; the old one waits for its repair."""
    sim = simulation()
    old = run_pod(sim)
    damage(sim, ("sandbox", old))
    new = run_pod(sim)
    restart(sim)
    assert pod_state(sim, new) is SandboxState.READY
    assert old in sim.world.pins
    repair(sim)
    sim.ask(rq.RemovePodSandbox(sandbox_id=new))
    sim.run()
    assert sim.world.residue(()) == ()


def test_layers_stay_that_something_unread_may_need() -> None:
    """R16: an image was removed, and with it the layers under a container whose record is garbled."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    damage(sim, ("container", key))
    sim.ask(rq.RemoveImage(image=ImageSpec(image=BASE)))
    sim.run()
    assert all(layer in sim.world.layers for layer in sim.world.mounts[key])
    assert not sim.world.violations


def test_rows_of_this_version_are_known_by_their_end() -> None:
    """A start must not decode every record to find out whether one is of another version."""
    sim = simulation()
    run_container(sim, run_pod(sim))
    rows = sim.world.rows.items()
    assert {kind for (kind, _), _ in rows} == {"sandbox", "container", "image"}
    assert all(is_current(kind, data) for (kind, _), data in rows)
    assert not any(is_current(kind, data.replace(b'"version":1}', b'"version":2}')) for (kind, _), data in rows)
    assert not is_current("pod", b'{"version":1}')
