"""Runs lifecycle tables: the table decides where a record goes, the lifecycle's step what is ordered on the way.

A table maps (state, event type) to a state and is the whole behaviour: a missing row is a refusal that changes nothing.
`transitions` executes it, one shared machine a lifecycle, fired on a throw-away cursor, with no callbacks, so that a
transition can neither run foreign code nor leave a record half-way.

What follows from arriving in a state is the lifecycle's `enter` function: it returns the record as it now is, what to
order, and possibly an event that follows at once (`then`), such as `NetworkSkipped` for a pod on the host network. That
event is a row of the table like any other.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from transitions import Machine, MachineError

from crio_core.effects import Answer, Ask, Order
from crio_core.errors import LocalError
from crio_core.values import dataclass, maker, replace

FOLLOW_UPS_MAX = 8
"""Events that may follow one another within one step; the longest chain of any table is half of this."""


class NoSuchTransition(LocalError):
    """An event that its record's state has no row for."""


class Stateful(Protocol):
    """A record with a lifecycle state."""

    @property
    def state(self) -> Any: ...


R = TypeVar("R", bound=Stateful)
Output = Order | Answer | Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival(Generic[R]):
    """What `enter` returns: the record, what to order, and the event that follows at once, if any."""

    record: R
    orders: tuple[Output, ...] = ()
    then: object | None = None


arrive = maker(Arrival)


class _Cursor:
    """What `transitions` moves: it lives for one firing."""

    __slots__ = ("state",)

    def __init__(self, state: Enum) -> None:
        self.state = state


class Lifecycle(Generic[R]):
    """One table with its entry function.

    Args:
        name: The machine's name in diagrams and reports.
        states: The enumeration of its states.
        initial: The state in which a new record is.
        final: States that nothing leaves.
        table: (state, event type) to the next state.
        enter: Called with the record in its new state, the state it came from and the event.
    """

    def __init__(
        self,
        name: str,
        states: type[Enum],
        *,
        initial: Enum,
        final: frozenset[Enum],
        table: Mapping[tuple[Enum, type], Enum],
        enter: Callable[[R, Enum, Any], Arrival[R]],
    ) -> None:
        self.name = name
        self.states = states
        self.initial = initial
        self.final = final
        self.table = MappingProxyType(dict(table))
        self.events = tuple(dict.fromkeys(event for _, event in self.table))
        self.on_transition: Callable[[str, Enum, type, Enum], None] | None = None
        """Told every transition taken: for coverage reports."""
        self._enter = enter
        self._next: dict[tuple[Enum, type], Enum] = {}
        self._machine = Machine(
            model=None,
            states=list(states),
            initial=initial,
            auto_transitions=False,
            ignore_invalid_triggers=False,
            transitions=[
                {"trigger": event.__name__, "source": source, "dest": dest}
                for (source, event), dest in self.table.items()
            ],
        )

    def next_state(self, state: Enum, event: type) -> Enum:
        """The row for this pair.

        `transitions` is asked once for each: its machine has no conditions, so the answer is always the same.

        Raises:
            NoSuchTransition: The table has none.
        """
        known = self._next.get((state, event))
        if known is not None:
            return known
        trigger = self._machine.events.get(event.__name__)
        cursor = _Cursor(state)
        try:
            if trigger is None:
                raise MachineError(f"no row mentions {event.__name__}")
            trigger.trigger(cursor)
        except MachineError as error:
            raise NoSuchTransition(f"{self.name}: {event.__name__} in state {state.value}: {error}") from error
        self._next[state, event] = cursor.state
        return cursor.state

    def step(self, record: R, event: object) -> tuple[R, tuple[Output, ...]]:
        """Apply an event and those that follow from it at once.

        Raises:
            NoSuchTransition: The table has no row; the record is as it was, since records are values.
        """
        orders: list[Output] = []
        for _ in range(FOLLOW_UPS_MAX):
            came_from: Enum = record.state
            state = self.next_state(came_from, type(event))
            if self.on_transition is not None:
                self.on_transition(self.name, came_from, type(event), state)
            arrival = self._enter(_moved(record, state), came_from, event)
            record = arrival.record
            orders.extend(arrival.orders)
            if arrival.then is None:
                return record, tuple(orders)
            event = arrival.then
        raise LocalError(f"{self.name}: more than {FOLLOW_UPS_MAX} events follow from one")


def _moved(record: R, state: Enum) -> R:
    if record.state is state:
        return record
    return replace(record, state=state)  # type: ignore[type-var]
