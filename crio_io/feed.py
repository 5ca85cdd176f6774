"""What happens to pods and containers, told in order, and each thing once, to everybody who listens.

The feed hears every step of the node (`note`). While anybody listens it has the records that clients can see, so that a
happening comes with its pod and all of the pod's containers as they were then, also the last one of a pod. Who does not
keep up is told that something was missed, and has to list again: nothing is left out in silence.
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from weakref import WeakSet

import anyio

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.errors import Code, OperationError
from crio_core.records import ContainerRecord, SandboxRecord, SandboxState
from crio_core.replies import CONTAINER_STATES, LISTED_SANDBOX_STATES, Containers, Result, Sandboxes
from crio_core.values import dataclass

QUEUE_MAX = 4096
"""Happenings that one listener may be behind: three for each of a thousand containers, and more."""


class Kind(StrEnum):
    """What has happened. A pod is started as soon as it is created."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


_KINDS = {"created": Kind.CREATED, "running": Kind.STARTED, "exited": Kind.STOPPED}
"""What it is called when a container comes to this (`CONTAINER_STATES`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One thing that has happened.

    Args:
        kind: What.
        id: Of the container; or of the pod, where it is the pod that this has happened to.
        wall_ns: When: wall clock, in nanoseconds since 1970.
        sandbox: The pod as it was then; None if it was not to be seen.
        containers: All containers of the pod as they were then; one that is gone is not among them.
    """

    kind: Kind
    id: str
    wall_ns: int
    sandbox: SandboxRecord | None
    containers: tuple[ContainerRecord, ...]


class Listening:
    """Happenings from when it was made, until it is dropped: an iterator that waits for the next one."""

    def __init__(self) -> None:
        self._queue: deque[Happening] = deque()
        self._told = anyio.Event()
        self._missed = False

    def tell(self, happening: Happening) -> None:
        """Put it behind what was not taken yet."""
        if not self._missed and len(self._queue) < QUEUE_MAX:
            self._queue.append(happening)
        else:
            self._missed = True
        self._told.set()

    def __aiter__(self) -> "Listening":
        return self

    async def __anext__(self) -> Happening:
        """The next happening.

        Raises:
            OperationError: More than `QUEUE_MAX` were waiting, and what came after those was missed.
        """
        while not self._queue:
            if self._missed:
                raise OperationError(
                    Code.RESOURCE_EXHAUSTED,
                    "EVENTS_MISSED",
                    f"{QUEUE_MAX} events were waiting, and later ones are missed: list again, and listen anew",
                )
            self._told = anyio.Event()
            await self._told.wait()
        return self._queue.popleft()


class Feed:
    """Tells listeners what happens.

    Args:
        ask: Asks the node, for what there is when the first of them comes.
    """

    def __init__(self, ask: Callable[[rq.Request], Result]) -> None:
        self._ask = ask
        self._listenings: WeakSet[Listening] = WeakSet()
        self._wall_ns = 0
        self._sandboxes: dict[str, SandboxRecord] = {}
        self._containers: dict[str, dict[str, ContainerRecord]] = {}
        """By the id of their pod, then by their own, in the order in which they were made."""

    def listen(self) -> Listening:
        """Hear what happens from now on, for as long as somebody holds what is returned."""
        if not self._listenings:
            self._look()
        listening = Listening()
        self._listenings.add(listening)
        return listening

    def _look(self) -> None:
        sandboxes, containers = self._ask(rq.ListPodSandbox()), self._ask(rq.ListContainers())
        assert isinstance(sandboxes, Sandboxes) and isinstance(containers, Containers)
        self._sandboxes = {one.id: one for one in sandboxes.items}
        self._containers = {}
        for one in containers.items:
            self._containers.setdefault(one.sandbox_id, {})[one.id] = one

    def note(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        """Hear a step of the node."""
        if isinstance(event, ev.CallArrived | ev.EffectEnded | ev.TimerFired | ev.JournalLoaded):
            self._wall_ns = event.wall_ns
        if not self._listenings:
            return
        for effect in effects:
            match effect.order:
                case fx.SaveRecord(record=SandboxRecord() as sandbox):
                    self._sandbox(sandbox)
                case fx.SaveRecord(record=ContainerRecord() as container) if not container.infra:
                    self._container(container)
                case fx.DeleteRecord(kind="sandbox", record_id=sandbox_id):
                    self._sandbox_gone(sandbox_id)
                case fx.DeleteRecord(kind="container", record_id=container_id):
                    self._container_gone(container_id)

    def _sandbox(self, record: SandboxRecord) -> None:
        if record.state not in LISTED_SANDBOX_STATES:
            self._sandbox_gone(record.id)
            return
        before = self._sandboxes.get(record.id)
        self._sandboxes[record.id] = record
        if before is None:
            self._tell(Kind.CREATED, record.id, record.id)
        was, ready = before is not None and _is_ready(before), _is_ready(record)
        if ready and not was:
            self._tell(Kind.STARTED, record.id, record.id)
        elif was and not ready:
            self._tell(Kind.STOPPED, record.id, record.id)

    def _sandbox_gone(self, sandbox_id: str) -> None:
        if sandbox_id in self._sandboxes:
            self._tell(Kind.DELETED, sandbox_id, sandbox_id)
            del self._sandboxes[sandbox_id]

    def _container(self, record: ContainerRecord) -> None:
        word = CONTAINER_STATES.get(record.state)
        if word is None:
            self._container_gone(record.id)
            return
        members = self._containers.setdefault(record.sandbox_id, {})
        before = members.get(record.id)
        members[record.id] = record
        kind = _KINDS[word]
        if before is None or kind is not _KINDS[CONTAINER_STATES[before.state]]:
            self._tell(kind, record.id, record.sandbox_id)

    def _container_gone(self, container_id: str) -> None:
        for sandbox_id, members in self._containers.items():
            if members.pop(container_id, None) is not None:
                self._tell(Kind.DELETED, container_id, sandbox_id)
                if not members:
                    del self._containers[sandbox_id]
                return

    def _tell(self, kind: Kind, record_id: str, sandbox_id: str) -> None:
        happening = Happening(
            kind=kind,
            id=record_id,
            wall_ns=self._wall_ns,
            sandbox=self._sandboxes.get(sandbox_id),
            containers=tuple(self._containers.get(sandbox_id, {}).values()),
        )
        for listening in self._listenings:
            listening.tell(happening)


def _is_ready(record: SandboxRecord) -> bool:
    return record.state is SandboxState.READY
