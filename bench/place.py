"""Where a run happens: one directory, one bridge, one cgroup, one subnet; and nothing of it left behind."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import processes

NAME = "criobench"
BRIDGE = "criobench0"
SUBNET = "10.214.0.0/16"
PLUGIN_DIR = "/usr/lib/cni"
CGROUP_ROOT = Path("/sys/fs/cgroup")
TOOLS = ("containerd", "runc", "docker-registry", "busybox", "catatonit", "ip", "iptables", "mount", "umount")
END_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The directory of a run and what is shared in it."""

    directory: Path

    @property
    def cni_dir(self) -> Path:
        """The CNI configuration that every server reads."""
        return self.directory / "net.d"

    def memory(self, directory: Path) -> Path:
        """Make a directory in memory, as `/run` is on most hosts, where runtimes keep what a reboot may take away."""
        directory.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", NAME, str(directory)], check=True, timeout=60)
        return directory

    def network(self) -> dict[str, object]:
        """The network of all pods: what CRI-O's and containerd's documentation show, and port mappings."""
        return {
            "cniVersion": "0.4.0",
            "name": NAME,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "ipMasq": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": SUBNET}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": str(self.directory / "ipam"),
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            ],
        }


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Make a place, and sweep it when the block ends, however it ends."""
    # Sockets live below it, so its path has to be short.
    directory = Path(tempfile.mkdtemp(prefix=f"{NAME}-", dir="/tmp"))
    here = Place(directory=directory)
    here.cni_dir.mkdir()
    (here.cni_dir / "10-criobench.conflist").write_text(json.dumps(here.network()))
    try:
        yield here
    finally:
        sweep(directory)


def missing_tools() -> list[str]:
    """Programs that a run needs and this machine has not."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return absent + [name for name in ("bridge", "portmap") if not Path(PLUGIN_DIR, name).exists()]


def sweep(directory: Path) -> None:
    """Remove all that a run has made; what is not there any more is fine."""
    _kill(str(directory))
    _kill_in_cgroups()
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split()[4]
        if target.startswith(f"{directory}/"):
            _quietly("umount", "-l", target)
    for netns in Path("/run/netns").glob(f"{NAME}-*") if Path("/run/netns").is_dir() else ():
        _quietly("ip", "netns", "delete", netns.name)
    _quietly("ip", "link", "delete", BRIDGE)
    _remove_rules()
    for top in (CGROUP_ROOT, *CGROUP_ROOT.iterdir()):
        below = sorted((top / NAME).rglob("*"), reverse=True) if (top / NAME).is_dir() else []
        for path in [*below, top / NAME]:
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
    shutil.rmtree(directory, ignore_errors=True)


def _quietly(*argv: str) -> None:
    subprocess.run(argv, check=False, capture_output=True, timeout=60)


def _kill(mark: str) -> None:
    """Kill what still serves from our directory: those processes and everything below them."""
    for pid in processes.own_processes(mark):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _kill_in_cgroups() -> None:
    for procs in [path for top in CGROUP_ROOT.iterdir() for path in (top / NAME).rglob("cgroup.procs")]:
        with contextlib.suppress(OSError):
            for word in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(word), signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        processes.wait_until(lambda: not _populated(), "containers are gone", END_S, 0.05)


def _populated() -> bool:
    for procs in [path for top in CGROUP_ROOT.iterdir() for path in (top / NAME).rglob("cgroup.procs")]:
        with contextlib.suppress(OSError):
            if procs.read_text():
                return True
    return False


def _remove_rules() -> None:
    nat = ["iptables", "-w", "-t", "nat"]
    listed = subprocess.run([*nat, "-S"], capture_output=True, text=True, check=False, timeout=60).stdout
    chains: set[str] = set()
    for rule in (shlex.split(line) for line in listed.splitlines() if f'name: "{NAME}"' in line.replace("\\", "")):
        if rule[0] == "-A":
            chains |= {word for word in rule if word.startswith("CNI-") and not word.startswith("CNI-HOSTPORT")}
            _quietly(*nat, "-D", *rule[1:])
    for chain in sorted(chains):
        _quietly(*nat, "-F", chain)
        _quietly(*nat, "-X", chain)
