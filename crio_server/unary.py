"""Unary calls of the usual shape: what a kubelet asks all day, past the generality of h2 and grpclib.

The libraries own every connection: its settings, its windows, its streams, its end. A call whose frames came whole in
one read, and whose header block was decoded before, goes a shorter way beside them, at any time, and leaves the books
of h2 as h2 would have left them itself. Everything else goes to h2, byte by byte: the first calls of a connection, what
is padded, continued, prioritized, cut in pieces or wrong, and whatever comes when a limit is reached.

1. A header block that changes no table always means the same until something else changes the table, so it is decoded
   once (`HeaderBlocks`); h2 itself has the use of that too.
2. A method that is a plain function (`services/rpc.py`) is answered before the next frame is looked at: no stream and
   no task come into being, and the deadline cannot pass. It only asks, so if it fails or cannot answer at once, the
   call is given to the libraries as if nothing had been.
3. All others are opened as streams of h2 and of grpclib, without a frame of either: deadlines, cancellation and the end
   of the connection are grpclib's.

This relies on what is private in h2 4 and grpclib 0.4 (their books); `tests/property/test_unary.py` plays the same
frames to the libraries alone and compares what a client sees and what the books say.
"""

import time
from asyncio import BaseTransport, Transport
from collections.abc import Iterable, Mapping
from inspect import iscoroutine
from typing import cast

from google.protobuf.message import Message
from grpclib.encoding.base import GRPC_CONTENT_TYPE
from grpclib.encoding.proto import ProtoCodec
from grpclib.metadata import decode_timeout
from grpclib.protocol import H2Protocol
from h2.connection import AllowedStreamIDs, H2Connection
from h2.events import UnknownFrameReceived
from h2.stream import StreamClosedBy
from h2.utilities import SizeLimitDict
from hpack import Decoder, HeaderTuple

from crio_core.values import dataclass
from crio_server.answers import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD,
    HEADERS,
    MESSAGE_HEAD_BYTES,
    WINDOW_UPDATE,
    answer_frames,
    frame_head,
    may_send,
)
from crio_server.gathering import GatheringTransport
from crio_server.services.rpc import AtOnce, serialized

HEAD_BYTES = FRAME_HEAD.size
WINDOW_UPDATE_BYTES = 4
BLOCK_BYTES_MAX = 512
BLOCKS_MAX = 64
"""How long header blocks are, and how many of one connection, that are remembered."""
STREAMS_REMEMBERED = 1024
"""Of how many streams that are over it is known how they ended, so that a late frame gets the right error. h2 would
keep 65,536, which a kubelet has asked for after half a day: 9 MB."""
WINDOW_MAX = 2**31 - 1
_HEADER_ENCODING = "ascii"  # As grpclib has h2 decode them.
_SIZE_UPDATE = 0x20
"""The first three bits of a block that begins with a new size of the table (RFC 7541, 6.3): 001."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A header block that was decoded: its fields, and what is to be done with a call that has them."""

    headers: list[HeaderTuple]
    usual: bool
    """h2 has nothing to check in it."""
    at_once: AtOnce | None


class HeaderBlocks(Decoder):
    """A decoder that remembers blocks for as long as they mean the same.

    Args:
        methods: Those that answer at once, by path.
    """

    def __init__(self, methods: Mapping[str, AtOnce]) -> None:
        super().__init__()
        self._methods = methods
        self.known: dict[bytes, _Known] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        if raw and (known := self.known.get(data)) is not None:
            return known.headers
        entries = self.header_table.dynamic_entries
        before = (len(entries), entries[0] if entries else None)
        try:
            headers = list(super().decode(data, raw))
        except BaseException:
            self.known.clear()
            raise
        # What is added comes first, as an object of its own; only a new size takes away without adding.
        changed = len(entries) != before[0] or (entries[0] if entries else None) is not before[1]
        if changed or (data[:1] and data[0] & 0xE0 == _SIZE_UPDATE):
            self.known.clear()
        elif raw and len(data) <= BLOCK_BYTES_MAX:
            if len(self.known) >= BLOCKS_MAX:
                self.known.clear()
            self.known[data] = self._learn(headers)
        return headers

    def _learn(self, headers: list[HeaderTuple]) -> _Known:
        names = {name for name, _ in headers}
        usual = names.isdisjoint((b":status", b"content-length"))
        try:
            fields = [(name.decode(_HEADER_ENCODING), value.decode(_HEADER_ENCODING)) for name, value in headers]
        except UnicodeDecodeError:
            return _Known(headers=headers, usual=False, at_once=None)
        method = self._methods.get(dict(fields).get(":path", ""))
        return _Known(headers=headers, usual=usual, at_once=method if usual and _is_plain(fields) else None)


def _is_plain(fields: list[tuple[str, str]]) -> bool:
    """Whether grpclib would call the method, with time left and nothing else to decode; its rules, the stricter way."""
    last = dict(fields)
    base, _, kind = last.get("content-type", "").partition("+")
    try:
        in_time = all(decode_timeout(value) > 0 for name, value in fields if name == "grpc-timeout")
    except ValueError:
        return False
    return (
        in_time
        and last.get(":method") == "POST"
        and base == GRPC_CONTENT_TYPE
        and kind in ("", ProtoCodec.__content_subtype__)
        and last.get("te") == "trailers"
        and not any(name.endswith("-bin") for name in last)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A call as it came: where its frames end, and what they say."""

    stream_id: int
    known: _Known
    payload: bytes
    """Of its one DATA frame: a gRPC message with its head."""
    window: int
    """What the peer added to the stream's window for sending."""
    end: int


class UnaryProtocol(H2Protocol):
    """grpclib's connection of a server, with the shorter way.

    Args:
        library: The one that it stands for, before any connection.
        methods: Those that answer at once, by path.
    """

    def __init__(self, library: H2Protocol, methods: Mapping[str, AtOnce]) -> None:
        super().__init__(library.handler, library.config, library.h2_config)
        self._methods = methods

    def connection_made(self, transport: BaseTransport) -> None:
        self._writer = GatheringTransport(cast(Transport, transport))
        self._answered_now = 0
        """Calls of this read that are answered already. They count as open: who sent them could not know."""
        super().connection_made(self._writer)
        self._h2: H2Connection = self.connection._connection
        self._decoder = HeaderBlocks(self._methods)
        self._decoder.max_header_list_size = self._h2.decoder.max_header_list_size
        self._h2.decoder = self._decoder
        self._h2._closed_streams = SizeLimitDict(size_limit=STREAMS_REMEMBERED)
        # grpclib ends a connection over a frame that HTTP/2 wants ignored (RFC 9113, 4.1).
        self.processor.processors[UnknownFrameReceived] = self.processor.process_settings_acknowledged

    def data_received(self, data: bytes) -> None:
        at = self._answered_now = 0
        buffered = self._h2.incoming_buffer
        if not (buffered._data or buffered._headers_buffer):
            while at < len(data) and (end := self._taken(data, at)):
                at = end
        if at < len(data):
            super().data_received(data[at:] if at else data)

    def _taken(self, data: bytes, at: int) -> int:
        """Do what the next frames say, and return where they end; 0 if it is for h2, and nothing was done."""
        if len(data) - at < HEAD_BYTES:
            return 0
        kind, stream_id = data[at + 3], data[at + 8]
        if kind == WINDOW_UPDATE and stream_id == 0:
            return self._window_updated(data, at)
        if kind != HEADERS or (call := self._read(data, at)) is None or not self._may_begin(call):
            return 0
        if call.known.at_once is None or not self._answered(call, call.known.at_once):
            self._open(call)
        return call.end

    def _window_updated(self, data: bytes, at: int) -> int:
        """Let the connection send more."""
        end = at + HEAD_BYTES + WINDOW_UPDATE_BYTES
        window = self._h2.outbound_flow_control_window + (added := _increment(data, at, 0))
        if not added or window > WINDOW_MAX or not may_send(self._h2, 0):
            return 0
        self._h2.outbound_flow_control_window = window
        for stream in self.processor.streams.values():
            stream.window_updated.set()
        return end

    def _read(self, data: bytes, at: int) -> _Call | None:
        """The call whose frames begin here, if it is whole and of the usual shape."""
        high, low, _, flags, stream_id = FRAME_HEAD.unpack_from(data, at)
        at += HEAD_BYTES
        end = at + (high << 8 | low)
        known = self._decoder.known.get(data[at:end])
        if known is None or not known.usual or flags != END_HEADERS:
            return None
        window = 0
        while (at := end + HEAD_BYTES) <= len(data):
            high, low, kind, flags, of = FRAME_HEAD.unpack_from(data, end)
            length = high << 8 | low
            if kind == WINDOW_UPDATE and (added := _increment(data, end, stream_id)):
                window += added
                end = at + length
                continue
            end = at + length
            if kind != DATA or flags != END_STREAM or of != stream_id or end > len(data):
                return None
            return _Call(stream_id=stream_id, known=known, payload=data[at:end], window=window, end=end)
        return None

    def _may_begin(self, call: _Call) -> bool:
        """Whether h2 would take the call, without a word to the peer but an answer."""
        h2, size = self._h2, len(call.payload)
        local = h2.local_settings
        return (
            may_send(h2, 0)
            and h2.highest_inbound_stream_id < call.stream_id <= h2.HIGHEST_ALLOWED_STREAM_ID
            and call.stream_id % 2 == AllowedStreamIDs.ODD
            # So it is also less than half of a stream's window, from where on h2 gives back of that.
            and size <= min(h2.max_inbound_frame_size, h2.inbound_flow_control_window)
            and h2.remote_settings.initial_window_size + call.window <= WINDOW_MAX
            and h2.open_inbound_streams + self._answered_now < local.max_concurrent_streams
        )

    def _answered(self, call: _Call, known: AtOnce) -> bool:
        """Ask the method and send its answer; False if the libraries have to, and nothing was done."""
        began_s = time.monotonic()
        h2, payload = self._h2, call.payload
        length = int.from_bytes(payload[1:MESSAGE_HEAD_BYTES], "big")
        if payload[:1] != b"\0" or length != len(payload) - MESSAGE_HEAD_BYTES:
            return False
        if not self.connection.write_ready.is_set():
            return False
        try:
            reply = known.method(known.request_type.FromString(payload[MESSAGE_HEAD_BYTES:]))
        except Exception:  # The libraries will ask again, and say why; a question changes nothing.
            return False
        if not isinstance(reply, bytes | Message):
            if iscoroutine(reply):
                reply.close()
            return False
        body = serialized(reply)
        size = MESSAGE_HEAD_BYTES + len(body)
        if size > h2.remote_settings.initial_window_size + call.window or not may_send(h2, size):
            return False
        frames = answer_frames(call.stream_id, body, h2.max_outbound_frame_size)
        if given_back := self._take_in(len(payload)):
            frames = frame_head(WINDOW_UPDATE_BYTES, WINDOW_UPDATE, 0, 0) + given_back.to_bytes(4, "big") + frames
        h2.highest_inbound_stream_id = call.stream_id
        h2._closed_streams[call.stream_id] = StreamClosedBy.SEND_END_STREAM
        h2.outbound_flow_control_window -= size
        self._answered_now += 1
        self._writer.write_now(frames)
        self.connection.data_send_process()
        known.tally.observe(time.monotonic() - began_s)
        return True

    def _take_in(self, size: int) -> int:
        """Count data that came and is done with; returns what the peer is to be given back of the window."""
        window = self._h2._inbound_flow_control_window_manager
        window.window_consumed(size)
        return window.process_bytes(size) or 0

    def _open(self, call: _Call) -> None:
        """Begin the call in the books of h2 and of grpclib, as if they had read its frames."""
        stream = self._h2._begin_new_stream(call.stream_id, AllowedStreamIDs.ODD)
        _, events = stream.receive_headers(call.known.headers, False, _HEADER_ENCODING)
        if call.window:
            events += stream.receive_window_update(call.window)[1]
        size = len(call.payload)
        self._h2._inbound_flow_control_window_manager.window_consumed(size)
        events += stream.receive_data(call.payload, True, size)[1]
        for event in events:
            self.processor.process(event)


def _increment(data: bytes, at: int, stream_id: int) -> int:
    """What a whole and valid WINDOW_UPDATE of the stream adds; 0 if there is none."""
    end = at + HEAD_BYTES + WINDOW_UPDATE_BYTES
    high, low, _, _, of = FRAME_HEAD.unpack_from(data, at)
    if end > len(data) or of != stream_id or high << 8 | low != WINDOW_UPDATE_BYTES:
        return 0
    added = int.from_bytes(data[at + HEAD_BYTES : end], "big")
    return added if added <= WINDOW_MAX else 0
