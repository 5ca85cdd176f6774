"""A private containerd with real runc, CNI and a loopback registry, and crioctl to talk to it.

Everything lives under one temporary directory, a bridge and a cgroup of one name, and all of it is
gone afterwards.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.integration import residue
from tests.integration.leftovers import MINE
from tests.integration.waiting import wait_for

BRIDGE = f"{MINE}c"
TOOLS = ("containerd", "runc", "skopeo", "docker-registry", "busybox", "ip")
WAIT_S = 30.0
APPLETS = ("sh", "sleep", "cat", "echo", "true", "false", "seq", "httpd")

SCRIPT = """\
trap 'echo bye; exit 7' TERM
echo started
echo warned >&2
i=0
while :; do i=$((i+1)); sleep 0.05; [ $i -lt 40 ] && echo tick $i; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run of crioctl gave."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A running containerd, and a registry with an image."""

    directory: Path
    socket: Path
    image: str

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "crio_server.crioctl", "-r", f"unix://{self.socket}", *arguments]

    def run(self, *arguments: str) -> Result:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, check=False)
        return Result(code=done.returncode, out=done.stdout, err=done.stderr)

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.code == 0, f"crioctl {' '.join(arguments)}: {result}"
        return result.out.strip()

    def data(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "-o", "json"))

    def pod_file(self, name: str) -> Path:
        config = {
            "metadata": {"name": name, "namespace": "criotest", "uid": f"uid-{name}", "attempt": 1},
            "hostname": name,
            "log_directory": str(self.directory / "logs" / name),
            "labels": {"group": name},
            "linux": {"cgroup_parent": f"/{BRIDGE}"},
        }
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps(config))
        return path

    def container_file(self, name: str) -> Path:
        path = self.directory / f"{name}.yaml"
        config = {
            "metadata": {"name": name},
            "image": {"image": self.image},
            "command": ["/bin/sh", "-c"],
            "args": [SCRIPT],
            "logPath": f"{name}.log",
            "labels": {"tier": "backend"},
            "envs": [{"key": "PATH", "value": "/bin"}],
        }
        path.write_text(yaml.safe_dump(config))
        return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_image(directory: Path) -> None:
    """Write an OCI layout whose one layer is the machine's static busybox; run bare, it sleeps."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    busybox = Path(str(shutil.which("busybox"))).resolve()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(busybox, "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    layer_blob = blob(layer.getvalue())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep"], "Cmd": ["1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer_blob["digest"]]},
    }
    oci = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": {"mediaType": f"{oci}.config.v1+json", **blob(json.dumps(config).encode())},
        "layers": [{"mediaType": f"{oci}.layer.v1.tar", **layer_blob}],
    }
    described = {"mediaType": f"{oci}.manifest.v1+json", **blob(json.dumps(manifest).encode())}
    index = {
        "schemaVersion": 2,
        "manifests": [{**described, "annotations": {"org.opencontainers.image.ref.name": "1"}}],
    }
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def write_configuration(directory: Path, image: str) -> Path:
    network = {
        "cniVersion": "0.4.0",
        "name": BRIDGE,
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "subnet": "10.213.77.0/24",
                    "dataDir": str(directory / "ipam"),
                },
            }
        ],
    }
    (directory / "net.d").mkdir()
    (directory / "net.d" / "10-criotest.conflist").write_text(json.dumps(network))
    path = directory / "containerd.toml"
    path.write_text(
        f"""\
version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/net.d"
"""
    )
    return path


@contextlib.contextmanager
def process(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended, by its own pid, when the block ends."""
    with log.open("wb") as output:
        child = subprocess.Popen(arguments, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def sweep(directory: Path) -> None:
    """Remove what a failed test may have left: shims of our containerd, mounts, the bridge and the cgroups."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if f"{directory}/containerd.sock".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                for child in (entry / "task" / entry.name / "children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
                os.kill(int(entry.name), signal.SIGKILL)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split()[4]
        if target.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", target], check=False, capture_output=True)
    subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)
    for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        if (top / BRIDGE).is_dir():
            for below in sorted((top / BRIDGE).rglob("*"), reverse=True):
                if below.is_dir():
                    below.rmdir()
            (top / BRIDGE).rmdir()


def left_of_pods(directory: Path) -> list[str]:
    """Mounts, ports of the bridge and shims: what pods have, and no pod that was removed."""
    marks = residue.Marks(directory=directory, name=BRIDGE, bridge=BRIDGE, subnet="10.213.77.")
    shims = [line for line in residue.processes(marks).values() if "containerd-shim" in line]
    return [*residue.mounts(marks), *residue.links(marks), *shims]


@contextlib.contextmanager
def containerd(spared: set[str]) -> Iterator[Place]:
    """A containerd of our own. Its socket's path must be short, so it is not under pytest's directory.

    It keeps a bridge and a cgroup for the next pod, so what has its names in it is no residue of a test (`spared`).
    """
    directory = Path(subprocess.check_output(["mktemp", "-d", f"/tmp/{MINE}-XXXXXX"], text=True).strip())
    words = {str(directory), BRIDGE}
    spared |= words
    port = free_port()
    image = f"127.0.0.1:{port}/criotest/busybox:1"
    registry = directory / "registry.yml"
    registry.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\nlog: {{level: error}}\n"
    )
    write_image(directory / "layout")
    configuration = write_configuration(directory, image)
    here = Place(directory=directory, socket=directory / "containerd.sock", image=image)
    try:
        with process(["docker-registry", "serve", str(registry)], directory / "registry.log"):
            copy = [
                "skopeo",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                f"oci:{directory}/layout:1",
                f"docker://{image}",
            ]
            wait_for(
                "the image is pushed",
                lambda: subprocess.run(copy, capture_output=True, check=False).returncode == 0,
                timeout_s=WAIT_S,
            )
            with process(["containerd", "-c", str(configuration)], directory / "containerd.log"):
                wait_for("containerd answers", lambda: here.run("version").code == 0, timeout_s=WAIT_S)
                yield here
                here.run("rm", "-fa")
                here.run("rmp", "-fa")
                wait_for("nothing of the pods is left", lambda: not left_of_pods(directory), timeout_s=WAIT_S)
    finally:
        sweep(directory)
        shutil.rmtree(directory, ignore_errors=True)
        spared -= words
