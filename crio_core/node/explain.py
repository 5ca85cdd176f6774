"""Why something is as it is: its state, the path it took, what it waits for now, what is owed, what failed.

An explanation is made of values that JSON has, since it goes to clients as text in the verbose information of a status.
Times are wall-clock nanoseconds since 1970 (`...Ns`), durations seconds (`...S`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.errors import OperationError, invalid, not_found
from crio_core.events import LayerDescriptor
from crio_core.lifecycle.image import Pull
from crio_core.lifecycle.layer import Layer
from crio_core.lifecycle.release import retry_timer
from crio_core.node.history import Departed, Transition, Trouble, title_of
from crio_core.node.naming import canonical_names, pinned
from crio_core.node.state import State
from crio_core.records import ContainerRecord, ContainerState, ImageState, LayerState, SandboxRecord, SandboxState
from crio_core.replies import CONTAINER_STATES, LISTED_SANDBOX_STATES, Explained

SHOWN_MAX = 256
"""Things of one kind that an explanation of the node lists."""
TITLE_CHARS_MAX = 256

_STEPS = {
    LayerState.FETCHING.value: "fetching",
    LayerState.PROVING.value: "fetching",
    LayerState.APPLYING.value: "applying",
    LayerState.APPLIED.value: "done",
}
"""What a layer of a pull is at; all else, and a download of which no byte has come, is waiting."""
_NS_PER_S = 1_000_000_000
_COMING_SANDBOX = frozenset({SandboxState.RESERVED, SandboxState.PREPARING, SandboxState.NETWORK, SandboxState.INFRA})
_COMING_CONTAINER = frozenset({ContainerState.RESERVED, ContainerState.ROOTFS, ContainerState.CREATING})
_PROCESSLESS = frozenset(
    {ContainerState.EXITED, ContainerState.REMOVING, ContainerState.OWING, ContainerState.UNWINDING}
)


def explain(state: State, request: rq.Explain) -> Explained:
    """Explain one record, or what no list shows.

    Raises:
        OperationError: NOT_FOUND, or a kind that there is not.
    """
    match request.kind:
        case "pod":
            sandbox = state.sandboxes.get(request.id)
            if sandbox is None:
                raise not_found("pod sandbox", request.id)
            return Explained(about=_sandbox(state, sandbox))
        case "container":
            container = state.containers.get(request.id)
            if container is None:
                raise not_found("container", request.id)
            return Explained(about=_container(state, container))
        case "image":
            return Explained(about=_image(state, request.id))
        case "pulls":
            return Explained(about={"pulls": _pulls_of(state, request.id)})
        case "node":
            return Explained(about=_node(state))
        case _:
            raise invalid("kind", request.kind, "pod, container, image, pulls or node")


def note_refusal(state: State, request: object, error: OperationError) -> None:
    """Remember why something was not even begun, by the name that its caller will ask with."""
    match request:
        case rq.RunPodSandbox():
            meta = request.config.metadata
            title = f"{meta.namespace}/{meta.name}"
            state.history.refused("pod", title[:TITLE_CHARS_MAX], error)
        case rq.CreateContainer():
            state.history.refused("container", request.config.metadata.name[:TITLE_CHARS_MAX], error)
        case rq.PullImage():
            state.history.refused("pull", request.image.image[:TITLE_CHARS_MAX], error)


def every(state: State) -> tuple[Mapping[str, Any], ...]:
    """Explanations of all that there is and of all that is remembered."""
    return (
        *(_sandbox(state, one) for one in state.sandboxes.values()),
        *(_container(state, one) for one in state.containers.values()),
        *(_image(state, one.id) for one in state.images.values()),
        *(_pull(state, one) for one in state.pulls.values()),
        *(_layer(state, one) for one in state.layers.values() if one.state is LayerState.OWING),
        *(_departed(one) for one in reversed(state.history.departed.values())),
    )


# --- one record ---------------------------------------------------------------------------------------------------


def _common(state: State, kind: str, record: Any, lanes: Iterable[str]) -> dict[str, Any]:
    history = state.history
    path = history.paths.get(record.id) or ()
    return {
        "kind": kind,
        "id": record.id,
        "name": title_of(record),
        "state": record.state.value,
        "nowNs": state.wall_ns,
        "sinceNs": path[-1].wall_ns if path else 0,
        "path": [_transition(one) for one in path],
        "waitsFor": [one for lane in lanes for one in _lane(state, lane)],
        "callers": {operation: len(waiting) for (key, operation), waiting in state.waiters.items() if key == record.id},
        "timers": _timers(state, record.id),
        "errors": [_trouble(one) for one in history.troubles.get(record.id) or ()],
    }


def _sandbox(state: State, record: SandboxRecord) -> dict[str, Any]:
    about = _common(state, "pod", record, (record.id,))
    meta = record.metadata
    members = [one for one in map(state.containers.get, state.members.get(record.id) or ()) if one is not None]
    return {
        **about,
        "uid": meta.uid,
        "attempt": meta.attempt,
        "listed": record.state in LISTED_SANDBOX_STATES,
        "waitsFor": [*about["waitsFor"], *_waits_of_sandbox(state, record, members)],
        "holds": [part.value for part in record.holds],
        "owes": _owes(state, record, [part.value for part in record.holds], record.state is SandboxState.OWING),
        "containers": {one.id: one.state.value for one in members},
    }


def _waits_of_sandbox(
    state: State, record: SandboxRecord, members: list[ContainerRecord]
) -> Iterable[Mapping[str, Any]]:
    """What other records must do before the sandbox goes on, each with what it waits for itself."""
    match record.state:
        case SandboxState.STOPPING:
            awaited = [one for one in members if not one.infra and one.state not in _PROCESSLESS]
        case SandboxState.REMOVING:
            awaited = [one for one in members if not one.infra and one.state is not ContainerState.OWING]
        case SandboxState.INFRA | SandboxState.DETACHING:
            awaited = [one for one in members if one.infra]
        case _:
            awaited = []
    for one in awaited:
        what = "infra container" if one.infra else "container"
        yield {"what": what, "about": f"{one.id} is {one.state.value}", "waitsFor": _waits_of_container(state, one)}
    for pull_id, waiting in state.infra_pulls.items():
        pull = state.pulls.get(pull_id)
        if record.id in waiting and pull is not None:
            yield {
                "what": "pull",
                "about": f"{pull.reference} is {pull.state.value}",
                "waitsFor": _pull_waits(state, pull),
            }


def _waits_of_container(state: State, record: ContainerRecord) -> list[dict[str, Any]]:
    # Its first record is written in its pod's lane, behind what the pod does.
    ahead = list(_lane(state, record.sandbox_id))
    while ahead and ahead[-1]["owner"] != record.id:
        ahead.pop()
    lanes = (record.id, f"{record.id}/signal", f"{record.id}/log")
    return [*ahead, *(one for lane in lanes for one in _lane(state, lane))]


def _container(state: State, record: ContainerRecord) -> dict[str, Any]:
    about = _common(state, "container", record, ())
    waits = _waits_of_container(state, record)
    if record.state in (ContainerState.STOPPING, ContainerState.KILLING):
        waits.append({"what": "exit", "about": f"the end of process {record.pid}"})
    return {
        **about,
        "attempt": record.metadata.attempt,
        "sandboxId": record.sandbox_id,
        "listed": record.state in CONTAINER_STATES and not record.infra,
        "pid": record.pid,
        "waitsFor": waits,
        "holds": [part.value for part in record.holds],
        "owes": _owes(state, record, [part.value for part in record.holds], record.state is ContainerState.OWING),
        "exit": _exit(record),
    }


def _exit(record: ContainerRecord) -> dict[str, Any] | None:
    if not record.finished_at_ns:
        return None
    return {
        "code": record.exit_code,
        "reason": record.reason,
        "message": record.message,
        "finishedNs": record.finished_at_ns,
    }


def _image(state: State, image_id: str) -> dict[str, Any]:
    record = state.images.get(image_id)
    if record is None:
        raise not_found("image", image_id)
    about = _common(state, "image", record, ())
    made_by = [one for one in state.history.departed.values() if one.image_id == image_id and one.kind == "pull"]
    users = [one.id for one in state.containers.values() if image_id in one.every_image]
    return {
        **about,
        "listed": True,
        "path": [_transition(step) for pull in made_by for step in pull.path] + about["path"],
        "layers": {one: _layer_state(state, one) for one in record.layers},
        "usedBy": users[:SHOWN_MAX],
        "pinned": pinned(state, record),
    }


def _layer_state(state: State, diff_id: str) -> str:
    layer = state.layers.get(diff_id)
    return "absent" if layer is None else layer.state.value


def _pull(state: State, pull: Pull) -> dict[str, Any]:
    about = _common(state, "pull", pull, ())
    # The credentials' handle is of no use to anybody who reads this.
    return {
        **about,
        "id": pull.reference or about["id"],
        "listed": False,
        "layers": [_wanted(state, one) for one in pull.wanted],
        "waitsFor": _pull_waits(state, pull),
    }


def _wanted(state: State, layer: LayerDescriptor) -> dict[str, Any]:
    """A layer that a pull needs, and how far it has come; the rate and the source only while bytes come."""
    known = _layer_state(state, layer.diff_id)
    coming = state.history.progress.get(layer.diff_id)
    step = _STEPS.get(known, "waiting")
    if step == "fetching" and coming is None:
        step = "waiting"
    about = {
        "digest": layer.digest,
        "diffId": layer.diff_id,
        "state": known,
        "step": step,
        "totalBytes": layer.size_bytes,
        "receivedBytes": layer.size_bytes if step in ("applying", "done") else 0,
    }
    if coming is None:
        return about
    return {
        **about,
        "receivedBytes": min(coming.received_bytes, layer.size_bytes),
        "bytesPerS": coming.bytes_per_s,
        "host": coming.host,
    }


def _pulls_of(state: State, reference: str) -> list[dict[str, Any]]:
    """The pulls under way of what a caller calls `reference`; of everything when it is empty."""
    if not reference:
        return [_pull(state, one) for one in state.pulls.values() if one.reference][:SHOWN_MAX]
    try:
        names = canonical_names(reference)
    except OperationError:
        return []  # an id, or nothing that can be pulled
    pulls = [one for one in state.pulls.values() if one.reference and canonical_names(one.reference) == names]
    return [_pull(state, one) for one in pulls[:SHOWN_MAX]]


def _pull_waits(state: State, pull: Pull) -> list[dict[str, Any]]:
    waits = list(_lane(state, pull.id))
    if pull.state in (ImageState.RECORDING, ImageState.REMOVING):
        waits += [one for one in _lane(state, "images") if one["owner"] == pull.id]
    for descriptor in pull.wanted:
        layer = state.layers.get(descriptor.diff_id)
        if layer is not None and not (layer.is_stored and descriptor.digest in layer.blobs):
            about = f"{layer.id} is {layer.state.value}, {descriptor.size_bytes} bytes"
            waits.append({"what": "layer", "about": about, "waitsFor": list(_lane(state, layer.id))})
    return waits


# --- the node -----------------------------------------------------------------------------------------------------


def _node(state: State) -> dict[str, Any]:
    """What no list shows: what is being made, what is owed, what is gone; and the ids of all that is owned."""
    sandboxes, containers = state.sandboxes.values(), state.containers.values()
    creating = [_sandbox(state, one) for one in sandboxes if one.state in _COMING_SANDBOX]
    creating += [_container(state, one) for one in containers if one.state in _COMING_CONTAINER]
    creating += [_pull(state, one) for one in state.pulls.values()]
    owing = [_sandbox(state, one) for one in sandboxes if one.retries or one.state is SandboxState.UNWINDING]
    owing += [
        _container(state, one) for one in containers if one.state in (ContainerState.OWING, ContainerState.UNWINDING)
    ]
    owing += [_layer(state, one) for one in state.layers.values() if one.state is LayerState.OWING]
    return {
        "creating": creating[:SHOWN_MAX],
        "owing": owing[:SHOWN_MAX],
        "departed": [_departed(one) for one in reversed(state.history.departed.values())],
        "unsaved": dict(state.unsaved.items()),
        "owned": {
            "sandboxes": {one.id: one.state.value for one in sandboxes},
            "pins": {one.id: {pin.path: pin.inode for pin in one.pins} for one in sandboxes if one.pins},
            "containers": {one.id: one.state.value for one in containers},
            "images": {one.id: list(one.layers) for one in state.images.values()},
            "layers": {one.id: one.state.value for one in state.layers.values()},
        },
    }


def _layer(state: State, layer: Layer) -> dict[str, Any]:
    about = _common(state, "layer", layer, (layer.id,))
    return {**about, "listed": False, "owes": _owes(state, layer, ["files"], True)}


def _departed(one: Departed) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "id": "" if one.id.startswith("refused/") or one.kind == "pull" else one.id,
        "name": one.title,
        "state": "gone" if one.path else "refused",
        "sinceNs": one.wall_ns,
        "path": [_transition(step) for step in one.path],
        "errors": [_trouble(trouble) for trouble in one.troubles],
        "listed": False,
    }


# --- parts --------------------------------------------------------------------------------------------------------


def _transition(step: Transition) -> dict[str, Any]:
    return {"atNs": step.wall_ns, "from": step.came_from, "to": step.to, "because": step.because}


def _trouble(trouble: Trouble) -> dict[str, Any]:
    failure = trouble.failure
    return {"atNs": trouble.wall_ns, "what": trouble.what, "reason": failure.reason, "message": failure.message}


def _lane(state: State, lane: str) -> Iterable[dict[str, Any]]:
    """What is being done in a lane, first, and what stands behind it. Waiting for an exit is no work."""
    history = state.history
    for position, effect_id in enumerate(history.lanes.get(lane) or ()):
        ordered = history.inflight[effect_id]
        if isinstance(ordered.order, fx.WatchContainer):
            continue
        yield {
            "what": type(ordered.order).__name__,
            "about": describe(ordered.order),
            "effect": effect_id,
            "owner": ordered.owner,
            "behind": position,
            "sinceNs": ordered.since_wall_ns,
            "forS": max(state.at_ns - ordered.since_ns, 0) / _NS_PER_S,
        }


def _timers(state: State, record_id: str) -> dict[str, int]:
    names = ("retry", "grace", "kill")
    found = ((name, state.history.timers.get(f"{record_id}/{name}")) for name in names)
    return {name: armed.due_wall_ns for name, armed in found if armed is not None}


def _owes(
    state: State, record: SandboxRecord | ContainerRecord | Layer, parts: list[str], owing: bool
) -> dict[str, Any] | None:
    """What could not be given back, and when it is tried again; None when nothing is owed."""
    if not owing and not record.retries:
        return None
    armed = state.history.timers.get(retry_timer(record.id))
    failure = record.failure
    return {
        "parts": parts,
        "retries": record.retries,
        "nextRetryNs": armed.due_wall_ns if armed else 0,
        "reason": failure.reason if failure else "",
        "message": failure.message if failure else "",
    }


def describe(order: fx.Order) -> str:
    """What an order is about, in one line without anything that may be secret."""
    match order:
        case fx.SaveRecord():
            return f"the journal, {order.record.KIND} {order.record.id} as {order.record.state.value}"
        case fx.DeleteRecord():
            return f"the journal, {order.kind} {order.record_id}"
        case fx.PrepareSandbox():
            return f"namespaces {', '.join(order.namespaces)}" if order.namespaces else "sandbox files"
        case fx.AttachNetwork():
            return f"CNI ADD in {order.netns_path}"
        case fx.DetachNetwork():
            return f"CNI DEL in {order.netns.path}" if order.netns else "CNI DEL without a namespace"
        case fx.MountRootfs():
            return f"root filesystem of {len(order.layers)} layers"
        case fx.CreateContainer() | fx.StartContainer() | fx.DeleteContainer() | fx.ObserveContainer():
            return f"runtime {order.runtime_handler}, container {order.container_id}"
        case fx.SignalContainer():
            return f"signal {order.signal} to {'every process of ' if order.everyone else ''}{order.container_id}"
        case fx.ReleaseRootfs():
            return f"root filesystem of {order.container_id}"
        case fx.UpdateContainer():
            return f"limits of container {order.container_id}"
        case fx.ReopenLog():
            return f"log {order.log_path}"
        case fx.ExecInContainer() | fx.ServeExec():
            return f"a command in container {order.container_id}"
        case fx.ServeAttach():
            return f"the streams of container {order.container_id}"
        case fx.EndStream():
            return f"stream {order.session_id}"
        case fx.ResolveImage():
            return f"reference {order.reference}"
        case fx.FetchLayer() | fx.ApplyLayer() | fx.ProveLayer():
            return f"layer {order.digest}, {order.size_bytes} bytes"
        case fx.RemoveLayer():
            return f"layer {order.diff_id}"
        case fx.SweepStorage():
            return "what a crash left"
        case _:
            return str(getattr(order, "sandbox_id", ""))
