"""The lifecycle of sessions: each event applied, and what the end of a container or pod means to them."""

from typing import Any

from crio_core import effects as fx
from crio_core.errors import Code, OperationError
from crio_core.lifecycle.session import SESSION, OfferExpired, Session, TargetGone
from crio_core.node.state import State
from crio_core.records import ContainerRecord, ContainerState, Failure, SessionState
from crio_core.replies import Executed, Result

SERVED = frozenset({ContainerState.RUNNING, ContainerState.STOPPING, ContainerState.KILLING})
"""States of a container in which what clients have with it goes on."""


def check_running(record: ContainerRecord) -> None:
    """Refuse to begin anything in a container that does not run.

    Raises:
        OperationError: FAILED_PRECONDITION.
    """
    if record.state not in (ContainerState.RUNNING, ContainerState.STOPPING):
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "CONTAINER_NOT_RUNNING",
            f"container_id: container {record.id} is {record.state.value}: expected a running one",
        )


def advance(state: State, session_id: str, event: Any) -> None:
    """Apply an event to a session, and answer the call of a command when it is over."""
    session, outputs = SESSION.step(state.sessions[session_id], event)
    for output in outputs:
        match output:
            case fx.Answer() | fx.Ask():
                raise AssertionError(output)
            case fx.EndStream():
                # The stream itself has the session's lane for as long as it lasts.
                state.emit(f"{session_id}/end", output, owner=session_id)
            case _:
                state.emit(session_id, output)
    if session.state is not SessionState.CLOSED:
        state.sessions.put(session_id, session)
        return
    state.sessions.pop(session_id)
    state.history.troubles.pop(session_id)
    if session.stream is None:
        state.answer(session_id, "exec", _exec_result(session, event))


def expire(state: State, session_id: str) -> None:
    """The time of an offer is over; one that was taken up at the last moment is none any more."""
    session = state.sessions.get(session_id)
    if session is not None and session.state is SessionState.OFFERED:
        advance(state, session_id, OfferExpired())


def target_gone(state: State, target_id: str) -> None:
    """A container has ended, or a pod is not ready any more: its streams end, and its offers are withdrawn."""
    for session in state.sessions.values():
        ends = session.state in (SessionState.OFFERED, SessionState.OPEN)
        if session.target_id == target_id and session.stream is not None and ends:
            advance(state, session.id, TargetGone())


def _exec_result(session: Session, event: Any) -> Result:
    failure = getattr(event, "failure", None)
    if failure is not None:
        return failure  # type: ignore[no-any-return]
    if getattr(event, "timed_out", True):
        return Failure(
            code=Code.DEADLINE_EXCEEDED.value,
            reason="EXEC_TIMEOUT",
            message=f"container {session.target_id}: the command did not end within {session.timeout_ns / 1e9:g} s",
        )
    return Executed(stdout=event.stdout, stderr=event.stderr, exit_code=event.exit_code)
