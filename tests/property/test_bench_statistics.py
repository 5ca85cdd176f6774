"""What the benchmark makes of its samples."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics import Samples, quantile, slope, summary

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(values=VALUES)
def test_quantile_of_half_is_the_median(values: list[float]) -> None:
    """The figure that budgets are about is the one that everybody else calls the median."""
    assert quantile(values, 0.5) == pytest.approx(statistics.median(values))


@given(values=VALUES, low=st.floats(0, 1), high=st.floats(0, 1))
def test_quantile_grows_with_its_share_and_stays_within_the_samples(
    values: list[float], low: float, high: float
) -> None:
    """A p95 below a p50, or beyond what was measured, would be a lie."""
    low, high = sorted((low, high))
    slack = 1e-9 * max(values)
    assert min(values) - slack <= quantile(values, low) <= quantile(values, high) + slack
    assert quantile(values, high) <= max(values) + slack


def test_quantile_of_nothing_is_refused() -> None:
    """A figure without samples must not look like a very good one."""
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


@given(values=VALUES)
def test_summary_tells_of_all_samples(values: list[float]) -> None:
    """How many, between what."""
    made = summary(values)
    assert (made.count, made.least, made.most) == (len(values), min(values), max(values))
    assert made.least <= made.p50 <= made.most + 1e-6


@given(start=st.floats(-100, 100), step=st.floats(-10, 10), places=st.sets(st.integers(0, 300), min_size=2, max_size=6))
def test_slope_of_a_line_is_its_own(start: float, step: float, places: set[int]) -> None:
    """Memory for each pod is the slope over the number of pods, whatever the server takes alone."""
    assert slope([(place, start + step * place) for place in places]) == pytest.approx(step, abs=1e-6)


def test_slope_of_one_place_is_refused() -> None:
    """Nothing grows between one point and itself."""
    with pytest.raises(ValueError, match="two different places"):
        slope([(1, 1), (1, 2)])


def test_samples_are_kept_by_figure_and_subject() -> None:
    """Ratios are made between subjects of one figure."""
    samples = Samples()
    samples.add("up", "a", 1, 3)
    samples.add("up", "b", 4)
    samples.add("up", "a", 5)
    assert samples.median("up", "a") == 3
    assert {name: one.count for name, one in samples.of("up").items()} == {"a": 3, "b": 1}
    assert samples.median("down", "a") is None
    assert samples.of("down") == {}
