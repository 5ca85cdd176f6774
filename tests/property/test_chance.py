"""The numbers that simulations draw: the same for ever, or no seed and no program of the corpus means what it meant."""

from hypothesis import given
from hypothesis import strategies as st

from crio_core.sim.chance import Chance

MASK = (1 << 64) - 1


class OneByOne:
    """SplitMix64 as its authors write it."""

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def bits(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        mixed = ((self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        return mixed ^ (mixed >> 31)


@given(st.integers(0, 1 << 70), st.integers(1, 100))
def test_numbers_made_many_at_once_are_those_made_one_by_one(seed: int, count: int) -> None:
    """The stream of a seed, across the ends of blocks."""
    first = OneByOne(seed)
    plain = OneByOne(first.bits() ^ (first.bits() << 1 & MASK))
    chance = Chance(seed)
    assert [chance.bits() for _ in range(count)] == [plain.bits() for _ in range(count)]


@given(st.integers(0, MASK), st.floats(0, 1), st.integers(1, 1 << 40))
def test_what_happens_follows_from_the_next_number(seed: int, probability: float, limit: int) -> None:
    """A probability is a share of all numbers; of zero nothing is drawn."""
    chance, same = Chance(seed), Chance(seed)
    happened = chance.happens(probability)
    assert happened is (probability > 0 and same.bits() < probability * 2.0**64)
    assert chance.below(limit) == same.bits() * limit >> 64 < limit
