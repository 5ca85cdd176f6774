"""How often things were done, how often they failed, and how long they took: kept while serving, read by metrics."""

from bisect import bisect_left
from collections import defaultdict

BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Upper bounds of the classes of durations; the last class has none."""


class Tally:
    """Of one kind of thing."""

    __slots__ = ("classes", "failures", "total_s")

    def __init__(self) -> None:
        self.classes = [0] * (len(BOUNDS_S) + 1)
        self.failures = 0
        self.total_s = 0.0

    def observe(self, seconds: float, *, failed: bool = False) -> None:
        """Count one."""
        self.classes[bisect_left(BOUNDS_S, seconds)] += 1
        self.failures += failed
        self.total_s += seconds


Tallies = defaultdict[str, Tally]
"""By the name of what was done."""


def tallies() -> Tallies:
    """Nothing counted yet."""
    return defaultdict(Tally)
