"""The floor: the same work by bare commands, with no server."""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from bench import processes
from bench.place import NAME, PLUGIN_DIR, Place
from crio_io.storage.overlay import VOLATILE

COMMAND_S = 60
NS_PER_MS = 1_000_000
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

UP = ("netns", "cni add", "mount rootfs", "runc create", "runc start")
DOWN = ("runc kill", "wait for end", "runc delete", "unmount rootfs", "cni del", "netns del", "remove files")


class Floor:
    """Runs the commands for pods with one container.

    Args:
        place: Where the run happens.
        spec: The runtime-spec document of a container like those of the servers; its namespaces, cgroup and root
            filesystem are replaced.
        layer: A directory with the unpacked image.
    """

    def __init__(self, place: Place, spec: dict[str, Any], layer: Path) -> None:
        self._place = place
        self._directory = place.directory / "floor"
        self._directory.mkdir()
        self._memory = place.memory(self._directory / "run")
        self._runc = [str(shutil.which("runc")), "--root", str(self._memory / "runc")]
        self._layer = layer
        self._spec = json.dumps(_without_sources(spec, str(place.directory)))
        self._count = 0

    def up(self) -> "FloorPod":
        """Bring a pod and its container up."""
        self._count += 1
        name = f"{NAME}-{os.getpid()}-{self._count}"
        pod = FloorPod(name, self._memory / name, self._directory / name, self._place.network(), self._runc)
        pod.prepare(json.loads(self._spec))
        pod.up(self._layer)
        return pod


class FloorPod:
    """One pod made by commands; `steps_ms` has what each took."""

    def __init__(self, name: str, bundle: Path, disk: Path, network: dict[str, Any], runc: list[str]) -> None:
        self.name = name
        self.bundle = bundle
        self.disk = disk
        self.netns = f"/run/netns/{name}"
        self.steps_ms: dict[str, float] = {}
        self._runc = runc
        self._network = network
        self._attached: Any = None
        """What ADD returned: DEL gets it back."""

    def prepare(self, spec: dict[str, Any]) -> None:
        """Write the bundle; not part of the time, as a server has to decide what goes into it."""
        for part in (self.bundle / "rootfs", self.disk / "upper", self.disk / "work"):
            part.mkdir(parents=True)
        spec["root"] = {"path": str(self.bundle / "rootfs"), "readonly": False}
        spec["linux"]["cgroupsPath"] = f"/{NAME}/{self.name}"
        spec["linux"]["namespaces"] = [
            *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
            {"type": "network", "path": self.netns},
        ]
        (self.bundle / "config.json").write_text(json.dumps(spec))

    def _step(self, name: str, *argv: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> bytes:
        # Not subprocess.run with a timeout: it looks for the end at growing intervals, up to 50 ms too late.
        out = subprocess.DEVNULL if "create" in argv else subprocess.PIPE
        began_ns = time.perf_counter_ns()
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, env=env or ENVIRONMENT)
        guard = threading.Timer(COMMAND_S, process.kill)
        guard.start()
        try:
            said, _ = process.communicate(stdin)
        finally:
            guard.cancel()
        self._spent(name, began_ns)
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, argv)
        return said or b""

    def _spent(self, name: str, began_ns: int) -> None:
        self.steps_ms[name] = self.steps_ms.get(name, 0.0) + (time.perf_counter_ns() - began_ns) / NS_PER_MS

    def _cni(self, command: str) -> None:
        previous = self._attached
        plugins = self._network["plugins"]
        for plugin in plugins if command == "ADD" else reversed(plugins):
            document = {"cniVersion": self._network["cniVersion"], "name": self._network["name"], **plugin}
            if previous is not None:
                document["prevResult"] = previous
            env = ENVIRONMENT | {
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": self.name,
                "CNI_NETNS": self.netns,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": PLUGIN_DIR,
            }
            path = f"{PLUGIN_DIR}/{plugin['type']}"
            answer = self._step(f"cni {command.lower()}", path, stdin=json.dumps(document).encode(), env=env)
            if command == "ADD":
                previous = self._attached = json.loads(answer)

    def up(self, layer: Path) -> None:
        """Bring it up."""
        self._step("netns", "ip", "netns", "add", self.name)
        self._cni("ADD")
        options = f"lowerdir={layer},upperdir={self.disk}/upper,workdir={self.disk}/work{VOLATILE}"
        self._step("mount rootfs", "mount", "-t", "overlay", "-o", options, "overlay", f"{self.bundle}/rootfs")
        pid_file = f"{self.bundle}/pid"
        create = ("create", "--bundle", str(self.bundle), "--pid-file", pid_file, self.name)
        self._step("runc create", *self._runc, *create)
        self._step("runc start", *self._runc, "start", self.name)

    def exec(self) -> None:
        """Run `true` in it."""
        self._step("runc exec", *self._runc, "exec", self.name, "/bin/true")

    def down(self) -> None:
        """Take it away."""
        pid = int((self.bundle / "pid").read_text())
        self._step("runc kill", *self._runc, "kill", self.name, "TERM")
        began_ns = time.perf_counter_ns()
        processes.wait_until(lambda: _ended(pid), "the container ends", every_s=0.0005)
        self._spent("wait for end", began_ns)
        self._step("runc delete", *self._runc, "delete", self.name)
        self._step("unmount rootfs", "umount", f"{self.bundle}/rootfs")
        self._cni("DEL")
        self._step("netns del", "ip", "netns", "delete", self.name)
        began_ns = time.perf_counter_ns()
        shutil.rmtree(self.bundle)
        shutil.rmtree(self.disk)
        self._spent("remove files", began_ns)


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _without_sources(spec: dict[str, Any], directory: str) -> dict[str, Any]:
    """The document without mounts whose source belongs to a server's pod."""
    spec["mounts"] = [mount for mount in spec.get("mounts", ()) if not mount["source"].startswith(directory)]
    spec.pop("hooks", None)
    return spec


def floor_like(place: Place, directory: Path, container_id: str) -> Floor:
    """A floor that does what was done for a container that is running now.

    Args:
        place: Where the run happens.
        directory: Below it lies the bundle of the container.
        container_id: Which container.
    """
    found = [path for path in directory.rglob("config.json") if container_id in str(path)]
    if not found:
        raise RuntimeError(f"no config.json of {container_id} below {directory}")
    spec = json.loads(found[0].read_text())
    rootfs = found[0].parent / spec["root"]["path"]
    layer = place.directory / "layer"
    for name in ("proc", "sys", "dev", "tmp"):
        (layer / name).mkdir(parents=True)
    for name in ("bin", "etc"):
        shutil.copytree(rootfs / name, layer / name, symlinks=True)
    return Floor(place, spec, layer)
