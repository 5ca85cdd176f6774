"""Two sides of a stream joined back to back, with bytes cut into reads as they may be."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from hypothesis import strategies as st

cuts = st.lists(st.integers(1, 5000), min_size=1, max_size=8)
payloads = st.binary(min_size=1, max_size=3000)


class Side(Protocol):
    """What both sides of every stream have."""

    def receive(self, data: bytes) -> list[Any]: ...
    def take(self) -> bytes: ...


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut bytes into reads of these sizes, over and over."""
    position, index = 0, 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        yield data[position : position + size]
        position, index = position + size, index + 1


def fed(side: Side, data: bytes, sizes: list[int]) -> list[Any]:
    """The events of bytes that come in reads of these sizes."""
    return [event for piece in pieces(data, sizes) for event in side.receive(piece)]


def settle(one: Side, other: Side, sizes: list[int]) -> tuple[list[Any], list[Any]]:
    """Carry bytes both ways until neither side has any; the events of both."""
    events: tuple[list[Any], list[Any]] = ([], [])
    while True:
        there, back = one.take(), other.take()
        if not there and not back:
            return events
        events[1].extend(fed(other, there, sizes))
        events[0].extend(fed(one, back, sizes))


def merged(events: list[Any], key: Callable[[Any], Any]) -> list[Any]:
    """Events, with data of the same key that came in several pieces put together; `key` is None for all else."""
    result: list[Any] = []
    for event in events:
        of = key(event)
        if of is not None and result and result[-1][0] == of:
            result[-1] = (of, result[-1][1] + event.data)
        else:
            result.append((of, event.data) if of is not None else (None, event))
    return [event if of is None else (of, event) for of, event in result]
