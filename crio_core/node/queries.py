"""Looking things up: ids by unique prefix, lists by filter. Nothing here changes a node.

A whole list is kept until a record changes: who lists everything every second gets the very list that it got before.
"""

from collections.abc import Iterable, Mapping

from crio_core import requests as rq
from crio_core.errors import Code, OperationError, not_found
from crio_core.node import quarantine
from crio_core.node.state import State
from crio_core.records import ContainerRecord, ContainerState, SandboxRecord, SandboxState
from crio_core.replies import (
    CONTAINER_STATES,
    LISTED_SANDBOX_STATES,
    ContainerFound,
    Containers,
    NodeStatus,
    Sandboxes,
    SandboxFound,
)

CANDIDATES_SHOWN_MAX = 5


def _by_prefix(kind: str, field: str, prefix: str, ids: Iterable[str]) -> str | None:
    if not prefix:
        raise OperationError(Code.INVALID_ARGUMENT, "INVALID_FIELD", f"{field}: '' is not valid: expected a {kind} id")
    found = [one for one in ids if one.startswith(prefix)]
    if len(found) > 1:
        shown = ", ".join(one[:16] for one in found[:CANDIDATES_SHOWN_MAX])
        raise OperationError(
            Code.INVALID_ARGUMENT,
            "AMBIGUOUS_ID",
            f"{field}: {prefix!r} is not valid: expected the start of one {kind} id, not of {len(found)}: {shown}",
        )
    return found[0] if found else None


def _visible(record: ContainerRecord) -> bool:
    return record.state in CONTAINER_STATES and not record.infra


def find_sandbox(state: State, sandbox_id: str, *, missing_ok: bool = False) -> SandboxRecord | None:
    """The sandbox with this id or unique prefix, among those that clients can see.

    Raises:
        OperationError: NOT_FOUND (unless `missing_ok`), or INVALID_ARGUMENT for an empty or ambiguous id.
    """
    exact = state.sandboxes.get(sandbox_id)
    if exact is not None and exact.state in LISTED_SANDBOX_STATES:
        return exact
    listed = (one.id for one in state.sandboxes.values() if one.state in LISTED_SANDBOX_STATES)
    found = _by_prefix("pod sandbox", "pod_sandbox_id", sandbox_id, listed)
    if found is None:
        quarantine.refuse_sandbox(state, sandbox_id)
        if missing_ok:
            return None
        raise not_found("pod sandbox", sandbox_id)
    return state.sandboxes[found]


def find_container(state: State, container_id: str, *, missing_ok: bool = False) -> ContainerRecord | None:
    """The container with this id or unique prefix, among those that clients can see.

    Raises:
        OperationError: NOT_FOUND (unless `missing_ok`), or INVALID_ARGUMENT for an empty or ambiguous id.
    """
    exact = state.containers.get(container_id)
    if exact is not None and _visible(exact):
        return exact
    found = _by_prefix(
        "container", "container_id", container_id, (one.id for one in state.containers.values() if _visible(one))
    )
    if found is None:
        quarantine.refuse_container(state, container_id)
        if missing_ok:
            return None
        raise not_found("container", container_id)
    return state.containers[found]


def _has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def sandbox_status(state: State, request: rq.PodSandboxStatus) -> SandboxFound:
    """A sandbox and its containers."""
    record = find_sandbox(state, request.sandbox_id)
    assert record is not None
    members = (state.containers.get(one) for one in state.members.get(record.id) or ())
    return SandboxFound(sandbox=record, containers=tuple(one for one in members if one is not None and _visible(one)))


def list_sandboxes(state: State, request: rq.ListPodSandbox) -> Sandboxes:
    """Sandboxes by id prefix, readiness and labels, newest first."""
    if state.every_sandbox[0] != state.sandboxes.changes:
        listed = [one for one in state.sandboxes.values() if one.state in LISTED_SANDBOX_STATES]
        listed.sort(key=_newest_first)
        state.every_sandbox = (state.sandboxes.changes, Sandboxes(items=tuple(listed)))
    everything = state.every_sandbox[1]
    if not request.sandbox_id and request.ready is None and not request.labels:
        return everything
    return Sandboxes(
        items=tuple(
            one
            for one in everything.items
            if one.id.startswith(request.sandbox_id)
            and (request.ready is None or (one.state is SandboxState.READY) == request.ready)
            and (not request.labels or _has_labels(one.labels, request.labels))
        )
    )


def _newest_first(record: SandboxRecord | ContainerRecord) -> tuple[int, str]:
    return (-record.created_at_ns, record.id)


def container_status(state: State, request: rq.ContainerStatus) -> ContainerFound:
    """A container."""
    record = find_container(state, request.container_id)
    assert record is not None
    return ContainerFound(container=record)


def list_containers(state: State, request: rq.ListContainers) -> Containers:
    """Containers by id prefix, sandbox id prefix, state and labels, newest first."""
    if state.every_container[0] != state.containers.changes:
        listed = [one for one in state.containers.values() if _visible(one)]
        listed.sort(key=_newest_first)
        state.every_container = (state.containers.changes, Containers(items=tuple(listed)))
    everything = state.every_container[1]
    if not (request.container_id or request.sandbox_id or request.state or request.labels):
        return everything
    return Containers(
        items=tuple(
            one
            for one in everything.items
            if one.id.startswith(request.container_id)
            and one.sandbox_id.startswith(request.sandbox_id)
            and (not request.state or CONTAINER_STATES[one.state] == request.state)
            and (not request.labels or _has_labels(one.labels, request.labels))
        )
    )


def status(state: State) -> NodeStatus:
    """How the node is: its network, what could not be read, and what is owed."""
    owing = [one.id for one in state.sandboxes.values() if one.retries]
    owing += [one.id for one in state.containers.values() if one.state is ContainerState.OWING]
    return NodeStatus(
        network_ready=bool(state.network),
        network_reason=state.network_reason,
        quarantined=state.quarantined.items(),
        owing=tuple(owing),
    )
