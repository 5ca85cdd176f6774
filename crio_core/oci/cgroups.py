"""Where a container's cgroup is, in the words of either driver (runc's `linux.cgroupsPath`)."""

import re

from crio_core.errors import invalid
from crio_core.oci.facts import CgroupDriver
from crio_core.oci.paths import clean_path

DEFAULT_PARENT = "/crio"
DEFAULT_SLICE = "system.slice"
SLICE_BYTES_MAX = 255  # a file name

_FIELD = "linux.cgroup_parent"
_SLICE = re.compile(r"(?:-|[A-Za-z0-9_:.\\@]+(?:-[A-Za-z0-9_:.\\@]+)*)\.slice")


def expand_slice(name: str) -> str:
    """The directory of a slice: `a-b.slice` is `a.slice/a-b.slice`, and `-.slice` is the root, empty here.

    Raises:
        OperationError: not the name of a slice (systemd.slice(5)).
    """
    if len(name) > SLICE_BYTES_MAX or not _SLICE.fullmatch(name):
        raise invalid(_FIELD, name[: SLICE_BYTES_MAX + 1], "the name of a systemd slice, such as kubepods-pod1.slice")
    if name == "-.slice":
        return ""
    parts = name.removesuffix(".slice").split("-")
    return "/".join("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts)))


def parent(given: str, driver: CgroupDriver) -> str:
    """The parent as its driver names it: a clean path for cgroupfs, the last slice of a path for systemd.

    Raises:
        OperationError: a slice for cgroupfs, no slice for systemd, or no path at all.
    """
    if driver is CgroupDriver.SYSTEMD:
        name = given.rstrip("/").rpartition("/")[2] if given else DEFAULT_SLICE
        expand_slice(name)
        return name
    path = clean_path(_FIELD, given or DEFAULT_PARENT)
    if path.endswith(".slice"):
        raise invalid(_FIELD, given, "a path that is no systemd slice, as the cgroup driver is cgroupfs")
    return path


def parent_directory(given: str, driver: CgroupDriver) -> str:
    """The parent's directory below the mount of a hierarchy, without a leading slash."""
    name = parent(given, driver)
    return expand_slice(name) if driver is CgroupDriver.SYSTEMD else name[1:]


def cgroups_path(given: str, driver: CgroupDriver, container_id: str) -> str:
    """The value of `linux.cgroupsPath`: every container is below its pod's parent, with or without a user namespace."""
    name = parent(given, driver)
    if driver is CgroupDriver.SYSTEMD:
        return f"{name}:crio:{container_id}"
    return f"{name.rstrip('/')}/crio-{container_id}"


def container_directory(given: str, driver: CgroupDriver, container_id: str) -> str:
    """Where the container's cgroup appears below the mount of a hierarchy, without a leading slash."""
    directory = parent_directory(given, driver)
    leaf = f"crio-{container_id}.scope" if driver is CgroupDriver.SYSTEMD else f"crio-{container_id}"
    return f"{directory}/{leaf}" if directory else leaf
