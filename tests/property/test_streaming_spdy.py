"""SPDY frames: what goes in comes out however it is cut, and what a stranger sends costs no more than was read."""

import contextlib
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.streaming.spdy import (
    CONTROL_BYTES_MAX,
    DICTIONARY,
    HEADER_BYTES_MAX,
    Connection,
    StreamData,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
)
from tests.property.streams import cuts, fed, merged, payloads, settle

headers = st.dictionaries(st.binary(max_size=20).map(bytes.lower), st.binary(max_size=60), max_size=5)
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
NO_HEADERS = bytes(4)


def control(kind: int, body: bytes, flags: int = 0, version: int = 3) -> bytes:
    return struct.pack("!II", 0x8000_0000 | version << 16 | kind, flags << 24 | len(body)) + body


def data_frame(stream: int, data: bytes, flags: int = 0) -> bytes:
    return struct.pack("!II", stream, flags << 24 | len(data)) + data


def blocks(*plain: bytes) -> list[bytes]:
    """The first header blocks of a connection, with the settings that Go's library has."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zdict=DICTIONARY)
    return [deflate.compress(one) + deflate.flush(zlib.Z_SYNC_FLUSH) for one in plain]


def syn_stream(stream: int, plain: bytes, flags: int = 0) -> bytes:
    return syn_stream_of(stream, blocks(plain)[0], flags)


def syn_stream_of(stream: int, block: bytes, flags: int = 0) -> bytes:
    return control(SYN_STREAM, struct.pack("!IIBB", stream, 0, 0, 0) + block, flags)


def server(streams_max: int = 5) -> Connection:
    return Connection(client=False, streams_max=streams_max)


def stream_of(event: Any) -> int | None:
    return event.id if isinstance(event, StreamData) else None


def test_dictionary_is_that_of_the_specification() -> None:
    """One wrong byte, and no other program reads our headers."""
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.lists(headers, min_size=1, max_size=5), cuts)
def test_streams_opened_arrive_with_their_headers_in_order(opened: list[dict[bytes, bytes]], sizes: list[int]) -> None:
    """Blocks share one compression: each has to be read in its turn."""
    ours, theirs = Connection(client=True, streams_max=0), server()
    ids = [ours.open(one) for one in opened]
    _, events = settle(ours, theirs, sizes)
    assert events == [StreamOpened(id=id, headers=one) for id, one in zip(ids, opened, strict=True)]
    for id in ids:
        theirs.reply(id)
    events, _ = settle(ours, theirs, sizes)
    assert events == [StreamReplied(id=id) for id in ids]


actions = st.lists(
    st.tuples(st.booleans(), st.integers(0, 2), st.one_of(payloads, st.sampled_from(("end", "reset")))), max_size=30
)


@given(actions, cuts)
def test_data_and_ends_arrive_in_order_in_both_directions(acts: list[tuple[bool, int, Any]], sizes: list[int]) -> None:
    """What one side sends before its end or a reset is what the other gets, per stream."""
    sides = Connection(client=True, streams_max=0), server()
    ids = [sides[0].open({}) for _ in range(3)]
    settle(*sides, sizes)
    sent: list[dict[int, list[Any]]] = [{id: [] for id in ids}, {id: [] for id in ids}]
    got: list[dict[int, list[Any]]] = [{id: [] for id in ids}, {id: [] for id in ids}]
    over: set[int] = set()
    ended: set[tuple[int, int]] = set()
    for from_server, index, what in acts:
        side, id = int(from_server), ids[index]
        if what == "end":
            sides[side].end(id)
        elif what == "reset":
            sides[side].reset(id)
        else:
            sides[side].send(id, what)
        if id not in over and (side, id) not in ended:
            sent[side][id].append(what)
        if id not in over and what == "reset":
            if (side, id) in ended and {(0, id), (1, id)} - ended:
                sent[side][id].append(what)
            over.add(id)
        elif what == "end":
            ended.add((side, id))
        if {(0, id), (1, id)} <= ended:
            over.add(id)
        for receiver, events in enumerate(settle(*sides, sizes)):
            for event in events:
                kind = {StreamEnded: "end", StreamReset: "reset"}.get(type(event))
                got[1 - receiver][event.id].append(kind or event.data)
    for side in (0, 1):
        for id in ids:
            assert _joined(got[side][id]) == _joined(sent[side][id])


def _joined(items: list[Any]) -> list[Any]:
    result: list[Any] = []
    for item in items:
        if isinstance(item, bytes) and result and isinstance(result[-1], bytes):
            result[-1] += item
        else:
            result.append(item)
    return result


def _spoken(acts: list[tuple[bool, int, Any]]) -> bytes:
    """What a client writes that does these things."""
    client = Connection(client=True, streams_max=0)
    ids = [client.open({b"streamtype": b"%d" % index}) for index in range(3)]
    for _, index, what in acts:
        if what == "end":
            client.end(ids[index])
        elif what == "reset":
            client.reset(ids[index])
        else:
            client.send(ids[index], what)
    return client.take()


@given(actions, cuts)
def test_bytes_cut_anywhere_are_the_same_events(acts: list[tuple[bool, int, Any]], sizes: list[int]) -> None:
    """A socket gives what it has, and not frames."""
    spoken = _spoken(acts)
    assert merged(fed(server(), spoken, sizes), stream_of) == merged(server().receive(spoken), stream_of)


@given(st.lists(st.binary(max_size=200), max_size=10), cuts)
def test_garbage_raises_nothing_but_protocol_errors(parts: list[bytes], sizes: list[int]) -> None:
    """Whoever has a token can send anything."""
    _survive(b"".join(parts), sizes)


@given(actions, st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=5), cuts)
def test_damaged_frames_raise_nothing_but_protocol_errors(
    acts: list[tuple[bool, int, Any]], damage: list[tuple[int, int]], sizes: list[int]
) -> None:
    """Nearly valid bytes reach further than garbage."""
    spoken = bytearray(_spoken(acts))
    for position, value in damage:
        spoken[position % len(spoken)] = value
    _survive(bytes(spoken), sizes)


kinds = st.integers(0, 12)
frames = st.one_of(
    st.builds(control, kinds, st.binary(max_size=40), st.integers(0, 3)),
    st.builds(data_frame, st.integers(0, 9), st.binary(max_size=40), st.integers(0, 1)),
)


@given(st.lists(frames, max_size=12), cuts)
def test_frames_in_any_order_raise_nothing_but_protocol_errors(parts: list[bytes], sizes: list[int]) -> None:
    """Each type with a body that may not be its own, on streams that may not be there."""
    _survive(syn_stream(1, NO_HEADERS) + b"".join(parts), sizes)


def _survive(spoken: bytes, sizes: list[int]) -> None:
    for side in (server(), Connection(client=True, streams_max=0)):
        with contextlib.suppress(ProtocolError):
            for event in fed(side, spoken, sizes):
                assert not isinstance(event, Left)
        assert len(side.take()) <= 2 * len(spoken)
        assert len(side._held) <= CONTROL_BYTES_MAX + 8


def refused(spoken: bytes, *, match: str, side: Connection | None = None) -> None:
    with pytest.raises(ProtocolError, match=match):
        (side or server()).receive(spoken)


def test_control_frame_too_long_is_refused_before_its_body() -> None:
    """16 MiB are not waited for because a stranger says so."""
    refused(struct.pack("!II", 0x8003_0001, CONTROL_BYTES_MAX + 1), match="at most")
    assert server().receive(struct.pack("!II", 0x8003_0001, CONTROL_BYTES_MAX)) == []


def test_header_block_that_inflates_without_end_is_refused_small() -> None:
    """16 KiB of a frame can inflate to 16 MiB."""
    bomb = syn_stream(1, struct.pack("!I", 1) + bytes(12 << 20))
    assert len(bomb) <= CONTROL_BYTES_MAX
    tracemalloc.start()
    try:
        refused(bomb, match="inflates to more than")
        assert tracemalloc.get_traced_memory()[1] < 10 * HEADER_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_header_count_beyond_its_block_is_refused() -> None:
    """A count allocates nothing (CVE-2026-35469)."""
    refused(syn_stream(1, struct.pack("!I", 0xFFFF_FFFF)), match="4294967295 headers")
    refused(syn_stream(1, struct.pack("!III", 1, 0xFFFF_FFFF, 0)), match="ends inside")
    refused(syn_stream(1, struct.pack("!III", 1, 0, 0) + b"more"), match="4 bytes after")
    refused(syn_stream(1, struct.pack("!IIIII", 2, 0, 0, 0, 0)), match="twice")


def test_settings_with_another_count_are_refused_and_others_are_passed_over() -> None:
    """Nothing that a peer can set means anything to us."""
    refused(control(SETTINGS, struct.pack("!I", 0xFFFF_FFFF)), match="as many entries")
    assert server().receive(control(SETTINGS, struct.pack("!III", 1, 4, 100))) == []


@pytest.mark.parametrize(
    "frame",
    [
        control(GOAWAY, bytes(8)),
        control(WINDOW_UPDATE, struct.pack("!II", 1, 9)),
        control(10, b"a type of CREDENTIAL"),
        control(HEADERS, struct.pack("!I", 1) + blocks(NO_HEADERS, NO_HEADERS)[1]),
    ],
)
def test_frame_without_meaning_is_passed_over(frame: bytes) -> None:
    """Windows are not kept, and an announced end comes by itself."""
    side = server()
    side.receive(syn_stream(1, NO_HEADERS))
    assert side.receive(frame + data_frame(1, b"x")) == [StreamData(id=1, data=b"x")]


def test_headers_with_the_end_of_a_stream_end_it() -> None:
    """Any frame of a stream may be its last."""
    side = server()
    first, second = blocks(NO_HEADERS, NO_HEADERS)
    side.receive(syn_stream_of(1, first))
    assert side.receive(control(HEADERS, struct.pack("!I", 1) + second, flags=1)) == [StreamEnded(id=1)]


@pytest.mark.parametrize("kind", [SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE])
def test_control_frame_too_short_is_refused(kind: int) -> None:
    """Each type says what it needs."""
    refused(control(kind, b"abc"), match="3 bytes")


def test_frame_of_another_version_is_refused() -> None:
    """SPDY/2 had other frames."""
    refused(control(PING, bytes(4), version=2), match="version 2: expected 3")


def test_streams_beyond_the_bound_are_refused_one_by_one() -> None:
    """The others go on."""
    client, side = Connection(client=True, streams_max=0), server(2)
    ids = [client.open({}) for _ in range(3)]
    assert side.receive(client.take()) == [StreamOpened(id=id, headers={}) for id in ids[:2]]
    assert client.receive(side.take()) == [StreamReset(id=ids[2])]
    side.reset(ids[0])
    client.receive(side.take())
    new = client.open({b"a": b"b"})
    assert side.receive(client.take()) == [StreamOpened(id=new, headers={b"a": b"b"})]


def test_stream_overtaken_by_a_later_one_is_reset() -> None:
    """spdystream does not write streams in the order of their numbers, and its peers answer so."""
    side = server()
    first, second, third, fourth = blocks(*(NO_HEADERS,) * 4)
    side.receive(syn_stream_of(5, first))
    assert side.receive(syn_stream_of(3, second) + syn_stream_of(7, third)) == [StreamOpened(id=7, headers={})]
    assert side.take() == control(RST_STREAM, struct.pack("!II", 3, 1))
    refused(syn_stream_of(5, fourth), match="twice", side=side)


def test_ping_is_answered_and_an_answer_is_not() -> None:
    """A ping of a client has an odd number; an even one answers ours."""
    side = server()
    assert side.receive(control(PING, struct.pack("!I", 7)) + control(PING, struct.pack("!I", 8))) == []
    assert side.take() == control(PING, struct.pack("!I", 7))


@pytest.mark.parametrize(
    ("spoken", "match"),
    [
        (data_frame(1, b"x"), "never opened"),
        (data_frame(0, b"x"), "never opened"),
        (data_frame(2, b"x"), "never opened"),
        (control(RST_STREAM, struct.pack("!II", 1, 5)), "never opened"),
        (control(SYN_REPLY, struct.pack("!I", 2) + blocks(NO_HEADERS)[0]), "never opened"),
        (control(SYN_REPLY, struct.pack("!I", 1) + blocks(NO_HEADERS)[0]), "opened itself"),
        (syn_stream(2, NO_HEADERS), "which only we could"),
        (syn_stream(1, NO_HEADERS, flags=1) + data_frame(1, b"x"), "after its end"),
    ],
)
def test_frame_for_a_stream_that_cannot_be_is_refused(spoken: bytes, match: str) -> None:
    """Silence would hide a peer that has lost count."""
    refused(spoken, match=match)


def test_data_of_a_stream_that_we_have_reset_is_passed_over() -> None:
    """It was under way."""
    side = server()
    side.receive(syn_stream(1, NO_HEADERS))
    side.reset(1)
    assert side.receive(data_frame(1, b"late", flags=1) + control(RST_STREAM, struct.pack("!II", 1, 5))) == []


def test_data_of_any_length_is_passed_on_as_it_comes() -> None:
    """A frame of 16 MiB is not collected."""
    side = server()
    side.receive(syn_stream(1, NO_HEADERS))
    head = struct.pack("!II", 1, 1 << 24 | (1 << 24) - 1)
    assert side.receive(head + b"first") == [StreamData(id=1, data=b"first")]
    assert side.receive(b"second") == [StreamData(id=1, data=b"second")]
    assert side.receive(b"") == [Left()]


def test_data_longer_than_a_frame_is_sent_in_several() -> None:
    """The length of a frame has 24 bits."""
    client, side = Connection(client=True, streams_max=0), server()
    id = client.open({})
    client.send(id, b"a" * ((1 << 24) + 5))
    events = side.receive(client.take())
    assert [len(event.data) for event in events if isinstance(event, StreamData)] == [(1 << 24) - 1, 6]


def test_stream_for_one_direction_takes_no_data_from_us() -> None:
    """Unidirectional streams are ended on our side from the beginning."""
    side = server()
    side.receive(syn_stream(1, NO_HEADERS, flags=2))
    side.send(1, b"x")
    assert side.take() == b""
    assert side.receive(data_frame(1, b"", flags=1)) == [StreamEnded(id=1)]
    assert not side._streams
