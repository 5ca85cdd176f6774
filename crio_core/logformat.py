"""The CRI log format, read from any chunks: `2016-10-06T00:17:09.669794202Z stdout P content`. Pure.

A record ends with a newline. Its tag says whether it ends a line of the container's output (`F`) or is a part of one
(`P`); the parts of one line are joined by writing them out without a newline between. Nothing is collected: what comes
is passed on, so a line of any length needs no more memory than one chunk.
Source: kubernetes/community, contributors/design-proposals/node/kubelet-cri-logging.md.
"""

from collections.abc import Iterator

from crio_core.rfc3339 import parse_rfc3339_ns
from crio_core.values import dataclass

HEADER_BYTES_MAX = 256  # time, stream and tag; a longer start without a record in it is damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of one record's content."""

    stream: str
    time: str
    time_ns: int
    starts_record: bool
    ends_line: bool  # the last piece of a record tagged F
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes up to a newline that are not a record, cut to a bound."""

    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    stream: str
    time: str
    time_ns: int
    full: bool


class LogParser:
    """Takes chunks of a log file in order, and yields what is in them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget an incomplete record: the file was truncated or replaced."""
        self._pending = b""  # the start of a record whose header is not complete, at most HEADER_BYTES_MAX
        self._header: _Header | None = None
        self._fresh = False  # the open record has not yielded yet
        self._skipping = False  # inside a damaged line

    def feed(self, chunk: bytes) -> Iterator[Piece | Damage]:
        """Yield the pieces in the next chunk."""
        rest = self._pending + chunk
        self._pending = b""
        while rest:
            content, newline, after = rest.partition(b"\n")
            if self._skipping:
                self._skipping = not newline
                rest = after
            elif self._header is not None:
                yield from self._content(self._header, content, ended=bool(newline))
                rest = after
            else:
                parsed = parse_header(content)
                if parsed is not None:
                    self._header, body = parsed
                    self._fresh = True
                    rest = body + newline + after
                    if not rest:
                        return
                elif newline or len(content) >= HEADER_BYTES_MAX:
                    self._skipping = not newline
                    rest = after
                    yield Damage(line=content[:HEADER_BYTES_MAX])
                else:
                    self._pending = rest
                    return

    def _content(self, header: _Header, content: bytes, *, ended: bool) -> Iterator[Piece]:
        fresh, self._fresh = self._fresh, False
        if ended:
            self._header = None
        if content or ended:
            yield Piece(
                stream=header.stream,
                time=header.time,
                time_ns=header.time_ns,
                starts_record=fresh,
                ends_line=ended and header.full,
                data=content,
            )


def parse_header(line: bytes) -> tuple[_Header, bytes] | None:
    """The header at the start of a record and what follows it; None when it is not there (yet)."""
    fields = line[:HEADER_BYTES_MAX].split(b" ", 3)
    if len(fields) < 4 or fields[1] not in (b"stdout", b"stderr") or not fields[0].isascii():
        return None
    time, stream = fields[0].decode(), fields[1].decode()
    tag = fields[2].partition(b":")[0]
    if tag not in (b"F", b"P"):
        return None
    try:
        time_ns = parse_rfc3339_ns(time)
    except ValueError:
        return None
    start = len(fields[0]) + len(fields[1]) + len(fields[2]) + 3
    return _Header(stream=stream, time=time, time_ns=time_ns, full=tag == b"F"), line[start:]
