"""The life of a container.

A container is reserved in the journal, its root filesystem mounted, its spec built and the container created by its
monitor; later it is started, stopped and removed. The exit of its process is an observation that can come at any
moment after the creation, before or after the result of whatever was ordered meanwhile, so every state says what an
exit means there.

A stop has a deadline, the earliest that any caller asked for. After it the container is killed, and killed again until
it is seen to be dead: a stop is answered with success only then.
"""

from enum import Enum
from typing import Any

from crio_core import effects as fx
from crio_core.events import ContainerCreated, ContainerStarted, ProcessExited, RecordSaved, SignalSent
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
from crio_core.records import ContainerRecord, ContainerState, Failure, Part
from crio_core.values import dataclass, replace

KILL_AGAIN_NS = 10_000_000_000
"""How long after SIGKILL a living process is reported as stuck, and killed again."""
UNKNOWN_EXIT_CODE = 255
"""Reported when a process ended and nobody can know how: never 0."""
START_ERROR_CODE = 128

S = ContainerState


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordNotSaved:
    """The journal refused the reservation: nothing was made."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class RootfsFailed:
    """The root filesystem could not be mounted."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecBuilt:
    """The root filesystem is mounted and the container's spec made from it."""

    create: fx.CreateContainer
    process: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRefused:
    """What the caller asked for cannot be made into a spec."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateFailed:
    """The runtime or the monitor could not create the container; parts of it may exist."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The container was told to stop before its creation was complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequested:
    """A client wants the process to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    """The runtime could not start the process."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRunning:
    """A restarted server found running what its journal calls created."""

    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """A client wants the container stopped within `grace_ns` (> 0) of `at_ns`."""

    at_ns: int
    grace_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KillRequested:
    """The container has to end now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveRequested:
    """The container has to be gone, killed first if need be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalFailed:
    """The runtime could not deliver a signal."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceExpired:
    """The time that a stop allowed is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillUnconfirmed:
    """A while after the kill the process still exists."""


TABLE: dict[tuple[Enum, type], Enum] = {
    (S.RESERVED, RecordSaved): S.ROOTFS,
    (S.RESERVED, RecordNotSaved): S.GONE,
    (S.RESERVED, KillRequested): S.RESERVED,
    # Found reserved after a restart: nobody knows how far it got, so everything is released.
    (S.RESERVED, Resumed): S.UNWINDING,
    (S.ROOTFS, SpecBuilt): S.CREATING,
    (S.ROOTFS, RootfsFailed): S.UNWINDING,
    (S.ROOTFS, SpecRefused): S.UNWINDING,
    (S.ROOTFS, Cancelled): S.UNWINDING,
    (S.ROOTFS, KillRequested): S.ROOTFS,
    (S.CREATING, ContainerCreated): S.CREATED,
    (S.CREATING, CreateFailed): S.UNWINDING,
    (S.CREATING, KillRequested): S.CREATING,
    (S.CREATED, Cancelled): S.UNWINDING,
    (S.CREATED, StartRequested): S.STARTING,
    (S.CREATED, StopRequested): S.KILLING,
    (S.CREATED, KillRequested): S.KILLING,
    (S.CREATED, RemoveRequested): S.KILLING,
    (S.CREATED, ProcessExited): S.EXITED,
    (S.CREATED, Resumed): S.CREATED,
    (S.CREATED, FoundRunning): S.RUNNING,
    (S.STARTING, StartRequested): S.STARTING,
    (S.STARTING, ContainerStarted): S.RUNNING,
    (S.STARTING, StartFailed): S.KILLING,
    # A short process can be seen to end before its start is reported.
    (S.STARTING, ProcessExited): S.EXITED,
    (S.STARTING, StopRequested): S.STOPPING,
    (S.STARTING, KillRequested): S.KILLING,
    (S.STARTING, RemoveRequested): S.KILLING,
    (S.STARTING, FoundRunning): S.STARTING,
    (S.RUNNING, StopRequested): S.STOPPING,
    (S.RUNNING, KillRequested): S.KILLING,
    (S.RUNNING, RemoveRequested): S.KILLING,
    (S.RUNNING, ProcessExited): S.EXITED,
    (S.RUNNING, Resumed): S.RUNNING,
    (S.STOPPING, StopRequested): S.STOPPING,
    (S.STOPPING, KillRequested): S.KILLING,
    (S.STOPPING, RemoveRequested): S.KILLING,
    (S.STOPPING, GraceExpired): S.KILLING,
    (S.STOPPING, ContainerStarted): S.STOPPING,
    (S.STOPPING, StartFailed): S.KILLING,
    (S.STOPPING, SignalSent): S.STOPPING,
    # A signal that cannot be delivered leaves it to the deadline.
    (S.STOPPING, SignalFailed): S.STOPPING,
    (S.STOPPING, ProcessExited): S.EXITED,
    (S.STOPPING, FoundRunning): S.STOPPING,
    (S.KILLING, StopRequested): S.KILLING,
    (S.KILLING, KillRequested): S.KILLING,
    (S.KILLING, RemoveRequested): S.KILLING,
    (S.KILLING, GraceExpired): S.KILLING,
    (S.KILLING, KillUnconfirmed): S.KILLING,
    (S.KILLING, ContainerStarted): S.KILLING,
    (S.KILLING, StartFailed): S.KILLING,
    (S.KILLING, SignalSent): S.KILLING,
    (S.KILLING, SignalFailed): S.KILLING,
    (S.KILLING, ProcessExited): S.EXITED,
    (S.KILLING, FoundRunning): S.KILLING,
    (S.EXITED, StopRequested): S.EXITED,
    (S.EXITED, KillRequested): S.EXITED,
    (S.EXITED, RemoveRequested): S.REMOVING,
    (S.EXITED, GraceExpired): S.EXITED,
    (S.EXITED, KillUnconfirmed): S.EXITED,
    (S.EXITED, ContainerStarted): S.EXITED,
    (S.EXITED, StartFailed): S.EXITED,
    (S.EXITED, SignalSent): S.EXITED,
    (S.EXITED, SignalFailed): S.EXITED,
    (S.EXITED, Resumed): S.EXITED,
    (S.EXITED, FoundRunning): S.EXITED,
    (S.REMOVING, StopRequested): S.REMOVING,
    (S.REMOVING, KillRequested): S.REMOVING,
    (S.REMOVING, RemoveRequested): S.REMOVING,
    (S.REMOVING, GraceExpired): S.REMOVING,
    (S.REMOVING, KillUnconfirmed): S.REMOVING,
    (S.REMOVING, ContainerStarted): S.REMOVING,
    (S.REMOVING, StartFailed): S.REMOVING,
    (S.REMOVING, SignalSent): S.REMOVING,
    (S.REMOVING, SignalFailed): S.REMOVING,
    (S.REMOVING, FoundRunning): S.REMOVING,
    (S.REMOVING, PartReleased): S.REMOVING,
    (S.REMOVING, AllReleased): S.GONE,
    (S.REMOVING, ReleaseFailed): S.OWING,
    (S.UNWINDING, KillRequested): S.UNWINDING,
    (S.UNWINDING, RemoveRequested): S.UNWINDING,
    (S.UNWINDING, PartReleased): S.UNWINDING,
    (S.UNWINDING, AllReleased): S.GONE,
    (S.UNWINDING, ReleaseFailed): S.OWING,
    # A signal has a lane of its own, and may end after everything else.
    (S.OWING, SignalSent): S.OWING,
    (S.OWING, SignalFailed): S.OWING,
    (S.OWING, GraceExpired): S.OWING,
    (S.OWING, KillUnconfirmed): S.OWING,
    (S.OWING, RetryDue): S.OWING,
    (S.OWING, PartReleased): S.OWING,
    (S.OWING, AllReleased): S.GONE,
    (S.OWING, ReleaseFailed): S.OWING,
    (S.OWING, Resumed): S.OWING,
}

EVERYTHING = (Part.ROOTFS, Part.RUNTIME)


def grace_timer(container_id: str) -> str:
    """The timer of a stop's grace time."""
    return f"{container_id}/grace"


def kill_timer(container_id: str) -> str:
    """The timer that looks after a kill."""
    return f"{container_id}/kill"


def may_live(record: ContainerRecord) -> bool:
    """Whether an owed container may still have a process: its creation failed and it could not be deleted."""
    return record.state is S.OWING and Part.RUNTIME in record.holds and not record.finished_at_ns


def watch_timer(container_id: str) -> str:
    """The timer after which a watch that failed is begun anew."""
    return f"{container_id}/watch"


def watch(record: ContainerRecord) -> fx.WatchContainer:
    """The order that waits for the process's end."""
    return fx.WatchContainer(
        container_id=record.id,
        pid=record.pid,
        pid_start_ticks=record.pid_start_ticks,
        monitor_pid=record.monitor_pid,
    )


def _signal(record: ContainerRecord, signal: str, *, everyone: bool) -> fx.SignalContainer:
    return fx.SignalContainer(
        container_id=record.id,
        runtime_handler=record.runtime_handler,
        signal=signal,
        everyone=everyone,
        pid=record.pid,
        pid_start_ticks=record.pid_start_ticks,
    )


def _arrive_created(record: ContainerRecord, event: Any) -> Arrival[ContainerRecord]:
    if isinstance(event, Resumed):
        observe = fx.ObserveContainer(container_id=record.id, runtime_handler=record.runtime_handler)
        return arrive(record=record, orders=(watch(record), observe))
    record = replace(record, pid=event.pid, pid_start_ticks=event.pid_start_ticks, monitor_pid=event.monitor_pid)
    if record.cancelled:
        return arrive(record=record, then=Cancelled())
    orders = (fx.save(record=record), fx.answered("create"), watch(record))
    return arrive(record=record, orders=orders)


def _arrive_running(record: ContainerRecord, came_from: Enum, event: Any) -> Arrival[ContainerRecord]:
    if isinstance(event, Resumed):
        return arrive(record=record, orders=(watch(record),))
    if came_from is S.RUNNING:
        return arrive(record=record)
    record = replace(record, started_at_ns=event.wall_ns)
    return arrive(record=record, orders=(fx.save(record=record), fx.answered("start")))


def _arrive_stopping(record: ContainerRecord, came_from: Enum, event: Any) -> Arrival[ContainerRecord]:
    match event:
        case StopRequested():
            kill_at_ns = event.at_ns + event.grace_ns
            if record.kill_at_ns and record.kill_at_ns <= kill_at_ns:
                return arrive(record=record)  # Whoever gave it less time has armed the timer.
            record = replace(record, kill_at_ns=kill_at_ns)
            timer = fx.arm(timer_id=grace_timer(record.id), after_ns=event.grace_ns)
            if came_from is S.STOPPING:
                return arrive(record=record, orders=(timer,))
            return arrive(record=record, orders=(timer, _signal(record, record.stop_signal, everyone=False)))
        case ContainerStarted():
            record = replace(record, started_at_ns=event.wall_ns)
            return arrive(record=record, orders=(fx.save(record=record), fx.answered("start")))
        case _:
            return arrive(record=record)


def _arrive_killing(record: ContainerRecord, came_from: Enum, event: Any) -> Arrival[ContainerRecord]:
    orders: tuple[Output, ...] = ()
    match event:
        case RemoveRequested():
            record = replace(record, doomed=True)
        case StartFailed():
            record = replace(record, failure=event.failure)
            orders = (fx.Answer(operation="start", failure=event.failure),)
        case ContainerStarted():
            record = replace(record, started_at_ns=event.wall_ns)
            orders = (fx.answered("start"),)
        case KillUnconfirmed():
            stuck = Failure(
                code=4,
                reason="CONTAINER_UNKILLABLE",
                message=f"container {record.id}: its process {record.pid} is still there "
                f"{KILL_AGAIN_NS // 1_000_000_000} s after SIGKILL; the kill is repeated",
            )
            orders = (
                fx.Answer(operation="stop", failure=stuck),
                fx.Answer(operation="remove", failure=stuck),
                fx.Ask(what="stuck"),
            )
    if came_from is not S.KILLING or isinstance(event, KillUnconfirmed):
        orders = (
            *orders,
            _signal(record, "SIGKILL", everyone=True),
            fx.arm(timer_id=kill_timer(record.id), after_ns=KILL_AGAIN_NS),
        )
    return arrive(record=record, orders=orders)


def _exited(record: ContainerRecord, came_from: Enum, event: ProcessExited) -> ContainerRecord:
    record = replace(record, finished_at_ns=event.finished_at_ns, message=event.message, kill_at_ns=0)
    if record.failure is not None:
        return replace(
            record, exit_code=START_ERROR_CODE, reason="StartError", message=record.failure.message, failure=None
        )
    if event.code is None:
        return replace(record, exit_code=UNKNOWN_EXIT_CODE, reason=event.reason or "Unknown")
    # After a SIGKILL of ours a 137 says nothing about memory, even if some child had run out of it before (R20).
    said = "" if came_from is S.KILLING else event.reason
    reason = said or ("Completed" if event.code == 0 else "Error")
    return replace(record, exit_code=event.code, reason=reason)


def _arrive_exited(record: ContainerRecord, came_from: Enum, event: Any) -> Arrival[ContainerRecord]:
    if came_from is S.EXITED:
        match event:
            case ContainerStarted():
                record = replace(record, started_at_ns=event.wall_ns)
                return arrive(record=record, orders=(fx.save(record=record), fx.answered("start")))
            case StartFailed():
                return arrive(record=record, orders=(fx.Answer(operation="start", failure=event.failure),))
            case Resumed() if record.doomed:
                return arrive(record=record, then=RemoveRequested())
            case _:
                return arrive(record=record, orders=(fx.answered("stop"),))
    record = _exited(record, came_from, event)
    orders = (
        fx.CancelTimer(timer_id=grace_timer(record.id)),
        fx.CancelTimer(timer_id=kill_timer(record.id)),
        fx.save(record=record),
        fx.answered("stop"),
    )
    return arrive(record=record, orders=orders, then=RemoveRequested() if record.doomed else None)


def _release(record: ContainerRecord, event: Any) -> Arrival[ContainerRecord]:
    """Give back the part taken last; `event` may be the result of the one before."""
    if isinstance(event, PartReleased):
        if event.part not in record.holds:
            return arrive(record=record)  # released twice: the first time asked for the next part already
        record = replace(record, holds=tuple(part for part in record.holds if part is not event.part))
    if not record.holds:
        return arrive(record=record, then=AllReleased())
    if record.holds[-1] is Part.RUNTIME:
        order: Output = fx.DeleteContainer(container_id=record.id, runtime_handler=record.runtime_handler)
    else:
        order = fx.ReleaseRootfs(container_id=record.id)
    return arrive(record=record, orders=(order,))


def _arrive_removing(record: ContainerRecord, came_from: Enum, event: Any) -> Arrival[ContainerRecord]:
    if came_from is not S.REMOVING or isinstance(event, PartReleased):
        return _release(record, event)
    match event:
        case ContainerStarted():
            return arrive(record=record, orders=(fx.answered("start"),))
        case StartFailed():
            return arrive(record=record, orders=(fx.Answer(operation="start", failure=event.failure),))
        case _:
            return arrive(record=record, orders=(fx.answered("stop"),))


def _arrive_unwinding(record: ContainerRecord, event: Any) -> Arrival[ContainerRecord]:
    match event:
        case Resumed():
            return _release(replace(record, holds=EVERYTHING), event)
        case RootfsFailed() | SpecRefused() | CreateFailed():
            return _release(replace(record, failure=event.failure), event)
        case Cancelled():
            failure = Failure(
                code=10, reason="SANDBOX_STOPPING", message=f"container {record.id}: its sandbox is being stopped"
            )
            return _release(replace(record, failure=failure), event)
        case PartReleased():
            return _release(record, event)
        case _:
            return arrive(record=record)


def _arrive_owing(record: ContainerRecord, came_from: Enum, event: Any) -> Arrival[ContainerRecord]:
    match event:
        case ReleaseFailed():
            refused = record.failure if came_from is S.UNWINDING else None
            record = replace(record, failure=event.failure, retries=record.retries + 1)
            left = event.failure if may_live(record) else None
            orders = (
                fx.save(record=record),
                fx.arm(timer_id=retry_timer(record.id), after_ns=retry_after_ns(record.retries)),
                fx.Answer(operation="create", failure=refused),
                fx.Answer(operation="stop", failure=left),
                fx.Answer(operation="remove", failure=left),
                fx.Ask(what="stuck"),
            )
            return arrive(record=record, orders=orders)
        case Resumed():
            # A power cut may have brought back what had gone, such as an exit file.
            return _release(replace(record, holds=EVERYTHING), event)
        case PartReleased() | RetryDue():
            return _release(record, event)
        case _:
            return arrive(record=record)


def _arrive_gone(record: ContainerRecord, event: Any) -> Arrival[ContainerRecord]:
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


def _enter(record: ContainerRecord, came_from: Enum, event: Any) -> Arrival[ContainerRecord]:
    if record.state in (S.RESERVED, S.ROOTFS, S.CREATING) and isinstance(event, KillRequested):
        return arrive(record=replace(record, cancelled=True))
    match record.state:
        case S.ROOTFS:
            if record.cancelled:
                return arrive(record=record, then=Cancelled())
            return arrive(record=replace(record, holds=(Part.ROOTFS,)), orders=(fx.Ask(what="mount-rootfs"),))
        case S.CREATING:
            record = replace(record, holds=EVERYTHING, process=event.process)
            return arrive(record=record, orders=(event.create,))
        case S.CREATED:
            return _arrive_created(record, event)
        case S.STARTING:
            if came_from is S.STARTING:
                return arrive(record=record)
            start = fx.StartContainer(container_id=record.id, runtime_handler=record.runtime_handler)
            return arrive(record=record, orders=(start,))
        case S.RUNNING:
            return _arrive_running(record, came_from, event)
        case S.STOPPING:
            return _arrive_stopping(record, came_from, event)
        case S.KILLING:
            return _arrive_killing(record, came_from, event)
        case S.EXITED:
            return _arrive_exited(record, came_from, event)
        case S.REMOVING:
            return _arrive_removing(record, came_from, event)
        case S.UNWINDING:
            return _arrive_unwinding(record, event)
        case S.OWING:
            return _arrive_owing(record, came_from, event)
        case _:
            return _arrive_gone(record, event)


CONTAINER = Lifecycle[ContainerRecord](
    "container", ContainerState, initial=S.RESERVED, final=frozenset({S.GONE}), table=TABLE, enter=_enter
)
