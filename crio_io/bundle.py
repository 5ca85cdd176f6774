"""A container's bundle directory, the place of its log, and the host paths that its request mounts."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from posixpath import normpath

import orjson

from crio_core.errors import Code, OperationError
from crio_core.oci.annotations import SANDBOX_ANNOTATION
from crio_io.storage import deep


def write_bundle(bundle: Path, spec: bytes, log_path: str) -> None:
    """Write `config.json`, and make the directory of the log file.

    Raises:
        OperationError: BUNDLE_FAILED.
    """
    try:
        bundle.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(bundle / "config.json", flags, 0o600), "wb") as file:
            file.write(spec)
        if log_path:
            Path(log_path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise OperationError(Code.INTERNAL, "BUNDLE_FAILED", f"writing bundle {bundle}: {error}") from error


def sandboxes_of(containers: Path) -> dict[str, str]:
    """The containers that have a bundle below a directory, each with what its spec calls the sandbox, or nothing."""
    found = {}
    for directory in containers.iterdir() if containers.is_dir() else ():
        named = ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            named = str(orjson.loads((directory / "config.json").read_bytes())["annotations"][SANDBOX_ANNOTATION])
        found[directory.name] = named
    return found


def cgroup_of(bundle: Path) -> str:
    """The cgroup of a container, as its spec names it; empty for a scope, which systemd ends, and without a spec."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        path = str(orjson.loads((bundle / "config.json").read_bytes())["linux"]["cgroupsPath"])
        if path.startswith("/") and path.endswith(bundle.name):
            return path
    return ""


def make_mount_sources(spec: bytes, targets: Iterable[str]) -> None:
    """Make the host paths that are to be bound to `targets`, where they do not exist.

    Blocks as long as a dead file system below such a path does.

    Raises:
        OperationError: MOUNT_SOURCE_FAILED.
    """
    wanted = {normpath(target) for target in targets}
    for mount in orjson.loads(spec)["mounts"]:
        if mount["type"] == "bind" and mount["destination"] in wanted:
            make_host_path(mount["source"])


def make_host_path(path: str) -> None:
    """Make a host path that is to be mounted and does not exist, as a directory (CRI, Mount.host_path); blocks.

    Raises:
        OperationError: MOUNT_SOURCE_FAILED.
    """
    try:
        if not Path(path).exists():
            Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        message = f"host path {path!r} cannot be used for a mount: {error.strerror}"
        raise OperationError(Code.FAILED_PRECONDITION, "MOUNT_SOURCE_FAILED", message) from error


def remove_bundle(bundle: Path) -> None:
    """Remove a bundle whose root filesystem is unmounted; absent is success.

    Raises:
        OperationError: BUNDLE_FAILED.
    """
    try:
        deep.delete(bundle)
    except OSError as error:
        raise OperationError(Code.INTERNAL, "BUNDLE_FAILED", f"removing bundle {bundle}: {error}") from error
