"""Bugs that the simulation found in the core, each as the shortest story that showed it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import OperationError
from crio_core.node.specs import infra_id
from crio_core.records import ContainerRecord, ContainerState, Failure, SandboxState, decode, encode
from crio_core.sim import Simulation
from crio_core.sim.checks import run_program
from crio_core.sim.images import APP, BASE, OTHER
from crio_core.sim.profiles import MS, STEADY, Faults, S
from crio_core.sim.programs import Action, Program, container_config, pod_config
from crio_core.values import replace


def simulation() -> Simulation:
    """A node on which every effect takes its floor, and nothing goes wrong of itself."""
    return Simulation(seed=1, latency=STEADY)


def run_pod(sim: Simulation, slot: int = 0) -> str:
    created = sim.ask(rq.RunPodSandbox(config=pod_config(slot)))
    assert isinstance(created, rp.Created)
    return created.id


def run_container(sim: Simulation, pod: str, what: int = 0, number: int = 0) -> str:
    config = container_config(0, number, what)
    sim.ask(rq.PullImage(image=config.image))
    created = sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
    assert isinstance(created, rp.Created)
    sim.ask(rq.StartContainer(container_id=created.id))
    return created.id


def run_until(sim: Simulation, holds: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if holds():
            return
        assert sim.tick(), "nothing is left to happen"
    raise AssertionError("it never came to that")


def restart(sim: Simulation) -> None:
    sim.crash_server()
    sim.start_server()


def pod_state(sim: Simulation, pod: str) -> SandboxState:
    found = sim.ask(rq.PodSandboxStatus(sandbox_id=pod))
    assert isinstance(found, rp.SandboxFound)
    return found.sandbox.state


def test_a_sweep_that_ends_late_spares_what_was_pulled_meanwhile() -> None:
    """R16: the sweep at the start was told which layers to keep, and removed those that came while it ran."""
    sim = simulation()
    sim.stuck_lanes["storage"] = True
    restart(sim)
    pulled = sim.ask(rq.PullImage(image=ImageSpec(image=APP)))
    sim.release()
    sim.run()
    assert isinstance(pulled, rp.Pulled)
    assert len(sim.world.layers) == 2


def test_a_layer_whose_application_failed_is_not_left_in_the_store() -> None:
    """R12, R30: an application may fail after its work, and the layer was then nobody's."""
    sim = simulation()
    sim.fail_next.append((fx.ApplyLayer, 2))
    with pytest.raises(OperationError):
        sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    sim.run()
    assert not sim.world.layers
    sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    assert len(sim.world.layers) == 1


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_image_whose_record_was_not_saved_leaves_no_record(steps: int) -> None:
    """R10: the journal may have the record although it reported a failure."""
    sim = simulation()
    sim.fail_next.append((fx.SaveRecord, steps))
    with pytest.raises(OperationError):
        sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    sim.run()
    assert not sim.world.rows
    assert not sim.world.layers


def test_an_image_whose_deletion_failed_is_in_the_journal() -> None:
    """R10: the deletion may have happened although it reported a failure, and the image is still listed."""
    sim = simulation()
    sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    sim.fail_next.append((fx.DeleteRecord, 5))
    with pytest.raises(OperationError):
        sim.ask(rq.RemoveImage(image=ImageSpec(image=BASE)))
    sim.run()
    listed = sim.ask(rq.ListImages())
    assert isinstance(listed, rp.Images)
    assert [("image", one.id) for one in listed.items] == list(sim.world.rows)


def test_a_pod_is_not_stopped_while_its_owed_infra_container_lives() -> None:
    """I5: the journal knew only that the infra container was reserved, a crash came, and its deletion failed."""
    sim = simulation()
    pod = run_pod(sim, slot=2)
    row = ("container", infra_id(pod))
    record = decode(row[0], sim.world.rows[row])
    assert isinstance(record, ContainerRecord)
    sim.crash_server()
    sim.world.rows[row] = encode(replace(record, state=ContainerState.RESERVED, holds=()))
    sim.fail_next.append((fx.DeleteContainer, 0))
    sim.start_server()
    stop = sim.calls[sim.call(rq.StopPodSandbox(sandbox_id=pod))]
    run_until(sim, lambda: not stop.open)
    assert isinstance(stop.result, Failure) and sim.world.alive(infra_id(pod))
    assert sim.ask(rq.StopPodSandbox(sandbox_id=pod)) == rp.Done()
    assert not sim.world.alive(infra_id(pod))


def test_an_infra_container_cannot_be_ended_while_its_pod_waits_for_another() -> None:
    """R3: the start found it half made and failed to delete it, and the pod was stopping already."""
    sim = simulation()
    pod = run_pod(sim, slot=2)
    infra = ("container", infra_id(pod))
    record = decode(infra[0], sim.world.rows[infra])
    assert isinstance(record, ContainerRecord)
    app = run_container(sim, pod)
    sim.crash_server()
    sim.world.rows[infra] = encode(replace(record, state=ContainerState.RESERVED, holds=()))
    sim.fail_next.append((fx.DeleteContainer, 0))
    sim.start_server()
    sim.stuck_lanes[app] = True
    sim.call(rq.StopPodSandbox(sandbox_id=pod))
    sim.run(500 * MS)
    assert pod_state(sim, pod) is SandboxState.STOPPING and sim.world.alive(infra[1])
    sim.release()
    sim.run()
    assert pod_state(sim, pod) is SandboxState.STOPPED
    assert not sim.world.alive(infra[1]) and not sim.world.alive(app)


def test_a_container_waits_until_the_journal_has_its_pod_as_ready() -> None:
    """R17: another client saw the pod as ready and ran a container in it; the crash took both."""
    sim = simulation()
    image = sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    assert isinstance(image, rp.Pulled)
    sim.call(rq.RunPodSandbox(config=pod_config(0)))
    assert sim.node is not None
    state = sim.node._state
    run_until(sim, lambda: any(one.state is SandboxState.NETWORK for one in state.sandboxes.values()))
    (pod,) = (one.id for one in state.sandboxes.values())
    sim.stuck_lanes[pod] = True
    run_until(sim, lambda: state.sandboxes[pod].state is SandboxState.READY)
    create = sim.calls[sim.call(rq.CreateContainer(sandbox_id=pod, config=container_config(0, 0)))]
    sim.run(10 * S)
    assert create.open
    (container,) = (one.id for one in state.containers.values())
    explained = sim.ask(rq.Explain(kind="container", id=container))
    assert isinstance(explained, rp.Explained)
    waits: Any = explained.about["waitsFor"]
    assert [(one["what"], one["owner"]) for one in waits] == [("SaveRecord", pod), ("SaveRecord", container)]


def test_an_image_without_one_of_its_layers_is_not_listed_after_a_crash() -> None:
    """R11: only the damaged image is dropped, and it can be pulled again."""
    sim = simulation()
    sim.ask(rq.PullImage(image=ImageSpec(image=APP)))
    sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    sim.crash_server()
    top = sim.world.images[APP].layers[-1].diff_id
    del sim.world.layers[top]
    sim.start_server()
    listed = sim.ask(rq.ListImages())
    assert isinstance(listed, rp.Images)
    assert [one.tags for one in listed.items] == [(BASE,)]
    sim.ask(rq.PullImage(image=ImageSpec(image=APP)))
    assert top in sim.world.layers


def test_removal_of_an_image_that_lost_a_layer_is_answered_when_its_record_is_gone() -> None:
    """The layer may come back with another image, and a crash would then have brought back what was said to be gone."""
    sim = simulation()
    sim.ask(rq.PullImage(image=ImageSpec(image=APP)))
    sim.crash_server()
    del sim.world.layers[sim.world.images[APP].layers[-1].diff_id]
    sim.stuck_lanes["images"] = True
    sim.start_server()
    call = sim.calls[sim.call(rq.RemoveImage(image=ImageSpec(image=APP)))]
    sim.run(60 * S)
    assert call.open and any(kind == "image" for kind, _ in sim.world.rows)
    sim.release()
    sim.run(1 * S)
    assert call.result == rp.Done() and not any(kind == "image" for kind, _ in sim.world.rows)


def test_a_crash_while_a_network_is_released_does_not_make_the_pod_ready_again() -> None:
    """R4, R8: the journal still called the pod ready, which had no network any more."""
    sim = simulation()
    pod = run_pod(sim)
    sim.call(rq.StopPodSandbox(sandbox_id=pod))
    run_until(sim, lambda: pod not in sim.world.addresses)
    restart(sim)
    assert pod_state(sim, pod) is not SandboxState.READY
    sim.run()
    assert pod_state(sim, pod) is SandboxState.STOPPED


def test_a_watch_that_fails_says_nothing_about_the_process() -> None:
    """R17: the container was shown as exited, and a stop answered, while its process ran."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    sim.faults = Faults(watch_fails=0.5)
    sim.hands.processes.kill(sim.world.processes[key])
    sim.run(30 * S)
    found = sim.ask(rq.ContainerStatus(container_id=key))
    assert isinstance(found, rp.ContainerFound)
    assert (found.container.exit_code, found.container.reason) == (137, "Error")


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_look_after_the_restart_that_fails_is_made_again(steps: int) -> None:
    """R7: namespaces that somebody unmounted were never missed when the one look at them failed."""
    sim = simulation()
    pod = run_pod(sim)
    sim.crash_server()
    sim.world.lose_namespaces(pod)
    sim.fail_next.append((fx.ObserveSandbox, steps))
    sim.start_server()
    sim.run()
    assert pod_state(sim, pod) is SandboxState.BROKEN


def test_a_pod_whose_remains_are_owed_gives_its_name_back_at_once() -> None:
    """R1, R28: a retry was told that the name is taken for as long as something was owed of the first attempt."""
    sim = simulation()
    sim.hands.network_broken = True
    with pytest.raises(OperationError):
        sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    sim.hands.network_broken = False
    assert run_pod(sim)


def test_a_retry_during_an_unwinding_whose_caller_has_gone_is_not_refused() -> None:
    """R1: the first caller left while its failed attempt was taken back; the name was then said to be taken."""
    sim = simulation()
    sim.fail_next.append((fx.AttachNetwork, 3))
    first = sim.call(rq.RunPodSandbox(config=pod_config(0)))
    run_until(sim, lambda: fx.DetachNetwork in sim.under_way)
    sim.cancel(first)
    second = sim.calls[sim.call(rq.RunPodSandbox(config=pod_config(0)))]
    sim.run()
    assert isinstance(second.result, rp.Created) or (
        isinstance(second.result, Failure) and second.result.reason == "INJECTED"
    )


def test_a_pod_is_not_stopped_while_what_is_owed_of_a_container_lives() -> None:
    """R21: the process of a container whose creation failed survived SIGKILL, and the pod's stop was answered."""
    sim = simulation()
    pod = run_pod(sim)
    config = container_config(0, 0, 5)
    sim.ask(rq.PullImage(image=config.image))
    # Its process is there, the monitor's word of it was lost, and it cannot be deleted.
    sim.fail_next.append((fx.CreateContainer, 5))
    sim.fail_next.append((fx.DeleteContainer, 0))
    with pytest.raises(OperationError):
        sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
    (process,) = sim.world.processes.values()
    with pytest.raises(OperationError):
        sim.ask(rq.StopPodSandbox(sandbox_id=pod))
    assert process.alive
    sim.run()
    sim.ask(rq.StopPodSandbox(sandbox_id=pod))
    assert not process.alive


def test_a_container_whose_pod_is_gone_from_the_journal_is_removed_at_the_start() -> None:
    """R8, R27: pod and container were removed together, and only the pod's deletion reached the journal."""
    sim = simulation()
    pod = run_pod(sim)
    key = run_container(sim, pod)
    sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
    sim.run()
    row = next(iter(sim.world.rows))
    assert row[0] == "image"
    again = run_pod(sim)
    other = run_container(sim, again)
    sim.crash_server()
    del sim.world.rows["sandbox", again]
    sim.start_server()
    sim.run()
    assert not sim.world.alive(key) and not sim.world.alive(other)
    assert ("container", other) not in sim.world.rows


def test_a_container_of_a_pod_that_is_only_owed_is_removed_at_the_start() -> None:
    """R8: a power cut brought the container's record back, and its pod was waiting for nothing but its network."""
    sim = simulation()
    pod = run_pod(sim)
    key = run_container(sim, pod)
    sim.ask(rq.StopContainer(container_id=key, grace_ns=0))
    row = sim.world.rows["container", key]
    sim.hands.network_broken = True
    sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
    sim.run(1 * S)
    sim.crash_server()
    sim.world.rows["container", key] = row
    sim.start_server()
    sim.release()
    sim.run()
    assert [kind for kind, _ in sim.world.rows] == ["image"]


def test_a_pod_that_was_never_recorded_as_ready_goes_with_its_containers() -> None:
    """R8, R27: the journal did not get that it was ready; it was taken back alone, and its containers had no pod."""
    sim = simulation()
    sim.call(rq.RunPodSandbox(config=pod_config(0)))
    run_until(sim, lambda: bool(sim.world.rows))
    (key, reserved), *_ = sim.world.rows.items()
    sim.run()
    container = run_container(sim, key[1])
    sim.crash_server()
    sim.world.rows[key] = reserved
    sim.start_server()
    sim.ask(rq.RemovePodSandbox(sandbox_id=key[1]))
    assert not sim.world.alive(container)
    sim.run()
    assert [kind for kind, _ in sim.world.rows] == ["image"]


def test_a_container_that_is_killed_and_was_never_started_is_not_called_running() -> None:
    """R17: its start had failed, and the journal had the kill of what a restart then took for a running container."""
    sim = simulation()
    config = container_config(0, 0)
    sim.ask(rq.PullImage(image=config.image))
    created = sim.ask(rq.CreateContainer(sandbox_id=run_pod(sim), config=config))
    assert isinstance(created, rp.Created)
    sim.crash_server()
    row = ("container", created.id)
    record = decode(row[0], sim.world.rows[row])
    assert isinstance(record, ContainerRecord)
    sim.world.rows[row] = encode(replace(record, state=ContainerState.KILLING))
    sim.start_server()
    sim.run()
    found = sim.ask(rq.ContainerStatus(container_id=created.id))
    assert isinstance(found, rp.ContainerFound)
    assert found.container.state is ContainerState.CREATED


def test_an_exit_file_that_a_power_cut_brings_back_goes_with_what_is_owed() -> None:
    """R4, R8: the root filesystem was still owed, and nothing else was looked for."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    sim.ask(rq.StopContainer(container_id=key, grace_ns=0))
    sim.run()
    end = sim.world.exits[key]
    sim.fail_next.append((fx.ReleaseRootfs, 0))
    sim.ask(rq.RemoveContainer(container_id=key))
    assert key not in sim.world.exits and ("container", key) in sim.world.rows
    sim.crash_server()
    sim.world.exits[key] = end
    sim.start_server()
    sim.run()
    assert key not in sim.world.exits and ("container", key) not in sim.world.rows


def test_a_container_in_the_making_when_its_pod_breaks_is_refused() -> None:
    """R3: its spec had no path for the pod's namespaces, and the step broke down."""
    sim = simulation()
    pod = run_pod(sim)
    config = container_config(0, 0)
    sim.ask(rq.PullImage(image=config.image))
    sim.crash_server()
    sim.world.lose_namespaces(pod)
    sim.start_server()
    with pytest.raises(OperationError, match="not ready"):
        sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
    sim.run()
    assert not sim.world.mounts


def test_a_signal_that_ends_after_the_removal_failed_changes_nothing() -> None:
    """R21: signals have a lane of their own; the table had no row for one that ends so late."""
    program = Program(
        seed=16,
        faults="few",
        actions=(
            *(Action(name="race", a=8, b=3, c=294), Action(name="race", b=1, c=564), Action(name="run_pod", a=2, b=5)),
            *(Action(name="wait", a=40, b=7), Action(name="race", a=56, b=1, c=570), Action(name="meet", a=26)),
        ),
    )
    assert not run_program(program).problems


def test_a_removal_goes_on_after_a_restart() -> None:
    """R28: a pod that was being removed when the server died stayed, stopped, until its client asked again."""
    sim = simulation()
    pod = run_pod(sim)
    sim.call(rq.RemovePodSandbox(sandbox_id=pod))
    run_until(sim, lambda: fx.DetachNetwork in sim.under_way)
    restart(sim)
    sim.run()
    assert sim.world.residue(()) == ()
    assert not sim.world.rows


def test_an_infra_container_that_is_gone_late_finds_its_pod_stopping() -> None:
    """R3: what was owed of the infra container ended while the pod waited for another container to die."""
    sim = simulation()
    pod = run_pod(sim, 2)
    config = container_config(2, 0)
    sim.ask(rq.PullImage(image=config.image))
    created = sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
    assert isinstance(created, rp.Created)
    sim.ask(rq.StartContainer(container_id=created.id))
    sim.hands.network_broken = True
    call = sim.call(rq.StopPodSandbox(sandbox_id=pod))
    # The container's end is not written down, and the infra container cannot be deleted.
    run_until(sim, lambda: not sim.world.alive(created.id))
    sim.fail_next += [(fx.SaveRecord, 0), (fx.DeleteContainer, 0)]
    run_until(sim, lambda: fx.DetachNetwork in sim.under_way or sim.calls[call].result is not None)
    sim.crash_server()
    sim.faults = Faults(watch_fails=1.0)
    sim.start_server()
    sim.run(5 * S)
    sim.release()
    sim.run()
    assert pod_state(sim, pod) is SandboxState.STOPPED


def test_one_pod_that_is_stuck_changes_no_other_pods_times() -> None:
    """R2, R21, R33: with every effect of one pod hanging, each call about another pod takes exactly as long."""

    def times(stuck: bool) -> list[int]:
        sim = simulation()
        sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
        first = run_pod(sim, 0)
        if stuck:
            sim.stuck_lanes[first] = True
        sim.call(rq.StopPodSandbox(sandbox_id=first))
        sim.run(1 * S)
        began = len(sim.calls)
        other = run_pod(sim, 1)
        config = container_config(1, 0)
        created = sim.ask(rq.CreateContainer(sandbox_id=other, config=config))
        assert isinstance(created, rp.Created)
        for request in (
            rq.StartContainer(container_id=created.id),
            rq.ListPodSandbox(),
            rq.ContainerStatus(container_id=created.id),
            rq.StopContainer(container_id=created.id, grace_ns=1 * S),
            rq.RemoveContainer(container_id=created.id),
            rq.RemovePodSandbox(sandbox_id=other),
        ):
            sim.ask(request)
        return [one.answered_at_ns - one.asked_at_ns for one in list(sim.calls.values())[began:]]

    assert times(stuck=True) == times(stuck=False)


def test_two_simulations_with_one_seed_do_the_same() -> None:
    """A failure is a seed: without this none could be replayed."""

    def effects(seed: int) -> list[str]:
        seen: list[str] = []
        sim = Simulation(seed)
        sim.on_event = lambda event, effects: seen.append(repr((event, effects)))
        pod = run_pod(sim)
        run_container(sim, pod)
        restart(sim)
        sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
        sim.run()
        return seen

    assert effects(5) == effects(5)
    assert effects(5) != effects(6)


def test_a_pod_that_was_made_after_the_clock_went_back_keeps_its_name() -> None:
    """R8: a power cut brought a removed pod back, whose time of creation is later than that of the pod in its place."""
    sim = simulation()
    old = run_pod(sim)
    row = sim.world.rows["sandbox", old]
    sim.ask(rq.RemovePodSandbox(sandbox_id=old))
    sim.step_clock(-3600 * S)
    live = run_pod(sim)
    sim.crash_server()
    sim.world.rows["sandbox", old] = row
    sim.start_server()
    sim.run()
    assert pod_state(sim, live) is SandboxState.READY
    assert old not in sim.world.files
    assert run_pod(sim) == live


def test_records_of_an_older_version_are_told_apart_by_their_times() -> None:
    """R32: they have no generation; of two with one name the later one keeps it, and what is made next is newer."""
    sim = simulation()
    old = run_pod(sim)
    row = sim.world.rows["sandbox", old]
    sim.ask(rq.RemovePodSandbox(sandbox_id=old))
    live = run_pod(sim)
    sim.crash_server()
    sim.world.rows["sandbox", old] = row
    for key, data in sim.world.rows.items():
        fields = orjson.loads(data)
        fields.pop("generation", None)
        sim.world.rows[key] = orjson.dumps(fields)
    sim.start_server()
    sim.run()
    assert pod_state(sim, live) is SandboxState.READY
    assert run_pod(sim) == live
    assert sim.node is not None
    assert sim.node._state.sandboxes[run_pod(sim, 1)].generation > 0


@pytest.mark.parametrize("seed", range(40))
def test_a_power_cut_leaves_no_address_that_nobody_owns(seed: int) -> None:
    """R4: what a plugin wrote down outlived the record of the pod, or came back when the record was gone."""
    sim = Simulation(seed=seed, latency=STEADY)
    first = run_pod(sim)
    sim.call(rq.RunPodSandbox(config=pod_config(2)))
    sim.run(seed * 2 * MS)
    sim.call(rq.RemovePodSandbox(sandbox_id=first))
    sim.run(seed * 4 * MS)
    sim.crash_machine()
    sim.start_server()
    sim.run()
    assert sim.node is not None
    assert sim.world.addresses.keys() <= set(sim.node._state.sandboxes.keys())
    for pod in tuple(sim.node._state.sandboxes._items):
        sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
    sim.run()
    assert not sim.world.addresses and not sim.world.network_owed


def test_what_is_owed_is_tried_again_with_growing_pauses() -> None:
    """R5: a plugin that is gone for an hour was asked for without end by others; here after 1 s, 2 s, ... 5 minutes."""
    sim = simulation()
    pod = run_pod(sim)
    sim.hands.network_broken = True
    tried: list[int] = []

    def note(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        tried.extend(sim.at_ns for effect in effects if isinstance(effect.order, fx.DetachNetwork))

    sim.on_event = note
    sim.ask(rq.StopPodSandbox(sandbox_id=pod))
    sim.run(3600 * S)
    pauses = [round((after - before) / S) for before, after in pairwise(tried)]
    assert pauses[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert set(pauses[9:]) == {300}


def test_a_monitor_that_never_writes_a_code_is_not_waited_for_without_end() -> None:
    """R17: it outlives its container's process; the container has ended all the same, with a code nobody knows."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    sim.faults = Faults(monitor_hangs=1.0)
    sim.hands.processes.kill(sim.world.processes[key])
    sim.run(60 * S)
    found = sim.ask(rq.ContainerStatus(container_id=key))
    assert isinstance(found, rp.ContainerFound)
    assert (found.container.exit_code, found.container.reason) == (255, "Unknown")


@pytest.mark.parametrize(("child", "reason"), [(False, "OOMKilled"), (True, "Error")])
def test_a_want_of_memory_is_told_from_a_kill(child: bool, reason: str) -> None:
    """R20: the first process died of it; or a child did, and the first process was killed at the end of a stop."""
    sim = simulation()
    key = run_container(sim, run_pod(sim), 4)
    sim.hands.processes.run_dry(sim.world.processes[key], child=child)
    sim.ask(rq.StopContainer(container_id=key, grace_ns=1 * S))
    found = sim.ask(rq.ContainerStatus(container_id=key))
    assert isinstance(found, rp.ContainerFound)
    assert (found.container.exit_code, found.container.reason) == (137, reason)


def test_a_blob_that_is_not_what_it_should_be_is_fetched_again_by_the_next_pull() -> None:
    """R12: a download that went bad on disk must not stay in the way."""
    sim = simulation()
    sim.faults = Faults(blob_rots=1.0)
    with pytest.raises(OperationError, match="digest"):
        sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    sim.faults = Faults()
    sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    assert len(sim.world.layers) == 1


def test_many_pulls_of_images_that_share_layers_fetch_each_layer_once() -> None:
    """R15: ten pods with one image would take ten times as long."""
    sim = simulation()
    fetched: list[str] = []

    def note(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        fetched.extend(effect.order.diff_id for effect in effects if isinstance(effect.order, fx.FetchLayer))

    sim.on_event = note
    calls = [sim.call(rq.PullImage(image=ImageSpec(image=name))) for name in (BASE, APP, OTHER) * 4]
    sim.run()
    assert all(isinstance(sim.calls[call].result, rp.Pulled) for call in calls)
    assert len(fetched) == len(set(fetched)) == 4


def test_a_second_removal_is_not_answered_before_the_record_is_gone() -> None:
    """R8: the pod was gone from memory, a crash brought it back from the journal, and its name was refused."""
    sim = simulation()
    pod = run_pod(sim)
    first = sim.call(rq.RemovePodSandbox(sandbox_id=pod))
    assert sim.node is not None
    run_until(sim, lambda: pod not in sim.node._state.sandboxes)  # type: ignore[union-attr]
    second = sim.calls[sim.call(rq.RemovePodSandbox(sandbox_id=pod))]
    assert ("sandbox", pod) in sim.world.rows
    assert second.result is None
    run_until(sim, lambda: second.result is not None)
    assert sim.calls[first].result == rp.Done()
    assert ("sandbox", pod) not in sim.world.rows
