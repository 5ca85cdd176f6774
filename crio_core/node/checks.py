"""What a request must be like before anything is reserved for it. Each refusal names the field, the value and what was
expected.
"""

import re
from ipaddress import ip_address
from pathlib import PurePosixPath

from crio_core.cri import ContainerConfig, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, Signal
from crio_core.errors import Code, OperationError, invalid
from crio_core.node.settings import Handler, Settings
from crio_core.oci import cdi
from crio_core.oci.cgroups import parent_directory
from crio_core.oci.facts import HostFacts
from crio_core.oci.namespaces import mappings

NAME_CHARS_MAX = 253
PATH_CHARS_MAX = 4096
PORT_MAX = 65535
LIST_ITEMS_MAX = 10_000
IMAGE_MOUNTS_MAX = 256

_OPTIONS = "config.linux.security_context.namespace_options"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
_SIGNALS = frozenset(Signal)
_UID = re.compile(r"[A-Za-z0-9._:@-]{1,253}", re.ASCII)


def _name(field: str, value: str) -> None:
    if not _NAME.fullmatch(value):
        raise invalid(field, value[:NAME_CHARS_MAX], "1 to 253 letters, digits, '.', '-' and '_', not first or last")


def _ip_address(field: str, value: str) -> None:
    """Refused here, as network plugins could be told of neither the attachment nor its undoing."""
    try:
        ip_address(value)
    except ValueError as error:
        raise invalid(field, value[:200], "an IP address") from error


def absolute_path(field: str, value: str) -> None:
    """Refuse what is not a plain absolute path: `..`, NUL and over-long ones."""
    if not value.startswith("/") or ".." in value.split("/") or "\0" in value or len(value) > PATH_CHARS_MAX:
        raise invalid(field, value[:200], f"an absolute path without '..', of at most {PATH_CHARS_MAX} characters")


def sandbox(config: PodSandboxConfig, runtime_handler: str, settings: Settings) -> None:
    """Check what RunPodSandbox was told.

    Raises:
        OperationError: INVALID_ARGUMENT; NOT_FOUND for a runtime handler that is not configured.
    """
    meta = config.metadata
    _name("config.metadata.name", meta.name)
    _name("config.metadata.namespace", meta.namespace)
    if not _UID.fullmatch(meta.uid):
        raise invalid("config.metadata.uid", meta.uid[:NAME_CHARS_MAX], "1 to 253 letters, digits and '._:@-'")
    if config.hostname and not _NAME.fullmatch(config.hostname):
        raise invalid("config.hostname", config.hostname[:200], "a host name, or nothing")
    # Before anything is reserved: what no cgroup can be made in, none can be removed from either.
    parent_directory(config.linux.cgroup_parent, settings.host.cgroup_driver)
    if config.log_directory:
        absolute_path("config.log_directory", config.log_directory)
    for index, mapping in enumerate(config.port_mappings):
        where = f"config.port_mappings[{index}]"
        if not 0 < mapping.container_port <= PORT_MAX:
            raise invalid(f"{where}.container_port", mapping.container_port, f"1 to {PORT_MAX}")
        if not 0 <= mapping.host_port <= PORT_MAX:
            raise invalid(f"{where}.host_port", mapping.host_port, f"0 to {PORT_MAX}")
        if mapping.host_ip:
            _ip_address(f"{where}.host_ip", mapping.host_ip)
    if runtime_handler and runtime_handler not in settings.handlers:
        raise OperationError(
            Code.NOT_FOUND,
            "RUNTIME_HANDLER_NOT_FOUND",
            f"runtime_handler: {runtime_handler!r} is not configured: expected one of "
            f"{', '.join(sorted(settings.handlers))}",
        )
    handler = settings.handlers[runtime_handler or settings.default_handler]
    _user_namespace(config.linux.security_context.namespace_options, handler, settings.host)


def _image_mount(field: str, mount: Mount) -> None:
    """CRI: an image mount has no host path; its sub path stays inside the image."""
    if mount.host_path:
        raise invalid(f"{field}.host_path", mount.host_path[:200], "nothing, as the mount names an image")
    path = PurePosixPath(mount.image_sub_path)
    if path.is_absolute() or ".." in path.parts or "\0" in mount.image_sub_path or len(str(path)) > PATH_CHARS_MAX:
        raise invalid(f"{field}.image_sub_path", mount.image_sub_path[:200], "a relative path without '..'")


def _user_namespace(options: NamespaceOption, handler: Handler, host: HostFacts) -> None:
    """Check the mappings that a pod wants, and that nothing of the node's is to be mixed with them.

    Raises:
        OperationError: INVALID_ARGUMENT; FAILED_PRECONDITION when this node cannot.
    """
    users = options.userns_options
    field = f"{_OPTIONS}.userns_options"
    if users.mode not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise invalid(f"{field}.mode", users.mode.name, "POD or NODE")
    if not users.wanted:
        return
    for name, runs in (("uids", users.uids), ("gids", users.gids)):
        mappings(f"{field}.{name}", runs)
        if not any(run.container_id == 0 for run in runs):
            raise invalid(f"{field}.{name}", "no run for the id 0 inside", "one with container_id 0")
    for name in ("network", "pid", "ipc"):
        if getattr(options, name) is NamespaceMode.NODE:
            raise invalid(f"{_OPTIONS}.{name}", "NODE", "POD or CONTAINER, as the pod has a user namespace of its own")
    why = "its runtime handler makes virtual machines" if handler.vm else host.userns_lack
    if why:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "USER_NAMESPACE_UNAVAILABLE",
            f"{field}: a pod cannot have a user namespace of its own here: {why}",
        )


def same_users(config: ContainerConfig, pod: PodSandboxConfig) -> None:
    """Check that a container wants the user namespace of its pod; it need not say so.

    Raises:
        OperationError: INVALID_ARGUMENT.
    """
    users = config.linux.security_context.namespace_options.userns_options
    if users.wanted and users != pod.linux.security_context.namespace_options.userns_options:
        raise invalid(f"{_OPTIONS}.userns_options", "other mappings", "the same as of its sandbox")


def within(config: ContainerConfig, pod: PodSandboxConfig) -> None:
    """Refuse a container that is given more of the node than its pod: whoever allowed the pod has not allowed that.

    A kubelet says the same for both.

    Raises:
        OperationError: INVALID_ARGUMENT.
    """
    field = "config.linux.security_context"
    asked, given = config.linux.security_context, pod.linux.security_context
    if asked.privileged and not given.privileged:
        raise invalid(f"{field}.privileged", True, "a privileged pod for a privileged container")
    for name in ("network", "pid", "ipc"):
        mode = getattr(given.namespace_options, name)
        if getattr(asked.namespace_options, name) is NamespaceMode.NODE and mode is not NamespaceMode.NODE:
            raise invalid(f"{field}.namespace_options.{name}", "NODE", f"{mode.name}, as its pod has it")


def container(config: ContainerConfig) -> None:
    """Check what CreateContainer was told, as far as that needs nothing but the request.

    Raises:
        OperationError: INVALID_ARGUMENT; FAILED_PRECONDITION for what no container can have here.
    """
    _name("config.metadata.name", config.metadata.name)
    cdi.asked(config)
    if not config.image.image:
        raise invalid("config.image.image", "", "an image reference or id")
    if config.log_path.startswith("/") or ".." in config.log_path.split("/") or "\0" in config.log_path:
        raise invalid(
            "config.log_path", config.log_path[:200], "a path below the sandbox's log directory, without '..'"
        )
    for name in ("command", "args", "envs", "mounts", "devices"):
        if len(getattr(config, name)) > LIST_ITEMS_MAX:
            raise invalid(f"config.{name}", f"{len(getattr(config, name))} items", f"at most {LIST_ITEMS_MAX}")
    image_mounts = 0
    for index, mount in enumerate(config.mounts):
        if mount.image.image:
            _image_mount(f"config.mounts[{index}]", mount)
            image_mounts += 1
        else:
            absolute_path(f"config.mounts[{index}].host_path", mount.host_path)
    if image_mounts > IMAGE_MOUNTS_MAX:
        raise invalid("config.mounts", f"{image_mounts} mounts of images", f"at most {IMAGE_MOUNTS_MAX}")
    if config.stop_signal not in _SIGNALS:
        raise invalid("config.stop_signal", config.stop_signal, "a signal of the CRI's Signal enumeration")
