"""Metrics fit their descriptions, are told apart by their labels, and leave out what is not known."""

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from crio_core.counters import Counters, Disk
from crio_core.stats import Interface, Pressure, Stall, Usage
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.services.metrics import FAMILIES, LABELS, Seen, metrics_of
from tests.property.test_stats import COUNTS, FIGURES, PRESSURES

COUNT = st.integers(0, 2**40)
STALLS = st.builds(Stall, total_ns=COUNT, avg10=st.just(0.0), avg60=st.just(0.0), avg300=st.just(0.0))
PRESSURE = st.none() | st.builds(Pressure, some=STALLS, full=st.none() | STALLS)
USAGES = st.builds(
    Usage, at_ns=COUNT, wall_ns=COUNT, **dict.fromkeys(FIGURES, COUNTS), **dict.fromkeys(PRESSURES, PRESSURE)
)
DISKS = st.builds(Disk, device=st.sampled_from(["8:0", "8:16"]), **dict.fromkeys(
    ("read_bytes", "written_bytes", "reads", "writes"), COUNT
))  # fmt: skip
COUNTED = {one.name: COUNTS for one in fields(Counters) if one.name != "disks"}
COUNTERS = st.builds(Counters, disks=st.lists(DISKS, unique_by=lambda one: one.device).map(tuple), **COUNTED)
INTERFACES = st.builds(Interface, name=st.sampled_from(["eth0", "net1"]), **{
    one.name: COUNT for one in fields(Interface) if one.name != "name"
})  # fmt: skip
SEEN = st.builds(
    Seen,
    usage=st.none() | USAGES,
    counters=st.none() | COUNTERS,
    interfaces=st.lists(INTERFACES, unique_by=lambda one: one.name),
)
VALUES = ("c", "id", "image", "name", "ns", "pod")


@given(SEEN)
def test_metrics_fit_their_descriptions(seen: Seen) -> None:
    """As many labels as described, each combination once; a kubelet drops all that does not fit."""
    described = {one.name: (*LABELS, *one.keys) for one in FAMILIES}
    assert len(described) == len(FAMILIES)
    found = list(metrics_of(seen, VALUES))
    assert all(len(one.label_values) == len(described[one.name]) for one in found)
    assert len({(one.name, *one.label_values) for one in found}) == len(found)
    assert {one.timestamp for one in found} <= {seen.usage.wall_ns if seen.usage is not None else 0}


@given(USAGES)
def test_times_are_whole_seconds_and_what_is_unknown_is_left_out(usage: Usage) -> None:
    """A zero would be a figure; a kernel without pressure, for one, has none."""
    found = {one.name: one for one in metrics_of(Seen(usage=usage), VALUES) if len(one.label_values) == len(LABELS)}
    waited = usage.memory_pressure
    assert ("container_pressure_memory_waiting_seconds_total" in found) == (waited is not None)
    assert ("container_pressure_memory_stalled_seconds_total" in found) == (
        waited is not None and waited.full is not None
    )
    if waited is not None:
        told = found["container_pressure_memory_waiting_seconds_total"]
        assert (told.value.value, told.metric_type) == (waited.some.total_ns // 10**9, pb.COUNTER)
    assert ("container_memory_rss" in found) == (usage.rss_bytes is not None)
    assert "container_cpu_user_seconds_total" not in found
