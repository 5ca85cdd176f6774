"""What the core needs to know of the configuration and of the host."""

from collections.abc import Mapping
from dataclasses import field

from crio_core.cri import Device
from crio_core.layout import Layout
from crio_core.oci.facts import HostFacts, SpecDefaults
from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A runtime handler. A VM runtime needs an infra container to be the pod's machine."""

    name: str
    vm: bool = False
    allowed_annotations: tuple[str, ...] = ()
    privileged_without_host_devices: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decisions depend on and that is not in an event."""

    layout: Layout
    host: HostFacts
    defaults: SpecDefaults
    handlers: Mapping[str, Handler] = field(default_factory=lambda: {"runc": Handler(name="runc")})
    default_handler: str = "runc"
    drop_infra: bool = True
    pause_image: str = "registry.k8s.io/pause:3.10"
    pause_command: tuple[str, ...] = ("/pause",)
    pinned_images: tuple[str, ...] = ()
    """Glob patterns of references that may not be collected, besides the pause image."""
    log_directory: str = ""
    """Where pods have their logs whose request names no directory; empty for nowhere."""
    additional_devices: tuple[Device, ...] = ()
    image_volumes: bool = True
    """Whether the volumes that an image declares become directories in its containers."""
