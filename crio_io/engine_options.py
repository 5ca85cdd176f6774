"""How an engine is set up, and what follows from that: where everything lies, what the core decides by, and which
runtimes and monitors there are."""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path, PurePosixPath

from crio_core.cri import Device
from crio_core.errors import Code, OperationError
from crio_core.layout import Layout
from crio_core.node import Handler, Settings
from crio_core.oci.facts import HostFacts, SpecDefaults
from crio_core.values import dataclass
from crio_io.cgroups import Cgroups
from crio_io.monitor import ConmonMonitor
from crio_io.moves import Moves
from crio_io.registry.configuration import RegistryOptions
from crio_io.runtime import OciRuntime
from crio_io.streaming.streams import IDLE_S
from crio_io.zygote import ZygoteClient

log = logging.getLogger(__name__)

BUILT_IN_MONITOR = "conmon"
"""What a forked monitor calls itself in place of a program's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """One OCI runtime: its program, where it keeps its state, and its monitor program."""

    path: str = "runc"
    root: str = "/run/runc"
    vm: bool = False
    allowed_annotations: tuple[str, ...] = ()
    privileged_without_host_devices: bool = False
    no_sync_log: bool = True
    """Whether logs of containers that have ended get to the disk when the kernel likes."""
    monitor_path: str = ""
    """A program with conmon's command line; empty for the monitors that are built in."""
    monitor_env: Mapping[str, str] = field(default_factory=dict)
    monitor_cgroup: str = ""
    """A path, or a slice of systemd's; empty leaves monitors where the engine is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine is set up; the defaults are those of `crio`."""

    root: Path = Path("/var/lib/crio")
    runroot: Path = Path("/run/crio")
    runtimes: Mapping[str, RuntimeOptions] = field(default_factory=lambda: {"runc": RuntimeOptions()})
    default_runtime: str = "runc"
    systemd_cgroup: bool = False
    cni_config_dir: str = "/etc/cni/net.d"
    cni_plugin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    cni_default_network: str = ""
    drop_infra: bool = True
    pause_image: str = "registry.k8s.io/pause:3.10"
    pause_command: tuple[str, ...] = ("/pause",)
    pinned_images: tuple[str, ...] = ()
    log_size_max_bytes: int = -1
    namespaces_dir: str = ""
    exits_dir: str = ""
    attach_dir: str = ""
    log_directory: str = ""
    additional_devices: tuple[Device, ...] = ()
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    image_volumes: bool = True
    selinux: bool = False
    defaults: SpecDefaults = SpecDefaults()
    registries: RegistryOptions = RegistryOptions()
    stream_idle_s: float = IDLE_S
    """How long nothing may move on a stream of a client."""
    version: str = ""
    """Of the program around the engine, for recordings."""
    record: Path | None = None
    """A file to record everything in that the node is told; the latest of it is always kept in memory."""


def _program(path: str, what: str) -> str:
    found = shutil.which(path)
    if found is None:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "PROGRAM_NOT_FOUND",
            f"{what}: {path!r} is not an executable file, nor one in $PATH",
        )
    return os.path.realpath(found) if os.path.isabs(path) else found


def set_up_runtimes(
    options: EngineOptions, layout: Layout, cgroups: Cgroups, zygote: ZygoteClient
) -> tuple[EngineOptions, dict[str, ConmonMonitor]]:
    """The options without the runtime handlers whose program is missing, and the monitors of all, by handler.

    Containers may be left of a handler that has lost its program: they are looked after as well as can be.

    Raises:
        OperationError: PROGRAM_NOT_FOUND, the default runtime's or a monitor's.
    """
    monitors = {}
    moves = Moves(cgroups)
    usable = dict(options.runtimes)
    for name, runtime in options.runtimes.items():
        path = runtime.path
        try:
            path = _program(runtime.path, f"runtime {name}")
        except OperationError as error:
            if name == options.default_runtime:
                raise
            log.warning("pods cannot have runtime handler %s: %s", name, error.message)
            del usable[name]
        oci = OciRuntime(
            name,
            path,
            runtime.root,
            systemd_cgroup=options.systemd_cgroup,
            scratch=Path(layout.scratch),
            moves=moves,
        )
        monitors[name] = ConmonMonitor(
            _program(runtime.monitor_path, f"monitor of runtime {name}") if runtime.monitor_path else BUILT_IN_MONITOR,
            oci,
            exit_dir=Path(layout.exits),
            socket_dir=Path(layout.attach),
            cgroups=cgroups,
            cgroup=runtime.monitor_cgroup,
            log_size_max_bytes=options.log_size_max_bytes,
            no_sync_log=runtime.no_sync_log,
            env=runtime.monitor_env or {"PATH": os.environ.get("PATH", os.defpath)},
            zygote=None if runtime.monitor_path else zygote,
        )
    return replace(options, runtimes=usable), monitors


def layout_of(options: EngineOptions) -> Layout:
    """Where everything of an engine lies."""
    return Layout(
        root=PurePosixPath(options.root),
        runroot=PurePosixPath(options.runroot),
        namespaces_dir=options.namespaces_dir,
        exits_dir=options.exits_dir,
        attach_dir=options.attach_dir,
    )


def settings_of(options: EngineOptions, layout: Layout, facts: HostFacts) -> Settings:
    """What the core decides by."""
    return Settings(
        layout=layout,
        host=facts,
        defaults=options.defaults,
        handlers={
            name: Handler(
                name=name,
                vm=one.vm,
                allowed_annotations=one.allowed_annotations,
                privileged_without_host_devices=one.privileged_without_host_devices,
            )
            for name, one in options.runtimes.items()
        },
        default_handler=options.default_runtime,
        drop_infra=options.drop_infra,
        pause_image=options.pause_image,
        pause_command=options.pause_command,
        pinned_images=options.pinned_images,
        log_directory=options.log_directory,
        additional_devices=options.additional_devices,
        image_volumes=options.image_volumes,
    )
