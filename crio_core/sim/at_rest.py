"""Looks at a simulation when all is over: at rest memory, journal and world agree, and everything can be removed."""

from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import OperationError
from crio_core.node import quarantine
from crio_core.node.recovery import rest
from crio_core.node.state import TABLES
from crio_core.records import (
    ContainerRecord,
    ContainerState,
    ImageRecord,
    Part,
    Record,
    SandboxRecord,
    SandboxState,
)
from crio_core.sim.inspector import SWEPT, Inspector
from crio_core.sim.simulation import NETWORK
from crio_core.sim.world import GARBLED, row_of

TRIES_MAX = 24
"""Times that a client asks for a removal before it is called refused: a process can take a minute to die, a refusal
comes every 10 s, and each of a pod's containers is a reason of its own."""
REST_TICKS_MAX = 20_000
"""Things that may happen until a node that is left alone comes to rest."""


class AtRest:
    """Brings a simulation to its end.

    Args:
        inspector: Told what is wrong then; it has watched the simulation so far.
    """

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._sim = inspector.sim
        self._say = inspector.say

    def finish(self) -> None:
        """Let everything come to rest, compare, take everything down as a client would, and look for what is left."""
        sim = self._sim
        sim.release()
        if not sim.serving:
            sim.start_server()
        sim.set_network(NETWORK)
        self._rest("after the faults")
        self._compare()
        if sim.world.aside or self._inspector.state.quarantined:
            sim.crash_server()
            sim.repair()
            sim.start_server()
            self._rest("after the repair")
            self._compare()
        self._take_down()
        self._rest("after everything was removed")
        self._empty()

    def _rest(self, when: str) -> None:
        if not self._sim.run(ticks_max=REST_TICKS_MAX):
            self._say("I11", f"no rest {when}: lanes {self._sim.busy[:5]}, timers {self._sim.timers[:5]}")
        for call in self._sim.calls.values():
            if call.open:
                self._say("I1", f"call {call.id} has no answer {when}: {call.request!r}")
                call.died = True
        if self._sim.busy or self._sim.timers:
            self._say("I11", f"under way {when}: lanes {self._sim.busy[:5]}, timers {self._sim.timers[:5]}")

    def _compare(self) -> None:
        """At rest, memory, journal and world say the same."""
        self._inspector.kept("at rest")
        world, state = self._sim.world, self._inspector.state
        memory: tuple[Record, ...] = (*state.sandboxes.values(), *state.containers.values(), *state.images.values())
        for record in memory:
            row = world.rows.get((record.KIND, record.id))
            if row is None:
                self._say("I3", f"{record.KIND} {record.id} ({record.state.value}) is not in the journal")
            else:
                self._same(record, row_of(record.KIND, row))
        known = {(record.KIND, record.id): True for record in memory}
        for key in world.rows:
            if key not in known and key not in world.aside and world.rows[key] != GARBLED:
                self._say("I3", f"the journal has a record that the server has not: {key}")
        for thing in world.residue(memory):
            # While something is set aside nothing is swept.
            if not (state.quarantined and thing.rpartition(" ")[0] in SWEPT):
                self._say("I4", f"nobody owns: {thing}")
        for session_id, container_id in world.execs.items():
            self._say("I22", f"the command of {session_id} runs in container {container_id}, and nobody waits for it")
        names: dict[tuple[object, ...], str] = {}
        for record in state.sandboxes.values():
            self._sandbox_is_true(record)
            # One with a container that cannot be read has to stay, and had given its name away before.
            if record.state is not SandboxState.OWING and not quarantine.stray_of(state, record.id):
                meta = record.metadata
                other = names.setdefault((meta.namespace, meta.name, meta.uid, meta.attempt), record.id)
                if other != record.id:
                    self._say("I8", f"sandboxes {other} and {record.id} have one name")
        for record in state.containers.values():
            self._container_is_true(record)
            if record.state is not ContainerState.OWING:
                other = names.setdefault((record.sandbox_id, record.metadata.name, record.metadata.attempt), record.id)
                if other != record.id:
                    self._say("I8", f"containers {other} and {record.id} have one name")
        for image in state.images.values():
            for layer in image.layers:
                if layer not in world.layers:
                    self._say("I10", f"image {image.id} is listed without its layer {layer}")
            for blob, layer in zip(image.blobs, image.layers, strict=True):
                if (blob, layer) not in world.proven:
                    self._say("I19", f"image {image.id} has layer {layer}, and nobody saw that its blob is that")
        if state.unsaved.keys() or state.sessions.keys() or state.pulls.keys() or state.waiters.keys():
            self._say("I11", f"left in memory: {state.unsaved.keys()} {state.sessions.keys()} {state.waiters.keys()}")

    def _same(self, record: Record, row: Record) -> None:
        """What lies in the journal is what memory says, but for what meant something in an earlier boot only."""
        if not isinstance(record, ImageRecord) and not isinstance(row, ImageRecord):
            record, row = rest(record), rest(row)
        mine, other = dict(vars(record)), dict(vars(row))
        for name in ("pid", "monitor_pid", "pins"):
            mine.pop(name, None), other.pop(name, None)
        differ = [f"{name}: {other[name]!r} for {mine[name]!r}" for name in mine if mine[name] != other[name]]
        if differ and not quarantine.stray_of(self._inspector.state, record.id):
            self._say(
                "I3", f"{record.KIND} {record.id} ({record.state.value}) is in the journal with {', '.join(differ)}"
            )

    def _sandbox_is_true(self, record: SandboxRecord) -> None:
        world = self._sim.world
        match record.state:
            case SandboxState.READY:
                if record.boot_id != world.boot_id or record.id not in world.files:
                    self._say("I9", f"sandbox {record.id} is ready and has no files")
                if record.pins and record.id not in world.pins:
                    self._say("I9", f"sandbox {record.id} is ready and has no namespaces")
                # Two faults at once may hide it: no word of the stop in the journal, and a crash in the midst of it.
                known = record.id not in world.unsaved
                if (
                    Part.NETWORK in record.plan
                    and known
                    and not (record.id in world.links and record.id in world.addresses)
                ):
                    self._say("I9", f"sandbox {record.id} is ready and has no network")
            case SandboxState.STOPPED:
                for name, table in (
                    ("namespaces", world.pins),
                    ("a link", world.links),
                    ("an address", world.addresses),
                ):
                    if record.id in table:
                        self._say("I4", f"sandbox {record.id} is stopped, at rest, and still has {name}")
            case SandboxState.BROKEN:
                pass
            case SandboxState.STOPPING | SandboxState.REMOVING if quarantine.stray_of(self._inspector.state, record.id):
                pass  # What cannot be read of it can be neither stopped nor removed.
            case _:
                self._say("I11", f"sandbox {record.id} rests in state {record.state.value}")

    def _container_is_true(self, record: ContainerRecord) -> None:
        alive = self._sim.world.alive(record.id)
        match record.state:
            case ContainerState.RUNNING | ContainerState.CREATED:
                self._has_images(record)
                if not alive:
                    self._say("I6", f"container {record.id} is shown as {record.state.value} and has no process")
                elif self._sim.world.processes[record.id].running != (record.state is ContainerState.RUNNING):
                    self._say("I6", f"container {record.id} is shown as {record.state.value}, which its process is not")
            case ContainerState.EXITED:
                self._inspector.exit_is_true(record)
            case _:
                self._say("I11", f"container {record.id} rests in state {record.state.value}")

    def _has_images(self, record: ContainerRecord) -> None:
        if any(layer in self._sim.world.damaged for layer in record.every_layer):
            return
        world = self._sim.world
        # A crash between a removal that failed, and did its work, and the next writing of the record loses the image.
        if any(one in world.struck or one in world.unsaved for one in record.every_image):
            return
        for image_id in record.every_image:
            if image_id not in self._inspector.state.images:
                self._say("I10", f"container {record.id} is {record.state.value}, and its image {image_id} is gone")

    def _take_down(self) -> None:
        pods = self._insist(rq.ListPodSandbox())
        assert isinstance(pods, rp.Sandboxes)
        for number, pod in enumerate(pods.items):
            if number % 2:
                self._insist(rq.StopPodSandbox(sandbox_id=pod.id))
            self._insist(rq.RemovePodSandbox(sandbox_id=pod.id))
        self._sim.run(ticks_max=REST_TICKS_MAX)
        images = self._insist(rq.ListImages())
        assert isinstance(images, rp.Images)
        for image in images.items:
            if self._inspector.state.settings.pause_image in image.tags and not image.pinned:
                self._say("I10", f"image {image.id} is that of infra containers, and is not pinned")
            self._insist(rq.RemoveImage(image=ImageSpec(image=image.id)))

    def _insist(self, request: rq.Request) -> rp.Result | None:
        """Ask as a client that tries again: a process may take a while to die."""
        for _ in range(TRIES_MAX):
            try:
                return self._sim.ask(request)
            except OperationError as error:
                refusal = error
        self._say("I12", f"nothing goes wrong any more, and a client is refused: {request!r}: {refusal!r}")
        return None

    def _empty(self) -> None:
        state = self._inspector.state
        for thing in self._sim.world.residue(()):
            self._say("I4", f"left when everything was removed: {thing}")
        for key in self._sim.world.rows:
            self._say("I4", f"record left when everything was removed: {key}")
        memory = {name: getattr(state, name) for name in TABLES if name not in ("quarantined", "strays")}
        for name, table in {**memory, "inflight": state.history.inflight, "lanes": state.history.lanes}.items():
            left = table.keys()
            if left:
                self._say("I4", f"left in memory when everything was removed: {name} {left[:3]}")
        for text in self._sim.world.violations:
            self._say("I13", text)
