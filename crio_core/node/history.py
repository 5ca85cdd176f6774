"""What happened to each record, and what it waits for: the memory behind `explain`.

Nothing here decides anything, and nothing is journaled: a server that starts anew begins a new history. Everything is
bounded, and what is only needed to answer a question is worked out when the question comes (`explain.py`).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import OperationError
from crio_core.lifecycle.image import Pull
from crio_core.lifecycle.layer import Layer
from crio_core.node.table import Change, Table
from crio_core.records import ContainerRecord, Failure, ImageRecord, LayerState, SandboxRecord
from crio_core.values import dataclass, maker, replace

PATH_MAX = 32
"""Transitions that are remembered of one record, the latest."""
TROUBLES_MAX = 8
"""Failures that are remembered of one record, the latest."""
DEPARTED_MAX = 64
"""Records that are remembered after they are gone, the latest: what a creation failed of is asked afterwards."""
CAUSES_KEPT_MAX = 128

_WITHOUT_OUTCOME = frozenset({fx.Reply, fx.ArmTimer, fx.CancelTimer})
_COMING = frozenset({LayerState.FETCHING, LayerState.PROVING})
"""States of a layer in which bytes come."""

Subject = SandboxRecord | ContainerRecord | ImageRecord | Pull | Layer
_KINDS: Mapping[type, str] = {
    SandboxRecord: "pod",
    ContainerRecord: "container",
    ImageRecord: "image",
    Pull: "pull",
    Layer: "layer",
}


@lru_cache(CAUSES_KEPT_MAX)
def _done(order: str) -> str:
    """One text for all transitions with this cause: they are kept by the thousand."""
    return f"{order} is done"


@lru_cache(CAUSES_KEPT_MAX)
def _called(request: str) -> str:
    return f"{request} was called"


class _Clock(Protocol):
    """The times of the step that is being made."""

    at_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A record came to a state; `because` is what the node was told in that step."""

    wall_ns: int
    came_from: str
    to: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something that was done for a record failed."""

    wall_ns: int
    what: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """An effect under way: `since_ns` is when it was ordered or, behind others of its lane, when its turn came.

    `owner` is the record, pull or session that hears the outcome.
    """

    lane: str
    owner: str
    order: fx.Order
    since_ns: int
    since_wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """A timer: when it will fire, on both clocks."""

    due_ns: int
    due_wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Departed:
    """A record that is gone; `image_id` is what a pull was for. A refused request has no id and no path."""

    kind: str
    id: str
    title: str
    wall_ns: int
    image_id: str = ""
    path: tuple[Transition, ...] = ()
    troubles: tuple[Trouble, ...] = ()


_new_transition = maker(Transition)
_new_ordered = maker(Ordered)
_new_trouble = maker(Trouble)
_new_armed = maker(Armed)


def title_of(subject: Subject) -> str:
    """What a person calls it: `namespace/name` of a pod, the name of a container, a reference of an image."""
    match subject:
        case SandboxRecord():
            return f"{subject.metadata.namespace}/{subject.metadata.name}"
        case ContainerRecord():
            return subject.metadata.name
        case ImageRecord():
            return (*subject.tags, *subject.digests, subject.id)[0]
        case Pull():
            return subject.reference or (title_of(subject.image) if subject.image else subject.id)
        case _:
            return subject.id


class History:
    """The memory of one node. Told by the node's tables and by its effects; undone with the step it is told in.

    Args:
        undo: The node's list of what undoes the present step.
        clock: Gives the times of the present step.
    """

    def __init__(self, undo: list[Change], clock: _Clock) -> None:
        self._clock = clock
        self._cause = ""
        self.paths: Table[str, tuple[Transition, ...]] = Table(undo)
        self.troubles: Table[str, tuple[Trouble, ...]] = Table(undo)
        self.inflight: Table[int, Ordered] = Table(undo)
        """Effects whose outcome has not come yet."""
        self.lanes: Table[str, tuple[int, ...]] = Table(undo)
        self.timers: Table[str, Armed] = Table(undo)
        self.departed: Table[str, Departed] = Table(undo)
        self.progress: Table[str, ev.LayerProgressed] = Table(undo)
        """How far each layer that is being fetched has come, by diff id; in no checkpoint: no replay is told it."""

    # --- what a step says ---------------------------------------------------------------------------------------

    def begins(self, event: ev.Event) -> None:
        """A step begins."""
        if isinstance(event, ev.EffectEnded):
            ended = self.inflight.get(event.effect_id)
            if ended is not None:
                self._effect_ended(event, ended)
            return
        match event:
            case ev.CallArrived():
                self._cause = _called(type(event.request).__name__)
            case ev.TimerFired():
                self._cause = f"time for {event.timer_id.rpartition('/')[2]}"
                self.timers.pop(event.timer_id)
            case ev.JournalLoaded():
                self._cause = "the server started"
            case _:
                self._cause = type(event).__name__

    def _effect_ended(self, event: ev.EffectEnded, ended: Ordered) -> None:
        name = type(ended.order).__name__
        self._cause = _done(name)
        if isinstance(event.outcome, ev.Failed):
            failure = event.outcome.failure
            self._cause = f"{name} failed: {failure.reason}"
            trouble = _new_trouble(wall_ns=event.wall_ns, what=name, failure=failure)
            self.troubles.put(ended.owner, (*(self.troubles.get(ended.owner) or ()), trouble)[-TROUBLES_MAX:])
        elif isinstance(event.outcome, ev.ProcessExited):
            code = event.outcome.code
            self._cause = f"the process exited with {'an unknown code' if code is None else code}"
        lane = self.lanes.get(ended.lane) or ()
        if len(lane) == 1:
            self.lanes.pop(ended.lane)
            return
        rest = tuple(one for one in lane if one != event.effect_id)
        self.lanes.put(ended.lane, rest)
        self.inflight.put(rest[0], replace(self.inflight[rest[0]], since_ns=event.at_ns, since_wall_ns=event.wall_ns))

    def ordered(self, effect: fx.Effect, owner: str) -> None:
        """The node has ordered something; `owner` hears the outcome, if there will be one."""
        clock, order, lane = self._clock, effect.order, effect.lane
        if type(order) not in _WITHOUT_OUTCOME:
            now = _new_ordered(lane=lane, owner=owner, order=order, since_ns=clock.at_ns, since_wall_ns=clock.wall_ns)
            self.inflight.put(effect.id, now)
            self.lanes.put(lane, (*(self.lanes.get(lane) or ()), effect.id))
            return
        match order:
            case fx.ArmTimer():
                due = _new_armed(due_ns=clock.at_ns + order.after_ns, due_wall_ns=clock.wall_ns + order.after_ns)
                self.timers.put(order.timer_id, due)
            case fx.CancelTimer():
                self.timers.pop(order.timer_id)

    def moved(self, key: str, before: Any, after: Any) -> None:
        """A record was put in its table, or taken out of it."""
        if before is not None and after is not None and before.state is after.state:
            return
        if isinstance(before, Layer) and (after is None or after.state not in _COMING):
            self.progress.pop(key)
        if after is None:
            self._leave(key, before)
            return
        came_from = "" if before is None else before.state.value
        step = _new_transition(
            wall_ns=self._clock.wall_ns, came_from=came_from, to=after.state.value, because=self._cause
        )
        self.paths.put(key, (*(self.paths.get(key) or ()), step)[-PATH_MAX:])

    def _leave(self, key: str, last: Subject) -> None:
        path, troubles = self.paths.pop(key) or (), self.troubles.pop(key) or ()
        if isinstance(last, Layer):
            return
        image_id = last.image.id if isinstance(last, Pull) and last.image is not None else ""
        self._remember(
            Departed(
                kind=_KINDS[type(last)],
                id=key,
                title=title_of(last),
                wall_ns=self._clock.wall_ns,
                image_id=image_id,
                path=(
                    *path,
                    Transition(wall_ns=self._clock.wall_ns, came_from=last.state.value, to="gone", because=self._cause),
                ),
                troubles=troubles,
            )
        )

    def refused(self, kind: str, title: str, error: OperationError) -> None:
        """A request to make something was refused, so that there is no record of it."""
        trouble = Trouble(wall_ns=self._clock.wall_ns, what=self._cause, failure=Failure.of(error))
        key = f"refused/{kind}/{title}"
        before = self.departed.pop(key)
        troubles = (*(before.troubles if before else ()), trouble)[-TROUBLES_MAX:]
        self._remember(Departed(kind=kind, id=key, title=title, wall_ns=self._clock.wall_ns, troubles=troubles))

    def _remember(self, departed: Departed) -> None:
        self.departed.pop(departed.id)
        self.departed.put(departed.id, departed)
        if len(self.departed) > DEPARTED_MAX:
            # What went well is forgotten first: a failure is what will be asked about.
            quiet = (key for key, one in self.departed.items() if not one.troubles)
            self.departed.pop(next(quiet, self.departed.keys()[0]))
