"""Requests about streams: Exec, Attach and PortForward are offers, and whoever has the token opens what was offered.

A token is the chance of its event, whole: nobody can guess it, and a recording can mask it without a replay noticing.
"""

from dataclasses import replace
from hmac import compare_digest

import orjson

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ContainerConfig
from crio_core.errors import Code, OperationError, invalid
from crio_core.lifecycle.sandbox import network_namespace
from crio_core.lifecycle.session import OFFER_NS, Session, SessionOpened, offer_timer
from crio_core.node import sessions, specs
from crio_core.node.checks import LIST_ITEMS_MAX, PORT_MAX
from crio_core.node.queries import find_container, find_sandbox
from crio_core.node.state import State
from crio_core.records import SandboxState, SessionState, decode_request
from crio_core.replies import Offered, Opened

OFFERS_MAX = 1000
"""Offers that wait for their clients; one more is refused, as by a kubelet's own streaming server."""
_PURPOSES: dict[type, str] = {rq.Exec: "exec", rq.Attach: "attach", rq.PortForward: "portforward"}


def offer_exec(state: State, call_id: int, request: rq.Exec, token: str) -> None:
    """Offer to run a command in a running container."""
    record = find_container(state, request.container_id)
    assert record is not None
    _check_streams(request.streams)
    sessions.check_running(record)
    specs.exec_process(record, request.command, terminal=request.streams.tty)  # A command that cannot be is refused.
    _offer(state, call_id, replace(request, container_id=record.id), record.id, token)


def offer_attach(state: State, call_id: int, request: rq.Attach, token: str) -> None:
    """Offer the streams of a running container's first process."""
    record = find_container(state, request.container_id)
    assert record is not None
    _check_streams(request.streams)
    sessions.check_running(record)
    _offer(state, call_id, replace(request, container_id=record.id), record.id, token)


def offer_ports(state: State, call_id: int, request: rq.PortForward, token: str) -> None:
    """Offer connections to ports of a ready pod."""
    record = find_sandbox(state, request.sandbox_id)
    assert record is not None
    if len(request.ports) > LIST_ITEMS_MAX:
        raise invalid("port", f"{len(request.ports)} ports", f"at most {LIST_ITEMS_MAX}")
    for index, port in enumerate(request.ports):
        if not 1 <= port <= PORT_MAX:
            raise invalid(f"port[{index}]", port, f"1 to {PORT_MAX}")
    if record.state is not SandboxState.READY:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "SANDBOX_NOT_READY",
            f"pod_sandbox_id: sandbox {record.id} is {record.state.value}: expected a ready one",
        )
    _offer(state, call_id, replace(request, sandbox_id=record.id), record.id, token)


def _check_streams(streams: rq.Streams) -> None:
    """What the CRI says of ExecRequest and AttachRequest."""
    if not (streams.stdin or streams.stdout or streams.stderr):
        raise invalid("stdin, stdout, stderr", False, "at least one of them to be true")
    if streams.tty and streams.stderr:
        raise invalid("stderr", True, "false with tty: a terminal has one output")


def _offer(state: State, call_id: int, stream: rq.Offerable, target_id: str, token: str) -> None:
    offers = sum(one.state is SessionState.OFFERED for one in state.sessions.values())
    if offers >= OFFERS_MAX:
        raise OperationError(
            Code.RESOURCE_EXHAUSTED, "TOO_MANY_OFFERS", f"{OFFERS_MAX} streams wait for their clients already"
        )
    session_id = f"stream-{call_id}"
    session = Session(id=session_id, state=SessionState.OFFERED, target_id=target_id, stream=stream, token=token)
    state.sessions.put(session_id, session)
    state.emit(session_id, fx.ArmTimer(timer_id=offer_timer(session_id), after_ns=OFFER_NS))
    state.reply(call_id, Offered(purpose=_PURPOSES[type(stream)], token=token))


def open_stream(state: State, call_id: int, request: rq.OpenStream) -> None:
    """Take up an offer: its token is of no more use. Nothing is told of an offer that is not there."""
    session = _offered(state, request)
    if session is None:
        raise OperationError(Code.NOT_FOUND, "STREAM_NOT_FOUND", "no such stream")
    assert session.stream is not None
    state.sessions.put(session.id, replace(session, token=""))
    state.reply(call_id, Opened(session_id=session.id, request=session.stream))
    state.emit(session.id, _order(state, session.id, session.stream))
    sessions.advance(state, session.id, SessionOpened())


def _offered(state: State, request: rq.OpenStream) -> Session | None:
    wanted = request.token.encode("utf-8", "replace")
    found = None
    for session in state.sessions.values():
        if session.state is SessionState.OFFERED and compare_digest(session.token.encode(), wanted):
            found = session
    return found if found is not None and _PURPOSES[type(found.stream)] == request.purpose else None


def _order(state: State, session_id: str, stream: rq.Offerable) -> fx.Order:
    match stream:
        case rq.Exec():
            container = state.containers[stream.container_id]
            return fx.ServeExec(
                session_id=session_id,
                container_id=container.id,
                runtime_handler=container.runtime_handler,
                process=specs.exec_process(container, stream.command, terminal=stream.streams.tty),
                streams=stream.streams,
            )
        case rq.Attach():
            container = state.containers[stream.container_id]
            has_stdin = decode_request(ContainerConfig, container.request).stdin
            return fx.ServeAttach(
                session_id=session_id,
                container_id=container.id,
                streams=replace(stream.streams, stdin=stream.streams.stdin and has_stdin),
                terminal=bool(orjson.loads(container.process).get("terminal")),
            )
        case rq.PortForward():
            pod = state.sandboxes[stream.sandbox_id]
            return fx.ServePorts(
                session_id=session_id, sandbox_id=pod.id, netns=network_namespace(pod), ports=stream.ports
            )
