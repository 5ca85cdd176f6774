"""What callers ask, one class for each CRI call that the core decides about. Ids may be unique prefixes."""

from collections.abc import Mapping
from dataclasses import field

from crio_core.cri import ContainerConfig, ImageSpec, LinuxContainerResources, PodSandboxConfig
from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPodSandbox:
    """Answered with `replies.Created`."""

    config: PodSandboxConfig
    runtime_handler: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPodSandbox:
    """Answered with `replies.Done`, also when the sandbox is stopped or unknown."""

    sandbox_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePodSandbox:
    """Answered with `replies.Done`, also when the sandbox is unknown."""

    sandbox_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSandboxStatus:
    """Answered with `replies.SandboxFound`."""

    sandbox_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPodSandbox:
    """Answered with `replies.Sandboxes`. `ready` is None for any state; an empty id matches every sandbox."""

    sandbox_id: str = ""
    ready: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateContainer:
    """Answered with `replies.Created`. The CRI's sandbox_config is checked to be the sandbox's own, when given."""

    sandbox_id: str
    config: ContainerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StartContainer:
    """Answered with `replies.Done`."""

    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopContainer:
    """Answered with `replies.Done` once the container has ended, or if it is unknown. A grace of 0 kills at once."""

    container_id: str
    grace_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveContainer:
    """Answered with `replies.Done`, also when the container is unknown. A running container is killed first."""

    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """Answered with `replies.ContainerFound`."""

    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListContainers:
    """Answered with `replies.Containers`. `state` is a word of `replies.CONTAINER_STATES` or empty for any."""

    container_id: str = ""
    sandbox_id: str = ""
    state: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateContainerResources:
    """Answered with `replies.Done` once the limits hold. What the message leaves at 0 or empty stays as it is."""

    container_id: str
    resources: LinuxContainerResources


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePodSandboxResources:
    """Answered with `replies.Done`: the caller has set the pod's control group already, and this is for the record."""

    sandbox_id: str
    overhead: LinuxContainerResources
    resources: LinuxContainerResources


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSync:
    """Answered with `replies.Executed`. A timeout of 0 is none."""

    container_id: str
    command: tuple[str, ...]
    timeout_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Which streams a client wants of a process, at least one; a terminal has no standard error of its own."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """Answered with `replies.Offered`: the command is run when the offer is taken up."""

    container_id: str
    command: tuple[str, ...]
    streams: Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Answered with `replies.Offered`, for the streams of a container's first process."""

    container_id: str
    streams: Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForward:
    """Answered with `replies.Offered`. The client names the ports again when it connects to them."""

    sandbox_id: str
    ports: tuple[int, ...] = ()


Offerable = Exec | Attach | PortForward


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStream:
    """Answered with `replies.Opened`: whoever has the token takes up the offer, once.

    Args:
        purpose: What the address of the client's request says that it is: `exec`, `attach` or `portforward`.
        token: The one of the offer.
    """

    purpose: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenContainerLog:
    """Answered with `replies.Done`."""

    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PullImage:
    """Answered with `replies.Pulled`. `auth` is a handle; the credentials themselves never enter the core."""

    image: ImageSpec
    auth: str = ""
    namespace: str = ""
    """Of the pod that the image is for: it may have a signature policy of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStatus:
    """Answered with `replies.ImageFound`, whose image is None when there is none: that is not an error (CRI)."""

    image: ImageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ListImages:
    """Answered with `replies.Images`. An empty image matches every image."""

    image: ImageSpec = ImageSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveImage:
    """Answered with `replies.Done`, also when there is no such image."""

    image: ImageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Answered with `replies.NodeStatus`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain:
    """Answered with `replies.Explained`.

    Args:
        kind: `pod`, `container`, `image`, `pulls` for those of a reference, or `node` for what no list shows.
        id: The whole id; of `pulls` the reference, or empty for every pull; not read for the node.
    """

    kind: str
    id: str = ""


Request = (
    RunPodSandbox
    | StopPodSandbox
    | RemovePodSandbox
    | PodSandboxStatus
    | ListPodSandbox
    | CreateContainer
    | StartContainer
    | StopContainer
    | RemoveContainer
    | ContainerStatus
    | ListContainers
    | UpdateContainerResources
    | UpdatePodSandboxResources
    | ExecSync
    | Exec
    | Attach
    | PortForward
    | OpenStream
    | ReopenContainerLog
    | PullImage
    | ImageStatus
    | ListImages
    | RemoveImage
    | Status
    | Explain
)
