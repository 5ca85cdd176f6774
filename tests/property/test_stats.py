"""What containers use, from the kernel's counters: absent ones are left out, and no text makes a reader fail."""

from dataclasses import asdict, fields

from hypothesis import given
from hypothesis import strategies as st

from crio_core.stats import (
    INTERFACES_MAX,
    NS_PER_S,
    UNLIMITED_BYTES,
    Usage,
    interfaces_of,
    nano_cores,
    together,
    usage_of_v1,
    usage_of_v2,
)

PRESSURES = ("cpu_pressure", "memory_pressure", "io_pressure")
FIGURES = tuple(one.name for one in fields(Usage) if one.name not in ("at_ns", "wall_ns", *PRESSURES))
COUNTS = st.none() | st.integers(0, 2**40)
USAGES = st.builds(Usage, at_ns=st.just(1), wall_ns=st.just(2), **dict.fromkeys(FIGURES, COUNTS))

V1 = {
    "cpuacct.usage": "1500000000\n",
    "memory.usage_in_bytes": "5000\n",
    "memory.limit_in_bytes": "9000\n",
    "memory.memsw.usage_in_bytes": "5700\n",
    "memory.memsw.limit_in_bytes": "10000\n",
    "memory.stat": "cache 1\ntotal_inactive_file 1000\ntotal_rss 3000\ntotal_pgfault 7\ntotal_pgmajfault 2\n",
    "pids.current": "3\n",
}
V2 = {
    "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
    "memory.current": "5000\n",
    "memory.max": "9000\n",
    "memory.swap.current": "700\n",
    "memory.swap.max": "1000\n",
    "memory.stat": "anon 3000\nfile 1\ninactive_file 1000\npgfault 7\npgmajfault 2\n",
    "pids.current": "3\n",
}


def test_both_versions_of_control_groups_give_the_same_figures() -> None:
    """A client cannot tell which one a node has: the same facts are the same figures."""
    first, second = usage_of_v1(V1, 5, 6), usage_of_v2(V2, 5, 6)
    assert first == second
    assert (first.cpu_ns, first.nano_cores, first.processes) == (1_500_000_000, None, 3)
    assert (first.memory_bytes, first.working_set_bytes, first.available_bytes) == (5000, 4000, 5000)
    assert (first.rss_bytes, first.page_faults, first.major_page_faults) == (3000, 7, 2)
    assert (first.swap_bytes, first.swap_available_bytes) == (700, 300)


def test_without_a_limit_nothing_is_said_to_be_available() -> None:
    """Version 1 writes its largest number, version 2 a word."""
    unlimited = {"memory.limit_in_bytes": "9223372036854771712", "memory.memsw.limit_in_bytes": str(UNLIMITED_BYTES)}
    assert usage_of_v1({**V1, **unlimited}, 0, 0).available_bytes is None
    assert usage_of_v1({**V1, **unlimited}, 0, 0).swap_available_bytes is None
    assert usage_of_v2({**V2, "memory.max": "max\n", "memory.swap.max": "max\n"}, 0, 0).available_bytes is None


@given(st.dictionaries(st.sampled_from([*V1, *V2]), st.text(max_size=60)))
def test_any_text_is_read_and_no_figure_is_negative(files: dict[str, str]) -> None:
    """What a kernel of another version writes is left out; it is neither an error nor a zero."""
    for read in (usage_of_v1, usage_of_v2):
        figures = asdict(read(files, 0, 0))
        assert all(value is None or value >= 0 for value in figures.values())
    assert all(asdict(usage_of_v1({}, 0, 0))[name] is None for name in FIGURES)


@given(st.integers(0, 2**50), st.integers(0, 2**40), st.integers(1, 2**40))
def test_use_between_two_looks_is_what_was_used_in_that_time(before: int, used: int, passed: int) -> None:
    """A counter that went back, as after a restart under the same id, is no use and no error."""
    first = Usage(at_ns=10, wall_ns=0, cpu_ns=before)
    second = Usage(at_ns=10 + passed, wall_ns=0, cpu_ns=before + used)
    assert nano_cores(first, second) == used * NS_PER_S // passed
    assert nano_cores(Usage(at_ns=10, wall_ns=0, cpu_ns=before + used + 1), second) == 0
    assert nano_cores(None, second) is None and nano_cores(second, first) is None


@given(st.lists(USAGES, max_size=5))
def test_a_pod_uses_what_its_containers_use(parts: list[Usage]) -> None:
    """A figure that no container has is none of the pod's either."""
    whole = asdict(together(parts, 7, 8))
    for name in FIGURES:
        known = [value for part in parts if (value := getattr(part, name)) is not None]
        assert whole[name] == (sum(known) if known else None)


NAMES = st.from_regex(r"[a-z][a-z0-9.]{0,14}", fullmatch=True).filter(lambda name: name != "lo")
COUNTERS = st.lists(st.integers(0, 2**63), min_size=16, max_size=16)


@given(st.dictionaries(NAMES, COUNTERS, max_size=INTERFACES_MAX + 3))
def test_interfaces_are_read_in_order_and_the_loopback_device_is_none(counters: dict[str, list[int]]) -> None:
    """proc_pid_net(5): eight counters of what was received, then eight of what was sent; their number is bounded."""
    rows = [("lo", [9] * 16), *counters.items()]
    text = "head\nhead\n" + "".join(f"{name:>6}: {' '.join(map(str, numbers))}\n" for name, numbers in rows)
    found = interfaces_of(text)
    assert [one.name for one in found] == list(counters)[:INTERFACES_MAX]
    for one in found:
        numbers = counters[one.name]
        assert (one.rx_bytes, one.rx_errors, one.tx_bytes, one.tx_errors) == (
            *(numbers[0], numbers[2]),
            *(numbers[8], numbers[10]),
        )


@given(st.text(max_size=200))
def test_no_text_of_interfaces_makes_the_reader_fail(text: str) -> None:
    """A line that is no interface is passed over."""
    assert all(one.name != "lo" for one in interfaces_of(f"head\nhead\n{text}"))
