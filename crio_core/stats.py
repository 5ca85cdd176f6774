"""What containers use, out of the kernel's own counters: parsing and adding up, without reading anything.

A counter that a kernel does not have is None, and is left out of answers instead of being called zero. Shapes are those
of the CRI's ContainerStats and PodSandboxStats: bytes, nanoseconds, and nano cores (billionths of one processor).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from crio_core.values import dataclass

UNLIMITED_BYTES = 1 << 62
"""Version 1 writes "no limit" as the largest number of whole pages, which depends on the machine."""
NS_PER_S = 1_000_000_000
INTERFACES_MAX = 64
_COUNTED = ("bytes", "packets", "errors", "dropped")
"""The first counters of /proc/PID/net/dev, of what was received and of what was sent."""
_PRESSURES = ("cpu_pressure", "memory_pressure", "io_pressure")
_STALL = re.compile(r"(some|full) avg10=(\d+\.\d+) avg60=(\d+\.\d+) avg300=(\d+\.\d+) total=(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """How long tasks waited for a resource: since the beginning, and in percent of the last 10, 60 and 300 seconds."""

    total_ns: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Pressure stall information (cgroup v2): when some task waited, and when all did, if the kernel tells."""

    some: Stall
    full: Stall | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One look at the control groups of a container, or at those of a pod's containers together.

    Args:
        at_ns: When, on the monotonic clock.
        wall_ns: When, for clients.
        cpu_ns: Processor time used since the beginning.
        nano_cores: Processors in use, since the look before; None at the first look.
        available_bytes: What is left of the limit; None without a limit.
    """

    at_ns: int
    wall_ns: int
    cpu_ns: int | None = None
    nano_cores: int | None = None
    memory_bytes: int | None = None
    working_set_bytes: int | None = None
    available_bytes: int | None = None
    rss_bytes: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    swap_bytes: int | None = None
    swap_available_bytes: int | None = None
    processes: int | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUsage:
    """What a container has written into its root filesystem; `wall_ns` says when it was counted."""

    wall_ns: int
    used_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Counters of one network interface since it was made, as the pod sees them."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def number(text: str | None) -> int | None:
    """A number that stands alone; None for anything else."""
    word = (text or "").strip()
    return int(word) if word.isascii() and word.isdigit() else None


def named_numbers(text: str | None) -> Mapping[str, int]:
    """Lines of a name and a number, such as memory.stat."""
    found = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if (known := number(value)) is not None:
            found[name] = known
    return found


def _less(whole: int | None, part: int | None) -> int | None:
    return None if whole is None else max(whole - (part or 0), 0)


def _limit(text: str | None) -> int | None:
    """A limit in bytes; None for none, however it is written."""
    limit = number(text)
    return None if limit is None or limit >= UNLIMITED_BYTES else limit


def usage_of_v1(files: Mapping[str, str], at_ns: int, wall_ns: int) -> Usage:
    """Read cgroup v1's files.

    Args:
        files: Contents by name, of every controller's directory of one control group; absent ones are missing.
        at_ns: When they were read, on the monotonic clock.
        wall_ns: The same for clients.
    """
    stat = named_numbers(files.get("memory.stat"))
    used, limit = number(files.get("memory.usage_in_bytes")), _limit(files.get("memory.limit_in_bytes"))
    both, both_limit = (
        number(files.get("memory.memsw.usage_in_bytes")),
        _limit(files.get("memory.memsw.limit_in_bytes")),
    )
    swap = _less(both, used) if both is not None else None
    working = _less(used, stat.get("total_inactive_file"))
    swap_limit = _less(both_limit, limit) if both_limit is not None and limit is not None else None
    return Usage(
        at_ns=at_ns,
        wall_ns=wall_ns,
        cpu_ns=number(files.get("cpuacct.usage")),
        memory_bytes=used,
        working_set_bytes=working,
        available_bytes=_less(limit, working),
        rss_bytes=stat.get("total_rss"),
        page_faults=stat.get("total_pgfault"),
        major_page_faults=stat.get("total_pgmajfault"),
        swap_bytes=swap,
        swap_available_bytes=_less(swap_limit, swap),
        processes=number(files.get("pids.current")),
    )


def usage_of_v2(files: Mapping[str, str], at_ns: int, wall_ns: int) -> Usage:
    """Read cgroup v2's files; arguments as for `usage_of_v1`."""
    stat, cpu = named_numbers(files.get("memory.stat")), named_numbers(files.get("cpu.stat"))
    used, limit = number(files.get("memory.current")), _limit(files.get("memory.max"))
    swap, swap_limit = number(files.get("memory.swap.current")), _limit(files.get("memory.swap.max"))
    working = _less(used, stat.get("inactive_file"))
    return Usage(
        at_ns=at_ns,
        wall_ns=wall_ns,
        cpu_ns=cpu["usage_usec"] * 1000 if "usage_usec" in cpu else None,
        memory_bytes=used,
        working_set_bytes=working,
        available_bytes=_less(limit, working),
        rss_bytes=stat.get("anon"),
        page_faults=stat.get("pgfault"),
        major_page_faults=stat.get("pgmajfault"),
        swap_bytes=swap,
        swap_available_bytes=_less(swap_limit, swap),
        processes=number(files.get("pids.current")),
        cpu_pressure=pressure_of(files.get("cpu.pressure")),
        memory_pressure=pressure_of(files.get("memory.pressure")),
        io_pressure=pressure_of(files.get("io.pressure")),
    )


def pressure_of(text: str | None) -> Pressure | None:
    """Read a pressure file (kernel documentation, accounting/psi); None if it is absent or says something else."""
    stalls = {
        which: Stall(avg10=float(avg10), avg60=float(avg60), avg300=float(avg300), total_ns=int(total) * 1000)
        for which, avg10, avg60, avg300, total in _STALL.findall(text or "")
    }
    return Pressure(some=stalls["some"], full=stalls.get("full")) if "some" in stalls else None


def nano_cores(before: Usage | None, now: Usage) -> int | None:
    """Processors in use between two looks at one container; None when there is no earlier one to compare with."""
    if before is None or before.cpu_ns is None or now.cpu_ns is None or now.at_ns <= before.at_ns:
        return None
    return max(now.cpu_ns - before.cpu_ns, 0) * NS_PER_S // (now.at_ns - before.at_ns)


def together(parts: Iterable[Usage], at_ns: int, wall_ns: int) -> Usage:
    """What a pod's containers use together. Of what is available the pod has no more than its containers have.

    How long a pod waited does not follow from how long its containers did.
    """
    found = tuple(parts)

    def total(name: str) -> int | None:
        known = [value for part in found if (value := getattr(part, name)) is not None]
        return sum(known) if known else None

    apart = ("at_ns", "wall_ns", *_PRESSURES)
    sums: dict[str, Any] = {name: total(name) for name in Usage.__dataclass_fields__ if name not in apart}
    return Usage(at_ns=at_ns, wall_ns=wall_ns, **sums)


def interfaces_of(text: str) -> tuple[Interface, ...]:
    """Read /proc/PID/net/dev (proc_pid_net(5)), the loopback device apart, in its order.

    A line is `name: ` and sixteen numbers: eight for what was received (bytes, packets, errs, ...), eight for what was
    sent.
    """
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = rest.split()
        if len(numbers) >= 16 and name.strip() != "lo" and all(word.isdigit() for word in numbers[:16]):
            received, sent = numbers[:8], numbers[8:16]
            found.append(
                Interface(
                    name=name.strip(),
                    **{f"rx_{what}": int(count) for what, count in zip(_COUNTED, received, strict=False)},
                    **{f"tx_{what}": int(count) for what, count in zip(_COUNTED, sent, strict=False)},
                )
            )
    return tuple(found[:INTERFACES_MAX])
