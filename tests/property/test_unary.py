"""The shorter way of unary calls is told from the libraries by nothing but its speed.

Programs of frames are played twice to a server in memory: with the shorter way, and to grpclib and h2 alone. The client
is h2's, with frames of its own making, cut anywhere into reads. What it sees of each stream has to be the same, and at
the end the books of both sides have to agree. When h2 or grpclib change what the shorter way relies on, this fails.
"""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import pytest
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from crio_core.errors import Code, OperationError
from crio_server.answers import DATA, frame_head
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.cri.v1.api_grpc import RuntimeServiceBase
from crio_server.listener import SocketServer
from crio_server.services.rpc import CachedCodec, Servable
from crio_server.status import Answer
from crio_server.tally import tallies
from crio_server.unary import BLOCK_BYTES_MAX, BLOCKS_MAX, HEAD_BYTES, STREAMS_REMEMBERED, HeaderBlocks

T = TypeVar("T")
RUNTIME = "/runtime.v1.RuntimeService/"
TURNS = 12
"""Of the event loop, until all that can happen has happened."""
TIMEOUT_S = 2
STREAMS_MAX = 100
SIZES = (0, 1, 16_370, 40_000, 70_000, 140_000)
"""Of answers: within a frame, within a window, and beyond."""
WINDOW_MIN = 2**16 - 1


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """What is wrong on purpose fills no pages."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


# --- the server -----------------------------------------------------------------------------------------------------


class _Service:
    """Methods of every kind; what is asked for is in the texts of the requests."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.cancelled = 0

    def Version(self, request: pb.VersionRequest) -> pb.VersionResponse:
        """At once, as long as it is asked to be."""
        asked = request.version.partition(" ")[0]
        return pb.VersionResponse(version=request.version[:40], runtime_name="x" * int(asked or 0))

    def ContainerStatus(self, request: pb.ContainerStatusRequest) -> bytes | Awaitable[bytes]:
        """At once, refused, or later."""
        if request.container_id.startswith("no"):
            raise OperationError(Code.NOT_FOUND, "NO_CONTAINER", f"container {request.container_id[:20]} is not there")
        return self._later() if request.verbose else b""

    async def _later(self) -> bytes:
        await asyncio.sleep(0)
        return pb.ContainerStatusResponse(info={"a": "b"}).SerializeToString()

    async def StopContainer(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        """When the program lets it, or not at all."""
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return pb.StopContainerResponse()

    async def StreamContainers(self, request: pb.StreamContainersRequest) -> AsyncIterator[bytes]:
        """Two messages."""
        yield b""
        yield pb.ContainerStatusResponse(info={"a": "b"}).SerializeToString()


async def _no_pages(path: str, query: Mapping[str, str]) -> Answer:
    return Answer(status=404)


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class _Loop(asyncio.SelectorEventLoop):
    """Its time passes when a program says so."""

    passed_s = 0.0

    def time(self) -> float:
        return self.passed_s


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


async def _settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


class _Pair:
    """A server, with the shorter way or without, and a client of h2; must be made in a running loop."""

    def __init__(self, *, short: bool, window: int = 4 * 2**20) -> None:
        self.service = _Service()
        services = [Servable(RuntimeServiceBase, self.service, tallies())]
        server: Server = SocketServer(services, _no_pages) if short else Server(services, codec=CachedCodec())
        size = Configuration(http2_connection_window_size=window, http2_stream_window_size=window)
        server._config = size.__for_server__()
        made = server._grpc_protocol() if isinstance(server, SocketServer) else server._protocol_factory()
        self.protocol = cast(H2Protocol, made)
        self.transport = _Transport()
        self.protocol.connection_made(self.transport)
        self.server = self.protocol.connection._connection
        self.client = H2Connection(
            H2Configuration(client_side=True, header_encoding="ascii", validate_outbound_headers=False)
        )
        self.client.initiate_connection()
        self.bytes = bytearray()
        """What the client has to send."""
        self.unread: dict[int, int] = {}
        """Data that the client has not said that it was done with, by stream."""
        self.seen: dict[int, list[Any]] = {}
        """What the client saw of each stream; 0 is the connection."""
        self.refused = False
        """Whether the server has ended the connection."""
        self.left: set[int] = set()
        """Streams that the client has reset."""

    async def deliver(self, *cuts: int) -> None:
        """Let the server read what there is, cut at these places, and the client what it answers."""
        self.bytes += self.client.data_to_send()
        data = bytes(self.bytes)
        self.bytes.clear()
        ends = sorted({cut % len(data) for cut in cuts} - {0}) if data else []
        for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
            if not self.transport.closed and start < end:
                self.protocol.data_received(data[start:end])
        await self.answered()

    async def answered(self) -> None:
        """Let the client read what the server has to say."""
        await _settle()
        while self.transport.written and self.client.state_machine.state is not ConnectionState.CLOSED:
            # One frame after the other: h2 heeds a new limit of their size in the next read only.
            end = HEAD_BYTES + int.from_bytes(self.transport.written[:3], "big")
            data = bytes(self.transport.written[:end])
            del self.transport.written[:end]
            for event in self.client.receive_data(data):
                self._see(event)

    def _see(self, event: Any) -> None:
        match event:
            case ResponseReceived() | TrailersReceived():
                self._of(event.stream_id).append((type(event).__name__, [tuple(one) for one in event.headers]))
            case DataReceived():
                seen = self._of(event.stream_id)
                if seen and isinstance(seen[-1], bytes):
                    seen[-1] += event.data
                else:
                    seen.append(event.data)
                unread = self.unread.get(event.stream_id, 0)
                self.unread[event.stream_id] = unread + event.flow_controlled_length
            case StreamEnded():
                self._of(event.stream_id).append("ended")
            case StreamReset():
                self._of(event.stream_id).append(("reset", event.error_code))
            case ConnectionTerminated():
                self._of(0).append(("terminated", event.error_code))
            case PingAckReceived():
                self._of(0).append(("ping", event.ping_data))
            case SettingsAcknowledged():
                self._of(0).append("settings")

    def _of(self, stream_id: int) -> list[Any]:
        return self.seen.setdefault(stream_id, [])

    def read(self) -> None:
        """Say that everything that came is done with."""
        for stream_id, size in self.unread.items():
            self.client.acknowledge_received_data(size, stream_id)
        self.unread.clear()

    async def end(self) -> None:
        """Let everything end that can."""
        self.service.open.set()
        for _ in range(200):
            self.read()
            for stream_id, stream in self.client.streams.items():
                if stream.open and self.client.state_machine.state is not ConnectionState.CLOSED:
                    self.client.increment_flow_control_window(WINDOW_MIN, stream_id)
                    self.client.increment_flow_control_window(WINDOW_MIN)
            before = str(self.seen)
            await self.deliver()
            if self.transport.closed or str(self.seen) == before:
                break


def _message(request: Any) -> bytes:
    data = request.SerializeToString()
    return struct.pack(">BL", 0, len(data)) + cast(bytes, data)


def _headers(
    path: str, *more: Any, te: str = "trailers", verb: str = "POST", kind: str = "application/grpc"
) -> list[Any]:
    return [
        (":method", verb),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", kind),
        ("te", te),
        *more,
    ]


# --- programs -------------------------------------------------------------------------------------------------------


def _asking(pair: _Pair, stream_id: int, shape: str, headers: list[Any], message: bytes) -> None:
    """Write the frames of one request in a shape."""
    client = pair.client
    if shape == "priority" and _MORE["larger"] not in headers:  # h2 cannot say both.
        client.send_headers(stream_id, headers, priority_weight=7)
    else:
        client.send_headers(stream_id, headers, end_stream=shape == "no data")
    match shape:
        case "no data" | "half":
            pass
        case "padded":
            client.send_data(stream_id, message, end_stream=True, pad_length=3)
        case "parts":
            client.send_data(stream_id, message[:3])
            client.send_data(stream_id, message[3:], end_stream=True)
        case "end alone":
            client.send_data(stream_id, message)
            client.end_stream(stream_id)
        case "windows":
            client.increment_flow_control_window(1000, stream_id)
            client.send_data(stream_id, message, end_stream=True)
            client.increment_flow_control_window(7)
        case _:
            client.send_data(stream_id, message, end_stream=True)


_ONE = pb.ContainerStatusRequest
_REQUESTS: Mapping[str, tuple[str, bytes]] = {
    **{f"answer {size}": ("Version", _message(pb.VersionRequest(version=str(size)))) for size in SIZES},
    "long": ("Version", _message(pb.VersionRequest(version="1 " + "y" * 16_000))),
    "container": ("ContainerStatus", _message(_ONE())),
    "more of it": ("ContainerStatus", _message(_ONE(verbose=True))),
    "missing": ("ContainerStatus", _message(_ONE(container_id="no"))),
    "waiting": ("StopContainer", _message(pb.StopContainerRequest(container_id="c"))),
    "stream": ("StreamContainers", _message(pb.StreamContainersRequest())),
    "not implemented": ("ExecSync", _message(pb.ExecSyncRequest())),
    "unknown": ("Nothing", _message(pb.VersionRequest())),
    "compressed": ("Version", b"\x01\0\0\0\0"),
    "broken": ("Version", b"\0\0\0\0\x02\xff\xff"),
    "empty": ("Version", b""),
    "twice": ("Version", _message(pb.VersionRequest()) * 2),
}
_MORE: Mapping[str, Any] = {
    "timeout": ("grpc-timeout", f"{TIMEOUT_S}S"),
    "other timeout": ("grpc-timeout", "90000m"),
    "no timeout": ("grpc-timeout", "soon"),
    "agent": ("user-agent", "test"),
    "secret": NeverIndexedHeaderTuple("secret", "word"),
    "large": ("large", "z" * 5000),
    "larger": ("larger", "{" * 9_500),
    "bin": ("some-bin", "AAAA"),
    "length": ("content-length", "5"),
}
_FRAMES: Mapping[str, tuple[int, int, int | None, bytes]] = {
    # What no client of h2 would send: kind, flags, stream (None: one that is over), payload.
    "window 0": (8, 0, 0, b"\0\0\0\0"),
    "window too large": (8, 0, 0, b"\x7f\xff\xff\xff"),
    "window of the past": (8, 0, None, b"\0\0\0\x01"),
    "short window": (8, 0, 0, b"\0\0\x01"),
    "data of the past": (0, 1, None, b"\0\0\0\0\0"),
    "headers of the past": (1, 5, None, b"\x82"),
    "headers of a server": (1, 5, 2, b"\x82"),
    "not a block": (1, 4, 0x4001, b"\xff"),
    "reset of the past": (3, 0, None, b"\0\0\0\x08"),
    "continuation": (9, 4, 1, b""),
    "data of nothing": (0, 1, 0x4001, b"\0\0\0\0\0"),
}


class _Program:
    """The steps of a program, by name; what they take is data, so that a failure can be read."""

    def __init__(self, pair: _Pair) -> None:
        self.pair = pair
        self.client = pair.client

    async def call(self, name: str, shape: str, more: Sequence[str], head: Mapping[str, str]) -> None:
        path, message = _REQUESTS[name]
        if "length" in more:  # It is wrong: as for `frame`.
            await self.pair.deliver()
        window = min(self.client.outbound_flow_control_window, self.client.remote_settings.initial_window_size)
        if window > len(message) + 4 and self.client.open_outbound_streams < STREAMS_MAX:
            headers = _headers(RUNTIME + path, *(_MORE[one] for one in more), **head)
            _asking(self.pair, self.client.get_next_available_stream_id(), shape, headers, message)

    async def deliver(self, cuts: list[int]) -> None:
        await self.pair.deliver(*cuts)

    async def frame(self, name: str) -> None:
        """In a read of its own: when one that is wrong has others before it in a read, h2 forgets those."""
        kind, flags, stream_id, payload = _FRAMES[name]
        await self.pair.deliver()
        over = [one for one, seen in self.pair.seen.items() if one and "ended" in seen]
        if not self.pair.transport.closed and (stream_id is not None or over):
            head = frame_head(len(payload), kind, flags, over[0] if stream_id is None else stream_id)
            self.pair.bytes += (head + payload) * 2  # A window may hold one that is too large.
            if kind == DATA:
                self.client.outbound_flow_control_window -= len(payload) * 2
            await self.pair.deliver()

    async def passing(self, seconds: float) -> None:
        await self.pair.deliver()
        cast(_Loop, asyncio.get_running_loop()).passed_s += seconds
        await self.pair.answered()

    async def reset(self, nth: int) -> None:
        streams = [one.stream_id for one in self.client.streams.values() if one.open]
        if streams:
            stream_id = streams[nth % len(streams)]
            self.client.reset_stream(stream_id, ErrorCodes.CANCEL)
            self.pair.left.add(stream_id)

    async def read(self) -> None:
        self.pair.read()

    async def let_go(self) -> None:
        self.pair.service.open.set()

    async def ping(self) -> None:
        self.client.ping(b"12345678")

    async def window(self) -> None:
        self.client.increment_flow_control_window(1000)

    async def table(self, size: int) -> None:
        if size != self.client.encoder.header_table_size:  # Otherwise hpack forgets a change that it has not told yet.
            self.client.encoder.header_table_size = size

    async def setting(self, name: str, value: int) -> None:
        self.client.update_settings({SettingCodes[name]: value})


_USUAL = [*_REQUESTS, *["answer 1", "answer 40000", "long", "container", "missing", "more of it"] * 3]
_SHAPES = ["whole"] * 5 + ["windows"] * 2 + ["padded", "parts", "end alone", "priority", "half", "no data"]
_CALL = st.just("call")
_STEPS = st.one_of(
    *[st.tuples(_CALL, st.sampled_from(_USUAL), st.sampled_from(["whole", "windows"]), st.just([]), st.just({}))] * 6,
    *[
        st.tuples(
            _CALL,
            st.sampled_from(list(_REQUESTS)),
            st.sampled_from(_SHAPES),
            st.lists(st.sampled_from(list(_MORE)), max_size=2),
            st.sampled_from([{}, {}, {}, {}, {"te": "no"}, {"verb": "GET"}, {"kind": "application/json"}]),
        )
    ]
    * 3,
    *[st.tuples(st.just("deliver"), st.just([]) | st.lists(st.integers(0, 100_000), max_size=3))] * 4,
    st.tuples(st.just("frame"), st.sampled_from(list(_FRAMES))),
    st.tuples(st.just("passing"), st.sampled_from([TIMEOUT_S - 1.0, TIMEOUT_S + 1.0])),
    st.tuples(st.just("reset"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["read", "let_go", "ping", "window"])),
    st.tuples(st.just("table"), st.sampled_from([0, 100, 4096])),
    st.tuples(st.just("setting"), st.just("INITIAL_WINDOW_SIZE"), st.sampled_from([0, 1000, 2**20])),
    st.tuples(st.just("setting"), st.just("MAX_FRAME_SIZE"), st.sampled_from([16_384, 60_000])),
)
Step = tuple[Any, ...]


async def _acquainted(*names: str, short: bool = True, window: int = 4 * 2**20) -> _Pair:
    """A pair whose client has asked these things often enough for their header blocks to be known."""
    pair = _Pair(short=short, window=window)
    await pair.deliver()
    await pair.deliver()
    for name in names * 3:
        await _Program(pair).call(name, "whole", [], {})
        await pair.deliver()
    return pair


async def _played(names: list[str], steps: list[Step], *, short: bool, window: int) -> _Pair:
    pair = await _acquainted(*names, short=short, window=window)
    program = _Program(pair)
    for name, *values in steps:
        if pair.transport.closed:
            break
        await getattr(program, name)(*values)
    await pair.end()
    if not pair.transport.closed:
        await program.call("answer 1", "whole", [], {})  # Which also says what size of a table the last steps chose.
        await pair.end()
    pair.refused = pair.transport.closed
    pair.protocol.connection_lost(None)
    await _settle()
    return pair


@settings(max_examples=100, deadline=None)
@given(
    st.just(["answer 1", "container", "waiting", "stream"]) | st.just([]),
    st.lists(_STEPS, min_size=5, max_size=40),
    st.sampled_from([WINDOW_MIN, 4 * 2**20]),
)
def test_client_sees_the_same_as_from_the_libraries_alone(names: list[str], steps: list[Step], window: int) -> None:
    """In every mixture of what it takes and what it leaves to the libraries."""
    short, alone = (_run(_played(names, steps, short=way, window=window)) for way in (True, False))
    assert short.refused == alone.refused
    assert short.left == alone.left
    for stream_id in sorted(short.seen.keys() | alone.seen.keys()):
        if stream_id not in short.left:
            assert short.seen.get(stream_id) == alone.seen.get(stream_id), stream_id
    assert short.server.highest_inbound_stream_id == alone.server.highest_inbound_stream_id
    assert short.server.state_machine.state is alone.server.state_machine.state
    # Asked, it also notes the streams that are over.
    assert short.server.open_inbound_streams == alone.server.open_inbound_streams
    if not short.left:
        assert dict(short.server._closed_streams) == dict(alone.server._closed_streams)
    for pair in (short, alone):
        if not pair.refused:
            _agree(pair)


def _agree(pair: _Pair) -> None:
    """Both sides have the same in their books."""
    server, client = pair.server, pair.client
    assert server.outbound_flow_control_window == client.inbound_flow_control_window
    assert server.inbound_flow_control_window == client.outbound_flow_control_window
    assert server.decoder.header_table.dynamic_entries == client.encoder.header_table.dynamic_entries
    assert client.decoder.header_table.dynamic_entries == server.encoder.header_table.dynamic_entries


# --- what a comparison does not show --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["whole", "windows"])
def test_usual_call_is_answered_in_the_turn_in_which_it_came(shape: str) -> None:
    """This is what the shorter way is for: no task, and no other turn of the loop."""

    async def play() -> None:
        pair = await _acquainted("answer 1")
        await _Program(pair).call("answer 1", shape, [], {})
        pair.protocol.data_received(pair.client.data_to_send())
        assert pair.transport.written
        await pair.answered()
        assert [one[-1] for one in pair.seen.values()][-1] == "ended"

    _run(play())


_REPEATED: list[tuple[str, list[str], dict[str, str]]] = [
    *[(name, [], {}) for name in _REQUESTS],
    *[(name, [more], {}) for name in ("answer 1", "more of it") for more in _MORE],
    *[("answer 1", [], head) for head in ({"te": "no"}, {"verb": "GET"}, {"kind": "application/json"}, {"kind": "x"})],
]


@pytest.mark.parametrize(("name", "more", "head"), _REPEATED)
def test_call_that_is_repeated_is_answered_as_by_the_libraries(
    name: str, more: list[str], head: dict[str, str]
) -> None:
    """Headers and messages with something wrong stay so when they are known."""

    async def play(short: bool) -> list[Any]:
        pair = await _acquainted(short=short)
        for _ in range(5):
            await _Program(pair).call(name, "whole", more, head)
            await pair.deliver()
        return [pair.transport.closed, pair.seen]

    assert _run(play(True)) == _run(play(False))


@pytest.mark.parametrize("name", ["answer 1", "more of it"])
def test_window_that_comes_with_a_call_is_used_for_its_answer(name: str) -> None:
    """Clients send one before each request."""

    async def play() -> None:
        pair = await _acquainted(name)
        await _Program(pair).setting("INITIAL_WINDOW_SIZE", 0)
        await pair.deliver()
        await _Program(pair).call(name, "windows", [], {})
        await pair.deliver()
        assert pair.seen[7][-1] == "ended"

    _run(play())


def test_answer_beyond_the_window_of_its_stream_waits() -> None:
    """Also when the connection would take it."""

    async def play() -> None:
        pair = await _acquainted("answer 1")
        await _Program(pair).setting("INITIAL_WINDOW_SIZE", 1000)
        await pair.deliver()
        await _Program(pair).call("answer 16370", "whole", [], {})
        await pair.deliver()
        assert len(pair.seen[7][-1]) == 1000
        await pair.end()
        assert pair.seen[7][-1] == "ended"

    _run(play())


@pytest.mark.parametrize("short", [True, False])
def test_request_that_is_not_as_long_as_it_says_ends_the_connection(short: bool) -> None:
    """Its header block says the same as those of the calls before, and its message does not."""

    async def play() -> None:
        pair = await _acquainted(short=short)
        for name in ("answer 0", "answer 0", "answer 0", "answer 16370"):
            assert not pair.transport.closed
            path, message = _REQUESTS[name]
            length = ("content-length", str(len(_REQUESTS["answer 0"][1])))
            stream_id = pair.client.get_next_available_stream_id()
            _asking(pair, stream_id, "whole", _headers(RUNTIME + path, length), message)
            await pair.deliver()
        assert pair.transport.closed

    _run(play())


def test_answer_that_waits_goes_on_when_the_connection_may_send_more() -> None:
    """The library waits for what the shorter way reads."""

    async def play() -> None:
        pair = await _acquainted()
        await _Program(pair).setting("INITIAL_WINDOW_SIZE", 2**20)
        await _Program(pair).call("answer 140000", "whole", [], {})
        await pair.deliver()
        assert pair.seen[1][-1] != "ended"
        pair.client.increment_flow_control_window(2**20)
        await pair.deliver()
        assert pair.seen[1][-1] == "ended"

    _run(play())


def test_window_for_requests_is_given_back() -> None:
    """Otherwise a client could say so much and no more."""

    async def play() -> None:
        pair = await _acquainted("answer 1", window=WINDOW_MIN)
        for _ in range(12):
            await _Program(pair).call("long", "whole", [], {})
            await pair.deliver()
        assert [seen[-1] for stream_id, seen in pair.seen.items() if stream_id] == ["ended"] * 15
        _agree(pair)

    _run(play())


def test_answers_leave_nothing_to_complain_of(caplog: pytest.LogCaptureFixture) -> None:
    """grpclib knows that there is nothing more for it to send."""
    logging.disable(logging.NOTSET)
    try:
        with caplog.at_level(logging.INFO, "grpclib"):
            _run(_played(["answer 1", "container", "more of it"], [("let_go",)], short=True, window=WINDOW_MIN))
    finally:
        logging.disable()
    assert not caplog.records


@pytest.mark.parametrize("ended", ["reset", "lost"])
def test_caller_that_leaves_cancels_the_method_that_waits(ended: str) -> None:
    """Cancellation is grpclib's also where it has read no frame of the call."""

    async def play() -> int:
        pair = await _acquainted("waiting")
        before = len(pair.protocol.processor.streams)
        if ended == "reset":
            await _Program(pair).reset(-1)
            await pair.deliver()
            assert len(pair.protocol.processor.streams) == before - 1
        else:
            pair.protocol.connection_lost(None)
            await _settle()
        return pair.service.cancelled

    assert _run(play()) == (1 if ended == "reset" else 3)


@pytest.mark.parametrize("name", ["answer 1", "waiting"])
@pytest.mark.parametrize("short", [True, False])
def test_more_streams_than_were_allowed_end_the_connection(name: str, short: bool) -> None:
    """The bound is h2's on either way; also a call that would be answered at once counts."""

    async def play() -> None:
        pair = await _acquainted("answer 1", "waiting", short=short)
        pair.client.remote_settings.max_concurrent_streams = STREAMS_MAX + 1
        pair.client.remote_settings.acknowledge()
        for wanted in ["waiting"] * (STREAMS_MAX - 3) + [name]:
            assert not pair.transport.closed
            path, message = _REQUESTS[wanted]
            stream_id = pair.client.get_next_available_stream_id()
            _asking(pair, stream_id, "whole", _headers(RUNTIME + path), message)
            await pair.deliver()
        assert pair.transport.closed

    _run(play())


def test_calls_of_one_read_are_answered_up_to_the_bound_of_streams() -> None:
    """No client keeps the loop busy by sending calls as fast as it can."""

    async def play() -> None:
        pair = await _acquainted("answer 1")
        for _ in range(STREAMS_MAX + 20):
            path, message = _REQUESTS["answer 1"]
            stream_id = pair.client.get_next_available_stream_id()
            pair.client.remote_settings.max_concurrent_streams = 2 * STREAMS_MAX
            pair.client.remote_settings.acknowledge()
            _asking(pair, stream_id, "whole", _headers(RUNTIME + path), message)
        pair.protocol.data_received(pair.client.data_to_send())
        assert pair.transport.written.count(b"grpc-status") == STREAMS_MAX
        await pair.answered()
        assert [seen[-1] for stream_id, seen in pair.seen.items() if stream_id] == ["ended"] * (STREAMS_MAX + 23)

    _run(play())


def test_streams_that_are_over_are_forgotten_in_the_end() -> None:
    """A kubelet's connection lives as long as the server, and sees some calls each second."""

    async def play() -> None:
        pair = await _acquainted("answer 1")
        for _ in range(STREAMS_REMEMBERED // 64 + 1):
            for _ in range(64):
                await _Program(pair).call("answer 1", "whole", [], {})
            await pair.deliver()
        assert len(pair.seen) > STREAMS_REMEMBERED
        assert len(pair.server._closed_streams) == STREAMS_REMEMBERED

    _run(play())


def test_slow_reader_gets_no_more_than_fits() -> None:
    """What the transport cannot take yet is not made yet: a client that does not read costs no memory."""

    async def play() -> None:
        pair = await _acquainted("answer 70000")
        pair.protocol.pause_writing()
        for _ in range(9):
            await _Program(pair).call("answer 70000", "whole", [], {})
        await pair.deliver()
        assert not pair.transport.written
        pair.protocol.resume_writing()
        await pair.end()
        assert [seen[-1] for stream_id, seen in pair.seen.items() if stream_id] == ["ended"] * 12

    _run(play())


def test_frame_of_unknown_kind_is_ignored() -> None:
    """RFC 9113, 4.1: clients send such to see that nobody minds."""

    async def play() -> None:
        pair = await _acquainted("answer 1")
        pair.bytes += frame_head(2, 0x55, 0, 0) + b"ab"
        await _Program(pair).call("answer 1", "whole", [], {})
        await pair.deliver()
        assert pair.seen[7][-1] == "ended"

    _run(play())


_FIELDS = st.tuples(
    st.sampled_from([b":path", b"te", b"x"]), st.sampled_from([b"", b"trailers", b"y" * 40, b"z" * 300])
)
_BLOCKS = st.tuples(st.lists(_FIELDS, max_size=4), st.booleans(), st.none() | st.sampled_from([0, 50, 100, 400, 4096]))


@given(st.lists(_BLOCKS, max_size=30))
def test_known_blocks_mean_what_a_decoder_says(
    blocks: list[tuple[list[tuple[bytes, bytes]], bool, int | None]],
) -> None:
    """A block is remembered only for as long as the table is the one that it refers to."""
    encoder, plain, knowing = Encoder(), Decoder(), HeaderBlocks({})
    for fields, secret, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        kind = NeverIndexedHeaderTuple if secret else HeaderTuple
        data = encoder.encode([kind(*field) for field in fields])
        for _ in range(2 if secret else 1):  # Then it changes no table, and may come again.
            assert list(knowing.decode(data, raw=True)) == list(plain.decode(data, raw=True)) == fields
        assert knowing.header_table.dynamic_entries == plain.header_table.dynamic_entries


def test_block_that_resizes_the_table_does_so_each_time() -> None:
    """Though its fields are the same each time."""
    blocks = HeaderBlocks({})
    shrink, grow, secret, added = b"\x20", b"\x3f\xe1\x1f", b"\x10\x01x\x01y", b"\x40\x01x\x01y"
    for data, entries in ((shrink + secret, 0), (grow + secret, 0), (added, 1), (shrink + secret, 0), (added, 0)):
        blocks.decode(data, raw=True)
        assert len(blocks.header_table.dynamic_entries) == entries


def test_blocks_that_are_remembered_have_bounds() -> None:
    """A client may send what it likes, and the server keeps little of it."""
    blocks = HeaderBlocks({})
    for number in range(BLOCKS_MAX * 3):
        blocks.decode(Encoder().encode([NeverIndexedHeaderTuple(b"x", b"%d" % number)]), raw=True)
        assert len(blocks.known) <= BLOCKS_MAX
    blocks.known.clear()
    blocks.decode(Encoder().encode([NeverIndexedHeaderTuple(b"x", b"\x01" * BLOCK_BYTES_MAX)]), raw=True)
    assert not blocks.known
