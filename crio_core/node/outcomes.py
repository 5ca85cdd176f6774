"""What became of effects and timers: each outcome is turned into the event that its owner's lifecycle knows."""

from collections.abc import Callable, Mapping

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import LocalError, OperationError
from crio_core.lifecycle import container as ct
from crio_core.lifecycle import image as im
from crio_core.lifecycle import layer as ly
from crio_core.lifecycle import sandbox as sb
from crio_core.lifecycle import session as ss
from crio_core.lifecycle.release import PartReleased, ReleaseFailed, RetryDue, retry_after_ns
from crio_core.node import images, limits, pods, recovery, sessions, specs
from crio_core.node.state import State
from crio_core.records import ContainerRecord, ContainerState, Failure, ImageRecord, Part, SandboxRecord, SandboxState

_PARTS: Mapping[type, Part] = {
    fx.DetachNetwork: Part.NETWORK,
    fx.ReleaseNamespaces: Part.NAMESPACES,
    fx.RemoveSandboxFiles: Part.FILES,
    fx.DeleteContainer: Part.RUNTIME,
    fx.ReleaseRootfs: Part.ROOTFS,
    fx.RemoveLayer: Part.FILES,
}
_FAILURES: Mapping[type, Callable[[Failure], object]] = {
    fx.PrepareSandbox: lambda failure: sb.PreparationFailed(failure=failure),
    fx.AttachNetwork: lambda failure: sb.NetworkFailed(failure=failure),
    fx.MountRootfs: lambda failure: ct.RootfsFailed(failure=failure),
    fx.CreateContainer: lambda failure: ct.CreateFailed(failure=failure),
    fx.StartContainer: lambda failure: ct.StartFailed(failure=failure),
    fx.SignalContainer: lambda failure: ct.SignalFailed(failure=failure),
    fx.ExecInContainer: lambda failure: ss.SessionFailed(failure=failure),
    fx.ServeExec: lambda failure: ss.SessionFailed(failure=failure),
    fx.ServeAttach: lambda failure: ss.SessionFailed(failure=failure),
    fx.ServePorts: lambda failure: ss.SessionFailed(failure=failure),
    fx.ResolveImage: lambda failure: im.ResolveFailed(failure=failure),
    fx.FetchLayer: lambda failure: ly.FetchFailed(failure=failure),
    fx.ApplyLayer: lambda failure: ly.ApplyFailed(failure=failure),
    fx.ProveLayer: lambda failure: ly.ProofFailed(failure=failure),
}
_TIMERS: Mapping[str, object] = {
    "retry": RetryDue(),
    "grace": ct.GraceExpired(),
    "kill": ct.KillUnconfirmed(),
    "limit": ss.TimeLimitReached(),
    "drain": ss.DrainLimitReached(),
}
"""What a record is told when its timer of this name fires."""
_OF_THE_NODE = frozenset(
    {
        *(fx.SaveRecord, fx.DeleteRecord, fx.SweepStorage, fx.ReopenLog, fx.UpdateContainer),
        *(fx.ObserveSandbox, fx.ObserveContainer, fx.WatchContainer, fx.EndStream),
    }
)
"""Orders whose outcome is no event of a lifecycle, or not always."""
SAVE_TIMER = "journal/"
LOOK = "look"
WATCH_AGAIN_NS = 1_000_000_000
"""How long after a watch or a look that failed the next one begins."""


def effect_ended(state: State, event: ev.EffectEnded) -> None:
    """Hand an outcome to the owner of its effect.

    Raises:
        LocalError: No such effect is under way.
    """
    ended = state.history.inflight.pop(event.effect_id)
    if ended is None:
        raise LocalError(f"effect {event.effect_id} is not under way: {event.outcome!r}")
    owner, order = ended.owner, ended.order
    if type(order) not in _OF_THE_NODE:
        _advance_owner(state, owner, _lifecycle_event(state, owner, order, event))
        return
    match order:
        case fx.SaveRecord():
            _saved(state, owner, order, event.outcome)
        case fx.DeleteRecord():
            _deleted(state, owner, order, event.outcome)
        case fx.ObserveSandbox() | fx.ObserveContainer() if isinstance(event.outcome, ev.Failed):
            state.emit(owner, fx.arm(timer_id=f"{owner}/{LOOK}", after_ns=WATCH_AGAIN_NS))
        case fx.ObserveSandbox():
            if owner in state.sandboxes and event.outcome == ev.SandboxObserved(intact=False):
                pods.advance_sandbox(state, owner, sb.NamespacesLost())
        case fx.ObserveContainer():
            # The watch finds out whether it ended; only a start that the journal missed is news.
            if owner in state.containers and event.outcome == ev.ContainerObserved(status="running"):
                pods.advance_container(state, owner, ct.FoundRunning(wall_ns=event.wall_ns))
        case fx.ReopenLog():
            state.answer(owner, "reopen-log", _failure(event.outcome))
        case fx.UpdateContainer():
            limits.updated(state, owner, order, event.outcome)
        case fx.SweepStorage():
            recovery.swept(state, event.outcome)
        case fx.EndStream():
            pass  # The stream's own end is what counts, and a timer bounds the wait for it.
        case fx.WatchContainer() if isinstance(event.outcome, ev.Failed):
            # Nobody knows whether the process ended, so nothing is said of it: it is watched again.
            state.emit(owner, fx.arm(timer_id=ct.watch_timer(owner), after_ns=WATCH_AGAIN_NS))
        case _:
            _advance_owner(state, owner, _lifecycle_event(state, owner, order, event))


def _failure(outcome: ev.Outcome) -> Failure | None:
    return outcome.failure if isinstance(outcome, ev.Failed) else None


def _lifecycle_event(state: State, owner: str, order: fx.Order, event: ev.EffectEnded) -> object:
    outcome = event.outcome
    if isinstance(outcome, ev.Failed):
        if type(order) in _PARTS:
            return ReleaseFailed(failure=outcome.failure)
        return _FAILURES[type(order)](outcome.failure)
    if isinstance(outcome, ev.Released):
        return PartReleased(part=_PARTS[type(order)])
    if isinstance(outcome, ev.RootfsMounted):
        container = state.containers[owner]
        if (lost := pods.sandbox_lost(state, container)) is not None:
            return ct.SpecRefused(failure=lost)
        try:
            return specs.build(state, container, outcome)
        except OperationError as error:
            return ct.SpecRefused(failure=Failure.of(error))
    return outcome


def _advance_owner(state: State, owner: str, event: object) -> None:
    """Owners that are gone no longer care: a watch outlives the container that was removed by force."""
    if owner in state.containers:
        pods.advance_container(state, owner, event)
    elif owner in state.sandboxes:
        pods.advance_sandbox(state, owner, event)
    elif owner in state.pulls:
        images.advance_pull(state, owner, event)
    elif owner in state.layers:
        images.advance_layer(state, owner, event)
    elif owner in state.sessions:
        sessions.advance(state, owner, event)
    else:
        state.history.troubles.pop(owner)


# --- the journal --------------------------------------------------------------------------------------------------


def _saved(state: State, owner: str, order: fx.SaveRecord, outcome: ev.Outcome) -> None:
    record = order.record
    failure = _failure(outcome)
    match record:
        case SandboxRecord(state=SandboxState.RESERVED):
            first: object = ev.RecordSaved() if failure is None else sb.RecordNotSaved(failure=failure)
            _advance_owner(state, owner, first)
        case ContainerRecord(state=ContainerState.RESERVED):
            first = ev.RecordSaved() if failure is None else ct.RecordNotSaved(failure=failure)
            _advance_owner(state, owner, first)
        case ImageRecord() if owner in state.pulls:
            if failure is None and images.is_being_removed(state, record.id):
                # The deletion of an older removal stands behind this in the lane: write it once more, behind that.
                state.emit(images.RECORDS_LANE, order, owner=owner)
                return
            first = ev.RecordSaved() if failure is None else im.ImageNotSaved(failure=failure)
            _advance_owner(state, owner, first)
            if failure is not None:
                # It may have been written all the same.
                _look_after(state, record.KIND, record.id, failed=True)
        case _:
            _look_after(state, record.KIND, record.id, failed=failure is not None)


def _deleted(state: State, owner: str, order: fx.DeleteRecord, outcome: ev.Outcome) -> None:
    if order.kind == ImageRecord.KIND and owner in state.pulls:
        failure = _failure(outcome)
        _advance_owner(state, owner, outcome if failure is None else im.ImageNotDeleted(failure=failure))
        if failure is not None:
            # It may be gone all the same, and the image is kept.
            _look_after(state, order.kind, order.record_id, failed=True)
    else:
        _look_after(state, order.kind, order.record_id, failed=isinstance(outcome, ev.Failed))


def _look_after(state: State, kind: str, record_id: str, *, failed: bool) -> None:
    """A journal that is behind is brought up to date later: memory is right, and everything goes on meanwhile."""
    key = f"{kind}/{record_id}"
    if not failed:
        if state.unsaved.pop(key) is not None:
            state.emit(record_id, fx.CancelTimer(timer_id=SAVE_TIMER + key))
        return
    failures = (state.unsaved.get(key) or 0) + 1
    state.unsaved.put(key, failures)
    state.emit(record_id, fx.arm(timer_id=SAVE_TIMER + key, after_ns=retry_after_ns(failures)))


def _save_again(state: State, key: str) -> None:
    if key not in state.unsaved:
        return
    kind, _, record_id = key.partition("/")
    record = state.record(kind, record_id)
    lane = images.RECORDS_LANE if kind == ImageRecord.KIND else record_id
    if record is None:
        state.emit(lane, fx.DeleteRecord(kind=kind, record_id=record_id))
    elif record.state not in (SandboxState.RESERVED, ContainerState.RESERVED):
        state.emit(lane, fx.save(record=record))


# --- timers -------------------------------------------------------------------------------------------------------


def timer_fired(state: State, timer_id: str) -> None:
    """Hand a timer to its record. One whose record is gone had been cancelled too late to be stopped."""
    if timer_id.startswith(SAVE_TIMER):
        _save_again(state, timer_id.removeprefix(SAVE_TIMER))
        return
    if timer_id == recovery.SWEEP_TIMER:
        recovery.sweep(state)
        return
    if timer_id == images.KEEP_TIMER:
        images.sweep_kept(state)
        return
    owner, _, name = timer_id.rpartition("/")
    if name == "watch":
        pods.watch_again(state, owner)
        return
    if name == LOOK:
        pods.look_again(state, owner)
        return
    if name == ss.OFFER:
        sessions.expire(state, owner)
        return
    if name not in _TIMERS:
        raise LocalError(f"no such timer: {timer_id!r}")
    _advance_owner(state, owner, _TIMERS[name])
