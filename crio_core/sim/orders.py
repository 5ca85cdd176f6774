"""Looks at every order that a server gives: kills in their time, retries with their pauses, layers fetched once."""

from collections.abc import Callable

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.lifecycle.release import RETRY_FIRST_NS, RETRY_LIMIT_NS, retry_timer
from crio_core.node.state import State
from crio_core.records import ContainerState
from crio_core.sim.simulation import Simulation

LOOKED_AT = frozenset(
    {fx.SignalContainer, fx.CreateContainer, fx.StartContainer, fx.FetchLayer, fx.RemoveLayer, fx.ArmTimer}
)
"""Half of the orders are others, and every order comes by here."""


class Orders:
    """Says when an order comes too early, too late or twice.

    Args:
        sim: The simulation.
        say: Told the invariant that was broken, and how.
    """

    def __init__(self, sim: Simulation, say: Callable[[str, str], None]) -> None:
        self._sim = sim
        self._say = say
        self.sandbox_of: dict[str, str] = {}
        """The sandbox of each container that was ever ordered."""
        self.killed: dict[str, bool] = {}
        """Containers to which this server has sent SIGKILL."""
        self.ever_killed: dict[str, bool] = {}
        """The same of every server that there was."""
        self._deadlines: dict[str, int] = {}
        """When containers that are being stopped have to be killed at the latest."""
        self._condemned: dict[str, bool] = {}
        """Containers and sandboxes that may be killed at once: a removal, or a stop without a grace time, was asked."""
        self._starts: dict[int, str] = {}
        self._fetches: dict[int, str] = {}
        self._fetched: dict[str, bool] = {}
        """Layers whose blob is here, or on its way."""

    def happened(self, event: ev.Event, state: State) -> None:
        """Look at what the server was told, outcomes of orders apart."""
        if isinstance(event, ev.CallArrived):
            self._asked(event, state)

    def failed(self, effect_id: int) -> None:
        """An order has failed."""
        self._condemned[self._starts.get(effect_id, "")] = True
        self._fetched.pop(self._fetches.get(effect_id, ""), None)

    def ordered(self, effect: fx.Effect) -> None:
        """Look at an order of one of the kinds `LOOKED_AT`."""
        match effect.order:
            case fx.SignalContainer(signal="SIGKILL") as order:
                self._kill(order.container_id)
            case fx.CreateContainer() as order:
                self.sandbox_of[order.container_id] = order.sandbox_id
            case fx.StartContainer() as order:
                self._starts[effect.id] = order.container_id
            case fx.FetchLayer() as order:
                self._fetches[effect.id] = order.diff_id
                if order.diff_id in self._fetched:
                    self._say("I10", f"layer {order.diff_id} is fetched a second time")
                self._fetched[order.diff_id] = True
            case fx.RemoveLayer() as order:
                self._fetched.pop(order.diff_id, None)
            case fx.ArmTimer() as order:
                self._armed(order)

    def crashed(self) -> None:
        """The server is down, and with it what it had in mind."""
        for memory in (self.killed, self._deadlines, self._starts, self._fetches, self._fetched):
            memory.clear()

    def _asked(self, event: ev.CallArrived, state: State) -> None:
        match event.request:
            case rq.StopContainer(container_id=key, grace_ns=grace_ns) if grace_ns > 0:
                record = state.containers.get(key)
                if record is not None and record.state is ContainerState.STOPPING:
                    deadline_ns = event.at_ns + grace_ns
                    self._deadlines[key] = min(deadline_ns, self._deadlines.get(key, deadline_ns))
            case rq.StopContainer(container_id=key) | rq.RemoveContainer(container_id=key):
                self._condemned[key] = True
            case rq.StopPodSandbox(sandbox_id=key) | rq.RemovePodSandbox(sandbox_id=key):
                self._condemned[key] = True

    def _kill(self, key: str) -> None:
        """I15: no later than the earliest time that any caller gave, and no sooner unless somebody wants it at once."""
        self.killed[key] = self.ever_killed[key] = True
        deadline_ns = self._deadlines.pop(key, None)
        if deadline_ns is None:
            return
        late_ns = self._sim.at_ns - deadline_ns
        if late_ns > 0:
            self._say("I15", f"container {key} was killed {late_ns} ns too late")
        if late_ns < 0 and key not in self._condemned and self.sandbox_of.get(key) not in self._condemned:
            self._say("I15", f"container {key} was killed {-late_ns} ns before its grace time was over")

    def _armed(self, order: fx.ArmTimer) -> None:
        owner = order.timer_id.rpartition("/")[0]
        if order.timer_id == retry_timer(owner) and not RETRY_FIRST_NS <= order.after_ns <= RETRY_LIMIT_NS:
            self._say("I21", f"what is owed of {owner} is tried again after {order.after_ns} ns")
