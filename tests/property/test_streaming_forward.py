"""Port forwarding over every protocol: each connection keeps its own bytes, and its end or failure is told."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.errors import LocalError
from crio_core.streaming.client import Broken, ForwardingClient, Opened
from crio_core.streaming.forwarding_websocket import PORTS_MAX
from crio_core.streaming.portforward import STREAMS_MAX, Connected, Data, DataEnded, Dropped, Forwarding
from crio_core.streaming.protocol import Left, Protocol, ProtocolError, Wire
from crio_core.streaming.spdy import Connection
from crio_core.streaming.upgrade import TUNNEL
from tests.property.streams import cuts, fed, payloads, settle

SPDY = Protocol(wire=Wire.SPDY, name="portforward.k8s.io")
TUNNELLED = Protocol(wire=Wire.TUNNEL, name=TUNNEL)
CHANNELS = tuple(Protocol(wire=Wire.WEBSOCKET, name=name) for name in ("v4.channel.k8s.io", "v4.base64.channel.k8s.io"))
WITH_ENDS = (SPDY, TUNNELLED)  # protocols in which a client can end its side of one connection
PROTOCOLS = (*WITH_ENDS, *CHANNELS)
PORTS = (80, 8080, 65535)


def joined(protocol: Protocol, sizes: list[int]) -> tuple[ForwardingClient, Forwarding, list[tuple[int, int]]]:
    """Both sides, with a connection to each port: its id at the client and at the server."""
    client, server = ForwardingClient(protocol, PORTS), Forwarding(protocol, PORTS)
    connected = server.start()
    ours = [client.connect(port) for port in PORTS]
    opened, more = settle(client, server, sizes)
    assert opened == [Opened(id=id) for id in ours]
    theirs = []
    for event, port in zip(connected + more, PORTS, strict=True):
        assert isinstance(event, Connected) and event.port == port
        theirs.append(event.id)
    return client, server, list(zip(ours, theirs, strict=True))


sent = st.lists(st.tuples(st.booleans(), st.integers(0, len(PORTS) - 1), payloads), max_size=12)


@given(st.sampled_from(PROTOCOLS), sent, cuts)
def test_connections_keep_their_bytes(
    protocol: Protocol, data: list[tuple[bool, int, bytes]], sizes: list[int]
) -> None:
    """In both directions, at the same time."""
    client, server, ids = joined(protocol, sizes)
    for from_server, index, one in data:
        ours, theirs = ids[index]
        server.send(theirs, one) if from_server else client.send(ours, one)
    for got, side in zip(settle(client, server, sizes), (0, 1), strict=True):
        for index in range(len(PORTS)):
            expected = b"".join(one for from_server, at, one in data if at == index and from_server is (side == 0))
            assert b"".join(event.data for event in got if event.id == ids[index][side]) == expected


@given(st.sampled_from(WITH_ENDS), st.booleans(), payloads, cuts)
def test_end_of_one_side_leaves_the_other_open(
    protocol: Protocol, server_first: bool, data: bytes, sizes: list[int]
) -> None:
    """As of a TCP connection: a client may end its request and then read the answer."""
    client, server, ids = joined(protocol, sizes)
    ours, theirs = ids[1]
    if server_first:
        server.end(theirs)
        client.send(ours, data)
        client.end(ours)
        events, got = settle(client, server, sizes)
        assert events == [DataEnded(id=ours)]
        assert (got[-1], b"".join(event.data for event in got[:-1])) == (DataEnded(id=theirs), data)
    else:
        client.end(ours)
        server.send(theirs, data)
        server.end(theirs)
        got, events = settle(client, server, sizes)
        assert events == [DataEnded(id=theirs)]
        assert (got[-1], b"".join(event.data for event in got[:-1])) == (DataEnded(id=ours), data)
    server.send(theirs, b"late")
    server.fail(theirs, "late")
    client.send(ours, b"late")
    assert settle(client, server, sizes) == ([], [])


@given(st.sampled_from(PROTOCOLS), st.text(min_size=1, max_size=50).filter(lambda text: not text.isdigit()), cuts)
def test_failure_is_told_and_the_others_go_on(protocol: Protocol, text: str, sizes: list[int]) -> None:
    """A port on which nobody listens is no reason to end the forwarding of others."""
    client, server, ids = joined(protocol, [4096])
    server.fail(ids[0][1], text)
    server.send(ids[1][1], b"still here")
    events, _ = settle(client, server, [4096])
    assert events == [Broken(id=ids[0][0], text=text), Data(id=ids[1][0], data=b"still here")]
    server.send(ids[0][1], b"late")
    server.end(ids[0][1])
    client.send(ids[0][0], b"late")
    events, got = settle(client, server, sizes)
    assert [event for event in events + got if not isinstance(event, Dropped)] == []


@given(st.sampled_from(WITH_ENDS), cuts)
def test_client_drops_one_connection(protocol: Protocol, sizes: list[int]) -> None:
    """kubectl does when the program at its own end has gone."""
    client, server, ids = joined(protocol, sizes)
    client.drop(ids[2][0])
    assert settle(client, server, sizes) == ([], [Dropped(id=ids[2][1])])
    server.send(ids[2][1], b"late")
    assert settle(client, server, sizes) == ([], [])


@pytest.mark.parametrize("protocol", WITH_ENDS)
def test_client_that_ends_and_drops_in_one_read_is_told_of_both(protocol: Protocol) -> None:
    """Frames that come together are events one after the other: the later one is not forgotten for the earlier."""
    client, server, ids = joined(protocol, [4096])
    ours, theirs = ids[0]
    client.end(ours)
    client.drop(ours)
    assert settle(client, server, [4096]) == ([], [DataEnded(id=theirs), Dropped(id=theirs)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_client_that_leaves_is_told_once(protocol: Protocol) -> None:
    """All connections end with it."""
    _, server, _ = joined(protocol, [4096])
    assert server.receive(b"") == [Left()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_that_closes_ends_all_connections(protocol: Protocol) -> None:
    """The client learns it from the connections, or from the close."""
    client, server, ids = joined(protocol, [4096])
    server.close()
    events, _ = settle(client, server, [4096])
    ended = [Dropped(id=ours) for ours, _ in ids] if protocol in WITH_ENDS else []
    assert events == ended + ([Left()] if protocol.wire is not Wire.SPDY else [])


@pytest.mark.parametrize("protocol", WITH_ENDS)
def test_server_that_takes_no_more_after_its_end_is_told_of(protocol: Protocol) -> None:
    """The pod's program has gone: what the client still sends, nobody reads."""
    client, server, ids = joined(protocol, [4096])
    ours, theirs = ids[0]
    server.end(theirs)
    server.fail(theirs, "nobody reads")
    assert settle(client, server, [4096])[0] == [DataEnded(id=ours), Dropped(id=ours)]


@pytest.mark.parametrize("protocol", CHANNELS)
def test_websocket_closes_when_its_last_connection_is_over(protocol: Protocol) -> None:
    """It has no other words for that."""
    client, server, ids = joined(protocol, [4096])
    for _, theirs in ids:
        server.end(theirs)
    assert settle(client, server, [4096]) == ([Left()], [Left()])


def test_connections_over_leave_nothing_behind() -> None:
    """A kubectl that forwards for days makes thousands of connections, one after the other."""
    client, server = ForwardingClient(SPDY, (80,)), Forwarding(SPDY, (80,))
    for number in range(2 * STREAMS_MAX):
        ours = client.connect(80)
        events, got = settle(client, server, [4096])
        assert events == [Opened(id=ours)]
        (theirs,) = (event.id for event in got)
        if number % 3 == 0:
            server.fail(theirs, "refused")
        elif number % 3 == 1:
            client.drop(ours)
        else:
            client.end(ours)
            server.end(theirs)
        settle(client, server, [4096])
    for wire in (server._wire, client._wire):
        assert not any(vars(wire)[name] for name in ("_pairs", "_halves", "_forwarded", "_data") if name in vars(wire))
        assert not vars(wire)["_connection"]._streams


def test_connections_beyond_the_bound_are_refused_and_the_others_go_on() -> None:
    """Each is a descriptor of the server."""
    client, server = ForwardingClient(SPDY, (80,)), Forwarding(SPDY, (80,))
    ids = [client.connect(80) for _ in range(STREAMS_MAX // 2 + 1)]
    events, got = settle(client, server, [4096])
    assert len(got) == len(ids) - 1
    assert Broken(id=ids[-1], text="the server refuses a connection to port 80") in events
    assert {Opened(id=id) for id in ids[:-1]} < set(events)


headers = {b"port": b"80", b"requestid": b"0"}


@pytest.mark.parametrize(
    ("streams", "match"),
    [
        ([{b"streamtype": b"stdin", **headers}], "'stdin' is not known"),
        ([{b"streamtype": b"data", b"requestid": b"0"}], "not a port"),
        ([{b"streamtype": b"data", **headers, b"port": b"0"}], "not a port"),
        ([{b"streamtype": b"data", **headers, b"port": b"65536"}], "not a port"),
        ([{b"streamtype": b"data", **headers, b"port": b"-1"}], "not a port"),
        ([{b"streamtype": b"data", b"port": b"80"}], "requestid"),
        ([{b"streamtype": b"data", **headers}] * 2, "data for port 80 and data for port 80"),
        ([{b"streamtype": b"error", **headers}, {b"streamtype": b"data", **headers, b"port": b"81"}], "port 81"),
    ],
)
def test_streams_that_make_no_connection_are_refused(streams: list[dict[bytes, bytes]], match: str) -> None:
    """The text names what was wrong."""
    connection = Connection(client=True, streams_max=0)
    for one in streams:
        connection.open(one)
    with pytest.raises(ProtocolError, match=match):
        Forwarding(SPDY, ()).receive(connection.take())


def test_streams_of_a_connection_may_come_in_either_order() -> None:
    """An end that comes between is not lost; data is refused, since it would have to be kept."""
    connection, server = Connection(client=True, streams_max=0), Forwarding(SPDY, ())
    data = connection.open({b"streamtype": b"data", **headers})
    connection.end(data)
    assert server.receive(connection.take()) == []
    connection.open({b"streamtype": b"error", **headers})
    assert server.receive(connection.take()) == [Connected(id=data, port=80), DataEnded(id=data)]
    early = connection.open({b"streamtype": b"data", b"port": b"80", b"requestid": b"1"})
    connection.send(early, b"x")
    with pytest.raises(ProtocolError, match="before it has opened its error stream"):
        server.receive(connection.take())


def test_half_of_a_connection_that_is_reset_is_forgotten() -> None:
    """The same request may be tried again."""
    connection, server = Connection(client=True, streams_max=0), Forwarding(SPDY, ())
    connection.reset(connection.open({b"streamtype": b"error", **headers}))
    connection.open({b"streamtype": b"error", **headers})
    data = connection.open({b"streamtype": b"data", **headers})
    assert server.receive(connection.take()) == [Connected(id=data, port=80)]


def test_error_in_the_newer_form_is_read() -> None:
    """Since Kubernetes 1.31 the text comes in an object."""
    client, server, ids = joined(SPDY, [4096])
    server.fail(ids[0][1], '{"closeConnection":true,"message":"connection refused"}')
    assert settle(client, server, [4096])[0] == [Broken(id=ids[0][0], text="connection refused")]


def test_client_sends_nothing_before_the_server_has_accepted() -> None:
    """Servers in Go drop what comes before."""
    client = ForwardingClient(SPDY, (80,))
    with pytest.raises(LocalError, match="wait for Opened"):
        client.send(client.connect(80), b"early")


def test_websocket_has_a_connection_for_each_port_asked_for() -> None:
    """Its channels are numbered by the request, and fit in a byte."""
    client = ForwardingClient(CHANNELS[0], (80, 80))
    assert [client.connect(80), client.connect(80)] == [0, 1]
    with pytest.raises(LocalError, match="port 80"):
        client.connect(80)
    with pytest.raises(LocalError, match="at most 127"):
        Forwarding(CHANNELS[0], (80,) * (PORTS_MAX + 1))


@pytest.mark.parametrize(("channel", "data", "match"), [(2, b"PP", "expected 0 to 1"), (0, b"\x51\0", "expected 80")])
def test_websocket_server_that_forwards_something_else_is_refused(channel: int, data: bytes, match: str) -> None:
    """A client would mix up its ports."""
    server = Forwarding(CHANNELS[0], ())
    server._wire._channels.send(channel, data)  # type: ignore[attr-defined]
    with pytest.raises(ProtocolError, match=match):
        ForwardingClient(CHANNELS[0], (80,)).receive(server.take())


@given(st.sampled_from(PROTOCOLS), st.binary(max_size=300), cuts)
def test_garbage_raises_nothing_but_protocol_errors(protocol: Protocol, data: bytes, sizes: list[int]) -> None:
    """On either side."""
    client, server, _ = joined(protocol, [4096])
    for side in (client, server):
        with contextlib.suppress(ProtocolError):
            fed(side, data, sizes)


@given(st.sampled_from(PROTOCOLS), st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), min_size=1), cuts)
def test_damage_raises_nothing_but_protocol_errors(
    protocol: Protocol, damage: list[tuple[int, int]], sizes: list[int]
) -> None:
    """What both sides really send, with some bytes changed."""
    client, server, ids = joined(protocol, [4096])
    spoken: list[tuple[Any, bytearray]] = []
    client.send(ids[0][0], b"hello")
    client.end(ids[1][0])
    spoken.append((server, bytearray(client.take())))
    server.send(ids[0][1], b"hello")
    server.fail(ids[1][1], "broken")
    spoken.append((client, bytearray(server.take())))
    for side, data in spoken:
        for position, value in damage:
            data[position % len(data)] = value
        with contextlib.suppress(ProtocolError):
            fed(side, bytes(data), sizes)
