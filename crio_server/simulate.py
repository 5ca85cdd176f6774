"""`crio --simulate`: the same services on a node in memory, for tests of whatever speaks CRI.

The core is the real one; its effects are carried out by `crio_core.sim`, whose virtual clock follows the real one. No
root, runtime, registry or network is needed, and nothing is left behind but the log files that a client asks for.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.counters import Counters
from crio_core.errors import LocalError, OperationError
from crio_core.node import Handler
from crio_core.records import ContainerRecord, Failure
from crio_core.replies import Result
from crio_core.requests import Request
from crio_core.rfc3339 import rfc3339
from crio_core.sim import FAULTS, LATENCIES, REGISTRY, SETTINGS, Call, EveryImage, Simulation, usage
from crio_core.sim.hands import LAYER_BYTES
from crio_core.sim.lives import LIFE_ANNOTATION, said_by, words_of
from crio_core.stats import Interface, LayerUsage, Usage
from crio_core.values import dataclass
from crio_io import mounts
from crio_io.driver import Listener
from crio_io.feed import Feed
from crio_io.recorder import Recorder
from crio_io.vault import Vault
from crio_server.commands.version import VERSION
from crio_server.config import Config, ConfigWarning
from crio_server.config.render import to_toml
from crio_server.cri.v1.api_grpc import ImageServiceBase, RuntimeServiceBase
from crio_server.listener import SocketServer
from crio_server.metrics import EffectTimes, ServerMetrics
from crio_server.serve import STOP_S, set_up_logging
from crio_server.services.image import ImageService
from crio_server.services.rpc import Servable
from crio_server.services.runtime import NodeFacts, RuntimeService, user_namespaces_of
from crio_server.sockets import bound_socket
from crio_server.status import StatusPages
from crio_server.tally import Tallies, tallies

log = logging.getLogger("crio")

TICKS_MAX = 10_000
"""Things that may happen in the simulation until other tasks get their turn."""
LEFT_CALLS_MAX = 1024
"""Calls whose callers went away that are remembered, since what they waited for may still end."""
LOGS_MAX = 10_000
"""Containers whose log file is remembered; of more, the oldest have said what they had to say."""
IDLE_S = 3600.0
FILESYSTEM = "/simulated"
LET_GO_NS = 10_000_000_000
"""How often effects that hang go on, processes that survived SIGKILL die, the weather changes, and what is past is
forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the command line says of a simulation."""

    seed: int = 0
    latency: str = "ordinary"
    faults: str = "none"
    record: str = ""
    """A file to write what the node is told to; empty for none."""


class LiveSimulation:
    """A simulation whose clock follows the real one, and that can be asked like a driver.

    Args:
        sim: The simulation; nobody else may run it.
    """

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self._offset_ns = sim.at_ns - time.monotonic_ns()
        self._waiting: dict[int, asyncio.Event] = {}
        self._left: deque[int] = deque()
        self._moved = asyncio.Event()
        sim.on_reply = lambda call: self._replied(call.id)
        sim.later(LET_GO_NS, self._tidy)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["LiveSimulation"]:
        """Let the simulation's time pass until the block ends."""
        async with asyncio.TaskGroup() as tasks:
            clock = tasks.create_task(self._run())
            try:
                yield self
            finally:
                clock.cancel()

    async def call(self, request: Request) -> Result:
        """Ask the simulated server something and wait for the answer.

        Raises:
            OperationError: It refused, or what was asked for failed.
        """
        self._catch_up()
        call_id = self.sim.call(request)
        call = self.sim.calls[call_id]
        self._moved.set()
        try:
            if call.open:
                answered = self._waiting[call_id] = asyncio.Event()
                await answered.wait()
        finally:
            self._waiting.pop(call_id, None)
            self._forget(call_id)
        return _answer(call)

    def ask(self, question: Request) -> Result:
        """Ask something that changes nothing (one of `QUESTIONS`), and get the answer without waiting.

        Raises:
            OperationError: It was refused.
        """
        self._catch_up()
        call_id = self.sim.call(question)
        call = self.sim.calls[call_id]
        self._moved.set()
        self._forget(call_id)
        return _answer(call)

    def _tidy(self) -> None:
        self.sim.let_go()
        self.sim.change_weather()
        self.sim.world.forget_past()
        self.sim.later(LET_GO_NS, self._tidy)

    def _forget(self, call_id: int) -> None:
        if self.sim.calls[call_id].open:
            self.sim.cancel(call_id)
            self._left.append(call_id)
            if len(self._left) > LEFT_CALLS_MAX:
                self.sim.forget_call(self._left.popleft())
        else:
            self.sim.forget_call(call_id)

    def _replied(self, call_id: int) -> None:
        if (waiting := self._waiting.get(call_id)) is not None:
            waiting.set()

    def _catch_up(self) -> bool:
        """Let everything happen that is due by now; False when there is more of it than fits in one turn."""
        late_ns = time.monotonic_ns() + self._offset_ns - self.sim.at_ns
        try:
            return self.sim.run(for_ns=max(late_ns, 0), ticks_max=TICKS_MAX)
        except LocalError:
            log.exception("the node refused what happened")  # As a driver of a real node does.
            return False

    async def _run(self) -> None:
        while True:
            self._moved.clear()
            if not self._catch_up():
                await asyncio.sleep(0)
                continue
            due_ns = self.sim.due_ns
            wait_s = IDLE_S if due_ns is None else (due_ns - self._offset_ns - time.monotonic_ns()) / 1e9
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with what it waits for.
                async with asyncio.timeout(max(wait_s, 0.0)):
                    await self._moved.wait()


def _answer(call: Call) -> Result:
    if isinstance(call.result, Failure):
        raise call.result.error()
    assert call.result is not None
    return call.result


class SimulatedUsage:
    """What simulated containers use, for the stats calls.

    Args:
        sim: Has the containers.
    """

    filesystem = FILESYSTEM

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim

    async def usage(
        self, records: Sequence[ContainerRecord], parents: Mapping[str, str] = MappingProxyType({})
    ) -> Mapping[str, Usage]:
        """What containers use; a simulated pod has no group of its own."""
        return usage.usage(self._sim, records)

    async def counters(
        self, records: Sequence[ContainerRecord], parents: Mapping[str, str] = MappingProxyType({})
    ) -> Mapping[str, Counters]:
        """What nobody counts there."""
        return {}

    async def layers(self, records: Sequence[ContainerRecord]) -> Mapping[str, LayerUsage]:
        return usage.layers(self._sim, records)

    async def interfaces(self, pods: Sequence[Sequence[ContainerRecord]]) -> Sequence[tuple[Interface, ...]]:
        return [usage.interfaces(self._sim, pod) for pod in pods]


class LogWriter:
    """Writes what simulated containers say into the log files that their requests name, in the CRI's format.

    It is told every step of the simulation by `note`.
    """

    def __init__(self) -> None:
        self._creates: dict[str, tuple[str, bytes]] = {}
        self._starts: dict[int, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        for effect in effects:
            match effect.order:
                case fx.CreateContainer(log_path=path) as order if path:
                    self._creates[order.container_id] = (path, said_by(words_of(orjson.loads(order.spec))))
                    if len(self._creates) > LOGS_MAX:
                        del self._creates[next(iter(self._creates))]
                case fx.StartContainer() as order:
                    self._starts[effect.id] = order.container_id
                case fx.DeleteContainer() as order:
                    self._creates.pop(order.container_id, None)
                case fx.ReopenLog() as order:
                    self._write(order.log_path, b"")
        if isinstance(event, ev.EffectEnded):
            self._started(event)

    def _started(self, event: ev.EffectEnded) -> None:
        container_id = self._starts.pop(event.effect_id, "")
        if isinstance(event.outcome, ev.ContainerStarted) and container_id in self._creates:
            path, said = self._creates[container_id]
            stamp = rfc3339(event.wall_ns).encode()
            self._write(path, b"".join(b"%s stdout F %s\n" % (stamp, line) for line in said.splitlines()))

    def _write(self, path: str, data: bytes) -> None:
        task = asyncio.get_running_loop().create_task(_append(path, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _append(path: str, data: bytes) -> None:
    def append() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("ab") as file:
            file.write(data)

    try:
        await mounts.in_thread(f"write log {path}", append)
    except OSError as error:
        log.warning("log %s cannot be written: %s", path, error)


def simulation_of(config: Config, profile: Profile) -> Simulation:
    """A simulated node with the handlers and the pause image of a configuration.

    Args:
        config: Of it, only what the node decides by is read.
        profile: The seed, and the names of profiles.
    """
    handlers = {
        one.name: Handler(name=one.name, vm=one.runtime_type == "vm", allowed_annotations=(LIFE_ANNOTATION,))
        for one in config.runtimes
    }
    settings = replace(
        SETTINGS,
        handlers=handlers,
        default_handler=config.default_runtime,
        drop_infra=config.drop_infra_ctr,
        pause_image=config.pause_image,
        pinned_images=config.pinned_images,
    )
    return Simulation(
        profile.seed,
        settings=settings,
        latency=LATENCIES[profile.latency],
        faults=FAULTS[profile.faults],
        registry=EveryImage(REGISTRY),
        wall_epoch_ns=time.time_ns(),
    )


def services_of(live: LiveSimulation, config: Config, profile: Profile, feed: Feed, calls: Tallies) -> list[Servable]:
    """The CRI services of a simulated node."""

    def verbose() -> Mapping[str, Any]:
        return {
            "config": {"root": "", "listen": config.listen, "defaultRuntime": config.default_runtime},
            "pid": os.getpid(),
            "simulation": {"seed": profile.seed, "latency": profile.latency, "faults": profile.faults},
        }

    async def refresh_network() -> None:
        """The simulation knows at once what network it has."""

    async def image_usage() -> tuple[str, int, int]:
        layers = len(live.sim.world.layers)
        return FILESYSTEM, layers * LAYER_BYTES, layers

    facts = NodeFacts(
        version=VERSION,
        systemd_cgroup=False,
        handlers=lambda: tuple(one.name for one in config.runtimes),
        user_namespaces=lambda: user_namespaces_of(live.sim.settings),
        recursive_read_only=lambda: frozenset({"", *live.sim.settings.handlers}),
        verbose=verbose,
    )
    figures = SimulatedUsage(live.sim)
    return [
        Servable(RuntimeServiceBase, RuntimeService(live, facts, refresh_network, figures, feed), calls),
        Servable(ImageServiceBase, ImageService(live, Vault(), image_usage, figures.layers), calls),
    ]


def pages_of(live: LiveSimulation, config: Config, metrics: ServerMetrics) -> StatusPages:
    """What a simulated node answers over HTTP."""
    return StatusPages(
        driver=live,
        config=lambda: to_toml(config),
        storage_root=FILESYSTEM,
        cgroup_driver=config.cgroup_manager,
        rootfs=lambda container_id: str(SETTINGS.layout.rootfs(container_id)),
        metrics=metrics.page,
    )


@asynccontextmanager
async def serving(config: Config, profile: Profile) -> AsyncIterator[LiveSimulation]:
    """Serve a simulated node at the socket of a configuration until the block ends; many fit in one process.

    Raises:
        OperationError: Another server answers at the socket.
        PermissionError: The socket cannot be made there.
    """
    listening = bound_socket(config.listen)
    try:
        sim = simulation_of(config, profile)
        live = LiveSimulation(sim)
        feed, times, calls = Feed(live.ask), EffectTimes(), tallies()
        metrics = ServerMetrics(live, VERSION, calls, times, plugins=tuple)
        listeners: list[Listener] = [LogWriter().note, feed.note, times.note]

        def note(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
            for listener in listeners:
                listener(event, effects)

        sim.on_event = note
        async with live.running(), _recording(sim, profile.record, listeners):
            server = SocketServer(services_of(live, config, profile, feed, calls), pages_of(live, config, metrics))
            await server.start(sock=listening)
            yield live
            server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), STOP_S)
    finally:
        Path(config.listen).unlink(missing_ok=True)
        listening.close()


@asynccontextmanager
async def _recording(sim: Simulation, path: str, listeners: list[Listener]) -> AsyncIterator[None]:
    """Write what the node is told from now on, and what follows from it, until the block ends."""
    if not path or sim.node is None:
        yield
        return
    recorder = Recorder(sim.node, version=VERSION, path=Path(path))
    listeners.append(recorder.note)
    try:
        yield
    finally:
        await recorder.aclose()


def simulate(config: Config, warnings: tuple[ConfigWarning, ...], profile: Profile) -> None:
    """Serve until SIGTERM or SIGINT. Ends the process with code 1 and one line if it cannot start."""
    set_up_logging(config)
    for warning in warnings:
        log.warning("%s", warning)
    try:
        asyncio.run(_run(config, profile))
    except OperationError as error:
        sys.exit(f"crio: {error.message}")
    except PermissionError as error:
        sys.exit(f"crio: {error}: choose another socket with --listen")


async def _run(config: Config, profile: Profile) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    # The signals of a real server, which must not end this one.
    loop.add_signal_handler(signal.SIGHUP, log.info, "a simulated node reads its configuration once")
    loop.add_signal_handler(
        signal.SIGUSR1, log.info, "%s", f"recorded in {profile.record}" if profile.record else "start with --record"
    )
    async with serving(config, profile):
        log.info("crio %s simulates a node at %s, seed %d", VERSION, config.listen, profile.seed)
        await ended.wait()
