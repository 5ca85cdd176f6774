"""The CRI's RuntimeService, as far as it is implemented."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson

from crio_core import cri
from crio_core import requests as rq
from crio_core.errors import Code, OperationError, invalid
from crio_core.node import Settings
from crio_core.records import ContainerRecord, SandboxRecord
from crio_core.replies import (
    ContainerFound,
    Containers,
    Created,
    Executed,
    NodeStatus,
    Offered,
    Sandboxes,
    SandboxFound,
)
from crio_core.values import dataclass
from crio_io.driver import Caller
from crio_io.feed import Feed, Listening
from crio_server import translate
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.services.explanation import explanation, node_explanation
from crio_server.services.listing import ListCache
from crio_server.services.metrics import MetricsMethods
from crio_server.services.stats import Source

RUNTIME_NAME = "crio"
API_VERSION = "v1"
NS_PER_S = 1_000_000_000
TIMEOUT_S_MAX = 10 * 365 * 86400


async def _no_check(_: SandboxRecord) -> str:
    return ""


def _no_streams() -> str:
    raise OperationError(Code.UNIMPLEMENTED, "UNIMPLEMENTED", "streams are not served here: a simulated node has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What Version, Status and RuntimeConfig tell of a server."""

    version: str
    systemd_cgroup: bool
    handlers: Callable[[], tuple[str, ...]]
    """Names of the runtime handlers; a reload may change them."""
    user_namespaces: Callable[[], frozenset[str]]
    """Those of the handlers with which a pod can have a user namespace of its own; the default one has no name too."""
    recursive_read_only: Callable[[], frozenset[str]]
    """Those with which a mount can be read-only together with all that is mounted below it."""
    verbose: Callable[[], Mapping[str, Any]]
    """What verbose Status adds, by name; each value is sent as JSON."""
    witness: Callable[[str], Mapping[str, Any]] = lambda container_id: {}
    """What verbose status of a container adds that only its monitor, or its absence, tells."""
    stream_url: Callable[[], str] = _no_streams
    """What the addresses of streams begin with."""
    check_network: Callable[[SandboxRecord], Awaitable[str]] = _no_check
    """What is wrong with the network of a pod now, or nothing."""


def user_namespaces_of(settings: Settings) -> frozenset[str]:
    """The handlers with which a pod can have a user namespace of its own, by name."""
    if settings.host.userns_lack:
        return frozenset()
    able = frozenset(one.name for one in settings.handlers.values() if not one.vm)
    return able | {""} if settings.default_handler in able else able


def _ns(field: str, seconds: int) -> int:
    if not 0 <= seconds <= TIMEOUT_S_MAX:
        raise invalid(field, seconds, f"0 to {TIMEOUT_S_MAX} seconds")
    return seconds * NS_PER_S


def container_info(record: ContainerRecord) -> dict[str, Any]:
    """What verbose container status adds: processes, state, what is owed."""
    return {
        "sandboxID": record.sandbox_id,
        "pid": record.pid,
        "monitorPid": record.monitor_pid,
        "state": record.state.value,
        "runtimeHandler": record.runtime_handler,
        "layers": list(record.layers),
        "holds": [part.value for part in record.holds],
        "retries": record.retries,
        "failure": record.failure.message if record.failure else "",
    }


def sandbox_info(record: SandboxRecord, network_fault: str) -> dict[str, Any]:
    """What verbose sandbox status adds: what it was made from, namespaces, network, state, what is owed."""
    return {
        "config": orjson.loads(record.request),
        "networkFault": network_fault,
        "state": record.state.value,
        "namespaces": {pin.kind: pin.path for pin in record.pins},
        "cniResult": orjson.loads(record.attachment) if record.attachment else None,
        "holds": [part.value for part in record.holds],
        "retries": record.retries,
        "failure": record.failure.message if record.failure else "",
    }


class RuntimeService(MetricsMethods):
    """Pods and containers.

    Args:
        driver: Runs the node.
        facts: What the server says of itself.
        refresh_network: Looks at the CNI configuration now, and tells the node if it has changed.
        source: Looks at what containers use.
        feed: Tells what happens.
    """

    def __init__(
        self,
        driver: Caller,
        facts: NodeFacts,
        refresh_network: Callable[[], Awaitable[None]],
        source: Source,
        feed: Feed,
    ) -> None:
        super().__init__(driver, source)
        self._feed = feed
        self._facts = facts
        self._refresh_network = refresh_network
        self._sandboxes = ListCache[SandboxRecord](translate.sandbox)
        self._containers = ListCache[ContainerRecord](translate.container)
        self._sandbox_statuses = ListCache[SandboxRecord](translate.sandbox_status)
        self._container_statuses = ListCache[ContainerRecord](translate.container_status)

    def Version(self, request: pb.VersionRequest) -> pb.VersionResponse:
        return pb.VersionResponse(
            version="0.1.0",
            runtime_name=RUNTIME_NAME,
            runtime_version=self._facts.version,
            runtime_api_version=API_VERSION,
        )

    async def Status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        await self._refresh_network()
        status = self._driver.ask(rq.Status())
        assert isinstance(status, NodeStatus)
        conditions = [
            pb.RuntimeCondition(type="RuntimeReady", status=True),
            pb.RuntimeCondition(
                type="NetworkReady",
                status=status.network_ready,
                reason="" if status.network_ready else "NetworkPluginNotReady",
                message="" if status.network_ready else status.network_reason,
            ),
        ]
        # The default handler is listed twice, once without a name (CRI, RuntimeHandler).
        names = ("", *self._facts.handlers())
        mapping, recursive = self._facts.user_namespaces(), self._facts.recursive_read_only()
        handlers = [
            pb.RuntimeHandler(
                name=name,
                features=pb.RuntimeHandlerFeatures(
                    recursive_read_only_mounts=name in recursive, user_namespaces=name in mapping
                ),
            )
            for name in names
        ]
        answer = pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=conditions),
            runtime_handlers=handlers,
            features=pb.RuntimeFeatures(supplemental_groups_policy=True),
        )
        if request.verbose:
            node = {
                "quarantined": dict(status.quarantined),
                "owing": list(status.owing),
            }
            unlisted = await node_explanation(self._driver)
            for key, value in {**self._facts.verbose(), "node": node, **unlisted}.items():
                answer.info[key] = orjson.dumps(value).decode()
        return answer

    def RuntimeConfig(self, request: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        driver = pb.SYSTEMD if self._facts.systemd_cgroup else pb.CGROUPFS
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(self, request: pb.UpdateRuntimeConfigRequest) -> pb.UpdateRuntimeConfigResponse:
        """Taken, and not kept: a kubelet tells the range of the node's pods, which network plugins learn elsewhere.

        It tells it once, and never reads it back.
        """
        return pb.UpdateRuntimeConfigResponse()

    # --- sandboxes ----------------------------------------------------------------------------------------------

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        await self._refresh_network()
        translate.take_old_profiles(request.config.linux.security_context, "config.linux.security_context")
        config = translate.read(cri.PodSandboxConfig, request.config, "config")
        made = await self._driver.call(rq.RunPodSandbox(config=config, runtime_handler=request.runtime_handler))
        assert isinstance(made, Created)
        return pb.RunPodSandboxResponse(pod_sandbox_id=made.id)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        await self._driver.call(rq.StopPodSandbox(sandbox_id=request.pod_sandbox_id))
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: pb.RemovePodSandboxRequest) -> pb.RemovePodSandboxResponse:
        await self._driver.call(rq.RemovePodSandbox(sandbox_id=request.pod_sandbox_id))
        return pb.RemovePodSandboxResponse()

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        overhead = translate.read(cri.LinuxContainerResources, request.overhead, "overhead")
        limits = translate.read(cri.LinuxContainerResources, request.resources, "resources")
        await self._driver.call(
            rq.UpdatePodSandboxResources(sandbox_id=request.pod_sandbox_id, overhead=overhead, resources=limits)
        )
        return pb.UpdatePodSandboxResourcesResponse()

    def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest) -> bytes | Awaitable[bytes]:
        found = self._driver.ask(rq.PodSandboxStatus(sandbox_id=request.pod_sandbox_id))
        assert isinstance(found, SandboxFound)
        status = self._sandbox_statuses.item(found.sandbox)
        return self._verbose_sandbox(found.sandbox, status) if request.verbose else status

    async def _verbose_sandbox(self, sandbox: SandboxRecord, status: bytes) -> bytes:
        fault = await self._facts.check_network(sandbox)
        info = await self._info("pod", sandbox.id, sandbox_info(sandbox, fault))
        return status + pb.PodSandboxStatusResponse(info=info).SerializeToString()

    def ListPodSandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        items, everything = self._list_sandboxes(request.filter)
        return self._sandboxes.answer(items, everything=everything)

    async def StreamPodSandboxes(self, request: pb.StreamPodSandboxesRequest) -> AsyncIterator[bytes]:
        items, everything = self._list_sandboxes(request.filter)
        for batch in self._sandboxes.batches(items, everything=everything):
            yield batch

    def _list_sandboxes(self, wanted: pb.PodSandboxFilter) -> tuple[Sequence[SandboxRecord], bool]:
        ready = wanted.state.state == pb.SANDBOX_READY if wanted.HasField("state") else None
        labels = dict(wanted.label_selector)
        found = self._driver.ask(rq.ListPodSandbox(sandbox_id=wanted.id, ready=ready, labels=labels))
        assert isinstance(found, Sandboxes)
        everything = not (wanted.id or labels or ready is not None)
        if everything:
            self._sandbox_statuses.keep(found.items)
        return found.items, everything

    def GetContainerEvents(self, request: pb.GetEventsRequest) -> AsyncIterator[pb.ContainerEventResponse]:
        """What happens from now on: a client has the answer's headers once it is listened for."""
        return _told(self._feed.listen())

    async def _info(self, kind: str, record_id: str, values: Mapping[str, Any]) -> dict[str, str]:
        explained = await explanation(self._driver, kind, record_id)
        return {"info": orjson.dumps(values).decode(), **explained}

    # --- containers ---------------------------------------------------------------------------------------------

    async def CreateContainer(self, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        translate.take_old_profiles(request.config.linux.security_context, "config.linux.security_context")
        config = translate.read(cri.ContainerConfig, request.config, "config")
        made = await self._driver.call(rq.CreateContainer(sandbox_id=request.pod_sandbox_id, config=config))
        assert isinstance(made, Created)
        return pb.CreateContainerResponse(container_id=made.id)

    async def StartContainer(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        await self._driver.call(rq.StartContainer(container_id=request.container_id))
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        grace_ns = _ns("timeout", max(request.timeout, 0))
        await self._driver.call(rq.StopContainer(container_id=request.container_id, grace_ns=grace_ns))
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest) -> pb.RemoveContainerResponse:
        await self._driver.call(rq.RemoveContainer(container_id=request.container_id))
        return pb.RemoveContainerResponse()

    def ContainerStatus(self, request: pb.ContainerStatusRequest) -> bytes | Awaitable[bytes]:
        found = self._driver.ask(rq.ContainerStatus(container_id=request.container_id))
        assert isinstance(found, ContainerFound)
        status = self._container_statuses.item(found.container)
        return self._verbose_container(found.container, status) if request.verbose else status

    async def _verbose_container(self, container: ContainerRecord, status: bytes) -> bytes:
        seen = container_info(container) | dict(self._facts.witness(container.id))
        info = await self._info("container", container.id, seen)
        return status + pb.ContainerStatusResponse(info=info).SerializeToString()

    def ListContainers(self, request: pb.ListContainersRequest) -> bytes:
        items, everything = self._list_containers(request.filter)
        return self._containers.answer(items, everything=everything)

    async def StreamContainers(self, request: pb.StreamContainersRequest) -> AsyncIterator[bytes]:
        items, everything = self._list_containers(request.filter)
        for batch in self._containers.batches(items, everything=everything):
            yield batch

    def _list_containers(self, wanted: pb.ContainerFilter) -> tuple[Sequence[ContainerRecord], bool]:
        state = ""
        if wanted.HasField("state"):
            state = translate.STATE_WORDS.get(wanted.state.state, "unknown")
        labels = dict(wanted.label_selector)
        found = self._driver.ask(
            rq.ListContainers(container_id=wanted.id, sandbox_id=wanted.pod_sandbox_id, state=state, labels=labels)
        )
        assert isinstance(found, Containers)
        everything = not (wanted.id or wanted.pod_sandbox_id or state or labels)
        if everything:
            self._container_statuses.keep(found.items)
        return found.items, everything

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        limits = translate.read(cri.LinuxContainerResources, request.linux, "linux")
        await self._driver.call(rq.UpdateContainerResources(container_id=request.container_id, resources=limits))
        return pb.UpdateContainerResourcesResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        timeout_ns = _ns("timeout", max(request.timeout, 0))
        done = await self._driver.call(
            rq.ExecSync(container_id=request.container_id, command=tuple(request.cmd), timeout_ns=timeout_ns)
        )
        assert isinstance(done, Executed)
        return pb.ExecSyncResponse(stdout=done.stdout, stderr=done.stderr, exit_code=done.exit_code)

    # --- streams ------------------------------------------------------------------------------------------------

    async def Exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        url = await self._offered(
            rq.Exec(container_id=request.container_id, command=tuple(request.cmd), streams=translate.streams(request))
        )
        return pb.ExecResponse(url=url)

    async def Attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        url = await self._offered(rq.Attach(container_id=request.container_id, streams=translate.streams(request)))
        return pb.AttachResponse(url=url)

    async def PortForward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        url = await self._offered(rq.PortForward(sandbox_id=request.pod_sandbox_id, ports=tuple(request.port)))
        return pb.PortForwardResponse(url=url)

    async def _offered(self, request: rq.Offerable) -> str:
        base = self._facts.stream_url()
        offered = await self._driver.call(request)
        assert isinstance(offered, Offered)
        return f"{base}/{offered.purpose}/{offered.token}"

    async def ReopenContainerLog(self, request: pb.ReopenContainerLogRequest) -> pb.ReopenContainerLogResponse:
        await self._driver.call(rq.ReopenContainerLog(container_id=request.container_id))
        return pb.ReopenContainerLogResponse()


async def _told(listening: Listening) -> AsyncIterator[pb.ContainerEventResponse]:
    async for happening in listening:
        yield translate.happening(happening)
