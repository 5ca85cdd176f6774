"""A real `crio` process with everything of its own, and a client of it that shares nothing with the server's stack.

A `Site` is a directory, a bridge, a CNI network and a parent cgroup; `Crio` is one server process on it, which can be
stopped, killed and started again; `Client` speaks to it through grpcio.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import psutil
from google.protobuf.message import Message

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration import residue
from tests.integration.leftovers import GONE_S, MINE
from tests.integration.registry_fixture import (
    LocalRegistry,
    archive,
    archive_of_host,
    busybox_archive,
    pack,
    redis_archive,
)
from tests.integration.waiting import WAIT_S, look_until, wait_for

REPOSITORY = Path(__file__).parents[2]
PLUGIN_DIR = "/usr/lib/cni"
CALL_S = 40.0
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
PATH_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PAUSE_COMMAND = "/usr/bin/catatonit -P"


def wait_until_clean(look: Callable[[], frozenset[str]], log: Callable[[], str] = str) -> None:
    """Look again and again until nothing is left; what still is after a while is an error, with the log's end."""
    left = look_until(lambda found: not found, look, GONE_S)
    said = log() if left else ""
    assert not left, "residue:\n" + "\n".join(sorted(left)) + (f"\nlog:\n{said}" if said else "")


# --- images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """References of the images that the tests use, in one loopback registry."""

    registry: LocalRegistry
    busybox: str
    pause: str
    redis: str
    told: str
    """Busybox with every member of an image configuration that says something about its process."""


def push_images(registry: LocalRegistry) -> Images:
    """Fill a registry."""
    busybox = pack(busybox_archive())
    told = pack(archive({"srv/": b"", "etc/passwd": PASSWD, "etc/group": GROUP}))
    return Images(
        registry=registry,
        busybox=registry.push("busybox", [busybox], config={"Cmd": ["sh"], "Env": [PATH_ENV]}).reference,
        pause=registry.push("pause", [pack(archive_of_host(["catatonit"]))], config={"Env": [PATH_ENV]}).reference,
        redis=registry.push(
            "redis", [pack(redis_archive())], config={"Cmd": ["redis-server"], "Env": [PATH_ENV]}
        ).reference,
        told=registry.push(
            "told",
            [busybox, told],
            config={
                "Entrypoint": ["/bin/sh", "-c", 'echo "entry $0 $@"; pwd; echo $MARK; id'],
                "Cmd": ["from-image"],
                "Env": [PATH_ENV, "MARK=of-the-image"],
                "WorkingDir": "/srv",
                "User": "web",
                "StopSignal": "SIGUSR1",
                "Labels": {"io.kubernetes.cri-o.ContainerType": "sandbox"},
            },
        ).reference,
    )


PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1234:2345:web:/srv:/bin/sh\n"
GROUP = b"root:x:0:\nweb:x:2345:\nextra:x:3456:web\n"


# --- a server -----------------------------------------------------------------------------------------------------

_numbers = itertools.count()


def _free_subnet() -> str:
    """The first three numbers of a network of the benchmarking range (RFC 2544) that no link of this machine has."""
    taken = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, timeout=30, check=True).stdout
    for offset in range(512):
        second, third = divmod((os.getpid() * 7 + next(_numbers) + offset) % 512, 256)
        if f" 198.{18 + second}.{third}." not in taken:
            return f"198.{18 + second}.{third}."
    raise AssertionError("no free subnet in 198.18.0.0/15")


class Site:
    """Where one server lives; `sweep` removes all of it."""

    def __init__(self, images: Images) -> None:
        self.images = images
        name = f"{MINE}{chr(97 + next(_numbers) % 26)}"
        directory = Path(tempfile.mkdtemp(prefix=f"{MINE}-"))
        self.marks = residue.Marks(directory=directory, name=name, bridge=name, subnet=_free_subnet())
        self.directory = directory
        self.cni = directory / "cni"
        self.logs = directory / "logs"
        self.cni.mkdir()
        self.logs.mkdir()
        self.write_network()

    @property
    def socket(self) -> Path:
        return self.directory / "crio.sock"

    def network(self) -> dict[str, Any]:
        """A bridge with addresses, masquerading and port mappings."""
        marks = self.marks
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": f"{marks.subnet}0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(marks.ipam),
        }
        bridge = {"type": "bridge", "bridge": marks.bridge, "isGateway": True, "ipMasq": True, "ipam": ipam}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": marks.name, "plugins": [bridge, ports]}

    def write_network(self, document: object = None) -> None:
        """Put a CNI configuration into force, by default the good one."""
        self._replace(self.cni / "10-test.conflist", json.dumps(self.network() if document is None else document))

    def write_plugin(self, command: str, script: str, version: str = "0.4.0") -> Path:
        """A network plugin that does something of its own at one command and nothing else, put into force."""
        plugin = self.directory / "plugins" / "strange"
        plugin.parent.mkdir()
        plugin.write_text(
            "#!/bin/sh\n"
            'case "$CNI_COMMAND" in\n'
            f'  VERSION) echo \'{{"cniVersion":"{version}","supportedVersions":["{version}"]}}\'; exit 0;;\n'
            f"  {command}) {script};;\n"
            "esac\n"
            f'echo \'{{"cniVersion":"{version}"}}\'\n'
        )
        plugin.chmod(0o755)
        self.write_network({"cniVersion": version, "name": self.marks.name, "plugins": [{"type": "strange"}]})
        return plugin

    def _replace(self, path: Path, text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)

    def assert_clean(self) -> None:
        """Wait until there is nothing besides what an ended server keeps; what still is fails the test."""
        wait_until_clean(lambda: residue.of_ended(self.marks))

    def sweep(self) -> None:
        """Remove everything, whatever happened."""
        residue.sweep(self.marks)
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An answer that is an error."""

    code: grpc.StatusCode
    message: str


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


class Client:
    """A CRI client on grpcio: call it with a request, it finds the method that takes such a one."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._methods: dict[str, Any] = {}
        self._streaming: set[str] = set()
        for service in pb.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                make = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
                stub = make(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=_serialized,
                    response_deserializer=getattr(pb, method.output_type.name).FromString,
                )
                self._methods[method.input_type.name] = stub
                if method.server_streaming:
                    self._streaming.add(method.input_type.name)

    def __call__(self, request: Message, *, timeout_s: float = CALL_S) -> Any:
        """Send a request, return the answer; raises grpc.RpcError."""
        return self._methods[request.DESCRIPTOR.name](request, timeout=timeout_s, wait_for_ready=True)

    def begin(self, request: Message, *, timeout_s: float = CALL_S) -> Any:
        """Send a request; returns a future that can be cancelled."""
        return self._methods[request.DESCRIPTOR.name].future(request, timeout=timeout_s, wait_for_ready=True)

    def attempt(self, request: Message, *, timeout_s: float = CALL_S) -> Any:
        """Send a request; returns the answer (the first one of a stream), or how it was refused."""
        try:
            answer = self(request, timeout_s=timeout_s)
            return next(answer) if request.DESCRIPTOR.name in self._streaming else answer
        except grpc.RpcError as error:
            return Refused(code=error.code(), message=error.details() or "")

    def refusal(self, request: Message, *, timeout_s: float = CALL_S) -> "Refused":
        """Send a request that must be refused."""
        found = self.attempt(request, timeout_s=timeout_s)
        assert isinstance(found, Refused), f"not refused: {found}"
        return found

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class Crio:
    """One server process, and short words for what tests do with it."""

    def __init__(self, site: Site, *flags: str, launcher: Sequence[str] = ("-m", "crio_server.main")) -> None:
        self.site = site
        self.images = site.images
        self.flags = flags
        self.launcher = launcher
        self.log = site.directory / "crio.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self._pods = itertools.count()
        self.baseline: frozenset[str] = frozenset()

    @property
    def argv(self) -> list[str]:
        marks = self.site.marks
        return [
            *(sys.executable, *self.launcher, "--config", "", "--config-dir", str(self.site.directory / "conf.d")),
            *("--root", str(marks.root), "--runroot", str(marks.runroot), "--listen", str(self.site.socket)),
            *("--cni-config-dir", str(self.site.cni), "--cni-plugin-dir", PLUGIN_DIR),
            *("--cgroup-manager", "cgroupfs", "--runtimes", f"runc:/usr/sbin/runc:{marks.runtime_root}"),
            *("--registries-conf", "", "--registries-conf-dir", "", "--log-level", "debug"),
            *("--pause-image", self.images.pause, "--pause-command", PAUSE_COMMAND, *self.flags),
        ]

    def start(self) -> "Crio":
        """Start the server and wait until it answers."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("CONTAINER_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY, env=environ
            )
        try:
            wait_for("a server that serves", self._serves)
        except BaseException:
            self.end(signal.SIGKILL)
            raise
        return self

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended: {self.tail()}"
        try:
            self.client(pb.VersionRequest(), timeout_s=1)
        except grpc.RpcError:
            self.disconnect()
            return False
        return True

    @property
    def runs(self) -> bool:
        """Whether it was started and not ended."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> Client:
        """A connection to the server, made when it is first needed."""
        if self._client is None:
            self._client = Client(self.site.socket)
        return self._client

    def disconnect(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def end(self, number: int = signal.SIGTERM, *, timeout_s: float = WAIT_S) -> int:
        """End the server by a signal and wait for it; returns its exit code. One that does not end is killed."""
        self.disconnect()
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()

    def restart(self, number: int = signal.SIGTERM) -> None:
        """End the server by a signal, and start it again."""
        self.end(number)
        self.start()

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def tail(self) -> str:
        """The end of the server's log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def rss_bytes(self) -> int:
        """Resident memory of the server."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def __enter__(self) -> "Crio":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    # --- residue ----------------------------------------------------------------------------------------------------

    def left(self) -> frozenset[str]:
        """What there is besides what an idle server has."""
        own = frozenset([self.pid]) if self._process is not None else frozenset()
        return residue.find(self.site.marks, but_pids=own) - self.baseline

    def note_baseline(self) -> None:
        """Take what there is now for what an idle server has; copies of images' records come a moment after them."""
        images = len(self.client(pb.ListImagesRequest()).images)
        wait_for("the copies of images' records", lambda: len(os.listdir(self.site.marks.root / "images")) >= images)
        self.baseline = frozenset()
        self.baseline = self.left()

    def assert_clean(self) -> None:
        """Wait until nothing is left; what still is fails the test."""
        wait_until_clean(self.left, self.tail)

    # --- requests ---------------------------------------------------------------------------------------------------

    def pull(self, image: str) -> str:
        """Pull an image."""
        ref: str = self.client(pb.PullImageRequest(image=pb.ImageSpec(image=image))).image_ref
        return ref

    def pod_config(self, name: str = "", **fields: Any) -> pb.PodSandboxConfig:
        """The configuration of a pod; `fields` replace members of the message."""
        name = name or f"pod{next(self._pods)}"
        linux = fields.pop("linux", None) or pb.LinuxPodSandboxConfig()
        if not linux.security_context.HasField("namespace_options"):
            linux.security_context.namespace_options.pid = pb.CONTAINER  # as a kubelet asks for; 0 means shared
        linux.cgroup_parent = linux.cgroup_parent or f"/{self.site.marks.name}/{name}"
        metadata = pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default")
        options = {"metadata": metadata, "hostname": name, "log_directory": str(self.site.logs / name), **fields}
        return pb.PodSandboxConfig(linux=linux, **options)

    def run_pod(self, config: pb.PodSandboxConfig | None = None, **fields: Any) -> str:
        """Run a pod; returns its id."""
        request = pb.RunPodSandboxRequest(config=config or self.pod_config(**fields))
        pod_id: str = self.client(request).pod_sandbox_id
        return pod_id

    def container_config(self, command: Sequence[str] = (), name: str = "main", **fields: Any) -> pb.ContainerConfig:
        """The configuration of a container; `fields` replace members of the message."""
        image = fields.pop("image", self.images.busybox)
        options: dict[str, Any] = {"log_path": f"{name}.log", **fields}
        linux = options.pop("linux", None) or pb.LinuxContainerConfig()
        if not linux.security_context.HasField("namespace_options"):
            linux.security_context.namespace_options.pid = pb.CONTAINER
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=command,
            linux=linux,
            **options,
        )

    def create(self, pod_id: str, config: pb.ContainerConfig, sandbox: pb.PodSandboxConfig | None = None) -> str:
        """Create a container; returns its id."""
        request = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=sandbox)
        container_id: str = self.client(request).container_id
        return container_id

    def begin(self, pod_id: str, command: Sequence[str], name: str = "main", **fields: Any) -> str:
        """Create and start a container; returns its id."""
        container_id = self.create(pod_id, self.container_config(command, name, **fields))
        self.client(pb.StartContainerRequest(container_id=container_id))
        return container_id

    def status(self, container_id: str) -> pb.ContainerStatus:
        """A container's status."""
        status: pb.ContainerStatus = self.client(pb.ContainerStatusRequest(container_id=container_id)).status
        return status

    def info(self, container_id: str) -> Mapping[str, Any]:
        """What verbose status adds."""
        answer = self.client(pb.ContainerStatusRequest(container_id=container_id, verbose=True))
        info: Mapping[str, Any] = json.loads(answer.info["info"])
        return info

    def ended(self, container_id: str, *, timeout_s: float = WAIT_S) -> pb.ContainerStatus:
        """Wait for a container to exit; returns its status."""

        def exited() -> pb.ContainerStatus | None:
            status = self.status(container_id)
            return status if status.state == pb.CONTAINER_EXITED else None

        found = wait_for(f"the exit of {container_id}", exited, timeout_s=timeout_s)
        assert found is not None
        return found

    def exec(self, container_id: str, *command: str, timeout_s: int = 20) -> pb.ExecSyncResponse:
        """Run a command in a container."""
        answer: pb.ExecSyncResponse = self.client(
            pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout_s)
        )
        return answer

    def output(self, container_id: str, *command: str) -> str:
        """What a command in a container writes; it must succeed."""
        done = self.exec(container_id, *command)
        assert (done.exit_code, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def run(self, pod_id: str, script: str, name: str = "main", **fields: Any) -> tuple[int, str]:
        """Run a shell script as a container to its end; returns its exit code and what it wrote."""
        container_id = self.begin(pod_id, ["sh", "-c", script], name, **fields)
        code = self.ended(container_id).exit_code
        text = "".join(entry.text for entry in read_log(Path(self.status(container_id).log_path)))
        self.client(pb.RemoveContainerRequest(container_id=container_id))
        return code, text

    def stop(self, container_id: str, timeout_s: int = 0) -> None:
        """Stop a container."""
        self.client(pb.StopContainerRequest(container_id=container_id, timeout=timeout_s))

    def remove(self, *pod_ids: str) -> None:
        """Stop and remove pods."""
        for pod_id in pod_ids:
            self.client(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
            self.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))

    def remove_all(self) -> None:
        """Stop and remove every pod."""
        for pod in self.client(pb.ListPodSandboxRequest()).items:
            self.remove(pod.id)

    @contextmanager
    def pod(self, **fields: Any) -> Iterator[str]:
        """A pod for the length of a block."""
        pod_id = self.run_pod(**fields)
        try:
            yield pod_id
        finally:
            self.remove(pod_id)


# --- logs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line of a log in the CRI's format: time, stream, tag, text."""

    time: str
    stream: str
    whole: bool
    text: str


def read_log(*paths: Path) -> list[LogEntry]:
    """The entries of log files, in order; a line that is none fails the test."""
    found = []
    for path in paths:
        for line in path.read_bytes().splitlines(keepends=True):
            assert line.endswith(b"\n"), f"{path}: the last record is cut off: {line[-80:]!r}"
            stamp, stream, tag, text = line.decode().split(" ", 3)
            assert stream in ("stdout", "stderr"), line
            assert tag in ("P", "F"), line
            assert stamp[10] == "T", line
            found.append(LogEntry(time=stamp, stream=stream, whole=tag == "F", text=text if tag == "F" else text[:-1]))
    return found
