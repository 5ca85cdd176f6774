"""Limits of what runs: what is asked of the runtime, what is kept, and what a crash in between leaves."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ContainerConfig, HugepageLimit, LinuxContainerResources
from crio_core.errors import OperationError
from crio_core.oci.facts import CgroupMode, HostFacts
from crio_core.oci.resources import changes, merged
from crio_core.records import decode_request
from crio_core.sim import Simulation
from tests.property.test_node_regressions import restart, run_container, run_pod, run_until, simulation

HOST = HostFacts(cgroup_mode=CgroupMode.V2, swap_limits=True)
NOTHING = LinuxContainerResources()
LIMITS = st.builds(
    LinuxContainerResources,
    cpu_period=st.sampled_from((0, 1000, 100_000)),
    cpu_quota=st.sampled_from((0, -1, 5000)),
    cpu_shares=st.sampled_from((0, 2, 1024)),
    memory_limit_in_bytes=st.sampled_from((0, 1 << 20, 1 << 30)),
    memory_swap_limit_in_bytes=st.sampled_from((0, -1, 1 << 30)),
    oom_score_adj=st.integers(-5, 5),
    cpuset_cpus=st.sampled_from(("", "0", "0-1")),
    unified=st.dictionaries(st.sampled_from(("memory.high", "cpu.weight")), st.sampled_from(("1", "max"))),
)


@given(LIMITS, LIMITS)
def test_an_update_names_what_it_was_given_and_keeps_the_rest(
    asked: LinuxContainerResources, before: LinuxContainerResources
) -> None:
    """CRI, UpdateContainerResources: what is left out must not be reset, neither where it runs nor in what is shown."""
    after = merged(asked, before)
    for name in ("cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "cpuset_cpus"):
        assert getattr(after, name) == (getattr(asked, name) or getattr(before, name))
    assert after.oom_score_adj == before.oom_score_adj
    assert after.unified == {**before.unified, **asked.unified}
    assert merged(asked, after) == after
    if after.memory_swap_limit_in_bytes > 0 and not 0 < after.memory_limit_in_bytes <= after.memory_swap_limit_in_bytes:
        with pytest.raises(OperationError, match="memory_swap_limit_in_bytes"):
            changes(asked, before, HOST)
        return
    found = changes(asked, before, HOST)
    assert ("cpu" in found) is bool(asked.cpu_period or asked.cpu_quota or asked.cpu_shares or asked.cpuset_cpus)
    assert ("memory" in found) is bool(asked.memory_limit_in_bytes or asked.memory_swap_limit_in_bytes)
    if "memory" in found and after.memory_limit_in_bytes:
        assert found["memory"]["limit"] == after.memory_limit_in_bytes
        assert found["memory"]["swap"] in (-1, after.memory_swap_limit_in_bytes or after.memory_limit_in_bytes)


def test_huge_pages_cannot_be_changed_and_may_be_named() -> None:
    """A kubelet names every size in each update; a runtime changes none of them."""
    before = LinuxContainerResources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=1 << 21),))
    assert changes(before, before, HOST) == {}
    assert changes(LinuxContainerResources(hugepage_limits=(HugepageLimit(page_size="1GB"),)), before, HOST) == {}
    with pytest.raises(OperationError, match=r"hugepage_limits\[0\]\.limit.*as it is"):
        changes(LinuxContainerResources(hugepage_limits=(HugepageLimit(page_size="2MB"),)), before, HOST)


def shares(sim: Simulation, key: str) -> int:
    """Of the processor, as the status shows them."""
    found = sim.ask(rq.ContainerStatus(container_id=key))
    assert isinstance(found, rp.ContainerFound)
    return decode_request(ContainerConfig, found.container.request).linux.resources.cpu_shares


def update(key: str, cpu_shares: int) -> rq.UpdateContainerResources:
    return rq.UpdateContainerResources(container_id=key, resources=LinuxContainerResources(cpu_shares=cpu_shares))


def held(sim: Simulation, key: str) -> Any:
    return sim.world.cgroups[key].get("cpu", {}).get("shares")


def test_a_crash_before_the_record_is_written_shows_the_old_limit_until_it_is_asked_for_again() -> None:
    """A kubelet compares what is shown with what it wants: a limit that is shown too early is never asked for again."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    call = sim.calls[sim.call(update(key, 512))]
    run_until(sim, lambda: held(sim, key) == 512)
    restart(sim)
    assert call.died and shares(sim, key) == 0
    assert sim.ask(update(key, 512)) == rp.Done()
    restart(sim)
    assert shares(sim, key) == held(sim, key) == 512


def test_an_update_that_fails_changes_nothing_that_is_shown() -> None:
    """The runtime's words reach the caller."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    sim.fail_next.append((fx.UpdateContainer, 0))
    with pytest.raises(OperationError, match="UpdateContainer failed"):
        sim.ask(update(key, 512))
    assert shares(sim, key) == 0 and held(sim, key) is None


def test_each_of_two_updates_at_once_is_answered_for_itself() -> None:
    """The second names something else, and must not be told that it is done when the first one is."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    first = sim.calls[sim.call(update(key, 300))]
    memory = LinuxContainerResources(memory_limit_in_bytes=1 << 26)
    second = sim.calls[sim.call(rq.UpdateContainerResources(container_id=key, resources=memory))]
    run_until(sim, lambda: not first.open)
    assert second.open and "memory" not in sim.world.cgroups[key]
    run_until(sim, lambda: not second.open)
    assert first.result == second.result == rp.Done()
    found = orjson.loads(orjson.dumps(sim.world.cgroups[key]))
    assert (found["cpu"]["shares"], found["memory"]["limit"]) == (300, 1 << 26)
    assert shares(sim, key) == 300
