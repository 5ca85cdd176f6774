"""What callers say in CRI v1, as immutable values.

The core is told about pods and containers in these words. Every class mirrors the CRI message of the same name
(`spec/cri/v1/api.proto`), field for field, less what this runtime does not read: the Windows parts and the fields that
the CRI has deprecated. Field names and units are the CRI's own, so that one generic translation serves both ways.
"""

from collections.abc import Mapping
from dataclasses import field
from enum import IntEnum

from crio_core.values import dataclass


class ProfileType(IntEnum):
    """Where a seccomp or AppArmor profile comes from."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class Protocol(IntEnum):
    """Protocol of a port mapping."""

    TCP = 0
    UDP = 1
    SCTP = 2


class MountPropagation(IntEnum):
    """How mounts made later travel between host and container."""

    PROPAGATION_PRIVATE = 0
    PROPAGATION_HOST_TO_CONTAINER = 1
    PROPAGATION_BIDIRECTIONAL = 2


class NamespaceMode(IntEnum):
    """Whose namespace a process joins."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class SupplementalGroupsPolicy(IntEnum):
    """Whether the image's /etc/group adds groups."""

    MERGE = 0
    STRICT = 1


class Signal(IntEnum):
    """A stop signal; RUNTIME_DEFAULT means the image's, else SIGTERM."""

    SIGNAL_RUNTIME_DEFAULT = 0
    SIGNAL_SIGABRT = 1
    SIGNAL_SIGALRM = 2
    SIGNAL_SIGBUS = 3
    SIGNAL_SIGCHLD = 4
    SIGNAL_SIGCLD = 5
    SIGNAL_SIGCONT = 6
    SIGNAL_SIGFPE = 7
    SIGNAL_SIGHUP = 8
    SIGNAL_SIGILL = 9
    SIGNAL_SIGINT = 10
    SIGNAL_SIGIO = 11
    SIGNAL_SIGIOT = 12
    SIGNAL_SIGKILL = 13
    SIGNAL_SIGPIPE = 14
    SIGNAL_SIGPOLL = 15
    SIGNAL_SIGPROF = 16
    SIGNAL_SIGPWR = 17
    SIGNAL_SIGQUIT = 18
    SIGNAL_SIGSEGV = 19
    SIGNAL_SIGSTKFLT = 20
    SIGNAL_SIGSTOP = 21
    SIGNAL_SIGSYS = 22
    SIGNAL_SIGTERM = 23
    SIGNAL_SIGTRAP = 24
    SIGNAL_SIGTSTP = 25
    SIGNAL_SIGTTIN = 26
    SIGNAL_SIGTTOU = 27
    SIGNAL_SIGURG = 28
    SIGNAL_SIGUSR1 = 29
    SIGNAL_SIGUSR2 = 30
    SIGNAL_SIGVTALRM = 31
    SIGNAL_SIGWINCH = 32
    SIGNAL_SIGXCPU = 33
    SIGNAL_SIGXFSZ = 34
    SIGNAL_SIGRTMIN = 35
    SIGNAL_SIGRTMINPLUS1 = 36
    SIGNAL_SIGRTMINPLUS2 = 37
    SIGNAL_SIGRTMINPLUS3 = 38
    SIGNAL_SIGRTMINPLUS4 = 39
    SIGNAL_SIGRTMINPLUS5 = 40
    SIGNAL_SIGRTMINPLUS6 = 41
    SIGNAL_SIGRTMINPLUS7 = 42
    SIGNAL_SIGRTMINPLUS8 = 43
    SIGNAL_SIGRTMINPLUS9 = 44
    SIGNAL_SIGRTMINPLUS10 = 45
    SIGNAL_SIGRTMINPLUS11 = 46
    SIGNAL_SIGRTMINPLUS12 = 47
    SIGNAL_SIGRTMINPLUS13 = 48
    SIGNAL_SIGRTMINPLUS14 = 49
    SIGNAL_SIGRTMINPLUS15 = 50
    SIGNAL_SIGRTMAXMINUS14 = 51
    SIGNAL_SIGRTMAXMINUS13 = 52
    SIGNAL_SIGRTMAXMINUS12 = 53
    SIGNAL_SIGRTMAXMINUS11 = 54
    SIGNAL_SIGRTMAXMINUS10 = 55
    SIGNAL_SIGRTMAXMINUS9 = 56
    SIGNAL_SIGRTMAXMINUS8 = 57
    SIGNAL_SIGRTMAXMINUS7 = 58
    SIGNAL_SIGRTMAXMINUS6 = 59
    SIGNAL_SIGRTMAXMINUS5 = 60
    SIGNAL_SIGRTMAXMINUS4 = 61
    SIGNAL_SIGRTMAXMINUS3 = 62
    SIGNAL_SIGRTMAXMINUS2 = 63
    SIGNAL_SIGRTMAXMINUS1 = 64
    SIGNAL_SIGRTMAX = 65


@dataclass(frozen=True, slots=True, kw_only=True)
class DNSConfig:
    """Name resolution for the pod's /etc/resolv.conf; all empty means the host's own file."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A port of the pod published on the node; `host_port` 0 publishes nothing."""

    protocol: Protocol = Protocol.TCP
    container_port: int = 0
    host_port: int = 0
    host_ip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IDMapping:
    """A run of `length` ids: `container_id` inside is `host_id` outside."""

    host_id: int = 0
    container_id: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNamespace:
    """POD asks for a user namespace with these mappings, NODE for none."""

    mode: NamespaceMode = NamespaceMode.POD
    uids: tuple[IDMapping, ...] = ()
    gids: tuple[IDMapping, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether a user namespace is asked for; clients that know of none send the mode POD without mappings."""
        return self.mode is NamespaceMode.POD and bool(self.uids or self.gids)

    @property
    def root(self) -> tuple[int, int]:
        """The user and the group outside that are root inside; the node's own where there are none."""
        uids, gids = (self.uids, self.gids) if self.wanted else ((), ())
        return (
            next((run.host_id for run in uids if run.container_id == 0), 0),
            next((run.host_id for run in gids if run.container_id == 0), 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOption:
    """Which namespaces are the pod's, the container's own, the node's or another container's."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    userns_options: UserNamespace = UserNamespace()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityProfile:
    """A seccomp or AppArmor choice; `localhost_ref` is read for LOCALHOST only."""

    profile_type: ProfileType = ProfileType.RUNTIME_DEFAULT
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SELinuxOption:
    """The four parts of an SELinux label."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxSandboxSecurityContext:
    """Security of the sandbox itself; None for a user or group means not asked for."""

    namespace_options: NamespaceOption = NamespaceOption()
    selinux_options: SELinuxOption = SELinuxOption()
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile = SecurityProfile()
    apparmor: SecurityProfile = SecurityProfile()


@dataclass(frozen=True, slots=True, kw_only=True)
class HugepageLimit:
    """Bytes of huge pages of one size, such as `2MB`."""

    page_size: str = ""
    limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxContainerResources:
    """Limits; 0 and empty mean not asked for. CPU times are microseconds, sizes are bytes."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)
    memory_swap_limit_in_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxPodSandboxConfig:
    """The Linux part of a sandbox; `cgroup_parent` is a cgroupfs path or a systemd slice."""

    cgroup_parent: str = ""
    security_context: LinuxSandboxSecurityContext = LinuxSandboxSecurityContext()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    overhead: LinuxContainerResources = LinuxContainerResources()
    resources: LinuxContainerResources = LinuxContainerResources()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSandboxMetadata:
    """What names a sandbox: all four fields together are unique on a node."""

    name: str = ""
    uid: str = ""
    namespace: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSandboxConfig:
    """Everything that RunPodSandbox is told."""

    metadata: PodSandboxMetadata = PodSandboxMetadata()
    hostname: str = ""
    log_directory: str = ""
    dns_config: DNSConfig = DNSConfig()
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    linux: LinuxPodSandboxConfig = LinuxPodSandboxConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """An image as the caller names it: a reference, a digest or an image id."""

    image: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A bind mount of `host_path`, or of an image when `image.image` is set."""

    container_path: str = ""
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PROPAGATION_PRIVATE
    uidMappings: tuple[IDMapping, ...] = ()
    gidMappings: tuple[IDMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec = ImageSpec()
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One environment variable; `value` arrives as bytes and must be UTF-8, as the OCI spec is JSON."""

    key: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A host device given to the container; `permissions` is a subset of `rwm`."""

    container_path: str = ""
    host_path: str = ""
    permissions: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CDIDevice:
    """A fully qualified CDI device name, `vendor/class=name`."""

    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Capabilities without or with the CAP_ prefix; `ALL` stands for every one."""

    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxContainerSecurityContext:
    """Security of a container's first process; None for a user or group means the image's."""

    capabilities: Capability = Capability()
    privileged: bool = False
    namespace_options: NamespaceOption = NamespaceOption()
    selinux_options: SELinuxOption = SELinuxOption()
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile = SecurityProfile()
    apparmor: SecurityProfile = SecurityProfile()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxContainerConfig:
    """The Linux part of a container."""

    resources: LinuxContainerResources = LinuxContainerResources()
    security_context: LinuxContainerSecurityContext = LinuxContainerSecurityContext()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerMetadata:
    """What names a container within its sandbox."""

    name: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """Everything that CreateContainer is told."""

    metadata: ContainerMetadata = ContainerMetadata()
    image: ImageSpec = ImageSpec()
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[KeyValue, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    linux: LinuxContainerConfig = LinuxContainerConfig()
    CDI_devices: tuple[CDIDevice, ...] = ()
    stop_signal: Signal = Signal.SIGNAL_RUNTIME_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Credentials for one pull. Never recorded, never logged."""

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""
