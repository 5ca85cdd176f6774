"""Containers' processes on a simulated node: how they live and die, and who writes that down."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from crio_core.sim.chance import Chance
from crio_core.sim.lives import SIGKILL_CODE
from crio_core.sim.profiles import MS, Faults, S
from crio_core.sim.world import NEVER_NS, End, Life, Process, World

EXIT_FILE_NS = 2 * MS
EXIT_FILE_LATE_NS = 8 * S


class Host(Protocol):
    """What happens on a node needs this of the simulation."""

    @property
    def at_ns(self) -> int: ...

    @property
    def wall_ns(self) -> int: ...

    @property
    def faults(self) -> Faults: ...

    def later(self, after_ns: int, what: Callable[[], None]) -> None:
        """Have something happen in the world, whatever becomes of the server."""
        ...

    def stream_ends(self, session_id: str) -> None:
        """A stream was told to end."""
        ...

    def noticed(self, container_id: str) -> None:
        """Something happened that whoever waits for this container's end should look at."""
        ...


class Processes:
    """Ends processes, at once or when the kernel lets them die.

    Args:
        world: Where they are.
        host: The simulation around it.
        chance: Decides what is left open: how they behave, and whether their monitors do their work.
    """

    def __init__(self, world: World, host: Host, chance: Chance) -> None:
        self._world = world
        self._host = host
        self._chance = chance

    def fated(self, life: Life) -> Life:
        """What becomes of a life when the faults have a say."""
        faults, chance = self._host.faults, self._chance
        if not (chance.happens(faults.deaf) or chance.happens(faults.stuck)):
            return life
        stuck_ns = NEVER_NS if chance.happens(0.2) else 1 * S + chance.below(60) * S
        return Life(
            ends_after_ns=life.ends_after_ns,
            code=life.code,
            deaf=life.deaf or chance.happens(0.5),
            term_ns=life.term_ns,
            stuck_ns=max(life.stuck_ns, stuck_ns if chance.happens(0.5) else 0),
        )

    def live_out(self, process: Process) -> None:
        """The process ends of itself."""
        if process.alive:
            self._world.struck[process.container_id] = True
            self.end(process, process.life.code)

    def strike(self, process: Process) -> None:
        """Somebody else than the server kills a process."""
        self._world.struck[process.container_id] = True
        self.kill(process)

    def run_dry(self, process: Process, *, child: bool) -> None:
        """The kernel kills the process, or a child of it, for want of memory."""
        self._world.thirsty[process.container_id] = True
        if not child:
            self._world.struck[process.container_id] = True
            self.end(process, SIGKILL_CODE, oom=True)

    def kill(self, process: Process) -> None:
        """SIGKILL: at once, or when the kernel lets the process die."""
        if process.doomed:
            return
        if process.life.stuck_ns == 0:
            self.end(process, SIGKILL_CODE)
            return
        process.doomed = process.leaving = True
        if process.life.stuck_ns < NEVER_NS:
            self._host.later(process.life.stuck_ns, lambda: self.end(process, SIGKILL_CODE))

    def end(self, process: Process, code: int, *, oom: bool = False) -> None:
        """The process ends; its monitor, if it has one, writes that down."""
        world, host, key = self._world, self._host, process.container_id
        if not process.alive or (process.doomed and code != SIGKILL_CODE):
            return
        process.alive = False
        process.code = code
        ended = world.ends[key] = End(code=code, at_ns=host.wall_ns, oom=oom)
        if self._chance.happens(host.faults.monitor_dies):
            world.kill_monitor(key)
        boot, monitor = world.boots, world.monitors.get(key)

        def reap() -> None:
            if monitor is not None and world.boots == boot and world.monitors.get(key) == monitor:
                world.write(world.exits, key, replace(ended, oom=key in world.thirsty))
                del world.monitors[key]
                host.noticed(key)

        if self._chance.happens(host.faults.monitor_hangs):
            world.unknowable[key] = True
        else:
            late = self._chance.happens(host.faults.exit_late)
            host.later(EXIT_FILE_LATE_NS if late else EXIT_FILE_NS, reap)
        host.noticed(key)
