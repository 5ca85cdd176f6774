"""Limits of what runs already: changed where it runs first and then in the record, so that a status never shows a limit
that does not hold. A crash in between leaves the old ones in the record; who asked has no answer, and asks again.
"""

import orjson

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ContainerConfig, LinuxContainerResources
from crio_core.errors import Code, OperationError
from crio_core.events import Failed, Outcome
from crio_core.lifecycle.sandbox import sandbox_request
from crio_core.node.queries import find_container, find_sandbox
from crio_core.node.state import State
from crio_core.oci.resources import changes, merged
from crio_core.records import ContainerRecord, ContainerState, SandboxState, decode_request
from crio_core.replies import Done
from crio_core.values import replace

_CHANGEABLE = (ContainerState.CREATED, ContainerState.STARTING, ContainerState.RUNNING)
_RECORDED = (ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED)
"""States in which a record rests; what passes through another is written when it comes to rest."""
_PASSING = (ContainerState.STARTING, ContainerState.STOPPING, ContainerState.KILLING)


def update_container(state: State, call_id: int, request: rq.UpdateContainerResources) -> None:
    """Change the limits of a container that has a process."""
    record = find_container(state, request.container_id)
    assert record is not None
    if record.state not in _CHANGEABLE:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "CONTAINER_NOT_RUNNING",
            f"container_id: container {record.id} is {record.state.value}: expected a created or running one",
        )
    wanted = changes(request.resources, _limits(record), state.settings.host)
    order = fx.UpdateContainer(
        container_id=record.id,
        runtime_handler=record.runtime_handler,
        resources=orjson.dumps(wanted),
        given=request.resources,
        operation=f"update-{call_id}",
    )
    state.wait(call_id, record.id, order.operation)
    state.emit(f"{record.id}/update", order, owner=record.id)


def updated(state: State, owner: str, order: fx.UpdateContainer, outcome: Outcome) -> None:
    """Write down what holds now, and answer."""
    record = state.containers.get(owner)
    if isinstance(outcome, Failed):
        state.answer(owner, order.operation, outcome.failure)
        return
    if record is not None and record.state in (*_RECORDED, *_PASSING):
        config = decode_request(ContainerConfig, record.request)
        config = replace(config, linux=replace(config.linux, resources=merged(order.given, config.linux.resources)))
        record = replace(record, request=orjson.dumps(config).decode())
        state.containers.put(owner, record)
        if record.state in _RECORDED:
            state.emit(owner, fx.save(record=record))
    state.answer(owner, order.operation)


def _limits(record: ContainerRecord) -> LinuxContainerResources:
    return decode_request(ContainerConfig, record.request).linux.resources


def update_sandbox(state: State, call_id: int, request: rq.UpdatePodSandboxResources) -> None:
    """Note what a pod may use together: its control group is the caller's own."""
    record = find_sandbox(state, request.sandbox_id)
    assert record is not None
    if record.state is not SandboxState.READY:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "SANDBOX_NOT_READY",
            f"pod_sandbox_id: sandbox {record.id} is {record.state.value}: expected a ready one",
        )
    config = sandbox_request(record)
    linux = replace(config.linux, overhead=request.overhead, resources=request.resources)
    record = replace(record, request=orjson.dumps(replace(config, linux=linux)).decode())
    state.sandboxes.put(record.id, record)
    state.emit(record.id, fx.save(record=record))
    state.reply(call_id, Done(), lane=record.id)
