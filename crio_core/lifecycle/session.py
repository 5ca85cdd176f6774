"""The life of something that a client has with a container or pod for a while: a command, or streams.

A command whose output is collected (ExecSync) is opened at once, and runs until it ends or its time is over; then it is
killed and its output drained, with a hard limit, since a process that it left behind may hold the pipe open for ever.

A stream (Exec, Attach, PortForward) is an offer first: whoever has its token may open it, once, within a minute. It
ends by itself, or because its client leaves; when the container or the pod that it is for is over, it is told to end.

No session is a record of the journal: it dies with its client, and a restarted server has no client to answer.
"""

from enum import Enum
from typing import Any

from crio_core import effects as fx
from crio_core.events import ExecFinished, StreamEnded
from crio_core.lifecycle.engine import Arrival, Lifecycle, arrive
from crio_core.records import Failure, SessionState
from crio_core.requests import Offerable
from crio_core.values import dataclass

DRAIN_LIMIT_NS = 1_000_000_000
"""How long after its time limit a command's result is waited for."""
OFFER_NS = 60_000_000_000
"""How long an offer may be taken up; as long as a kubelet's own streaming server keeps one."""
STREAM_END_NS = 10_000_000_000
"""How long a stream may take to end after it was told to."""
OFFER = "offer"

S = SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One command or stream; a timeout of 0 is none.

    Args:
        target_id: The container, or the pod of a PortForward.
        stream: What was offered; None for a command whose output is collected.
        token: Opens the stream; empty when it has done so.
    """

    id: str
    state: SessionState
    target_id: str
    timeout_ns: int = 0
    stream: Offerable | None = None
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The command or stream was ordered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferExpired:
    """Nobody came with the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFailed:
    """The command could not be run, or the stream broke."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetGone:
    """The container has ended, or the pod is not ready any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimitReached:
    """The command's time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainLimitReached:
    """The end did not come within the limit after it was ordered."""


TABLE: dict[tuple[Enum, type], Enum] = {
    (S.OFFERED, SessionOpened): S.OPEN,
    (S.OFFERED, OfferExpired): S.CLOSED,
    (S.OFFERED, TargetGone): S.CLOSED,
    (S.OPEN, ExecFinished): S.CLOSED,
    (S.OPEN, StreamEnded): S.CLOSED,
    (S.OPEN, SessionFailed): S.CLOSED,
    (S.OPEN, TimeLimitReached): S.DRAINING,
    (S.OPEN, TargetGone): S.DRAINING,
    (S.DRAINING, ExecFinished): S.CLOSED,
    (S.DRAINING, StreamEnded): S.CLOSED,
    (S.DRAINING, SessionFailed): S.CLOSED,
    (S.DRAINING, DrainLimitReached): S.CLOSED,
}


def offer_timer(session_id: str) -> str:
    """The timer of an offer."""
    return f"{session_id}/{OFFER}"


def limit_timer(session_id: str) -> str:
    """The timer of a command's time limit."""
    return f"{session_id}/limit"


def drain_timer(session_id: str) -> str:
    """The timer of the wait for the end."""
    return f"{session_id}/drain"


def _enter(record: Session, came_from: Enum, event: Any) -> Arrival[Session]:
    match record.state:
        case S.OPEN if record.stream is not None:
            return arrive(record=record, orders=(fx.CancelTimer(timer_id=offer_timer(record.id)),))
        case S.OPEN if record.timeout_ns:
            timer = fx.arm(timer_id=limit_timer(record.id), after_ns=record.timeout_ns)
            return arrive(record=record, orders=(timer,))
        case S.DRAINING if record.stream is not None:
            timer = fx.arm(timer_id=drain_timer(record.id), after_ns=STREAM_END_NS)
            return arrive(record=record, orders=(fx.EndStream(session_id=record.id), timer))
        case S.DRAINING:
            # The executor has the same limit and is killing the command now; this is the wall behind it.
            timer = fx.arm(timer_id=drain_timer(record.id), after_ns=DRAIN_LIMIT_NS)
            return arrive(record=record, orders=(timer,))
        case S.CLOSED if came_from is S.OFFERED:
            return arrive(record=record, orders=(fx.CancelTimer(timer_id=offer_timer(record.id)),))
        case S.CLOSED:
            timers = (
                fx.CancelTimer(timer_id=limit_timer(record.id)),
                fx.CancelTimer(timer_id=drain_timer(record.id)),
            )
            return arrive(record=record, orders=timers)
        case _:
            return arrive(record=record)


SESSION = Lifecycle[Session](
    "session", SessionState, initial=S.OFFERED, final=frozenset({S.CLOSED}), table=TABLE, enter=_enter
)
