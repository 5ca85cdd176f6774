"""What only metrics tell of a control group: throttling, memory's history, disks. Parsing, without reading anything.

As in `stats.py`, what a kernel does not count is None.
"""

from collections.abc import Mapping

from crio_core.stats import named_numbers, number
from crio_core.values import dataclass

TICK_NS = 10_000_000
"""A hundredth of a second, in which version 1 counts processor time of each mode, on every machine (USER_HZ)."""
DISKS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What was read from one block device, and written to it; `device` is its `major:minor`."""

    device: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One look at a control group.

    Args:
        periods: Of the processor's quota, in which something wanted to run.
        throttled_periods: Those in which the quota was used up.
        peak_bytes: The most memory that was ever used.
        limit_hits: How often memory would have gone beyond its limit.
        oom_kills: Processes that were killed for want of memory.
    """

    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None
    cache_bytes: int | None = None
    mapped_bytes: int | None = None
    peak_bytes: int | None = None
    limit_hits: int | None = None
    oom_kills: int | None = None
    disks: tuple[Disk, ...] = ()


def _times(count: int | None, unit: int) -> int | None:
    return None if count is None else count * unit


def counters_of_v1(files: Mapping[str, str]) -> Counters:
    """Read cgroup v1's files: contents by name, of every controller's directory of one control group."""
    cpu, modes = named_numbers(files.get("cpu.stat")), named_numbers(files.get("cpuacct.stat"))
    memory, oom = named_numbers(files.get("memory.stat")), named_numbers(files.get("memory.oom_control"))
    return Counters(
        cpu_user_ns=_times(modes.get("user"), TICK_NS),
        cpu_system_ns=_times(modes.get("system"), TICK_NS),
        periods=cpu.get("nr_periods"),
        throttled_periods=cpu.get("nr_throttled"),
        throttled_ns=cpu.get("throttled_time"),
        cache_bytes=memory.get("total_cache"),
        mapped_bytes=memory.get("total_mapped_file"),
        peak_bytes=number(files.get("memory.max_usage_in_bytes")),
        limit_hits=number(files.get("memory.failcnt")),
        oom_kills=oom.get("oom_kill"),
        disks=_disks(
            {
                (device, name): count
                for file, names in _V1_DISKS.items()
                for line in files.get(file, "").splitlines()
                if len(words := line.split()) == 3
                for device, verb, text in (words,)
                if (name := names.get(verb)) is not None and (count := number(text)) is not None
            }
        ),
    )


_V1_DISKS = {
    "blkio.throttle.io_service_bytes_recursive": {"Read": "read_bytes", "Write": "written_bytes"},
    "blkio.throttle.io_serviced_recursive": {"Read": "reads", "Write": "writes"},
}
_V2_DISKS = {"rbytes": "read_bytes", "wbytes": "written_bytes", "rios": "reads", "wios": "writes"}


def counters_of_v2(files: Mapping[str, str]) -> Counters:
    """Read cgroup v2's files: contents by name."""
    cpu, memory = named_numbers(files.get("cpu.stat")), named_numbers(files.get("memory.stat"))
    happened = named_numbers(files.get("memory.events"))
    return Counters(
        cpu_user_ns=_times(cpu.get("user_usec"), 1000),
        cpu_system_ns=_times(cpu.get("system_usec"), 1000),
        periods=cpu.get("nr_periods"),
        throttled_periods=cpu.get("nr_throttled"),
        throttled_ns=_times(cpu.get("throttled_usec"), 1000),
        cache_bytes=memory.get("file"),
        mapped_bytes=memory.get("file_mapped"),
        peak_bytes=number(files.get("memory.peak")),
        limit_hits=happened.get("max"),
        oom_kills=happened.get("oom_kill"),
        disks=_disks(
            {
                (device, name): count
                for line in files.get("io.stat", "").splitlines()
                for device, _, rest in (line.partition(" "),)
                for key, _, text in (word.partition("=") for word in rest.split())
                if (name := _V2_DISKS.get(key)) is not None and (count := number(text)) is not None
            }
        ),
    )


def _disks(counts: Mapping[tuple[str, str], int]) -> tuple[Disk, ...]:
    devices = sorted({device for device, _ in counts})[:DISKS_MAX]
    return tuple(
        Disk(device=device, **{name: counts.get((device, name), 0) for name in _V2_DISKS.values()})
        for device in devices
    )
