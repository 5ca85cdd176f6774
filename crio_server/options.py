"""From the configuration to what an engine is set up with."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from crio_core.cri import Device
from crio_core.errors import Code, OperationError, invalid
from crio_core.oci import sysctls
from crio_core.oci.facts import Rlimit, SpecDefaults
from crio_io.engine_options import EngineOptions, RuntimeOptions
from crio_io.registry.configuration import RegistryOptions
from crio_io.streaming.listener import ListenerOptions, Tls
from crio_io.streaming.streams import IDLE_S
from crio_server.config import Config, RuntimeHandler

PROFILE_BYTES_MAX = 1024 * 1024
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"([0-9.]+)(ns|us|ms|s|m|h)")


def engine_options(config: Config) -> EngineOptions:
    """How to set up the engine of a server.

    Raises:
        OperationError: A file that the configuration names cannot be used.
    """
    return EngineOptions(
        root=Path(config.root),
        runroot=Path(config.runroot),
        runtimes={one.name: _runtime(config, one) for one in config.runtimes},
        default_runtime=config.default_runtime,
        systemd_cgroup=config.cgroup_manager == "systemd",
        cni_config_dir=config.network_dir,
        cni_plugin_dirs=config.plugin_dirs,
        cni_default_network=config.cni_default_network,
        drop_infra=config.drop_infra_ctr,
        pause_image=config.pause_image,
        pause_command=tuple(shlex.split(config.pause_command)),
        pinned_images=config.pinned_images,
        log_size_max_bytes=config.log_size_max_bytes,
        namespaces_dir=config.namespaces_dir,
        exits_dir=config.container_exits_dir,
        attach_dir=config.container_attach_socket_dir,
        log_directory=config.log_dir,
        additional_devices=tuple(_device(item) for item in config.additional_devices),
        cdi_spec_dirs=config.cdi_spec_dirs,
        image_volumes=config.image_volumes == "mkdir",
        selinux=config.selinux,
        defaults=_defaults(config),
        registries=_registries(config),
        stream_idle_s=_seconds(config.stream_idle_timeout or "0") or IDLE_S,
    )


def listener_options(config: Config) -> ListenerOptions:
    """Where a server listens for clients of streams.

    Raises:
        OperationError: TLS without a certificate or a key.
    """
    tls = None
    if config.stream_enable_tls:
        for name in ("stream_tls_cert", "stream_tls_key"):
            if not getattr(config, name):
                raise invalid(f"crio.api.{name}", "", "a file, as stream_enable_tls is true")
        tls = Tls(certificate=config.stream_tls_cert, key=config.stream_tls_key, authority=config.stream_tls_ca)
    # Empty means every address, as it does to CRI-O.
    return ListenerOptions(address=config.stream_address or "::", port=int(config.stream_port), tls=tls)


def _runtime(config: Config, handler: RuntimeHandler) -> RuntimeOptions:
    cgroup = handler.monitor_cgroup or config.conmon_cgroup
    return RuntimeOptions(
        path=handler.command,
        root=handler.runtime_root,
        vm=handler.runtime_type == "vm",
        allowed_annotations=handler.allowed_annotations,
        privileged_without_host_devices=handler.privileged_without_host_devices,
        no_sync_log=handler.no_sync_log,
        monitor_path=handler.monitor_path or config.conmon,
        monitor_env=dict(item.split("=", 1) for item in handler.monitor_env or config.conmon_env),
        monitor_cgroup="" if cgroup == "pod" else cgroup,
    )


def _defaults(config: Config) -> SpecDefaults:
    return SpecDefaults(
        default_capabilities=tuple(f"CAP_{name}" for name in config.default_capabilities),
        default_env=config.default_env,
        default_sysctls=_sysctls(config.default_sysctls),
        default_ulimits=tuple(_ulimit(item) for item in config.default_ulimits),
        seccomp_profile=_profile(config.seccomp_profile) if config.seccomp_profile else None,
        apparmor_profile=config.apparmor_profile,
        pids_limit=config.pids_limit,
        read_only=config.read_only,
    )


def _sysctls(items: tuple[str, ...]) -> dict[str, str]:
    found = dict(item.split("=", 1) for item in items)
    for name, value in found.items():
        sysctls.check("crio.runtime.default_sysctls", name, value)
    return found


def _device(item: str) -> Device:
    host, _, rest = item.partition(":")
    inside, _, permissions = rest.partition(":")
    if not inside.startswith("/"):
        inside, permissions = host, inside
    return Device(host_path=host, container_path=inside, permissions=permissions or "rwm")


def _ulimit(item: str) -> Rlimit:
    name, _, limits = item.partition("=")
    soft, _, hard = limits.partition(":")
    return Rlimit(name=name.upper(), soft=int(soft), hard=int(hard))


def _profile(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            profile = json.loads(file.read(PROFILE_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise OperationError(
            Code.INVALID_ARGUMENT, "INVALID_CONFIG", f"crio.runtime.seccomp_profile: {path!r}: {error}"
        ) from error
    if not isinstance(profile, dict):
        raise OperationError(
            Code.INVALID_ARGUMENT, "INVALID_CONFIG", f"crio.runtime.seccomp_profile: {path!r}: expected a JSON object"
        )
    return profile


def _registries(config: Config) -> RegistryOptions:
    return RegistryOptions(
        conf=Path(config.registries_conf),
        conf_dir=Path(config.registries_conf_dir),
        search=config.registries,
        insecure=config.insecure_registries,
        auth_file=config.global_auth_file,
        policy=config.signature_policy,
        policy_dir=config.signature_policy_dir,
        progress_window_s=_seconds(config.pull_progress_timeout) or RegistryOptions().progress_window_s,
    )


def _seconds(duration: str) -> float:
    """A duration as Go writes it."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(duration))
