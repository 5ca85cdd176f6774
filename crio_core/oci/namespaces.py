"""Which namespaces a container has: its own, its pod's by their pinned paths, or the node's (CRI NamespaceOption)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from crio_core.cri import IDMapping, NamespaceMode
from crio_core.errors import LocalError, invalid
from crio_core.oci.facts import CgroupMode
from crio_core.oci.paths import clean_path
from crio_core.oci.plan import ContainerPlan

MAPPINGS_MAX = 340  # the kernel's own bound (user_namespaces(7))
_ID_END = 2**32 - 1  # the last 32-bit value is "no id"

_FIELD = "linux.security_context.namespace_options"


def _pinned(plan: ContainerPlan, kind: str) -> dict[str, str]:
    path = plan.namespaces.get(kind)
    if not path:
        raise LocalError(f"the plan of container {plan.container_id} has no path for the pod's {kind} namespace")
    return {"type": kind, "path": clean_path(f"path of the {kind} namespace", path)}


def _of_pod(plan: ContainerPlan, kind: str, mode: NamespaceMode) -> list[dict[str, str]]:
    """For kinds that are either the pod's or the node's: the runtime-spec means the node's by leaving the kind out."""
    if mode is NamespaceMode.NODE:
        return []
    if mode is not NamespaceMode.POD:
        raise invalid(f"{_FIELD}.{kind}", mode.name, "POD or NODE")
    return [_pinned(plan, kind)]


def _pid(plan: ContainerPlan) -> list[dict[str, str]]:
    options = plan.config.linux.security_context.namespace_options
    if options.pid is NamespaceMode.NODE:
        return []
    if options.pid is NamespaceMode.CONTAINER or plan.is_sandbox:
        return [{"type": "pid"}]
    if options.pid is NamespaceMode.TARGET and not options.target_id:
        raise invalid(f"{_FIELD}.target_id", "", "the id of a container, as pid is TARGET")
    return [_pinned(plan, "pid")]


def namespaces(plan: ContainerPlan) -> list[dict[str, str]]:
    """The `linux.namespaces` list, each kind at most once.

    Raises:
        LocalError: the request needs a pod namespace of which the plan has no path.
        OperationError: a mode that the kind cannot have.
    """
    options = plan.config.linux.security_context.namespace_options
    found: list[dict[str, str]] = [{"type": "mount"}]
    found += _pid(plan)
    found += _of_pod(plan, "network", options.network)
    found += _of_pod(plan, "ipc", options.ipc)
    if not shares_node_name(plan):
        found.append(_pinned(plan, "uts"))
    if plan.host.cgroup_mode is CgroupMode.V2 and not plan.privileged:
        found.append({"type": "cgroup"})
    if options.userns_options.mode not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise invalid(f"{_FIELD}.userns_options.mode", options.userns_options.mode.name, "POD or NODE")
    if plan.userns:
        found.append(_pinned(plan, "user") if "user" in plan.namespaces else {"type": "user"})
    return found


def shares_node_name(plan: ContainerPlan) -> bool:
    """Whether the container is in the node's UTS namespace: a pod on the node's network has no name of its own."""
    return plan.host_network and "uts" not in plan.namespaces


def id_mappings(plan: ContainerPlan) -> dict[str, Any]:
    """`uidMappings` and `gidMappings` of a user namespace; empty without one."""
    if not plan.userns:
        return {}
    options = plan.config.linux.security_context.namespace_options.userns_options
    return {
        "uidMappings": mappings(f"{_FIELD}.userns_options.uids", options.uids),
        "gidMappings": mappings(f"{_FIELD}.userns_options.gids", options.gids),
    }


def mappings(field: str, given: Sequence[IDMapping]) -> list[dict[str, int]]:
    """Mappings as the runtime-spec writes them.

    Raises:
        OperationError: none, too many, an empty or overflowing run, or two runs that overlap on either side.
    """
    if not 1 <= len(given) <= MAPPINGS_MAX:
        raise invalid(field, f"{len(given)} mappings", f"1 to {MAPPINGS_MAX}")
    for index, run in enumerate(given):
        ends = (run.host_id + run.length, run.container_id + run.length)
        if run.length < 1 or min(run.host_id, run.container_id) < 0 or max(ends) > _ID_END:
            raise invalid(f"{field}[{index}]", run, f"a run of at least one id, below {_ID_END}")
    for side in ("host_id", "container_id"):
        runs = sorted((getattr(run, side), run.length) for run in given)
        for (start, length), (following, _) in pairwise(runs):
            if start + length > following:
                raise invalid(field, f"{side} {following}", "runs that do not overlap")
    return [{"containerID": run.container_id, "hostID": run.host_id, "size": run.length} for run in given]
