"""OCI bundles made from the machine's own busybox, for tests of runtimes and monitors."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.leftovers import MINE

BUSYBOX = "/bin/busybox"
RUNC = shutil.which("runc") or "/usr/sbin/runc"
CONMON = shutil.which("conmon") or "/usr/bin/conmon"
COMMANDS = ("sh", "sleep", "echo", "true", "false", "yes", "cat", "tail", "seq", "kill")
CGROUP_PARENT = f"/{MINE}-pods"


def process(*args: str, terminal: bool = False) -> dict[str, Any]:
    """An OCI process without any privilege."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/bin"],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")},
    }


@dataclass(frozen=True, kw_only=True)
class Bundles:
    """Makes bundles under one directory."""

    root: Path
    made: list[str] = field(default_factory=list)

    def make(self, name: str, *args: str, terminal: bool = False, memory_bytes: int = 0) -> Path:
        """A bundle whose first process has these arguments; its cgroup lies below `CGROUP_PARENT`."""
        bundle = self.root / name
        binaries = bundle / "rootfs" / "bin"
        binaries.mkdir(parents=True)
        for directory in ("proc", "dev", "sys", "tmp"):
            (bundle / "rootfs" / directory).mkdir()
        shutil.copy(BUSYBOX, binaries / "busybox")
        for command in COMMANDS:
            os.symlink("busybox", binaries / command)
        resources = {"memory": {"limit": memory_bytes}} if memory_bytes else {}
        config = {
            "ociVersion": "1.0.2",
            "process": process(*args, terminal=terminal),
            "root": {"path": "rootfs"},
            "hostname": "criotest",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "cgroupsPath": f"{CGROUP_PARENT}/{name}",
                "resources": resources,
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            },
        }
        (bundle / "config.json").write_text(json.dumps(config))
        self.made.append(name)
        return bundle
