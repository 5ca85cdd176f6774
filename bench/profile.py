"""Where the time of a pod goes: `python -m bench.profile`.

An engine is embedded here and takes pods through their life, while each effect that its node orders is timed; in turn
with that the same is done by bare commands. Then it does so again under a sampling profiler. Written: a table of
effects beside the commands that they stand for, and what the profiler saw of the event loop.
"""

import argparse
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import pyinstrument
from anyio import to_thread
from rich.console import Console
from rich.table import Table

from bench import images, pods, scenarios
from bench.floor import Floor, floor_like
from bench.place import PLUGIN_DIR, Place, missing_tools, place
from bench.statistics import Samples
from crio_core import cri
from crio_core import effects as fx
from crio_core import events as ev
from crio_io.engine import Engine, open_engine
from crio_io.engine_options import EngineOptions, RuntimeOptions
from crio_server import translate
from scripts.local_registry import LocalRegistry

FLOOR_STEPS = {
    "PrepareSandbox": "netns",
    "AttachNetwork": "cni add",
    "MountRootfs": "mount rootfs",
    "CreateContainer": "runc create",
    "StartContainer": "runc start",
    "ExecInContainer": "runc exec",
    "SignalContainer": "runc kill",
    "DeleteContainer": "runc delete",
    "ReleaseRootfs": "unmount rootfs",
    "DetachNetwork": "cni del",
    "ReleaseNamespaces": "netns del",
}
NS_PER_MS = 1_000_000
SAMPLE_S = 0.0005


@dataclass(slots=True)
class Trace:
    """Listens to a driver: how long each effect ran, and in which call."""

    samples: Samples
    call: str = ""
    """What is being asked now: one call at a time."""
    spent_ms: float = 0.0
    _orders: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    _lane_free_ns: dict[str, int] = field(default_factory=dict)

    def step(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        """Told by the driver: an event, and what it led to."""
        now_ns = time.monotonic_ns()
        if isinstance(event, ev.EffectEnded) and event.effect_id in self._orders:
            name, lane, ordered_ns = self._orders.pop(event.effect_id)
            # Effects of one lane run one after the other: it began when it was ordered, or when the lane was free.
            began_ns = max(ordered_ns, self._lane_free_ns.get(lane, 0))
            self._lane_free_ns[lane] = now_ns
            took_ms = (now_ns - began_ns) / NS_PER_MS
            if name != "WatchContainer":
                self.samples.add(f"{self.call}/{name}", "crio", took_ms)
                self.spent_ms += took_ms
        for effect in effects:
            self._orders[effect.id] = (type(effect.order).__name__, effect.lane, now_ns)

    async def timed(self, call: str, work: Callable[[], Awaitable[object]]) -> object:
        """Do one call of the engine, with a clock."""
        self.call, self.spent_ms = call, 0.0
        began_ns = time.monotonic_ns()
        answer = await work()
        took_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS
        self.samples.add(f"{call}/all", "crio", took_ms)
        self.samples.add(f"{call}/between effects", "crio", max(0.0, took_ms - self.spent_ms))
        return answer


async def _life(engine: Engine, trace: Trace, directory: str, image: str) -> None:
    sandbox = translate.read(cri.PodSandboxConfig, pods.sandbox_config(directory))
    container = translate.read(cri.ContainerConfig, pods.container_config(image, pods.WORK))
    pod = str(await trace.timed("RunPodSandbox", partial(engine.run_pod, sandbox)))
    work = str(await trace.timed("CreateContainer", partial(engine.create_container, pod, container)))
    await trace.timed("StartContainer", partial(engine.start_container, work))
    await trace.timed("ExecSync", partial(engine.exec, work, ("/bin/true",), 10.0))
    await trace.timed("StopContainer", partial(engine.stop_container, work, pods.STOP_S))
    await trace.timed("RemoveContainer", partial(engine.remove_container, work))
    await trace.timed("StopPodSandbox", partial(engine.stop_pod, pod))
    await trace.timed("RemovePodSandbox", partial(engine.remove_pod, pod))


async def _measure(here: Place, pause: str, work: str, rounds: int, out: Path) -> tuple[Samples, float]:
    directory = here.directory / "engine"
    directory.mkdir()
    state = here.memory(directory / "run")
    options = EngineOptions(
        root=directory / "root",
        runroot=state / "crio",
        runtimes={"runc": RuntimeOptions(path=str(shutil.which("runc")), root=str(state / "runc"))},
        cni_config_dir=str(here.cni_dir),
        cni_plugin_dirs=(PLUGIN_DIR,),
        pause_image=pause,
    )
    samples = Samples()
    async with open_engine(options) as engine:
        await engine.pull(work)
        trace = Trace(samples=Samples())
        listened = engine.driver.on_step

        def step(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
            if listened is not None:
                listened(event, effects)
            trace.step(event, effects)

        engine.driver.on_step = step
        floor = await _floor(engine, here, directory, work)
        await _life(engine, trace, str(directory), work)  # For warming up.
        trace.samples = samples
        own_s = 0.0
        for _ in range(rounds):
            before_s = _own_cpu_s()
            await _life(engine, trace, str(directory), work)
            own_s += _own_cpu_s() - before_s
            steps = await to_thread.run_sync(scenarios.floor_life, floor)
            for name, took_ms in steps.items():
                samples.add(name, "floor", took_ms)
        # A profiler slows down what it looks at, so it has lives of its own.
        trace.samples = Samples()
        profiler = pyinstrument.Profiler(interval=SAMPLE_S, async_mode="disabled")
        with profiler:
            for _ in range(rounds):
                await _life(engine, trace, str(directory), work)
    out.mkdir(parents=True, exist_ok=True)
    (out / "profile.txt").write_text(profiler.output_text(unicode=True, show_all=True))
    (out / "profile.html").write_text(profiler.output_html())
    return samples, own_s / rounds * 1e3


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _floor(engine: Engine, here: Place, directory: Path, image: str) -> Floor:
    """A floor that does what the engine does for a pod."""
    sandbox = translate.read(cri.PodSandboxConfig, pods.sandbox_config(str(directory)))
    pod = await engine.run_pod(sandbox)
    container = translate.read(cri.ContainerConfig, pods.container_config(image, pods.WORK))
    created = await engine.create_container(pod, container)
    floor = await to_thread.run_sync(floor_like, here, directory, created)
    await engine.stop_pod(pod)
    await engine.remove_pod(pod)
    return floor


def _show(samples: Samples, own_ms: float, out: Path) -> None:
    console = Console()
    table = Table("call", "effect", "command", title="Medians in ms, one pod at a time", title_justify="left")
    for name in ("crio", "p95", "floor", "crio / floor"):
        table.add_column(name, justify="right")
    last = ""
    for figure in samples.values:
        call, _, effect = figure.partition("/")
        if not effect:
            continue
        one = samples.of(figure)["crio"]
        step = FLOOR_STEPS.get(effect, "")
        floor = samples.median(step, "floor") if step else None
        table.add_row(
            call if call != last else "",
            effect if one.count <= samples.of(f"{call}/all")["crio"].count else f"{effect} (each of several)",
            step,
            f"{one.p50:.2f}",
            f"{one.p95:.2f}",
            f"{floor:.2f}" if floor else "",
            f"{one.p50 / floor:.2f}" if floor else "",
            end_section=effect == "between effects",
        )
        last = call
    console.print(table)
    console.print(f"processor time of the engine's own process for one life: {own_ms:.1f} ms")
    console.print(f"what the event loop did: {out / 'profile.txt'}, {out / 'profile.html'}")


def main() -> int:
    """Profile, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="lives of pods (20)")
    parser.add_argument("--out", type=Path, default=Path("bench/out"), help="directory of results (bench/out)")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: pods, mounts and namespaces need root")
    if missing := missing_tools():
        sys.exit(f"error: missing: {', '.join(missing)}; `make system.test` installs them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to end"))  # So that the place is swept then, too.
    with place() as here, LocalRegistry(here.directory / "registry") as registry:
        pause, work = images.fill_small(registry)
        samples, own_ms = anyio.run(_measure, here, pause, work, asked.rounds, asked.out)
    _show(samples, own_ms, asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
