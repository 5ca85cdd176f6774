"""Reading tar archives: the entries of a layer, exactly as they were written (POSIX pax and ustar, GNU extensions).

Names stay bytes and are never converted: C libraries that decode them fold differently composed characters into one
name, which joins two files of an image. Every length that an archive states is bounded before anything is kept.
The reader pulls bytes from two functions that its caller gives; it touches nothing else.

This module is imported by the unpacking process, whose start is on the path of every layer: it uses plain classes
with slots where `dataclasses` would cost more to import than everything else here.
"""

from collections.abc import Callable

BLOCK_BYTES = 512
SPECIAL_BYTES_MAX = 1024 * 1024
SPECIALS_IN_A_ROW_MAX = 16
SPARSE_SEGMENTS_MAX = 65536
XATTRS_MAX = 256
NS_MAX = 2**63 - 1

REGULAR, HARDLINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_HEADER_ONLY = frozenset({HARDLINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO})
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_XATTR_PREFIX = b"SCHILY.xattr."

ReadExact = Callable[[int], bytes]
ReadSome = Callable[[int], memoryview]


class TarInvalidError(ValueError):
    """The archive is damaged, or states something that no honest archive does."""


class Entry:
    """One member of an archive; `size_bytes` counts the data that follows, `real_bytes` the file that it makes."""

    __slots__ = (
        "atime_ns",
        "device_major",
        "device_minor",
        "gid",
        "kind",
        "link",
        "mode",
        "mtime_ns",
        "name",
        "real_bytes",
        "segments",
        "size_bytes",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name = b""
        self.kind = REGULAR
        self.link = b""
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.size_bytes = 0
        self.real_bytes = 0
        self.mtime_ns = 0
        self.atime_ns: int | None = None
        self.device_major = 0
        self.device_minor = 0
        self.xattrs: tuple[tuple[bytes, bytes], ...] = ()
        self.segments: tuple[tuple[int, int], ...] | None = None


class TarReader:
    """Entries of an archive, one at a time, with their data between.

    Args:
        read_exact: Gives exactly that many bytes, or `b""` at a clean end; raises at an early one.
        read_some: Gives between one and that many bytes; raises at the end.
    """

    def __init__(self, read_exact: ReadExact, read_some: ReadSome) -> None:
        self._read_exact = read_exact
        self._read_some = read_some
        self._left_bytes = 0
        self._padding_bytes = 0

    def next(self) -> Entry | None:
        """The next entry, skipping what is unread of the last one; None at the end of the archive.

        Raises:
            TarInvalidError: The archive is damaged.
        """
        self._skip()
        pax: dict[bytes, bytes] = {}
        sparse_pairs: list[tuple[bytes, bytes]] = []
        long_name = long_link = None
        for _ in range(SPECIALS_IN_A_ROW_MAX):
            header = self._read_exact(BLOCK_BYTES)
            if not header or header == _ZERO_BLOCK:
                return None
            kind = _check(header)
            if kind in (b"x", b"X"):
                pax, sparse_pairs = _pax(self._special(header))
            elif kind == b"g":
                self._special(header)
            elif kind == b"L":
                long_name = self._special(header).partition(b"\0")[0]
            elif kind == b"K":
                long_link = self._special(header).partition(b"\0")[0]
            else:
                entry = _entry(header, kind)
                entry.name = long_name if long_name is not None else entry.name
                entry.link = long_link if long_link is not None else entry.link
                if pax:
                    _apply_pax(entry, pax)
                return self._begin(entry, header, pax, sparse_pairs)
        raise TarInvalidError(f"more than {SPECIALS_IN_A_ROW_MAX} extension headers before one entry")

    def data(self, bytes_max: int) -> memoryview | None:
        """More of the entry's data, or None when all of it was read."""
        if not self._left_bytes:
            return None
        chunk = self._read_some(min(bytes_max, self._left_bytes))
        self._left_bytes -= len(chunk)
        return chunk

    def _begin(
        self, entry: Entry, header: bytes, pax: dict[bytes, bytes], sparse_pairs: list[tuple[bytes, bytes]]
    ) -> Entry:
        if entry.kind in _HEADER_ONLY:
            entry.size_bytes = 0
        self._left_bytes = entry.size_bytes
        self._padding_bytes = -entry.size_bytes % BLOCK_BYTES
        entry.real_bytes = entry.size_bytes
        if entry.kind == b"S":
            entry.kind = REGULAR
            entry.real_bytes = _number(header[483:495])
            entry.segments = self._old_sparse(header)
        elif pax and entry.kind == REGULAR and (found := self._pax_sparse(pax, sparse_pairs)) is not None:
            entry.segments, entry.real_bytes = found
            entry.name = pax.get(b"GNU.sparse.name", entry.name)
            entry.size_bytes = self._left_bytes
        if entry.segments is not None:
            _check_segments(entry)
        if not entry.name or b"\0" in entry.name or b"\0" in entry.link:
            raise TarInvalidError("an entry has no name, or a NUL in its name or link")
        return entry

    def _skip(self) -> None:
        left = self._left_bytes + self._padding_bytes
        self._left_bytes = self._padding_bytes = 0
        while left:
            left -= len(self._read_some(left))

    def _special(self, header: bytes) -> bytes:
        size = _number(header[124:136])
        if size > SPECIAL_BYTES_MAX:
            raise TarInvalidError(f"an extension header has {size} bytes, at most {SPECIAL_BYTES_MAX} are read")
        return self._need(size + (-size % BLOCK_BYTES))[:size]

    def _need(self, size: int) -> bytes:
        if not size:
            return b""
        found = self._read_exact(size)
        if len(found) != size:
            raise TarInvalidError("the archive ends in the middle of an entry")
        return found

    def _old_sparse(self, header: bytes) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        block, start, count, more_at = header, 386, 4, 482
        while True:
            for index in range(count):
                at = start + 24 * index
                if not block[at] and not block[at + 12]:
                    break
                found.append((_number(block[at : at + 12]), _number(block[at + 12 : at + 24])))
            if not block[more_at]:
                return tuple(found)
            if len(found) > SPARSE_SEGMENTS_MAX:
                raise TarInvalidError(f"a sparse file has more than {SPARSE_SEGMENTS_MAX} segments")
            block, start, count, more_at = self._need(BLOCK_BYTES), 0, 21, 504

    def _pax_sparse(
        self, pax: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]
    ) -> tuple[tuple[tuple[int, int], ...], int] | None:
        """The segments and real size of a sparse file in one of GNU's pax formats (0.0, 0.1, 1.0), if it is one."""
        if pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            return self._sparse_map_in_data(), _decimal(pax.get(b"GNU.sparse.realsize", b""))
        real = pax.get(b"GNU.sparse.size")
        if real is None:
            return None
        if b"GNU.sparse.map" in pax:
            numbers = [_decimal(word) for word in pax[b"GNU.sparse.map"].split(b",") if word]
        else:
            numbers = [_decimal(value) for pair in pairs for value in pair]
        if len(numbers) % 2 or len(numbers) > 2 * SPARSE_SEGMENTS_MAX:
            raise TarInvalidError("a sparse map is not a bounded list of pairs")
        return tuple(zip(numbers[::2], numbers[1::2], strict=True)), _decimal(real)

    def _sparse_map_in_data(self) -> tuple[tuple[int, int], ...]:
        """The map of format 1.0: decimal lines before the data, filled up to a block."""
        lines: list[bytes] = []
        rest = b""
        wanted = 1
        while len(lines) < wanted:
            if self._left_bytes < BLOCK_BYTES:
                raise TarInvalidError("a sparse map is longer than its entry")
            rest += self._need(BLOCK_BYTES)
            self._left_bytes -= BLOCK_BYTES
            *complete, rest = rest.split(b"\n")
            lines += complete
            if lines:
                wanted = 1 + 2 * _decimal(lines[0])
            if wanted > 1 + 2 * SPARSE_SEGMENTS_MAX or len(rest) > BLOCK_BYTES:
                raise TarInvalidError(f"a sparse file has more than {SPARSE_SEGMENTS_MAX} segments")
        numbers = [_decimal(line) for line in lines[1:wanted]]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _check(header: bytes) -> bytes:
    """The kind of an entry whose checksum is right."""
    if len(header) != BLOCK_BYTES:
        raise TarInvalidError("the archive ends in the middle of a header")
    stated = _number(header[148:156])
    if sum(header) - sum(header[148:156]) + 256 != stated:
        signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 256
        if signed != stated:
            raise TarInvalidError("a header's checksum is wrong: damaged, or not a tar archive")
    kind = header[156:157]
    if kind in (b"\0", b"7"):
        return DIRECTORY if kind == b"\0" and _text(header[:100]).endswith(b"/") else REGULAR
    return kind


def _entry(header: bytes, kind: bytes) -> Entry:
    if kind not in _HEADER_ONLY and kind not in (REGULAR, b"S"):
        raise TarInvalidError(f"an entry is of the unknown kind {kind!r}")
    entry = Entry()
    entry.kind = kind
    entry.name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        entry.name = _text(header[345:500]) + b"/" + entry.name
    entry.mode = _number(header[100:108]) & 0o7777
    entry.uid = _number(header[108:116])
    entry.gid = _number(header[116:124])
    entry.size_bytes = _number(header[124:136])
    entry.mtime_ns = _clamp_ns(_number(header[136:148], signed=True) * 1_000_000_000)
    entry.link = _text(header[157:257])
    if kind in (CHAR_DEVICE, BLOCK_DEVICE):
        entry.device_major = _number(header[329:337])
        entry.device_minor = _number(header[337:345])
    return entry


def _apply_pax(entry: Entry, pax: dict[bytes, bytes]) -> None:
    xattrs = []
    for key, value in pax.items():
        if key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size_bytes = _decimal(value)
        elif key == b"uid":
            entry.uid = _decimal(value)
        elif key == b"gid":
            entry.gid = _decimal(value)
        elif key == b"mtime":
            entry.mtime_ns = _time_ns(value)
        elif key == b"atime":
            entry.atime_ns = _time_ns(value)
        elif key.startswith(_XATTR_PREFIX):
            xattrs.append((key[len(_XATTR_PREFIX) :], value))
    if len(xattrs) > XATTRS_MAX:
        raise TarInvalidError(f"an entry has more than {XATTRS_MAX} extended attributes")
    entry.xattrs = tuple(xattrs)


def _pax(body: bytes) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Records `length key=value\\n`; the repeated pairs of GNU's sparse format 0.0 are kept in order beside them."""
    found: dict[bytes, bytes] = {}
    pairs: list[tuple[bytes, bytes]] = []
    offset = b""
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 12)
        length = _decimal(body[position:space]) if space > 0 else 0
        end = position + length
        equals = body.find(b"=", space, end)
        if space < 0 or end > len(body) or equals < 0 or body[end - 1 : end] != b"\n":
            raise TarInvalidError("a pax header is damaged")
        key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
        if key == b"GNU.sparse.offset":
            offset = value
        elif key == b"GNU.sparse.numbytes":
            pairs.append((offset, value))
        else:
            found[key] = value
        position = end
    return {key: value for key, value in found.items() if value}, pairs


def _check_segments(entry: Entry) -> None:
    """Segments must be in order, apart, inside the file, and as long as the data together."""
    total = end = 0
    for offset, length in entry.segments or ():
        if offset < end:
            raise TarInvalidError("the segments of a sparse file overlap")
        end = offset + length
        total += length
    if end > entry.real_bytes or total != entry.size_bytes:
        raise TarInvalidError("the segments of a sparse file do not add up")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, *, signed: bool = False) -> int:
    """An octal field, or GNU's base-256 for what octal cannot hold."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
    else:
        digits = field.strip(b" \0")
        try:
            value = int(digits, 8) if digits else 0
        except ValueError as error:
            raise TarInvalidError(f"a header has {field!r} where a number should be") from error
    if value < 0 and not signed:
        raise TarInvalidError("a header has a negative number")
    if value > NS_MAX:
        raise TarInvalidError("a header has a number above 63 bits")
    return value


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarInvalidError(f"a pax header has {text[:40]!r} where a number should be")
    return int(text)


def _time_ns(text: bytes) -> int:
    """Seconds with a decimal fraction, exactly (a float would lose nanoseconds)."""
    whole, _, fraction = text.partition(b".")
    if fraction and not fraction.isdigit():
        raise TarInvalidError(f"a pax header has {text[:40]!r} where a time should be")
    negative = whole.startswith(b"-")
    seconds = _decimal(whole.lstrip(b"-"))
    nanos = _decimal(fraction[:9].ljust(9, b"0")) if fraction else 0
    total = seconds * 1_000_000_000 + nanos
    return _clamp_ns(-total if negative else total)


def _clamp_ns(value: int) -> int:
    return max(-NS_MAX, min(NS_MAX, value))
