"""Devices of the Container Device Interface: what a vendor's specification adds to the spec of a container (CDI 1.0).

The classes mirror the specification's objects, member for member; `netDevices` and `intelRdt` are known by name only,
and a device that needs them is refused. Files are read elsewhere (`crio_io/cdi.py`); everything here is a function.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crio_core.cri import ContainerConfig
from crio_core.errors import Code, OperationError, invalid
from crio_core.oci.facts import HostDevice
from crio_core.oci.paths import clean_path, depth
from crio_core.oci.process import check_strings
from crio_core.oci.resources import access_rules, device_nodes
from crio_core.reader import read
from crio_core.values import dataclass, replace

ANNOTATION = "cdi.k8s.io/"
"""What keys of annotations begin with that ask for devices, their names with commas in between."""
NAMES_MAX = 256
_KIND = r"[A-Za-z]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?P<kind>{_KIND})=(?P<device>[A-Za-z0-9]([A-Za-z0-9_.:-]{{0,252}}[A-Za-z0-9])?)", re.ASCII)
_KINDS = re.compile(_KIND, re.ASCII)
_HOOKS = frozenset({"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})
_BINDS = frozenset({"bind", "rbind"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device node; what is None was not said, and is as it is at `hostPath` (or `path`) on the host."""

    path: str
    hostPath: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    fileMode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiMount:
    """A path of the host that is mounted in the container."""

    hostPath: str
    containerPath: str
    type: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A program of the host that the OCI runtime runs at a point of the container's life; `timeout` is in seconds."""

    hookName: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEdits:
    """What is added to a container's spec."""

    env: tuple[str, ...] = ()
    deviceNodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[CdiMount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    additionalGids: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    """Names of members that are none of the above: who asks for the device would get less than it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiSpec:
    """A vendor's specification: devices of one kind, and what all of them need besides."""

    origin: str
    kind: str
    edits: ContainerEdits
    devices: Mapping[str, ContainerEdits]


def asked(config: ContainerConfig) -> tuple[str, ...]:
    """The qualified names (`vendor/class=name`) of the devices that a request asks for, by field or by annotation.

    Raises:
        OperationError: INVALID_ARGUMENT for what is no such name.
    """
    named = [(f"config.CDI_devices[{index}]", one.name) for index, one in enumerate(config.CDI_devices)]
    for key, words in config.annotations.items():
        if key.startswith(ANNOTATION):
            named += [(f"config.annotations[{key}]", word) for word in words.split(",")]
    if len(named) > NAMES_MAX:
        raise invalid("config.CDI_devices", f"{len(named)} devices", f"at most {NAMES_MAX}")
    for field, name in named:
        if not _NAME.fullmatch(name):
            raise invalid(field, name[:200], "a CDI device, such as vendor.com/class=name")
    return tuple(dict.fromkeys(name for _, name in named))


def parse(origin: str, document: Any) -> CdiSpec:
    """Read a specification.

    Args:
        origin: The file's path, for messages.
        document: What JSON or YAML made of it.

    Raises:
        OperationError: INVALID_ARGUMENT: It is none.
    """
    try:
        kind, devices = document["kind"], document["devices"]
        if not isinstance(kind, str) or not _KINDS.fullmatch(kind):
            raise invalid(f"{origin}: kind", str(kind)[:200], "a vendor and a class, such as vendor.com/class")
        return CdiSpec(
            origin=origin,
            kind=kind,
            edits=_edits(document.get("containerEdits") or {}),
            devices={str(one["name"]): _edits(one.get("containerEdits") or {}) for one in devices},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise invalid(origin, f"{type(error).__name__}: {error}"[:200], "a specification of CDI devices") from error


def _edits(members: Mapping[str, Any]) -> ContainerEdits:
    known = ContainerEdits.__dataclass_fields__.keys() - {"unknown"}
    given = {key: value for key, value in members.items() if value}
    unknown = tuple(sorted(given.keys() - known))
    return replace(read(ContainerEdits, {key: given[key] for key in given.keys() & known}), unknown=unknown)


def resolve(names: Sequence[str], directories: Sequence[Sequence[CdiSpec]], searched: str = "") -> ContainerEdits:
    """What the named devices add, in their order; what all devices of a specification need comes before, and once.

    Args:
        names: As `asked` gives them.
        directories: The specifications of each directory; a later directory comes before an earlier one.
        searched: Where these are from, for the message.

    Raises:
        OperationError: FAILED_PRECONDITION: No device has this name, or two files of one directory claim it, or it
            needs what this runtime cannot give.
    """
    parts: list[ContainerEdits] = []
    used: set[str] = set()
    for name in names:
        kind, _, device = name.partition("=")
        found: list[CdiSpec] = []
        for specs in directories:
            found = [one for one in specs if one.kind == kind and device in one.devices] or found
        if not found:
            where = f" (searched: {searched})" if searched else ""
            raise _unusable("CDI_DEVICE_NOT_FOUND", name, f"no specification has it{where}")
        if len(found) > 1:
            raise _unusable("CDI_DEVICE_CONFLICT", name, f"{found[0].origin} and {found[1].origin} both have it")
        (spec,) = found
        edits = [spec.devices[device]] if spec.origin in used else [spec.edits, spec.devices[device]]
        if unknown := [member for one in edits for member in one.unknown]:
            raise _unusable("CDI_DEVICE_NEEDS_MORE", name, f"{spec.origin}: {unknown[0]} cannot be given")
        used.add(spec.origin)
        parts += edits
    return ContainerEdits(
        env=tuple(one for part in parts for one in part.env),
        deviceNodes=tuple(one for part in parts for one in part.deviceNodes),
        mounts=tuple(one for part in parts for one in part.mounts),
        hooks=tuple(one for part in parts for one in part.hooks),
        additionalGids=tuple(one for part in parts for one in part.additionalGids),
    )


def _unusable(reason: str, name: str, why: str) -> OperationError:
    return OperationError(Code.FAILED_PRECONDITION, reason, f"CDI device {name!r}: {why}")


def edit(spec: dict[str, Any], edits: ContainerEdits, *, everything: bool) -> None:
    """Make the edits in a container's spec.

    Args:
        spec: A whole spec of ours.
        edits: With the kind and the numbers of each device node.
        everything: The container may use every device anyway.

    Raises:
        OperationError: INVALID_ARGUMENT: A specification says what no spec can.
    """
    process, linux = spec["process"], spec["linux"]
    if edits.env:
        variables = dict(entry.partition("=")[::2] for entry in (*process["env"], *edits.env))
        process["env"] = check_strings("env of a CDI device", [f"{key}={value}" for key, value in variables.items()])
    if gids := [gid for gid in edits.additionalGids if gid]:
        process["user"]["additionalGids"] = list(dict.fromkeys((*process["user"]["additionalGids"], *gids)))
    if edits.deviceNodes:
        given = tuple(_node(one, process["user"]) for one in edits.deviceNodes)
        nodes = {one["path"]: one for one in (*linux.get("devices", ()), *device_nodes(given))}
        linux["devices"] = list(nodes.values())
        if not everything:
            linux["resources"]["devices"] += access_rules(given)
    if edits.mounts:
        mounts = {one["destination"]: one for one in (*spec["mounts"], *map(_mount, edits.mounts))}
        # A mount hides what was mounted below it before.
        spec["mounts"] = sorted(mounts.values(), key=lambda one: depth(one["destination"]))
    for hook in edits.hooks:
        spec.setdefault("hooks", {}).setdefault(_hook_name(hook), []).append(_hook(hook))


def _node(node: DeviceNode, user: Mapping[str, Any]) -> HostDevice:
    """A node as the container gets it; what does not say whose it is belongs to the user that the container runs as."""
    return HostDevice(
        path=node.path,
        kind="c" if node.type == "u" else node.type,
        major=node.major or 0,
        minor=node.minor or 0,
        mode=0o666 if node.fileMode is None else node.fileMode,
        uid=user["uid"] if node.uid is None else node.uid,
        gid=user["gid"] if node.gid is None else node.gid,
        permissions=node.permissions or "rwm",
    )


def _mount(mount: CdiMount) -> dict[str, Any]:
    options = list(mount.options)
    if mount.type in ("", "bind", "none") and not _BINDS.intersection(options):
        options.append("rbind")
    binds = bool(_BINDS.intersection(options))
    return {
        "destination": clean_path("containerPath of a CDI mount", mount.containerPath),
        "type": mount.type or "bind",
        "source": clean_path("hostPath of a CDI mount", mount.hostPath) if binds else mount.hostPath,
        "options": options,
    }


def _hook_name(hook: Hook) -> str:
    if hook.hookName not in _HOOKS:
        raise invalid("hookName of a CDI hook", hook.hookName[:64], f"one of {', '.join(sorted(_HOOKS))}")
    return hook.hookName


def _hook(hook: Hook) -> dict[str, Any]:
    found: dict[str, Any] = {"path": clean_path("path of a CDI hook", hook.path)}
    if hook.args:
        found["args"] = check_strings("args of a CDI hook", hook.args)
    if hook.env:
        found["env"] = check_strings("env of a CDI hook", hook.env)
    if hook.timeout is not None:
        if hook.timeout <= 0:
            raise invalid("timeout of a CDI hook", hook.timeout, "seconds, at least 1")
        found["timeout"] = hook.timeout
    return found
