"""Everything that one container's spec is made of, in one value."""

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from crio_core.cri import ContainerConfig, NamespaceMode, PodSandboxConfig
from crio_core.image.config import ImageConfig
from crio_core.oci.cdi import ContainerEdits
from crio_core.oci.facts import HostDevice, HostFacts, RootfsFacts, SpecDefaults
from crio_core.values import dataclass

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """What to build the spec of one container from.

    Args:
        sandbox_id: What runtimes that put a pod in one sandbox know it by: the id of its infra container, where it has
            one.
        rootfs_path: Where the root filesystem is mounted on the host.
        namespaces: Paths of namespaces to join, by their runtime-spec kind (`network`, `ipc`, `uts`, `pid`, `user`);
            `pid` is the infra container's for a shared namespace, or the target's.
        resolv_conf_path: Host files to bind at the known places; empty for none.
        shm_path: What /dev/shm is bound to; empty gives the container a small tmpfs of its own.
        image_mounts: Host paths for those mounts of the request that name an image, by their container path.
        devices: The request's devices, looked up on the host.
        host_devices: Every device of the host, read for containers with `all_devices` only.
        without_host_devices: A privileged container has no more devices than another (a runtime handler's option).
        seccomp_profile: The parsed file of a Localhost profile.
        mapped_mounts: Host paths in place of those mounts of the request whose ids are mapped, by their container path.
        edits: What the request's CDI devices add.
        image_name: The image as the caller named it, for annotations.
    """

    container_id: str
    sandbox_id: str
    sandbox: PodSandboxConfig
    config: ContainerConfig
    rootfs_path: str
    image: ImageConfig = field(default_factory=ImageConfig)
    rootfs: RootfsFacts = field(default_factory=RootfsFacts)
    host: HostFacts = field(default_factory=HostFacts)
    defaults: SpecDefaults = field(default_factory=SpecDefaults)
    namespaces: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    resolv_conf_path: str = ""
    hostname_path: str = ""
    shm_path: str = ""
    image_mounts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    devices: tuple[HostDevice, ...] = ()
    host_devices: tuple[HostDevice, ...] = ()
    without_host_devices: bool = False
    seccomp_profile: Mapping[str, Any] | None = None
    mapped_mounts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    edits: ContainerEdits = ContainerEdits()
    image_name: str = ""
    is_sandbox: bool = False

    @property
    def privileged(self) -> bool:
        return self.config.linux.security_context.privileged

    @property
    def all_devices(self) -> bool:
        """Whether the container may use every device of the host."""
        return self.privileged and not self.without_host_devices

    @property
    def hostname(self) -> str:
        """What the pod is called; empty where it shares the node's name."""
        return self.sandbox.hostname

    @property
    def host_network(self) -> bool:
        return self.config.linux.security_context.namespace_options.network is NamespaceMode.NODE

    @property
    def userns(self) -> bool:
        """Whether the container's user ids differ from the node's."""
        return self.config.linux.security_context.namespace_options.userns_options.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class InfraPlan:
    """What to build the spec of a pod's infra container from; the members mean what they do in `ContainerPlan`.

    Args:
        container_id: The infra container's own id at the runtime; empty when it is the sandbox's.
    """

    sandbox_id: str
    sandbox: PodSandboxConfig
    rootfs_path: str
    container_id: str = ""
    image: ImageConfig = field(default_factory=ImageConfig)
    command: tuple[str, ...] = ()
    rootfs: RootfsFacts = field(default_factory=RootfsFacts)
    host: HostFacts = field(default_factory=HostFacts)
    defaults: SpecDefaults = field(default_factory=SpecDefaults)
    namespaces: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    shm_path: str = ""
    seccomp_profile: Mapping[str, Any] | None = None
    image_name: str = ""
