"""The life of a pod with one container, as a kubelet goes through it, call by call with a clock."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.client import Client
from bench.place import NAME
from crio_server.cri.v1 import api_pb2 as pb

STOP_S = 10
WORKERS = 4

_numbers = itertools.count(1)


@dataclass(slots=True, kw_only=True)
class Pod:
    """A pod, its container, and what each call took, in milliseconds by CRI name."""

    client: Client
    id: str = ""
    container: str = ""
    calls_ms: dict[str, float] = field(default_factory=dict)

    def timed(self, method: str, request: object) -> object:
        """Call, and keep the time."""
        answer, took_ms = self.client.timed(method, request)
        self.calls_ms[method] = took_ms
        return answer

    def spent_ms(self, *methods: str) -> float:
        """What some calls took together."""
        return sum(self.calls_ms[method] for method in methods)


UP = ("RunPodSandbox", "CreateContainer", "StartContainer")
DOWN = ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox")


def sandbox_config(directory: str, *, host_network: bool = False) -> pb.PodSandboxConfig:
    """A pod as a kubelet asks for it."""
    number = next(_numbers)
    network = pb.NODE if host_network else pb.POD
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=f"pod{number}", namespace=NAME, uid=f"uid-{number}", attempt=0),
        hostname="" if host_network else f"pod{number}",
        log_directory=f"{directory}/logs/pod{number}",
        labels={"app": NAME, "io.kubernetes.pod.name": f"pod{number}", "io.kubernetes.pod.namespace": NAME},
        annotations={"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", "kubernetes.io/config.source": "api"},
    )
    config.linux.cgroup_parent = f"/{NAME}"
    options = config.linux.security_context.namespace_options
    options.network, options.pid, options.ipc = network, pb.CONTAINER, pb.POD
    config.linux.security_context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    if not host_network:
        config.dns_config.servers.append("10.96.0.10")
        config.dns_config.searches.extend(["default.svc.cluster.local", "svc.cluster.local", "cluster.local"])
        config.dns_config.options.append("ndots:5")
    return config


def container_config(image: str, command: tuple[str, ...], *, host_network: bool = False) -> pb.ContainerConfig:
    """A container as a kubelet asks for it."""
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="work", attempt=0),
        image=pb.ImageSpec(image=image),
        command=list(command),
        labels={"io.kubernetes.container.name": "work", "io.kubernetes.pod.namespace": NAME},
        annotations={"io.kubernetes.container.hash": "1a2b3c4d", "io.kubernetes.container.restartCount": "0"},
        log_path="work/0.log",
    )
    for number in range(5):
        config.envs.append(pb.KeyValue(key=f"SERVICE_{number}_HOST", value=f"10.96.0.{number}".encode()))
    config.linux.resources.cpu_shares = 102
    config.linux.resources.memory_limit_in_bytes = 128 * 1024 * 1024
    security = config.linux.security_context
    security.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    security.namespace_options.network = pb.NODE if host_network else pb.POD
    security.namespace_options.pid = pb.CONTAINER
    return config


WORK = ("/bin/work", "-P")
"""A static program that sleeps and ends at SIGTERM."""


def up(
    client: Client, directory: str, image: str, *, host_network: bool = False, command: tuple[str, ...] = WORK
) -> Pod:
    """Bring a pod and its container up."""
    pod = Pod(client=client)
    config = sandbox_config(directory, host_network=host_network)
    made = pod.timed("RunPodSandbox", pb.RunPodSandboxRequest(config=config))
    pod.id = made.pod_sandbox_id  # type: ignore[attr-defined]
    work = container_config(image, command, host_network=host_network)
    request = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=work, sandbox_config=config)
    pod.container = pod.timed("CreateContainer", request).container_id  # type: ignore[attr-defined]
    pod.timed("StartContainer", pb.StartContainerRequest(container_id=pod.container))
    return pod


def down(pod: Pod) -> Pod:
    """Take a pod and its container away, as a kubelet does it."""
    pod.timed("StopContainer", pb.StopContainerRequest(container_id=pod.container, timeout=STOP_S))
    pod.timed("RemoveContainer", pb.RemoveContainerRequest(container_id=pod.container))
    pod.timed("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    pod.timed("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    return pod


def several(count: int, work: Callable[[int], Pod], workers: int = WORKERS) -> list[Pod]:
    """Do something for many pods, some at a time."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(count)))
