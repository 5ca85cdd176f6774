"""Looks at the node once, at start: what its kernel can do, and what this process may do."""

import os
import platform
import resource
from contextlib import suppress
from pathlib import Path

from crio_core.oci.capabilities import from_mask
from crio_core.oci.facts import CgroupDriver, CgroupMode, HostFacts, Rlimit
from crio_core.values import dataclass
from crio_io import idmap, mounts
from crio_io.cgroups import Cgroups, Mode

_MODES = {Mode.V1: CgroupMode.V1, Mode.HYBRID: CgroupMode.HYBRID, Mode.V2: CgroupMode.V2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The node: what the spec builder needs, and what others do.

    `boot_id` changes with every boot; `kernel` is the release's first two numbers; `systemd` says that it runs here.
    """

    facts: HostFacts
    boot_id: str
    kernel: tuple[int, int]
    systemd: bool
    cgroups: Cgroups


async def look(driver: CgroupDriver | None = None, *, layers: Path | None = None) -> Host:
    """Gather everything.

    Args:
        driver: Who makes cgroups; None for systemd where it runs, and the filesystem elsewhere.

        layers: Where images are unpacked: whether pods can have user namespaces depends on that file system; None when
            nobody will ask.

    Raises:
        OperationError: CGROUPS_NOT_MOUNTED.
    """
    return await mounts.in_thread("look at the host", _look, driver, layers)


def _look(driver: CgroupDriver | None, layers: Path | None) -> Host:
    cgroups = Cgroups.detect()
    kernel = kernel_version(os.uname().release)
    systemd = Path("/run/systemd/system").is_dir()  # As sd_booted(3) has it.
    capabilities = from_mask(_capability_mask("CapBnd"))
    # The bounding set says what can be given to others; what we may do ourselves needs the effective one as well.
    raises = "CAP_SYS_RESOURCE" in from_mask(_capability_mask("CapEff"))
    facts = HostFacts(
        architecture=platform.machine(),
        cgroup_mode=_MODES[cgroups.mode],
        cgroup_driver=driver or (CgroupDriver.SYSTEMD if systemd else CgroupDriver.CGROUPFS),
        controllers=cgroups.controllers,
        swap_limits=_has_swap_limits(cgroups),
        capabilities=capabilities if raises else tuple(name for name in capabilities if name != "CAP_SYS_RESOURCE"),
        oom_score_adj_min=-1000 if raises else int(Path("/proc/self/oom_score_adj").read_text()),
        rlimits=tuple(_rlimits()),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor=_first_line(Path("/sys/module/apparmor/parameters/enabled")) == "Y",
        selinux=Path("/sys/fs/selinux/enforce").exists(),
        userns_lack=idmap.why_not(layers, kernel) if layers is not None else "",
    )
    return Host(
        facts=facts,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        kernel=kernel,
        systemd=systemd,
        cgroups=cgroups,
    )


def _capability_mask(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value, 16)
    return 0


def _rlimits() -> list[Rlimit]:
    found: list[Rlimit] = []
    for name in sorted(dir(resource)):
        if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE":  # Another name of NOFILE.
            with suppress(ValueError, OSError):
                soft, hard = resource.getrlimit(getattr(resource, name))
                found.append(Rlimit(name=name.removeprefix("RLIMIT_"), soft=soft, hard=hard))
    return found


def _has_swap_limits(cgroups: Cgroups) -> bool:
    for hierarchy in cgroups.hierarchies:
        if "memory" in hierarchy.controllers:
            if not hierarchy.v2:
                return (hierarchy.mountpoint / "memory.memsw.limit_in_bytes").exists()
            # The root of a v2 tree has no limits, so its children are looked at.
            return any(hierarchy.mountpoint.glob("*/memory.swap.max"))
    return False


def kernel_version(release: str) -> tuple[int, int]:
    numbers = [int("".join(filter(str.isdecimal, part)) or 0) for part in release.split(".")[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (numbers[0], 0)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
