"""The tar reader against Python's own writer, and against archives that nobody honest writes."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crio_core.image import tar

names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120)
sizes = st.integers(0, 3000)


class Feed:
    """Bytes for a reader, in pieces of a given size."""

    def __init__(self, data: bytes, piece: int = 700) -> None:
        self.data = data
        self.at = 0
        self.piece = piece

    def some(self, bytes_max: int) -> memoryview:
        found = self.data[self.at : self.at + min(bytes_max, self.piece)]
        if not found:
            raise tar.TarInvalidError("early end")
        self.at += len(found)
        return memoryview(found)

    def exact(self, size: int) -> bytes:
        if self.at == len(self.data):
            return b""
        found = b""
        while len(found) < size:
            found += self.some(size - len(found))
        return found


def read_all(data: bytes, piece: int = 700) -> list[tuple[tar.Entry, bytes]]:
    feed = Feed(data, piece)
    reader = tar.TarReader(feed.exact, feed.some)
    found = []
    while (entry := reader.next()) is not None:
        content = b""
        while (part := reader.data(1000)) is not None:
            content += part
        found.append((entry, content))
    return found


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            names,
            sizes,
            st.integers(0, 0o7777),
            st.integers(0, 2**31),
            st.integers(0, 2**36).map(lambda eighths: eighths / 8),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(40, 2000),
)
def test_next_reads_what_an_independent_writer_wrote(
    members: list[tuple[str, int, int, int, float]], form: int, piece: int
) -> None:
    """Both long-name extensions, large ids, fractional times: names, data and metadata come back as bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, size, mode, owner, mtime in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.gid, info.mtime = size, mode, owner, owner, mtime
            archive.addfile(info, io.BytesIO(bytes([size % 251]) * size))
    found = read_all(out.getvalue(), piece)
    assert len(found) == len(members)
    for (entry, content), (name, size, mode, owner, mtime) in zip(found, members, strict=True):
        assert entry.name == name.encode()
        assert content == bytes([size % 251]) * size
        assert (entry.mode, entry.uid, entry.gid) == (mode, owner, owner)
        assert abs(entry.mtime_ns - int(mtime * 1e9)) < (10**9 if form == tarfile.GNU_FORMAT else 2**12)


def test_next_keeps_differently_composed_names_apart() -> None:
    """The same letter composed in two ways is two files: a reader that folds them loses one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("e\u0301", "\u00e9"):
            archive.addfile(tarfile.TarInfo(name))
    assert [entry.name for entry, _ in read_all(out.getvalue())] == [b"e\xcc\x81", b"\xc3\xa9"]


def header(name: bytes = b"x", kind: bytes = b"0", size: bytes = b"0", extra: dict[int, bytes] | None = None) -> bytes:
    """A ustar header with a right checksum."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\00000"
    for at, value in (extra or {}).items():
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: dict[str, bytes]) -> bytes:
    body = b""
    for key, value in records.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest)
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    return header(b"pax", b"x", b"%o" % len(body)) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 512,
        header()[:300],
        header(size=b"1000"),
        header(size=b"\xff" * 12),
        header(size=b"9999999999z"),
        header(name=b""),
        header(kind=b"Z"),
        header(kind=b"x", size=b"77777777777"),
        header(kind=b"L", size=b"77777777777"),
        header(kind=b"x", size=b"10") + b"garbage!" + bytes(504),
        pax({"size": b"-5"}) + header(),
        pax({"path": b"a\0b"}) + header(),
        pax({"mtime": b"nan"}) + header(),
        pax({"mtime": b"1.5e-9"}) + header(),
        header(kind=b"g", size=b"0") * 40,
    ],
)
def test_next_of_a_damaged_archive_is_refused(data: bytes) -> None:
    """Each is damaged in another place; none may be taken for an entry."""
    with pytest.raises(tar.TarInvalidError):
        read_all(data)


def test_cve_2025_58183_sparse_map_is_bounded_and_must_add_up() -> None:
    """CVE-2025-58183, CVE-2017-14992: a map of segments is read into memory, so its length has a bound."""
    one = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"100"}
    bombs = [
        pax(one) + header(size=b"1000") + b"99999999\n".ljust(512, b"\0") + bytes(512),
        pax(one) + header(size=b"77777777777") + b"65537\n" + b"0\n0\n" * 300_000,
        pax({"GNU.sparse.size": b"10", "GNU.sparse.map": b"0,1," * 100_000}) + header(),
        pax({"GNU.sparse.size": b"10", "GNU.sparse.map": b"0,1,2"}) + header(),
        pax({"GNU.sparse.size": b"10", "GNU.sparse.map": b"5,3,0,3"}) + header(size=b"6") + bytes(512),
        pax({"GNU.sparse.size": b"4", "GNU.sparse.map": b"0,9"}) + header(size=b"11") + bytes(512),
        header(kind=b"S", size=b"5", extra={386: b"00000000000\0" + b"00000000007\0", 483: b"00000000007\0"})
        + bytes(512),
    ]
    for data in bombs:
        with pytest.raises(tar.TarInvalidError):
            read_all(data)


def test_next_reads_the_sparse_formats() -> None:
    """GNU tar writes four of them; the segments say where the data goes."""
    old = header(kind=b"S", size=b"5", extra={386: b"00000000010\0" + b"00000000005\0", 483: b"00000000020\0"})
    map_1_0 = b"1\n8\n5\n".ljust(512, b"\0") + b"hello".ljust(512, b"\0")
    one = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"16", "GNU.sparse.name": b"n"}
    archives = [
        old + b"hello".ljust(512, b"\0"),
        pax(one) + header(size=b"%o" % 517) + map_1_0,
        pax({"GNU.sparse.size": b"16", "GNU.sparse.map": b"8,5"}) + header(size=b"5") + b"hello".ljust(512, b"\0"),
    ]
    for data in archives:
        [(entry, content)] = read_all(data)
        assert (entry.kind, entry.real_bytes, entry.segments) == (tar.REGULAR, 16, ((8, 5),))
        assert content == b"hello"


@settings(max_examples=200)
@given(st.binary(max_size=2048), st.integers(0, 511), st.binary(min_size=1, max_size=8))
def test_next_of_any_bytes_ends_with_entries_or_a_refusal(tail: bytes, at: int, patch: bytes) -> None:
    """Random bytes, and honest archives with bytes changed: no other exception, no endless reading."""
    honest = pax({"path": b"a/b", "SCHILY.xattr.user.x": b"1"}) + header(size=b"5") + b"hello".ljust(512, b"\0")
    for data in (tail, honest[: 512 + at] + patch + honest[512 + at + len(patch) :] + tail):
        try:
            read_all(data)
        except tar.TarInvalidError:
            continue


def test_next_reads_attributes_and_exact_times() -> None:
    """Capabilities are an attribute; a time has nanoseconds that a float would round."""
    data = pax({"SCHILY.xattr.user.k": b"v\n=w", "mtime": b"1700000000.123456789", "atime": b"-1.5"}) + header()
    [(entry, _)] = read_all(data)
    assert entry.xattrs == ((b"user.k", b"v\n=w"),)
    assert (entry.mtime_ns, entry.atime_ns) == (1_700_000_000_123_456_789, -1_500_000_000)
