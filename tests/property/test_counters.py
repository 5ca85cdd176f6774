"""What only metrics tell, from the kernel's files: both versions alike, and no text makes a reader fail."""

from hypothesis import given
from hypothesis import strategies as st

from crio_core.counters import DISKS_MAX, Counters, Disk, counters_of_v1, counters_of_v2
from crio_core.stats import Pressure, Stall, pressure_of

V1 = {
    "cpuacct.stat": "user 150\nsystem 20\n",
    "cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 7000000\n",
    "memory.stat": "cache 1\ntotal_cache 300\nmapped_file 2\ntotal_mapped_file 40\n",
    "memory.max_usage_in_bytes": "9000\n",
    "memory.failcnt": "5\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 1\nTotal 4608\n",
    "blkio.throttle.io_serviced_recursive": "8:0 Read 3\n8:0 Write 1\nTotal 4\n",
}
V2 = {
    "cpu.stat": "user_usec 1500000\nsystem_usec 200000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 7000\n",
    "memory.stat": "anon 1\nfile 300\nfile_mapped 40\n",
    "memory.peak": "9000\n",
    "memory.events": "low 0\nhigh 0\nmax 5\noom 3\noom_kill 2\n",
    "io.stat": "8:0 rbytes=4096 wbytes=512 rios=3 wios=1 dbytes=0 dios=0\n",
}


def test_both_versions_of_control_groups_give_the_same_counters() -> None:
    """A client cannot tell which one a node has."""
    first = counters_of_v1(V1)
    assert first == counters_of_v2(V2)
    assert (first.cpu_user_ns, first.cpu_system_ns, first.throttled_ns) == (1_500_000_000, 200_000_000, 7_000_000)
    assert (first.periods, first.throttled_periods) == (9, 4)
    assert (first.cache_bytes, first.mapped_bytes, first.peak_bytes) == (300, 40, 9000)
    assert (first.limit_hits, first.oom_kills) == (5, 2)
    assert first.disks == (Disk(device="8:0", read_bytes=4096, written_bytes=512, reads=3, writes=1),)


TEXTS = st.text(max_size=80) | st.sampled_from([*V1.values(), *V2.values()])


@given(st.dictionaries(st.sampled_from([*V1, *V2]), TEXTS))
def test_any_text_is_read(files: dict[str, str]) -> None:
    """What a kernel of another version writes is left out."""
    for read in (counters_of_v1, counters_of_v2):
        assert len(read(files).disks) <= DISKS_MAX
    assert counters_of_v1({}) == counters_of_v2({}) == Counters()


def test_pressure_is_read_and_what_the_kernel_does_not_tell_is_left_out() -> None:
    """An old kernel has no line of all tasks for processors."""
    some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\n"
    told = Stall(avg10=1.5, avg60=0.25, avg300=0.0, total_ns=12_000)
    assert pressure_of(some) == Pressure(some=told, full=None)
    full = "full avg10=0.50 avg60=0.00 avg300=0.00 total=3\n"
    assert pressure_of(some + full) == Pressure(some=told, full=Stall(avg10=0.5, avg60=0, avg300=0, total_ns=3000))
    assert pressure_of(None) is None and pressure_of("") is None and pressure_of(full) is None


@given(st.text(max_size=200))
def test_any_text_of_pressure_is_read(text: str) -> None:
    """Reading never fails."""
    pressure_of(text)
