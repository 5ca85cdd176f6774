"""Starting again: the journal is taken as it is and served at once; then every record is compared with the world."""

from dataclasses import replace

from crio_core import effects as fx
from crio_core.errors import LocalError
from crio_core.events import JournalLoaded
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

_SANDBOX_REST = {
    SandboxState.PREPARING: SandboxState.RESERVED,
    SandboxState.NETWORK: SandboxState.RESERVED,
    SandboxState.INFRA: SandboxState.RESERVED,
    SandboxState.UNWINDING: SandboxState.RESERVED,
    SandboxState.STOPPING: SandboxState.READY,
    SandboxState.DETACHING: SandboxState.READY,
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
"""Where work that was under way when the server ended is taken up again: the last state that a client was told."""


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
    for container in state.containers.values():
        members = state.members.get(container.sandbox_id) or ()
        state.members.put(container.sandbox_id, (*members, container.id))
    pods.resume(state)
    # What is quarantined may own anything, so nothing is swept while something is.
    if not state.quarantined:
        sweep = fx.SweepStorage(
            layers=state.layers.keys(), containers=state.containers.keys(), sandboxes=state.sandboxes.keys()
        )
        state.emit("storage", sweep)


def _take(state: State, record: Record) -> None:
    match record:
        case SandboxRecord():
            record = replace(record, state=_SANDBOX_REST.get(record.state, record.state), doomed=False)
            state.sandboxes.put(record.id, record)
            state.members.put(record.id, state.members.get(record.id) or ())
            if record.state not in (SandboxState.RESERVED, SandboxState.OWING):
                state.sandbox_names.put(pods.sandbox_key(record), record.id)
        case ContainerRecord():
            rest = _CONTAINER_REST.get(record.state, record.state)
            record = replace(record, state=rest, doomed=False, cancelled=False, kill_at_ns=0)
            state.containers.put(record.id, record)
            if record.state not in (ContainerState.RESERVED, ContainerState.OWING):
                state.container_names.put(pods.container_key(record), record.id)
        case ImageRecord():
            state.images.put(record.id, record)
            images.load_layers(state, record)
