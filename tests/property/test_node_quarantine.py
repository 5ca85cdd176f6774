"""Records that cannot be read, or are lost: what they may own goes on, and comes back with them."""

import pytest

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.records import LOST, ContainerRecord, ContainerState, SandboxRecord
from crio_core.replies import ContainerFound, NodeStatus, SandboxFound
from crio_core.sim import Simulation
from crio_core.sim.images import BASE
from tests.property.test_node_regressions import run_container, run_pod, simulation

BAD = b'{"version": 99}'


@pytest.fixture
def sim() -> Simulation:
    """A node with an image."""
    return simulation()


def running(sim: Simulation) -> tuple[str, str]:
    """A pod with a running container; their ids."""
    pod = run_pod(sim)
    return pod, run_container(sim, pod)


def restart(sim: Simulation) -> None:
    """The server is killed and started again, and does all that it has to."""
    sim.crash_server()
    sim.start_server()
    sim.run(for_ns=60_000_000_000)


def state(sim: Simulation, container_id: str) -> ContainerState:
    """What a client is told of a container."""
    found = sim.ask(rq.ContainerStatus(container_id=container_id))
    assert isinstance(found, ContainerFound)
    return found.container.state


def quarantined(sim: Simulation) -> list[str]:
    """What Status says."""
    status = sim.ask(rq.Status())
    assert isinstance(status, NodeStatus)
    return [key for key, _ in status.quarantined]


def test_pod_in_quarantine_its_container_is_seen_to_run(sim: Simulation) -> None:
    """R9, R17: it was listed as ended with an unknown code while it ran, as if the machine had booted anew."""
    pod, container = running(sim)
    key = (SandboxRecord.KIND, pod)
    good, sim.world.rows[key] = sim.world.rows[key], BAD
    restart(sim)
    assert quarantined(sim) == ["/".join(key)]
    assert state(sim, container) is ContainerState.RUNNING
    sim.world.rows[key] = good
    restart(sim)
    assert quarantined(sim) == []
    assert state(sim, container) is ContainerState.RUNNING
    found = sim.ask(rq.PodSandboxStatus(sandbox_id=pod))
    assert isinstance(found, SandboxFound)


def test_records_lost_and_a_pod_among_them_its_container_is_not_taken_for_an_orphan(sim: Simulation) -> None:
    """R10, R27: its pod's record may be one of those that are gone, which is no reason to kill it."""
    pod, container = running(sim)
    del sim.world.rows[SandboxRecord.KIND, pod]
    sim.quarantined["/".join(LOST)] = "the journal was damaged"
    restart(sim)
    assert state(sim, container) is ContainerState.RUNNING


def test_container_in_quarantine_the_layers_of_its_removed_image_stay(sim: Simulation) -> None:
    """R16: nobody is known to use the image, and yet its layers are mounted; they go when the container has gone."""
    pod, container = running(sim)
    key = (ContainerRecord.KIND, container)
    good, sim.world.rows[key] = sim.world.rows[key], BAD
    restart(sim)
    before = tuple(sim.world.layers)
    orders: list[fx.Order] = []
    sim.on_event = lambda event, effects: orders.extend(effect.order for effect in effects)
    sim.ask(rq.RemoveImage(image=ImageSpec(image=BASE)))
    restart(sim)
    assert not [order for order in orders if isinstance(order, fx.RemoveLayer)]
    assert tuple(sim.world.layers) == before
    sim.world.rows[key] = good
    restart(sim)
    assert tuple(sim.world.layers) == before
    assert state(sim, container) is ContainerState.RUNNING
    sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
    sim.run(for_ns=60_000_000_000)
    assert not tuple(sim.world.layers)
