"""The core alone, on a simulated node: how many calls a second, and whether more pods make a call dearer."""

import gc
import time

from bench.statistics import Samples
from crio_core import requests as rq
from crio_core.cri import ContainerConfig, ContainerMetadata, ImageSpec, PodSandboxConfig, PodSandboxMetadata
from crio_core.replies import Created
from crio_core.sim import REGISTRY, Simulation

CORE = "core"
BATCH_PODS = 50
BATCHES = 5


def measure(levels: tuple[int, ...], samples: Samples) -> None:
    """Bring pods up in memory, to one level after another.

    Args:
        levels: Numbers of pods, growing; each is a figure `core.calls.N`, in calls a second from that many pods on.
        samples: Where the results go.
    """
    sim = Simulation(seed=1)
    sim.start_server()
    image = next(iter(REGISTRY))
    sim.ask(rq.PullImage(image=ImageSpec(image=image)))
    count = 0
    for level in levels:
        while count < level - BATCH_PODS:
            count = _pods(sim, image, count, 1)[0]
        gc.collect()
        gc.freeze()  # As a server does once it has started: what was made before is not looked at again and again.
        for _ in range(BATCHES):
            began_s = time.perf_counter()
            count, calls = _pods(sim, image, count, BATCH_PODS)
            samples.add(f"core.calls.{level}", CORE, calls / (time.perf_counter() - began_s))


def _pods(sim: Simulation, image: str, first: int, number: int) -> tuple[int, int]:
    calls = 0
    for index in range(first, first + number):
        meta = PodSandboxMetadata(name=f"pod{index}", namespace="bench", uid=f"uid-{index}")
        pod = sim.ask(rq.RunPodSandbox(config=PodSandboxConfig(metadata=meta)))
        assert isinstance(pod, Created)
        config = ContainerConfig(metadata=ContainerMetadata(name="work"), image=ImageSpec(image=image))
        container = sim.ask(rq.CreateContainer(sandbox_id=pod.id, config=config))
        assert isinstance(container, Created)
        sim.ask(rq.StartContainer(container_id=container.id))
        sim.ask(rq.PodSandboxStatus(sandbox_id=pod.id))
        sim.ask(rq.ContainerStatus(container_id=container.id))
        calls += 5
    sim.calls.clear()
    return first + number, calls
