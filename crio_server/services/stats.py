"""What containers and pods use, as the CRI's stats calls answer it.

The node decides nothing about it: it is asked which containers there are, and the host is asked what they use. A
container that cannot be looked at is answered without figures, and never fails the others.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from crio_core import requests as rq
from crio_core import stats
from crio_core.cni.pod import IFNAME_DEFAULT
from crio_core.counters import Counters
from crio_core.cri import NamespaceMode
from crio_core.lifecycle.sandbox import sandbox_request
from crio_core.records import ContainerRecord, ContainerState, SandboxRecord
from crio_core.replies import ContainerFound, Containers, Sandboxes, SandboxFound
from crio_core.values import dataclass
from crio_io.driver import Caller
from crio_server import translate
from crio_server.cri.v1 import api_pb2 as pb

T = TypeVar("T")

BATCH = 100
"""Stats in one message of a streamed list."""
RUNNING = frozenset({ContainerState.CREATED, ContainerState.STARTING, ContainerState.RUNNING, ContainerState.STOPPING})


class Source(Protocol):
    """Who looks at containers: a host, or a simulation."""

    @property
    def filesystem(self) -> str: ...

    async def usage(
        self, records: Sequence[ContainerRecord], parents: Mapping[str, str] = ...
    ) -> Mapping[str, stats.Usage]: ...

    async def counters(
        self, records: Sequence[ContainerRecord], parents: Mapping[str, str] = ...
    ) -> Mapping[str, Counters]: ...

    async def layers(self, records: Sequence[ContainerRecord]) -> Mapping[str, stats.LayerUsage]: ...

    async def interfaces(self, pods: Sequence[Sequence[ContainerRecord]]) -> Sequence[tuple[stats.Interface, ...]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look at pods has shown, by the ids of pods and containers; what could not be looked at is left out."""

    members: Mapping[str, Sequence[ContainerRecord]]
    """The containers with a process, by pod."""
    groups: Mapping[str, str]
    """Control groups of pods that have one of their own."""
    usage: Mapping[str, stats.Usage]
    layers: Mapping[str, stats.LayerUsage]
    networks: Mapping[str, Sequence[stats.Interface]]


class StatsMethods:
    """The stats calls of the RuntimeService.

    Args:
        driver: Runs the node.
        source: Looks at containers.
    """

    def __init__(self, driver: Caller, source: Source) -> None:
        self._driver = driver
        self._source = source

    # --- containers ---------------------------------------------------------------------------------------------

    async def ContainerStats(self, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
        found = self._driver.ask(rq.ContainerStatus(container_id=request.container_id))
        assert isinstance(found, ContainerFound)
        (one,) = await self._of_containers((found.container,))
        return pb.ContainerStatsResponse(stats=one)

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest) -> pb.ListContainerStatsResponse:
        return pb.ListContainerStatsResponse(stats=await self._wanted_containers(request.filter))

    async def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        for batch in batches(await self._wanted_containers(request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=batch)

    async def _wanted_containers(self, wanted: pb.ContainerStatsFilter) -> list[pb.ContainerStats]:
        labels = dict(wanted.label_selector)
        request = rq.ListContainers(container_id=wanted.id, sandbox_id=wanted.pod_sandbox_id, labels=labels)
        found = self._driver.ask(request)
        assert isinstance(found, Containers)
        return await self._of_containers([one for one in found.items if one.state in RUNNING])

    async def _of_containers(self, records: Sequence[ContainerRecord]) -> list[pb.ContainerStats]:
        usage = await self._source.usage(records)
        layers = await self._source.layers(records)
        return [self._container(one, usage.get(one.id), layers.get(one.id)) for one in records]

    def _container(
        self, record: ContainerRecord, usage: stats.Usage | None, layer: stats.LayerUsage | None
    ) -> pb.ContainerStats:
        listed = translate.container(record)
        answer = pb.ContainerStats(
            attributes=pb.ContainerAttributes(
                id=record.id, metadata=listed.metadata, labels=listed.labels, annotations=listed.annotations
            )
        )
        if usage is not None:
            answer.cpu.CopyFrom(_cpu(usage))
            answer.memory.CopyFrom(_memory(usage))
            if usage.io_pressure is not None:
                answer.io.CopyFrom(_io(usage, usage.io_pressure))
            if usage.swap_bytes is not None:
                answer.swap.timestamp = usage.wall_ns
                answer.swap.swap_usage_bytes.value = usage.swap_bytes
                _set(answer.swap, "swap_available_bytes", usage.swap_available_bytes)
        if layer is not None:
            answer.writable_layer.timestamp = layer.wall_ns
            answer.writable_layer.fs_id.mountpoint = self._source.filesystem
            answer.writable_layer.used_bytes.value = layer.used_bytes
            answer.writable_layer.inodes_used.value = layer.inodes
        return answer

    # --- pods ---------------------------------------------------------------------------------------------------

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest) -> pb.PodSandboxStatsResponse:
        found = self._driver.ask(rq.PodSandboxStatus(sandbox_id=request.pod_sandbox_id))
        assert isinstance(found, SandboxFound)
        (one,) = await self._of_pods([found.sandbox], found.containers)
        return pb.PodSandboxStatsResponse(stats=one)

    async def ListPodSandboxStats(self, request: pb.ListPodSandboxStatsRequest) -> pb.ListPodSandboxStatsResponse:
        return pb.ListPodSandboxStatsResponse(stats=await self._wanted_pods(request.filter))

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        for batch in batches(await self._wanted_pods(request.filter)):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=batch)

    async def _wanted_pods(self, wanted: pb.PodSandboxStatsFilter) -> list[pb.PodSandboxStats]:
        labels = dict(wanted.label_selector)
        pods = self._driver.ask(rq.ListPodSandbox(sandbox_id=wanted.id, ready=True, labels=labels))
        containers = self._driver.ask(rq.ListContainers())
        assert isinstance(pods, Sandboxes) and isinstance(containers, Containers)
        return await self._of_pods(pods.items, containers.items)

    async def _of_pods(
        self, pods: Sequence[SandboxRecord], containers: Sequence[ContainerRecord]
    ) -> list[pb.PodSandboxStats]:
        look = await self._look(pods, containers)
        answers = []
        for pod in pods:
            inside = look.members[pod.id]
            parts = [look.usage[one.id] for one in inside if one.id in look.usage]
            answer = _pod(pod, look.usage.get(pod.id) or _together(parts), look.networks[pod.id])
            containers_of = (self._container(one, look.usage.get(one.id), look.layers.get(one.id)) for one in inside)
            answer.linux.containers.extend(containers_of)
            answers.append(answer)
        return answers

    async def _look(self, pods: Sequence[SandboxRecord], containers: Sequence[ContainerRecord]) -> Look:
        members: dict[str, list[ContainerRecord]] = {pod.id: [] for pod in pods}
        for one in containers:
            if one.sandbox_id in members and one.state in RUNNING:
                members[one.sandbox_id].append(one)
        records = [one for group in members.values() for one in group]
        groups = {pod.id: group for pod in pods if (group := _own_group(pod))}
        # Of a pod on the node's network, the counters are the node's.
        networks = await self._source.interfaces([members[pod.id] if _has_network(pod) else () for pod in pods])
        return Look(
            members=members,
            groups=groups,
            usage=await self._source.usage(records, groups),
            layers=await self._source.layers(records),
            networks={pod.id: network for pod, network in zip(pods, networks, strict=True)},
        )


def _own_group(pod: SandboxRecord) -> str:
    """The control group that a kubelet has made for this pod alone, which has the pod's uid in its name; or nothing."""
    parent, uid = sandbox_request(pod).linux.cgroup_parent, pod.metadata.uid
    return parent if uid and any(word in parent for word in (uid, uid.replace("-", "_"))) else ""


def _has_network(pod: SandboxRecord) -> bool:
    return sandbox_request(pod).linux.security_context.namespace_options.network is not NamespaceMode.NODE


def _together(parts: Sequence[stats.Usage]) -> stats.Usage | None:
    """A pod without a group of its own has what its containers have now."""
    return stats.together(parts, parts[-1].at_ns, parts[-1].wall_ns) if parts else None


def _pod(pod: SandboxRecord, whole: stats.Usage | None, network: Sequence[stats.Interface]) -> pb.PodSandboxStats:
    listed = translate.sandbox(pod)
    answer = pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=pod.id, metadata=listed.metadata, labels=listed.labels, annotations=listed.annotations
        )
    )
    if whole is not None:
        answer.linux.cpu.CopyFrom(_cpu(whole))
        answer.linux.memory.CopyFrom(_memory(whole))
        if whole.io_pressure is not None:
            answer.linux.io.CopyFrom(_io(whole, whole.io_pressure))
        if whole.processes is not None:
            answer.linux.process.timestamp = whole.wall_ns
            answer.linux.process.process_count.value = whole.processes
        # The one that carries the pod's address first: a kernel with tunnels has others before it, which nobody made.
        for index, one in enumerate(sorted(network, key=lambda one: one.name != IFNAME_DEFAULT)):
            answer.linux.network.timestamp = whole.wall_ns
            target = answer.linux.network.interfaces.add() if index else answer.linux.network.default_interface
            target.name = one.name
            target.rx_bytes.value, target.rx_errors.value = one.rx_bytes, one.rx_errors
            target.tx_bytes.value, target.tx_errors.value = one.tx_bytes, one.tx_errors
    return answer


def _cpu(usage: stats.Usage) -> pb.CpuUsage:
    answer = pb.CpuUsage(timestamp=usage.wall_ns)
    _set(answer, "usage_core_nano_seconds", usage.cpu_ns)
    _set(answer, "usage_nano_cores", usage.nano_cores)
    if usage.cpu_pressure is not None:
        answer.psi.CopyFrom(_psi(usage.cpu_pressure))
    return answer


def _memory(usage: stats.Usage) -> pb.MemoryUsage:
    answer = pb.MemoryUsage(timestamp=usage.wall_ns)
    _set(answer, "usage_bytes", usage.memory_bytes)
    _set(answer, "working_set_bytes", usage.working_set_bytes)
    _set(answer, "available_bytes", usage.available_bytes)
    _set(answer, "rss_bytes", usage.rss_bytes)
    _set(answer, "page_faults", usage.page_faults)
    _set(answer, "major_page_faults", usage.major_page_faults)
    if usage.memory_pressure is not None:
        answer.psi.CopyFrom(_psi(usage.memory_pressure))
    return answer


def _io(usage: stats.Usage, pressure: stats.Pressure) -> pb.IoUsage:
    return pb.IoUsage(timestamp=usage.wall_ns, psi=_psi(pressure))


def _psi(pressure: stats.Pressure) -> pb.PsiStats:
    return pb.PsiStats(Some=_stall(pressure.some), Full=_stall(pressure.full) if pressure.full is not None else None)


def _stall(stall: stats.Stall) -> pb.PsiData:
    return pb.PsiData(Total=stall.total_ns, Avg10=stall.avg10, Avg60=stall.avg60, Avg300=stall.avg300)


def _set(message: pb.CpuUsage | pb.MemoryUsage | pb.SwapUsage, field: str, value: int | None) -> None:
    if value is not None:
        getattr(message, field).value = value


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The messages of a streamed list."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
