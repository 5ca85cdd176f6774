"""Metrics of pods and containers, under the names that cAdvisor gave them: with these a kubelet need not run it.

CRI, ListMetricDescriptors and ListPodSandboxMetrics. What a kernel does not count is left out. A value of the CRI is a
whole number, so times are whole seconds.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import chain

from crio_core import cri
from crio_core import requests as rq
from crio_core.counters import Counters
from crio_core.records import ContainerRecord, SandboxRecord, decode_request
from crio_core.replies import Containers, Sandboxes
from crio_core.stats import NS_PER_S, Interface, LayerUsage, Pressure, Usage
from crio_core.values import dataclass
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.services.stats import StatsMethods, batches

LABELS = ("container", "id", "image", "name", "namespace", "pod")
"""Of every metric. Those of a pod itself have no container, name and image."""

Value = tuple[tuple[str, ...], int | None]
"""The values of a family's own labels, and the figure; None is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look at one container has shown, or one at a pod as a whole."""

    usage: Usage | None = None
    counters: Counters | None = None
    layer: LayerUsage | None = None
    filesystem: str = ""
    record: ContainerRecord | None = None
    interfaces: Sequence[Interface] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Metrics of one name, told apart by the labels `keys` besides those that all have."""

    name: str
    help: str
    kind: pb.MetricType
    keys: tuple[str, ...] = ()
    read: Callable[[Seen], Iterable[Value]]


def _per(number: int | None, unit: int) -> int | None:
    return None if number is None else number // unit


def _usage(name: str, unit: int = 1, labels: tuple[str, ...] = ()) -> Callable[[Seen], Iterable[Value]]:
    return lambda seen: ((labels, _per(getattr(seen.usage, name, None), unit)),)


def _counted(name: str, unit: int = 1) -> Callable[[Seen], Iterable[Value]]:
    return lambda seen: (((), _per(getattr(seen.counters, name, None), unit)),)


def _waited(name: str, *, everyone: bool) -> Callable[[Seen], Iterable[Value]]:
    def read(seen: Seen) -> Iterable[Value]:
        pressure: Pressure | None = getattr(seen.usage, name, None)
        stall = None if pressure is None else pressure.full if everyone else pressure.some
        return (((), None if stall is None else stall.total_ns // NS_PER_S),)

    return read


def _disks(name: str) -> Callable[[Seen], Iterable[Value]]:
    return lambda seen: [((one.device,), getattr(one, name)) for one in (seen.counters.disks if seen.counters else ())]


def _interfaces(name: str) -> Callable[[Seen], Iterable[Value]]:
    return lambda seen: [((one.name,), getattr(one, name)) for one in seen.interfaces]


def _written(seen: Seen) -> Iterable[Value]:
    return (((seen.filesystem,), seen.layer.used_bytes if seen.layer is not None else None),)


def _spec(name: str) -> Callable[[Seen], Iterable[Value]]:
    def read(seen: Seen) -> Iterable[Value]:
        if seen.record is None:
            return ()
        asked = getattr(decode_request(cri.ContainerConfig, seen.record.request).linux.resources, name)
        return (((), asked if asked > 0 else None),)

    return read


def _started(seen: Seen) -> Iterable[Value]:
    return (((), seen.record.started_at_ns // NS_PER_S if seen.record and seen.record.started_at_ns else None),)


def _faults(seen: Seen) -> Iterable[Value]:
    usage = seen.usage
    if usage is None:
        return ()
    return (("pgfault", "container"), usage.page_faults), (("pgmajfault", "container"), usage.major_page_faults)


def _counter(name: str, text: str, read: Callable[[Seen], Iterable[Value]], keys: tuple[str, ...] = ()) -> Family:
    return Family(name=f"container_{name}", help=text, kind=pb.COUNTER, keys=keys, read=read)


def _gauge(name: str, text: str, read: Callable[[Seen], Iterable[Value]], keys: tuple[str, ...] = ()) -> Family:
    return Family(name=f"container_{name}", help=text, kind=pb.GAUGE, keys=keys, read=read)


FAMILIES = (
    _counter("cpu_usage_seconds_total", "Processor time used.", _usage("cpu_ns", NS_PER_S, ("total",)), ("cpu",)),
    _counter("cpu_user_seconds_total", "Processor time used in user mode.", _counted("cpu_user_ns", NS_PER_S)),
    _counter("cpu_system_seconds_total", "Processor time used in the kernel.", _counted("cpu_system_ns", NS_PER_S)),
    _counter("cpu_cfs_periods_total", "Periods of the processor quota.", _counted("periods")),
    _counter("cpu_cfs_throttled_periods_total", "Periods with the quota used up.", _counted("throttled_periods")),
    _counter("cpu_cfs_throttled_seconds_total", "Time held back by the quota.", _counted("throttled_ns", NS_PER_S)),
    _gauge("memory_usage_bytes", "Memory in use, file pages included.", _usage("memory_bytes")),
    _gauge("memory_working_set_bytes", "Memory that cannot be given back at once.", _usage("working_set_bytes")),
    _gauge("memory_rss", "Anonymous memory, in bytes.", _usage("rss_bytes")),
    _gauge("memory_swap", "Swap in use, in bytes.", _usage("swap_bytes")),
    _gauge("memory_cache", "File pages, in bytes.", _counted("cache_bytes")),
    _gauge("memory_mapped_file", "Files that are mapped, in bytes.", _counted("mapped_bytes")),
    _gauge("memory_max_usage_bytes", "The most memory that was ever in use.", _counted("peak_bytes")),
    _counter("memory_failcnt", "How often memory came to its limit.", _counted("limit_hits")),
    _counter("memory_failures_total", "Page faults.", _faults, ("failure_type", "scope")),
    _counter("oom_events_total", "Processes killed for want of memory.", _counted("oom_kills")),
    _gauge("processes", "Processes and threads.", _usage("processes")),
    *(
        _counter(
            f"pressure_{kind}_{word}_seconds_total", f"{who} for {what}.", _waited(f"{kind}_pressure", everyone=every)
        )
        for kind, what in (("cpu", "a processor"), ("memory", "memory"), ("io", "a disk"))
        for word, who, every in (("waiting", "A task waited", False), ("stalled", "All tasks waited", True))
    ),
    _counter("fs_reads_bytes_total", "Bytes read, by major:minor.", _disks("read_bytes"), ("device",)),
    _counter("fs_writes_bytes_total", "Bytes written.", _disks("written_bytes"), ("device",)),
    _counter("fs_reads_total", "Reads.", _disks("reads"), ("device",)),
    _counter("fs_writes_total", "Writes.", _disks("writes"), ("device",)),
    _gauge("fs_usage_bytes", "Bytes in the writable layer.", _written, ("device",)),
    _gauge("start_time_seconds", "When it was started, since 1970.", _started),
    _gauge("last_seen", "When it was looked at, since 1970.", _usage("wall_ns", NS_PER_S)),
    _gauge("spec_cpu_period", "Period of the quota, in microseconds.", _spec("cpu_period")),
    _gauge("spec_cpu_quota", "Processor time in a period, in microseconds.", _spec("cpu_quota")),
    _gauge("spec_cpu_shares", "Share of the processors among others.", _spec("cpu_shares")),
    _gauge("spec_memory_limit_bytes", "Limit of memory.", _spec("memory_limit_in_bytes")),
    *(
        _counter(f"network_{verb}_{what}_total", text, _interfaces(f"{way}_{name}"), ("interface",))
        for verb, way in (("receive", "rx"), ("transmit", "tx"))
        for what, name, text in (
            ("bytes", "bytes", "Bytes that the pod's interface carried."),
            ("packets", "packets", "Packets."),
            ("errors", "errors", "Packets with errors."),
            ("packets_dropped", "dropped", "Packets that were dropped."),
        )
    ),
)


def metrics_of(seen: Seen, labels: Sequence[str]) -> Iterator[pb.Metric]:
    """The metrics of one container or pod; `labels` are the values of `LABELS`."""
    at_ns = seen.usage.wall_ns if seen.usage is not None else 0
    for family in FAMILIES:
        for own, number in family.read(seen):
            if number is not None:
                yield pb.Metric(
                    name=family.name,
                    timestamp=at_ns,
                    metric_type=family.kind,
                    label_values=(*labels, *own),
                    value=pb.UInt64Value(value=number),
                )


class MetricsMethods(StatsMethods):
    """The metrics calls of the RuntimeService."""

    def ListMetricDescriptors(self, request: pb.ListMetricDescriptorsRequest) -> pb.ListMetricDescriptorsResponse:
        return pb.ListMetricDescriptorsResponse(
            descriptors=[
                pb.MetricDescriptor(name=one.name, help=one.help, label_keys=(*LABELS, *one.keys)) for one in FAMILIES
            ]
        )

    async def ListPodSandboxMetrics(self, request: pb.ListPodSandboxMetricsRequest) -> pb.ListPodSandboxMetricsResponse:
        return pb.ListPodSandboxMetricsResponse(pod_metrics=await self._metrics())

    async def StreamPodSandboxMetrics(
        self, request: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        for batch in batches(await self._metrics()):
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=batch)

    async def _metrics(self) -> list[pb.PodSandboxMetrics]:
        pods, containers = self._driver.ask(rq.ListPodSandbox(ready=True)), self._driver.ask(rq.ListContainers())
        assert isinstance(pods, Sandboxes) and isinstance(containers, Containers)
        look = await self._look(pods.items, containers.items)
        records = list(chain.from_iterable(look.members.values()))
        counters = await self._source.counters(records, look.groups)

        def container(pod: SandboxRecord, record: ContainerRecord) -> pb.ContainerMetrics:
            seen = Seen(
                usage=look.usage.get(record.id),
                counters=counters.get(record.id),
                layer=look.layers.get(record.id),
                filesystem=self._source.filesystem,
                record=record,
            )
            labels = (record.metadata.name, record.id, record.image, record.id, *_names(pod))
            return pb.ContainerMetrics(container_id=record.id, metrics=metrics_of(seen, labels))

        answers = []
        for pod in pods.items:
            whole = Seen(usage=look.usage.get(pod.id), counters=counters.get(pod.id), interfaces=look.networks[pod.id])
            answers.append(
                pb.PodSandboxMetrics(
                    pod_sandbox_id=pod.id,
                    metrics=metrics_of(whole, ("", pod.id, "", "", *_names(pod))),
                    container_metrics=[container(pod, one) for one in look.members[pod.id]],
                )
            )
        return answers


def _names(pod: SandboxRecord) -> tuple[str, str]:
    return pod.metadata.namespace, pod.metadata.name
