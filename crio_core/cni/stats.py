"""How long plugins take and what went wrong last, per plugin and verb: for status and metrics."""

from dataclasses import replace

from crio_core.values import dataclass

SERIES_MAX = 128
"""Pairs of plugin and verb that are kept; the one unused for longest makes room."""
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the latency buckets; one more bucket holds what took longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Runs of one plugin with one verb. `buckets` counts runs, not cumulatively."""

    plugin: str
    verb: str
    runs: int = 0
    failures: int = 0
    total_s: float = 0.0
    max_s: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    last_error: str = ""


class PluginStats:
    """The series of every plugin that ran lately."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def add(self, plugin: str, verb: str, took_s: float, error: str = "") -> None:
        """Count one run; `error` is empty when it succeeded."""
        old = self._series.pop((plugin, verb), None) or Series(plugin=plugin, verb=verb)
        slot = sum(took_s > bound_s for bound_s in BUCKETS_S)
        self._series[plugin, verb] = replace(
            old,
            runs=old.runs + 1,
            failures=old.failures + bool(error),
            total_s=old.total_s + took_s,
            max_s=max(old.max_s, took_s),
            buckets=tuple(count + (index == slot) for index, count in enumerate(old.buckets)),
            last_error=error or old.last_error,
        )
        if len(self._series) > SERIES_MAX:
            del self._series[next(iter(self._series))]

    def series(self) -> tuple[Series, ...]:
        """Every series, by plugin and verb."""
        return tuple(sorted(self._series.values(), key=lambda item: (item.plugin, item.verb)))
