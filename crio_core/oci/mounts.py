"""What a container sees mounted, in the order in which a runtime must mount it (OCI runtime-spec, mounts).

/dev is always a fresh tmpfs, whatever the image has there (CVE-2026-41579). /proc and /sys are where the kernel takes
orders: nothing is laid over them but a true /sys, the node's, as a false one would switch the security modules off
(CVE-2019-16884 and its kin).
"""

from collections.abc import Iterable
from typing import Any

from crio_core.cri import Mount, MountPropagation
from crio_core.errors import Code, OperationError, invalid
from crio_core.image.config import ImageConfig
from crio_core.oci.paths import clean_path, depth, is_within
from crio_core.oci.plan import ContainerPlan

MOUNTS_MAX = 4096
MASKED_MAX = 1024
VOLUMES_MAX = 256
TTY_GROUP = 5

MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
# Masked even when the request brings a list of its own: power counters leak keys (GHSA-7ww5-4wqc-m92c).
_ALWAYS_MASKED: tuple[str, ...] = ("/sys/devices/virtual/powercap", "/sys/firmware")

READONLY_PATHS: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Files that lxcfs stands in for, so that programs see their limits; none of them takes orders.
_PROC_FILES = frozenset(
    f"/proc/{name}" for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime")
)
_CGROUPS = "/sys/fs/cgroup"
_ABOVE_CGROUPS = frozenset({"/sys", "/sys/fs"})
# Trees of file systems of their own below /sys, which network and tracing agents mount without being privileged.
_SYS_TREES = ("/sys/fs/bpf", _CGROUPS, "/sys/kernel/debug", "/sys/kernel/tracing")

_PROPAGATION = {
    MountPropagation.PROPAGATION_PRIVATE: "rprivate",
    MountPropagation.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    MountPropagation.PROPAGATION_BIDIRECTIONAL: "rshared",
}
# What Kubernetes promises of image volumes: content to read, nothing that runs.
_IMAGE_OPTIONS = ("nodev", "noexec", "nosuid")
_MOUNT_OPTIONS = frozenset({"nodev", "noexec", "nosuid", "noatime", "relatime"})


def check_target(field: str, path: str, *, source: str = "", privileged: bool = False) -> str:
    """The clean path of a mount inside a container.

    Args:
        source: What of the host is to be seen there, if anything is: its own /sys and /dev may be seen as such, by
            agents that read them.

    Raises:
        OperationError: a relative path, `..`, NUL, the root itself, or a place over which nothing may be mounted.
    """
    target = clean_path(field, path)
    if target == "/":
        raise invalid(field, path, "a path below /")
    if is_within(target, "/proc") and target not in _PROC_FILES:
        raise invalid(field, path, "a path outside /proc")
    if privileged:
        return target
    trees = [tree for tree in _SYS_TREES if is_within(target, tree)]
    if is_within(target, "/sys") and not trees and not is_within(source, "/sys"):
        raise invalid(field, path, f"a path outside /sys, or in one of {', '.join(_SYS_TREES)}, or the host's own /sys")
    if target == "/dev" and not is_within(source, "/dev"):
        raise invalid(field, path, "a path below /dev, or the host's own /dev")
    return target


def _kernel_mounts(plan: ContainerPlan) -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    access = "rw" if plan.privileged else "ro"
    devpts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if not plan.userns or _maps(plan, TTY_GROUP):
        devpts.append(f"gid={TTY_GROUP}")
    sysfs: dict[str, Any] = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, access]}
    if plan.userns and plan.host_network:
        # The kernel mounts sysfs only for who owns the network namespace: show the node's own instead.
        sysfs = {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", *safe, access]}
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": list(safe)},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": devpts},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": list(safe)},
        sysfs,
        {
            "destination": _CGROUPS,
            "type": "cgroup",
            "source": "cgroup",
            "options": [*safe, "relatime", access],
        },
    ]
    if plan.shm_path:
        mounts.append(_bind("path of the pod's /dev/shm", plan.shm_path, "/dev/shm", [*safe, "rw"]))
    else:
        options = [*safe, "mode=1777", "size=65536k"]
        mounts.append({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options})
    return mounts


def _maps(plan: ContainerPlan, gid: int) -> bool:
    runs = plan.config.linux.security_context.namespace_options.userns_options.gids
    return any(run.container_id <= gid < run.container_id + run.length for run in runs)


def _bind(field: str, source: str, target: str, options: Iterable[str]) -> dict[str, Any]:
    return {
        "destination": target,
        "type": "bind",
        "source": clean_path(field, source),
        "options": ["rbind", "rprivate", *options],
    }


def _etc_mounts(plan: ContainerPlan) -> list[dict[str, Any]]:
    """The files that the runtime keeps for a pod.

    They lie on the node's own /run: what could write to them could fill it, and nothing counts that (CVE-2020-8557). So
    they are read-only for all but privileged containers.
    """
    files = (
        ("/etc/resolv.conf", plan.resolv_conf_path),
        ("/etc/hostname", plan.hostname_path),
    )
    writable = plan.privileged and not plan.config.linux.security_context.readonly_rootfs
    options = ["nosuid", "nodev", "noexec", "rw" if writable else "ro"]
    return [_bind(f"source of {target}", source, target, options) for target, source in files if source]


def _requested(plan: ContainerPlan) -> list[dict[str, Any]]:
    given = plan.config.mounts
    if len(given) > MOUNTS_MAX:
        raise invalid("mounts", f"{len(given)} mounts", f"at most {MOUNTS_MAX}")
    return [_user_mount(plan, f"mounts[{index}]", mount) for index, mount in enumerate(given)]


def _user_mount(plan: ContainerPlan, field: str, mount: Mount) -> dict[str, Any]:
    target = check_target(
        f"{field}.container_path", mount.container_path, source=mount.host_path, privileged=plan.privileged
    )
    readonly = mount.readonly
    if mount.image.image:
        source = plan.image_mounts.get(mount.container_path, "")
        if mount.host_path or not source:
            expected = "no host path beside an image" if mount.host_path else "an image that has been mounted"
            raise invalid(f"{field}.image", mount.image.image, expected)
        readonly = True  # CRI: an image mount is never written to
    elif mount.uidMappings or mount.gidMappings:
        source = _mapped(plan, field, mount)
    else:
        source = mount.host_path
    options = ["rbind", _PROPAGATION[mount.propagation]]
    if mount.recursive_read_only:
        if not mount.readonly or mount.propagation is not MountPropagation.PROPAGATION_PRIVATE:
            raise invalid(f"{field}.recursive_read_only", True, "readonly and private propagation beside it")
        options.append("rro")
    options.append("ro" if readonly else "rw")
    if mount.image.image:
        options += _IMAGE_OPTIONS
    for option in mount.mount_options:
        if option not in _MOUNT_OPTIONS:
            raise invalid(f"{field}.mount_options", option, f"one of {', '.join(sorted(_MOUNT_OPTIONS))}")
        options.append(option)
    return {
        "destination": target,
        "type": "bind",
        "source": clean_path(f"{field}.host_path", source),
        "options": options,
    }


def _mapped(plan: ContainerPlan, field: str, mount: Mount) -> str:
    """Where a host path is mounted under the ids of the pod's user namespace: no runtime is relied on for that."""
    users = plan.config.linux.security_context.namespace_options.userns_options
    source = plan.mapped_mounts.get(mount.container_path, "")
    if not source or (mount.uidMappings, mount.gidMappings) != (users.uids, users.gids):
        message = f"{field}: ids can be mapped only as in the user namespace of the container's pod"
        raise OperationError(Code.FAILED_PRECONDITION, "IDMAP_NOT_AVAILABLE", message)
    return source


def _scratch(plan: ContainerPlan) -> list[dict[str, Any]]:
    """What stays writable where the configuration makes every root filesystem read-only; counted as its memory."""
    if not plan.defaults.read_only or plan.is_sandbox:
        return []
    return [
        {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["rw", "nosuid", "nodev", f"mode={mode}"]}
        for path, mode in (("/run", "0755"), ("/tmp", "1777"), ("/var/tmp", "1777"))
    ]


def mounts(plan: ContainerPlan) -> list[dict[str, Any]]:
    """The `mounts` list: parents before what lies below them, and of two mounts for one path only the stronger.

    The request's mounts win over the files of the pod, and those over the kernel's file systems: whoever is shown the
    host's /sys sees its control groups in it. A /dev that is asked for lies over the fresh one, never in its place.

    Raises:
        OperationError: a bad path, option or mapping, with the index of the mount.
    """
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    requested = _requested(plan)
    shown = [mount["destination"] for mount in requested if mount["destination"] in _ABOVE_CGROUPS]
    kernel = [mount for mount in _kernel_mounts(plan) if not (shown and mount["destination"] == _CGROUPS)]
    for mount in (*kernel, *_scratch(plan), *_etc_mounts(plan), *requested):
        target = mount["destination"]
        found[target, target == "/dev" and mount["type"] == "bind"] = mount
    return sorted(found.values(), key=lambda mount: depth(mount["destination"]))


def rootfs_propagation(plan: ContainerPlan) -> str:
    """What the root filesystem's propagation must be for the mounts' own to work; empty for the runtime's choice."""
    asked = {mount.propagation for mount in plan.config.mounts}
    if MountPropagation.PROPAGATION_BIDIRECTIONAL in asked:
        return "rshared"
    return "rslave" if MountPropagation.PROPAGATION_HOST_TO_CONTAINER in asked else ""


def masked_paths(plan: ContainerPlan) -> list[str]:
    """Paths that the container sees empty: the request's list, else ours; none where all is to be seen."""
    given = plan.config.linux.security_context.masked_paths
    if _unmasked(plan):
        return []
    if not given:
        return list(MASKED_PATHS)
    return list(dict.fromkeys((*_checked("masked_paths", given), *_ALWAYS_MASKED)))


def _unmasked(plan: ContainerPlan) -> bool:
    """Whether a container sees all of /proc and /sys: a privileged one, and one with `procMount: Unmasked`.

    For that a kubelet sends empty lists, which other clients send when they have no wish. Kubernetes allows it to pods
    with user ids of their own only, who are nobody there; so it is taken for a wish from them alone.
    """
    context = plan.config.linux.security_context
    return plan.privileged or (plan.userns and not context.masked_paths and not context.readonly_paths)


def readonly_paths(plan: ContainerPlan) -> list[str]:
    """Paths that the container cannot write to: the request's list, else ours; none where all is to be seen."""
    given = plan.config.linux.security_context.readonly_paths
    if _unmasked(plan):
        return []
    return _checked("readonly_paths", given) if given else list(READONLY_PATHS)


def _checked(name: str, given: tuple[str, ...]) -> list[str]:
    field = f"linux.security_context.{name}"
    if len(given) > MASKED_MAX:
        raise invalid(field, f"{len(given)} paths", f"at most {MASKED_MAX}")
    return [clean_path(f"{field}[{index}]", path) for index, path in enumerate(given)]


def image_volumes(image: ImageConfig) -> tuple[str, ...]:
    """Clean paths of the directories that the image declares as volumes.

    Raises:
        OperationError: one that is relative, leads upwards or lies over the kernel's file systems (CVE-2022-23648).
    """
    if len(image.volumes) > VOLUMES_MAX:
        raise invalid("volumes of the image", f"{len(image.volumes)} volumes", f"at most {VOLUMES_MAX}")
    return tuple(check_target("volumes of the image", path, privileged=False) for path in image.volumes)
