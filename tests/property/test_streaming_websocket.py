"""WebSockets and their channels: messages come out whole however they are cut, and strangers are refused."""

import base64
import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.streaming.channels import ChannelData, ChannelEnded, Channels
from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.streaming.websocket import Piece, WebSocket
from tests.property.streams import cuts, fed, payloads, settle

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PROTOCOLS = ("channel.k8s.io", "base64.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io")


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = b"\1\2\3\4") -> bytes:
    """A short frame, as a client masks it."""
    head = bytes((fin << 7 | opcode, (mask is not None) << 7 | len(payload)))
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def messages(events: list[Any]) -> list[bytes]:
    """Pieces put together."""
    whole: list[bytes] = []
    for event in events:
        assert isinstance(event, Piece)
        if event.begins:
            whole.append(b"")
        whole[-1] += event.data
    return whole


@given(st.lists(st.one_of(payloads, st.just(b"")), max_size=5), cuts, st.booleans())
def test_messages_arrive_whole_in_both_directions(sent: list[bytes], sizes: list[int], from_client: bool) -> None:
    """Masked or not, empty or not."""
    client, server = WebSocket(client=True), WebSocket(client=False)
    sender, receiver = (client, server) if from_client else (server, client)
    for message in sent:
        sender.send(message)
    _, events = settle(sender, receiver, sizes)
    assert messages(events) == sent


@pytest.mark.parametrize("length", [125, 126, 65_535, 65_536, 1 << 20])
def test_message_arrives_whose_length_takes_one_two_or_eight_bytes(length: int) -> None:
    """The shortest form is the only one that is allowed."""
    client, server = WebSocket(client=True), WebSocket(client=False)
    client.send(bytes(length))
    assert messages(settle(client, server, [60_000])[1]) == [bytes(length)]


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5), cuts)
def test_fragments_are_one_message_and_pings_may_come_between(parts: list[bytes], sizes: list[int]) -> None:
    """A message may be sent in frames, and a control frame between any two of them."""
    spoken = b""
    for index, part in enumerate(parts):
        spoken += frame(CONTINUATION if index else BINARY, part, fin=index == len(parts) - 1) + frame(PING, b"?")
    server = WebSocket(client=False)
    assert messages(fed(server, spoken, sizes)) == [b"".join(parts)]
    assert server.take() == frame(PONG, b"?", mask=None) * len(parts)


def test_close_is_answered_and_nothing_after_it_counts() -> None:
    """The one who closes waits for the answer."""
    server = WebSocket(client=False)
    assert server.receive(frame(CLOSE, struct.pack("!H", 1000)) + frame(BINARY, b"late")) == [Left()]
    assert server.was_closed
    assert server.take() == frame(CLOSE, struct.pack("!H", 1000), mask=None)
    server.send(b"late")
    assert (server.receive(b"more"), server.receive(b""), server.take()) == ([], [], b"")


def test_connection_that_ends_without_a_close_is_lost() -> None:
    """Only a close says that nothing is missing."""
    server = WebSocket(client=False)
    assert server.receive(b"") == [Left()]
    assert not server.was_closed


@pytest.mark.parametrize(
    "spoken",
    [
        frame(BINARY, b"x", mask=None),
        frame(CONTINUATION, b"x"),
        frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"),
        frame(PING, b"x", fin=False),
        frame(0x3, b"x"),
        frame(CLOSE, b"x"),
        frame(TEXT, b"\xff"),
        bytes((0x80 | BINARY, 0x80 | 127)) + bytes((255,)) * 8,
    ],
)
def test_frame_that_the_protocol_forbids_is_refused(spoken: bytes) -> None:
    """What is not masked, not finished, not known or not true."""
    with pytest.raises(ProtocolError, match="not valid"):
        WebSocket(client=False).receive(spoken)


@given(st.lists(st.binary(max_size=60), max_size=10), cuts, st.sampled_from(("v5.channel.k8s.io", *PROTOCOLS)))
def test_garbage_raises_nothing_but_protocol_errors(parts: list[bytes], sizes: list[int], protocol: str) -> None:
    """Whoever has a token can send anything."""
    _survive(b"".join(parts), sizes, protocol)


opcodes = st.sampled_from((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))


@given(
    st.lists(st.builds(frame, opcodes, st.binary(max_size=100), fin=st.booleans()), max_size=10),
    cuts,
    st.sampled_from(("v5.channel.k8s.io", *PROTOCOLS)),
)
def test_frames_in_any_order_raise_nothing_but_protocol_errors(
    parts: list[bytes], sizes: list[int], protocol: str
) -> None:
    """Each frame is valid by itself."""
    _survive(b"".join(parts), sizes, protocol)


def _survive(spoken: bytes, sizes: list[int], protocol: str) -> None:
    for client in (False, True):
        side = Channels(client=client, protocol=protocol)
        with contextlib.suppress(ProtocolError):
            fed(side, spoken, sizes)
        assert len(side._undecoded) < 4
        assert len(side.take()) <= 4 * len(spoken)


def channel_messages(events: list[Any]) -> list[Any]:
    """Pieces put together, as (channel, data); all else as it is."""
    whole: list[Any] = []
    inside = False
    for event in events:
        if not isinstance(event, ChannelData):
            whole.append(event)
            continue
        if inside:
            whole[-1] = (event.channel, whole[-1][1] + event.data)
        else:
            whole.append((event.channel, event.data))
        inside = not event.ends
    return whole


@given(
    st.sampled_from(("", "v5.channel.k8s.io", *PROTOCOLS)),
    st.lists(st.tuples(st.integers(0, 60), st.one_of(payloads, st.just(b""))), max_size=6),
    cuts,
    st.booleans(),
)
def test_channels_keep_their_messages(
    protocol: str, sent: list[tuple[int, bytes]], sizes: list[int], from_client: bool
) -> None:
    """The same for bytes and for base64, in both directions."""
    client, server = Channels(client=True, protocol=protocol), Channels(client=False, protocol=protocol)
    sender, receiver = (client, server) if from_client else (server, client)
    for channel, data in sent:
        sender.send(channel, data)
    _, events = settle(sender, receiver, sizes)
    assert channel_messages(events) == sent


@pytest.mark.parametrize(
    ("protocol", "got"), [("v5.channel.k8s.io", [ChannelEnded(channel=0)]), ("v4.channel.k8s.io", [])]
)
def test_channel_ended_is_told_since_v5(protocol: str, got: list[Any]) -> None:
    """Before, there are no words for it."""
    client, server = Channels(client=True, protocol=protocol), Channels(client=False, protocol=protocol)
    client.end(0)
    assert settle(client, server, [1])[1] == got


@pytest.mark.parametrize(
    ("protocol", "message", "match"),
    [
        ("base64.channel.k8s.io", b"!Zm9v", "expected the digit"),
        ("base64.channel.k8s.io", b"0Zm9", "inside a group"),
        ("base64.channel.k8s.io", b"0Zm9*", "not in base64"),
        ("v5.channel.k8s.io", b"\xff", "names none"),
        ("v5.channel.k8s.io", b"\xff\0\1", "more than one"),
    ],
)
def test_message_that_is_none_of_its_protocol_is_refused(protocol: str, message: bytes, match: str) -> None:
    """The text says what was expected."""
    with pytest.raises(ProtocolError, match=match):
        Channels(client=False, protocol=protocol).receive(frame(BINARY, message))


def test_message_in_base64_is_read_from_binary_frames_too() -> None:
    """Servers in Go do not look at the type of a message."""
    spoken = frame(BINARY, b"0" + base64.b64encode(b"hello")) + frame(TEXT, b"1" + base64.b64encode(b"there"))
    events = Channels(client=False, protocol="base64.channel.k8s.io").receive(spoken)
    assert channel_messages(events) == [(0, b"hello"), (1, b"there")]
