"""Who waits for the ends of containers, and when they hear of one: at once, late, twice, or at the next look."""

from collections.abc import Callable
from typing import Protocol

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import Code
from crio_core.records import Failure
from crio_core.sim.chance import Chance
from crio_core.sim.lives import SIGKILL_CODE
from crio_core.sim.profiles import MS, Faults, S
from crio_core.sim.world import World

RECONCILE_NS = 60 * S
"""How long an exit of which nobody heard stays unseen."""
EXIT_GRACE_NS = 500 * MS
"""How long the exit file of a container without process and monitor is waited for."""
MONITOR_NS = 30 * S
"""How long a monitor that outlives its container's process is waited for."""


class Server(Protocol):
    """What watches need of the simulation: its clock, its faults, and the server that is to be told."""

    faults: Faults

    @property
    def wall_ns(self) -> int: ...

    def schedule(self, after_ns: int, what: Callable[..., None], *arguments: object) -> None:
        """Have the server do something later, if it lives then."""

    def ended(self, effect: fx.Effect, outcome: ev.Outcome) -> None:
        """Tell the server that an effect has ended."""


class Watches:
    """The watches of one server.

    Args:
        world: Where the processes are.
        server: Who waits.
        chance: For what goes wrong.
    """

    def __init__(self, world: World, server: Server, chance: Chance) -> None:
        self._world = world
        self._server = server
        self._chance = chance
        self._waiting: dict[str, fx.Effect] = {}

    def begin(self, effect: fx.Effect, order: fx.WatchContainer) -> None:
        """Wait for a container's end."""
        self._waiting[order.container_id] = effect
        self._server.schedule(1 * MS, self._look, effect, order)

    def forget(self) -> None:
        """The server has died."""
        self._waiting.clear()

    def noticed(self, container_id: str) -> None:
        """Whoever waits for a container's end looks again, at once or, if the news is lost, at the next look."""
        effect = self._waiting.get(container_id)
        if effect is None or not isinstance(order := effect.order, fx.WatchContainer):
            return
        server, faults = self._server, self._server.faults
        lost = self._chance.happens(faults.exit_unheard)
        server.schedule(RECONCILE_NS if lost else 1, self._look, effect, order)
        if self._chance.happens(faults.exit_twice):
            server.schedule(self._chance.below(RECONCILE_NS), self._look_again, container_id)

    def _look_again(self, container_id: str) -> None:
        effect = self._waiting.get(container_id)
        if effect is not None and isinstance(order := effect.order, fx.WatchContainer):
            self._look(effect, order)

    def _look(self, effect: fx.Effect, order: fx.WatchContainer, last: bool = False) -> None:
        key, world = order.container_id, self._world
        if self._waiting.get(key) is not effect:
            return
        if self._chance.happens(self._server.faults.watch_fails):
            del self._waiting[key]
            failure = Failure(code=Code.INTERNAL.value, reason="INJECTED", message=f"container {key}: watch failed")
            self._server.ended(effect, ev.Failed(failure=failure))
            return
        process = world.processes.get(key)
        if (
            process is not None
            and process.alive
            and process.pid == order.pid
            and process.start_ticks == order.pid_start_ticks
        ):
            return
        found = world.exits.get(key)
        if found is None and not last:
            gone = world.monitors.get(key) != order.monitor_pid or order.monitor_pid == 0
            self._server.schedule(EXIT_GRACE_NS if gone else MONITOR_NS, self._look, effect, order, True)
            return
        del self._waiting[key]
        if found is None:
            outcome = ev.ProcessExited(code=None, finished_at_ns=self._server.wall_ns, reason="Unknown")
        else:
            # The kernel may have killed a child only: a first process that was itself killed counts.
            reason = "OOMKilled" if found.oom and found.code == SIGKILL_CODE else ""
            outcome = ev.ProcessExited(code=found.code, finished_at_ns=found.at_ns, reason=reason)
        self._server.ended(effect, outcome)
