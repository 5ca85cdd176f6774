"""SPDY/3.1 as Kubernetes speaks it: streams with headers, data in both directions, ends and resets. Both roles. Pure.

Nothing is allocated because a peer names a number: a control frame has a bound that is looked at before its body is
waited for, a header block may inflate to so much only, data is passed on in the pieces in which it came, and streams
beyond the bound are refused one by one. Windows are neither kept nor granted, as in moby/spdystream: what stops a
sender is the socket.

Source: SPDY Protocol, draft 3.1 (chromium.org/spdy/spdy-protocol); moby/spdystream for what it leaves open.
"""

import struct
import zlib
from collections.abc import Mapping

from crio_core.errors import LocalError
from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.values import dataclass

CONTROL_BYTES_MAX = 16 << 10
HEADER_BYTES_MAX = 16 << 10  # one header block, inflated
DATA_BYTES_MAX = (1 << 24) - 1  # of one frame: its length has 24 bits
STREAM_ID_MAX = (1 << 31) - 1

_VERSION = 3
_CONTROL = 0x8000_0000
_FIN = 0x01
_UNIDIRECTIONAL = 0x02
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 1, 3, 5  # statuses of a RST_STREAM

_TWO_WORDS = struct.Struct("!II")
_WORD = struct.Struct("!I")
_SYN_STREAM_HEAD = struct.Struct("!IIBB")

Headers = Mapping[bytes, bytes]


def _dictionary() -> bytes:
    """What header blocks may refer to from the first on: words with their lengths, then a text (section 2.6.10.1)."""
    words = """options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges
        age allow authorization cache-control connection content-base content-encoding content-language content-length
        content-location content-md5 content-range content-type date etag expect expires from host if-match
        if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma
        proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade
        user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie
        keep-alive origin"""
    text = (
        "10010120120220520630030230330430530630740240540640740840941041141241341441541641750250450520"
        "3 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
        "404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul "
        "Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,"
        "image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,"
        "sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
    )
    listed = (word.replace("_", " ").encode() for word in words.split())
    return b"".join(_WORD.pack(len(word)) + word for word in listed) + text.encode()


DICTIONARY = _dictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened:
    """The peer has opened a stream, and waits for `reply` or `reset`."""

    id: int
    headers: Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReplied:
    """The peer has accepted a stream that we opened: from now on it takes data."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamData:
    """Data of a stream, never empty; where frames begin and end means nothing."""

    id: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnded:
    """The peer will send nothing more on a stream; we still may."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReset:
    """A stream is over in both directions."""

    id: int


SpdyEvent = StreamOpened | StreamReplied | StreamData | StreamEnded | StreamReset | Left


class _Open:
    """What is known of one stream."""

    __slots__ = ("ours", "theirs")

    def __init__(self) -> None:
        self.ours = True  # we may send
        self.theirs = True  # the peer may send


class Connection:
    """One side of a SPDY connection."""

    def __init__(self, *, client: bool, streams_max: int) -> None:
        """Begin after the upgrade.

        Args:
            client: Whether this side made the connection: the streams that it opens have odd ids.
            streams_max: How many streams are open at most; one that the peer opens beyond them is refused.
        """
        self._next = 1 if client else 2
        self._peers_last = 0
        self._peers_parity = 0 if client else 1
        self._streams_max = streams_max
        self._streams: dict[int, _Open] = {}
        self._held = b""  # the start of a frame that is not complete: a header of 8 bytes and CONTROL_BYTES_MAX at most
        self._payload_left = 0  # of the data frame that is being read
        self._payload_id = 0
        self._payload_ends = False
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        # Our headers are few and short: a window of 2 KiB costs 10 KiB of memory instead of 256.
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, 11, 1, zdict=DICTIONARY)
        self._out: list[bytes] = []

    def open(self, headers: Headers) -> int:
        """Open a stream, and return its id; the peer takes data when `StreamReplied` has come."""
        stream = self._next
        if stream > STREAM_ID_MAX:
            raise LocalError("this connection has no stream id left")
        self._next += 2
        self._streams[stream] = _Open()
        self._send_control(_SYN_STREAM, 0, _SYN_STREAM_HEAD.pack(stream, 0, 0, 0) + self._deflated(headers))
        return stream

    def reply(self, stream: int) -> None:
        """Accept a stream that the peer has opened."""
        self._send_control(_SYN_REPLY, 0, _WORD.pack(stream) + self._deflated({}))

    def send(self, stream: int, data: bytes) -> None:
        """Send data on a stream; none is sent on one that we have ended or that is over."""
        known = self._streams.get(stream)
        if known is None or not known.ours or not data:
            return
        if len(data) <= DATA_BYTES_MAX:
            self._out += (_TWO_WORDS.pack(stream, len(data)), data)
            return
        for start in range(0, len(data), DATA_BYTES_MAX):
            piece = data[start : start + DATA_BYTES_MAX]
            self._out += (_TWO_WORDS.pack(stream, len(piece)), piece)

    def end(self, stream: int) -> None:
        """Say that nothing more will be sent on a stream."""
        known = self._streams.get(stream)
        if known is not None and known.ours:
            self._out.append(_TWO_WORDS.pack(stream, _FIN << 24))
            known.ours = False
            self._forget_when_over(stream, known)

    def reset(self, stream: int, status: int = CANCEL) -> None:
        """End a stream in both directions."""
        if self._streams.pop(stream, None) is not None:
            self._send_reset(stream, status)

    def go_away(self) -> None:
        """Say that no further stream will be taken."""
        self._send_control(_GOAWAY, 0, _TWO_WORDS.pack(self._peers_last, 0))

    def take(self) -> bytes:
        """What is to be written to the socket now."""
        out = self._out
        if not out:
            return b""
        self._out = []
        return b"".join(out)

    def receive(self, data: bytes) -> list[SpdyEvent]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        if not data:
            return [Left()]
        events: list[SpdyEvent] = []
        if self._held:
            data, self._held = self._held + data, b""
        position, end = 0, len(data)
        while position < end:
            if self._payload_left:
                piece = data[position : position + self._payload_left]
                position += len(piece)
                self._take_payload(piece, events)
                continue
            if end - position < 8:
                break
            word, length = _TWO_WORDS.unpack_from(data, position)
            flags, length = length >> 24, length & DATA_BYTES_MAX
            if not word & _CONTROL:
                position += 8
                self._begin_payload(word, flags, length, events)
                continue
            if length > CONTROL_BYTES_MAX:
                raise ProtocolError(f"a SPDY control frame of {length} bytes: at most {CONTROL_BYTES_MAX} are taken")
            if end - position - 8 < length:
                break
            body = data[position + 8 : position + 8 + length]
            position += 8 + length
            self._take_control(word, flags, body, events)
        self._held = data[position:]
        return events

    def _begin_payload(self, stream: int, flags: int, length: int, events: list[SpdyEvent]) -> None:
        known = self._streams.get(stream)
        if known is None:
            self._check_was_open(stream, "data")
        elif not known.theirs:
            raise ProtocolError(f"data on SPDY stream {stream} after its end")
        self._payload_id, self._payload_left, self._payload_ends = stream, length, bool(flags & _FIN)
        if not length and self._payload_ends:
            self._their_end(stream, events)

    def _take_payload(self, piece: bytes, events: list[SpdyEvent]) -> None:
        self._payload_left -= len(piece)
        if self._payload_id in self._streams:
            events.append(StreamData(id=self._payload_id, data=piece))
        if not self._payload_left and self._payload_ends:
            self._their_end(self._payload_id, events)

    def _take_control(self, word: int, flags: int, body: bytes, events: list[SpdyEvent]) -> None:
        version, kind = (word >> 16) & 0x7FFF, word & 0xFFFF
        if version != _VERSION:
            raise ProtocolError(f"a SPDY control frame of version {version}: expected {_VERSION}")
        if kind == _SYN_STREAM:
            self._take_syn_stream(flags, body, events)
        elif kind == _SYN_REPLY:
            stream = _stream_id(body, 4, "SYN_REPLY")
            self._inflated(body[4:])
            self._take_reply(stream, flags, events)
        elif kind == _RST_STREAM:
            stream = _stream_id(body, 8, "RST_STREAM", exactly=True)
            self._check_was_open(stream, "RST_STREAM")
            if self._streams.pop(stream, None) is not None:
                events.append(StreamReset(id=stream))
        elif kind == _SETTINGS:
            # Nothing that a peer can set means anything here, so a count is only compared with what came.
            if len(body) < 4 or len(body) != 4 + 8 * int.from_bytes(body[:4], "big"):
                raise ProtocolError(f"a SETTINGS frame of {len(body)} bytes does not have as many entries as it says")
        elif kind == _PING:
            self._take_ping(body)
        elif kind == _HEADERS:
            stream = _stream_id(body, 4, "HEADERS")
            self._inflated(body[4:])
            self._check_was_open(stream, "HEADERS")
            if flags & _FIN:
                self._their_end(stream, events)
        elif kind in (_GOAWAY, _WINDOW_UPDATE) and len(body) != 8:
            raise ProtocolError(f"a SPDY control frame of type {kind} with {len(body)} bytes: expected 8")
        # A GOAWAY only announces: streams are ended by themselves, and the connection by its socket. Of types that are
        # not known the specification says to pass over them.

    def _take_syn_stream(self, flags: int, body: bytes, events: list[SpdyEvent]) -> None:
        stream = _stream_id(body, _SYN_STREAM_HEAD.size, "SYN_STREAM")
        headers = self._inflated(body[_SYN_STREAM_HEAD.size :])
        if stream & 1 != self._peers_parity:
            raise ProtocolError(f"the peer opened SPDY stream {stream}, which only we could")
        if stream <= self._peers_last:
            if stream in self._streams:
                raise ProtocolError(f"the peer opened SPDY stream {stream} twice")
            # spdystream numbers streams before it takes turns at writing: one may be overtaken, and is answered so.
            self._send_reset(stream, PROTOCOL_ERROR)
            return
        self._peers_last = stream
        if len(self._streams) >= self._streams_max:
            self._send_reset(stream, REFUSED_STREAM)
            return
        known = self._streams[stream] = _Open()
        known.ours = not flags & _UNIDIRECTIONAL
        events.append(StreamOpened(id=stream, headers=headers))
        if flags & _FIN:
            self._their_end(stream, events)

    def _take_reply(self, stream: int, flags: int, events: list[SpdyEvent]) -> None:
        if stream & 1 == self._peers_parity:
            raise ProtocolError(f"a SYN_REPLY for SPDY stream {stream}, which the peer opened itself")
        self._check_was_open(stream, "SYN_REPLY")
        if stream in self._streams:
            events.append(StreamReplied(id=stream))
            if flags & _FIN:
                self._their_end(stream, events)

    def _take_ping(self, body: bytes) -> None:
        if len(body) != 4:
            raise ProtocolError(f"a PING frame of {len(body)} bytes: expected 4")
        if body[3] & 1 == self._peers_parity:  # else it answers one of ours, and we send none
            self._send_control(_PING, 0, body)

    def _their_end(self, stream: int, events: list[SpdyEvent]) -> None:
        known = self._streams.get(stream)
        if known is not None and known.theirs:
            known.theirs = False
            events.append(StreamEnded(id=stream))
            self._forget_when_over(stream, known)

    def _forget_when_over(self, stream: int, known: _Open) -> None:
        if not known.ours and not known.theirs:
            del self._streams[stream]

    def _check_was_open(self, stream: int, what: str) -> None:
        """Frames for a stream that is over are late; for one that never was they are wrong."""
        last = self._peers_last if stream & 1 == self._peers_parity else self._next - 2
        if stream > last or stream == 0:
            raise ProtocolError(f"{what} for SPDY stream {stream}, which was never opened")

    def _inflated(self, block: bytes) -> Headers:
        try:
            plain = self._inflate.decompress(block, HEADER_BYTES_MAX + 1)
        except zlib.error as error:
            raise ProtocolError(f"a SPDY header block cannot be inflated: {error}") from error
        if len(plain) > HEADER_BYTES_MAX or self._inflate.unconsumed_tail:
            raise ProtocolError(f"a SPDY header block inflates to more than {HEADER_BYTES_MAX} bytes")
        return _parse_headers(plain)

    def _deflated(self, headers: Headers) -> bytes:
        plain = [_WORD.pack(len(headers))]
        for name, value in headers.items():
            plain += (_WORD.pack(len(name)), name, _WORD.pack(len(value)), value)
        return self._deflate.compress(b"".join(plain)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def _send_reset(self, stream: int, status: int) -> None:
        self._send_control(_RST_STREAM, 0, _TWO_WORDS.pack(stream, status))

    def _send_control(self, kind: int, flags: int, body: bytes) -> None:
        self._out += (_TWO_WORDS.pack(_CONTROL | _VERSION << 16 | kind, flags << 24 | len(body)), body)


def _stream_id(body: bytes, size: int, what: str, *, exactly: bool = False) -> int:
    """The stream that a control frame is about, where its body has the size that its type needs."""
    if len(body) < size or (exactly and len(body) != size):
        raise ProtocolError(f"a {what} frame of {len(body)} bytes: expected {'' if exactly else 'at least '}{size}")
    return int.from_bytes(body[:4], "big") & STREAM_ID_MAX


def _parse_headers(plain: bytes) -> Headers:
    """Names and values of a header block; each is as long as it says, and nothing is left over."""
    headers: dict[bytes, bytes] = {}
    position = 4
    count = int.from_bytes(plain[:4], "big")
    # A name and a value take 8 bytes at least: a count beyond that is refused before anything is read.
    if len(plain) < 4 or count * 8 > len(plain) - 4:
        raise ProtocolError(f"a SPDY header block of {len(plain)} bytes says that it has {count} headers")
    for _ in range(count):
        name, position = _counted(plain, position)
        value, position = _counted(plain, position)
        if name in headers:
            raise ProtocolError(f"a SPDY header block has {name[:64]!r} twice")
        headers[name] = value
    if position != len(plain):
        raise ProtocolError(f"a SPDY header block has {len(plain) - position} bytes after its last header")
    return headers


def _counted(plain: bytes, position: int) -> tuple[bytes, int]:
    start = position + 4
    end = start + int.from_bytes(plain[position:start], "big")
    if start > len(plain) or end > len(plain):
        raise ProtocolError("a SPDY header block ends inside a header")
    return plain[start:end], end
