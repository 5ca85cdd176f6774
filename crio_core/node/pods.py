"""The lifecycles of sandboxes and containers: each event applied, and what one waits for of the other."""

from collections.abc import Mapping

import orjson

from crio_core import effects as fx
from crio_core.cri import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    LinuxContainerConfig,
    LinuxContainerSecurityContext,
    NamespaceMode,
    NamespaceOption,
)
from crio_core.errors import Code
from crio_core.lifecycle import container as ct
from crio_core.lifecycle import sandbox as sb
from crio_core.lifecycle.release import PartReleased, ReleaseFailed, Resumed, RetryDue
from crio_core.node import images, naming, quarantine, sessions, specs
from crio_core.node.state import ContainerKey, SandboxKey, State
from crio_core.records import (
    ContainerRecord,
    ContainerState,
    Failure,
    ImageVolume,
    Part,
    SandboxRecord,
    SandboxState,
)
from crio_core.replies import Created

COMING = frozenset({ContainerState.RESERVED, ContainerState.ROOTFS, ContainerState.CREATING})
WATCHED = frozenset(
    {
        ContainerState.CREATED,
        ContainerState.STARTING,
        ContainerState.RUNNING,
        ContainerState.STOPPING,
        ContainerState.KILLING,
    }
)
"""States of a container whose process has not been seen to end."""
QUIET = frozenset({ContainerState.EXITED, ContainerState.REMOVING, ContainerState.OWING})
"""States of a container that has no process."""
NAMELESS = frozenset({ContainerState.REMOVING, ContainerState.UNWINDING, ContainerState.OWING, ContainerState.GONE})
"""States in which a container's name is free again, though some of it may be left."""
NAMELESS_SANDBOX = frozenset({SandboxState.UNWINDING, SandboxState.OWING, SandboxState.CLEANING, SandboxState.GONE})
_NO_ORDERS = (fx.Answer, fx.Ask)
"""What a lifecycle has the node do. Most of what it returns goes on to the world."""
_LANES: Mapping[type, str] = {fx.WatchContainer: "/watch", fx.SignalContainer: "/signal"}
"""Ends of the lanes of what must not hold up its container."""


def sandbox_key(record: SandboxRecord) -> SandboxKey:
    """What makes a sandbox unique on the node."""
    meta = record.metadata
    return (meta.namespace, meta.name, meta.uid, meta.attempt)


def container_key(record: ContainerRecord) -> ContainerKey:
    """What makes a container unique on the node."""
    return (record.sandbox_id, record.metadata.name, record.metadata.attempt)


def reserve_container(
    state: State, sandbox: SandboxRecord, config: ContainerConfig, text: str, new_id: str, *, infra: bool
) -> None:
    """Reserve a container in the journal.

    Raises:
        OperationError: NOT_FOUND, its image is not on this node.
    """
    image = naming.present_image(state, "image", config.image)
    record = ContainerRecord(
        id=new_id,
        sandbox_id=sandbox.id,
        state=ContainerState.RESERVED,
        metadata=config.metadata,
        created_at_ns=state.wall_ns,
        image=config.image.user_specified_image or config.image.image,
        image_id=image.id,
        image_ref=naming.reference_of(image, config.image),
        layers=image.layers,
        volumes=_volumes(state, config),
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=sandbox.runtime_handler,
        log_path=specs.log_path(sandbox, config, state.settings),
        stop_signal=specs.stop_signal(config, image),
        request=text,
        infra=infra,
        generation=state.next_generation(),
    )
    state.containers.put(new_id, record)
    state.members.put(sandbox.id, (*state.members[sandbox.id], new_id))
    state.container_names.put(container_key(record), new_id)
    # In the sandbox's lane: no container may run in a pod of which the journal does not have yet that it was ready.
    state.emit(sandbox.id, fx.save(record=record), owner=new_id)


def _volumes(state: State, config: ContainerConfig) -> tuple[ImageVolume, ...]:
    found = []
    for index, mount in enumerate(config.mounts):
        if mount.image.image:
            image = naming.present_image(state, f"config.mounts[{index}].image", mount.image)
            found.append(
                ImageVolume(
                    target=mount.container_path, image_id=image.id, layers=image.layers, sub_path=mount.image_sub_path
                )
            )
    return tuple(found)


# --- lifecycles ---------------------------------------------------------------------------------------------------


def advance_sandbox(state: State, sandbox_id: str, event: object) -> None:
    """Apply an event to a sandbox and do what its lifecycle asks for."""
    before = state.sandboxes[sandbox_id]
    record, outputs = sb.SANDBOX.step(before, event)
    if before.state is SandboxState.READY and record.state is not SandboxState.READY:
        sessions.target_gone(state, sandbox_id)
    nameless = record.state in NAMELESS_SANDBOX
    if record.state is SandboxState.UNWINDING:
        # While its failed creation is taken back, a retry waits for that and hears why; then the name is free.
        nameless = not state.awaited(record.id, "create")
    if nameless and state.sandbox_names.get(sandbox_key(record)) == record.id:
        state.sandbox_names.pop(sandbox_key(record))
    if record.state is SandboxState.GONE:
        state.sandboxes.pop(sandbox_id)
        state.members.pop(sandbox_id)
        state.unsaved.pop(f"{record.KIND}/{record.id}")
    else:
        state.sandboxes.put(sandbox_id, record)
    for output in outputs:
        if not isinstance(output, _NO_ORDERS):
            state.emit(sandbox_id, output)
            continue
        match output:
            case fx.Answer(operation="create", failure=None):
                state.answer(sandbox_id, "create", Created(id=sandbox_id))
            case fx.Answer():
                state.answer(sandbox_id, output.operation, output.failure)
            case fx.Ask():
                _do_for_sandbox(state, record, output.what)


def _do_for_sandbox(state: State, record: SandboxRecord, what: str) -> None:
    match what:
        case "stop-containers":
            for member in _members(state, record):
                if ct.may_live(member):
                    advance_container(state, member.id, RetryDue())
                elif member.state not in QUIET:
                    advance_container(state, member.id, ct.KillRequested())
            _settle_or_refuse(state, record.id)
        case "remove-containers":
            for member in _members(state, record):
                advance_container(state, member.id, RetryDue() if ct.may_live(member) else ct.RemoveRequested())
            _settle_or_refuse(state, record.id)
        case "start-infra":
            _start_infra(state, record)
        case _:
            infra = state.containers.get(specs.infra_id(record.id))
            if infra is not None and ct.may_live(infra):
                advance_container(state, infra.id, RetryDue())
            elif infra is None or infra.state is ContainerState.OWING:
                advance_sandbox(state, record.id, PartReleased(part=Part.INFRA))
            else:
                advance_container(state, infra.id, ct.RemoveRequested())


def _members(state: State, record: SandboxRecord) -> tuple[ContainerRecord, ...]:
    """The containers that clients made in the sandbox, owed remains without a process apart."""
    found = (state.containers.get(member) for member in state.members.get(record.id) or ())
    return tuple(
        one
        for one in found
        if one is not None and not one.infra and (one.state is not ContainerState.OWING or ct.may_live(one))
    )


def settle(state: State, sandbox_id: str) -> None:
    """Tell a sandbox that waits for its containers when there is nothing left to wait for."""
    record = state.sandboxes.get(sandbox_id)
    if record is None or quarantine.stray_of(state, sandbox_id):
        return
    members = _members(state, record)
    quiet = all(member.state in QUIET and not ct.may_live(member) for member in members)
    if record.state is SandboxState.STOPPING and quiet:
        advance_sandbox(state, sandbox_id, sb.ContainersStopped())
    elif record.state is SandboxState.REMOVING and not members:
        advance_sandbox(state, sandbox_id, sb.ContainersRemoved())


def _settle_or_refuse(state: State, sandbox_id: str) -> None:
    """Go on when nothing is left to wait for; refuse when what is left can be neither stopped nor waited for."""
    if stray := quarantine.stray_of(state, sandbox_id):
        advance_sandbox(state, sandbox_id, sb.ContainersStuck(failure=quarantine.stray_failure(sandbox_id, stray)))
    else:
        settle(state, sandbox_id)


def _start_infra(state: State, sandbox: SandboxRecord) -> None:
    """The infra container is a container like others, that clients do not see; its image is pulled if it is missing."""
    image = ImageSpec(image=state.settings.pause_image)
    if naming.find_image(state, image) is None:
        images.pull_for_infra(state, sandbox.id, image)
        return
    options = sb.sandbox_request(sandbox).linux.security_context.namespace_options
    config = ContainerConfig(
        metadata=ContainerMetadata(name="POD", attempt=sandbox.metadata.attempt),
        image=image,
        command=state.settings.pause_command,
        linux=LinuxContainerConfig(
            security_context=LinuxContainerSecurityContext(
                namespace_options=NamespaceOption(
                    network=options.network, ipc=options.ipc, pid=NamespaceMode.CONTAINER
                ),
                readonly_rootfs=True,
            )
        ),
    )
    text = orjson.dumps(config).decode()
    reserve_container(state, sandbox, config, text, specs.infra_id(sandbox.id), infra=True)


def infra_image_ended(state: State, sandbox_id: str, failure: Failure | None) -> None:
    """The pull that a sandbox's infra container waited for is over."""
    sandbox = state.sandboxes.get(sandbox_id)
    if sandbox is None or sandbox.state is not SandboxState.INFRA:
        return
    if failure is not None:
        advance_sandbox(state, sandbox_id, sb.InfraFailed(failure=failure))
    else:
        _start_infra(state, sandbox)


def advance_container(state: State, container_id: str, event: object) -> None:
    """Apply an event to a container, do what its lifecycle asks for, and tell its sandbox."""
    before = state.containers[container_id]
    record, outputs = ct.CONTAINER.step(before, event)
    if record.state in NAMELESS and state.container_names.get(container_key(record)) == record.id:
        state.container_names.pop(container_key(record))
    if record.state is ContainerState.GONE:
        state.containers.pop(container_id)
        state.unsaved.pop(f"{record.KIND}/{record.id}")
        if (members := state.members.get(record.sandbox_id)) is not None:
            state.members.put(record.sandbox_id, tuple(one for one in members if one != container_id))
    else:
        state.containers.put(container_id, record)
    for output in outputs:
        if not isinstance(output, _NO_ORDERS):
            # A start that does not come back must not keep a kill from being tried.
            lane = _LANES.get(type(output), "")
            state.emit(container_id + lane, output, owner=container_id)
            continue
        match output:
            case fx.Answer(operation="create", failure=None):
                state.answer(container_id, "create", Created(id=container_id))
            case fx.Answer():
                state.answer(container_id, output.operation, output.failure)
            case fx.Ask(what="mount-rootfs"):
                state.emit(container_id, specs.mount_rootfs(state, record))
            case fx.Ask():
                _stuck(state, record)
    if before.state in sessions.SERVED and record.state not in sessions.SERVED:
        sessions.target_gone(state, container_id)
    if record.state is not before.state or ct.may_live(record) != ct.may_live(before):
        if record.state is ContainerState.GONE:
            images.sweep_layers(state, record.every_layer)
        if record.infra:
            _infra_moved(state, record)
        settle(state, record.sandbox_id)


def watch_again(state: State, container_id: str) -> None:
    """Wait anew for the end of a container's process, if it is not known to have ended."""
    container = state.containers.get(container_id)
    if container is not None and container.state in WATCHED:
        state.emit(f"{container_id}/watch", ct.watch(container), owner=container_id)


def look_again(state: State, record_id: str) -> None:
    """Look anew how a record found at the start stands, if that still matters."""
    container, sandbox = state.containers.get(record_id), state.sandboxes.get(record_id)
    if container is not None and container.state is ContainerState.CREATED:
        observe = fx.ObserveContainer(container_id=record_id, runtime_handler=container.runtime_handler)
        state.emit(record_id, observe)
    elif sandbox is not None and sandbox.state is SandboxState.READY:
        state.emit(record_id, fx.ObserveSandbox(sandbox_id=record_id, pins=sandbox.pins))


def sandbox_lost(state: State, container: ContainerRecord) -> Failure | None:
    """Why a container that is being created can have no place in its sandbox any more, if so."""
    sandbox = state.sandboxes.get(container.sandbox_id)
    if sandbox is not None and sandbox.state in (SandboxState.READY, SandboxState.INFRA):
        return None
    return Failure(
        code=Code.ABORTED.value,
        reason="SANDBOX_NOT_READY",
        message=f"container {container.id}: its sandbox {container.sandbox_id} is not ready any more",
    )


def _stuck(state: State, record: ContainerRecord) -> None:
    if record.state is ContainerState.OWING and not ct.may_live(record):
        return
    sandbox = state.sandboxes.get(record.sandbox_id)
    if sandbox is not None and sandbox.state in (SandboxState.STOPPING, SandboxState.REMOVING):
        failure = Failure(
            code=Code.DEADLINE_EXCEEDED.value,
            reason="CONTAINER_UNKILLABLE",
            message=f"sandbox {sandbox.id}: process {record.pid} of container {record.id} survives SIGKILL",
        )
        advance_sandbox(state, sandbox.id, sb.ContainersStuck(failure=failure))


def _infra_moved(state: State, record: ContainerRecord) -> None:
    """Carry an infra container through its start, and its end to its sandbox."""
    sandbox = state.sandboxes.get(record.sandbox_id)
    match record.state:
        case ContainerState.CREATED:
            advance_container(state, record.id, ct.StartRequested())
            return
        case ContainerState.RUNNING if sandbox is not None and sandbox.state is SandboxState.INFRA:
            advance_sandbox(state, sandbox.id, sb.InfraStarted())
            return
    if sandbox is None or sandbox.state is SandboxState.RESERVED:
        return  # One that is about to be taken back asks for the end of its infra container by itself.
    if record.state in (ContainerState.EXITED, ContainerState.OWING, ContainerState.GONE):
        gone = record.state is not ContainerState.EXITED
        if sandbox.state is SandboxState.INFRA:
            failure = record.failure or Failure(
                code=Code.INTERNAL.value, reason="INFRA_EXITED", message=f"infra container exited: {record.exit_code}"
            )
            advance_sandbox(state, sandbox.id, sb.InfraFailed(failure=failure))
        elif sandbox.state in (SandboxState.READY, SandboxState.BROKEN):
            advance_sandbox(state, sandbox.id, sb.InfraExited())
        elif ct.may_live(record):
            failure = record.failure or Failure(code=Code.INTERNAL.value, reason="INFRA_ALIVE", message=record.id)
            advance_sandbox(state, sandbox.id, ReleaseFailed(failure=failure))
        elif gone:
            advance_sandbox(state, sandbox.id, PartReleased(part=Part.INFRA))


def _remove_orphan(state: State, container_id: str) -> None:
    """A container whose sandbox is gone, or owed, was removed with it; what is owed of itself is tried again anyway."""
    container = state.containers.get(container_id)
    if container is not None and container.state is not ContainerState.OWING:
        advance_container(state, container_id, ct.RemoveRequested())


def _has_removed(pod: SandboxRecord, container: ContainerRecord) -> bool:
    """Whether a pod had this container removed; the journal may have failed to forget the infra container."""
    forgotten = container.infra and pod.state is SandboxState.STOPPED and Part.INFRA not in pod.holds
    return pod.state is SandboxState.OWING or forgotten


def _has_infra(state: State, sandbox: SandboxRecord) -> bool:
    infra = state.containers.get(specs.infra_id(sandbox.id))
    return infra is not None and infra.state in WATCHED


def resume(state: State) -> None:
    """Go on with what the journal said: unwind what was under way, watch what runs, look after what is owed."""
    for container in state.containers.values():
        pod = state.sandboxes.get(container.sandbox_id)
        if state.containers.get(container.id) is container:
            advance_container(state, container.id, Resumed())
        else:
            watch_again(state, container.id)  # Its pod, which went on by itself, has had it killed already.
        unread = quarantine.has_lost(state, SandboxRecord.KIND, container.sandbox_id)
        if (pod is None and not unread) or (pod is not None and _has_removed(pod, container)):
            _remove_orphan(state, container.id)
    for sandbox in state.sandboxes.values():
        match sandbox.state:
            case SandboxState.DETACHING | SandboxState.REMOVING | SandboxState.CLEANING:
                pass  # Its last container was found dead a moment ago, and it went on by itself.
            case SandboxState.RESERVED | SandboxState.STOPPING | SandboxState.STOPPED | SandboxState.OWING:
                advance_sandbox(state, sandbox.id, Resumed())
            case _ if sandbox.boot_id != state.boot_id:
                advance_sandbox(state, sandbox.id, sb.NamespacesLost())
            case SandboxState.READY if Part.INFRA in sandbox.plan and not _has_infra(state, sandbox):
                # Its stop had got further than the journal, which could not be written.
                advance_sandbox(state, sandbox.id, sb.InfraExited())
            case _:
                observe = fx.ObserveSandbox(sandbox_id=sandbox.id, pins=sandbox.pins)
                state.emit(sandbox.id, observe)
