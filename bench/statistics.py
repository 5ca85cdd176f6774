"""Samples and what is told of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a list of samples comes to, in the unit of its figure."""

    count: int
    p50: float
    p95: float
    least: float
    most: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, interpolated between neighbours.

    Raises:
        ValueError: There are no samples.
    """
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Sequence[float]) -> Summary:
    """Sum samples up.

    Raises:
        ValueError: There are no samples.
    """
    return Summary(
        count=len(values),
        p50=quantile(values, 0.5),
        p95=quantile(values, 0.95),
        least=min(values),
        most=max(values),
    )


@dataclass(slots=True)
class Samples:
    """Everything measured in a run, by figure and subject."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, figure: str, subject: str, *values: float) -> None:
        """Keep samples of one figure of one subject."""
        self.values.setdefault(figure, {}).setdefault(subject, []).extend(values)

    def of(self, figure: str) -> Mapping[str, Summary]:
        """What is known of a figure, by subject."""
        return {subject: summary(values) for subject, values in self.values.get(figure, {}).items()}

    def median(self, figure: str, subject: str) -> float | None:
        """The median of one figure of one subject; None if it was not measured."""
        values = self.values.get(figure, {}).get(subject)
        return quantile(values, 0.5) if values else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much y grows with each x: the slope of the least-squares line.

    Raises:
        ValueError: Fewer than two different x.
    """
    count = len(points)
    mean_x = sum(x for x, _ in points) / count if count else 0.0
    mean_y = sum(y for _, y in points) / count if count else 0.0
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        raise ValueError("a slope needs two different places")
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
