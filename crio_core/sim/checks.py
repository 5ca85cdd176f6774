"""Runs programs, holds what becomes of them against `spec/invariants.md`, and shrinks those that break an invariant."""

from collections.abc import Callable
from dataclasses import dataclass

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import LocalError, OperationError
from crio_core.lifecycle.container import START_ERROR_CODE, UNKNOWN_EXIT_CODE
from crio_core.node import naming, quarantine
from crio_core.node.recovery import rest
from crio_core.node.sessions import SERVED
from crio_core.node.state import State
from crio_core.records import (
    ContainerRecord,
    ContainerState,
    Failure,
    ImageRecord,
    Part,
    Record,
    SandboxRecord,
    SandboxState,
    SessionState,
)
from crio_core.sim.hands import SIGKILL_CODE
from crio_core.sim.orders import LOOKED_AT, Orders
from crio_core.sim.players import Players
from crio_core.sim.profiles import FAULTS
from crio_core.sim.programs import Action, Program
from crio_core.sim.simulation import NETWORK, Call, Simulation
from crio_core.sim.survivors import Survivors
from crio_core.sim.world import GARBLED, row_of

SWEPT = ("writable layer", "exit file", "layer")
"""Kinds of things on disk that may be left without a record, and are looked for at every start."""
TRIES_MAX = 8
"""Times that a client asks for a removal before it is called refused: a process can take a minute to die."""
REST_TICKS_MAX = 20_000
"""Things that may happen until a node that is left alone comes to rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a program showed: `problems` name the invariant each, `calls` and `steps` count."""

    problems: tuple[str, ...]
    calls: int
    steps: int


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
        self._orders = Orders(sim, self._say)
        self._survivors = Survivors(sim)
        sim.on_reply = self._replied
        sim.on_event = self._stepped
        sim.on_crash = self._crashed

    def _say(self, invariant: str, text: str) -> None:
        self.problems.append(f"{invariant}: {text}")

    # --- while it runs ------------------------------------------------------------------------------------------

    def _stepped(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        if isinstance(event, ev.EffectEnded):
            if isinstance(event.outcome, ev.Failed):
                self._orders.failed(event.effect_id)
        else:
            self._orders.happened(event, self._state)
            self._survivors.happened(event)
            if isinstance(event, ev.JournalLoaded):
                self._kept("after a restart")
        self._streams_end()
        for effect in effects:
            order = effect.order
            if type(order) in LOOKED_AT:
                self._orders.ordered(effect)
            elif isinstance(order, fx.Reply):
                self._answered.add(order.call_id)
                if self.sim.calls[order.call_id].cancelled:
                    self._say("I2", f"call {order.call_id} was answered after its caller had gone")

    def _refused(self, call: Call, failure: Failure) -> None:
        """A name may be taken by another object, not by the caller's own earlier try, nor by what was removed (R1)."""
        if failure.reason not in ("SANDBOX_NAME_TAKEN", "CONTAINER_NAME_TAKEN"):
            return
        for other in self.sim.calls.values():
            # One whose answer is on its way has been overtaken by the stop that another client asked for.
            if other.open and other.request == call.request and other.id not in self._answered:
                self._say("I8", f"a retry of a call under way was refused: {failure.message}")
        for removed, boots in self._removed.items():
            # A power cut may bring back what was removed shortly before, and so may a journal that failed to forget it.
            known = boots == self.sim.world.boots and removed not in self.sim.world.unsaved
            if removed in failure.message and known:
                self._say("I8", f"the name of removed {removed} was refused: {failure.message}")

    def _kept(self, when: str) -> None:
        for problem in self._survivors.problems(self._state):
            self._say("I20", f"{when}: {problem}")

    def _replied(self, call: Call) -> None:
        self.players.heard(call)
        self._survivors.answered(call, self._state)
        if isinstance(call.result, Failure):
            self._refused(call, call.result)
        match call.result:
            case rp.Done():
                self._ended(call.request)
            case rp.Created(id=key) if isinstance(call.request, rq.RunPodSandbox):
                self._sandbox_exists(key)
            case rp.Created(id=key):
                self._container_exists(key)
            case rp.ContainerFound() as found:
                self._exit_is_true(found.container)
            case rp.Opened() if isinstance(call.request, rq.OpenStream):
                self._opened_once(call.request.token)

    def _ended(self, request: rq.Request) -> None:
        """A stop or a removal was answered with success, or something that ends nothing."""
        match request:
            case rq.StopContainer() | rq.RemoveContainer():
                if self.sim.world.alive(request.container_id):
                    self._say("I5", f"{request!r} was answered while its process runs")
            case rq.StopPodSandbox() | rq.RemovePodSandbox():
                self._no_process(request)
                if isinstance(request, rq.RemovePodSandbox):
                    self._removed[request.sandbox_id] = self.sim.world.boots
            case rq.RemoveImage():
                self._image_is_forgotten(request)

    def _opened_once(self, token: str) -> None:
        if token in self._tokens:
            self._say("I22", "a token opened a second stream")
        self._tokens[token] = True

    def _streams_end(self) -> None:
        """A stream whose container or pod is over has been told to end."""
        for session in self._state.sessions.values():
            if session.stream is None or session.state is SessionState.DRAINING:
                continue
            container, pod = self._state.containers.get(session.target_id), self._state.sandboxes.get(session.target_id)
            served = container is not None and container.state in SERVED
            if not served and (pod is None or pod.state is not SandboxState.READY):
                self._say("I22", f"{session.id} is {session.state.value}, and what it is for is over")

    def _no_process(self, request: rq.StopPodSandbox | rq.RemovePodSandbox) -> None:
        for key, sandbox_id in self._orders.sandbox_of.items():
            if sandbox_id == request.sandbox_id and self.sim.world.alive(key):
                self._say("I5", f"{request!r} was answered while container {key} runs")

    def _image_is_forgotten(self, request: rq.RemoveImage) -> None:
        """A removal is answered when the next server would not know the image either."""
        world = self.sim.world
        kept = [record for record in world.records() if isinstance(record, ImageRecord)]
        left = naming.find_among(kept, request.image)
        # One that has lost a layer is no image to the next server either.
        whole = left is not None and all(layer in world.layers for layer in left.layers)
        if left is not None and whole and left.id not in self._state.images and left.id not in world.unsaved:
            self._say("I3", f"{request!r} was answered while the journal has the image")

    def _sandbox_exists(self, sandbox_id: str) -> None:
        world, record = self.sim.world, self._state.sandboxes.get(sandbox_id)
        if record is None or record.state is not SandboxState.READY:
            return  # It was stopped before the answer got out.
        if record.boot_id != world.boot_id:
            self._say("I9", f"sandbox {sandbox_id} of another boot was answered as ready")
            return
        if sandbox_id in world.lost:
            return  # Somebody else took its namespaces, and the look after the restart has not come back.
        if sandbox_id in world.unsaved:
            return  # Its stop could not be written down before a crash: the look after the restart finds that out.
        if sandbox_id not in world.files or (record.pins and sandbox_id not in world.pins):
            self._say("I9", f"sandbox {sandbox_id} was answered and does not exist")
        if Part.NETWORK in record.plan and (sandbox_id not in world.links or sandbox_id not in world.addresses):
            self._say("I9", f"sandbox {sandbox_id} was answered and has no network")

    def _container_exists(self, container_id: str) -> None:
        world, record = self.sim.world, self._state.containers.get(container_id)
        if record is not None and record.state is ContainerState.EXITED:
            return  # A repeated request; a crash may have interrupted the removal that another client had asked for.
        if container_id not in world.runtime and container_id not in world.unknowable:
            self._say("I9", f"container {container_id} was answered and does not exist")

    def _exit_is_true(self, record: ContainerRecord) -> None:
        if record.state not in (ContainerState.EXITED, ContainerState.REMOVING):
            return
        if self.sim.world.alive(record.id):
            self._say("I6", f"container {record.id} is shown as exited while its process runs")
        truth = self.sim.world.ends.get(record.id)
        guessed = record.reason in ("Unknown", "StartError")
        if not guessed and truth is not None and record.finished_at_ns != truth.at_ns:
            self._say("I7", f"container {record.id} ended at {truth.at_ns} and shows {record.finished_at_ns}")
        if record.reason == "OOMKilled" and not self._memory_killed(record.id):
            self._say("I7", f"container {record.id} ended with {truth} and shows that it ran out of memory")
        if record.reason == "StartError" and record.exit_code == START_ERROR_CODE:
            return
        if record.reason == "Unknown" and record.exit_code == UNKNOWN_EXIT_CODE:
            if record.id not in self.sim.world.unknowable and record.id not in self.sim.world.unsaved:
                self._say("I7", f"container {record.id} ended with {truth}, which could be known, and shows unknown")
        elif truth is None or record.exit_code != truth.code:
            self._say("I7", f"container {record.id} ended with {truth} and shows {record.exit_code}")
        elif truth.oom and record.id not in self._orders.ever_killed and record.reason != "OOMKilled":
            self._say("I7", f"container {record.id} ran out of memory and shows {record.reason}")

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
                self._say("I3", f"after a crash nothing in the journal owns: {thing}")

    # --- at the end ---------------------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        assert self.sim.node is not None
        return self.sim.node._state

    def finish(self) -> None:
        """Let everything come to rest, compare, take everything down as a client would, and look for what is left."""
        sim = self.sim
        sim.release()
        if not sim.serving:
            sim.start_server()
        sim.set_network(NETWORK)
        self._rest("after the faults")
        self._compare()
        if sim.world.aside or self._state.quarantined:
            sim.crash_server()
            sim.repair()
            sim.start_server()
            self._rest("after the repair")
            self._compare()
        self._take_down()
        self._rest("after everything was removed")
        self._empty()

    def _rest(self, when: str) -> None:
        if not self.sim.run(ticks_max=REST_TICKS_MAX):
            self._say("I11", f"no rest {when}: lanes {self.sim.busy[:5]}, timers {self.sim.timers[:5]}")
        for call in self.sim.calls.values():
            if call.open:
                self._say("I1", f"call {call.id} has no answer {when}: {call.request!r}")
                call.died = True
        if self.sim.busy or self.sim.timers:
            self._say("I11", f"under way {when}: lanes {self.sim.busy[:5]}, timers {self.sim.timers[:5]}")

    def _compare(self) -> None:
        """At rest, memory, journal and world say the same."""
        self._kept("at rest")
        world, state = self.sim.world, self._state
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
            if record.state is not SandboxState.OWING:
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
        if differ and not quarantine.stray_of(self._state, record.id):
            self._say(
                "I3", f"{record.KIND} {record.id} ({record.state.value}) is in the journal with {', '.join(differ)}"
            )

    def _sandbox_is_true(self, record: SandboxRecord) -> None:
        world = self.sim.world
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
            case SandboxState.STOPPING | SandboxState.REMOVING if quarantine.stray_of(self._state, record.id):
                pass  # What cannot be read of it can be neither stopped nor removed.
            case _:
                self._say("I11", f"sandbox {record.id} rests in state {record.state.value}")

    def _container_is_true(self, record: ContainerRecord) -> None:
        alive = self.sim.world.alive(record.id)
        match record.state:
            case ContainerState.RUNNING | ContainerState.CREATED:
                self._has_images(record)
                if not alive:
                    self._say("I6", f"container {record.id} is shown as {record.state.value} and has no process")
                elif self.sim.world.processes[record.id].running != (record.state is ContainerState.RUNNING):
                    self._say("I6", f"container {record.id} is shown as {record.state.value}, which its process is not")
            case ContainerState.EXITED:
                self._exit_is_true(record)
            case _:
                self._say("I11", f"container {record.id} rests in state {record.state.value}")

    def _has_images(self, record: ContainerRecord) -> None:
        if any(layer in self.sim.world.damaged for layer in record.every_layer):
            return
        if any(one in self.sim.world.struck for one in record.every_image):
            return
        for image_id in record.every_image:
            if image_id not in self._state.images:
                self._say("I10", f"container {record.id} is {record.state.value}, and its image {image_id} is gone")

    def _take_down(self) -> None:
        pods = self._insist(rq.ListPodSandbox())
        assert isinstance(pods, rp.Sandboxes)
        for number, pod in enumerate(pods.items):
            if number % 2:
                self._insist(rq.StopPodSandbox(sandbox_id=pod.id))
            self._insist(rq.RemovePodSandbox(sandbox_id=pod.id))
        self.sim.run(ticks_max=REST_TICKS_MAX)
        images = self._insist(rq.ListImages())
        assert isinstance(images, rp.Images)
        for image in images.items:
            if self._state.settings.pause_image in image.tags and not image.pinned:
                self._say("I10", f"image {image.id} is that of infra containers, and is not pinned")
            self._insist(rq.RemoveImage(image=ImageSpec(image=image.id)))

    def _insist(self, request: rq.Request) -> rp.Result | None:
        """Ask as a client that tries again: a process may take a while to die."""
        for _ in range(TRIES_MAX):
            try:
                return self.sim.ask(request)
            except OperationError as error:
                refusal = error
        self._say("I12", f"nothing goes wrong any more, and a client is refused: {request!r}: {refusal!r}")
        return None

    def _empty(self) -> None:
        state = self._state
        for thing in self.sim.world.residue(()):
            self._say("I4", f"left when everything was removed: {thing}")
        for key in self.sim.world.rows:
            self._say("I4", f"record left when everything was removed: {key}")
        tables = (
            "sandboxes",
            "containers",
            "images",
            "pulls",
            "layers",
            "sessions",
            "sandbox_names",
            "container_names",
        )
        memory = {
            name: getattr(state, name) for name in (*tables, "members", "waiters", "calls", "infra_pulls", "unsaved")
        }
        for name, table in {**memory, "inflight": state.history.inflight, "lanes": state.history.lanes}.items():
            left = table.keys()
            if left:
                self._say("I4", f"left in memory when everything was removed: {name} {left[:3]}")
        for text in self.sim.world.violations:
            self._say("I13", text)


def run_program(program: Program, *, watch: Callable[[Simulation], None] | None = None) -> Verdict:
    """Run a program, then its end, and judge it."""
    sim = Simulation(program.seed, faults=FAULTS[program.faults])
    players = Players(sim)
    inspector = Inspector(sim, players)
    if watch is not None:
        watch(sim)
    try:
        for action in program.actions:
            players.act(action)
        inspector.finish()
    except (LocalError, AssertionError, KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        inspector.problems.append(f"I14: the core broke down: {type(error).__name__}: {error}")
    return Verdict(problems=tuple(inspector.problems), calls=len(sim.calls), steps=sim.steps)


def shrink(program: Program, *, runs_max: int = 400) -> Program:
    """A smaller program that breaks an invariant of the same number, found by leaving actions out."""
    kinds = {problem.partition(":")[0] for problem in run_program(program).problems}

    def fails(actions: list[Action]) -> bool:
        verdict = run_program(Program(seed=program.seed, faults=program.faults, actions=tuple(actions)))
        return any(problem.partition(":")[0] in kinds for problem in verdict.problems)

    actions = list(program.actions)
    size = max(len(actions) // 2, 1)
    runs = 0
    while size >= 1 and runs < runs_max:
        start = 0
        while start < len(actions) and runs < runs_max:
            runs += 1
            without = actions[:start] + actions[start + size :]
            if fails(without):
                actions = without
            else:
                start += size
        size //= 2
    return Program(seed=program.seed, faults=program.faults, actions=tuple(actions))
