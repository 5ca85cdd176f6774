"""What a simulated node costs: `python -m bench.nodes [--nodes N]`.

Prints memory (proportional, so that what processes share counts once) and processor time for each of many nodes in one
process: bare ones, ones with a server and a socket each, these left idle, and these with a pod and a container each.
"""

import argparse
import asyncio
import gc
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.sim import LATENCIES, Simulation
from crio_core.sim.images import BASE
from crio_core.sim.programs import container_config, pod_config
from crio_server.config import Config
from crio_server.simulate import LiveSimulation, Profile, serving

IDLE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usage:
    memory_bytes: int
    cpu_s: float


def _usage() -> _Usage:
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return _Usage(memory_bytes=kilobytes * 1024, cpu_s=time.process_time())


def _print(what: str, before: _Usage, after: _Usage, nodes: int) -> None:
    memory = (after.memory_bytes - before.memory_bytes) / nodes / 1000
    cpu_ms = (after.cpu_s - before.cpu_s) / nodes * 1000
    print(f"{what:32s} {memory:7.1f} kB {cpu_ms:7.2f} ms of processor time", flush=True)


def bare(nodes: int) -> None:
    """Simulations that nobody serves."""
    before = _usage()
    kept = [Simulation(seed, latency=LATENCIES["instant"]) for seed in range(nodes)]
    _print("a bare simulation", before, _usage(), len(kept))


async def _bring_up(node: LiveSimulation) -> None:
    await node.call(rq.PullImage(image=ImageSpec(image=BASE)))
    made = await node.call(rq.RunPodSandbox(config=pod_config(0)))
    assert isinstance(made, rp.Created)
    created = await node.call(rq.CreateContainer(sandbox_id=made.id, config=container_config(0, 0)))
    assert isinstance(created, rp.Created)
    await node.call(rq.StartContainer(container_id=created.id))


async def served(nodes: int) -> None:
    """Nodes with a server and a socket each: made, idle, and with a pod."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="crio-bench-"))
        before = _usage()
        running = []
        for seed in range(nodes):
            config = replace(Config(), listen=f"{directory}/{seed}.sock")
            running.append(await stack.enter_async_context(serving(config, Profile(seed=seed, latency="instant"))))
        made = _usage()
        _print("with a server and a socket", before, made, nodes)
        await asyncio.sleep(IDLE_S)
        idle = _usage()
        print(f"{'all of them idle':32s} {(idle.cpu_s - made.cpu_s) / IDLE_S:.2%} of a core")
        for node in running:
            await _bring_up(node)
        _print("a pod with a running container", idle, _usage(), nodes)
        print(f"{'the whole process':32s} {_usage().memory_bytes / 1e6:7.1f} MB")


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="bench.nodes", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    options = parser.parse_args()
    bare(options.nodes)
    asyncio.run(served(options.nodes))


if __name__ == "__main__":
    main()
