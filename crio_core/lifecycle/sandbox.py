"""The life of a pod sandbox.

A sandbox is reserved in the journal before anything of it exists. Then its namespaces are pinned, its network
attached and, where one is needed, its infra container started; each of these is a *part* that the record holds from
the moment in which it is ordered, and gives back, last taken first, when the sandbox is stopped or its creation
fails.

A part that cannot be given back, such as a network whose plugin is missing, stays owed: the release is tried again with
growing pauses, also after the sandbox was removed and across restarts. What the client sees does not wait for it.
"""

from enum import Enum
from typing import Any

from crio_core import effects as fx
from crio_core.cri import NamespaceMode, PodSandboxConfig, UserNamespace
from crio_core.events import NetworkAttached, RecordSaved, SandboxPrepared
from crio_core.lifecycle.engine import Arrival, Lifecycle, Output, arrive
from crio_core.lifecycle.release import (
    AllReleased,
    PartReleased,
    ReleaseFailed,
    Resumed,
    RetryDue,
    retry_after_ns,
    retry_timer,
)
from crio_core.records import Failure, Part, Pin, SandboxRecord, SandboxState, decode_request
from crio_core.values import dataclass, replace

HOSTNAME_CHARS = 12
"""How much of its id a pod is called by that says nothing else."""
SHM_BYTES = 64 * 1024 * 1024
"""Size of a pod's /dev/shm, as Kubernetes users expect it."""

S = SandboxState

COMING = frozenset({S.RESERVED, S.PREPARING, S.NETWORK, S.INFRA})
"""States of a sandbox whose creation has not been answered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordNotSaved:
    """The journal refused the reservation: nothing was made."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationFailed:
    """Files or namespaces could not be made; some may exist."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSkipped:
    """The pod uses the node's network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFailed:
    """The ADD chain failed; a plugin may hold resources all the same."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class InfraSkipped:
    """The pod needs no infra container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfraStarted:
    """The infra container runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfraFailed:
    """The infra container could not be started."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class InfraExited:
    """The infra container's process ended without being told to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacesLost:
    """The pinned namespaces are not there any more: a reboot, or somebody unmounted them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStopRequested:
    """A client wants the sandbox stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRemoveRequested:
    """A client wants the sandbox gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainersStopped:
    """No container of the sandbox has a process any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainersStuck:
    """A container of the sandbox does not die."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainersRemoved:
    """The sandbox has no container any more."""


TABLE: dict[tuple[Enum, type], Enum] = {
    (S.RESERVED, RecordSaved): S.PREPARING,
    (S.RESERVED, RecordNotSaved): S.GONE,
    # Found reserved after a restart: nobody knows how far it got, so everything it planned is released.
    (S.RESERVED, Resumed): S.UNWINDING,
    (S.PREPARING, SandboxPrepared): S.NETWORK,
    (S.PREPARING, PreparationFailed): S.UNWINDING,
    (S.NETWORK, NetworkAttached): S.INFRA,
    (S.NETWORK, NetworkSkipped): S.INFRA,
    (S.NETWORK, NetworkFailed): S.UNWINDING,
    (S.INFRA, InfraStarted): S.READY,
    (S.INFRA, InfraSkipped): S.READY,
    (S.INFRA, InfraFailed): S.UNWINDING,
    (S.READY, SandboxStopRequested): S.STOPPING,
    (S.READY, SandboxRemoveRequested): S.STOPPING,
    (S.READY, InfraExited): S.BROKEN,
    (S.READY, NamespacesLost): S.BROKEN,
    (S.BROKEN, SandboxStopRequested): S.STOPPING,
    (S.BROKEN, SandboxRemoveRequested): S.STOPPING,
    (S.BROKEN, InfraExited): S.BROKEN,
    (S.BROKEN, NamespacesLost): S.BROKEN,
    (S.STOPPING, SandboxStopRequested): S.STOPPING,
    (S.STOPPING, SandboxRemoveRequested): S.STOPPING,
    (S.STOPPING, ContainersStuck): S.STOPPING,
    (S.STOPPING, ContainersStopped): S.DETACHING,
    # Found half stopped after a restart.
    (S.STOPPING, Resumed): S.STOPPING,
    # An infra container that an earlier stop owed is gone at last.
    (S.STOPPING, PartReleased): S.STOPPING,
    # Nor can it be ended yet; the detaching asks for its end anew, and tells who waits.
    (S.STOPPING, ReleaseFailed): S.STOPPING,
    (S.STOPPING, NamespacesLost): S.STOPPING,
    (S.DETACHING, SandboxStopRequested): S.DETACHING,
    (S.DETACHING, SandboxRemoveRequested): S.DETACHING,
    # The look after a restart was under way when the stop came.
    (S.DETACHING, NamespacesLost): S.DETACHING,
    (S.DETACHING, PartReleased): S.DETACHING,
    (S.DETACHING, AllReleased): S.STOPPED,
    (S.DETACHING, ReleaseFailed): S.STOPPED,
    (S.STOPPED, SandboxStopRequested): S.STOPPED,
    (S.STOPPED, SandboxRemoveRequested): S.REMOVING,
    # An owed release goes on while the sandbox is listed as stopped.
    (S.STOPPED, RetryDue): S.STOPPED,
    (S.STOPPED, PartReleased): S.STOPPED,
    (S.STOPPED, AllReleased): S.STOPPED,
    (S.STOPPED, ReleaseFailed): S.STOPPED,
    (S.STOPPED, Resumed): S.STOPPED,
    (S.REMOVING, SandboxStopRequested): S.REMOVING,
    (S.REMOVING, SandboxRemoveRequested): S.REMOVING,
    # A container whose creation failed and was not taken back may still have a process.
    (S.REMOVING, ContainersStuck): S.REMOVING,
    (S.REMOVING, ContainersRemoved): S.CLEANING,
    # The results of a retry that was under way when the removal came; its timer may fire late.
    (S.REMOVING, RetryDue): S.REMOVING,
    (S.REMOVING, PartReleased): S.REMOVING,
    (S.REMOVING, ReleaseFailed): S.REMOVING,
    (S.CLEANING, SandboxStopRequested): S.CLEANING,
    (S.CLEANING, SandboxRemoveRequested): S.CLEANING,
    (S.CLEANING, RetryDue): S.CLEANING,
    (S.CLEANING, PartReleased): S.CLEANING,
    (S.CLEANING, AllReleased): S.GONE,
    (S.CLEANING, ReleaseFailed): S.OWING,
    (S.UNWINDING, PartReleased): S.UNWINDING,
    (S.UNWINDING, AllReleased): S.GONE,
    (S.UNWINDING, ReleaseFailed): S.OWING,
    (S.OWING, RetryDue): S.OWING,
    (S.OWING, PartReleased): S.OWING,
    (S.OWING, AllReleased): S.GONE,
    (S.OWING, ReleaseFailed): S.OWING,
    (S.OWING, Resumed): S.OWING,
}


def sandbox_request(record: SandboxRecord) -> PodSandboxConfig:
    """What RunPodSandbox was told."""
    return decode_request(PodSandboxConfig, record.request)


def network_namespace(record: SandboxRecord) -> Pin | None:
    """The pin of the pod's own network; None where it has the node's."""
    return next((pin for pin in record.pins if pin.kind == "net"), None)


def _prepare(record: SandboxRecord) -> Arrival[SandboxRecord]:
    config = sandbox_request(record)
    options = config.linux.security_context.namespace_options
    kinds = []
    if options.network is not NamespaceMode.NODE:
        # A pod on the node's network has the node's host name too, so both namespaces come together.
        kinds += ["net", "uts"]
    if options.ipc is not NamespaceMode.NODE:
        kinds.append("ipc")
    if options.userns_options.wanted:
        kinds.append("user")
    order = fx.PrepareSandbox(
        sandbox_id=record.id,
        namespaces=tuple(kinds),
        hostname=config.hostname or (record.id[:HOSTNAME_CHARS] if "uts" in kinds else ""),
        sysctls=record.sysctls,
        dns=config.dns_config,
        shm_bytes=SHM_BYTES if "ipc" in kinds else 0,
        cgroup_parent=config.linux.cgroup_parent,
        users=options.userns_options if "user" in kinds else UserNamespace(),
    )
    return arrive(record=replace(record, holds=(Part.FILES, Part.NAMESPACES)), orders=(order,))


def _attach(record: SandboxRecord) -> Arrival[SandboxRecord]:
    if Part.NETWORK not in record.plan:
        return arrive(record=record, then=NetworkSkipped())
    netns = network_namespace(record)
    config = sandbox_request(record)
    order = fx.AttachNetwork(
        sandbox_id=record.id,
        metadata=record.metadata,
        network=record.network,
        netns_path=netns.path if netns else "",
        port_mappings=config.port_mappings,
        annotations=config.annotations,
        dns=config.dns_config,
    )
    return arrive(record=replace(record, holds=(*record.holds, Part.NETWORK)), orders=(order,))


def _start_infra(record: SandboxRecord) -> Arrival[SandboxRecord]:
    if Part.INFRA not in record.plan:
        return arrive(record=record, then=InfraSkipped())
    return arrive(record=replace(record, holds=(*record.holds, Part.INFRA)), orders=(fx.Ask(what="start-infra"),))


def _release_order(record: SandboxRecord, part: Part) -> Output:
    match part:
        case Part.INFRA:
            return fx.Ask(what="remove-infra")
        case Part.NETWORK:
            return fx.DetachNetwork(
                sandbox_id=record.id,
                metadata=record.metadata,
                network=record.network,
                attachment=record.attachment,
                netns=network_namespace(record),
                port_mappings=sandbox_request(record).port_mappings,
            )
        case Part.NAMESPACES:
            return fx.ReleaseNamespaces(sandbox_id=record.id)
        case _:
            return fx.RemoveSandboxFiles(
                sandbox_id=record.id, cgroup_parent=sandbox_request(record).linux.cgroup_parent
            )


def _release(record: SandboxRecord, event: Any, *, keep: frozenset[Part]) -> Arrival[SandboxRecord]:
    """Give back the part taken last, of those not kept; `event` may be the result of the one before."""
    if isinstance(event, PartReleased):
        if event.part not in record.holds:
            return arrive(record=record)  # released twice: the first time asked for the next part already
        record = replace(record, holds=tuple(part for part in record.holds if part is not event.part))
    left = [part for part in record.holds if part not in keep]
    if not left:
        return arrive(record=record, then=AllReleased())
    return arrive(record=record, orders=(_release_order(record, left[-1]),))


def _owe(record: SandboxRecord, failure: Failure) -> tuple[SandboxRecord, tuple[Output, ...]]:
    record = replace(record, failure=failure, retries=record.retries + 1)
    timer = fx.arm(timer_id=retry_timer(record.id), after_ns=retry_after_ns(record.retries))
    return record, (fx.save(record=record), timer)


KEPT_WHEN_STOPPED = frozenset({Part.FILES})


def _enter_stopped(record: SandboxRecord, came_from: Enum, event: Any) -> Arrival[SandboxRecord]:
    orders: tuple[Output, ...] = ()
    match event:
        case PartReleased() | RetryDue():
            return _release(record, event, keep=KEPT_WHEN_STOPPED)
        case SandboxStopRequested() if Part.INFRA in record.holds:
            return _release(record, event, keep=KEPT_WHEN_STOPPED)
        case ReleaseFailed():
            record, orders = _owe(record, event.failure)
        case AllReleased():
            record = replace(record, failure=None, retries=0)
            orders = (fx.save(record=record),)
        case Resumed() if not record.doomed:
            if any(part not in KEPT_WHEN_STOPPED for part in record.holds):
                return _release(record, event, keep=KEPT_WHEN_STOPPED)
    # A network that is still owed does not hold up the client; a process of the pod's own that may live does.
    left = record.failure if Part.INFRA in record.holds else None
    orders = (*orders, fx.Answer(operation="stop", failure=left))
    if record.doomed and (came_from is S.DETACHING or isinstance(event, Resumed)):
        return arrive(record=record, orders=orders, then=SandboxRemoveRequested())
    return arrive(record=record, orders=orders)


def _refusals(event: ContainersStuck) -> tuple[Output, ...]:
    return tuple(fx.Answer(operation=name, failure=event.failure) for name in ("stop", "remove"))


def _enter_stopping(record: SandboxRecord, came_from: Enum, event: Any) -> Arrival[SandboxRecord]:
    if isinstance(event, SandboxRemoveRequested):
        record = replace(record, doomed=True)
    if isinstance(event, NamespacesLost):
        record = replace(record, pins=())
    if isinstance(event, PartReleased):
        record = replace(record, holds=tuple(part for part in record.holds if part is not event.part))
    if isinstance(event, ContainersStuck):
        return arrive(record=record, orders=_refusals(event))
    if came_from is not S.STOPPING or isinstance(event, SandboxStopRequested | SandboxRemoveRequested | Resumed):
        return arrive(record=record, orders=(fx.Ask(what="stop-containers"),))
    return arrive(record=record)


def _enter_owing(record: SandboxRecord, came_from: Enum, event: Any) -> Arrival[SandboxRecord]:
    if isinstance(event, ReleaseFailed):
        failure = record.failure
        record, orders = _owe(record, event.failure)
        if came_from is S.UNWINDING:
            orders = (*orders, fx.Answer(operation="create", failure=failure))
        # Nothing that is owed holds up a client, but a process does.
        left = event.failure if Part.INFRA in record.holds else None
        ends = tuple(fx.Answer(operation=name, failure=left) for name in ("stop", "remove"))
        return arrive(record=record, orders=(*orders, *ends))
    return _release(record, event, keep=frozenset())


def _enter_unwinding(record: SandboxRecord, event: Any) -> Arrival[SandboxRecord]:
    if isinstance(event, Resumed):
        record = replace(record, holds=record.plan)
    elif isinstance(event, PreparationFailed | NetworkFailed | InfraFailed):
        record = replace(record, failure=event.failure)
    return _release(record, event, keep=frozenset())


def _enter_gone(record: SandboxRecord, event: Any) -> Arrival[SandboxRecord]:
    failure = event.failure if isinstance(event, RecordNotSaved) else record.failure
    return arrive(
        record=record,
        orders=(
            fx.CancelTimer(timer_id=retry_timer(record.id)),
            fx.DeleteRecord(kind=record.KIND, record_id=record.id),
            fx.Answer(operation="create", failure=failure),
            fx.answered("stop"),
            fx.answered("remove"),
        ),
    )


def _enter(record: SandboxRecord, came_from: Enum, event: Any) -> Arrival[SandboxRecord]:
    match record.state:
        case S.PREPARING:
            return _prepare(record)
        case S.NETWORK:
            return _attach(replace(record, pins=event.pins))
        case S.INFRA:
            if isinstance(event, NetworkAttached):
                record = replace(record, attachment=event.attachment, ips=event.ips)
            return _start_infra(record)
        case S.READY:
            return arrive(record=record, orders=(fx.save(record=record), fx.answered("create")))
        case S.BROKEN:
            if isinstance(event, NamespacesLost):
                record = replace(record, pins=())
            return arrive(record=record, orders=(fx.save(record=record),))
        case S.STOPPING:
            return _enter_stopping(record, came_from, event)
        case S.DETACHING:
            if isinstance(event, SandboxRemoveRequested):
                record = replace(record, doomed=True)
            if isinstance(event, ContainersStopped):
                # Once a part is gone the sandbox cannot be ready again, whatever happens to the server.
                saved: tuple[Output, ...] = (fx.save(record=record),)
                first = _release(record, event, keep=KEPT_WHEN_STOPPED)
                return replace(first, orders=(*saved, *first.orders)) if first.orders else first
            if isinstance(event, PartReleased):
                return _release(record, event, keep=KEPT_WHEN_STOPPED)
            return arrive(record=record)
        case S.STOPPED:
            return _enter_stopped(record, came_from, event)
        case S.REMOVING:
            if isinstance(event, PartReleased):
                return arrive(record=replace(record, holds=tuple(p for p in record.holds if p is not event.part)))
            if isinstance(event, SandboxRemoveRequested):
                return arrive(record=record, orders=(fx.Ask(what="remove-containers"),))
            if isinstance(event, ContainersStuck):
                return arrive(record=record, orders=_refusals(event))
            return arrive(record=record, orders=(fx.answered("stop"),))
        case S.CLEANING:
            if isinstance(event, ContainersRemoved | PartReleased):
                return _release(record, event, keep=frozenset())
            return arrive(record=record, orders=(fx.answered("stop"),))
        case S.UNWINDING:
            return _enter_unwinding(record, event)
        case S.OWING:
            return _enter_owing(record, came_from, event)
        case _:
            return _enter_gone(record, event)


SANDBOX = Lifecycle[SandboxRecord](
    "sandbox", SandboxState, initial=S.RESERVED, final=frozenset({S.GONE}), table=TABLE, enter=_enter
)
