"""Everything that the core can be told: requests, outcomes of effects, and observations.

All names are facts, in the past tense. Monotonic times (`at_ns`) are for deadlines, wall-clock times (`wall_ns`) only
for what is reported; the two never mix.
"""

from collections.abc import Mapping
from dataclasses import field

from crio_core.oci.cdi import ContainerEdits
from crio_core.oci.facts import HostDevice, RootfsFacts
from crio_core.records import Failure, Pin
from crio_core.requests import Request
from crio_core.values import dataclass

# --- requests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArrived:
    """A call. `new_id` is 64 hexadecimal digits of chance, used if the call makes something, or as an offer's token."""

    call_id: int
    request: Request
    at_ns: int
    wall_ns: int
    new_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCancelled:
    """The caller went away. What it asked for goes on; only the reply is no longer owed."""

    call_id: int


# --- outcomes of effects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An effect did not succeed. What it was to make may exist in part."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSaved:
    """The record is in the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDeleted:
    """The record is not in the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPrepared:
    """Files and namespaces exist."""

    pins: tuple[Pin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttached:
    """The pod has its addresses; `attachment` is what the DEL will need."""

    attachment: str
    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxObserved:
    """`intact` is true when every pinned namespace is the recorded one, of this boot."""

    intact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RootfsMounted:
    """The root filesystem is at `path`."""

    path: str
    facts: RootfsFacts
    devices: tuple[HostDevice, ...] = ()
    host_devices: tuple[HostDevice, ...] = ()
    seccomp_profile: str = ""
    """The text of the Localhost profile that was asked for, JSON."""
    image_mounts: tuple[tuple[str, str], ...] = ()
    """Where each image volume is on the host, by its path in the container."""
    node_name: str = ""
    """What the node is called now."""
    edits: ContainerEdits = ContainerEdits()
    """What the CDI devices that were asked for add to the spec."""
    apparmor: bool = True
    """Whether the AppArmor profile can be had; if not, and it is the runtime's own default, there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerCreated:
    """The runtime has made the container and holds its process before the exec."""

    pid: int
    pid_start_ticks: int
    monitor_pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStarted:
    """The container's process runs."""

    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSent:
    """The signal was delivered, or there is no process left to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExited:
    """The first process is gone. `code` is None when nobody can know it; `reason` is empty or `OOMKilled`."""

    code: int | None
    finished_at_ns: int
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerObserved:
    """How the container was found: `created`, `running`, `stopped` or `absent`."""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What the order was to take away no longer exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReopened:
    """The monitor writes to the new log file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUpdated:
    """The container has its new limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecFinished:
    """A command ended, or was killed at its time limit (`timed_out`)."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    timed_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnded:
    """Nothing of a stream is left: no process of its own, no connection. `exit_code` is that of its command, if any."""

    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTold:
    """The stream is ending, or there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescriptor:
    """A layer as a manifest and an image configuration together name it."""

    digest: str
    diff_id: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResolved:
    """What a reference means now. `config` is the image configuration, JSON."""

    image_id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    config: str
    user: str
    layers: tuple[LayerDescriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFetched:
    """The blob is complete and has its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerApplied:
    """The layer is unpacked and durable; `size_bytes` is what it takes on disk."""

    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProved:
    """The blob was fetched from where the order said, and unpacks to the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSwept:
    """What no record owns is gone; `removed` names it."""

    removed: tuple[str, ...]


Outcome = (
    Failed
    | RecordSaved
    | RecordDeleted
    | SandboxPrepared
    | NetworkAttached
    | SandboxObserved
    | RootfsMounted
    | ContainerCreated
    | ContainerStarted
    | SignalSent
    | ProcessExited
    | ContainerObserved
    | Released
    | LogReopened
    | ContainerUpdated
    | ExecFinished
    | StreamEnded
    | StreamTold
    | ImageResolved
    | LayerFetched
    | LayerApplied
    | LayerProved
    | StorageSwept
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectEnded:
    """The effect with this id ended. `at_ns` and `wall_ns` are when."""

    effect_id: int
    outcome: Outcome
    at_ns: int
    wall_ns: int


# --- observations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """A timer's time has come."""

    timer_id: str
    at_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChanged:
    """The pod network that the configuration directory now gives, or in `reason` why it gives none."""

    network: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProgressed:
    """How far the download of a layer has come; told a few times a second at most.

    It decides nothing, is in no record and in no recording: it is known for as long as the layer is being fetched, to
    those who ask.
    """

    diff_id: str
    received_bytes: int
    bytes_per_s: int
    """Since this transfer began."""
    host: str
    """Where it comes from: a registry, or a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A layer that is whole in the store: what it takes on disk, and the blob that it was unpacked from."""

    diff_id: str
    size_bytes: int
    blob: str
    """Digest; empty when that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLoaded:
    """The server starts: what was recorded, by kind and id, and this boot's id."""

    rows: tuple[tuple[str, str, bytes], ...]
    boot_id: str
    at_ns: int
    wall_ns: int
    quarantined: Mapping[str, str]
    """Rows that could not be read, by `kind/id`, with the reason."""
    layers: tuple[StoredLayer, ...] = ()
    here: Mapping[str, str] = field(default_factory=dict)
    """Containers that this boot has made, as their bundles say, with what each calls its sandbox; looked up only when
    something is quarantined."""


Event = CallArrived | CallCancelled | EffectEnded | TimerFired | NetworkChanged | LayerProgressed | JournalLoaded
