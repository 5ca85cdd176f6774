"""What the builder must know of the world, as values that somebody else gathered.

The spec of a container depends on files of its image, on the kernel and on the configuration. Each of the three arrives
in one of these classes, so that the builder stays a function.
"""

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from types import MappingProxyType
from typing import Any

from crio_core.oci.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from crio_core.values import dataclass

ROOTFS_FILE_BYTES_MAX = 1024 * 1024


class CgroupMode(Enum):
    """Which cgroup hierarchies hold the controllers."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


class CgroupDriver(Enum):
    """Who makes cgroups: the runtime itself, or systemd on its request."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True, kw_only=True)
class RootfsFacts:
    """Files of the image that decide about users; empty when the image has no such file."""

    passwd: bytes = b""
    group: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    """One limit of setrlimit(2); `name` has no RLIMIT_ prefix, and -1 means unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The node, looked at once at start.

    Args:
        architecture: The machine as `uname -m` says it.
        controllers: Names of the cgroup controllers at hand; a v1 `cpu,cpuacct` counts as both.
        capabilities: The bounding set of this process: nothing can be given that is not in it.
        oom_score_adj_min: The lowest score that may be set without CAP_SYS_RESOURCE.
        rlimits: This process's own limits: the hard ones cannot be exceeded without CAP_SYS_RESOURCE.
        userns_lack: Why pods cannot have user namespaces of their own; empty when they can.
    """

    architecture: str = "x86_64"
    cgroup_mode: CgroupMode = CgroupMode.V2
    cgroup_driver: CgroupDriver = CgroupDriver.CGROUPFS
    controllers: frozenset[str] = frozenset({"cpu", "cpuset", "memory", "pids", "hugetlb", "devices"})
    swap_limits: bool = True
    capabilities: tuple[str, ...] = ALL_CAPABILITIES
    oom_score_adj_min: int = -1000
    rlimits: tuple[Rlimit, ...] = ()
    seccomp: bool = True
    apparmor: bool = False
    selinux: bool = False
    userns_lack: str = ""

    @property
    def can_raise_limits(self) -> bool:
        """Whether negative OOM scores and raised rlimits are allowed."""
        return "CAP_SYS_RESOURCE" in self.capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDevice:
    """A device node as it stands on the host, and where the container is to see it.

    Args:
        path: In the container.
        kind: `c`, `b` or `p`, as in the runtime-spec.
        mode: Permission bits.
        permissions: What the devices cgroup allows: letters of `rwm`.
    """

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecDefaults:
    """What the configuration says about every container, in CRI-O's words ([crio.runtime]).

    Args:
        default_env: `NAME=value` each.
        default_sysctls: Applied where the pod's namespaces are its own, dropped where they are the node's.
        seccomp_profile: A parsed profile in place of the built-in one.
        apparmor_profile: Name of the profile that stands for the runtime's default; empty for none.
        pids_limit: 0 or less for none.
        allowed_annotations: Keys that a pod may pass on to the runtime; see `annotations.py`.
    """

    default_capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    default_env: tuple[str, ...] = ()
    default_sysctls: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_ulimits: tuple[Rlimit, ...] = ()
    seccomp_profile: Mapping[str, Any] | None = None
    apparmor_profile: str = "crio-default"
    pids_limit: int = 0
    hostnetwork_disable_selinux: bool = True
    allowed_annotations: tuple[str, ...] = ()
    read_only: bool = False
