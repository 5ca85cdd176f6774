"""What is measured. Subjects are gone through in turn (A B A B), so that a slow minute hits all of them."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from bench import core, pods, processes, streams
from bench import floor as floors
from bench.client import Client
from bench.images import Images
from bench.peers import CRIO, Peer
from bench.place import Place
from bench.pods import DOWN, UP, Pod
from bench.statistics import Samples, slope
from crio_server.cri.v1 import api_pb2 as pb

FLOOR = "floor"
AT_ONCE = 20
AT_ONCE_PULLS = 10
QUERIES = 40
OUTPUT_BYTES = 12 * 1024 * 1024
STREAM_BYTES = 64 * 1024 * 1024
SAMPLED_PODS = 6
GROWN_WORKERS = 4
POLL_S = 1.0
STOP_ATTEMPTS = 10
UNITS = (("memory", "MB"), ("cpu.", "%"), ("core.calls", "1/s"), ("output.", "MB/s"))
"""Units by the beginning or end of a figure's name; every other figure is in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int
    at_once_rounds: int
    records: tuple[int, ...]
    levels: tuple[int, ...]
    pull_rounds: int
    poll_s: float
    starts: int
    simulated_pods: tuple[int, ...]


FULL = Size(
    rounds=40,
    at_once_rounds=5,
    records=(150, 500),
    levels=(1, 50, 150, 300),
    pull_rounds=5,
    poll_s=15.0,
    starts=3,
    simulated_pods=(100, 1000, 10_000),
)
QUICK = Size(
    rounds=12,
    at_once_rounds=2,
    records=(150,),
    levels=(1, 50),
    pull_rounds=1,
    poll_s=5.0,
    starts=2,
    simulated_pods=(100, 1000),
)


@dataclass(slots=True, kw_only=True)
class Run:
    """A run under way."""

    place: Place
    peers: tuple[Peer, ...]
    images: Images
    size: Size
    samples: Samples = field(default_factory=Samples)
    floor: floors.Floor | None = None

    def up(self, peer: Peer, **more: Any) -> Pod:
        """Bring a pod up on a server."""
        return pods.up(peer.client, str(peer.directory), self.images.work, **more)


def pull_work(run: Run) -> None:
    """Every server gets the image that is run."""
    for peer in run.peers:
        peer.client.call("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=run.images.work)))


def open_floor(run: Run) -> None:
    """Set the floor up to do what is done for the same request."""
    ours = next(peer for peer in run.peers if peer.name == CRIO)
    pod = run.up(ours)
    run.floor = floors.floor_like(run.place, ours.directory, pod.container)
    pods.down(pod)


# --- one pod at a time ------------------------------------------------------------------------------------------------


def lives(run: Run) -> None:
    """A pod's life, again and again: every call, and the sums."""
    for number in range(run.size.rounds + 1):
        for peer in run.peers:
            sample = one_life(run, peer)
            if number:  # The first is for warming up.
                for method, took_ms in sample.items():
                    run.samples.add(f"call.{method}", peer.name, took_ms)
                run.samples.add("pod.up", peer.name, sum(sample[method] for method in UP))
                run.samples.add("pod.down", peer.name, sum(sample[method] for method in DOWN))
        if run.floor is not None:
            steps = floor_life(run.floor)
            if number:
                for step, took_ms in steps.items():
                    run.samples.add(f"floor.{step}", FLOOR, took_ms)
                run.samples.add("call.ExecSync", FLOOR, steps["runc exec"])
                run.samples.add("pod.up", FLOOR, sum(steps[step] for step in floors.UP))
                run.samples.add("pod.down", FLOOR, sum(steps[step] for step in floors.DOWN))


def one_life(run: Run, peer: Peer) -> dict[str, float]:
    """One pod's life, with questions in between; what each call took."""
    pod = run.up(peer)
    pod.timed("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    pod.timed("ContainerStatus", pb.ContainerStatusRequest(container_id=pod.container))
    answer: Any = pod.timed("ExecSync", pb.ExecSyncRequest(container_id=pod.container, cmd=["/bin/true"], timeout=10))
    if answer.exit_code != 0:
        raise RuntimeError(f"{peer.name}: exec of true gave {answer.exit_code}")
    for method, request in _questions():
        with contextlib.suppress(_Unimplemented):
            _asked(pod, method, request)
    return pods.down(pod).calls_ms


def floor_life(floor: floors.Floor) -> dict[str, float]:
    """One pod's life by bare commands."""
    pod = floor.up()
    pod.exec()
    pod.down()
    return pod.steps_ms


class _Unimplemented(Exception):
    """A server does not have a method."""


def _questions() -> tuple[tuple[str, Any], ...]:
    return (
        ("Version", pb.VersionRequest()),
        ("Status", pb.StatusRequest()),
        ("ListPodSandbox", pb.ListPodSandboxRequest()),
        ("ListContainers", pb.ListContainersRequest()),
        ("ListImages", pb.ListImagesRequest()),
        ("ImageFsInfo", pb.ImageFsInfoRequest()),
        ("ListContainerStats", pb.ListContainerStatsRequest()),
        ("ListPodSandboxStats", pb.ListPodSandboxStatsRequest()),
    )


def _asked(pod: Pod, method: str, request: Any) -> None:
    try:
        pod.timed(method, request)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        raise _Unimplemented from error


def output(run: Run) -> None:
    """How fast the output of a command comes through.

    In an answer of ExecSync that is about as large as it may be, and over the stream that Exec offers.
    """
    command = ["/bin/busybox", "head", "-c", str(OUTPUT_BYTES), "/dev/zero"]
    made = [run.up(peer) for peer in run.peers]
    for number in range(run.size.rounds // 4 + 1):
        for peer, pod in zip(run.peers, made, strict=True):
            began_s = time.perf_counter()
            asked = pb.ExecSyncRequest(container_id=pod.container, cmd=command, timeout=60)
            answer: Any = peer.client.call("ExecSync", asked, 60.0)
            took_s = time.perf_counter() - began_s
            if len(answer.stdout) != OUTPUT_BYTES:
                raise RuntimeError(f"{peer.name}: {len(answer.stdout)} bytes of output instead of {OUTPUT_BYTES}")
            if number:
                run.samples.add("output.ExecSync", peer.name, OUTPUT_BYTES / 2**20 / took_s)
            streamed_s = _stream(peer, pod)
            if number:
                run.samples.add("output.Exec", peer.name, STREAM_BYTES / 2**20 / streamed_s)
    for pod in made:
        pods.down(pod)


def _stream(peer: Peer, pod: Pod) -> float:
    """The seconds that a command's output takes over a stream, from the call that offers it."""
    command = ["/bin/busybox", "head", "-c", str(STREAM_BYTES), "/dev/zero"]
    began_s = time.perf_counter()
    offered: Any = peer.client.call("Exec", pb.ExecRequest(container_id=pod.container, cmd=command, stdout=True))
    size = streams.output_bytes(offered.url)
    if size != STREAM_BYTES:
        raise RuntimeError(f"{peer.name}: {size} bytes of output instead of {STREAM_BYTES}")
    return time.perf_counter() - began_s


# --- many at once -----------------------------------------------------------------------------------------------------


def at_once(run: Run) -> None:
    """Twenty pods at once, up and down."""
    for _ in range(run.size.at_once_rounds):
        for peer in run.peers:
            began_s = time.perf_counter()
            made = pods.several(AT_ONCE, lambda _, peer=peer: run.up(peer), AT_ONCE)  # type: ignore[misc]
            between_s = time.perf_counter()
            pods.several(AT_ONCE, lambda index, made=made: pods.down(made[index]), AT_ONCE)  # type: ignore[misc]
            run.samples.add("many.up", peer.name, (between_s - began_s) * 1e3)
            run.samples.add("many.down", peer.name, (time.perf_counter() - between_s) * 1e3)
        if run.floor is not None:
            _floor_at_once(run, run.floor)


def _floor_at_once(run: Run, floor: floors.Floor) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began_s = time.perf_counter()
        made = list(pool.map(lambda _: floor.up(), range(AT_ONCE)))
        between_s = time.perf_counter()
        list(pool.map(lambda pod: pod.down(), made))
        run.samples.add("many.up", FLOOR, (between_s - began_s) * 1e3)
        run.samples.add("many.down", FLOOR, (time.perf_counter() - between_s) * 1e3)


# --- records ----------------------------------------------------------------------------------------------------------


def records(run: Run) -> None:
    """Lists and status with many containers recorded, and how long a start takes with them.

    The containers have run and ended; their pods are in the host's network and stopped, which is enough to be listed.
    """
    made: dict[str, list[Pod]] = {peer.name: [] for peer in run.peers}
    try:
        for count in (1, *run.size.records):
            for peer in run.peers:
                mine = made[peer.name]
                mine += pods.several(count - len(mine), lambda _, peer=peer: _ended_pod(run, peer))  # type: ignore[misc]
            for _ in range(QUERIES):
                for peer in run.peers:
                    _ask_lists(run, peer, count, made[peer.name][-1])
        for _ in range(run.size.starts):
            for peer in run.peers:
                peer.stop()
                run.samples.add(f"start.{run.size.records[-1]}", peer.name, peer.start() * 1e3)
                _check_all_there(peer, len(made[peer.name]))
    finally:
        for mine in made.values():
            pods.several(len(mine), lambda index, mine=mine: _remove(mine[index]))  # type: ignore[misc]


def _ended_pod(run: Run, peer: Peer) -> Pod:
    pod = run.up(peer, host_network=True, command=("/bin/true",))
    status = pb.ContainerStatusRequest(container_id=pod.container)
    processes.wait_until(
        lambda: peer.client.call("ContainerStatus", status).status.state == pb.CONTAINER_EXITED,
        "the container has ended",
        every_s=0.01,
    )
    # containerd answers with an error while it cleans up after the container; a kubelet tries again, and so do we.
    for attempt in range(STOP_ATTEMPTS):
        try:
            peer.client.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            break
        except grpc.RpcError:
            if attempt == STOP_ATTEMPTS - 1:
                raise
    return pod


def _remove(pod: Pod) -> Pod:
    pod.client.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    return pod


def _ask_lists(run: Run, peer: Peer, count: int, pod: Pod) -> None:
    for method, request in (
        ("ListContainers", pb.ListContainersRequest()),
        ("ListPodSandbox", pb.ListPodSandboxRequest()),
        ("ContainerStatus", pb.ContainerStatusRequest(container_id=pod.container)),
        ("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id)),
    ):
        run.samples.add(f"{method}.{count}", peer.name, peer.client.timed(method, request)[1])


def _check_all_there(peer: Peer, count: int) -> None:
    found = len(peer.client.call("ListContainers", pb.ListContainersRequest()).containers)
    if found != count:
        raise RuntimeError(f"{peer.name}: {found} of {count} containers after a restart")


# --- growth -----------------------------------------------------------------------------------------------------------


def idle(run: Run) -> None:
    """Memory of servers that have had one pod and have none: whatever they start with the first one is counted."""
    for peer in run.peers:
        one_life(run, peer)
        run.samples.add("memory.idle", peer.name, processes.memory_mb(peer.mark))


def growth(run: Run) -> None:
    """More and more running pods: memory, the time of one more pod, lists, and at 50 the cost of being polled."""
    for peer in run.peers:
        made: list[Pod] = []
        try:
            for level in run.size.levels:
                made += pods.several(level - len(made), lambda _, peer=peer: run.up(peer), GROWN_WORKERS)  # type: ignore[misc]
                _measure_level(run, peer, level)
            points = [(level, run.samples.median(f"memory.{level}", peer.name) or 0.0) for level in run.size.levels]
            run.samples.add("memory.pod", peer.name, slope(points))
        finally:
            pods.several(len(made), lambda index, made=made: pods.down(made[index]), GROWN_WORKERS)  # type: ignore[misc]


def _measure_level(run: Run, peer: Peer, level: int) -> None:
    samples = run.samples
    samples.add(f"memory.{level}", peer.name, processes.memory_mb(peer.mark))
    if level == 50:
        samples.add("cpu.polled", peer.name, _polled_cpu(run, peer))
    for _ in range(SAMPLED_PODS):
        calls = one_life(run, peer)
        samples.add(f"grown.up.{level}", peer.name, sum(calls[method] for method in UP))
        samples.add(f"grown.down.{level}", peer.name, sum(calls[method] for method in DOWN))
        samples.add(f"grown.exec.{level}", peer.name, calls["ExecSync"])
        samples.add(f"grown.list.{level}", peer.name, calls["ListContainers"])
        if "ListContainerStats" in calls:
            samples.add(f"grown.stats.{level}", peer.name, calls["ListContainerStats"])
        if run.floor is not None and peer.name == CRIO:
            steps = floor_life(run.floor)
            samples.add(f"grown.up.{level}", FLOOR, sum(steps[step] for step in floors.UP))
            samples.add(f"grown.down.{level}", FLOOR, sum(steps[step] for step in floors.DOWN))


def _polled_cpu(run: Run, peer: Peer) -> float:
    """Per cent of one processor while a kubelet's questions are asked: lists each second, the rest every ten."""
    client = peer.client
    before_s, began_s = processes.cpu_s(peer.mark), time.perf_counter()
    pause = threading.Event()
    turn = 0
    while (spent_s := time.perf_counter() - began_s) < run.size.poll_s:
        client.call("ListPodSandbox", pb.ListPodSandboxRequest())
        client.call("ListContainers", pb.ListContainersRequest())
        if turn % 5 == 0:
            client.call("Status", pb.StatusRequest())
        if turn % 10 == 0:
            client.call("ListImages", pb.ListImagesRequest())
            client.has("ListContainerStats", pb.ListContainerStatsRequest())
        turn += 1
        pause.wait(max(0.0, turn * POLL_S - spent_s))
    return (processes.cpu_s(peer.mark) - before_s) / (time.perf_counter() - began_s) * 100


# --- pulls ------------------------------------------------------------------------------------------------------------


def pulls(run: Run) -> None:
    """A large image, one of many layers, one by ten callers, and ten at once; with the memory that the server took."""
    chosen = (
        ("large", (run.images.large,)),
        ("layered", (run.images.layered,)),
        ("same", (run.images.large,) * AT_ONCE_PULLS),
        ("ten", run.images.several),
    )
    for _ in range(run.size.pull_rounds):
        for name, references in chosen:
            for peer in run.peers:
                before_mb = processes.memory_mb(peer.mark)
                with processes.Peak(peer.mark) as peak:
                    began_s = time.perf_counter()
                    with ThreadPoolExecutor(len(references)) as pool:
                        list(pool.map(lambda one, client=peer.client: _pull(client, one), references))
                    took_ms = (time.perf_counter() - began_s) * 1e3
                run.samples.add(f"pull.{name}", peer.name, took_ms)
                run.samples.add(f"pull.{name}.memory", peer.name, peak.most_mb - before_mb)
                for one in dict.fromkeys(references):
                    peer.client.call("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=one)))


def _pull(client: Client, reference: str) -> None:
    client.call("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=reference)), 300.0)


# --- the core alone ---------------------------------------------------------------------------------------------------


def simulated(run: Run) -> None:
    """The core on a simulated node, with more and more pods."""
    core.measure(run.size.simulated_pods, run.samples)
