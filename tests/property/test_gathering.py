"""Writes of one turn of the event loop leave together, in order, and none is held back longer than that."""

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from crio_server.gathering import AT_ONCE_BYTES, GatheringTransport


class _Sink(asyncio.Transport):
    """Keeps what it is told to write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.over = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.over = "closed"

    def abort(self) -> None:
        self.over = "aborted"


def _with_sink(work: Callable[[GatheringTransport, _Sink], None]) -> _Sink:
    """Do something in one turn, and let the next one come."""
    sink = _Sink()

    async def turns() -> None:
        work(GatheringTransport(sink), sink)
        await asyncio.sleep(0)

    asyncio.run(turns())
    return sink


@given(st.lists(st.binary(min_size=1, max_size=AT_ONCE_BYTES // 2), max_size=8))
def test_writes_of_one_turn_leave_in_order_and_as_few(parts: list[bytes]) -> None:
    """An answer is one system call; one that is large is not gathered without end."""

    def write(transport: GatheringTransport, _: _Sink) -> None:
        for part in parts:
            transport.write(part)

    sink = _with_sink(write)
    assert b"".join(sink.written) == b"".join(parts)
    assert all(len(data) < 2 * AT_ONCE_BYTES for data in sink.written)
    assert len(sink.written) <= 1 + sum(map(len, parts)) // AT_ONCE_BYTES


def test_closing_writes_first_and_aborting_does_not() -> None:
    """The last answer of a connection is not lost; an abort wants nothing more to be sent."""

    def close(transport: GatheringTransport, sink: _Sink) -> None:
        transport.write(b"last")
        transport.close()
        assert (sink.written, sink.over) == ([b"last"], "closed")

    def abort(transport: GatheringTransport, _: _Sink) -> None:
        transport.write(b"never")
        transport.abort()

    assert _with_sink(close).written == [b"last"]
    aborted = _with_sink(abort)
    assert (aborted.written, aborted.over) == ([], "aborted")
