"""The life of a command that runs in a container for a client.

The command runs until it ends or its time is over; then it is killed and its output drained, with a hard limit, since a
process that it left behind may hold the pipe open for ever. The session is no record of the journal: it dies with its
client, and a restarted server has no client to answer.
"""

from enum import Enum
from typing import Any

from crio_core import effects as fx
from crio_core.events import ExecFinished
from crio_core.lifecycle.engine import Arrival, Lifecycle
from crio_core.records import Failure, SessionState
from crio_core.values import dataclass

DRAIN_LIMIT_NS = 1_000_000_000
"""How long after its time limit a command's result is waited for."""

S = SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One command; a timeout of 0 is none."""

    id: str
    state: SessionState
    container_id: str
    timeout_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The command was ordered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecFailed:
    """The command could not be run."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimitReached:
    """The command's time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainLimitReached:
    """The result did not come within the limit after the kill."""


TABLE: dict[tuple[Enum, type], Enum] = {
    (S.OFFERED, SessionOpened): S.OPEN,
    (S.OPEN, ExecFinished): S.CLOSED,
    (S.OPEN, ExecFailed): S.CLOSED,
    (S.OPEN, TimeLimitReached): S.DRAINING,
    (S.DRAINING, ExecFinished): S.CLOSED,
    (S.DRAINING, ExecFailed): S.CLOSED,
    (S.DRAINING, DrainLimitReached): S.CLOSED,
}


def limit_timer(session_id: str) -> str:
    """The timer of a command's time limit."""
    return f"{session_id}/limit"


def drain_timer(session_id: str) -> str:
    """The timer of the wait after the time limit."""
    return f"{session_id}/drain"


def _enter(record: Session, came_from: Enum, event: Any) -> Arrival[Session]:
    match record.state:
        case S.OPEN if record.timeout_ns:
            timer = fx.ArmTimer(timer_id=limit_timer(record.id), after_ns=record.timeout_ns)
            return Arrival(record=record, orders=(timer,))
        case S.DRAINING:
            # The executor has the same limit and is killing the command now; this is the wall behind it.
            timer = fx.ArmTimer(timer_id=drain_timer(record.id), after_ns=DRAIN_LIMIT_NS)
            return Arrival(record=record, orders=(timer,))
        case S.CLOSED:
            timers = (
                fx.CancelTimer(timer_id=limit_timer(record.id)),
                fx.CancelTimer(timer_id=drain_timer(record.id)),
            )
            return Arrival(record=record, orders=timers)
        case _:
            return Arrival(record=record)


SESSION = Lifecycle[Session](
    "session", SessionState, initial=S.OFFERED, final=frozenset({S.CLOSED}), table=TABLE, enter=_enter
)
