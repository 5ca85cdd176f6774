"""A caller that asks again gets what it asked for before, however the second request is put (R1)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import (
    ContainerConfig,
    ImageSpec,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerResources,
    PodSandboxConfig,
)
from crio_core.errors import Code, OperationError
from crio_core.node.settings import Handler
from crio_core.records import Failure, ImageRecord
from crio_core.sim import Simulation
from crio_core.sim.profiles import MS
from crio_core.sim.programs import container_config, pod_config
from crio_server import translate
from crio_server.cri.v1 import api_pb2 as pb
from tests.property.test_node_regressions import run_pod, simulation

MAPS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), min_size=2, max_size=12)


def _wire(cls: Any, field: str, items: list[tuple[str, str]]) -> bytes:
    """A message whose map has its entries in this order: messages written one after the other are one."""
    return b"".join(cls(**{field: dict([item])}).SerializeToString() for item in items)


@given(MAPS, st.randoms(use_true_random=False))
def test_map_entries_in_any_order_on_the_wire_are_the_same_request(entries: dict[str, str], chance: Any) -> None:
    """Go writes maps in random order, and a message's own order depends on a seed of the process."""
    for ours, theirs in ((PodSandboxConfig, pb.PodSandboxConfig), (ContainerConfig, pb.ContainerConfig)):
        for field in ("labels", "annotations"):
            items = list(entries.items())
            read = []
            for _ in range(2):
                chance.shuffle(items)
                message = theirs.FromString(_wire(theirs, field, items))
                read.append(orjson.dumps(translate.read(ours, message)))
            assert read[0] == read[1]
            assert orjson.loads(read[0])[field] == entries


def _shown_later(config: PodSandboxConfig) -> PodSandboxConfig:
    return replace(config, labels={**config.labels, "seen": "later"}, annotations={"config.seen": "now"})


def _worked_out_anew(config: ContainerConfig) -> ContainerConfig:
    limits = LinuxContainerResources(cpu_shares=512)
    return replace(
        config,
        labels={"seen": "later"},
        envs=(KeyValue(key="B_SERVICE_HOST", value="10.0.0.2"), KeyValue(key="A_SERVICE_HOST", value="10.0.0.1")),
        linux=LinuxContainerConfig(security_context=config.linux.security_context, resources=limits),
    )


def _asked_twice(sim: Simulation, first: rq.Request, second: rq.Request, meanwhile: Callable[[], object]) -> Any:
    """The answers to two requests, the second after `meanwhile`."""
    before = sim.calls[sim.call(first)]
    meanwhile()
    after = sim.calls[sim.call(second)]
    sim.run()
    return before.result, after.result


@pytest.mark.parametrize("meanwhile_ns", [0, 1 * MS, 10**12])
def test_a_pod_asked_for_again_in_other_words_is_the_same_pod(meanwhile_ns: int) -> None:
    """R1: a kubelet works labels and annotations out anew, while the creation is under way and after it."""
    sim = simulation()
    config = pod_config(0)
    first, second = _asked_twice(
        sim,
        rq.RunPodSandbox(config=config),
        rq.RunPodSandbox(config=_shown_later(config)),
        lambda: sim.run(meanwhile_ns),
    )
    assert isinstance(first, rp.Created)
    assert second == first


@pytest.mark.parametrize("meanwhile_ns", [0, 1 * MS, 10**12])
def test_a_container_asked_for_again_in_other_words_is_the_same_container(meanwhile_ns: int) -> None:
    """R1: service variables come out of a map, and a service may have come or gone since."""
    sim = simulation()
    pod, config = run_pod(sim), container_config(0, 0)
    sim.ask(rq.PullImage(image=config.image))
    first, second = _asked_twice(
        sim,
        rq.CreateContainer(sandbox_id=pod, config=config),
        rq.CreateContainer(sandbox_id=pod, config=_worked_out_anew(config)),
        lambda: sim.run(meanwhile_ns),
    )
    assert isinstance(first, rp.Created)
    assert second == first


def _refused(sim: Simulation, request: rq.Request, *expected: str) -> None:
    with pytest.raises(OperationError) as refused:
        sim.ask(request)
    assert refused.value.code is Code.ALREADY_EXISTS
    for part in expected:
        assert part in refused.value.message


def test_a_pod_that_is_another_thing_is_refused_by_the_name_of_the_field() -> None:
    """Whoever asks for another runtime or other namespaces must not be told that it has them."""
    sim = simulation()
    other = Handler(name="other")
    sim.settings = replace(sim.settings, handlers={**sim.settings.handlers, "other": other})
    assert sim.node is not None
    sim.node.reload(sim.settings)
    pod = run_pod(sim)
    _refused(sim, rq.RunPodSandbox(config=pod_config(0), runtime_handler="other"), "runtime_handler: other", pod)
    assert sim.ask(rq.RunPodSandbox(config=pod_config(0), runtime_handler="runc")) == rp.Created(id=pod)
    _refused(sim, rq.RunPodSandbox(config=pod_config(0, variant=1)), "namespace_options.network: NODE", "POD", pod)
    _refused(sim, rq.RunPodSandbox(config=pod_config(0, variant=2)), "namespace_options.pid: POD", "CONTAINER", pod)
    assert not isinstance(sim.ask(rq.RunPodSandbox(config=pod_config(0, attempt=1))), Failure)


def test_a_container_that_is_another_thing_is_refused_by_the_name_of_the_field() -> None:
    """Another program under the same name and attempt would never run, and nobody would know."""
    sim = simulation()
    pod, config = run_pod(sim), container_config(0, 0)
    sim.ask(rq.PullImage(image=config.image))
    sim.ask(rq.PullImage(image=container_config(0, 0, 1).image))
    made = sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
    assert isinstance(made, rp.Created)
    for field, changed in (
        ("config.image.image", replace(config, image=container_config(0, 0, 1).image)),
        ("config.command", replace(config, command=("another",))),
        ("config.args", replace(config, args=("another",))),
    ):
        _refused(sim, rq.CreateContainer(sandbox_id=pod, config=changed), f"{field}: ", made.id)


@given(
    st.sampled_from(["tag", "digest", "id", "start of the id"]),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_a_second_removal_of_an_image_ends_with_the_first(name: str, ticks: int, pulled: bool, fails: bool) -> None:
    """Answered before the record is gone it would be untrue: a crash brings the image back, and so does a failure."""
    sim = simulation()
    spec = container_config(0, 0).image
    for _ in range(1 + pulled):
        sim.ask(rq.PullImage(image=spec))
        found = sim.ask(rq.ImageStatus(image=spec))
        assert isinstance(found, rp.ImageFound) and found.image is not None
        image = found.image
        sim.slow_next.append(fx.DeleteRecord)
        sim.fail_next += [(fx.DeleteRecord, 0)] * fails
        first = sim.calls[sim.call(rq.RemoveImage(image=spec))]
        for _ in range(ticks):
            sim.tick()
    names = {"tag": image.tags[0], "digest": image.digests[0], "id": image.id, "start of the id": image.id[7:15]}
    joins = first.open
    second = sim.calls[sim.call(rq.RemoveImage(image=ImageSpec(image=names[name])))]
    while second.open:
        assert sim.tick()
    assert isinstance(second.result, Failure) is ((ImageRecord.KIND, image.id) in sim.world.rows)
    assert first.result == second.result or not joins
    sim.run()
    found = sim.ask(rq.ImageStatus(image=spec))
    assert isinstance(found, rp.ImageFound) and (found.image is not None) is isinstance(second.result, Failure)
