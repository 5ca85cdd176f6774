"""Starting again: the journal is taken as it is and served at once; then every record is compared with the world."""

from crio_core import effects as fx
from crio_core.errors import LocalError
from crio_core.events import JournalLoaded, Outcome, StorageSwept
from crio_core.lifecycle.release import retry_after_ns
from crio_core.node import images, pods
from crio_core.node.state import State
from crio_core.records import (
    ContainerRecord,
    ContainerState,
    ImageRecord,
    Record,
    SandboxRecord,
    SandboxState,
    decode,
)
from crio_core.values import replace

STORAGE_LANE = "storage"
SWEEP_TIMER = "storage/sweep"

_SANDBOX_REST = {
    SandboxState.PREPARING: SandboxState.RESERVED,
    SandboxState.NETWORK: SandboxState.RESERVED,
    SandboxState.INFRA: SandboxState.RESERVED,
    SandboxState.UNWINDING: SandboxState.RESERVED,
    # Some of it may have been released, so it cannot be ready again: it is stopped once more, from the beginning.
    SandboxState.DETACHING: SandboxState.STOPPING,
    SandboxState.REMOVING: SandboxState.STOPPED,
    SandboxState.CLEANING: SandboxState.STOPPED,
}
_CONTAINER_REST = {
    ContainerState.ROOTFS: ContainerState.RESERVED,
    ContainerState.CREATING: ContainerState.RESERVED,
    ContainerState.UNWINDING: ContainerState.RESERVED,
    ContainerState.STARTING: ContainerState.CREATED,
    ContainerState.STOPPING: ContainerState.RUNNING,
    ContainerState.KILLING: ContainerState.RUNNING,
    ContainerState.REMOVING: ContainerState.EXITED,
}
"""Where work that was under way when the server ended is taken up again."""


def load(state: State, event: JournalLoaded) -> None:
    """Take the recorded state and begin to reconcile it. A record that cannot be read is set aside, with its reason."""
    if state.sandboxes or state.containers or state.images:
        raise LocalError("a journal was loaded into a node that is in use")
    state.at_ns, state.wall_ns, state.boot_id = event.at_ns, event.wall_ns, event.boot_id
    for key, reason in event.quarantined.items():
        state.quarantined.put(key, reason)
    for kind, record_id, data in event.rows:
        try:
            _take(state, decode(kind, data))
        except LocalError as error:
            state.quarantined.put(f"{kind}/{record_id}", str(error))
    _forget_old_boot(state, event)
    _stop_unready(state)
    _note_strays(state, event)
    _name(state)
    for container in state.containers.values():
        # What is owed of a container may outlive its sandbox.
        if (members := state.members.get(container.sandbox_id)) is not None:
            state.members.put(container.sandbox_id, (*members, container.id))
    images.load_layers(state, event.layers)
    pods.resume(state)
    images.leave_layers(state, tuple(one.diff_id for one in event.layers))
    # What is quarantined may own anything, so nothing is swept while something is.
    if not state.quarantined:
        sweep(state)


def _note_strays(state: State, event: JournalLoaded) -> None:
    if state.quarantined:
        for key, named in event.here.items():
            if key not in state.containers:
                state.strays.put(key, named)


def _forget_old_boot(state: State, event: JournalLoaded) -> None:
    """Namespaces and process ids of another boot mean nothing now; only an exit file can tell how a container ended."""
    for sandbox in state.sandboxes.values():
        if sandbox.boot_id != event.boot_id:
            state.sandboxes.put(sandbox.id, replace(sandbox, pins=()))
    for container in state.containers.values():
        pod = state.sandboxes.get(container.sandbox_id)
        if container.id not in event.here and (pod is None or pod.boot_id != event.boot_id):
            state.containers.put(container.id, replace(container, pid=0, monitor_pid=0))


def _stop_unready(state: State) -> None:
    """A pod that has containers was ready, and the journal did not get that; nor did it get what the pod is made of. So
    it cannot be ready again, and is removed with its containers, which have to be dead first."""
    for container in state.containers.values():
        pod = state.sandboxes.get(container.sandbox_id)
        made = container.state not in (ContainerState.RESERVED, ContainerState.OWING) and not container.infra
        if pod is not None and pod.state is SandboxState.RESERVED and made:
            stopping = replace(pod, state=SandboxState.STOPPING, holds=pod.plan, doomed=True)
            state.sandboxes.put(pod.id, stopping)


def sweep(state: State) -> None:
    """Have removed what a crash left and no record owns."""
    order = fx.SweepStorage(containers=state.containers.keys(), sandboxes=state.sandboxes.keys())
    state.emit(STORAGE_LANE, order)


def swept(state: State, outcome: Outcome) -> None:
    """What a crash left is gone, or is looked for again after a while."""
    if not isinstance(outcome, StorageSwept):
        failures = (state.unsaved.get(SWEEP_TIMER) or 0) + 1
        state.unsaved.put(SWEEP_TIMER, failures)
        state.emit(STORAGE_LANE, fx.arm(timer_id=SWEEP_TIMER, after_ns=retry_after_ns(failures)))
        return
    state.unsaved.pop(SWEEP_TIMER)


def rest(record: SandboxRecord | ContainerRecord) -> SandboxRecord | ContainerRecord:
    """The record as a server takes it up that finds it in its journal."""
    if isinstance(record, SandboxRecord):
        found = _SANDBOX_REST.get(record.state)
        return record if found is None else replace(record, state=found)
    state = _CONTAINER_REST.get(record.state, record.state)
    if state is ContainerState.RUNNING and not record.started_at_ns:
        state = ContainerState.CREATED  # It was being stopped, and its start had failed or was never asked for.
    # A removal goes on where every process is dead; where one lives its client has to ask again.
    doomed = record.doomed and state is ContainerState.EXITED
    if record.state is state and record.doomed is doomed and not record.cancelled and not record.kill_at_ns:
        return record  # As nearly all are, and a start has no time to lose.
    return replace(record, state=state, doomed=doomed, cancelled=False, kill_at_ns=0)


def _take(state: State, record: Record) -> None:
    if isinstance(record, ImageRecord):
        state.images.put(record.id, record)
        return
    record = rest(record)
    state.last_generation = max(state.last_generation, record.generation)
    match record:
        case SandboxRecord():
            state.sandboxes.put(record.id, record)
            state.members.put(record.id, state.members.get(record.id) or ())
        case ContainerRecord():
            state.containers.put(record.id, record)


def _age(record: SandboxRecord | ContainerRecord) -> tuple[int, int]:
    """By what records are sorted from old to new: the time of day decides between those of old versions only."""
    return record.generation, record.created_at_ns


def _name(state: State) -> None:
    """Give each name to its newest record.

    An older one had been removed before its name was taken anew, and the journal did not get that: it is removed again.
    """
    for sandbox in sorted(state.sandboxes.values(), key=_age):
        if sandbox.state not in (SandboxState.RESERVED, SandboxState.OWING):
            key = pods.sandbox_key(sandbox)
            if (older := state.sandbox_names.get(key)) is not None:
                removed = state.sandboxes[older]
                stopped = SandboxState.STOPPED if removed.state is SandboxState.STOPPED else SandboxState.STOPPING
                state.sandboxes.put(older, replace(removed, state=stopped, doomed=True))
            state.sandbox_names.put(key, sandbox.id)
    for container in sorted(state.containers.values(), key=_age):
        if container.state not in (ContainerState.RESERVED, ContainerState.OWING):
            name = pods.container_key(container)
            if (older := state.container_names.get(name)) is not None:
                state.containers.put(older, replace(state.containers[older], doomed=True))
            state.container_names.put(name, container.id)
