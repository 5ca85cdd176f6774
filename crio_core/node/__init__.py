"""The node: everything that the runtime decides, as one deterministic machine.

    node = Node(settings)
    effects = node.step(CallArrived(call_id=1, request=RunPodSandbox(config=...), at_ns=..., wall_ns=..., new_id=...))

The caller executes the effects, lane by lane, and feeds back an `EffectEnded` for each. A step is synchronous and
applies its event whole, or raises `LocalError` and leaves the node as it was.
"""

from collections.abc import Callable, Mapping
from typing import Any

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.errors import LocalError, OperationError
from crio_core.node import calls, explain, images, limits, naming, outcomes, pods, queries, recovery, streams
from crio_core.node.settings import Handler, Settings
from crio_core.node.state import State
from crio_core.node.table import take_back

__all__ = ["QUESTIONS", "Handler", "Node", "Settings"]


_MAKING: Mapping[type, Callable[[State, int, Any, str], None]] = {
    rq.RunPodSandbox: calls.run_sandbox,
    rq.CreateContainer: calls.create_container,
    rq.Exec: streams.offer_exec,
    rq.Attach: streams.offer_attach,
    rq.PortForward: streams.offer_ports,
}
_ACTING: Mapping[type, Callable[[State, int, Any], None]] = {
    rq.StopPodSandbox: calls.stop_sandbox,
    rq.RemovePodSandbox: calls.remove_sandbox,
    rq.StartContainer: calls.start_container,
    rq.StopContainer: calls.stop_container,
    rq.RemoveContainer: calls.remove_container,
    rq.ReopenContainerLog: calls.reopen_log,
    rq.UpdateContainerResources: limits.update_container,
    rq.UpdatePodSandboxResources: limits.update_sandbox,
    rq.ExecSync: calls.exec_sync,
    rq.OpenStream: streams.open_stream,
    rq.PullImage: images.pull_image,
    rq.RemoveImage: images.remove_image,
}
_ASKING: Mapping[type, Callable[[State, Any], Any]] = {
    rq.PodSandboxStatus: queries.sandbox_status,
    rq.ListPodSandbox: queries.list_sandboxes,
    rq.ContainerStatus: queries.container_status,
    rq.ListContainers: queries.list_containers,
    rq.ImageStatus: naming.image_status,
    rq.ListImages: naming.list_images,
    rq.Status: lambda state, request: queries.status(state),
    rq.Explain: explain.explain,
}

_TIMED = (ev.CallArrived, ev.EffectEnded, ev.TimerFired, ev.JournalLoaded)
"""Events that say when they happened."""

QUESTIONS = frozenset(_ASKING)
"""Requests that change nothing: each is answered at once, by one reply."""


class Node:
    """A node's whole state behind one method.

    Args:
        settings: What decisions depend on besides events.
    """

    def __init__(self, settings: Settings) -> None:
        self._state = State(settings=settings)

    @property
    def settings(self) -> Settings:
        return self._state.settings

    def reload(self, settings: Settings) -> None:
        """Decide by other settings from now on; what exists stays as it was made."""
        self._state.settings = settings

    def step(self, event: ev.Event) -> tuple[fx.Effect, ...]:
        """Apply one event.

        Returns:
            What to do now, in order within each lane.

        Raises:
            LocalError: The event cannot be; the node is as it was.
        """
        state = self._state
        before = (state.next_effect, state.at_ns, state.wall_ns, state.boot_id, state.network, state.network_reason)
        generation = state.last_generation
        try:
            self._apply(state, event)
            while state.ended_infra_pulls:
                pods.infra_image_ended(state, *state.ended_infra_pulls.pop(0))
        except BaseException:
            take_back(state.undo)
            state.next_effect, state.at_ns, state.wall_ns, state.boot_id, state.network, state.network_reason = before
            state.last_generation = generation
            state.ended_infra_pulls.clear()
            state.effects.clear()
            raise
        finally:
            state.undo.clear()
        effects = tuple(state.effects)
        state.effects.clear()
        return effects

    def _apply(self, state: State, event: ev.Event) -> None:
        if isinstance(event, _TIMED):
            state.at_ns, state.wall_ns = event.at_ns, event.wall_ns
        state.history.begins(event)
        if isinstance(event, ev.EffectEnded):
            outcomes.effect_ended(state, event)
            return
        match event:
            case ev.CallArrived():
                self._call(state, event)
            case ev.TimerFired():
                outcomes.timer_fired(state, event.timer_id)
            case ev.CallCancelled():
                state.forget_call(event.call_id)
            case ev.NetworkChanged():
                state.network, state.network_reason = event.network, event.reason
            case ev.LayerProgressed():
                images.note_progress(state, event)
            case ev.JournalLoaded():
                recovery.load(state, event)
            case _:
                raise LocalError(f"no such event: {event!r}")

    def _call(self, state: State, event: ev.CallArrived) -> None:
        if event.call_id in state.calls:
            raise LocalError(f"call {event.call_id} is under way already")
        request = event.request
        kind = type(request)
        marked = len(state.undo), len(state.effects)
        try:
            if (ask := _ASKING.get(kind)) is not None:
                state.reply(event.call_id, ask(state, request))
            elif (act := _ACTING.get(kind)) is not None:
                act(state, event.call_id, request)
            elif (make := _MAKING.get(kind)) is not None:
                if not event.new_id:
                    raise LocalError(f"{kind.__name__} needs a new_id")
                make(state, event.call_id, request, event.new_id)
            else:
                raise LocalError(f"no such request: {request!r}")
        except OperationError as error:
            # A refused request leaves nothing behind: whatever it had begun in this step is taken back.
            take_back(state.undo, marked[0])
            del state.effects[marked[1] :]
            explain.note_refusal(state, request, error)
            state.refuse(event.call_id, error)
