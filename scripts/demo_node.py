"""A node for a demonstration, in a directory of its own: a registry with redis in it, `crio`, and a pod network.

Nothing of it collides with a runtime that is installed: sockets, state, runtime state, the network's addresses and
bridge are all of its own, and `close` takes everything away, however far things had come.
"""

import ipaddress
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from scripts.demo_residue import Residue
from scripts.local_registry import LocalRegistry, pack, redis_archive

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_S = 30.0
COMMAND_S = 60.0
END_S = 20.0
"""How long `crio` may take to end; it lets work finish that is under way."""
POLL_S = 0.02
LOG_TAIL_LINES = 30
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class Interrupted(Exception):
    """A signal asked us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class DemoFailed(Exception):
    """Something did not do what it should."""


class Signals:
    """SIGINT, SIGTERM and SIGHUP as a flag: seen where we wait, so no step is left half-way by an exception."""

    def __init__(self) -> None:
        self._number = 0
        self._closing = False
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number
        if self._closing:
            with suppress(OSError):  # not by `print`: this may have come in the midst of one
                os.write(sys.stderr.fileno(), b"still cleaning up, a moment\n")

    def close(self) -> None:
        """From now on signals only make us say that we are cleaning up."""
        self._closing = True

    def wait(self, seconds: float, *descriptors: int) -> bool:
        """Wait for a descriptor to be readable, or for the time to pass.

        Raises:
            Interrupted: A signal came, now or before.
        """
        if self._number and not self._closing:
            raise Interrupted(self._number)
        watched = list(descriptors) if self._closing else [*descriptors, self._wake_read]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._number and not self._closing:
            raise Interrupted(self._number)
        return any(descriptor in ready for descriptor in descriptors)

    def wait_process(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Wait for a process to end; whether it did."""
        deadline_s = time.monotonic() + seconds
        descriptor = os.pidfd_open(process.pid)
        try:
            while process.poll() is None:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self.wait(left_s, descriptor)
        finally:
            os.close(descriptor)
        return True


class DemoNode:
    """Makes the directory; the methods bring the rest, `close` takes it away.

    Raises:
        DemoFailed: This machine has no range of addresses to spare.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self._subnet, number = _free_subnet()
        self.directory = Path(tempfile.mkdtemp(prefix="crio-run-"))
        self.bridge = f"criorun{number}"
        self.residue = Residue(directory=self.directory, network=self.directory.name, bridge=self.bridge)
        self.endpoint = f"unix://{self.directory}/crio.sock"
        self._forwarding = FORWARDING.read_text()
        self._registry: LocalRegistry | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._served = False

    @property
    def environment(self) -> dict[str, str]:
        """For `crio` and the commands; temporary files are in our directory, too."""
        return {
            **os.environ,
            "PATH": f"{PROGRAMS}:{SYSTEM_PATH}",
            "TMPDIR": str(self.directory / "tmp"),
            "CONTAINER_RUNTIME_ENDPOINT": self.endpoint,
            "IMAGE_SERVICE_ENDPOINT": self.endpoint,
            "CRI_CONFIG_FILE": str(self.directory / "crictl.yaml"),
        }

    # --- starting -----------------------------------------------------------------------------------------------

    def start_registry(self) -> int:
        """A registry on loopback with this machine's redis as `library/redis:alpine`; returns the layer's size."""
        self._registry = LocalRegistry(self.directory / "registry")
        try:
            self._registry.__enter__()
        except RuntimeError as error:
            raise DemoFailed(str(error)) from error
        layer = pack(redis_archive())
        path = {"Env": [f"PATH={SYSTEM_PATH}"], "Cmd": ["redis-server"]}
        self._registry.push("library/redis", [layer], tag="alpine", config=path)
        return len(layer.blob)

    def write_files(self) -> None:
        """The configuration of `crio`, its registries and network, and the pod and container files."""
        assert self._registry is not None
        here = self.directory
        for name in ("tmp", "net.d", "crio.conf.d", "registries.conf.d"):
            (here / name).mkdir()
        (here / "crictl.yaml").write_text("")
        (here / "crio.conf").write_text(f'''\
[crio]
root = "{here}/root"
runroot = "{here}/run"
log_dir = "{here}/logs"
[crio.api]
listen = "{here}/crio.sock"
[crio.runtime.runtimes.runc]
runtime_root = "{here}/runc"
[crio.image]
registries_conf = "{here}/registries.conf"
registries_conf_dir = "{here}/registries.conf.d"
[crio.network]
network_dir = "{here}/net.d"
''')
        (here / "registries.conf").write_text(f'''\
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "{self._registry.host}"
insecure = true
''')
        network = {
            "cniVersion": "0.2.0",
            "name": self.residue.network,
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "subnet": self._subnet,
                "dataDir": f"{here}/ipam",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        (here / "net.d/10-demo.conf").write_text(json.dumps(network, indent=2))
        examples = REPOSITORY / "examples/pods"
        pod = json.loads((examples / "sandbox_config.json").read_text())
        pod["log_directory"] = f"{here}/logs"
        (here / "sandbox_config.json").write_text(json.dumps(pod, indent=2))
        shutil.copy(examples / "container_redis.json", here)

    def start_server(self) -> None:
        """Start `crio` and wait until it serves.

        Raises:
            DemoFailed: It ended, or does not serve in time.
        """
        here = self.directory
        command = (str(PROGRAMS / "crio"), "--config", f"{here}/crio.conf", "--config-dir", f"{here}/crio.conf.d")
        with (here / "crio.log").open("ab") as log:
            self._server = subprocess.Popen(
                command,
                cwd=here,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for us; we end it in order
            )
        self._served = True
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            if self._server.poll() is not None:
                raise DemoFailed(f"crio ended with {self._server.returncode}")
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"crio does not serve after {START_S:g} s")
            self.signals.wait(POLL_S)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(f"{self.directory}/crio.sock")
            return True
        return False

    # --- commands -----------------------------------------------------------------------------------------------

    def run(self, arguments: Sequence[str], *, capture: bool = False) -> str:
        """Run a command to its end; its output goes where ours goes, or is returned.

        Raises:
            DemoFailed: It failed, or took too long.
            Interrupted: A signal came; the command has ended.
        """
        path = shutil.which(arguments[0], path=self.environment["PATH"])
        if path is None:
            raise DemoFailed(f"{arguments[0]} is not installed")
        with (self.directory / "tmp/output").open("w+b") as output:
            process = subprocess.Popen(
                [path, *arguments[1:]],
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output if capture else None,
            )
            try:
                if not self.signals.wait_process(process, COMMAND_S):
                    raise DemoFailed(f"{' '.join(arguments)}: no end after {COMMAND_S:g} s")
            finally:
                self._end(process, signal.SIGINT)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if process.returncode != 0:
            raise DemoFailed(f"{' '.join(arguments)}: exit code {process.returncode}")
        return text

    def log_tail(self) -> str:
        """The last lines of the server's own log."""
        with suppress(FileNotFoundError):
            lines = (self.directory / "crio.log").read_text(errors="replace").splitlines()
            return "\n".join(lines[-LOG_TAIL_LINES:])
        return ""

    # --- ending -------------------------------------------------------------------------------------------------

    def stop_server(self) -> None:
        """End `crio` and the registry in order."""
        if self._server is not None:
            self._end(self._server, signal.SIGTERM)
            self._server = None
        if self._registry is not None:
            self._registry.__exit__(None, None, None)
            self._registry = None

    def remove_pods(self) -> None:
        """Remove whatever pods there are, also one whose creation was under way when we were interrupted.

        A server that ends lets work finish, and one that starts knows what there is: so it is restarted first.
        """
        if not self._served:
            return
        if self._server is not None:
            self._end(self._server, signal.SIGTERM)
        self.start_server()
        for pod_id in self.run(["crioctl", "pods", "--quiet"], capture=True).split():
            self.run(["crioctl", "stopp", pod_id], capture=True)
            self.run(["crioctl", "rmp", pod_id], capture=True)

    def remove_shared(self) -> None:
        """What CNI plugins leave by design: the bridge, which other pods could be using, and packet forwarding."""
        subprocess.run(["ip", "link", "delete", self.bridge], stderr=subprocess.DEVNULL, check=False)
        if FORWARDING.read_text() != self._forwarding:
            FORWARDING.write_text(self._forwarding)

    def close(self) -> None:
        """Take away what is left, by force: for when something failed or was interrupted."""
        self.stop_server()
        self.residue.sweep()
        self.remove_shared()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        if process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_subnet() -> tuple[str, int]:
    """A range that no route of this machine covers, and a number that is ours as long as its bridge is there."""
    answer = subprocess.run(["ip", "-json", "route", "show", "table", "all"], stdout=subprocess.PIPE, check=True)
    taken = []
    for route in json.loads(answer.stdout):
        with suppress(ValueError):
            taken.append(ipaddress.ip_network(route["dst"]))
    for attempt in range(4096):
        number = (os.getpid() + attempt) % 4096
        subnet = ipaddress.ip_network(f"10.{232 + number // 256}.{number % 256}.0/24")
        free = not any(other.version == 4 and other.overlaps(subnet) for other in taken)
        if free and not Path(f"/sys/class/net/criorun{number}").exists():
            return str(subnet), number
    raise DemoFailed("every range from 10.232.0.0 to 10.247.255.0 is in use on this machine")
