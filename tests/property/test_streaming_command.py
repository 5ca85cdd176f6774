"""Commands over every protocol: what goes in comes out at the other end, and how it ended comes last."""

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.errors import LocalError
from crio_core.streaming.client import CommandClient, Output
from crio_core.streaming.protocol import Endpoint, Left, Protocol, ProtocolError, Wire
from crio_core.streaming.remotecommand import Command, Input, InputEnded, Ready, Resized, Stream, Wants
from crio_core.streaming.spdy import Connection
from crio_core.streaming.status import Ended, Exited, Failed, decode, encode
from crio_core.streaming.upgrade import SPDY_PROTOCOLS, WEBSOCKET_PROTOCOLS
from tests.property.streams import cuts, fed, merged, payloads, settle

PROTOCOLS = (
    *(Protocol(wire=Wire.SPDY, name=name) for name in SPDY_PROTOCOLS[Endpoint.COMMAND]),
    *(Protocol(wire=Wire.WEBSOCKET, name=name) for name in ("", *WEBSOCKET_PROTOCOLS[Endpoint.COMMAND])),
)
SPDY_V4 = Protocol(wire=Wire.SPDY, name="v4.channel.k8s.io")
WEBSOCKET_V4 = Protocol(wire=Wire.WEBSOCKET, name="v4.channel.k8s.io")
ALL = Wants(stdin=True, stdout=True, stderr=True, tty=False)
TERMINAL = Wants(stdin=True, stdout=True, stderr=False, tty=True)

protocols = st.sampled_from(PROTOCOLS)
wants = st.builds(Wants, stdin=st.booleans(), stdout=st.booleans(), stderr=st.booleans(), tty=st.booleans())
endings = st.one_of(st.builds(Exited, code=st.integers(0, 255)), st.builds(Failed, message=st.text(min_size=1)))
sizes_of_terminals = st.tuples(st.integers(1, 65535), st.integers(1, 65535))


def joined(protocol: Protocol, wanted: Wants, sizes: list[int]) -> tuple[CommandClient, Command, list[Any], list[Any]]:
    """Both sides, after the client's streams are there, and the events until then."""
    client, server = CommandClient(protocol, wanted), Command(protocol, wanted)
    ours, theirs = client.start(), server.start()
    more = settle(client, server, sizes)
    return client, server, ours + more[0], theirs + more[1]


def stream_of(event: Any) -> Any:
    if isinstance(event, Output):
        return event.stream
    return Stream if isinstance(event, Input) else None


@given(protocols, wants, cuts)
def test_both_sides_are_ready_when_all_streams_are_there(protocol: Protocol, wanted: Wants, sizes: list[int]) -> None:
    """Ready comes once, and first."""
    _, _, ours, theirs = joined(protocol, wanted, sizes)
    assert (ours, theirs) == ([Ready()], [Ready()])


outputs = st.lists(st.tuples(st.sampled_from(Stream), payloads), max_size=8)


@given(protocols, wants, outputs, endings, cuts)
def test_output_arrives_in_order_and_the_status_after_it(
    protocol: Protocol, wanted: Wants, written: list[tuple[Stream, bytes]], ending: Ended, sizes: list[int]
) -> None:
    """Each stream keeps its bytes; what nobody asked for is dropped, and with a terminal there is no stderr."""
    client, server, _, _ = joined(protocol, wanted, sizes)
    for stream, data in written:
        server.send_output(stream, data)
    server.send_status(ending)
    events, _ = settle(client, server, sizes)
    asked = {Stream.STDOUT: wanted.stdout, Stream.STDERR: wanted.stderr and not wanted.tty}
    got = [event for event in events if isinstance(event, Output)]
    for stream, is_asked in asked.items():
        expected = b"".join(data for one, data in written if one is stream) if is_asked else b""
        assert b"".join(event.data for event in got if event.stream is stream) == expected
    told = events[len(got) :]
    assert told == [decode(encode(ending, protocol), protocol)] + ([Left()] if protocol.wire is Wire.WEBSOCKET else [])


@given(st.integers(0, 255), st.text(min_size=1), st.sampled_from(PROTOCOLS))
def test_status_written_is_read_again(code: int, message: str, protocol: Protocol) -> None:
    """Since v4 with its code; before, a failure is a text and a success is nothing."""
    has_code = protocol.name.startswith(("v4", "v5"))
    exited = decode(encode(Exited(code=code), protocol), protocol)
    if has_code or code == 0:
        assert exited == Exited(code=code)
    else:
        assert isinstance(exited, Failed) and str(code) in exited.message
    assert decode(encode(Failed(message=message), protocol), protocol) == Failed(message=message)


@given(st.one_of(st.binary(max_size=80), st.sampled_from((b"{}", b"[]", b"null", b'{"reason":"NonZeroExitCode"}'))))
def test_status_that_is_none_is_a_failure_that_shows_it(data: bytes) -> None:
    """A server may send anything, and the user has to see it."""
    ended = decode(data, SPDY_V4)
    assert isinstance(ended, Failed) and ended.message


def test_status_is_the_one_of_kubernetes() -> None:
    """Clients look for these words."""
    assert encode(Exited(code=0), SPDY_V4) == b'{"metadata":{},"status":"Success"}'
    assert encode(Exited(code=3), SPDY_V4) == (
        b'{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: 3",'
        b'"reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}'
    )


inputs = st.lists(st.one_of(payloads, sizes_of_terminals), max_size=8)


@given(st.sampled_from((ALL, TERMINAL)), protocols, inputs, st.booleans(), cuts)
def test_input_sizes_and_end_arrive_in_order(
    wanted: Wants, protocol: Protocol, given: list[Any], ends: bool, sizes: list[int]
) -> None:
    """Sizes exist with a terminal and since v3, ends on a WebSocket since v5."""
    client, server, _, _ = joined(protocol, wanted, sizes)
    expected: list[Any] = []
    has_sizes = wanted.tty and (protocol.wire is Wire.WEBSOCKET or protocol.name[:2] in ("v3", "v4", "v5"))
    for one in given:
        if isinstance(one, bytes):
            client.send_input(one)
            expected.append(Input(data=one))
        else:
            client.resize(*one)
            expected += [Resized(width=one[0], height=one[1])] * has_sizes
    if ends:
        client.end_input()
        expected += [InputEnded()] * (protocol.wire is Wire.SPDY or protocol.name.startswith("v5"))
    _, events = settle(client, server, sizes)
    assert merged(events, stream_of) == merged(expected, stream_of)


@given(protocols, cuts)
def test_client_that_leaves_is_told_once(protocol: Protocol, sizes: list[int]) -> None:
    """Whatever is left of the command is the server's to end."""
    _, server, _, _ = joined(protocol, ALL, sizes)
    assert server.receive(b"") == [Left()]


@given(protocols, st.binary(max_size=300), cuts)
def test_garbage_raises_nothing_but_protocol_errors(protocol: Protocol, data: bytes, sizes: list[int]) -> None:
    """On either side, before and after the streams are there."""
    client, server, _, _ = joined(protocol, TERMINAL, [4096])
    for side in (client, server, CommandClient(protocol, TERMINAL), Command(protocol, TERMINAL)):
        side.start() if protocol.wire is Wire.SPDY else None
        with contextlib.suppress(ProtocolError):
            fed(side, data, sizes)


@given(protocols, st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=5), cuts)
def test_damage_raises_nothing_but_protocol_errors(
    protocol: Protocol, damage: list[tuple[int, int]], sizes: list[int]
) -> None:
    """What a client really sends, with some bytes changed."""
    client, server, _, _ = joined(protocol, TERMINAL, [4096])
    client.send_input(b"hello")
    client.resize(80, 24)
    client.end_input()
    spoken = bytearray(client.take())
    for position, value in damage:
        spoken[position % len(spoken)] = value
    with contextlib.suppress(ProtocolError):
        fed(server, bytes(spoken), sizes)


@pytest.mark.parametrize("protocol", [SPDY_V4, WEBSOCKET_V4])
def test_nothing_is_sent_before_ready_or_after_the_status(protocol: Protocol) -> None:
    """That would be a bug of the server."""
    server = Command(protocol, ALL)
    with pytest.raises(LocalError, match="wait for Ready"):
        server.send_output(Stream.STDOUT, b"early")
    with pytest.raises(LocalError, match="wait for Ready"):
        server.send_status(Exited(code=0))
    _, server, _, _ = joined(protocol, ALL, [4096])
    server.send_status(Exited(code=0))
    with pytest.raises(LocalError, match="status was sent"):
        server.send_output(Stream.STDOUT, b"late")


def test_client_sends_no_input_before_ready() -> None:
    """Servers in Go drop what comes on a stream that they have not accepted."""
    with pytest.raises(LocalError, match="wait for Ready"):
        CommandClient(SPDY_V4, ALL).send_input(b"early")
    with pytest.raises(LocalError, match="without input"):
        CommandClient(SPDY_V4, Wants(stdin=False, stdout=True, stderr=False, tty=False)).end_input()


def opened(*kinds: bytes) -> tuple[Connection, list[int]]:
    connection = Connection(client=True, streams_max=0)
    return connection, [connection.open({b"streamtype": kind}) for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "match"),
    [((b"stdlog",), "not known"), ((b"",), "not known"), ((b"error", b"error"), "error stream twice")],
)
def test_stream_that_no_command_has_is_refused(kinds: tuple[bytes, ...], match: str) -> None:
    """Each type once."""
    connection, _ = opened(*kinds)
    with pytest.raises(ProtocolError, match=match):
        Command(SPDY_V4, ALL).receive(connection.take())


def test_streams_are_taken_in_any_order_and_events_wait_for_the_last() -> None:
    """Another client may open them otherwise; an early end or size is not lost."""
    connection, ids = opened(b"resize", b"stdin", b"stdout")
    connection.send(ids[0], b'{"Width":1,"Height":1}{"Width":80,"Height":24}')
    connection.end(ids[1])
    server = Command(SPDY_V4, TERMINAL)
    assert server.receive(connection.take()) == []
    connection.open({b"streamtype": b"error"})
    assert server.receive(connection.take()) == [Ready(), Resized(width=80, height=24), InputEnded()]


def test_input_before_the_last_stream_is_refused() -> None:
    """It would have to be kept, for as long as the client likes."""
    connection, ids = opened(b"stdin")
    connection.send(ids[0], b"early")
    with pytest.raises(ProtocolError, match="error, stdout, stderr is missing"):
        Command(SPDY_V4, ALL).receive(connection.take())


def test_stream_that_was_not_asked_for_is_accepted_and_unheard() -> None:
    """kubectl opens a resize stream by its own idea of a terminal."""
    connection, ids = opened(b"error", b"stdout", b"stdin", b"resize")
    server = Command(SPDY_V4, Wants(stdin=False, stdout=True, stderr=False, tty=False))
    connection.send(ids[2], b"input")
    connection.end(ids[2])
    connection.send(ids[3], b"no size")
    assert server.receive(connection.take()) == [Ready()]


@pytest.mark.parametrize(
    "text", [b"{}", b'{"Width":0,"Height":24}', b'{"Width":80,"Height":0}\n', b' {"width":0,"height":0}', b'{"Width":8']
)
def test_size_of_a_terminal_that_does_not_know_is_passed_over(text: bytes) -> None:
    """A terminal without a size says 0."""
    connection, ids = opened(b"error", b"stdin", b"stdout", b"resize")
    connection.send(ids[3], text)
    assert Command(SPDY_V4, TERMINAL).receive(connection.take()) == [Ready()]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"}", "not the size"),
        (b'{"Width":65536,"Height":1}', "65536"),
        (b'{"Width":-1,"Height":1}', "-1"),
        (b'{"Width":"80","Height":1}', "expected 0 to 65535"),
        (b'{"Width":true,"Height":1}', "True"),
        (b"x" * 2000, "more than 1024 bytes"),
    ],
)
def test_size_that_is_none_is_refused(text: bytes, match: str) -> None:
    """It goes to the kernel as two numbers of 16 bits."""
    connection, ids = opened(b"error", b"stdin", b"stdout", b"resize")
    connection.send(ids[3], text)
    with pytest.raises(ProtocolError, match=match):
        Command(SPDY_V4, TERMINAL).receive(connection.take())


def test_server_that_resets_its_streams_is_understood() -> None:
    """Servers in Go end a connection so, after the status."""
    client = CommandClient(SPDY_V4, ALL)
    server = Connection(client=False, streams_max=5)
    ids = {event.headers[b"streamtype"]: event.id for event in server.receive(client.take())}  # type: ignore[union-attr]
    for id in ids.values():
        server.reply(id)
    server.send(ids[b"stdout"], b"out")
    server.send(ids[b"error"], encode(Exited(code=7), SPDY_V4))
    for id in ids.values():
        server.reset(id)
    server.go_away()
    assert client.receive(server.take()) == [Ready(), Output(stream=Stream.STDOUT, data=b"out"), Exited(code=7)]
    assert client.receive(b"") == [Left()]


def test_connection_lost_before_the_status_is_told_without_one() -> None:
    """Nobody knows how the command ended."""
    client, _, _, _ = joined(SPDY_V4, ALL, [4096])
    assert client.receive(b"") == [Left()]
    client, _, _, _ = joined(WEBSOCKET_V4, ALL, [4096])
    assert client.receive(b"") == [Left()]


def test_stream_refused_by_the_server_is_an_error_of_the_client() -> None:
    """Without it the command cannot be followed."""
    client, server = CommandClient(SPDY_V4, ALL), Connection(client=False, streams_max=2)
    server.receive(client.take())
    with pytest.raises(ProtocolError, match="refuses the stdout stream"):
        client.receive(server.take())


def test_websocket_says_that_it_is_there_with_an_empty_message() -> None:
    """Clients wait for one on the first stream that the server writes."""
    server = Command(WEBSOCKET_V4, TERMINAL)
    server.start()
    assert server.take() == struct.pack("BBB", 0x82, 1, 1)


def test_unknown_channels_are_passed_over() -> None:
    """As Kubernetes does; only ours have a meaning."""
    client, server, _, _ = joined(WEBSOCKET_V4, Wants(stdin=False, stdout=True, stderr=True, tty=False), [4096])
    for channel in (0, 1, 2, 3, 4, 9):
        client._wire._channels.send(channel, b"{x}")  # type: ignore[attr-defined]
    assert server.receive(client.take()) == []
