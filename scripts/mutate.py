"""Breaks the core on purpose, one place at a time, and says how soon the simulation notices.

python -m scripts.mutate [--programs N] [--keep FILE] [NAME ...]

Each mutation is patched in memory. One that survives the programs of a test run is a hole in the tests: exit code 1.
With `--keep` the programs that noticed are written down, for `tests/property/test_mutations.py` to try each time.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from crio_core import effects as fx
from crio_core import node
from crio_core import requests as rq
from crio_core.events import LayerDescriptor, ProcessExited, RecordSaved, StoredLayer
from crio_core.lifecycle import container as ct
from crio_core.lifecycle import sandbox as sb
from crio_core.lifecycle.engine import Arrival, Lifecycle
from crio_core.lifecycle.image import IMAGE
from crio_core.lifecycle.layer import LAYER, LayerWanted
from crio_core.lifecycle.release import AllReleased, PartReleased, Resumed
from crio_core.node import calls, images, limits, naming, outcomes, pods, recovery
from crio_core.node.state import State
from crio_core.records import ContainerRecord, ContainerState, LayerState, Part, SandboxState
from crio_core.sim.checks import run_program
from crio_core.sim.programs import random_program

PROGRAMS = 2500
"""As many as a test run has."""
Enter = Callable[[Any, Any, Any], Arrival[Any]]
Change = Callable[[Arrival[Any], Any, Any], Arrival[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One way of being wrong."""

    name: str
    what: str
    apply: Callable[[ExitStack], None]


MUTATIONS: list[Mutation] = []


def mutation(what: str) -> Callable[[Callable[[ExitStack], None]], Callable[[ExitStack], None]]:
    """Add a function that patches the core for as long as its stack is open."""

    def add(apply: Callable[[ExitStack], None]) -> Callable[[ExitStack], None]:
        MUTATIONS.append(Mutation(name=apply.__name__, what=what, apply=apply))
        return apply

    return add


@contextmanager
def _arriving(machine: Lifecycle[Any], change: Change) -> Iterator[None]:
    """Change what a lifecycle returns when it arrives somewhere; `change` is told the origin and the event too."""
    enter: Enter = machine._enter

    def changed(record: Any, came_from: Any, event: Any) -> Arrival[Any]:
        return change(enter(record, came_from, event), came_from, event)

    with patch.object(machine, "_enter", changed):
        yield


def _without(kind: type, *states: Any) -> Change:
    """Leave out orders of one kind, on arriving in some states or in any."""

    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if states and arrival.record.state not in states:
            return arrival
        return replace(arrival, orders=tuple(order for order in arrival.orders if not isinstance(order, kind)))

    return change


@mutation("a network is held only once its ADD has succeeded, so a failed ADD has no DEL")
def skip_del_of_failed_add(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if isinstance(event, sb.NetworkFailed):
            record = replace(arrival.record, holds=tuple(p for p in arrival.record.holds if p is not Part.NETWORK))
            return Arrival(record=record, orders=(fx.ReleaseNamespaces(sandbox_id=record.id),))
        return arrival

    stack.enter_context(_arriving(sb.SANDBOX, change))


@mutation("files and namespaces of a sandbox that cannot be prepared are not released")
def forget_failed_preparation(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if isinstance(event, sb.PreparationFailed):
            return Arrival(record=replace(arrival.record, holds=()), then=AllReleased())
        return arrival

    stack.enter_context(_arriving(sb.SANDBOX, change))


@mutation("parts of a sandbox are released in the order in which they were taken")
def release_first_taken_first(stack: ExitStack) -> None:
    release = sb._release

    def changed(record: Any, event: Any, *, keep: frozenset[Part]) -> Arrival[Any]:
        arrival = release(record, event, keep=keep)
        left = [part for part in arrival.record.holds if part not in keep]
        if not arrival.orders or not left:
            return arrival
        return replace(arrival, orders=(sb._release_order(arrival.record, left[0]),))

    stack.enter_context(patch.object(sb, "_release", changed))


@mutation("the record of a sandbox that is gone stays in the journal")
def forget_to_delete_record(stack: ExitStack) -> None:
    stack.enter_context(_arriving(sb.SANDBOX, _without(fx.DeleteRecord)))


@mutation("a stop is answered when it begins")
def answer_stop_before_the_work(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if isinstance(event, ct.StopRequested) and arrival.record.state is ContainerState.STOPPING:
            return replace(arrival, orders=(*arrival.orders, fx.Answer(operation="stop")))
        return arrival

    stack.enter_context(_arriving(ct.CONTAINER, change))


@mutation("owed work of a sandbox is not tried again")
def lose_the_retry(stack: ExitStack) -> None:
    stack.enter_context(_arriving(sb.SANDBOX, _without(fx.ArmTimer)))


@mutation("a kill that was not confirmed is not repeated")
def kill_only_once(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if isinstance(event, ct.KillUnconfirmed):
            return _without(fx.SignalContainer)(arrival, came_from, event)
        return arrival

    stack.enter_context(_arriving(ct.CONTAINER, change))


@mutation("a shorter stop does not bring the kill forward")
def keep_the_first_deadline(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if isinstance(event, ct.StopRequested) and came_from is ContainerState.STOPPING:
            return replace(arrival, orders=())
        return arrival

    stack.enter_context(_arriving(ct.CONTAINER, change))


@mutation("an exit code that nobody knows is shown as 0")
def invent_an_exit_code(stack: ExitStack) -> None:
    stack.enter_context(patch.object(ct, "UNKNOWN_EXIT_CODE", 0))


@mutation("a watch that failed counts as an exit")
def believe_a_failed_watch(stack: ExitStack) -> None:
    ended = outcomes.effect_ended

    def changed(state: State, event: Any) -> None:
        entry = state.history.inflight.get(event.effect_id)
        if entry is not None and isinstance(entry.order, fx.WatchContainer) and not hasattr(event.outcome, "code"):
            exited = ProcessExited(code=None, finished_at_ns=event.wall_ns)
            event = replace(event, outcome=exited)
        ended(state, event)

    stack.enter_context(patch.object(outcomes, "effect_ended", changed))


@mutation("a sandbox found reserved after a crash is forgotten, not unwound")
def forget_what_was_half_made(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if isinstance(event, Resumed) and came_from is SandboxState.RESERVED:
            return Arrival(record=replace(arrival.record, holds=()), then=AllReleased())
        return arrival

    stack.enter_context(_arriving(sb.SANDBOX, change))


@mutation("a running container is not watched after a restart")
def forget_to_watch_again(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        return _without(fx.WatchContainer)(arrival, came_from, event) if isinstance(event, Resumed) else arrival

    stack.enter_context(_arriving(ct.CONTAINER, change))


@mutation("a sandbox whose release had begun is ready again after a crash")
def be_ready_while_detaching(stack: ExitStack) -> None:
    stack.enter_context(patch.dict(recovery._SANDBOX_REST, {SandboxState.DETACHING: SandboxState.READY}))


@mutation("the namespaces of an earlier boot are believed in")
def believe_in_another_boot(stack: ExitStack) -> None:
    def changed(state: State, event: Any) -> None:
        for sandbox in state.sandboxes.values():
            state.sandboxes.put(sandbox.id, replace(sandbox, boot_id=event.boot_id))

    stack.enter_context(patch.object(recovery, "_forget_old_boot", changed))


@mutation("an image is listed after a crash without a look at its layers")
def list_images_without_layers(stack: ExitStack) -> None:
    load = images.load_layers

    def changed(state: State, stored: tuple[StoredLayer, ...]) -> None:
        known = {one.diff_id for one in stored}
        wanted = {layer for image in state.images.values() for layer in image.layers} - known
        load(state, (*stored, *(StoredLayer(diff_id=one, size_bytes=1, blob="") for one in sorted(wanted))))

    stack.enter_context(patch.object(images, "load_layers", changed))


@mutation("stray layers are not removed at the start")
def keep_stray_layers(stack: ExitStack) -> None:
    load = recovery.load

    def changed(state: State, event: Any) -> None:
        load(state, replace(event, layers=tuple(one for one in event.layers if _is_named(event.rows, one.diff_id))))

    def _is_named(rows: Any, layer: str) -> bool:
        return any(layer.encode() in data for _, _, data in rows)

    stack.enter_context(patch.object(recovery, "load", changed))


@mutation("a layer that could not be applied is not removed")
def forget_failed_layer(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if type(event).__name__ == "ApplyFailed":
            return replace(arrival, orders=(), then=PartReleased(part=Part.FILES))
        return arrival

    stack.enter_context(_arriving(LAYER, change))


@mutation("a layer is removed with its image, whoever else needs it")
def remove_shared_layers(stack: ExitStack) -> None:
    stack.enter_context(patch.object(images, "_needed", lambda state, diff_id: False))


@mutation("a layer serves whoever names its diff id")
def serve_by_diff_id(stack: ExitStack) -> None:
    def changed(state: State, descriptor: LayerDescriptor) -> bool:
        layer = state.layers.get(descriptor.diff_id)
        return layer is not None and layer.is_stored

    stack.enter_context(patch.object(images, "_has", changed))


@mutation("an image is answered as pulled before its record is written")
def answer_pull_before_the_record(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if type(event).__name__ == "LayersApplied":
            return replace(arrival, orders=(), then=RecordSaved())
        return arrival

    stack.enter_context(_arriving(IMAGE, change))


@mutation("a created container is not written to the journal")
def forget_to_save_created(stack: ExitStack) -> None:
    stack.enter_context(_arriving(ct.CONTAINER, _without(fx.SaveRecord, ContainerState.CREATED)))


@mutation("a write that failed is not made again")
def forget_a_failed_write(stack: ExitStack) -> None:
    stack.enter_context(patch.object(outcomes, "_look_after", lambda state, kind, record_id, *, failed: None))


@mutation("a caller that went away is answered all the same")
def answer_the_absent(stack: ExitStack) -> None:
    stack.enter_context(patch.object(State, "forget_call", lambda self, call_id: None))


@mutation("a retry of a creation that is under way is refused")
def refuse_a_retry(stack: ExitStack) -> None:
    stack.enter_context(patch.object(sb, "COMING", frozenset()))


@mutation("the name of a removed sandbox is free only when nothing is owed of it any more")
def keep_the_name(stack: ExitStack) -> None:
    stack.enter_context(patch.object(pods, "NAMELESS_SANDBOX", frozenset({SandboxState.GONE})))


@mutation("container names are not kept")
def allow_two_of_a_name(stack: ExitStack) -> None:
    stack.enter_context(patch.object(calls, "_join_container", lambda *_: None))
    stack.enter_context(patch.object(pods, "container_key", lambda record: (record.id, "", 0)))


@mutation("a container's root filesystem is released before the container is deleted")
def release_rootfs_first(stack: ExitStack) -> None:
    stack.enter_context(patch.object(ct, "EVERYTHING", (Part.RUNTIME, Part.ROOTFS)))


@mutation("a restart takes down every pod that was ready")
def remove_ready_pods(stack: ExitStack) -> None:
    name = recovery._name

    def changed(state: State) -> None:
        name(state)
        for sandbox in state.sandboxes.values():
            if sandbox.state is SandboxState.READY:
                state.sandboxes.put(sandbox.id, replace(sandbox, state=SandboxState.STOPPING, doomed=True))

    stack.enter_context(patch.object(recovery, "_name", changed))


@mutation("a restart kills every container that runs")
def kill_what_runs(stack: ExitStack) -> None:
    resume = pods.resume

    def changed(state: State) -> None:
        resume(state)
        for container in state.containers.values():
            if container.state is ContainerState.RUNNING:
                pods.advance_container(state, container.id, ct.KillRequested())

    stack.enter_context(patch.object(pods, "resume", changed))


@mutation("of two records of one name the older one keeps it")
def name_the_oldest(stack: ExitStack) -> None:
    stack.enter_context(patch.object(recovery, "_age", lambda record: (-record.generation, 0)))


@mutation("of two records of one name the clock says which is newer")
def believe_the_clock(stack: ExitStack) -> None:
    stack.enter_context(patch.object(recovery, "_age", lambda record: (0, record.created_at_ns)))


@mutation("what is owed of a sandbox is tried again at once, without end")
def retry_at_once(stack: ExitStack) -> None:
    stack.enter_context(patch.object(sb, "retry_after_ns", lambda retries: 1))


@mutation("an image is removed though a container uses it")
def remove_a_used_image(stack: ExitStack) -> None:
    remove = images.remove_image

    def changed(state: State, call_id: int, request: Any) -> None:
        with patch.object(ContainerRecord, "every_image", ()):
            remove(state, call_id, request)

    stack.enter_context(patch.dict(node._ACTING, {rq.RemoveImage: changed}))


@mutation("the image of infra containers is not pinned")
def unpin_the_pause_image(stack: ExitStack) -> None:
    stack.enter_context(patch.object(naming, "pinned", lambda state, image: False))


@mutation("a container that ended while nobody looked has ended when somebody looks")
def end_when_it_is_seen(stack: ExitStack) -> None:
    ended = outcomes.effect_ended

    def changed(state: State, event: Any) -> None:
        if isinstance(event.outcome, ProcessExited):
            event = replace(event, outcome=replace(event.outcome, finished_at_ns=event.wall_ns))
        ended(state, event)

    stack.enter_context(patch.object(outcomes, "effect_ended", changed))


@mutation("a container that is stopped is killed after half its grace time")
def kill_too_early(stack: ExitStack) -> None:
    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if not isinstance(event, ct.StopRequested):
            return arrival
        orders = tuple(
            replace(one, after_ns=one.after_ns // 2) if isinstance(one, fx.ArmTimer) else one for one in arrival.orders
        )
        return replace(arrival, orders=orders)

    stack.enter_context(_arriving(ct.CONTAINER, change))


@mutation("a want of memory that killed a child is blamed for a kill of ours")
def blame_the_memory(stack: ExitStack) -> None:
    exited = ct._exited
    stack.enter_context(
        patch.object(ct, "_exited", lambda record, came_from, event: exited(record, ContainerState.RUNNING, event))
    )


@mutation("each pull that wants a layer has it fetched")
def fetch_for_each_pull(stack: ExitStack) -> None:
    enter = LAYER._enter

    def change(arrival: Arrival[Any], came_from: Any, event: Any) -> Arrival[Any]:
        if came_from is LayerState.FETCHING and isinstance(event, LayerWanted):
            return enter(arrival.record, LayerState.ABSENT, event)
        return arrival

    stack.enter_context(_arriving(LAYER, change))


@mutation("what a power cut left without a record is not swept")
def never_sweep(stack: ExitStack) -> None:
    stack.enter_context(patch.object(recovery, "sweep", lambda state: None))


@mutation("limits are changed where a container runs, and not in its record")
def forget_limits(stack: ExitStack) -> None:
    stack.enter_context(patch.object(limits, "merged", lambda given, before: before))


def hunt(one: Mutation, programs: int) -> tuple[int, str]:
    """The number of programs until the mutation is noticed, and by what; 0 when it is not."""
    with ExitStack() as stack:
        one.apply(stack)
        for seed in range(1, programs + 1):
            problems = run_program(random_program(seed)).problems
            if problems:
                return seed, problems[0]
    return 0, ""


def main() -> None:
    """Hunt for every mutation, or those named."""
    parser = argparse.ArgumentParser(prog="mutate", description=__doc__)
    parser.add_argument("--programs", type=int, default=PROGRAMS)
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    survivors = 0
    known: dict[str, int] = {}
    for one in MUTATIONS:
        if options.names and one.name not in options.names:
            continue
        began = time.monotonic()
        program, problem = hunt(one, options.programs)
        survivors += not program
        known[one.name] = program
        found = f"program {program:4d}: {problem[:110]}" if program else "SURVIVED"
        print(f"{one.name:32s} {one.what}\n    {found} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{survivors} survived")
    if options.keep is not None:
        options.keep.write_text(json.dumps(known, indent=1) + "\n")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
