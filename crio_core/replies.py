"""What callers are answered: values that the server turns into CRI messages."""

from collections.abc import Mapping

from crio_core.records import (
    ContainerRecord,
    ContainerState,
    Failure,
    ImageRecord,
    SandboxRecord,
    SandboxState,
)
from crio_core.requests import Offerable
from crio_core.values import dataclass

READY_STATES = frozenset({SandboxState.READY})
LISTED_SANDBOX_STATES = frozenset(
    {
        SandboxState.READY,
        SandboxState.BROKEN,
        SandboxState.STOPPING,
        SandboxState.DETACHING,
        SandboxState.STOPPED,
        SandboxState.REMOVING,
        SandboxState.CLEANING,
    }
)
"""The states in which clients can see a sandbox: not before its creation was answered, not after its removal was."""

CONTAINER_STATES = {
    ContainerState.CREATED: "created",
    ContainerState.STARTING: "created",
    ContainerState.RUNNING: "running",
    ContainerState.STOPPING: "running",
    ContainerState.KILLING: "running",
    ContainerState.EXITED: "exited",
    ContainerState.REMOVING: "exited",
}
"""What the CRI calls the states in which clients can see a container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """It is as the caller wants it to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The id of the sandbox or container that now exists."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFound:
    """A sandbox and the containers in it, the infra container apart."""

    sandbox: SandboxRecord
    containers: tuple[ContainerRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandboxes:
    """Sandboxes, newest first."""

    items: tuple[SandboxRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFound:
    """A container."""

    container: ContainerRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Containers:
    """Containers, newest first."""

    items: tuple[ContainerRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """The output and exit code of a command."""

    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A stream may be opened, once and soon, by whoever has the token; `purpose` is that of `OpenStream`."""

    purpose: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A stream was opened; what its client asked for says how to speak to it."""

    session_id: str
    request: Offerable


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """The id of the image that a reference now means."""

    image_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFound:
    """An image, or None."""

    image: ImageRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images, in order of id."""

    items: tuple[ImageRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """Whether pods can have a network, and why not; what is quarantined and owed."""

    network_ready: bool
    network_reason: str
    quarantined: tuple[tuple[str, str], ...]
    owing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """An explanation, as values that JSON has (`crio_core/node/explain.py` says which)."""

    about: Mapping[str, object]


Result = (
    Done
    | Created
    | SandboxFound
    | Sandboxes
    | ContainerFound
    | Containers
    | Executed
    | Offered
    | Opened
    | Pulled
    | ImageFound
    | Images
    | NodeStatus
    | Explained
    | Failure
)
