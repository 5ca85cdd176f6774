"""Chance from a seed: the same on every machine, cheap, and split by purpose (SplitMix64, Steele et al. 2014)."""

from collections.abc import Sequence
from typing import TypeVar

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15

T = TypeVar("T")


class Chance:
    """A stream of numbers that depends on nothing but its seed."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        # Mixed twice, so that neighbouring seeds share nothing of their streams.
        self._state = seed & _MASK
        self._state = self.bits() ^ (self.bits() << 1 & _MASK)

    def bits(self) -> int:
        """64 bits."""
        self._state = state = (self._state + _GAMMA) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return state ^ (state >> 31)

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1; `limit` is at least 1."""
        return (self.bits() * limit) >> 64

    def happens(self, probability: float) -> bool:
        """True that often; draws nothing when it cannot be true, so that faults switched off disturb nothing else."""
        return probability > 0 and self.bits() < probability * 2.0**64

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def split(self) -> "Chance":
        """Another stream, for a purpose of its own."""
        return Chance(self.bits())

    def hex_id(self) -> str:
        """64 hexadecimal digits, the form of ids."""
        return "".join(f"{self.bits():016x}" for _ in range(4))
