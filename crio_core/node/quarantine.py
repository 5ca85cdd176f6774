"""What is set aside: records that cannot be read, and what is there of them.

It owns whatever it may own: nothing that could be its is swept, and what it keeps alive cannot be called stopped. A
request that would have to touch it is refused, with the record's name and the way out, instead of answered with a
success that is none.
"""

from crio_core.errors import Code, OperationError
from crio_core.node.specs import infra_id
from crio_core.node.state import State
from crio_core.records import LOST, ContainerRecord, Failure, SandboxRecord

REASON = "RECORD_QUARANTINED"
WAY_OUT = "stop the server, and let `crio check --repair` remove the record together with what is there of it"


def has_lost(state: State, kind: str, record_id: str) -> bool:
    """Whether there may be such a record, unread: it is set aside, or records were lost and nobody knows which."""
    return f"{kind}/{record_id}" in state.quarantined or "/".join(LOST) in state.quarantined


def stray_of(state: State, sandbox_id: str) -> str:
    """A container that says it is in this sandbox, and that no record tells how to stop; empty when there is none."""
    if not state.strays:
        return ""
    # Specs call a sandbox that has an infra container by that one's id.
    names = (sandbox_id, infra_id(sandbox_id))
    return next((key for key, named in state.strays.items() if named in names), "")


def stray_failure(sandbox_id: str, container_id: str) -> Failure:
    """Why a sandbox with such a container can be neither stopped nor removed."""
    return Failure(
        code=Code.FAILED_PRECONDITION.value,
        reason=REASON,
        message=f"sandbox {sandbox_id}: the record of its container {container_id} cannot be read, and what is there "
        f"of that goes on: {WAY_OUT}",
    )


def refuse_sandbox(state: State, sandbox_id: str) -> None:
    """Refuse a request about a sandbox that no record tells of, if there may be something of it all the same.

    Raises:
        OperationError: FAILED_PRECONDITION.
    """
    if not state.quarantined:
        return
    _refuse_set_aside(state, SandboxRecord.KIND, sandbox_id)
    left = [one.id for one in state.containers.values() if one.sandbox_id == sandbox_id]
    if stray := stray_of(state, sandbox_id):
        left.append(stray)
    if left:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            REASON,
            f"pod_sandbox_id: the record of sandbox {sandbox_id} is lost, and its container {left[0]} is there: "
            + WAY_OUT,
        )


def refuse_container(state: State, container_id: str) -> None:
    """Refuse a request about a container that no record tells of, if there may be something of it all the same.

    Raises:
        OperationError: FAILED_PRECONDITION.
    """
    if not state.quarantined:
        return
    _refuse_set_aside(state, ContainerRecord.KIND, container_id)
    if container_id in state.strays:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            REASON,
            f"container_id: the record of container {container_id} is lost, and it is there: {WAY_OUT}",
        )


def _refuse_set_aside(state: State, kind: str, prefix: str) -> None:
    for key, reason in state.quarantined.items():
        if prefix and key.startswith(f"{kind}/{prefix}"):
            raise OperationError(
                Code.FAILED_PRECONDITION,
                REASON,
                f"record {key} cannot be read ({reason}), so it can only go: {WAY_OUT}",
            )
