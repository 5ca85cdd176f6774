"""Reading CRI logs: the same bytes come out whatever the chunks (R38, R39), and damage never stops the rest."""

import io
import itertools
import os
import tempfile
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from crio_core.logformat import HEADER_BYTES_MAX, Damage, LogParser, Piece
from crio_core.rfc3339 import rfc3339
from crio_server.crioctl.logs import Printer, Wanted, tail_offset

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record as a monitor writes it."""

    stream: str
    full: bool
    data: bytes
    at_s: int

    def encode(self) -> bytes:
        tag = "F" if self.full else "P"
        return f"{rfc3339(self.at_s * SECOND_NS)} {self.stream} {tag} ".encode() + self.data + b"\n"


content = st.binary(max_size=600).map(lambda data: data.replace(b"\n", b""))
records = st.lists(
    st.builds(
        Record,
        stream=st.sampled_from(("stdout", "stderr")),
        full=st.booleans(),
        data=content,
        at_s=st.integers(0, 100),
    ),
    max_size=12,
)


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def printed(data: bytes, cuts: list[int], wanted: Wanted) -> tuple[bytes, bytes, int]:
    out, err, parser = io.BytesIO(), io.BytesIO(), LogParser()
    printer = Printer(wanted, out, err)
    for chunk in chunks_of(data, cuts):
        for item in parser.feed(chunk):
            printer.show(item)
    return out.getvalue(), err.getvalue(), printer.damaged


def expected(given_records: list[Record], stream: str, since_s: int = 0) -> bytes:
    return b"".join(
        record.data + (b"\n" if record.full else b"")
        for record in given_records
        if record.stream == stream and record.at_s >= since_s
    )


@given(records, st.lists(st.integers(0, 10_000), max_size=30), st.integers(0, 100))
def test_joined_records_give_the_original_bytes_for_any_chunks(
    given_records: list[Record], cuts: list[int], since_s: int
) -> None:
    """R38, R39: what the container wrote comes out whole, on the stream it was written to, any length, any chunks."""
    data = b"".join(record.encode() for record in given_records)
    out, err, damaged = printed(data, cuts, Wanted(since_ns=since_s * SECOND_NS))
    assert out == expected(given_records, "stdout", since_s)
    assert err == expected(given_records, "stderr", since_s)
    assert damaged == 0


@given(records, st.lists(st.integers(0, 10_000), max_size=30))
def test_timestamps_stand_at_the_start_of_each_line_only(given_records: list[Record], cuts: list[int]) -> None:
    """The parts of a long line are one line: it has one time, that of its first part."""
    data = b"".join(record.encode() for record in given_records)
    out, _, _ = printed(data, cuts, Wanted(timestamps=True))
    model, fresh = b"", True
    for record in given_records:
        if record.stream == "stdout":
            model += (rfc3339(record.at_s * SECOND_NS).encode() + b" " if fresh else b"") + record.data
            model += b"\n" if record.full else b""
            fresh = record.full
    assert out == model


damage = st.binary(min_size=1, max_size=600).map(lambda data: b"#" + data.replace(b"\n", b"") + b"\n")


@given(st.lists(st.one_of(records.map(lambda some: b"".join(one.encode() for one in some)), damage), max_size=5),
       st.lists(st.integers(0, 10_000), max_size=30))  # fmt: skip
def test_damage_is_counted_and_the_rest_is_printed(parts: list[bytes], cuts: list[int]) -> None:
    """A torn write in the middle costs its own line, not the log; and memory stays bounded by the header."""
    parser = LogParser()
    good, bad = 0, 0
    for chunk in chunks_of(b"".join(parts), cuts):
        for item in parser.feed(chunk):
            good += isinstance(item, Piece) and item.starts_record
            bad += isinstance(item, Damage)
            assert not isinstance(item, Damage) or len(item.line) <= HEADER_BYTES_MAX
    assert bad == sum(part.startswith(b"#") for part in parts)
    assert good == sum(part.count(b"\n") for part in parts if not part.startswith(b"#"))


def lines_from_end(given_records: list[Record], lines: int) -> int:
    """The simple model: the number of records before the last `lines` lines."""
    ends = [index for index, record in enumerate(given_records) if record.full]
    return 0 if lines >= len(ends) else ends[len(ends) - lines - 1] + 1


@given(records, st.integers(0, 8), st.booleans())
def test_tail_begins_where_the_simple_model_says(given_records: list[Record], lines: int, torn: bool) -> None:
    """--tail counts lines and not records, from the end, without reading a large file from its start."""
    encoded = [record.encode() for record in given_records]
    data = b"".join(encoded) + (b"2026-01-01T00:00:00Z stdout P unfinish" if torn else b"")
    with tempfile.TemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        skipped = lines_from_end(given_records, lines)
        assert tail_offset(stream.fileno(), lines) == len(b"".join(encoded[:skipped]))


def test_tail_of_a_file_larger_than_a_block() -> None:
    """Records that lie across the borders of blocks are counted once."""
    record = Record(stream="stdout", full=True, data=b"x" * 1000, at_s=1).encode()
    with tempfile.TemporaryFile() as stream:
        stream.write(record * 500)
        stream.flush()
        for lines in (0, 1, 63, 64, 65, 499, 500, 501):
            assert tail_offset(stream.fileno(), lines) == len(record) * max(0, 500 - lines)
        assert os.fstat(stream.fileno()).st_size == len(record) * 500
