"""What the core asks of the world: orders, each in an envelope with an id and a lane.

The effects of one lane run in the order in which they were returned; different lanes run at the same time. A lane is
usually a record's id; work that must not hold up its record (waiting for an exit, an exec) has a lane of its own.
Every order is idempotent: done twice is done once, and undoing what is absent is success. Each order names the outcome
that it is answered with; any order can be answered with `Failed` instead (`crio_core/events.py`).
"""

from collections.abc import Mapping
from functools import cache

from crio_core.cri import Device, DNSConfig, LinuxContainerResources, PodSandboxMetadata, PortMapping, UserNamespace
from crio_core.records import Failure, ImageVolume, Pin, Record
from crio_core.requests import Streams
from crio_core.values import dataclass, maker


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRecord:
    """Commit a record to the journal: `RecordSaved`."""

    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRecord:
    """Take a record out of the journal: `RecordDeleted`."""

    kind: str
    record_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Answer a call. `result` is a value of `crio_core/replies.py`, or a `Failure`. It has no outcome."""

    call_id: int
    result: object


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTimer:
    """Send `TimerFired` with this id after a time; arming an armed timer moves it. It has no outcome of its own."""

    timer_id: str
    after_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTimer:
    """Forget a timer. One that has just fired may still be heard: that is a row of the tables."""

    timer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSandbox:
    """Make a sandbox's directory, files, shared memory and pinned namespaces: `SandboxPrepared`.

    And have the journal synced, since what network plugins will write down outlives a power cut.
    """

    sandbox_id: str
    namespaces: tuple[str, ...]
    """Kinds to make anew, of `net`, `uts`, `ipc` and `user`, which then owns the others."""
    hostname: str
    """Empty where the pod has the node's."""
    sysctls: Mapping[str, str]
    dns: DNSConfig
    shm_bytes: int
    """Size of the pod's /dev/shm; 0 when the pod uses the node's."""
    cgroup_parent: str
    users: UserNamespace = UserNamespace()
    """The mappings of a new `user`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachNetwork:
    """Run the CNI ADD chain: `NetworkAttached`."""

    sandbox_id: str
    metadata: PodSandboxMetadata
    network: str
    netns_path: str
    port_mappings: tuple[PortMapping, ...]
    annotations: Mapping[str, str]
    dns: DNSConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachNetwork:
    """Run the CNI DEL chain: `Released`.

    A plugin is given the namespace only when it still is the one that `netns` names; else it is told that there is
    none. What plugins took back must not come back in a power cut that keeps the journal's word of it, so it is made
    durable first.
    """

    sandbox_id: str
    metadata: PodSandboxMetadata
    network: str
    attachment: str
    netns: Pin | None
    port_mappings: tuple[PortMapping, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseNamespaces:
    """Unpin a sandbox's namespaces: `Released`."""

    sandbox_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSandboxFiles:
    """Unmount a sandbox's shared memory and remove its directory: `Released`."""

    sandbox_id: str
    cgroup_parent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveSandbox:
    """Look whether the pinned namespaces still are what the record says: `SandboxObserved`."""

    sandbox_id: str
    pins: tuple[Pin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRootfs:
    """Mount a container's root filesystem and look up what its spec needs of the host: `RootfsMounted`.

    The images that it mounts are mounted beside it, and given back by the same `ReleaseRootfs`.
    """

    container_id: str
    layers: tuple[str, ...]
    volumes: tuple[ImageVolume, ...]
    devices: tuple[Device, ...]
    cdi_devices: tuple[str, ...]
    """Qualified names of devices that a vendor's specification describes."""
    all_devices: bool
    """Whether the container is privileged and is to see every device of the host."""
    seccomp_path: str
    """File of a Localhost seccomp profile; empty for none."""
    apparmor_profile: str = ""
    """The profile that it is to run under, which must be loaded; empty for none."""
    users: str = ""
    """Path of the user namespace under whose ids the files are seen; empty for the node's."""
    owner: tuple[int, int] = (0, 0)
    """User and group on the node that are root in there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateContainer:
    """Write the bundle and have the monitor create the container: `ContainerCreated`."""

    container_id: str
    sandbox_id: str
    runtime_handler: str
    spec: bytes
    """The OCI runtime-spec configuration, JSON."""
    make_directories: tuple[str, ...]
    """Directories that must exist inside the root filesystem first: the working directory, the image's volumes."""
    mount_targets: tuple[str, ...]
    """Where the request mounts something: refused when the image makes such a path lead astray."""
    log_path: str
    """Absolute path of the log file; empty for none."""
    terminal: bool
    stdin: bool
    stdin_once: bool
    name: str
    """A name for process titles."""
    users: str = ""
    """Path of the user namespace under whose ids `mapped_mounts` are seen."""
    mapped_mounts: tuple[tuple[str, str], ...] = ()
    """Host paths to be mounted under these ids first, each with the place that the spec names as its source."""
    owner: tuple[int, int] = (0, 0)
    """User and group on the node of the directories that are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartContainer:
    """Run the created container's process: `ContainerStarted`."""

    container_id: str
    runtime_handler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalContainer:
    """Send a signal to the first process, or to every process when `everyone`: `SignalSent`.

    `pid` and `pid_start_ticks` are that first process, 0 while nobody has seen it.
    """

    container_id: str
    runtime_handler: str
    signal: str
    everyone: bool
    pid: int
    pid_start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchContainer:
    """Wait for the container's process to end, however long that takes: `ProcessExited`."""

    container_id: str
    pid: int
    pid_start_ticks: int
    monitor_pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveContainer:
    """Ask the runtime and /proc how a container stands: `ContainerObserved`."""

    container_id: str
    runtime_handler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteContainer:
    """Delete the container in the runtime, by force, with its monitor, cgroup and bundle: `Released`."""

    container_id: str
    runtime_handler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRootfs:
    """Unmount a container's root filesystem and image volumes, and remove its writable layer: `Released`."""

    container_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenLog:
    """Have the monitor open the container's log file anew: `LogReopened`."""

    container_id: str
    runtime_handler: str
    log_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateContainer:
    """Give a container other limits: `ContainerUpdated`."""

    container_id: str
    runtime_handler: str
    resources: bytes
    """What changes, as the runtime-spec's LinuxResources, JSON."""
    given: LinuxContainerResources
    """The same as it was asked for, for the record."""
    operation: str
    """What the call waits for; each changes something else, so none is answered for another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecInContainer:
    """Run a command in a container and collect its output: `ExecFinished`."""

    session_id: str
    container_id: str
    runtime_handler: str
    process: bytes
    """The OCI process, JSON."""
    timeout_ns: int
    """0 for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeExec:
    """Run a command in a container for the client that opened the session: `StreamEnded`."""

    session_id: str
    container_id: str
    runtime_handler: str
    process: bytes
    """The OCI process, JSON."""
    streams: Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeAttach:
    """Join the client that opened the session to the streams of a container's first process: `StreamEnded`."""

    session_id: str
    container_id: str
    streams: Streams
    """Standard input only where the container has one."""
    terminal: bool
    """Whether the process has a terminal, whose size can be set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePorts:
    """Connect the client that opened the session to ports of a pod: `StreamEnded`."""

    session_id: str
    sandbox_id: str
    netns: Pin | None
    """The pod's network; None for the node's."""
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndStream:
    """Have a stream end soon, with all that it runs, since what it is for is over: `StreamTold`."""

    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveImage:
    """Ask the registries what a reference means: `ImageResolved`."""

    reference: str
    auth: str
    """A handle of the credentials, which the core never sees."""
    namespace: str = ""
    """Whose signature policy the image must meet; empty for the node's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLayer:
    """Download a layer's blob: `LayerFetched`."""

    reference: str
    auth: str
    digest: str
    diff_id: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyLayer:
    """Unpack a downloaded layer and make it durable: `LayerApplied`."""

    digest: str
    diff_id: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveLayer:
    """Download a blob and see that it unpacks to a layer that is in the store; nothing of it is kept: `LayerProved`."""

    reference: str
    auth: str
    digest: str
    diff_id: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveLayer:
    """Delete an unpacked layer: `Released`."""

    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStorage:
    """Remove what a crash left: `StorageSwept`.

    Of what was there when the server started: everything of containers and sandboxes that are not named here, and half
    downloads. Never a whole layer: `JournalLoaded` names those, and each goes in its own lane if nothing needs it.
    """

    containers: tuple[str, ...]
    sandboxes: tuple[str, ...]


save = maker(SaveRecord)
arm = maker(ArmTimer)
reply = maker(Reply)
"""Half of all orders are of these kinds."""

Order = (
    SaveRecord
    | DeleteRecord
    | Reply
    | ArmTimer
    | CancelTimer
    | PrepareSandbox
    | AttachNetwork
    | DetachNetwork
    | ReleaseNamespaces
    | RemoveSandboxFiles
    | ObserveSandbox
    | MountRootfs
    | CreateContainer
    | StartContainer
    | SignalContainer
    | WatchContainer
    | ObserveContainer
    | DeleteContainer
    | ReleaseRootfs
    | ReopenLog
    | UpdateContainer
    | ExecInContainer
    | ServeExec
    | ServeAttach
    | ServePorts
    | EndStream
    | ResolveImage
    | FetchLayer
    | ApplyLayer
    | ProveLayer
    | RemoveLayer
    | SweepStorage
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One order for the world. `id` is unique in a node's life; `lane` orders it among others."""

    id: int
    lane: str
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Not for the world: a lifecycle tells the node that everybody waiting for `operation` has their result."""

    operation: str
    failure: Failure | None = None


@cache
def answered(operation: str) -> Answer:
    """The answer of success; there is one of each operation."""
    return Answer(operation=operation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Not for the world: a lifecycle asks the node for something that other records must do first."""

    what: str
