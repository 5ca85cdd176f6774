"""What a server must leave alone: whatever was answered as ready or running, until somebody ends it.

An end is a stop or a removal that was asked for, even if the answer never came, or something that befell it: an exit, a
kill from outside, namespaces that were unmounted, a power cut, a record that could not be written. Everything else has
to be there after every restart and at rest, with the process, the addresses and the times that it had (I20, R32).
"""

from collections.abc import Iterator

from crio_core import events as ev
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.node.specs import infra_id
from crio_core.node.state import State
from crio_core.records import ContainerRecord, ContainerState, SandboxRecord, SandboxState
from crio_core.sim.simulation import Call, Simulation
from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A record as it was when it was answered, with the pod that it is or belongs to."""

    sandbox_id: str
    record: SandboxRecord | ContainerRecord


class Survivors:
    """Remembers what was answered and nobody ended.

    Args:
        sim: The simulation; it is asked what befell what.
    """

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._kept: dict[str, _Kept] = {}
        self._ended: dict[str, bool] = {}
        """Whose end was asked for: a stop that a crash cut off may still have its effect, so nothing is promised."""
        self._boots = sim.world.boots

    def happened(self, event: ev.Event) -> None:
        """Take note of what ends things on purpose, and of power cuts."""
        if isinstance(event, ev.JournalLoaded) and self._boots != self._sim.world.boots:
            self._boots = self._sim.world.boots
            self._kept.clear()
        if isinstance(event, ev.CallArrived):
            match event.request:
                case rq.StopContainer(container_id=key) | rq.RemoveContainer(container_id=key):
                    self._ended[key] = True
                case rq.StopPodSandbox(sandbox_id=key) | rq.RemovePodSandbox(sandbox_id=key):
                    self._ended[key] = True

    def answered(self, call: Call, state: State) -> None:
        """Remember what a call was told to be ready or running, if it still is."""
        match call.request, call.result:
            case rq.RunPodSandbox(), rp.Created(id=key):
                sandbox = state.sandboxes.get(key)
                if sandbox is not None and sandbox.state is SandboxState.READY:
                    self._kept[key] = _Kept(sandbox_id=key, record=sandbox)
            case rq.StartContainer(container_id=key), rp.Done():
                container = state.containers.get(key)
                # One of an earlier boot has no process id, and is on its way to be seen ended. One that was stopped
                # because its start had failed is on its way out, though a crash has made the server forget both.
                process = self._sim.world.processes.get(key)
                leaving = process is not None and process.leaving
                if (
                    container is not None
                    and container.state is ContainerState.RUNNING
                    and container.pid
                    and not leaving
                ):
                    self._kept[key] = _Kept(sandbox_id=container.sandbox_id, record=container)

    def problems(self, state: State) -> Iterator[str]:
        """What should be there and is not, or is not what it was."""
        for key, kept in tuple(self._kept.items()):
            if self._has_ended(key, kept):
                del self._kept[key]
            elif isinstance(kept.record, SandboxRecord):
                yield from self._of_sandbox(kept.record, state.sandboxes.get(key))
            else:
                yield from self._of_container(kept.record, state.containers.get(key))

    def _has_ended(self, key: str, kept: _Kept) -> bool:
        world = self._sim.world
        ids = (key, infra_id(key)) if isinstance(kept.record, SandboxRecord) else (key,)
        asked = key in self._ended or kept.sandbox_id in self._ended
        # A pod of which the journal does not know that it was ready is removed with what is in it.
        lost = kept.sandbox_id in world.unsaved
        return asked or lost or any(one in world.struck or one in world.unsaved for one in ids)

    def _of_sandbox(self, before: SandboxRecord, now: SandboxRecord | None) -> Iterator[str]:
        world, key = self._sim.world, before.id
        if now is None or now.state is not SandboxState.READY:
            yield f"sandbox {key} was ready, nobody ended it, and it is {now.state.value if now else 'gone'}"
            return
        for name in ("pins", "ips", "created_at_ns", "attachment"):
            if getattr(before, name) != getattr(now, name):
                yield f"sandbox {key}: {name} was {getattr(before, name)} and is {getattr(now, name)}"
        if before.ips and world.addresses.get(key) not in before.ips:
            yield f"sandbox {key} was given {before.ips}, and the plugins know {world.addresses.get(key)}"
        if before.pins and world.pins.get(key) != {pin.kind: pin.inode for pin in before.pins}:
            yield f"sandbox {key} has lost its namespaces"

    def _of_container(self, before: ContainerRecord, now: ContainerRecord | None) -> Iterator[str]:
        key = before.id
        if now is None or now.state is not ContainerState.RUNNING:
            yield f"container {key} was running, nobody ended it, and it is {now.state.value if now else 'gone'}"
            return
        for name in ("pid", "pid_start_ticks", "created_at_ns", "started_at_ns"):
            if getattr(before, name) != getattr(now, name):
                yield f"container {key}: {name} was {getattr(before, name)} and is {getattr(now, name)}"
        process = self._sim.world.processes.get(key)
        if process is None or not process.alive or process.pid != before.pid:
            yield f"container {key} was running, nobody ended it, and its process {before.pid} is gone"
