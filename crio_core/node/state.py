"""What a node remembers, and the bookkeeping of every step: tables that can be undone, calls, effects."""

from dataclasses import dataclass, field

from crio_core import effects as fx
from crio_core.errors import Code, OperationError
from crio_core.lifecycle.image import Pull
from crio_core.lifecycle.layer import Layer
from crio_core.lifecycle.session import Session
from crio_core.node.history import History
from crio_core.node.settings import Settings
from crio_core.node.table import Change, Table, WatchedTable
from crio_core.records import ContainerRecord, Failure, ImageRecord, Record, SandboxRecord
from crio_core.replies import Containers, Done, Images, Result, Sandboxes
from crio_core.values import maker

__all__ = ["ContainerKey", "SandboxKey", "State", "Table", "Waiting"]

CALLS_MAX = 10_000
"""Calls that may wait for an answer at one time; one more is refused."""

SandboxKey = tuple[str, str, str, int]
ContainerKey = tuple[str, str, int]
Waiting = tuple[str, str]
"""What a call waits for: a record's id and the operation on it."""


TABLES = (
    "sandboxes",
    "containers",
    "images",
    "pulls",
    "layers",
    "sessions",
    "sandbox_names",
    "container_names",
    "members",
    "waiters",
    "calls",
    "infra_pulls",
    "unsaved",
    "quarantined",
    "strays",
)
"""The tables of a node; the first five hold what has a lifecycle that can be asked about."""
EXPLAINED = TABLES[:5]
_new_effect = maker(fx.Effect)


@dataclass(slots=True, kw_only=True)
class State:
    """All of a node. Only the functions of this package change it, and only within a step."""

    settings: Settings
    undo: list[Change] = field(default_factory=list)
    effects: list[fx.Effect] = field(default_factory=list)
    next_effect: int = 1
    at_ns: int = 0
    wall_ns: int = 0
    boot_id: str = ""
    network: str = ""
    network_reason: str = "no CNI configuration has been looked for yet"
    last_generation: int = 0
    """The greatest number that any record was made with: which of two is the newer one, no clock can say."""

    sandboxes: WatchedTable[str, SandboxRecord] = field(init=False)
    containers: WatchedTable[str, ContainerRecord] = field(init=False)
    images: WatchedTable[str, ImageRecord] = field(init=False)
    pulls: WatchedTable[str, Pull] = field(init=False)
    layers: WatchedTable[str, Layer] = field(init=False)
    sessions: Table[str, Session] = field(init=False)
    sandbox_names: Table[SandboxKey, str] = field(init=False)
    container_names: Table[ContainerKey, str] = field(init=False)
    members: Table[str, tuple[str, ...]] = field(init=False)
    """Ids of the containers of each sandbox, the infra container among them."""
    waiters: Table[Waiting, tuple[int, ...]] = field(init=False)
    calls: Table[int, Waiting] = field(init=False)
    infra_pulls: Table[str, tuple[str, ...]] = field(init=False)
    """Sandboxes that wait for the image of their infra container, by pull."""
    unsaved: Table[str, int] = field(init=False)
    """Records whose last save failed, with the number of failures: memory is right, the journal is behind. A sweep that
    failed is counted here too."""
    quarantined: Table[str, str] = field(init=False)
    strays: Table[str, str] = field(init=False)
    """Containers that are there in this boot and have no record that can be read, with what each calls its sandbox."""
    every_sandbox: tuple[int, Sandboxes] = (-1, Sandboxes(items=()))
    """All that clients can see, newest first, and the number of changes of its table when that was found."""
    every_container: tuple[int, Containers] = (-1, Containers(items=()))
    every_image: tuple[int, Settings | None, Images] = (-1, None, Images(items=()))
    """All images in order of id, with the changes of their table and the settings by which they are pinned."""
    ended_infra_pulls: list[tuple[str, Failure | None]] = field(default_factory=list)
    """Sandboxes to be told within this step that the image of their infra container is there, or why not."""

    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.undo, self)
        for name in EXPLAINED:
            setattr(self, name, WatchedTable(self.undo, self.history.moved))
        for name in TABLES[len(EXPLAINED) :]:
            setattr(self, name, Table(self.undo))

    # --- effects ------------------------------------------------------------------------------------------------

    def emit(self, lane: str, order: fx.Order, *, owner: str = "") -> None:
        """Order something in a lane, on behalf of `owner`: the record, pull or session that hears the outcome."""
        effect = _new_effect(id=self.next_effect, lane=lane, order=order)
        self.next_effect += 1
        self.effects.append(effect)
        self.history.ordered(effect, owner or lane)

    # --- calls --------------------------------------------------------------------------------------------------

    def reply(self, call_id: int, result: Result, lane: str = "") -> None:
        """Answer a call, after everything that was ordered before in the lane."""
        self.emit(lane, fx.reply(call_id=call_id, result=result))

    def refuse(self, call_id: int, error: OperationError) -> None:
        """Answer a call with an error."""
        self.reply(call_id, Failure.of(error))

    def wait(self, call_id: int, record_id: str, operation: str) -> None:
        """Have a call answered when `operation` on the record ends."""
        if len(self.calls) >= CALLS_MAX:
            raise OperationError(
                Code.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", f"{CALLS_MAX} calls are waiting for an answer already"
            )
        key = (record_id, operation)
        self.waiters.put(key, (*(self.waiters.get(key) or ()), call_id))
        self.calls.put(call_id, key)

    def answer(self, record_id: str, operation: str, result: Result | None = None) -> None:
        """Answer everybody who waits for this operation on the record."""
        for call_id in self.waiters.pop((record_id, operation)) or ():
            self.calls.pop(call_id)
            self.reply(call_id, Done() if result is None else result, lane=record_id)

    def forget_call(self, call_id: int) -> None:
        """The caller went away: nobody is owed an answer, the work goes on."""
        key = self.calls.pop(call_id)
        if key is None:
            return
        left = tuple(other for other in self.waiters.get(key) or () if other != call_id)
        if left:
            self.waiters.put(key, left)
        else:
            self.waiters.pop(key)

    def awaited(self, record_id: str, operation: str) -> bool:
        """Whether any call waits for this operation on the record."""
        return (record_id, operation) in self.waiters

    # --- records ------------------------------------------------------------------------------------------------

    def next_generation(self) -> int:
        """A number greater than that of any record there is."""
        self.last_generation += 1
        return self.last_generation

    def record(self, kind: str, record_id: str) -> Record | None:
        """The record of this kind and id, if there is one."""
        match kind:
            case SandboxRecord.KIND:
                return self.sandboxes.get(record_id)
            case ContainerRecord.KIND:
                return self.containers.get(record_id)
            case _:
                return self.images.get(record_id)
