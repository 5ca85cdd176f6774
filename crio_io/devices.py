"""What a container's spec needs to know of the host's devices and profile files."""

import os
import stat
from pathlib import Path

import orjson

from crio_core.cri import Device
from crio_core.errors import Code, OperationError, invalid
from crio_core.oci.facts import HostDevice
from crio_io import mounts

DEVICES_MAX = 4096
PROFILE_BYTES_MAX = 1024 * 1024
SKIPPED = frozenset({"/dev/console", "/dev/ptmx", "/dev/tty"})
"""Devices that a container has its own of."""
SKIPPED_DIRECTORIES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".udev"})


async def requested(devices: tuple[Device, ...]) -> tuple[HostDevice, ...]:
    """The device nodes that a request names, a directory of them standing for all in it.

    Raises:
        OperationError: INVALID_ARGUMENT for a path that is no device.
    """
    return await mounts.in_thread("look up devices", _requested, devices)


async def every() -> tuple[HostDevice, ...]:
    """Every device node of the host, as privileged containers see them."""
    return await mounts.in_thread("list the host's devices", _every)


async def seccomp_profile(path: str) -> str:
    """The text of a seccomp profile file.

    Raises:
        OperationError: SECCOMP_PROFILE_NOT_FOUND or INVALID_FIELD.
    """
    return await mounts.in_thread(f"read seccomp profile {path}", _read_profile, path)


def _requested(devices: tuple[Device, ...]) -> tuple[HostDevice, ...]:
    found: list[HostDevice] = []
    for index, device in enumerate(devices):
        host = Path(device.host_path)
        inside = device.container_path or device.host_path
        where = f"config.devices[{index}].host_path"
        if host.is_dir():
            for node in _nodes(host):
                target = str(Path(inside) / node.relative_to(host))
                found.append(_described(where, node, target, device.permissions))
        else:
            found.append(_described(where, host, inside, device.permissions))
    return tuple(found)


def _described(where: str, node: Path, target: str, permissions: str) -> HostDevice:
    try:
        status = node.stat()
    except OSError as error:
        raise invalid(where, str(node), f"a device node ({error.strerror})") from error
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        raise invalid(where, str(node), "a character or block device")
    return HostDevice(
        path=target,
        kind=kind,
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        permissions=permissions or "rwm",
    )


def _nodes(directory: Path) -> list[Path]:
    nodes: list[Path] = []
    for top, names, files in os.walk(directory):
        names[:] = sorted(set(names) - SKIPPED_DIRECTORIES)
        for name in sorted(files):
            path = Path(top) / name
            if str(path) not in SKIPPED and not path.is_symlink() and (path.is_char_device() or path.is_block_device()):
                nodes.append(path)
                if len(nodes) > DEVICES_MAX:
                    raise OperationError(
                        Code.RESOURCE_EXHAUSTED,
                        "TOO_MANY_DEVICES",
                        f"{directory} holds more than {DEVICES_MAX} devices",
                    )
    return nodes


def _every() -> tuple[HostDevice, ...]:
    return tuple(_described("/dev", node, str(node), "rwm") for node in _nodes(Path("/dev")))


def _read_profile(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            text = file.read(PROFILE_BYTES_MAX + 1)
    except OSError as error:
        raise OperationError(
            Code.NOT_FOUND, "SECCOMP_PROFILE_NOT_FOUND", f"seccomp profile {path!r}: {error.strerror}"
        ) from error
    try:
        if len(text) > PROFILE_BYTES_MAX or not isinstance(orjson.loads(text), dict):
            raise ValueError
    except ValueError:
        raise invalid("seccomp.localhost_ref", path, f"a JSON object of at most {PROFILE_BYTES_MAX} bytes") from None
    return text.decode()
