"""Layers of several pulls at once, of pulls that fail, and across restarts: who may have them, and what is kept."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import OperationError
from crio_core.events import ImageResolved
from crio_core.node.images import KEEP_NS
from crio_core.records import Failure, ImageRecord
from crio_core.sim import Simulation
from crio_core.sim.hands import LAYER_BYTES
from crio_core.sim.images import APP, BASE, OTHER, REGISTRY, REPACKED, image
from crio_core.sim.profiles import STEADY, S
from crio_core.sim.programs import container_config
from tests.property.test_node_regressions import restart, run_pod, run_until, simulation

EVIL = "evil.example/x:1"


def pull(sim: Simulation, reference: str, auth: str = "") -> str:
    pulled = sim.ask(rq.PullImage(image=ImageSpec(image=reference), auth=auth))
    assert isinstance(pulled, rp.Pulled)
    return pulled.image_id


def remove(sim: Simulation, reference: str) -> None:
    sim.ask(rq.RemoveImage(image=ImageSpec(image=reference)))


def status(sim: Simulation, reference: str) -> ImageRecord | None:
    found = sim.ask(rq.ImageStatus(image=ImageSpec(image=reference)))
    assert isinstance(found, rp.ImageFound)
    return found.image


def orders(sim: Simulation) -> list[fx.Order]:
    """Everything that is ordered from now on."""
    found: list[fx.Order] = []
    sim.on_event = lambda _event, effects: found.extend(effect.order for effect in effects)
    return found


def fetched(found: list[fx.Order]) -> list[str]:
    return [one.digest for one in found if isinstance(one, fx.FetchLayer | fx.ProveLayer)]


def with_image(reference: str, resolved: ImageResolved) -> Simulation:
    return Simulation(seed=1, latency=STEADY, registry={**REGISTRY, reference: resolved})


def test_r12_applied_layers_of_a_killed_pull_are_not_fetched_again() -> None:
    """R12: a crash when two of three layers are there costs one layer, not three."""
    sim = simulation()
    sim.stuck_lanes[REGISTRY[OTHER].layers[2].diff_id] = True
    sim.call(rq.PullImage(image=ImageSpec(image=OTHER)))
    run_until(sim, lambda: len(sim.world.layers) == 2)
    sim.crash_server()
    sim.stuck_lanes.clear()
    sim.start_server()
    sim.run(60 * S)
    assert len(sim.world.layers) == 2
    found = orders(sim)
    pull(sim, OTHER)
    assert fetched(found) == [REGISTRY[OTHER].layers[2].digest]


def test_r12_applied_layers_of_a_failed_pull_are_not_fetched_again() -> None:
    """R12: one layer's failure is no reason to fetch the others once more; the kubelet asks again in minutes."""
    sim = simulation()
    last = REGISTRY[OTHER].layers[2]
    sim.stuck_lanes[last.diff_id] = True
    call = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=OTHER)))]
    run_until(sim, lambda: len(sim.world.layers) == 2)
    sim.fail_next.append((fx.FetchLayer, 0))
    sim.stuck_lanes.clear()
    sim.let_go()
    run_until(sim, lambda: not call.open)
    assert isinstance(call.result, Failure)
    sim.run(60 * S)
    found = orders(sim)
    pull(sim, OTHER)
    assert fetched(found) == [last.digest]


@pytest.mark.parametrize("how", ["failed", "killed"])
def test_r30_layers_that_no_pull_goes_on_with_are_removed_in_time(how: str) -> None:
    """R30: kept for the next pull is not kept for ever."""
    sim = simulation()
    sim.fail_next.append((fx.SaveRecord, 0))
    call = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=APP)))]
    run_until(sim, lambda: not call.open)
    if how == "killed":
        restart(sim)
    sim.run(KEEP_NS - 60 * S)
    assert len(sim.world.layers) == 2
    sim.run(120 * S)
    assert not sim.world.layers


def test_kept_layers_go_when_somebody_removes_an_image() -> None:
    """A kubelet that removes images wants space, and no image of its list has these layers."""
    sim = simulation()
    pull(sim, BASE)
    sim.fail_next.append((fx.SaveRecord, 0))
    call = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=OTHER)))]
    run_until(sim, lambda: not call.open)
    assert len(sim.world.layers) == 3
    remove(sim, BASE)
    sim.run(60 * S)
    assert not sim.world.layers


def test_kept_layers_go_when_the_disk_is_full() -> None:
    """What might be wanted again must not stand in the way of what is wanted now."""
    sim = simulation()
    sim.fail_next.append((fx.SaveRecord, 0))
    call = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=APP)))]
    run_until(sim, lambda: not call.open)
    sim.hands.disk_full = True
    with pytest.raises(OperationError):
        pull(sim, OTHER)
    sim.run(60 * S)
    assert not sim.world.layers


@given(st.lists(st.sampled_from([BASE, APP, OTHER, REPACKED, "restart"]), min_size=1, max_size=8))
def test_an_image_has_the_size_of_its_layers_whatever_was_there_before(steps: list[str]) -> None:
    """ImageFsInfo and the kubelet's garbage collection count on it; layers found at a start have a size as well."""
    sim = simulation()
    for step in steps:
        if step == "restart":
            restart(sim)
            continue
        pull(sim, step)
        found = status(sim, step)
        assert found is not None
        assert found.size_bytes == LAYER_BYTES * len(REGISTRY[step].layers)


def test_cve_2022_24778_diff_id_of_a_private_layer_does_not_give_its_content() -> None:
    """CVE-2022-24778: a public image that names a private layer's diff id gets it only by fetching it itself."""
    lie = image(EVIL, ("base",), packed=" by a liar")
    for after_restart in (False, True):
        sim = with_image(EVIL, lie)
        pull(sim, BASE, auth="handle")
        if after_restart:
            restart(sim)
        found = orders(sim)
        sim.fail_next.append((fx.ProveLayer, 0))
        with pytest.raises(OperationError):
            pull(sim, EVIL)
        [proof] = [one for one in found if isinstance(one, fx.ProveLayer)]
        assert (proof.reference, proof.auth, proof.digest) == (EVIL, "", lie.layers[0].digest)
        assert status(sim, EVIL) is None
        assert status(sim, BASE) is not None and sim.world.layers


def test_cve_2022_24778_pull_without_the_credentials_is_refused_though_the_image_is_there() -> None:
    """CVE-2022-24778: what one pod's credentials have brought is not handed to a pull without them."""
    sim = simulation()
    pull(sim, BASE, auth="handle")
    sim.fail_next.append((fx.ResolveImage, 0))
    with pytest.raises(OperationError):
        pull(sim, BASE)


def test_a_layer_packed_otherwise_is_fetched_once_and_then_known() -> None:
    """Mirrors compress anew: such a blob is proven once, also across restarts, and never unpacked beside the other."""
    sim = simulation()
    pull(sim, BASE)
    pull(sim, REPACKED)
    restart(sim)
    found = orders(sim)
    pull(sim, REPACKED)
    pull(sim, BASE)
    assert not fetched(found)
    assert len(sim.world.layers) == 1


def test_r14_pull_of_a_liar_that_came_first_does_not_fail_the_one_that_joined() -> None:
    """R14: who names another image's diff id with a blob of his own fails alone; the other one fetches itself."""
    lie = image(EVIL, ("base",), packed=" by a liar")
    for kind in (fx.FetchLayer, fx.ApplyLayer):
        sim = with_image(EVIL, lie)
        evil = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=EVIL)))]
        run_until(sim, lambda sim=sim: fx.FetchLayer in sim.under_way)  # type: ignore[misc]
        sim.fail_next.append((kind, 0))
        honest = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=BASE)))]
        sim.run(60 * S)
        assert isinstance(evil.result, Failure)
        assert isinstance(honest.result, rp.Pulled)
        assert status(sim, BASE) is not None and status(sim, EVIL) is None


def test_a_proof_is_waited_for_by_pulls_of_either_blob() -> None:
    """One blob is proven at a time: a pull of the other one meets that, and both come to their end, well or badly."""
    third = "docker.io/library/third:1"
    for fails in (False, True):
        sim = with_image(third, image(third, ("base",), packed=" a third time"))
        pull(sim, BASE)
        first = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=REPACKED)))]
        run_until(sim, lambda sim=sim: fx.ProveLayer in sim.under_way)  # type: ignore[misc]
        if fails:
            sim.fail_next.append((fx.ProveLayer, 0))
        others = [sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=one)))] for one in (third, BASE)]
        sim.run(60 * S)
        assert isinstance(first.result, Failure) == fails
        assert all(isinstance(one.result, rp.Pulled) for one in others)


def test_a_kept_layer_is_proven_for_a_pull_of_another_blob() -> None:
    """What is kept is no more anybody's than what an image has."""
    sim = simulation()
    sim.fail_next.append((fx.SaveRecord, 0))
    call = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=BASE)))]
    run_until(sim, lambda: not call.open)
    found = orders(sim)
    pull(sim, REPACKED)
    assert fetched(found) == [REGISTRY[REPACKED].layers[0].digest]
    sim.run(KEEP_NS * 2)
    assert len(sim.world.layers) == 1


@pytest.mark.parametrize("pattern", ["docker.io/library/base*", "docker.io/library/base@*"])
def test_r16_image_is_pinned_by_the_settings_of_the_moment_over_tags_and_digests(pattern: str) -> None:
    """R16: a reload of `pinned_images` or `pause_image` counts for what is there, also when pulled by digest."""
    sim = simulation()
    pull(sim, BASE)
    before = status(sim, BASE)
    assert before is not None and not before.pinned and sim.node is not None
    sim.node.reload(replace(sim.node.settings, pinned_images=(pattern,)))
    listed = sim.ask(rq.ListImages())
    assert isinstance(listed, rp.Images) and [one.pinned for one in listed.items] == [True]
    sim.node.reload(replace(sim.node.settings, pinned_images=(), pause_image=before.digests[0]))
    listed = sim.ask(rq.ListImages())
    assert isinstance(listed, rp.Images) and [one.pinned for one in listed.items] == [True]


@pytest.mark.parametrize("order", [(BASE, REPACKED), (REPACKED, BASE)])
def test_image_ref_of_a_container_is_of_the_repository_that_was_asked_for(order: tuple[str, str]) -> None:
    """One image in two repositories: the kubelet shows which one the pod names, also when it creates by id."""
    sim = simulation()
    for reference in order:
        image_id = pull(sim, reference)
    pod = run_pod(sim)
    for number, (named, by_id) in enumerate(((REPACKED, False), (BASE, True))):
        spec = ImageSpec(image=image_id, user_specified_image=named) if by_id else ImageSpec(image=named)
        config = replace(container_config(0, number), image=spec, mounts=())
        created = sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
        assert isinstance(created, rp.Created)
        found = sim.ask(rq.ContainerStatus(container_id=created.id))
        assert isinstance(found, rp.ContainerFound)
        assert found.container.image_ref == REGISTRY[named].digests[0]
        assert found.container.image_id == image_id


STORIES: tuple[Callable[[], None], ...] = (
    test_r12_applied_layers_of_a_failed_pull_are_not_fetched_again,
    test_kept_layers_go_when_somebody_removes_an_image,
    test_a_layer_packed_otherwise_is_fetched_once_and_then_known,
    test_a_proof_is_waited_for_by_pulls_of_either_blob,
    test_a_kept_layer_is_proven_for_a_pull_of_another_blob,
)
"""What the measurement of transitions runs besides random programs."""
