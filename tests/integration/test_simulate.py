"""`crio --simulate`: a CRI server without root, runtime, registry or network, as clients see it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from crio_core import requests as rq
from crio_core.sim import FAULTS, LATENCIES, Simulation
from crio_server import main
from crio_server.config import Config, Sources, load
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl.client import connect
from crio_server.crioctl.endpoint import Settings
from crio_server.simulate import LiveSimulation, Profile, serving
from tests.integration.harness import REPOSITORY, Client, Refused, read_log
from tests.integration.leftovers import MINE
from tests.integration.waiting import wait_for

NODES = 20


class Simulated:
    """A server process and a client of it."""

    def __init__(self, directory: Path, *flags: str, powerless: bool = False) -> None:
        self.directory = directory
        self.socket = directory / "sim.sock"
        argv = [sys.executable, "-m", "crio_server.main", "--config", "", "--simulate", "--listen", str(self.socket)]
        if powerless:
            argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *argv]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("CONTAINER_")}
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen([*argv, *flags], cwd=REPOSITORY, env=environ, stdout=log, stderr=log)
        self.client = Client(self.socket)

    def serves(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            self.client(pb.VersionRequest(), timeout_s=1)
        except grpc.RpcError:
            return False
        return True

    def run_pod(self, name: str = "pod", **fields: object) -> str:
        """Run a pod; returns its id."""
        pod_id: str = self.client(pb.RunPodSandboxRequest(config=self.pod_config(name))).pod_sandbox_id
        return pod_id

    def pod_config(self, name: str) -> pb.PodSandboxConfig:
        linux = pb.LinuxPodSandboxConfig()
        linux.security_context.namespace_options.pid = pb.CONTAINER
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            log_directory=str(self.directory / "logs"),
            linux=linux,
        )

    def begin(
        self, pod_id: str, command: Sequence[str], name: str = "main", annotations: dict[str, str] | None = None
    ) -> str:
        """Create and start a container; returns its id."""
        linux = pb.LinuxContainerConfig()
        linux.security_context.namespace_options.pid = pb.CONTAINER
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image="anything:1"),
            command=command,
            log_path=f"{name}.log",
            annotations=annotations or {},
            linux=linux,
        )
        container_id: str = self.client(pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config)).container_id
        self.client(pb.StartContainerRequest(container_id=container_id))
        return container_id

    def ended(self, container_id: str) -> pb.ContainerStatus:
        """Wait for a container to exit; returns its status."""

        def exited() -> pb.ContainerStatus | None:
            status = self.client(pb.ContainerStatusRequest(container_id=container_id)).status
            return status if status.state == pb.CONTAINER_EXITED else None

        found = wait_for("an exit", exited)
        assert found is not None
        return found

    def crioctl(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        """Run the command line client."""
        command = [sys.executable, "-m", "crio_server.crioctl", "-r", f"unix://{self.socket}", *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)

    def end(self) -> int:
        """End the server; returns its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def _simulated(*flags: str, powerless: bool = False) -> Iterator[Simulated]:
    with tempfile.TemporaryDirectory(prefix=f"{MINE}-") as name:
        simulated = Simulated(Path(name), *flags, powerless=powerless)
        try:
            wait_for("a simulated server", simulated.serves)
            yield simulated
        finally:
            simulated.end()


@pytest.fixture(scope="module")
def simulated() -> Iterator[Simulated]:
    """A server with everything at once, for tests that do not look at time."""
    with _simulated("--latency", "instant", powerless=True) as server:
        server.client(pb.PullImageRequest(image=pb.ImageSpec(image="anything:1")))
        yield server


def test_a_pod_lives_its_whole_life_without_root(simulated: Simulated) -> None:
    """The whole CRI sequence through another project's gRPC client; the server has no capability at all."""
    capabilities = Path(f"/proc/{simulated.process.pid}/status").read_text().partition("CapEff:\t")[2].split()[0]
    assert int(capabilities, 16) == 0
    client = simulated.client
    pod_id = simulated.run_pod("whole")
    status = client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True))
    assert status.status.state == pb.SANDBOX_READY
    assert status.status.network.ip
    container_id = simulated.begin(pod_id, ["sleep", "inf"])
    assert client(pb.ContainerStatusRequest(container_id=container_id)).status.state == pb.CONTAINER_RUNNING
    done = client(pb.ExecSyncRequest(container_id=container_id, cmd=["echo", "hello", "you"]))
    assert (done.stdout, done.exit_code) == (b"hello you\n", 0)
    assert client(pb.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", "true; exit 4"])).exit_code == 4
    client(pb.StopContainerRequest(container_id=container_id, timeout=5))
    assert simulated.ended(container_id).exit_code == 143
    client(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    assert not client(pb.ListPodSandboxRequest()).items


@pytest.mark.parametrize(
    ("command", "annotation", "code"),
    [
        (["exit", "3"], "", 3),
        (["/bin/sh", "-c", "set -e; exit 7"], "", 7),
        (["crash"], "", 139),
        (["true"], "", 0),
        (["false"], "", 1),
        (["sleep", "1"], "", 0),
        (["nginx"], "exit 9", 9),
        (["sleep", "inf"], "crash", 139),
    ],
)
def test_lives_are_scripted_by_command_or_annotation(
    simulated: Simulated, command: list[str], annotation: str, code: int
) -> None:
    """Whoever tests a kubelet says how a container ends."""
    pod_id = simulated.run_pod(f"life-{code}-{len(command)}")
    annotations = {"simulate.crio/life": annotation} if annotation else {}
    status = simulated.ended(simulated.begin(pod_id, command, annotations=annotations))
    assert status.exit_code == code
    assert status.reason == ("Completed" if code == 0 else "Error")
    assert status.finished_at >= status.started_at > 1_600_000_000_000_000_000
    simulated.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def test_logs_are_written_where_the_request_says(simulated: Simulated) -> None:
    """Log files are real, since kubelets and log collectors read them."""
    pod_id = simulated.run_pod("logs")
    container_id = simulated.begin(pod_id, ["echo", "first\nsecond"], name="talker")
    simulated.ended(container_id)
    path = Path(simulated.client(pb.ContainerStatusRequest(container_id=container_id)).status.log_path)
    wait_for("the log", lambda: path.exists() and path.stat().st_size)
    assert [entry.text for entry in read_log(path)] == ["first\n", "second\n"]
    assert simulated.crioctl("logs", container_id).stdout == "first\nsecond\n"
    simulated.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def test_statistics_are_answered_and_grow(simulated: Simulated) -> None:
    """A tool that reads statistics finds counters that only grow, of the containers that run, and the pod's sum."""
    pod_id = simulated.run_pod("counted")
    container_id = simulated.begin(pod_id, ["sleep", "inf"])
    over = simulated.begin(pod_id, ["exit", "0"], "over")
    simulated.ended(over)

    def used() -> int:
        stats = simulated.client(pb.ContainerStatsRequest(container_id=container_id)).stats
        assert stats.memory.working_set_bytes.value > 0 and stats.writable_layer.used_bytes.value > 0
        return int(stats.cpu.usage_core_nano_seconds.value)

    before = used()
    wait_for("a counter to grow", lambda: used() > before)
    mine = pb.PodSandboxStatsFilter(id=pod_id)
    [pod] = simulated.client(pb.ListPodSandboxStatsRequest(filter=mine)).stats
    assert [one.attributes.id for one in pod.linux.containers] == [container_id]
    assert pod.linux.network.default_interface.name == "eth0"
    assert container_id[:13] in simulated.crioctl("stats").stdout
    simulated.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def test_every_reference_can_be_pulled_and_means_the_same_everywhere(simulated: Simulated) -> None:
    """Any reference is known; what is to fail is named so."""
    client = simulated.client
    first = client(pb.PullImageRequest(image=pb.ImageSpec(image="quay.io/some/thing:9"))).image_ref
    with _simulated("--seed", "99", "--latency", "instant") as other:
        assert other.client(pb.PullImageRequest(image=pb.ImageSpec(image="quay.io/some/thing:9"))).image_ref == first
    digest = "quay.io/some/thing@sha256:" + "ab" * 32
    pulled = client(pb.PullImageRequest(image=pb.ImageSpec(image=digest))).image_ref
    found = client(pb.ImageStatusRequest(image=pb.ImageSpec(image=digest), verbose=True))
    assert found.image.id == pulled
    assert list(found.image.repo_digests) == [digest]
    refused = client.refusal(pb.PullImageRequest(image=pb.ImageSpec(image="example.com/image-missing:1")))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    for name in ("quay.io/some/thing:9", digest):
        client(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


def test_crioctl_works_against_it_and_explains(simulated: Simulated) -> None:
    """The same commands as against a real node."""
    pod_id = simulated.run_pod("explained")
    done = simulated.crioctl("explain", "default/explained")
    assert done.returncode == 0, done.stderr
    assert "state: ready" in done.stdout
    assert pod_id[:13] in simulated.crioctl("pods").stdout
    info = json.loads(simulated.crioctl("info", "-o", "json").stdout)
    assert info["simulation"] == {"seed": 0, "latency": "instant", "faults": "none"}
    simulated.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def test_time_passes_as_the_profile_says() -> None:
    """A steady profile takes what an ordinary node takes: a pull of seconds is seen on its way."""
    with _simulated("--latency", "steady") as server:
        pending = server.client.begin(pb.PullImageRequest(image=pb.ImageSpec(image="slow:1")))
        wait_for("the pull to be seen", lambda: "fetching" in server.crioctl("explain", "slow:1").stdout)
        assert pending.result(timeout=20).image_ref


def test_faults_make_calls_fail_and_retries_succeed_in_the_end() -> None:
    """A client under test sees failures of every kind, and none of them for ever."""
    with _simulated("--latency", "instant", "--faults", "many", "--seed", "5") as server:
        refusals = 0

        def pod() -> object:
            nonlocal refusals
            found = server.client.attempt(pb.RunPodSandboxRequest(config=server.pod_config("unlucky")), timeout_s=2)
            refusals += isinstance(found, Refused)
            return None if isinstance(found, Refused) else found

        def gone() -> bool:
            request = pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
            return not isinstance(server.client.attempt(request, timeout_s=2), Refused)

        for _ in range(6):
            made = wait_for("a pod in spite of all", pod, timeout_s=60)
            assert isinstance(made, pb.RunPodSandboxResponse)
            pod_id = made.pod_sandbox_id
            wait_for("its end", gone, timeout_s=60)
        assert refusals, "many faults, and nothing failed"


def test_a_caller_that_leaves_stops_nothing() -> None:
    """Cancelled calls are what kubelets do at their deadline: the retry joins."""
    with _simulated("--latency", "steady") as server:
        request = pb.RunPodSandboxRequest(config=server.pod_config("left"))
        refused = server.client.attempt(request, timeout_s=0.005)
        assert isinstance(refused, Refused)
        assert server.client(request).pod_sandbox_id
        assert len(server.client(pb.ListPodSandboxRequest()).items) == 1


def _config(directory: Path, number: int) -> Config:
    flags = {"listen": (str(directory / f"{number}.sock"),)}
    return load(Sources(config_path="", config_required=False, config_dir="", environ={}, flags=flags)).config


def test_many_nodes_fit_in_one_process(tmp_path: Path) -> None:
    """Tests of schedulers want many nodes: each has its socket, its seed and its own world."""

    async def serve() -> list[str]:
        ids = []
        async with AsyncExitStack() as stack:
            for number in range(NODES):
                profile = Profile(seed=number, latency="instant")
                await stack.enter_async_context(serving(_config(tmp_path, number), profile))
            for number in range(NODES):
                path = str(tmp_path / f"{number}.sock")
                settings = Settings(runtime_socket=path, image_socket=path, connect_timeout_s=10, chosen_by="test")
                async with connect(settings) as client:
                    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"))
                    config.linux.security_context.namespace_options.pid = pb.CONTAINER
                    made = await client.call(client.runtime.RunPodSandbox, pb.RunPodSandboxRequest(config=config))
                    ids.append(made.pod_sandbox_id)
        return ids

    assert len(set(asyncio.run(serve()))) == NODES
    assert not list(tmp_path.glob("*.sock"))


def test_what_a_simulated_node_is_told_is_recorded_and_replayed(tmp_path: Path) -> None:
    """F13: whoever tests against it can look at what happened; the signals of a real server do not end it."""
    tape = tmp_path / "tape"
    with _simulated("--latency", "instant", "--faults", "few", "--seed", "3", "--record", str(tape)) as server:
        for number in (signal.SIGHUP, signal.SIGUSR1):
            server.process.send_signal(number)
        for name in ("a", "b", "c"):
            with suppress(grpc.RpcError):
                pod_id = server.run_pod(name)
                server.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
        assert server.end() == 0
    argv = [sys.executable, "-m", "crio_server.main", "--config", "", "replay", str(tape)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "the same effects" in done.stdout


def test_the_command_line_knows_the_profiles_there_are() -> None:
    """They are named twice, so that `crio config` need not load the simulation."""
    assert set(main.LATENCIES) == set(LATENCIES)
    assert set(main.FAULTS) == set(FAULTS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", "1"), "--seed goes with --simulate only"),
        (("--faults", "few"), "--faults goes with --simulate only"),
        (("--simulate", "--latency", "none"), "is not one of"),
    ],
)
def test_flags_that_do_not_go_together_are_a_usage_error(flags: tuple[str, ...], message: str) -> None:
    """A seed that nobody reads is a mistake of whoever gave it."""
    argv = [sys.executable, "-m", "crio_server.main", "--config", "", *flags, "config"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=REPOSITORY, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_end_that_comes_together_with_a_call_ends_the_simulation() -> None:
    """The clock of a simulated node waits for calls; the end must not be taken for one."""

    async def live() -> None:
        simulation = LiveSimulation(Simulation(0))
        async with asyncio.timeout(10), simulation.running():
            await asyncio.sleep(0)  # The clock waits.
            simulation.ask(rq.Status())

    asyncio.run(live())
