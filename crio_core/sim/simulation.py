"""A whole node in memory: the real core, a simulated world, a virtual clock, and accidents on demand.

    sim = Simulation(seed=7)
    call = sim.call(RunPodSandbox(config=...))
    sim.run()
    assert sim.calls[call].result

Everything that is left to chance comes from the seed: how long effects take and so in which order they end, what fails,
what is lost. Two simulations with one seed that are told the same do the same.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import PurePosixPath

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import Code, OperationError
from crio_core.events import ImageResolved
from crio_core.layout import Layout
from crio_core.node import Node, Settings
from crio_core.oci.facts import HostFacts, SpecDefaults
from crio_core.records import LOST, Failure, is_current
from crio_core.replies import Result
from crio_core.requests import CreateContainer, Offerable, Request, RunPodSandbox
from crio_core.sim.chance import Chance
from crio_core.sim.hands import Hands, Steps, steps_of
from crio_core.sim.images import REGISTRY
from crio_core.sim.lives import SIGKILL_CODE
from crio_core.sim.profiles import MS, NO_FAULTS, ORDINARY, Faults, Latency, S
from crio_core.sim.watches import Watches
from crio_core.sim.world import GARBLED, NEVER_NS, Row, World
from crio_core.values import maker

NETWORK = "simulated network"
ASK_TICKS_MAX = 10_000
"""Things that may happen until `ask` gives up waiting for its answer."""
PROGRESS_PARTS = 4
TIMER_LATE_NS = 20 * MS
WALL_EPOCH_NS = 1_700_000_000 * S
BOOT_NS = 20 * S

SETTINGS = Settings(
    layout=Layout(root=PurePosixPath("/var/lib/crio"), runroot=PurePosixPath("/run/crio")),
    host=HostFacts(),
    defaults=SpecDefaults(),
)


_SERVED = (fx.ServeExec, fx.ServeAttach, fx.ServePorts)


@dataclass(slots=True, kw_only=True)
class Call:
    """A call and what became of it; times are those of the virtual clock."""

    id: int
    request: Request
    asked_at_ns: int
    result: Result | None = None
    answered_at_ns: int = 0
    cancelled: bool = False
    died: bool = False
    """The server crashed before it answered."""

    @property
    def open(self) -> bool:
        """Whether an answer is still owed."""
        return self.result is None and not self.cancelled and not self.died


_FOR_EVER = repeat(None)
_call_arrived = maker(ev.CallArrived)
_effect_ended = maker(ev.EffectEnded)
_timer_fired = maker(ev.TimerFired)
_failed = maker(ev.Failed)


class _Running:
    """An effect under way."""

    __slots__ = ("done", "effect", "hung", "outcome", "steps")

    def __init__(self, effect: fx.Effect) -> None:
        self.effect = effect
        self.hung = False
        self.steps: Steps | None = None
        """Set once some of its steps were taken."""
        self.done = 0
        self.outcome: ev.Outcome | None = None


class Simulation:
    """A simulated node with a server on it.

    Args:
        seed: Everything left to chance follows from it.
        settings: What the server is configured with.
        latency: How long effects take.
        faults: What goes wrong of itself; `faults` may be set anew at any time.
        registry: The images that can be pulled, by reference.
        wall_epoch_ns: The time of day when the virtual clock stood at zero.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        settings: Settings = SETTINGS,
        latency: Latency = ORDINARY,
        faults: Faults = NO_FAULTS,
        registry: Mapping[str, ImageResolved] = REGISTRY,
        wall_epoch_ns: int = WALL_EPOCH_NS,
    ) -> None:
        self.seed = seed
        chance = Chance(seed)
        self._latency_chance = chance.split()
        self._fault_chance = chance.split()
        self._id_chance = chance.split()
        self.settings = settings
        self.latency = latency
        self.faults = faults
        self.at_ns = 1 * S
        self._wall_offset_ns = wall_epoch_ns
        self.world = World(chance.split(), registry)
        self.hands = Hands(self.world, self, chance.split())
        self.network = NETWORK
        self.node: Node | None = None
        self.calls: dict[int, Call] = {}
        self.steps = 0
        self.quarantined: dict[str, str] = {}
        """What the journal says of rows that it does not have, besides those that are garbled."""
        self.fail_next: list[tuple[type, int]] = []
        """Orders that will fail: the next one of this type, after so many of its steps."""
        self.slow_next: list[type] = []
        """Orders that will take long, and be seen half done: the next one of this type."""
        self.stuck_lanes: dict[str, bool] = {}
        """Prefixes of lanes in which no effect ends until `release`."""
        self.on_reply: Callable[[Call], None] | None = None
        self.on_event: Callable[[ev.Event, tuple[fx.Effect, ...]], None] | None = None
        self.on_crash: Callable[[], None] | None = None
        self._queue: list[tuple[int, int, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self._life = 0
        """Number of the server's run: what an earlier one had under way is not heard of any more."""
        self.next_call = 1
        """The number that the next call will have."""
        self._lanes: dict[str, deque[fx.Effect]] = {}
        self._running: dict[int, _Running] = {}
        self._timers: dict[str, int] = {}
        self._watches = Watches(self.world, self, self._fault_chance)
        self.start_server()

    # --- clock ------------------------------------------------------------------------------------------------

    @property
    def wall_ns(self) -> int:
        """The time of day."""
        return self.at_ns + self._wall_offset_ns

    @property
    def due_ns(self) -> int | None:
        """When the next thing happens, on the virtual clock; None when nothing will."""
        return self._queue[0][0] if self._queue else None

    def step_clock(self, by_ns: int) -> None:
        """Somebody sets the time of day; deadlines do not care. No system's clock can stand before 1970."""
        self._wall_offset_ns += max(by_ns, -self.wall_ns)

    def forget_call(self, call_id: int) -> None:
        """The caller has its answer, or is gone: a simulation that runs for ever must not keep every call."""
        self.calls.pop(call_id, None)

    def later(self, after_ns: int, what: Callable[[], None]) -> None:
        """Have something happen in the world, whatever becomes of the server."""
        self._push(after_ns, 0, what)

    def schedule(self, after_ns: int, what: Callable[..., None], *arguments: object) -> None:
        """Have the server do something later, if it lives then."""
        self._push(after_ns, self._life, what, *arguments)

    def noticed(self, container_id: str) -> None:
        """There is news of a container's end for whoever waits for it."""
        self._watches.noticed(container_id)

    def _push(self, after_ns: int, life: int, what: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.at_ns + after_ns, self._count, life, what, arguments))

    def tick(self) -> bool:
        """Let the next thing happen; False when there is nothing left to happen."""
        while self._queue:
            due_ns, _, life, what, arguments = heapq.heappop(self._queue)
            if life and life != self._life:
                continue
            if due_ns > self.at_ns:
                self.at_ns = due_ns
            what(*arguments)
            return True
        return False

    def run(self, for_ns: int | None = None, *, ticks_max: int = 1_000_000) -> bool:
        """Run until nothing is left to happen, or for a time; False when the bound on ticks ended it first."""
        until_ns = None if for_ns is None else self.at_ns + for_ns
        queue = self._queue
        for _ in range(ticks_max):
            while queue and queue[0][2] and queue[0][2] != self._life:
                heapq.heappop(queue)
            if not queue or (until_ns is not None and queue[0][0] > until_ns):
                if until_ns is not None:
                    self.at_ns = max(self.at_ns, until_ns)
                return True
            self.tick()
        return False

    # --- the server -------------------------------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        """Whether there is a server."""
        return self.node is not None

    def start_server(self) -> None:
        """A server starts on what the journal holds."""
        self._life += 1
        self.node = Node(self.settings)
        self.world.old_containers = tuple(dict.fromkeys((*self.world.writable, *self.world.exits)))
        self.world.still_aside()
        rows = tuple((kind, key, data) for (kind, key), data in self.world.rows.items() if data != GARBLED)
        garbled = {f"{kind}/{key}": "garbled" for (kind, key), data in self.world.rows.items() if data == GARBLED}
        quarantined = self.quarantined | garbled
        damaged = bool(quarantined) or not all(is_current(kind, data) for kind, _, data in rows)
        self.feed(
            ev.JournalLoaded(
                rows=rows,
                boot_id=self.world.boot_id,
                at_ns=self.at_ns,
                wall_ns=self.wall_ns,
                quarantined=quarantined,
                layers=tuple(self.world.layers.values()),
                here=dict(self.world.bundles) if damaged else {},
            )
        )
        self.set_network(self.network)

    def crash_server(self) -> None:
        """SIGKILL: what was under way is cut off at a step of chance, what was ordered behind it never begins."""
        if self.node is None:
            return
        self.node = None
        self._life += 1
        for running in tuple(self._running.values()):
            self._advance(running, self._some_steps(running.effect.order))
        self._running.clear()
        self.world.orphan_execs()
        self._lanes.clear()
        self._timers.clear()
        self._watches.forget()
        for call in self.calls.values():
            if call.open:
                call.died = True
        if self.on_crash is not None:
            self.on_crash()

    def crash_machine(self) -> None:
        """A power cut, and the boot after it; the server is not started."""
        self.crash_server()
        self.world.power_cut()
        self._wall_offset_ns += BOOT_NS
        self.at_ns = 1 * S
        # What the old boot had going is no more.
        self._queue.clear()

    def damage(self, row: Row, *, lose: bool) -> None:
        """While the server is down: a row of the journal is garbled, or lost, in both of its files."""
        self.world.damage(row, lose=lose)
        if lose:
            self.quarantined["/".join(LOST)] = "rows are missing"

    def repair(self) -> None:
        """While the server is down: what is set aside goes, with everything that is there of it."""
        self.world.repair()
        self.quarantined.clear()

    def set_network(self, network: str) -> None:
        """The configuration directory gives this pod network from now on; empty for none."""
        self.network = network
        if self.node is not None:
            self.feed(ev.NetworkChanged(network=network, reason="" if network else "no network configuration"))

    def change_weather(self) -> None:
        """Let chance decide anew whether the disk is full, plugins work and there is a network configuration."""
        faults, chance = self.faults, self._fault_chance
        self.hands.disk_full = chance.happens(faults.disk_fills)
        self.hands.network_broken = chance.happens(faults.plugins_break)
        network = "" if chance.happens(faults.network_goes) else NETWORK
        if network != self.network:
            self.set_network(network)

    def release(self) -> None:
        """Nothing goes wrong any more, and what hung or was stuck goes on."""
        self.faults = NO_FAULTS
        self.fail_next.clear()
        self.slow_next.clear()
        self.stuck_lanes.clear()
        self.hands.network_broken = False
        self.hands.disk_full = False
        self.let_go()

    def let_go(self) -> None:
        """What hangs goes on, and what did not die dies; more of the kind may come."""
        for process in tuple(self.world.processes.values()):
            if process.life.stuck_ns >= NEVER_NS:
                process.life = replace(process.life, stuck_ns=0)
                if process.doomed:
                    self.hands.processes.end(process, SIGKILL_CODE)
        for running in tuple(self._running.values()):
            if running.hung:
                running.hung = False
                self._begin(running)

    # --- calls ------------------------------------------------------------------------------------------------

    def call(self, request: Request) -> int:
        """Ask the server something; the answer comes to `calls`. A server that is down refuses at once."""
        call_id = self.next_call
        self.next_call += 1
        call = self.calls[call_id] = Call(id=call_id, request=request, asked_at_ns=self.at_ns)
        if self.node is None:
            call.died = True
            return call_id
        new_id = self._id_chance.hex_id() if isinstance(request, RunPodSandbox | CreateContainer | Offerable) else ""
        self.feed(
            _call_arrived(call_id=call_id, request=request, at_ns=self.at_ns, wall_ns=self.wall_ns, new_id=new_id)
        )
        return call_id

    def ask(self, request: Request) -> Result:
        """Call, and run until the answer is there.

        Raises:
            OperationError: It was refused, or nothing is left to happen (or too much did) and there is no answer.
        """
        call = self.calls[self.call(request)]
        for _ in range(ASK_TICKS_MAX):
            if not (call.open and self.tick()):
                break
        if call.result is None:
            raise OperationError(Code.DEADLINE_EXCEEDED, "NO_ANSWER", f"{request!r} was not answered")
        if isinstance(call.result, Failure):
            raise call.result.error()
        return call.result

    def cancel(self, call_id: int) -> None:
        """The caller goes away."""
        call = self.calls[call_id]
        if call.open:
            call.cancelled = True
            self.feed(ev.CallCancelled(call_id=call_id))

    # --- the driver's work ------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        """Step the node and set going what it orders, as `crio_io.driver` does."""
        assert self.node is not None
        effects = self.node.step(event)
        self.steps += 1
        if self.on_event is not None:
            self.on_event(event, effects)
        lanes = self._lanes
        for effect in effects:
            order, lane = effect.order, effect.lane
            if isinstance(order, fx.ArmTimer):
                self._arm(order)
            elif isinstance(order, fx.CancelTimer):
                self._cancel(order)
            elif lane in lanes:
                lanes[lane].append(effect)
            elif isinstance(order, fx.Reply):
                self._reply(order)
            else:
                lanes[lane] = deque((effect,))
                self._begin(_Running(effect))

    def _reply(self, order: fx.Reply) -> None:
        call = self.calls.get(order.call_id)
        if call is None:
            return  # Forgotten when its caller had gone.
        if call.result is not None:
            self.world.violations.append(f"call {call.id} was answered twice: {call.request!r}")
        call.result = order.result  # type: ignore[assignment]
        call.answered_at_ns = self.at_ns
        if self.on_reply is not None:
            self.on_reply(call)

    def _arm(self, order: fx.ArmTimer) -> None:
        self._count += 1
        mark = self._timers[order.timer_id] = self._count
        self.schedule(order.after_ns, self._fire, order.timer_id, mark)

    def _fire(self, timer_id: str, mark: int) -> None:
        if self._timers.get(timer_id) == mark:
            del self._timers[timer_id]
            self.feed(_timer_fired(timer_id=timer_id, at_ns=self.at_ns, wall_ns=self.wall_ns))

    def _cancel(self, order: fx.CancelTimer) -> None:
        armed = self._timers.pop(order.timer_id, None)
        if armed is not None and self._fault_chance.happens(self.faults.timer_late):
            # It had fired already, and its event is on its way.
            event = ev.TimerFired(timer_id=order.timer_id, at_ns=self.at_ns, wall_ns=self.wall_ns)
            self.schedule(self._fault_chance.below(TIMER_LATE_NS), self.feed, event)

    def _next(self, lane: str) -> None:
        """Begin what stands first in a lane."""
        queue = self._lanes[lane]
        while queue:
            effect = queue[0]
            if not isinstance(effect.order, fx.Reply):
                self._begin(_Running(effect))
                return
            self._reply(effect.order)
            queue.popleft()
        del self._lanes[lane]

    def _begin(self, running: _Running) -> None:
        effect = running.effect
        if isinstance(effect.order, fx.WatchContainer):
            self._watches.begin(effect, effect.order)
            return
        self._running[effect.id] = running
        if self._fault_chance.happens(self.faults.hang) or (self.stuck_lanes and self._is_stuck(effect.lane)):
            running.hung = True
            return
        time_ns = self._time_of(effect.order)
        slow = bool(self.slow_next) and type(effect.order) in self.slow_next
        if slow:
            self.slow_next.remove(type(effect.order))
            time_ns = int(time_ns * self.latency.tail)
        if slow or self._latency_chance.happens(self.latency.halves):
            # Others see it half done, as they would see a program of several system calls, or done and not told.
            steps = self._latency_chance.below(steps_of(type(effect.order)) + 1)
            self.schedule(1 if slow else time_ns >> 1, self._advance, running, steps)
        match effect.order:
            case fx.FetchLayer() | fx.ProveLayer() as download:
                self._tell_progress(running, download, time_ns)
            case fx.ServeExec():
                self.schedule(2 * MS, self._let_begin, running)
        self.schedule(time_ns, self._finish, running)

    def _is_stuck(self, lane: str) -> bool:
        return any(lane.startswith(one) for one in self.stuck_lanes)

    def _let_begin(self, running: _Running) -> None:
        """A command runs, for as long as it does, or it is known at once that it cannot."""
        if running.effect.id in self._running:
            self._advance(running, 2 - running.done)
            if running.outcome is not None:
                self._finish(running)

    def _tell_progress(self, running: _Running, order: fx.FetchLayer | fx.ProveLayer, time_ns: int) -> None:
        """Have the server observe a download at even parts of its time."""
        for part in range(1, PROGRESS_PARTS):
            told = ev.LayerProgressed(
                diff_id=order.diff_id,
                received_bytes=order.size_bytes * part // PROGRESS_PARTS,
                bytes_per_s=order.size_bytes * S // time_ns,
                host="simulated",
            )
            self.schedule(time_ns * part // PROGRESS_PARTS, self._tell, running.effect.id, told)

    def _tell(self, effect_id: int, told: ev.LayerProgressed) -> None:
        if effect_id in self._running:
            self.feed(told)

    def _time_of(self, order: fx.Order) -> int:
        latency, chance = self.latency, self._latency_chance
        time_ns = latency.floor_ns.get(type(order), 1)
        if latency.spread > 1:
            time_ns += int(time_ns * (latency.spread - 1) * chance.below(1024)) >> 10
        if chance.happens(latency.tail_probability):
            time_ns = int(time_ns * latency.tail)
        if isinstance(order, fx.ServeExec) and b'"hang' in order.process:
            time_ns = 3600 * S  # Until its client leaves, or its container ends.
        if isinstance(order, fx.ExecInContainer) and b'"hang' in order.process:
            # Killed at its limit; `hang-on` leaves a child behind that holds the pipe open for a while.
            time_ns = (order.timeout_ns or 3600 * S) + (5 * S if b'"hang-on"' in order.process else 50 * MS)
        return time_ns or 1

    def stream_ends(self, session_id: str) -> None:
        """Its client is sent what is left, and what it runs is killed; one that hangs notices nothing."""
        for running in self._running.values():
            order = running.effect.order
            if isinstance(order, _SERVED) and order.session_id == session_id and not running.hung:
                self.schedule(1 * MS, self._finish, running)

    def _finish(self, running: _Running) -> None:
        effect = running.effect
        if self._running.pop(effect.id, None) is None:
            return  # A stream that was told to end before its time.
        stop_after = self._fault_of(effect.order)
        self._advance(running, None if stop_after is None else stop_after - running.done)
        if running.outcome is None or stop_after is not None:
            running.outcome = self._interrupted(running)
        outcome = running.outcome
        if isinstance(outcome, ev.Failed):
            if isinstance(effect.order, fx.ServeExec):
                self.world.execs.pop(effect.order.session_id, None)  # Whatever fails, its command is killed.
            if isinstance(effect.order, fx.SaveRecord):
                self.world.unsaved[effect.order.record.id] = True
            elif isinstance(effect.order, fx.DeleteRecord):
                self.world.unsaved[effect.order.record_id] = True
        self.ended(effect, outcome)

    def ended(self, effect: fx.Effect, outcome: ev.Outcome) -> None:
        """Tell the server that an effect has ended."""
        self.feed(_effect_ended(effect_id=effect.id, outcome=outcome, at_ns=self.at_ns, wall_ns=self.wall_ns))
        lane = self._lanes[effect.lane]
        lane.popleft()
        if lane:
            self._next(effect.lane)
        else:
            del self._lanes[effect.lane]

    def _fault_of(self, order: fx.Order) -> int | None:
        if self.fail_next:
            for index, (kind, steps) in enumerate(self.fail_next):
                if type(order) is kind:
                    del self.fail_next[index]
                    return steps
        if self._fault_chance.happens(self.faults.fail):
            return self._some_steps(order)
        return None

    def _some_steps(self, order: fx.Order) -> int:
        """From none of its steps to all its work."""
        return self._fault_chance.below(steps_of(type(order)) + 1)

    def _advance(self, running: _Running, steps_max: int | None) -> None:
        """Do more of an order: at most so many steps, or all that are left."""
        if running.outcome is not None:
            return
        if running.steps is None:
            running.steps = self.hands.steps(running.effect.order)
        try:
            for _ in _FOR_EVER if steps_max is None else range(steps_max):
                next(running.steps)
                running.done += 1
        except StopIteration as end:
            running.outcome = end.value
        except OperationError as error:
            running.outcome = _failed(failure=Failure.of(error))

    def _interrupted(self, running: _Running) -> ev.Failed:
        name = type(running.effect.order).__name__
        message = f"{name} failed after {running.done} steps"
        return _failed(failure=Failure(code=Code.INTERNAL.value, reason="INJECTED", message=message))

    # --- rest -------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> tuple[str, ...]:
        """Lanes with work under way, watches apart."""
        return tuple(lane for lane in self._lanes if not lane.endswith("/watch"))

    @property
    def under_way(self) -> tuple[type, ...]:
        """The kinds of the effects that were begun and have not ended."""
        return tuple([type(running.effect.order) for running in self._running.values()])

    @property
    def timers(self) -> tuple[str, ...]:
        """Timers that are armed."""
        return tuple(self._timers)
