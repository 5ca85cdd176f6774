"""Requests about sandboxes and containers: what each does to its record, or why it is refused."""

import orjson

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ContainerConfig, NamespaceMode, PodSandboxConfig
from crio_core.errors import Code, OperationError, invalid
from crio_core.lifecycle import container as ct
from crio_core.lifecycle import sandbox as sb
from crio_core.lifecycle.release import RetryDue
from crio_core.lifecycle.session import Session, SessionOpened
from crio_core.node import checks, sessions, specs
from crio_core.node.pods import (
    COMING,
    NAMELESS_SANDBOX,
    advance_container,
    advance_sandbox,
    reserve_container,
    sandbox_key,
)
from crio_core.node.queries import find_container, find_sandbox
from crio_core.node.state import State
from crio_core.oci.sysctls import sandbox_sysctls
from crio_core.records import (
    ContainerRecord,
    ContainerState,
    Part,
    SandboxRecord,
    SandboxState,
    SessionState,
    decode_request,
)
from crio_core.replies import Created, Done

# --- requests about sandboxes -------------------------------------------------------------------------------------


def run_sandbox(state: State, call_id: int, request: rq.RunPodSandbox, new_id: str) -> None:
    """Reserve a sandbox, or join the attempt that is under way, or give the answer that was given before."""
    config = request.config
    checks.sandbox(config, request.runtime_handler, state.settings)
    meta = config.metadata
    handler = request.runtime_handler or state.settings.default_handler
    known_id = state.sandbox_names.get((meta.namespace, meta.name, meta.uid, meta.attempt))
    if known_id is not None:
        _join_sandbox(state, call_id, state.sandboxes[known_id], config, handler)
        return
    host_network = config.linux.security_context.namespace_options.network is NamespaceMode.NODE
    if not host_network and not state.network:
        raise OperationError(Code.UNAVAILABLE, "NETWORK_NOT_READY", f"no pod network: {state.network_reason}")
    plan = [Part.FILES, Part.NAMESPACES]
    if not host_network:
        plan.append(Part.NETWORK)
    if specs.needs_infra(config, state.settings.handlers[handler], state.settings):
        plan.append(Part.INFRA)
    record = SandboxRecord(
        id=new_id,
        state=SandboxState.RESERVED,
        metadata=meta,
        created_at_ns=state.wall_ns,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=handler,
        request=orjson.dumps(config).decode(),
        boot_id=state.boot_id,
        network="" if host_network else state.network,
        plan=tuple(plan),
        sysctls=sandbox_sysctls(config, state.settings.defaults.default_sysctls),
        generation=state.next_generation(),
    )
    state.sandboxes.put(new_id, record)
    state.members.put(new_id, ())
    state.sandbox_names.put(sandbox_key(record), new_id)
    state.wait(call_id, new_id, "create")
    state.emit(new_id, fx.save(record=record))


def _title(record: SandboxRecord) -> str:
    return f"{record.metadata.namespace}/{record.metadata.name} attempt {record.metadata.attempt}"


def _same(title: str, reason: str, fields: tuple[tuple[str, object, object], ...]) -> None:
    """Refuse a retry that asks for something else: `fields` has names, what was made, and what is asked for.

    Labels, environment and limits may differ: a kubelet works them out anew for each try. What makes the object another
    one may not, since the answer would be a lie.
    """
    for name, made, asked in fields:
        if made != asked:
            raise OperationError(
                Code.ALREADY_EXISTS,
                reason,
                f"{name}: {asked}, but {title} was made with {made}: expected the same, or another attempt",
            )


def _join_sandbox(state: State, call_id: int, record: SandboxRecord, config: PodSandboxConfig, handler: str) -> None:
    """Give a retry the sandbox that its metadata names: with its uid and attempt it can mean no other."""
    context = "config.linux.security_context"
    made, asked = sb.sandbox_request(record).linux.security_context, config.linux.security_context
    modes = (
        (f"{context}.namespace_options.{name}", getattr(made.namespace_options, name).name, mode.name)
        for name, mode in (
            ("network", asked.namespace_options.network),
            ("pid", asked.namespace_options.pid),
            ("ipc", asked.namespace_options.ipc),
        )
    )
    _same(
        f"sandbox {record.id}, {_title(record)},",
        "SANDBOX_NAME_TAKEN",
        (
            ("runtime_handler", record.runtime_handler, handler),
            *modes,
            (f"{context}.privileged", made.privileged, asked.privileged),
        ),
    )
    if record.state is SandboxState.READY:
        state.reply(call_id, Created(id=record.id), lane=record.id)
    elif record.state in sb.COMING or record.state is SandboxState.UNWINDING:
        state.wait(call_id, record.id, "create")
    else:
        raise OperationError(
            Code.ALREADY_EXISTS,
            "SANDBOX_NAME_TAKEN",
            f"metadata: {_title(record)} is sandbox {record.id}, which is {record.state.value}: remove it, "
            "or use another attempt",
        )


def stop_sandbox(state: State, call_id: int, request: rq.StopPodSandbox) -> None:
    """Stop a sandbox; one that is unknown is as stopped as can be."""
    record = find_sandbox(state, request.sandbox_id, missing_ok=True)
    if record is None:
        _wait_for_infra(state, call_id, request.sandbox_id, "stop")
        return
    state.wait(call_id, record.id, "stop")
    advance_sandbox(state, record.id, sb.SandboxStopRequested())


def remove_sandbox(state: State, call_id: int, request: rq.RemovePodSandbox) -> None:
    """Remove a sandbox, its containers first; one that is unknown is gone already."""
    record = find_sandbox(state, request.sandbox_id, missing_ok=True)
    if record is None:
        _wait_for_infra(state, call_id, request.sandbox_id, "remove")
        return
    state.wait(call_id, record.id, "remove")
    advance_sandbox(state, record.id, sb.SandboxRemoveRequested())


def _wait_for_infra(state: State, call_id: int, sandbox_id: str, operation: str) -> None:
    """Answer for a sandbox that clients do not see: at once, unless its infra container may have a process.

    A client can know the id of such a one if the server crashed before the journal had what it had answered.
    """
    record = state.sandboxes.get(sandbox_id)
    if record is None or record.state not in NAMELESS_SANDBOX or Part.INFRA not in record.holds:
        state.reply(call_id, Done(), lane=sandbox_id)  # Behind the deletion of its record.
        return
    state.wait(call_id, sandbox_id, operation)
    if record.state is SandboxState.OWING:
        advance_sandbox(state, sandbox_id, RetryDue())


# --- requests about containers ------------------------------------------------------------------------------------


def create_container(state: State, call_id: int, request: rq.CreateContainer, new_id: str) -> None:
    """Reserve a container in a ready sandbox, or join, or repeat the answer."""
    config = request.config
    checks.container(config)
    sandbox = find_sandbox(state, request.sandbox_id)
    assert sandbox is not None
    if sandbox.state is not SandboxState.READY:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "SANDBOX_NOT_READY",
            f"pod_sandbox_id: sandbox {sandbox.id} is {sandbox.state.value}: expected a ready one",
        )
    pod = sb.sandbox_request(sandbox)
    checks.within(config, pod)
    checks.same_users(config, pod)
    within = specs.within_pod(config, pod).linux.security_context.namespace_options
    if within.pid is NamespaceMode.POD and Part.INFRA not in sandbox.plan:
        raise invalid(
            "config.linux.security_context.namespace_options.pid",
            "POD",
            f"CONTAINER or NODE, as sandbox {sandbox.id} was made without a PID namespace to share",
        )
    known_id = state.container_names.get((sandbox.id, config.metadata.name, config.metadata.attempt))
    if known_id is not None:
        _join_container(state, call_id, state.containers[known_id], config)
        return
    state.wait(call_id, new_id, "create")
    reserve_container(state, sandbox, config, orjson.dumps(config).decode(), new_id, infra=False)


def _join_container(state: State, call_id: int, record: ContainerRecord, config: ContainerConfig) -> None:
    """Give a retry the container of its name and attempt."""
    made = decode_request(ContainerConfig, record.request)
    _same(
        f"container {record.id}, {record.metadata.name} attempt {record.metadata.attempt},",
        "CONTAINER_NAME_TAKEN",
        (
            ("config.image.image", made.image.image, config.image.image),
            ("config.command", list(made.command), list(config.command)),
            ("config.args", list(made.args), list(config.args)),
        ),
    )
    if record.state in COMING:
        state.wait(call_id, record.id, "create")
    else:
        state.reply(call_id, Created(id=record.id), lane=record.id)


def start_container(state: State, call_id: int, request: rq.StartContainer) -> None:
    """Start a created container; one that runs has been started."""
    record = find_container(state, request.container_id)
    assert record is not None
    match record.state:
        case ContainerState.CREATED | ContainerState.STARTING:
            state.wait(call_id, record.id, "start")
            advance_container(state, record.id, ct.StartRequested())
        case ContainerState.RUNNING:
            state.reply(call_id, Done(), lane=record.id)
        case _:
            raise OperationError(
                Code.FAILED_PRECONDITION,
                "CONTAINER_NOT_CREATED",
                f"container_id: container {record.id} is {record.state.value}: expected a created one",
            )


def stop_container(state: State, call_id: int, request: rq.StopContainer) -> None:
    """Stop a container within its grace time; one that is unknown has no process."""
    record = find_container(state, request.container_id, missing_ok=True)
    if record is None:
        _wait_for_unwinding(state, call_id, request.container_id, "stop")
        return
    state.wait(call_id, record.id, "stop")
    if request.grace_ns > 0:
        advance_container(state, record.id, ct.StopRequested(at_ns=state.at_ns, grace_ns=request.grace_ns))
    else:
        advance_container(state, record.id, ct.KillRequested())


def _wait_for_unwinding(state: State, call_id: int, container_id: str, operation: str) -> None:
    """Answer for a container that clients do not see: at once, unless it is one that is being taken back.

    A client can know the id of such a one if the server crashed before the journal had what it had answered.
    """
    record = state.containers.get(container_id)
    if record is None or not (record.state is ContainerState.UNWINDING or ct.may_live(record)):
        state.reply(call_id, Done(), lane=container_id)  # Behind the deletion of its record.
        return
    state.wait(call_id, container_id, operation)
    if ct.may_live(record):
        advance_container(state, container_id, RetryDue())


def remove_container(state: State, call_id: int, request: rq.RemoveContainer) -> None:
    """Remove a container, killed first if need be; one that is unknown is gone already."""
    record = find_container(state, request.container_id, missing_ok=True)
    if record is None:
        _wait_for_unwinding(state, call_id, request.container_id, "remove")
        return
    state.wait(call_id, record.id, "remove")
    advance_container(state, record.id, ct.RemoveRequested())


def reopen_log(state: State, call_id: int, request: rq.ReopenContainerLog) -> None:
    """Have a running container's log file opened anew."""
    record = find_container(state, request.container_id)
    assert record is not None
    if record.state is not ContainerState.RUNNING:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "CONTAINER_NOT_RUNNING",
            f"container_id: container {record.id} is {record.state.value}: expected a running one",
        )
    order = fx.ReopenLog(container_id=record.id, runtime_handler=record.runtime_handler, log_path=record.log_path)
    state.wait(call_id, record.id, "reopen-log")
    state.emit(f"{record.id}/log", order, owner=record.id)


def exec_sync(state: State, call_id: int, request: rq.ExecSync) -> None:
    """Run a command in a running container."""
    record = find_container(state, request.container_id)
    assert record is not None
    sessions.check_running(record)
    process = specs.exec_process(record, request.command)
    session_id = f"exec-{call_id}"
    session = Session(id=session_id, state=SessionState.OFFERED, target_id=record.id, timeout_ns=request.timeout_ns)
    state.sessions.put(session_id, session)
    state.wait(call_id, session_id, "exec")
    state.emit(
        session_id,
        fx.ExecInContainer(
            session_id=session_id,
            container_id=record.id,
            runtime_handler=record.runtime_handler,
            process=process,
            timeout_ns=request.timeout_ns,
        ),
    )
    sessions.advance(state, session_id, SessionOpened())
