"""Limits of a container in the words of the runtime-spec (`linux.resources`), and what may be clamped.

Devices are denied unless listed: a list that begins with allow is the whole host (CVE-2023-25809 and its kin).
"""

import re
from typing import Any

from crio_core.cri import LinuxContainerResources
from crio_core.errors import Code, OperationError, invalid
from crio_core.oci.facts import CgroupMode, HostDevice, HostFacts
from crio_core.oci.paths import clean_path, is_within

OOM_SCORE_ADJ_LIMIT = 1000
UNIFIED_MAX = 64
HUGEPAGE_SIZES_MAX = 16
DEVICES_MAX = 4096
_INT64_MAX = 2**63 - 1
_UINT64_MAX = 2**64 - 1
_CPUS = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?:,[0-9]{1,5}(?:-[0-9]{1,5})?)*")
_CPUS_CHARACTERS_MAX = 4096
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,6}[KMG]B")
_UNIFIED_KEY = re.compile(r"[a-z][a-z0-9_]{0,31}(?:\.[A-Za-z0-9_]{1,64}){1,4}")
_UNIFIED_VALUE_CHARACTERS_MAX = 4096

# What the runtime-spec makes in every container: (major, minor); None is any minor. Terminals, and sinks and sources.
_STANDARD_DEVICES: tuple[tuple[int, int | None], ...] = (
    (1, 3),  # null
    (1, 5),  # zero
    (1, 7),  # full
    (1, 8),  # random
    (1, 9),  # urandom
    (5, 0),  # tty
    (5, 2),  # ptmx
    (136, None),  # pts/*
)

_FIELD = "linux.resources"


def oom_score_adj(wanted: int, host: HostFacts) -> int:
    """The score to set: no lower than the node may set, where it lacks CAP_SYS_RESOURCE.

    Raises:
        OperationError: outside -1000..1000.
    """
    if not -OOM_SCORE_ADJ_LIMIT <= wanted <= OOM_SCORE_ADJ_LIMIT:
        raise invalid(f"{_FIELD}.oom_score_adj", wanted, f"-{OOM_SCORE_ADJ_LIMIT} to {OOM_SCORE_ADJ_LIMIT}")
    return wanted if host.can_raise_limits else max(wanted, host.oom_score_adj_min)


def _ranged(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise invalid(f"{_FIELD}.{name}", value, f"{low} to {high}")
    return value


def _cpu(given: LinuxContainerResources) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if given.cpu_shares:
        cpu["shares"] = _ranged("cpu_shares", given.cpu_shares, 2, _INT64_MAX)
    if given.cpu_quota:
        cpu["quota"] = _ranged("cpu_quota", given.cpu_quota, -1, _INT64_MAX)
    if given.cpu_period:
        cpu["period"] = _ranged("cpu_period", given.cpu_period, 1, _INT64_MAX)
    for key, name, value in (("cpus", "cpuset_cpus", given.cpuset_cpus), ("mems", "cpuset_mems", given.cpuset_mems)):
        if value:
            if len(value) > _CPUS_CHARACTERS_MAX or not _CPUS.fullmatch(value):
                raise invalid(f"{_FIELD}.{name}", value[:64], "numbers and ranges, such as 0-3,7")
            cpu[key] = value
    return cpu


def _memory(given: LinuxContainerResources, host: HostFacts) -> dict[str, Any]:
    limit, swap = given.memory_limit_in_bytes, given.memory_swap_limit_in_bytes
    memory: dict[str, Any] = {}
    if limit:
        memory["limit"] = _ranged("memory_limit_in_bytes", limit, -1, _INT64_MAX)
    if swap:
        _ranged("memory_swap_limit_in_bytes", swap, -1, _INT64_MAX)
        if swap != -1 and (limit <= 0 or swap < limit):
            raise invalid(f"{_FIELD}.memory_swap_limit_in_bytes", swap, f"-1 or at least the memory limit, {limit}")
    if host.swap_limits and (swap or limit > 0):
        # Memory and swap together, as the runtime-spec counts: equal to the limit means no swap.
        memory["swap"] = swap or limit
    return memory


def _hugepages(given: LinuxContainerResources, host: HostFacts) -> list[dict[str, Any]]:
    if len(given.hugepage_limits) > HUGEPAGE_SIZES_MAX:
        raise invalid(f"{_FIELD}.hugepage_limits", len(given.hugepage_limits), f"at most {HUGEPAGE_SIZES_MAX} sizes")
    found: dict[str, dict[str, Any]] = {}
    for index, page in enumerate(given.hugepage_limits):
        field = f"{_FIELD}.hugepage_limits[{index}]"
        if not _PAGE_SIZE.fullmatch(page.page_size):
            raise invalid(f"{field}.page_size", page.page_size, "a size such as 2MB")
        if not 0 <= page.limit <= _UINT64_MAX:
            raise invalid(f"{field}.limit", page.limit, f"0 to {_UINT64_MAX}")
        if "hugetlb" in host.controllers:
            found[page.page_size] = {"pageSize": page.page_size, "limit": page.limit}
        elif page.limit:
            # A kubelet names every size with 0; only a limit that means something needs the controller.
            raise _unavailable(f"{field}.limit", "the hugetlb cgroup controller")
    return list(found.values())


def _unavailable(field: str, what: str) -> OperationError:
    return OperationError(Code.FAILED_PRECONDITION, "CGROUP_NOT_AVAILABLE", f"{field}: this node does not have {what}")


def _unified(given: LinuxContainerResources, host: HostFacts) -> dict[str, str]:
    if not given.unified:
        return {}
    if host.cgroup_mode is not CgroupMode.V2:
        raise _unavailable(f"{_FIELD}.unified", "cgroup v2")
    if len(given.unified) > UNIFIED_MAX:
        raise invalid(f"{_FIELD}.unified", len(given.unified), f"at most {UNIFIED_MAX} entries")
    for key, value in given.unified.items():
        if not _UNIFIED_KEY.fullmatch(key) or key.startswith("cgroup."):
            raise invalid(f"{_FIELD}.unified", key, "a controller's file, such as memory.high")
        if len(value) > _UNIFIED_VALUE_CHARACTERS_MAX or "\0" in value:
            raise invalid(f"{_FIELD}.unified[{key}]", value[:64], "a short text without NUL")
    return dict(given.unified)


def resources(
    given: LinuxContainerResources, host: HostFacts, *, pids_limit: int, devices: list[dict[str, Any]]
) -> dict[str, Any]:
    """The `linux.resources` object; members that were not asked for are absent.

    Args:
        pids_limit: 0 or less for none.
        devices: The rules of the devices cgroup, from `device_rules`.
    """
    found: dict[str, Any] = {"devices": devices}
    if cpu := _cpu(given):
        found["cpu"] = cpu
    if memory := _memory(given, host):
        found["memory"] = memory
    if pids_limit > 0:
        found["pids"] = {"limit": pids_limit}
    if pages := _hugepages(given, host):
        found["hugepageLimits"] = pages
    if unified := _unified(given, host):
        found["unified"] = unified
    return found


def merged(given: LinuxContainerResources, before: LinuxContainerResources) -> LinuxContainerResources:
    """The limits after an update: what it does not name stays, but for that of swap, which goes with that of memory.

    The OOM score is that of a process, and is not changed while it runs.
    """
    limits = {name: getattr(given, name) or getattr(before, name) for name in LinuxContainerResources.__slots__}
    if given.memory_limit_in_bytes:
        limits["memory_swap_limit_in_bytes"] = given.memory_swap_limit_in_bytes
    limits["oom_score_adj"] = before.oom_score_adj
    limits["unified"] = {**before.unified, **given.unified}
    limits["hugepage_limits"] = before.hugepage_limits
    return LinuxContainerResources(**limits)


def changes(given: LinuxContainerResources, before: LinuxContainerResources, host: HostFacts) -> dict[str, Any]:
    """The `LinuxResources` of an update: what it names, and nothing else.

    Raises:
        OperationError: a limit out of range, or one that no runtime changes while the container lives.
    """
    known = {page.page_size: page.limit for page in before.hugepage_limits}
    for index, page in enumerate(given.hugepage_limits):
        if page.limit != known.get(page.page_size, 0):
            field = f"{_FIELD}.hugepage_limits[{index}].limit"
            raise invalid(field, page.limit, f"{known.get(page.page_size, 0)}, as it is: it cannot be changed")
    found: dict[str, Any] = {}
    if cpu := _cpu(given):
        found["cpu"] = cpu
    memory = _memory(merged(given, before), host)
    if given.memory_limit_in_bytes or given.memory_swap_limit_in_bytes:
        found["memory"] = memory
    if unified := _unified(given, host):
        found["unified"] = unified
    return found


def device_rules(given: tuple[HostDevice, ...], *, everything: bool) -> list[dict[str, Any]]:
    """The devices cgroup: everything, or nothing but what is listed after the denial."""
    if everything:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in _STANDARD_DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    return rules + access_rules(given)


def access_rules(given: tuple[HostDevice, ...]) -> list[dict[str, Any]]:
    """What the devices cgroup must allow for these nodes."""
    return [
        {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.permissions}
        for node in given
        if node.kind != "p"
    ]


def device_nodes(given: tuple[HostDevice, ...]) -> list[dict[str, Any]]:
    """The `linux.devices` list; of two nodes for one path the later one wins.

    Raises:
        OperationError: a bad path, kind, number or permission.
    """
    if len(given) > DEVICES_MAX:
        raise invalid("devices", f"{len(given)} devices", f"at most {DEVICES_MAX}")
    found: dict[str, dict[str, Any]] = {}
    for index, node in enumerate(given):
        field = f"devices[{index}]"
        path = clean_path(f"{field}.container_path", node.path)
        if path in ("/", "/dev") or is_within(path, "/proc") or is_within(path, "/sys"):
            raise invalid(f"{field}.container_path", node.path, "a path that is not /, /dev or in /proc or /sys")
        if node.kind not in ("c", "b", "p"):
            raise invalid(f"{field}.kind", node.kind, "c, b or p")
        if not node.permissions or not set(node.permissions) <= set("rwm"):
            raise invalid(f"{field}.permissions", node.permissions, "letters of rwm")
        entry: dict[str, Any] = {"path": path, "type": node.kind, "fileMode": node.mode & 0o7777}
        if node.kind != "p":
            entry |= {"major": node.major, "minor": node.minor}
        found[path] = entry | {"uid": node.uid, "gid": node.gid}
    return list(found.values())
