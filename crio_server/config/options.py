"""Every option there is, once: its key, its kind, its default, its flag and what it means.

The fields of `Config` are the table. Parsing, flags, the printed configuration, the commented default, reload and the
reference page are all made from it. Table and key names, flags and environment variables are CRI-O's (crio.conf(5),
crio(8)); options that CRI-O has and this runtime does not act on are in `elsewhere`.
"""

from crio_core.errors import invalid
from crio_core.values import dataclass
from crio_server.config.handler import ENVIRONMENT, HANDLER_NAME, MONITOR_CGROUP, NAMES, RuntimeHandler
from crio_server.config.kinds import Choice, FilePath, Integer, IpAddress, ListOf, Switch, Text
from crio_server.config.option import Option, option, rows

LOG_BYTES_LEAST = 8192
DEFAULT_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "KILL",
)

_DIRECTORIES = ListOf(FilePath())
_CAPABILITIES = ListOf(
    Text(pattern=r"(?!CAP_)[A-Z][A-Z0-9_]{1,40}", form="a capability such as NET_RAW", may_be_empty=False)
)
_SYSCTLS = ListOf(
    Text(
        pattern=r"[A-Za-z0-9_][A-Za-z0-9_.*/-]*=[^=]*",
        form="name=value, such as net.ipv4.ip_forward=1",
        may_be_empty=False,
    )
)
_ULIMITS = ListOf(
    Text(
        pattern=r"[A-Za-z_]+=(?:-1|[0-9]{1,19}):(?:-1|[0-9]{1,19})",
        form="name=soft:hard, such as nofile=1024:2048",
        may_be_empty=False,
    )
)
_DEVICES = ListOf(
    Text(pattern=r"/dev/[^:]+(?::/[^:]+)?(?::[rwm]{1,3})?", form="/dev/HOST[:/dev/CONTAINER[:rwm]]", may_be_empty=False)
)
_REGISTRIES = ListOf(
    Text(pattern=r"[A-Za-z0-9*.:\[\]_/-]+", form="a registry such as registry.example.com:5000", may_be_empty=False)
)
_DURATION_FORM = r"0|(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|ms|s|m|h))+"
_DURATION = Text(pattern=_DURATION_FORM, form="a duration such as 45s or 1m30s", may_be_empty=False)
_PORT = Text(
    pattern=r"[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]",
    form='a port from 0 to 65535, as text such as "10010"',
    may_be_empty=False,
)

_API = "crio.api"
_RUNTIME = "crio.runtime"
_IMAGE = "crio.image"
_NETWORK = "crio.network"
_METRICS = "crio.metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration of a server; `Config()` is the default one.

    Options whose default is empty here and whose documentation says that they follow another one are filled in from it
    when the object is made, so a reader never sees them empty.
    """

    root: str = option(
        "/var/lib/crio",
        "crio",
        FilePath(),
        "Directory of what must outlive a reboot: images, layers, records.",
        flags="--root -r",
    )
    runroot: str = option(
        "/run/crio",
        "crio",
        FilePath(),
        "Directory of what a reboot may take away: namespaces, sockets, exit files, bundles.",
    )
    log_dir: str = option(
        "/var/log/crio/pods",
        "crio",
        FilePath(),
        "Directory of the logs of pods whose request names no log directory.",
    )
    version_file: str = option(
        "",
        "crio",
        FilePath(),
        "File that a reboot removes; its absence at start means that the machine was rebooted.",
        follows=("runroot", "/version"),
    )
    internal_wipe: bool = option(
        True,
        "crio",
        Switch(),
        "Leave what a reboot left behind to the server, which clears it up at each start: crio wipe does nothing "
        "unless it is forced.",
    )

    listen: str = option("/run/crio/crio.sock", _API, FilePath(), "Unix socket on which the CRI is served.")

    stream_address: str = option(
        "127.0.0.1",
        _API,
        IpAddress(),
        "IP address at which streams (exec, attach, port-forward) are served. Empty, 0.0.0.0 and ::: every one of "
        "the node.",
    )
    stream_port: str = option("0", _API, _PORT, "Port of the streams; 0 for any that is free.")
    stream_idle_timeout: str = option(
        "",
        _API,
        Text(pattern=_DURATION_FORM, form="a duration such as 30m"),
        "How long nothing may move on a stream until it is ended. Empty, and 0: 4 hours.",
    )
    stream_enable_tls: bool = option(
        False, _API, Switch(), "Serve streams over TLS; needs stream_tls_cert and stream_tls_key."
    )
    stream_tls_cert: str = option(
        "", _API, FilePath(may_be_empty=True), "File of the certificate of the streams. Read again for each connection."
    )
    stream_tls_key: str = option(
        "", _API, FilePath(may_be_empty=True), "File of its key. Read again for each connection."
    )
    stream_tls_ca: str = option(
        "",
        _API,
        FilePath(may_be_empty=True),
        "File of the authorities whose certificates clients of streams must have. Empty: they need none.",
    )

    default_runtime: str = option(
        "runc",
        _RUNTIME,
        Text(pattern=HANDLER_NAME, form="the name of a runtime handler", may_be_empty=False),
        "Runtime handler of pods that ask for none; must be in the table of runtimes.",
        live=True,
    )
    conmon: str = option(
        "",
        _RUNTIME,
        FilePath(may_be_empty=True),
        "Monitor program: any that takes conmon's command line. Empty: the built-in monitors.",
        live=True,
    )
    conmon_cgroup: str = option(
        "",
        _RUNTIME,
        MONITOR_CGROUP,
        "Cgroup of the monitors: a path, or a slice, in which systemd makes each a scope. Empty, and `pod`: the "
        "server's own, since a monitor must not share its pod's limits.",
    )
    conmon_env: tuple[str, ...] = option(
        ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
        _RUNTIME,
        ENVIRONMENT,
        "Environment of the monitor and of the runtime that it calls.",
        live=True,
    )
    cgroup_manager: str = option(
        "",
        _RUNTIME,
        Choice(("", "systemd", "cgroupfs")),
        "Who makes cgroups: systemd or cgroupfs. Empty: systemd where it runs the machine, cgroupfs elsewhere, decided "
        "and said when the configuration is loaded.",
    )
    default_env: tuple[str, ...] = option(
        (), _RUNTIME, ENVIRONMENT, "Environment of every container; the image and the request override it.", live=True
    )
    default_capabilities: tuple[str, ...] = option(
        DEFAULT_CAPABILITIES,
        _RUNTIME,
        _CAPABILITIES,
        "Capabilities of containers whose request says nothing else, without CAP_.",
        live=True,
    )
    default_sysctls: tuple[str, ...] = option(
        (), _RUNTIME, _SYSCTLS, "Sysctls of every pod; the request overrides them. Namespaced ones only.", live=True
    )
    default_ulimits: tuple[str, ...] = option(
        (), _RUNTIME, _ULIMITS, "Limits of every container. A limit not given is inherited from the server.", live=True
    )
    additional_devices: tuple[str, ...] = option(
        (), _RUNTIME, _DEVICES, "Devices that every container gets.", live=True
    )
    cdi_spec_dirs: tuple[str, ...] = option(
        ("/etc/cdi", "/var/run/cdi"),
        _RUNTIME,
        _DIRECTORIES,
        "Directories of specifications of CDI devices; one in a later directory comes before one in an earlier.",
        flags="--cdi-spec-dirs",
        env="CONTAINER_CDI_SPEC_DIRS",
        live=True,
    )
    seccomp_profile: str = option(
        "",
        _RUNTIME,
        FilePath(may_be_empty=True),
        "File of the seccomp profile called runtime/default. Empty: the built-in one. Read again at each reload.",
        live=True,
    )
    apparmor_profile: str = option(
        "crio-default",
        _RUNTIME,
        Text(may_be_empty=False),
        "AppArmor profile called runtime/default; unconfined turns AppArmor off. crio-default is loaded if need be.",
        live=True,
    )
    selinux: bool = option(
        False,
        _RUNTIME,
        Switch(),
        "Label the processes of containers for SELinux. Their files and volumes are not labelled.",
    )
    pids_limit: int = option(
        -1,
        _RUNTIME,
        Integer(1, also=(0, -1)),
        "Most processes in a container whose request sets no limit; 0 and -1 mean no limit.",
        live=True,
    )
    log_size_max_bytes: int = option(
        -1,
        _RUNTIME,
        Integer(LOG_BYTES_LEAST, also=(-1,)),
        "Size at which a container's log file is started anew, in bytes; -1 leaves rotation to the kubelet.",
        key="log_size_max",
        live=True,
    )
    drop_infra_ctr: bool = option(
        True,
        _RUNTIME,
        Switch(),
        "Run pods without an infra container where none is needed (it is for a shared process namespace and for vm "
        "runtimes). false: every pod has one.",
        live=True,
    )
    read_only: bool = option(
        False,
        _RUNTIME,
        Switch(),
        "Mount every container's root filesystem read-only, with tmpfs on /run, /tmp, /var/tmp.",
        live=True,
    )
    namespaces_dir: str = option(
        "", _RUNTIME, FilePath(), "Directory in which the namespaces of pods are pinned.", follows=("runroot", "/ns")
    )
    container_exits_dir: str = option(
        "",
        _RUNTIME,
        FilePath(),
        "Directory in which monitors write the exit codes of containers; on a disk, so that they outlive a reboot.",
        follows=("root", "/exits"),
        env="CONTAINER_EXITS_DIR",
    )
    container_attach_socket_dir: str = option(
        "",
        _RUNTIME,
        FilePath(),
        "Directory of the attach sockets of containers.",
        follows=("runroot", ""),
        env="CONTAINER_ATTACH_SOCKET_DIR",
    )
    log_level: str = option(
        "info",
        _RUNTIME,
        Choice(("trace", "debug", "info", "warn", "error", "fatal", "panic"), aliases=(("warning", "warn"),)),
        "Least level of the server's own log.",
        flags="--log-level -l",
        live=True,
    )
    log_file: str = option(
        "",
        _RUNTIME,
        FilePath(may_be_empty=True),
        "File of the server's own log. Empty: standard error. CRI-O has this as a flag only.",
        flags="--log",
        env="CONTAINER_LOG",
    )
    log_format: str = option(
        "text",
        _RUNTIME,
        Choice(("text", "json")),
        "Form of the server's own log. CRI-O has this as a flag only.",
    )

    pause_image: str = option(
        "registry.k8s.io/pause:3.10",
        _IMAGE,
        Text(pattern=r"\S+", form="an image reference", may_be_empty=False),
        "Image of infra containers; it is pinned.",
        live=True,
    )
    pause_command: str = option(
        "/pause",
        _IMAGE,
        Text(),
        "Command of infra containers. Empty: the image's own entrypoint and command.",
        live=True,
    )
    global_auth_file: str = option(
        "",
        _IMAGE,
        FilePath(may_be_empty=True),
        "Credentials for pulls whose request brings none (containers-auth.json(5)).",
        live=True,
    )
    pull_progress_timeout: str = option(
        "0s",
        _IMAGE,
        _DURATION,
        "How long a layer may come at less than 8 KiB/s before its source is given up for the next one. 0: 30 seconds.",
        live=True,
    )
    pinned_images: tuple[str, ...] = option(
        (),
        _IMAGE,
        NAMES,
        "Images that the kubelet must not collect: exact names, or patterns with * at the end or on both sides.",
        live=True,
    )
    signature_policy: str = option(
        "",
        _IMAGE,
        FilePath(may_be_empty=True),
        "Signature policy (containers-policy.json(5)). Empty: /etc/containers/policy.json.",
        live=True,
    )
    signature_policy_dir: str = option(
        "/etc/crio/policies",
        _IMAGE,
        FilePath(),
        "Directory of signature policies for one namespace each, NAMESPACE.json.",
        live=True,
    )
    insecure_registries: tuple[str, ...] = option(
        (),
        _IMAGE,
        _REGISTRIES,
        "Registries (host[:port] or a CIDR block) reached over plain HTTP or with unverified TLS.",
        flags="--insecure-registry",
        env="CONTAINER_INSECURE_REGISTRY",
        live=True,
    )
    registries: tuple[str, ...] = option(
        (),
        _IMAGE,
        _REGISTRIES,
        "Registries tried in order for a short name such as redis:alpine. Empty: as registries.conf(5) says.",
        flags="--registry",
        env="CONTAINER_REGISTRY",
        live=True,
    )
    registries_conf: str = option(
        "/etc/containers/registries.conf",
        _IMAGE,
        FilePath(may_be_empty=True),
        "File of containers-registries.conf(5). Empty: none. CRI-O has this as a flag only.",
        live=True,
    )
    registries_conf_dir: str = option(
        "/etc/containers/registries.conf.d",
        _IMAGE,
        FilePath(may_be_empty=True),
        "Drop-in directory of containers-registries.conf(5). Empty: none. CRI-O has this as a flag only.",
        live=True,
    )
    image_volumes: str = option(
        "mkdir",
        _IMAGE,
        Choice(("mkdir", "ignore")),
        "Volumes that an image declares: mkdir makes a directory in the container, ignore does nothing.",
        live=True,
    )

    network_dir: str = option(
        "/etc/cni/net.d",
        _NETWORK,
        FilePath(),
        "Directory of CNI configurations.",
        flags="--cni-config-dir",
        env="CONTAINER_CNI_CONFIG_DIR",
        live=True,
    )
    plugin_dirs: tuple[str, ...] = option(
        ("/opt/cni/bin", "/usr/lib/cni"),
        _NETWORK,
        _DIRECTORIES,
        "Directories of CNI plugins, searched in order.",
        flags="--cni-plugin-dir",
        env="CONTAINER_CNI_PLUGIN_DIR",
        live=True,
    )
    cni_default_network: str = option(
        "", _NETWORK, Text(), "Name of the CNI network of pods. Empty: the first valid one by file name.", live=True
    )

    enable_metrics: bool = option(
        False,
        _METRICS,
        Switch(),
        "Serve metrics for Prometheus over TCP. They are always at /metrics on the CRI's socket.",
        flags="--enable-metrics",
        env="CONTAINER_ENABLE_METRICS",
    )
    metrics_host: str = option(
        "127.0.0.1",
        _METRICS,
        Text(),
        "Address or name at which metrics are served. Empty: every address of the node.",
        flags="--metrics-host",
        env="CONTAINER_METRICS_HOST",
    )
    metrics_port: int = option(
        9090,
        _METRICS,
        Integer(0, 65535),
        "Port at which metrics are served; 0 for any that is free, which the log tells.",
        flags="--metrics-port",
        env="CONTAINER_METRICS_PORT",
    )

    runtimes: tuple[RuntimeHandler, ...] = (RuntimeHandler(name="runc"),)

    def __post_init__(self) -> None:
        for row in OPTIONS:
            if row.follows and not getattr(self, row.name):
                source, suffix = row.follows
                object.__setattr__(self, row.name, f"{getattr(self, source).rstrip('/')}{suffix}" or "/")

    def handler(self, name: str) -> RuntimeHandler:
        """The runtime handler that a pod asks for; an empty name asks for the default (CRI: RunPodSandboxRequest).

        Raises:
            OperationError: No handler has that name.
        """
        wanted = name or self.default_runtime
        for candidate in self.runtimes:
            if candidate.name == wanted:
                return candidate
        raise invalid("runtime_handler", wanted, "one of " + ", ".join(handler.name for handler in self.runtimes))


OPTIONS: tuple[Option, ...] = rows(Config)
"""Every option of `Config` but the table of runtimes, in the order of the printed configuration."""
