"""Offers of streams: who may take one up, for how long, and what becomes of streams whose container or pod is over."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.codec import dump_line, to_values
from crio_core.errors import Code, OperationError
from crio_core.lifecycle.session import OFFER_NS, STREAM_END_NS
from crio_core.node.checkpoint import take
from crio_core.node.streams import OFFERS_MAX
from crio_core.records import SessionState
from crio_core.redact import keyed_mask
from crio_core.sim import Simulation
from crio_core.sim.profiles import MS, S
from tests.property.test_node_regressions import run_container, run_pod, simulation

ALL = rq.Streams(stdin=True, stdout=True, stderr=True)
TOKEN_HEX_CHARS = 64


def offer(sim: Simulation, request: rq.Offerable) -> rp.Offered:
    """What the node offers."""
    offered = sim.ask(request)
    assert isinstance(offered, rp.Offered)
    return offered


def take_up(sim: Simulation, offered: rp.Offered) -> rp.Opened:
    """Open what was offered."""
    opened = sim.ask(rq.OpenStream(purpose=offered.purpose, token=offered.token))
    assert isinstance(opened, rp.Opened)
    return opened


def assert_unknown(sim: Simulation, purpose: str, token: str) -> None:
    """Nothing is opened, and nothing told."""
    with pytest.raises(OperationError) as refused:
        sim.ask(rq.OpenStream(purpose=purpose, token=token))
    assert (refused.value.code, refused.value.message) == (Code.NOT_FOUND, "no such stream")


def states(sim: Simulation) -> list[SessionState]:
    """The sessions that there are."""
    assert sim.node is not None
    return [one.state for one in sim.node._state.sessions.values()]


def hanging(key: str) -> rq.Exec:
    """A command that runs until it is killed."""
    return rq.Exec(container_id=key, command=("hang",), streams=ALL)


def test_token_is_long_and_opens_its_own_purpose_once() -> None:
    """128 bits at least; whoever has seen it in use has nothing."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    offered = offer(sim, hanging(key))
    assert offered.purpose == "exec" and len(offered.token) == TOKEN_HEX_CHARS
    assert_unknown(sim, "attach", offered.token)
    assert_unknown(sim, "exec", offered.token[:-1])
    assert_unknown(sim, "exec", "")
    assert take_up(sim, offered).request == hanging(key)
    assert_unknown(sim, "exec", offered.token)
    assert offer(sim, hanging(key)).token != offered.token


def test_offer_that_nobody_takes_up_expires_after_a_minute_and_not_before() -> None:
    """As long as a kubelet's own server keeps one."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    early, late = offer(sim, hanging(key)), offer(sim, hanging(key))
    sim.run(OFFER_NS - 1 * S)
    take_up(sim, early)
    sim.run(1 * S)
    assert_unknown(sim, late.purpose, late.token)
    assert states(sim) == [SessionState.OPEN]


def test_offers_over_the_limit_are_refused_and_expired_ones_make_room() -> None:
    """A client that only asks must not fill the node's memory."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    for _ in range(OFFERS_MAX):
        offer(sim, hanging(key))
    with pytest.raises(OperationError, match=f"{OFFERS_MAX} streams wait") as refused:
        sim.ask(hanging(key))
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    sim.run(OFFER_NS)
    assert states(sim) == []
    offer(sim, hanging(key))


def test_container_that_ends_withdraws_its_offers_and_ends_its_streams() -> None:
    """Nobody gets into what comes after it, and no command outlives it."""
    sim = simulation()
    pod = run_pod(sim)
    key, other = run_container(sim, pod), run_container(sim, pod, number=1)
    waiting, opened, foreign = offer(sim, hanging(key)), offer(sim, hanging(key)), offer(sim, hanging(other))
    take_up(sim, opened), take_up(sim, foreign)
    sim.run(100 * MS)
    assert sorted(sim.world.execs.values()) == sorted((key, other))
    sim.ask(rq.StopContainer(container_id=key, grace_ns=0))
    assert_unknown(sim, waiting.purpose, waiting.token)
    sim.run(1 * S)
    assert list(sim.world.execs.values()) == [other]
    assert states(sim) == [SessionState.OPEN]


def test_stream_that_does_not_end_when_told_is_forgotten_after_its_time() -> None:
    """A stuck connection keeps no session."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    sim.stuck_lanes["stream-"] = True
    take_up(sim, offer(sim, hanging(key)))
    sim.ask(rq.StopContainer(container_id=key, grace_ns=0))
    sim.run(STREAM_END_NS - 1 * S)
    assert states(sim) == [SessionState.DRAINING]
    sim.run(1 * S)
    assert states(sim) == []


def test_pod_that_is_stopped_ends_its_port_forwarding() -> None:
    """Also one on the node's network, whose connections would go on."""
    for slot in (0, 1):
        sim = simulation()
        pod = run_pod(sim, slot)
        opened = offer(sim, rq.PortForward(sandbox_id=pod, ports=(80,)))
        take_up(sim, opened)
        assert states(sim) == [SessionState.OPEN]
        sim.call(rq.StopPodSandbox(sandbox_id=pod))
        sim.run(100 * MS)
        assert states(sim) == []


def test_server_that_starts_anew_knows_no_old_token() -> None:
    """Sessions are in no journal."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    offered = offer(sim, hanging(key))
    sim.run(1 * S)
    sim.crash_server()
    sim.start_server()
    assert_unknown(sim, offered.purpose, offered.token)


@pytest.mark.parametrize(
    ("streams", "field"),
    [
        (rq.Streams(), "stdin, stdout, stderr"),
        (rq.Streams(stdin=True, tty=True, stderr=True), "stderr"),
    ],
)
def test_streams_that_cannot_be_are_refused(streams: rq.Streams, field: str) -> None:
    """As the CRI says of both calls."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    requests = (
        rq.Exec(container_id=key, command=("true",), streams=streams),
        rq.Attach(container_id=key, streams=streams),
    )
    for request in requests:
        with pytest.raises(OperationError, match=f"^{field}: ") as refused:
            sim.ask(request)
        assert refused.value.code is Code.INVALID_ARGUMENT
    assert states(sim) == []


def test_offers_for_what_does_not_run_are_refused() -> None:
    """What is wrong is said now, and not to whoever comes with a token."""
    sim = simulation()
    pod = run_pod(sim)
    key = run_container(sim, pod)
    with pytest.raises(OperationError, match="cmd"):
        sim.ask(rq.Exec(container_id=key, command=(), streams=ALL))
    with pytest.raises(OperationError, match=r"port\[1\]: 65536"):
        sim.ask(rq.PortForward(sandbox_id=pod, ports=(1, 65536)))
    sim.ask(rq.StopPodSandbox(sandbox_id=pod))
    for request in (hanging(key), rq.Attach(container_id=key, streams=ALL), rq.PortForward(sandbox_id=pod)):
        with pytest.raises(OperationError) as refused:
            sim.ask(request)
        assert refused.value.code is Code.FAILED_PRECONDITION
    with pytest.raises(OperationError) as refused:
        sim.ask(hanging("f" * 64))
    assert refused.value.code is Code.NOT_FOUND


def test_attach_takes_input_only_where_the_container_has_some() -> None:
    """Input for nobody is dropped by us, and a terminal's size goes to a terminal only."""
    sim = simulation()
    orders: list[fx.Order] = []
    key = run_container(sim, run_pod(sim))
    sim.on_event = lambda event, effects: orders.extend(one.order for one in effects)
    take_up(sim, offer(sim, rq.Attach(container_id=key, streams=ALL)))
    served = next(one for one in orders if isinstance(one, fx.ServeAttach))
    assert (served.streams, served.terminal) == (rq.Streams(stdout=True, stderr=True), False)


@settings(max_examples=20, deadline=None)
@given(opened=st.booleans(), late=st.booleans())
def test_no_token_is_in_what_is_recorded(opened: bool, late: bool) -> None:
    """A recording is sent to others: whoever reads it while the offer stands must not be able to use it."""
    sim = simulation()
    key = run_container(sim, run_pod(sim))
    lines: list[bytes] = []
    mask = keyed_mask(b"k" * 32)

    def note(event: object, effects: tuple[fx.Effect, ...]) -> None:
        lines.append(dump_line(to_values(event, mask)))
        lines.append(dump_line(to_values(effects, mask)))
        assert sim.node is not None
        if late:
            checkpoint = take(sim.node)
            lines.append(dump_line(to_values((checkpoint.tables, checkpoint.history), mask)))

    sim.on_event = note
    offered = offer(sim, hanging(key))
    if opened:
        take_up(sim, offered)
    assert len(lines) >= 2
    assert offered.token.encode() not in b"".join(lines)
