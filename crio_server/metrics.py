"""What the server tells about itself, for Prometheus: calls, effects, network plugins, and what there is on the node.

Counting costs a few hundred nanoseconds a call; everything else happens when somebody asks.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.cni.stats import BUCKETS_S, Series
from crio_core.records import SandboxState
from crio_core.replies import CONTAINER_STATES, Containers, Images, NodeStatus, Sandboxes
from crio_io.driver import Caller
from crio_server.tally import BOUNDS_S, Tallies, tallies

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

NS_PER_S = 1_000_000_000
_UNTIMED = (fx.Reply, fx.ArmTimer, fx.CancelTimer, fx.WatchContainer)
"""Orders that take no time, or the life of a container."""


class EffectTimes:
    """Hears the steps of a node, and counts its effects, from order to outcome."""

    def __init__(self) -> None:
        self.effects: Tallies = tallies()
        self.oom_kills = 0
        self.fetched_bytes = 0
        self._running: dict[int, tuple[fx.Order, int]] = {}
        self._at_ns = 0

    def note(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        """Hear one step."""
        if isinstance(event, ev.CallArrived | ev.EffectEnded | ev.TimerFired | ev.JournalLoaded):
            self._at_ns = event.at_ns
        if isinstance(event, ev.EffectEnded):
            self._ended(event)
        for effect in effects:
            if not isinstance(effect.order, _UNTIMED):
                self._running[effect.id] = (effect.order, self._at_ns)

    def _ended(self, event: ev.EffectEnded) -> None:
        if isinstance(event.outcome, ev.ProcessExited) and event.outcome.reason == "OOMKilled":
            self.oom_kills += 1
        order, since_ns = self._running.pop(event.effect_id, (None, 0))
        if order is None:
            return
        failed = isinstance(event.outcome, ev.Failed)
        self.effects[type(order).__name__].observe((event.at_ns - since_ns) / NS_PER_S, failed=failed)
        if isinstance(order, fx.FetchLayer) and not failed:
            self.fetched_bytes += order.size_bytes


class ServerMetrics:
    """Makes the page of metrics.

    Args:
        driver: Runs the node.
        version: The server's.
        calls: The calls of the CRI.
        times: The effects.
        plugins: Runs of network plugins.
    """

    def __init__(
        self,
        driver: Caller,
        version: str,
        calls: Tallies,
        times: EffectTimes,
        plugins: Callable[[], Sequence[Series]],
    ) -> None:
        self._driver = driver
        self._version = version
        self._calls = calls
        self._times = times
        self._plugins = plugins
        self._registry: CollectorRegistry | None = None

    def page(self) -> tuple[str, bytes]:
        """The content type and the text."""
        # Only here: most servers are never asked, and their memory is better used.
        import prometheus_client as prometheus

        if self._registry is None:
            self._registry = prometheus.CollectorRegistry()
            self._registry.register(self)
            prometheus.ProcessCollector(registry=self._registry)
        return prometheus.CONTENT_TYPE_LATEST, prometheus.generate_latest(self._registry)

    def collect(self) -> "Iterable[Metric]":
        """The metrics now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        info = GaugeMetricFamily("crio_info", "The server's version.", labels=("version",))
        info.add_metric((self._version,), 1)
        yield info
        yield from _family("crio_operations", "operation", "calls of the CRI", self._calls)
        yield from _family("crio_effects", "effect", "effects of the node, from order to outcome", self._times.effects)
        yield from self._network_plugins()
        yield CounterMetricFamily("crio_containers_oom", "Ended for want of memory.", self._times.oom_kills)
        yield CounterMetricFamily("crio_image_pulls_bytes", "Of layers that came.", self._times.fetched_bytes)
        yield from self._there()

    def _network_plugins(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ("plugin", "verb")
        errors = CounterMetricFamily("crio_network_plugin_errors", "Runs that failed.", labels=labels)
        seconds = HistogramMetricFamily("crio_network_plugin_seconds", "Runs of network plugins.", labels=labels)
        for one in self._plugins():
            key = (one.plugin, one.verb)
            errors.add_metric(key, one.failures)
            seconds.add_metric(key, _classes(BUCKETS_S, one.buckets), one.total_s)
        return (errors, seconds)

    def _there(self) -> "Iterable[Metric]":
        from prometheus_client.core import GaugeMetricFamily

        pods, containers = self._driver.ask(rq.ListPodSandbox()), self._driver.ask(rq.ListContainers())
        images, status = self._driver.ask(rq.ListImages()), self._driver.ask(rq.Status())
        assert isinstance(pods, Sandboxes) and isinstance(containers, Containers)
        assert isinstance(images, Images) and isinstance(status, NodeStatus)
        ready = Counter("ready" if one.state is SandboxState.READY else "notready" for one in pods.items)
        states = Counter(CONTAINER_STATES[one.state] for one in containers.items)
        for name, text, found, known in (
            ("crio_pods", "Pods.", ready, ("ready", "notready")),
            ("crio_containers", "Containers.", states, dict.fromkeys(CONTAINER_STATES.values())),
        ):
            family = GaugeMetricFamily(name, text, labels=("state",))
            for state in known:
                family.add_metric((state,), found[state])
            yield family
        yield GaugeMetricFamily("crio_images", "Images.", len(images.items))
        yield GaugeMetricFamily("crio_owed", "Records of which something is owed.", len(status.owing))
        yield GaugeMetricFamily("crio_quarantined", "Records that cannot be read.", len(status.quarantined))
        yield GaugeMetricFamily("crio_network_ready", "Whether pods can be attached.", int(status.network_ready))


def _family(name: str, label: str, text: str, counted: Tallies) -> "Iterable[Metric]":
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    total = CounterMetricFamily(name, f"How many {text}.", labels=(label,))
    errors = CounterMetricFamily(f"{name}_errors", f"How many {text} failed.", labels=(label,))
    seconds = HistogramMetricFamily(f"{name}_seconds", f"Durations of {text}.", labels=(label,))
    for key in sorted(counted):
        tally = counted[key]
        total.add_metric((key,), sum(tally.classes))
        errors.add_metric((key,), tally.failures)
        seconds.add_metric((key,), _classes(BOUNDS_S, tally.classes), tally.total_s)
    return (total, errors, seconds)


def _classes(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """The classes as Prometheus wants them: each with those below it."""
    return list(zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True))
