"""The only loop that feeds a `Node`: events in, effects executed lane by lane, outcomes fed back as events.

The node is stepped synchronously on the event loop, so it needs no lock. Everything that waits happens in tasks of the
driver's own task group: a caller that goes away takes nothing down with it.
"""

import heapq
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import Code, LocalError, OperationError
from crio_core.node import Node
from crio_core.records import Failure
from crio_core.replies import Result
from crio_core.requests import Attach, CreateContainer, Exec, PortForward, Request, RunPodSandbox
from crio_core.values import dataclass

log = logging.getLogger(__name__)

BUDGET_S = 10.0
"""How long one effect may take before it is logged as slow; it goes on all the same."""

Listener = Callable[[ev.Event, tuple[fx.Effect, ...]], None]
"""Who is told every event and the effects that it led to."""

_MAKES = (RunPodSandbox, CreateContainer, Exec, Attach, PortForward)
_PATIENT = (fx.WatchContainer, fx.ExecInContainer, fx.ServeExec, fx.ServeAttach, fx.ServePorts, fx.FetchLayer)
"""Orders that may take as long as they like: they wait for somebody else."""


class Executor(Protocol):
    """What can carry out an order: the real host, or a simulated one."""

    async def run(self, order: fx.Order) -> ev.Outcome:
        """Carry out one order.

        Raises:
            OperationError: It failed, for a reason that a caller should be told.
        """
        ...


class Caller(Protocol):
    """Who can be asked: a driver, or a simulation that follows the real clock."""

    async def call(self, request: Request) -> Result:
        """Ask the node something and wait for the answer.

        Raises:
            OperationError: The node refused, or what was asked for failed.
        """
        ...

    def ask(self, question: Request) -> Result:
        """Ask something that changes nothing (one of `QUESTIONS`), and get the answer without waiting.

        Raises:
            OperationError: The node refused.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEffect:
    """An effect that is being carried out: what it is, for which lane, and since when on the monotonic clock."""

    lane: str
    order: str
    since_ns: int


class _Call:
    """Somebody waiting for a reply."""

    __slots__ = ("done", "result")

    def __init__(self) -> None:
        self.done: anyio.Event | None = None
        """Only of calls that are not answered at once."""
        self.result: Result | None = None

    def answer(self) -> Result:
        """The reply; raises OperationError if it is a failure."""
        if isinstance(self.result, Failure):
            raise self.result.error()
        if self.result is None:
            raise LocalError("a call is not answered yet")
        return self.result


class Driver:
    """Runs a node.

    Args:
        node: The node; nobody else may step it.
        executor: Carries out the orders.
        new_id: Makes the ids of sandboxes and containers, and tokens that nobody can guess.
    """

    def __init__(
        self, node: Node, executor: Executor, *, new_id: Callable[[], str] = lambda: secrets.token_hex(32)
    ) -> None:
        self.node = node
        self._executor = executor
        self._new_id = new_id
        self._calls: dict[int, _Call] = {}
        self._next_call = 1
        self._lanes: dict[str, deque[fx.Effect]] = {}
        self._running: dict[int, RunningEffect] = {}
        self._busy = anyio.Event()
        self._timers: list[tuple[int, int, str]] = []
        self._armed: dict[str, int] = {}
        self._timer_count = 0
        self._timer_moved = anyio.Event()
        self._idle = anyio.Event()
        self._stepped = anyio.Event()
        self._tasks: TaskGroup | None = None
        self.listeners: list[Listener] = []
        """Each is told every event and the effects that it led to, before they are carried out."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Driver"]:
        """Run lanes and timers until the block ends; what is under way then is cut off, as by a crash."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._run_timers)
            tasks.start_soon(self._report_slow)
            try:
                yield self
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def call(self, request: Request) -> Result:
        """Ask the node something and wait for the answer. Leaving early stops nothing that was begun.

        Raises:
            OperationError: The node refused, or what was asked for failed.
        """
        call_id, waiting = self._begin()
        try:
            self._arrive(call_id, request)
            if waiting.result is None:
                waiting.done = anyio.Event()
                await waiting.done.wait()
        finally:
            del self._calls[call_id]
            if waiting.result is None and self._tasks is not None:
                self.feed(ev.CallCancelled(call_id=call_id))
        return waiting.answer()

    def ask(self, question: Request) -> Result:
        """Ask something that changes nothing (one of `QUESTIONS`), and get the answer without waiting.

        Raises:
            OperationError: The node refused.
        """
        call_id, waiting = self._begin()
        try:
            self._arrive(call_id, question)
        finally:
            del self._calls[call_id]
        return waiting.answer()

    def _begin(self) -> tuple[int, _Call]:
        call_id = self._next_call
        self._next_call += 1
        waiting = self._calls[call_id] = _Call()
        return call_id, waiting

    def _arrive(self, call_id: int, request: Request) -> None:
        new_id = self._new_id() if isinstance(request, _MAKES) else ""
        self.feed(
            ev.CallArrived(
                call_id=call_id, request=request, at_ns=time.monotonic_ns(), wall_ns=time.time_ns(), new_id=new_id
            )
        )

    def feed(self, event: ev.Event) -> None:
        """Step the node and set going what it orders."""
        effects = self.node.step(event)
        if not isinstance(event, ev.CallArrived):  # Questions change nothing, and `until` asks one after each step.
            self._stepped.set()
            self._stepped = anyio.Event()
        for listener in self.listeners:
            listener(event, effects)
        for effect in effects:
            match effect.order:
                case fx.Reply() if effect.lane not in self._lanes:
                    self._reply(effect.order)
                case fx.ArmTimer():
                    self._arm(effect.order)
                case fx.CancelTimer():
                    self._armed.pop(effect.order.timer_id, None)
                case _:
                    self._enqueue(effect)

    async def until(self, request: Request, holds: Callable[[Result], bool]) -> Result:
        """Ask again after every step of the node, until `holds` is true of the answer; then return it.

        Raises:
            OperationError: The node refused, for example because what was asked about is gone.
        """
        while True:
            stepped = self._stepped
            answer = await self.call(request)
            if holds(answer):
                return answer
            await stepped.wait()

    async def drained(self) -> None:
        """Wait until no lane has work, watches apart: for a clean end."""
        while any(not lane.endswith("/watch") for lane in self._lanes):
            self._idle = anyio.Event()
            await self._idle.wait()

    def running_effects(self) -> tuple[RunningEffect, ...]:
        """What is being carried out now and is not merely waited for, oldest first: what a stuck pod is stuck in."""
        return tuple(sorted(self._running.values(), key=lambda one: one.since_ns))

    async def _report_slow(self) -> None:
        """Log effects that are over their budget, once each. Sleeps without a wake-up while nothing runs."""
        reported: set[int] = set()
        while True:
            if not self._running:
                self._busy = anyio.Event()
                await self._busy.wait()
            await anyio.sleep(BUDGET_S)
            limit_ns = time.monotonic_ns() - int(BUDGET_S * 1e9)
            slow = {key: one for key, one in self._running.items() if one.since_ns < limit_ns}
            for key in sorted(slow.keys() - reported):
                log.warning("%s of %s has taken more than %g s and goes on", slow[key].order, slow[key].lane, BUDGET_S)
            reported = set(slow)

    # --- lanes --------------------------------------------------------------------------------------------------

    def _enqueue(self, effect: fx.Effect) -> None:
        queue = self._lanes.get(effect.lane)
        if queue is not None:
            queue.append(effect)
            return
        if self._tasks is None:
            raise LocalError("the driver is not running")
        self._lanes[effect.lane] = deque((effect,))
        self._tasks.start_soon(self._run_lane, effect.lane)

    async def _run_lane(self, lane: str) -> None:
        queue = self._lanes[lane]
        while queue:
            effect = queue[0]
            if isinstance(effect.order, fx.Reply):
                self._reply(effect.order)
            else:
                outcome = await self._execute(effect)
                self._feed_outcome(effect, outcome)
            queue.popleft()
        del self._lanes[lane]
        self._idle.set()

    async def _execute(self, effect: fx.Effect) -> ev.Outcome:
        if not isinstance(effect.order, _PATIENT):
            name = type(effect.order).__name__
            self._running[effect.id] = RunningEffect(lane=effect.lane, order=name, since_ns=time.monotonic_ns())
            self._busy.set()
        try:
            return await self._executor.run(effect.order)
        except OperationError as error:
            return ev.Failed(failure=Failure.of(error))
        except Exception as error:
            # An executor must not take the node down; what it raised unplanned is a failure of this one effect.
            log.exception(
                "effect %d of %s failed unexpectedly: %s", effect.id, effect.lane, type(effect.order).__name__
            )
            failure = Failure(code=Code.INTERNAL.value, reason="UNEXPECTED", message=f"{type(error).__name__}: {error}")
            return ev.Failed(failure=failure)
        finally:
            self._running.pop(effect.id, None)

    def _feed_outcome(self, effect: fx.Effect, outcome: ev.Outcome) -> None:
        """Tell the node how an effect ended. What it cannot apply by a bug is one record's trouble, not the node's.

        A step that fails leaves the node as it was, so the effect can be told to have failed instead: then its record
        unwinds and its callers are answered.
        """
        try:
            self._feed_ended(effect, outcome)
        except Exception as error:
            log.exception("the node refused the outcome of %s: %r", type(effect.order).__name__, outcome)
            message = f"{type(effect.order).__name__}: {type(error).__name__}: {error}"
            failure = Failure(code=Code.INTERNAL.value, reason="BUG", message=message)
            try:
                self._feed_ended(effect, ev.Failed(failure=failure))
            except Exception:
                log.exception("the node refused also the failure of %s", type(effect.order).__name__)

    def _feed_ended(self, effect: fx.Effect, outcome: ev.Outcome) -> None:
        self.feed(
            ev.EffectEnded(effect_id=effect.id, outcome=outcome, at_ns=time.monotonic_ns(), wall_ns=time.time_ns())
        )

    def _reply(self, order: fx.Reply) -> None:
        waiting = self._calls.get(order.call_id)
        if waiting is not None:
            waiting.result = order.result  # type: ignore[assignment]
            if waiting.done is not None:
                waiting.done.set()

    # --- timers -------------------------------------------------------------------------------------------------

    def _arm(self, order: fx.ArmTimer) -> None:
        self._timer_count += 1
        self._armed[order.timer_id] = self._timer_count
        due_ns = time.monotonic_ns() + order.after_ns
        heapq.heappush(self._timers, (due_ns, self._timer_count, order.timer_id))
        if self._timers[0][1] == self._timer_count:
            self._timer_moved.set()

    async def _run_timers(self) -> None:
        while True:
            self._timer_moved = anyio.Event()
            now_ns = time.monotonic_ns()
            while self._timers and (self._timers[0][0] <= now_ns or not self._is_armed(self._timers[0])):
                entry = heapq.heappop(self._timers)
                if self._is_armed(entry):
                    del self._armed[entry[2]]
                    self._fire(entry[2])
            if self._timers:
                with anyio.move_on_after((self._timers[0][0] - now_ns) / 1e9):
                    await self._timer_moved.wait()
            else:
                await self._timer_moved.wait()

    def _is_armed(self, entry: tuple[int, int, str]) -> bool:
        return self._armed.get(entry[2]) == entry[1]

    def _fire(self, timer_id: str) -> None:
        try:
            self.feed(ev.TimerFired(timer_id=timer_id, at_ns=time.monotonic_ns(), wall_ns=time.time_ns()))
        except Exception:
            log.exception("the node refused timer %s", timer_id)
