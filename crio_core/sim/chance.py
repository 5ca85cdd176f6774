"""Chance from a seed: the same on every machine, cheap, and split by purpose (SplitMix64, Steele et al. 2014)."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from math import ceil
from struct import Struct
from typing import TypeVar

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_LANES = 16
"""Numbers that are made at once, each in 128 bits of one great number: its sums and products stay in there."""
_ONES = sum(1 << 128 * lane for lane in range(_LANES))
_LOW = _ONES * _MASK
_STEPS = sum((lane + 1) * _GAMMA << 128 * lane for lane in range(_LANES))
_UNPACK = Struct("<" + "Q8x" * _LANES).unpack

T = TypeVar("T")


def _blocks(state: int) -> Iterator[tuple[int, ...]]:
    """The numbers that follow from a state."""
    while True:
        mixed = (state * _ONES + _STEPS) & _LOW
        mixed = ((mixed ^ (mixed >> 30 & _LOW)) * 0xBF58476D1CE4E5B9) & _LOW
        mixed = ((mixed ^ (mixed >> 27 & _LOW)) * 0x94D049BB133111EB) & _LOW
        mixed ^= mixed >> 31 & _LOW
        yield _UNPACK(mixed.to_bytes(16 * _LANES, "little"))
        state = (state + _LANES * _GAMMA) & _MASK


@cache
def _limit_of(probability: float) -> int:
    """Below it are as many of all 64-bit numbers; numbers of two kinds are slow to compare."""
    return ceil(probability * 2.0**64)


class Chance:
    """A stream of numbers that depends on nothing but its seed."""

    __slots__ = ("bits",)

    def __init__(self, seed: int) -> None:
        # Mixed twice, so that neighbouring seeds share nothing of their streams.
        first, second, *_ = next(_blocks(seed & _MASK))
        self.bits: Callable[[], int] = chain.from_iterable(_blocks(first ^ (second << 1 & _MASK))).__next__
        """64 bits."""

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1; `limit` is at least 1."""
        return (self.bits() * limit) >> 64

    def happens(self, probability: float) -> bool:
        """True that often; draws nothing when it cannot be true, so that faults switched off disturb nothing else."""
        return probability > 0 and self.bits() < _limit_of(probability)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def split(self) -> "Chance":
        """Another stream, for a purpose of its own."""
        return Chance(self.bits())

    def hex_id(self) -> str:
        """64 hexadecimal digits, the form of ids."""
        return "".join(f"{self.bits():016x}" for _ in range(4))
