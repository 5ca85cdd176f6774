"""The servers that are compared, each in a directory of its own, on the same runtime, network and registry."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from bench import processes
from bench.client import Client
from bench.place import PLUGIN_DIR, Place
from crio_server.cri.v1 import api_pb2 as pb

CONTAINERD = "containerd"
CRIO = "crio"
START_S = 60.0
STOP_S = 30.0
ROOT = Path(__file__).resolve().parent.parent


class Peer:
    """A server that can be started, stopped and asked.

    Args:
        name: What it is called in tables.
        place: Where the run happens.
        pause: Reference of the pause image.
    """

    def __init__(self, name: str, place: Place, pause: str) -> None:
        self.name = name
        self.directory = place.directory / name
        self.directory.mkdir()
        self.state = place.memory(self.directory / "run")
        self.socket = self.directory / "cri.sock"
        self.mark = str(self.directory)
        self._argv = _containerd(self, place, pause) if name == CONTAINERD else _crio(self, place, pause)
        self._process: subprocess.Popen[bytes] | None = None
        self.client = Client(str(self.socket))

    def start(self) -> float:
        """Start it; returns the seconds until it has answered the first call."""
        began_s = time.perf_counter()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment() | {"CRIOBENCH_MARK": self.mark},
                cwd=ROOT,
                start_new_session=True,
            )
        processes.wait_until(self._socket_is_there, f"{self.name} makes its socket", START_S, 0.001)
        self.client.open()
        processes.wait_until(self._answers, f"{self.name} answers", START_S, 0.002)
        return time.perf_counter() - began_s

    def stop(self) -> None:
        """End the server alone: its containers go on."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self.socket.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The server's own process."""
        assert self._process is not None
        return self._process.pid

    def log_tail(self) -> str:
        """The end of what it has said, for when something went wrong."""
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def _socket_is_there(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {self.log_tail()}")
        return self.socket.exists()

    def _answers(self) -> bool:
        try:
            self.client.call("Version", pb.VersionRequest(), 1.0)
            # containerd answers Version before it has loaded what it knows.
            self.client.call("ListContainers", pb.ListContainersRequest(), 5.0)
        except grpc.RpcError:
            return False
        return True


def _environment() -> dict[str, str]:
    """Ours, without what changes how Python works: an installed server keeps its compiled modules, for example."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _containerd(peer: Peer, place: Place, pause: str) -> list[str]:
    config = peer.directory / "config.toml"
    config.write_text(
        f"""\
version = 2
root = "{peer.directory}/root"
state = "{peer.state}"
[grpc]
  address = "{peer.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  stream_server_port = "0"
  max_concurrent_downloads = 6
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGIN_DIR}"
    conf_dir = "{place.cni_dir}"
"""
    )
    return ["containerd", "--config", str(config), "--log-level", "warn"]


def _crio(peer: Peer, place: Place, pause: str) -> list[str]:
    config = peer.directory / "crio.conf"
    config.write_text(
        f"""\
[crio]
root = "{peer.directory}/root"
runroot = "{peer.state}/crio"
[crio.api]
listen = "{peer.socket}"
[crio.runtime]
cgroup_manager = "cgroupfs"
log_level = "warn"
[crio.runtime.runtimes.runc]
runtime_path = "{shutil.which("runc")}"
runtime_root = "{peer.state}/runc"
[crio.image]
pause_image = "{pause}"
[crio.network]
network_dir = "{place.cni_dir}"
plugin_dirs = ["{PLUGIN_DIR}"]
"""
    )
    return [sys.executable, "-m", "crio_server.main", "--config", str(config), "--config-dir", "/nonexistent"]


@contextlib.contextmanager
def serving(place: Place, pause: str, names: tuple[str, ...] = (CONTAINERD, CRIO)) -> Iterator[tuple[Peer, ...]]:
    """Start servers beside each other, and end them with the block."""
    peers: list[Peer] = []
    try:
        for name in names:
            peers.append(Peer(name, place, pause))
            peers[-1].start()
        yield tuple(peers)
    except BaseException:
        for peer in peers:
            sys.stderr.write(f"--- end of the log of {peer.name}\n{peer.log_tail()}\n")
        raise
    finally:
        for peer in peers:
            peer.stop()
            peer.client.close()
