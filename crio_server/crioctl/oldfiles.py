"""Pod and container files of the first CRI-O releases, moved to the shape that CRI v1 has.

Those files were written for CRI v1alpha1 and before it; people still keep them. Each rule below is one key that moved,
was renamed, or that no runtime ever read. Every rule that applies says so through `warn`.
"""

from collections.abc import Callable, Iterable
from typing import Any

Warn = Callable[[str], None]
Values = dict[str, Any]

POD, CONTAINER, NODE = 0, 1, 2  # NamespaceMode of CRI v1

_OLD_TRANSPORT = "docker://"


class Conflict(Exception):
    """A file gives one setting in its old and in its present place."""


def modern_pod(values: Values, warn: Warn) -> None:
    """Rewrite the old keys of a pod file in place."""
    _move(values, "dns_options", "dns_config", warn)
    _ignore(values, "resources", "CRI never had it for a pod; use linux.resources", warn)
    for index, mapping in enumerate(_objects(values.get("port_mappings"))):
        _ignore(mapping, "name", "port mappings have no name", warn, f"port_mappings[{index}].")
    linux = values.get("linux")
    if isinstance(linux, dict):
        _into_security_context(linux, ("namespace_options",), warn)
        _modern_namespaces(linux, warn)


def modern_container(values: Values, warn: Warn) -> None:
    """Rewrite the old keys of a container file in place."""
    image = values.get("image")
    name = image.get("image") if isinstance(image, dict) else None
    if isinstance(image, dict) and isinstance(name, str) and name.startswith(_OLD_TRANSPORT):
        image["image"] = name.removeprefix(_OLD_TRANSPORT)
        warn(f"image.image: {_OLD_TRANSPORT} is an old form; read as {image['image']}")
    for key in ("privileged", "readonly_rootfs"):
        if key in values:
            _raise_missing(values, "linux")
            _put(_security_context(values["linux"]), key, values.pop(key), key, f"linux.security_context.{key}", warn)
    for index, mount in enumerate(_objects(values.get("mounts"))):
        _ignore(mount, "name", "mounts have no name", warn, f"mounts[{index}].")
    linux = values.get("linux")
    if isinstance(linux, dict):
        _into_security_context(linux, ("capabilities", "selinux_options", "namespace_options"), warn)
        _modern_user(linux, warn)
        _modern_namespaces(linux, warn)


def _modern_user(linux: Values, warn: Warn) -> None:
    """`linux.user` with uid, gid and additional_gids became three fields of the security context."""
    user = linux.get("user")
    if not isinstance(user, dict) or not user.keys() <= {"uid", "gid", "additional_gids"}:
        return
    del linux["user"]
    context = _security_context(linux)
    for old, new in (("uid", "run_as_user"), ("gid", "run_as_group"), ("additional_gids", "supplemental_groups")):
        if user.get(old) is not None:
            value = user[old] if old == "additional_gids" else {"value": user[old]}
            _put(context, new, value, f"linux.user.{old}", f"linux.security_context.{new}", warn)


def _modern_namespaces(linux: Values, warn: Warn) -> None:
    """host_network, host_pid and host_ipc became modes; without them each container had PIDs of its own."""
    context = linux.get("security_context")
    options = context.get("namespace_options") if isinstance(context, dict) else None
    if not isinstance(options, dict):
        return
    where = "linux.security_context.namespace_options"
    for old, new, private in (
        ("host_network", "network", POD),
        ("host_pid", "pid", CONTAINER),
        ("host_ipc", "ipc", POD),
    ):
        if isinstance(options.get(old), bool):
            mode = NODE if options.pop(old) else private
            _put(options, new, mode, f"{where}.{old}", f"{where}.{new}", warn)


def _into_security_context(linux: Values, keys: Iterable[str], warn: Warn) -> None:
    for key in keys:
        if key in linux:
            context = _security_context(linux)
            _put(context, key, linux.pop(key), f"linux.{key}", f"linux.security_context.{key}", warn)


def _security_context(linux: Any) -> Values:
    """The security context of a `linux` object; a wrong kind there is left for the reader to refuse."""
    if not isinstance(linux, dict):
        return {}
    _raise_missing(linux, "security_context")
    context = linux["security_context"]
    return context if isinstance(context, dict) else {}


def _raise_missing(values: Values, key: str) -> None:
    if values.get(key) is None:
        values[key] = {}


def _move(values: Values, old: str, new: str, warn: Warn) -> None:
    if old in values:
        _put(values, new, values.pop(old), old, new, warn)


def _put(target: Values, key: str, value: Any, old: str, new: str, warn: Warn) -> None:
    if target.get(key) is not None and target[key] != value:
        raise Conflict(f"{old}: an old key for {new}, which is given too with another value")
    target[key] = value
    warn(f"{old}: an old key; read as {new}")


def _ignore(values: Values, key: str, reason: str, warn: Warn, prefix: str = "") -> None:
    if key in values:
        del values[key]
        warn(f"{prefix}{key}: ignored: {reason}")


def _objects(value: Any) -> list[Values]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
