"""What the node knows about each object: frozen records, stored as JSON with a schema version.

A record is flat and holds what listing needs. What the caller said in full stays beside it as JSON text (`request`)
and is decoded only when a status or a container's spec asks for it: starting with a thousand records need not.

The stored form is that of dataclasses-json, whose methods records have (`json_methods.py`). The server writes it by
`orjson.dumps` and reads it by `crio_core.reader`, which checks types by the annotations here.
"""

from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import orjson

from crio_core.cri import ContainerMetadata, PodSandboxMetadata
from crio_core.errors import Code, LocalError, OperationError
from crio_core.json_methods import JsonMethods
from crio_core.reader import read
from crio_core.values import Word, dataclass, maker

T = TypeVar("T")
REQUESTS_KEPT_MAX = 128
"""Decoded requests that are kept, the latest: a pod's is wanted several times while it is made and taken down."""


class SandboxState(Word):
    """Where a pod sandbox is in its life (`crio_core/lifecycle/sandbox.py`)."""

    RESERVED = "reserved"
    PREPARING = "preparing"
    NETWORK = "network"
    INFRA = "infra"
    READY = "ready"
    BROKEN = "broken"
    STOPPING = "stopping"
    DETACHING = "detaching"
    STOPPED = "stopped"
    REMOVING = "removing"
    CLEANING = "cleaning"
    UNWINDING = "unwinding"
    OWING = "owing"
    GONE = "gone"


class ContainerState(Word):
    """Where a container is in its life (`crio_core/lifecycle/container.py`)."""

    RESERVED = "reserved"
    ROOTFS = "rootfs"
    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    KILLING = "killing"
    EXITED = "exited"
    REMOVING = "removing"
    UNWINDING = "unwinding"
    OWING = "owing"
    GONE = "gone"


class ImageState(Word):
    """Where an image is in its life (`crio_core/lifecycle/image.py`)."""

    RESOLVING = "resolving"
    FETCHING = "fetching"
    RECORDING = "recording"
    READY = "ready"
    REMOVING = "removing"
    GONE = "gone"


class LayerState(Word):
    """Where a layer is in its life (`crio_core/lifecycle/layer.py`)."""

    ABSENT = "absent"
    FETCHING = "fetching"
    APPLYING = "applying"
    APPLIED = "applied"
    PROVING = "proving"
    KEPT = "kept"
    REMOVING = "removing"
    OWING = "owing"
    GONE = "gone"


class SessionState(Word):
    """Where a command or stream in a container is in its life (`crio_core/lifecycle/session.py`)."""

    OFFERED = "offered"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class Part(Word):
    """Something outside the process that a record owns, and that a release order takes away again."""

    FILES = "files"
    NAMESPACES = "namespaces"
    NETWORK = "network"
    INFRA = "infra"
    ROOTFS = "rootfs"
    RUNTIME = "runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An operation's failure as data: the status a caller sees, a stable word, and a sentence."""

    code: int
    reason: str
    message: str

    @staticmethod
    def of(error: OperationError) -> "Failure":
        return _new_failure(code=error.code.value, reason=error.reason, message=error.message)

    def error(self) -> OperationError:
        """The same as an exception."""
        return OperationError(Code(self.code), self.reason, self.message)


_new_failure = maker(Failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A namespace held by a bind mount; `inode` tells whether the mount is still that namespace."""

    kind: str
    path: str
    inode: int


@dataclass(frozen=True, kw_only=True)
class ImageVolume:
    """An image that a container sees mounted, or what is at `sub_path` in it (CRI, Mount.image)."""

    target: str
    """Where, inside the container."""
    image_id: str
    layers: tuple[str, ...] = ()
    """Diff ids, lowest first."""
    sub_path: str = ""


@dataclass(frozen=True, kw_only=True)
class SandboxRecord(JsonMethods):
    """A pod sandbox. Times are wall-clock nanoseconds since 1970; `holds` is in order of taking."""

    SCHEMA: ClassVar[int] = 1
    KIND: ClassVar[str] = "sandbox"

    id: str
    state: SandboxState
    metadata: PodSandboxMetadata
    created_at_ns: int
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    runtime_handler: str = ""
    request: str = ""
    boot_id: str = ""
    network: str = ""
    """The network configuration that was current when the sandbox was reserved; empty for host network."""
    plan: tuple[Part, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """What is set in its namespaces: the configuration's defaults, and its own."""
    holds: tuple[Part, ...] = ()
    pins: tuple[Pin, ...] = ()
    attachment: str = ""
    """What the plugins' ADD returned and the DEL needs, as JSON."""
    ips: tuple[str, ...] = ()
    failure: Failure | None = None
    doomed: bool = False
    retries: int = 0
    generation: int = 0
    """Grows with each sandbox and container that the node makes, whatever its clocks do; 0 in old records."""
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class ContainerRecord(JsonMethods):
    """A container. Times are wall-clock nanoseconds since 1970, 0 when it has not happened yet."""

    SCHEMA: ClassVar[int] = 1
    KIND: ClassVar[str] = "container"

    id: str
    sandbox_id: str
    state: ContainerState
    metadata: ContainerMetadata
    created_at_ns: int
    image: str = ""
    """The image as the caller named it."""
    image_id: str = ""
    image_ref: str = ""
    layers: tuple[str, ...] = ()
    """Diff ids of the image's layers, lowest first."""
    volumes: tuple[ImageVolume, ...] = ()
    """Images that it sees mounted, in the order of the request's mounts."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    runtime_handler: str = ""
    log_path: str = ""
    stop_signal: str = "15"
    """The signal that asks it to end, as a number, since not every runtime knows the names of real-time signals."""
    request: str = ""
    infra: bool = False
    holds: tuple[Part, ...] = ()
    pid: int = 0
    pid_start_ticks: int = 0
    monitor_pid: int = 0
    process: str = ""
    """The OCI process of the container's first process, as JSON: what an exec inherits."""
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    failure: Failure | None = None
    kill_at_ns: int = 0
    """Monotonic time of the earliest kill that any stop asked for; 0 when none did."""
    cancelled: bool = False
    doomed: bool = False
    retries: int = 0
    generation: int = 0
    """Grows with each sandbox and container that the node makes, whatever its clocks do; 0 in old records."""
    version: int = 1

    @property
    def every_layer(self) -> tuple[str, ...]:
        """The layers that must stay while the container does: its image's, and those of the images that it mounts."""
        return (*self.layers, *(layer for volume in self.volumes for layer in volume.layers))

    @property
    def every_image(self) -> tuple[str, ...]:
        """Ids of the images that must stay while the container does."""
        return (self.image_id, *(volume.image_id for volume in self.volumes))


@dataclass(frozen=True, kw_only=True)
class ImageRecord(JsonMethods):
    """An image in the store; its id is the digest of its configuration. Sizes are bytes as stored."""

    SCHEMA: ClassVar[int] = 1
    KIND: ClassVar[str] = "image"

    id: str
    state: ImageState
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    """Repository digests, `docker.io/library/redis@sha256:...`."""
    layers: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    """Digest of the blob that each layer was proven to be the content of, in the order of `layers`."""
    size_bytes: int = 0
    user: str = ""
    config: str = ""
    """The image configuration as the registry gave it, JSON."""
    created_at_ns: int = 0
    pinned: bool = False
    """Decided anew for each answer, by the settings of that moment; in the journal it means nothing."""
    failure: Failure | None = None
    version: int = 1


LOST = ("journal", "lost")
"""Kind and id of what is set aside when records are lost and nobody knows of what."""

Record = SandboxRecord | ContainerRecord | ImageRecord
RECORD_TYPES: Mapping[str, type[SandboxRecord] | type[ContainerRecord] | type[ImageRecord]] = {
    kind.KIND: kind for kind in (SandboxRecord, ContainerRecord, ImageRecord)
}


def encode(record: Record) -> bytes:
    """The JSON bytes that `decode` reads back."""
    return orjson.dumps(record)


def is_current(kind: str, data: bytes) -> bool:
    """Whether these bytes are of the schema that this version writes, without reading all of them."""
    cls = RECORD_TYPES.get(kind)
    return cls is not None and data.endswith(b'"version":%d}' % cls.SCHEMA)


def decode(kind: str, data: bytes) -> Record:
    """A record out of the journal.

    Raises:
        LocalError: The bytes are not a record of this kind, or of a schema that this version does not know.
    """
    cls = RECORD_TYPES.get(kind)
    if cls is None:
        raise LocalError(f"record kind {kind!r} is not known")
    try:
        fields = orjson.loads(data)
        if fields["version"] != cls.SCHEMA:
            raise LocalError(f"{kind} record has schema version {fields['version']!r}, this version reads {cls.SCHEMA}")
        return read(cls, fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LocalError(f"{kind} record cannot be read: {error!r}") from error


def decode_request(cls: type[T], text: str) -> T:
    """The CRI message that a record's `request` holds; `cls` is its class in `crio_core.cri`."""
    kind: Any = cls
    decoded: T = _decoded(kind, text)
    return decoded


@lru_cache(maxsize=REQUESTS_KEPT_MAX)
def _decoded(cls: Any, text: str) -> Any:
    return read(cls, orjson.loads(text))
