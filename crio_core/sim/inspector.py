"""Watches a simulation while it runs, and holds each answer and each order against `spec/invariants.md`."""

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ContainerConfig
from crio_core.lifecycle.container import START_ERROR_CODE, UNKNOWN_EXIT_CODE
from crio_core.node import naming
from crio_core.node.sessions import SERVED
from crio_core.node.state import State
from crio_core.records import (
    ContainerRecord,
    ContainerState,
    Failure,
    ImageRecord,
    ImageState,
    Part,
    SandboxState,
    SessionState,
    decode_request,
)
from crio_core.sim.lives import SIGKILL_CODE
from crio_core.sim.orders import LOOKED_AT, Orders
from crio_core.sim.players import Players
from crio_core.sim.simulation import Call, Simulation
from crio_core.sim.survivors import Survivors

SWEPT = ("writable layer", "exit file", "layer")
"""Kinds of things on disk that may be left without a record, and are looked for at every start."""


class Inspector:
    """Watches a simulation and says what is wrong with it."""

    def __init__(self, sim: Simulation, players: Players) -> None:
        self.sim = sim
        self.players = players
        self.problems: list[str] = []
        self._removed: dict[str, int] = {}
        """Sandboxes whose removal was answered, with the number of the boot."""
        self._tokens: dict[str, bool] = {}
        """Those that have opened a stream."""
        self._answered: set[int] = set()
        """Calls whose answer was ordered, and may still be on its way."""
        self._orders = Orders(sim, self.say)
        self._survivors = Survivors(sim)
        sim.on_reply = self._replied
        sim.on_event = self._stepped
        sim.on_crash = self._crashed

    def say(self, invariant: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(f"{invariant}: {text}")

    # --- while it runs ------------------------------------------------------------------------------------------

    def _stepped(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        if isinstance(event, ev.EffectEnded):
            if isinstance(event.outcome, ev.Failed):
                self._orders.failed(event.effect_id)
        else:
            self._orders.happened(event, self.state)
            self._survivors.happened(event)
            if isinstance(event, ev.JournalLoaded):
                self.kept("after a restart")
        self._streams_end()
        for effect in effects:
            order = effect.order
            if type(order) in LOOKED_AT:
                self._orders.ordered(effect)
            elif isinstance(order, fx.Reply):
                self._answered.add(order.call_id)
                if self.sim.calls[order.call_id].cancelled:
                    self.say("I2", f"call {order.call_id} was answered after its caller had gone")

    def _refused(self, call: Call, failure: Failure) -> None:
        """A name may be taken by another object, not by the caller's own earlier try, nor by what was removed (R1)."""
        if failure.reason not in ("SANDBOX_NAME_TAKEN", "CONTAINER_NAME_TAKEN"):
            return
        for other in self.sim.calls.values():
            # One whose answer is on its way has been overtaken by the stop that another client asked for.
            if other.open and other.request == call.request and other.id not in self._answered:
                self.say("I8", f"a retry of a call under way was refused: {failure.message}")
        for removed, boots in self._removed.items():
            # A power cut may bring back what was removed shortly before, and so may a journal that failed to forget it.
            known = boots == self.sim.world.boots and removed not in self.sim.world.unsaved
            if removed in failure.message and known:
                self.say("I8", f"the name of removed {removed} was refused: {failure.message}")

    def kept(self, when: str) -> None:
        """Look for what was answered as ready or running, and nobody ended (I20)."""
        for problem in self._survivors.problems(self.state):
            self.say("I20", f"{when}: {problem}")

    def _replied(self, call: Call) -> None:
        self.players.heard(call)
        self._survivors.answered(call, self.state)
        if isinstance(call.result, Failure):
            self._refused(call, call.result)
        match call.result:
            case rp.Done() if isinstance(call.request, rq.UpdateContainerResources):
                self._limits_hold(call, call.request)
            case rp.Done():
                self._ended(call.request)
            case rp.Created(id=key) if isinstance(call.request, rq.RunPodSandbox):
                self._sandbox_exists(key)
            case rp.Created(id=key):
                self._container_exists(key)
            case rp.ContainerFound() as found:
                self.exit_is_true(found.container)
            case rp.Opened() if isinstance(call.request, rq.OpenStream):
                self._opened_once(call.request.token)

    def _ended(self, request: rq.Request) -> None:
        """A stop or a removal was answered with success, or something that ends nothing."""
        match request:
            case rq.StopContainer() | rq.RemoveContainer():
                if self.sim.world.alive(request.container_id):
                    self.say("I5", f"{request!r} was answered while its process runs")
            case rq.StopPodSandbox() | rq.RemovePodSandbox():
                self._no_process(request)
                if isinstance(request, rq.RemovePodSandbox):
                    self._removed[request.sandbox_id] = self.sim.world.boots
            case rq.RemoveImage():
                self._image_is_forgotten(request)

    def _limits_hold(self, call: Call, request: rq.UpdateContainerResources) -> None:
        """What an update was answered for is so, and is shown, unless another one was asked for since (I23)."""
        record = self.state.containers.get(request.container_id)
        later = any(
            isinstance(one.request, rq.UpdateContainerResources) and one.request.container_id == request.container_id
            for one in self.sim.calls.values()
            if one.id > call.id
        )
        if later or record is None or not self.sim.world.alive(record.id):
            return
        shown = decode_request(ContainerConfig, record.request).linux.resources
        group = self.sim.world.cgroups[record.id]
        for asked, kept, holds in (
            (request.resources.cpu_shares, shown.cpu_shares, group.get("cpu", {}).get("shares")),
            (
                request.resources.memory_limit_in_bytes,
                shown.memory_limit_in_bytes,
                group.get("memory", {}).get("limit"),
            ),
        ):
            if asked and not asked == kept == holds:
                self.say("I23", f"container {record.id} was to have {asked}, has {holds} and shows {kept}")

    def _opened_once(self, token: str) -> None:
        if token in self._tokens:
            self.say("I22", "a token opened a second stream")
        self._tokens[token] = True

    def _streams_end(self) -> None:
        """A stream whose container or pod is over has been told to end."""
        for session in self.state.sessions.values():
            if session.stream is None or session.state is SessionState.DRAINING:
                continue
            container, pod = self.state.containers.get(session.target_id), self.state.sandboxes.get(session.target_id)
            served = container is not None and container.state in SERVED
            if not served and (pod is None or pod.state is not SandboxState.READY):
                self.say("I22", f"{session.id} is {session.state.value}, and what it is for is over")

    def _no_process(self, request: rq.StopPodSandbox | rq.RemovePodSandbox) -> None:
        for key, sandbox_id in self._orders.sandbox_of.items():
            if sandbox_id == request.sandbox_id and self.sim.world.alive(key):
                self.say("I5", f"{request!r} was answered while container {key} runs")

    def _image_is_forgotten(self, request: rq.RemoveImage) -> None:
        """A removal is answered when the next server would not know the image either."""
        world = self.sim.world
        kept = [record for record in world.records() if isinstance(record, ImageRecord)]
        left = naming.find_among(kept, request.image)
        # One that has lost a layer is no image to the next server either.
        whole = left is not None and all(layer in world.layers for layer in left.layers)
        if left is None or not whole or left.id in self.state.images or left.id in world.unsaved:
            return
        # One that a pull is recording comes after the removal.
        pulls = self.state.pulls.values()
        if not any(one.state is ImageState.RECORDING and one.image and one.image.id == left.id for one in pulls):
            self.say("I3", f"{request!r} was answered while the journal has the image")

    def _sandbox_exists(self, sandbox_id: str) -> None:
        world, record = self.sim.world, self.state.sandboxes.get(sandbox_id)
        if record is None or record.state is not SandboxState.READY:
            return  # It was stopped before the answer got out.
        if record.boot_id != world.boot_id:
            self.say("I9", f"sandbox {sandbox_id} of another boot was answered as ready")
            return
        if sandbox_id in world.lost:
            return  # Somebody else took its namespaces, and the look after the restart has not come back.
        if sandbox_id in world.unsaved:
            return  # Its stop could not be written down before a crash: the look after the restart finds that out.
        if sandbox_id not in world.files or (record.pins and sandbox_id not in world.pins):
            self.say("I9", f"sandbox {sandbox_id} was answered and does not exist")
        if Part.NETWORK in record.plan and (sandbox_id not in world.links or sandbox_id not in world.addresses):
            self.say("I9", f"sandbox {sandbox_id} was answered and has no network")

    def _container_exists(self, container_id: str) -> None:
        world, record = self.sim.world, self.state.containers.get(container_id)
        if record is not None and record.state is ContainerState.EXITED:
            return  # A repeated request; a crash may have interrupted the removal that another client had asked for.
        if container_id in world.unsaved:
            return  # Its end could not be written down before a crash: the look after the restart finds that out.
        if container_id not in world.runtime and container_id not in world.unknowable:
            self.say("I9", f"container {container_id} was answered and does not exist")

    def exit_is_true(self, record: ContainerRecord) -> None:
        """Hold how a container is said to have ended against how it did (I6, I7)."""
        if record.state not in (ContainerState.EXITED, ContainerState.REMOVING):
            return
        if self.sim.world.alive(record.id):
            self.say("I6", f"container {record.id} is shown as exited while its process runs")
        truth = self.sim.world.ends.get(record.id)
        guessed = record.reason in ("Unknown", "StartError")
        if not guessed and truth is not None and record.finished_at_ns != truth.at_ns:
            self.say("I7", f"container {record.id} ended at {truth.at_ns} and shows {record.finished_at_ns}")
        if record.reason == "OOMKilled" and not self._memory_killed(record.id):
            self.say("I7", f"container {record.id} ended with {truth} and shows that it ran out of memory")
        if record.reason == "StartError" and record.exit_code == START_ERROR_CODE:
            return
        if record.reason == "Unknown" and record.exit_code == UNKNOWN_EXIT_CODE:
            if record.id not in self.sim.world.unknowable and record.id not in self.sim.world.unsaved:
                self.say("I7", f"container {record.id} ended with {truth}, which could be known, and shows unknown")
        elif truth is None or record.exit_code != truth.code:
            self.say("I7", f"container {record.id} ended with {truth} and shows {record.exit_code}")
        elif truth.oom and record.id not in self._orders.ever_killed and record.reason != "OOMKilled":
            self.say("I7", f"container {record.id} ran out of memory and shows {record.reason}")

    def _memory_killed(self, container_id: str) -> bool:
        """Whether it may be so: a first process that was killed by us after a child of it had run out of memory is
        not, unless the server does not remember having killed it.
        """
        truth = self.sim.world.ends.get(container_id)
        if truth is None or truth.code != SIGKILL_CODE:
            return False
        return truth.oom or (container_id in self.sim.world.thirsty and container_id not in self._orders.killed)

    def _crashed(self) -> None:
        """The server is down: everything that exists outside must have its record, or nobody will ever know of it."""
        self._orders.crashed()
        world = self.sim.world
        for thing in world.residue(world.records()):
            kind, _, key = thing.rpartition(" ")
            # A power cut may take the row and leave the file; the sweep at the start, which needs time, knows of it.
            if kind != "layer" and not (kind in SWEPT and key in world.old_containers):
                self.say("I3", f"after a crash nothing in the journal owns: {thing}")

    @property
    def state(self) -> State:
        """Of the server that runs."""
        assert self.sim.node is not None
        return self.sim.node._state
