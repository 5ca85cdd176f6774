"""Races that chance seldom meets, each told once: a row of a table that random programs reach once in a thousand."""

from collections.abc import Callable

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.records import Failure
from crio_core.replies import Created
from crio_core.sim import Faults, Life, Simulation
from crio_core.sim.checks import run_program
from crio_core.sim.images import BASE
from crio_core.sim.profiles import MS, STEADY, S
from crio_core.sim.programs import Action, Program, container_config
from tests.property.test_node_regressions import (
    run_container,
    run_pod,
    run_until,
    simulation,
)
from tests.property.test_node_regressions import (
    test_an_infra_container_cannot_be_ended_while_its_pod_waits_for_another as infra_owed_early,
)
from tests.property.test_node_regressions import (
    test_an_infra_container_that_is_gone_late_finds_its_pod_stopping as infra_is_gone_late,
)
from tests.property.test_node_streams import (
    test_container_that_ends_withdraws_its_offers_and_ends_its_streams as offers_end_with_their_container,
)

DEAF, STUCK = 4, 5


def _wake_program(seed: int, what: int) -> Program:
    prepared = (Action(name="pull"), Action(name="run_pod"), Action(name="wait", a=4))
    return Program(seed=seed, faults="none", actions=(*prepared, Action(name="wake", c=what)))


def test_a_restart_meets_a_start_that_the_journal_missed() -> None:
    """R17: whatever is asked of a container before the look at it has come back, memory ends up with the truth."""
    for seed in range(40):
        for what in range(20):
            assert not run_program(_wake_program(seed, what)).problems


def test_a_grace_time_ends_while_the_kill_is_waited_for() -> None:
    """R22: a stop with no time left overtook a patient one, and the process does not die at once."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    sim.world.processes[key].life = Life(deaf=True, stuck_ns=30 * S)
    patient = sim.calls[sim.call(rq.StopContainer(container_id=key, grace_ns=5 * S))]
    sim.call(rq.StopContainer(container_id=key, grace_ns=0))
    sim.run(7 * S)
    assert sim.world.alive(key)
    assert patient.result is None
    sim.run()
    assert not sim.world.alive(key)


def test_a_grace_time_is_heard_of_after_the_container_is_gone_or_owed() -> None:
    """R21: the timer was cancelled too late to be stopped, and the removal went on meanwhile, well or badly."""
    for seed in range(40):
        for fails in (False, True):
            sim = Simulation(seed=seed, latency=STEADY)
            key = run_container(sim, run_pod(sim), DEAF)
            sim.faults = Faults(timer_late=1.0)
            sim.call(rq.StopContainer(container_id=key, grace_ns=60 * S))
            sim.run(10 * MS)
            if fails:
                sim.fail_next.append((fx.DeleteContainer, 0))
            removal = sim.calls[sim.call(rq.RemoveContainer(container_id=key))]
            sim.run(200 * MS)
            sim.release()
            sim.run()
            assert removal.result is not None and not isinstance(removal.result, Failure)
            assert key not in sim.world.runtime


def test_an_image_is_pulled_again_while_its_layers_cannot_be_removed() -> None:
    """R12: what is owed of a layer ends when a pull wants the layer again, whatever becomes of the removal."""
    for late in (0.0, 1.0):
        sim = simulation()
        sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
        sim.fail_next.append((fx.RemoveLayer, 0))
        sim.slow_next.append(fx.RemoveLayer)
        sim.ask(rq.RemoveImage(image=ImageSpec(image=BASE)))
        run_until(sim, lambda sim=sim: fx.RemoveLayer in sim.under_way)  # type: ignore[misc]
        pull = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=BASE)))]
        sim.latency = STEADY
        sim.faults = Faults(timer_late=late)
        sim.run()
        assert pull.result is not None and not isinstance(pull.result, Failure)
        assert sim.world.layers


def test_an_image_is_pulled_again_while_its_layers_are_being_removed() -> None:
    """R12: the removal goes well, and the download waits for it."""
    sim = simulation()
    sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    sim.slow_next.append(fx.RemoveLayer)
    sim.ask(rq.RemoveImage(image=ImageSpec(image=BASE)))
    run_until(sim, lambda: fx.RemoveLayer in sim.under_way)
    pull = sim.calls[sim.call(rq.PullImage(image=ImageSpec(image=BASE)))]
    sim.run()
    assert pull.result is not None and not isinstance(pull.result, Failure)
    assert sim.world.layers


def test_a_removal_meets_the_retry_of_an_owed_network() -> None:
    """R5, R28: the retry ends, well or badly, while the pod's containers are being removed."""
    for broken in (False, True):
        sim = simulation()
        pod = run_pod(sim)
        run_container(sim, pod)
        sim.hands.network_broken = True
        sim.ask(rq.StopPodSandbox(sandbox_id=pod))
        run_until(sim, lambda sim=sim: fx.DetachNetwork in sim.under_way)  # type: ignore[misc]
        sim.hands.network_broken = broken
        sim.run(70 * MS)
        sim.call(rq.RemovePodSandbox(sandbox_id=pod))
        sim.run(100 * MS)
        sim.release()
        sim.run()
        assert sim.world.residue(()) == tuple(sorted(f"layer {one}" for one in sim.world.layers))


def test_a_look_finds_namespaces_lost_while_the_pod_is_stopped() -> None:
    """R7: the look after a restart is slow, and a stop waits for a container meanwhile."""
    sim = simulation()
    pod = run_pod(sim)
    key = run_container(sim, pod, STUCK)
    sim.crash_server()
    sim.world.lose_namespaces(pod)
    sim.slow_next.append(fx.ObserveSandbox)
    sim.start_server()
    stop = sim.calls[sim.call(rq.StopPodSandbox(sandbox_id=pod))]
    sim.run()
    assert stop.result is not None
    sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
    assert not sim.world.alive(key)


def test_a_signal_ends_after_the_removal_of_its_container_has_failed() -> None:
    """R21: the signal's own lane is slow, well or badly; the process ended by itself and was removed meanwhile."""
    for fails in (False, True):
        sim = simulation()
        key = run_container(sim, run_pod(sim), DEAF)
        sim.slow_next.append(fx.SignalContainer)
        if fails:
            sim.fail_next.append((fx.SignalContainer, 0))
        sim.call(rq.StopContainer(container_id=key, grace_ns=60 * S))
        sim.hands.processes.kill(sim.world.processes[key])
        sim.fail_next += [(fx.DeleteContainer, 0)] * 3
        removal = sim.calls[sim.call(rq.RemoveContainer(container_id=key))]
        sim.run()
        assert removal.result is not None and not isinstance(removal.result, Failure)
        assert key not in sim.world.runtime


def test_a_removal_of_a_pod_meets_a_container_that_came_back_and_will_not_go() -> None:
    """R1, R9: the journal failed to forget a creation that was taken back, then came a crash, then deletions fail."""
    for stays in (1, 3):
        sim = simulation()
        pod = run_pod(sim)
        sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
        sim.fail_next += [(fx.MountRootfs, 0), (fx.DeleteRecord, 0)]
        sim.call(rq.CreateContainer(sandbox_id=pod, config=container_config(0, 0)))
        sim.run(100 * MS)
        sim.ask(rq.StopPodSandbox(sandbox_id=pod))
        sim.fail_next += [(fx.DeleteContainer, 0)] * stays
        sim.crash_server()
        sim.start_server()
        sim.run(100 * MS)
        removal = sim.calls[sim.call(rq.RemovePodSandbox(sandbox_id=pod))]
        sim.run(100 * MS)
        assert isinstance(removal.result, Failure) == (stays == 3)
        sim.run()
        sim.ask(rq.RemovePodSandbox(sandbox_id=pod))
        assert sim.world.residue(()) == tuple(sorted(f"layer {one}" for one in sim.world.layers))
        assert pod not in {row for _, row in sim.world.rows}


def test_a_look_from_before_a_removal_comes_back_in_the_midst_of_it() -> None:
    """R17: it saw the container run, which the journal does not know, and says so of one that is being removed."""
    for seed in range(12):
        sim = Simulation(seed=seed, latency=STEADY)
        pod = run_pod(sim)
        config = container_config(0, 0)
        sim.ask(rq.PullImage(image=config.image))
        made = sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
        assert isinstance(made, Created)
        process = sim.world.processes[made.id]
        sim.call(rq.StartContainer(container_id=made.id))
        while not process.running:
            assert sim.tick()
        sim.crash_server()
        sim.slow_next.append(fx.ObserveContainer)
        sim.start_server()
        sim.run(10 * MS)
        sim.ask(rq.RemoveContainer(container_id=made.id))
        assert made.id not in sim.world.runtime and not process.alive


STORIES: tuple[Callable[[], None], ...] = (
    test_a_restart_meets_a_start_that_the_journal_missed,
    test_a_grace_time_ends_while_the_kill_is_waited_for,
    test_a_grace_time_is_heard_of_after_the_container_is_gone_or_owed,
    test_an_image_is_pulled_again_while_its_layers_cannot_be_removed,
    test_an_image_is_pulled_again_while_its_layers_are_being_removed,
    test_a_removal_meets_the_retry_of_an_owed_network,
    test_a_look_finds_namespaces_lost_while_the_pod_is_stopped,
    test_a_signal_ends_after_the_removal_of_its_container_has_failed,
    test_a_removal_of_a_pod_meets_a_container_that_came_back_and_will_not_go,
    test_a_look_from_before_a_removal_comes_back_in_the_midst_of_it,
    infra_is_gone_late,
    infra_owed_early,
    offers_end_with_their_container,
)
"""What the measurement of transitions runs besides random programs."""
