"""Two clients and fate: what carries out the programs of `crio_core/sim/programs.py` on a simulated node."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from crio_core import effects as fx
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec, LinuxContainerResources
from crio_core.lifecycle.release import RETRY_FIRST_NS, retry_timer
from crio_core.node.specs import infra_id
from crio_core.sim.hands import steps_of
from crio_core.sim.profiles import MS, S
from crio_core.sim.programs import CONTAINERS, PODS, REFERENCES, WEIGHTS, Action, container_config, pod_config
from crio_core.sim.simulation import NETWORK, Call, Simulation
from crio_core.sim.world import GARBLED

GRACES_NS = (0, 1 * S, 30 * S, 300 * S)
WAITS_NS = (1 * MS, 10 * MS, 100 * MS, 1 * S, 15 * S, 120 * S)
CLOCK_STEPS_NS = (-3600 * S, 3600 * S, -1 * MS, -(1_700_000_000 * S))
"""The last one is a node whose clock begins anew in 1970."""
SHARES = (0, 2, 512, 1024)
MEMORIES_BYTES = (0, 64 << 20, 128 << 20)
"""Limits that are asked for; 0 leaves one as it is."""
DOWNTIMES_NS = (0, 1 * MS, 1 * S, 90 * S)
EXECS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("true",), 0),
    (("exit", "2"), 5 * S),
    (("hang",), 2 * S),
    (("hang-on",), 1 * S),
)
FAILABLE: tuple[type, ...] = (
    fx.SaveRecord,
    fx.DeleteRecord,
    fx.PrepareSandbox,
    fx.AttachNetwork,
    fx.DetachNetwork,
    fx.ReleaseNamespaces,
    fx.RemoveSandboxFiles,
    fx.MountRootfs,
    fx.CreateContainer,
    fx.StartContainer,
    fx.SignalContainer,
    fx.DeleteContainer,
    fx.ReleaseRootfs,
    fx.ExecInContainer,
    fx.FetchLayer,
    fx.ApplyLayer,
    fx.RemoveLayer,
    fx.ResolveImage,
    fx.ObserveSandbox,
    fx.ObserveContainer,
    fx.ProveLayer,
)
_RACERS = (
    ("start", 0),
    ("start", 0),
    ("stop", 2),
    ("stop", 0),
    ("remove", 0),
    ("crash", 0),
    ("stop_pod", 0),
    ("remove_pod", 0),
    ("kill_process", 0),
    ("create", 0),
)
_AT_CONTAINERS = frozenset(
    {
        *("start", "stop", "remove", "status", "execute", "reopen", "limit"),
        *("kill_monitor", "kill_process", "run_dry", "race"),
    }
)
_AT_PODS = frozenset(
    {"stop_pod", "remove_pod", "pod_status", "create", "hurry", "owe", "wake", "haunt", "lose_namespaces"}
)
MEET_TICKS_MAX = 100
OFFERS_KNOWN_MAX = 7
UNKNOWN_ID = "f" * 64


class Players:
    """Two clients and fate: carries out the actions of a program.

    Clients learn ids from answers; after the server was away they list what there is, as a kubelet does.
    """

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.pods: dict[int, list[str]] = {}
        self.containers: dict[tuple[int, int], list[str]] = {}
        self._past: list[str] = []
        self._offers: list[rp.Offered] = []
        self._wanted: dict[int, tuple[int, ...]] = {}
        """What a call that makes something makes: the pod's slot, or pod's and container's."""

    def act(self, action: Action) -> None:
        """Carry out one action."""
        _ACTIONS[action.name](self, self._aimed(action))

    def heard(self, call: Call) -> None:
        """An answer came."""
        match call.request, call.result:
            case _, rp.Offered() as offer:
                self._offers = [*self._offers[-OFFERS_KNOWN_MAX:], offer]
            case _, rp.Created(id=key):
                self._learn(self._wanted[call.id], key)
            case ((rq.RemovePodSandbox(sandbox_id=key) | rq.RemoveContainer(container_id=key)), rp.Done()):
                self._unlearn(key)

    def _aimed(self, action: Action) -> Action:
        """The action, turned towards something that there is; now and then it is left to miss."""
        if action.c % 8 == 5:
            return action
        if action.name in _AT_CONTAINERS and (action.a % PODS, action.b % CONTAINERS) not in self.containers:
            places = sorted(self.containers)
            if places:
                slot, number = places[action.a % len(places)]
                return replace(action, a=slot, b=action.b - action.b % CONTAINERS + number)
        if action.name in _AT_PODS and action.a % PODS not in self.pods:
            slots = sorted(self.pods)
            if slots:
                return replace(action, a=slots[action.a % len(slots)])
        return action

    def _unlearn(self, gone: str) -> None:
        """What was removed is asked for again now and then, and otherwise left alone."""
        places: list[dict[Any, list[str]]] = [self.pods, self.containers]
        for known in places:
            for place, ids in tuple(known.items()):
                if gone in ids:
                    self._past.append(gone)
                    known[place] = [one for one in ids if one != gone]
                    if not known[place]:
                        del known[place]

    def _learn(self, place: tuple[int, ...], new_id: str) -> None:
        if len(place) == 1:
            known = self.pods.setdefault(place[0], [])
        else:
            known = self.containers.setdefault((place[0], place[1]), [])
        if new_id not in known:
            known.append(new_id)

    def relist(self) -> None:
        """Learn what exists from the server."""
        if not self.sim.serving:
            return
        slots: dict[str, int] = {}
        pods = self.sim.calls[self.sim.call(rq.ListPodSandbox())].result
        containers = self.sim.calls[self.sim.call(rq.ListContainers())].result
        assert isinstance(pods, rp.Sandboxes) and isinstance(containers, rp.Containers)
        for pod in reversed(pods.items):
            slots[pod.id] = int(pod.metadata.name[3:])
            self._learn((slots[pod.id],), pod.id)
        for one in reversed(containers.items):
            if one.sandbox_id in slots:
                self._learn((slots[one.sandbox_id], int(one.metadata.name[1:])), one.id)

    # --- calls --------------------------------------------------------------------------------------------------

    def _call(self, request: rq.Request, *place: int) -> None:
        self._wanted[self.sim.next_call] = place
        self.sim.call(request)

    def _pod(self, action: Action) -> str:
        return self._pick(self.pods.get(action.a % PODS), action)

    def _container(self, action: Action) -> str:
        return self._pick(self.containers.get((action.a % PODS, action.b % CONTAINERS)), action)

    def _pick(self, known: list[str] | None, action: Action) -> str:
        if action.c % 14 == 13 and self._past:
            return self._past[-1]
        return (known[0] if action.c % 7 == 6 else known[-1]) if known else UNKNOWN_ID

    def run_pod(self, action: Action) -> None:
        slot = action.a % PODS
        config = pod_config(slot, action.b % 2, 3 if action.c % 8 == 7 else 0)
        self._call(rq.RunPodSandbox(config=config), slot)

    def stop_pod(self, action: Action) -> None:
        self._call(rq.StopPodSandbox(sandbox_id=self._pod(action)))

    def remove_pod(self, action: Action) -> None:
        self._call(rq.RemovePodSandbox(sandbox_id=self._pod(action)))

    def pod_status(self, action: Action) -> None:
        self._call(rq.PodSandboxStatus(sandbox_id=self._pod(action)))

    def list_all(self, action: Action) -> None:
        self.relist()

    def create(self, action: Action) -> None:
        slot, number = action.a % PODS, action.b % CONTAINERS
        config = container_config(slot, number, action.c)
        self._call(rq.CreateContainer(sandbox_id=self._pod(Action(name="", a=slot)), config=config), slot, number)

    def start(self, action: Action) -> None:
        self._call(rq.StartContainer(container_id=self._container(action)))

    def stop(self, action: Action) -> None:
        grace_ns = GRACES_NS[action.c % len(GRACES_NS)]
        self._call(rq.StopContainer(container_id=self._container(action), grace_ns=grace_ns))

    def remove(self, action: Action) -> None:
        self._call(rq.RemoveContainer(container_id=self._container(action)))

    def status(self, action: Action) -> None:
        self._call(rq.ContainerStatus(container_id=self._container(action)))

    def execute(self, action: Action) -> None:
        """Run a command, offer a stream, or take up an offer."""
        command, timeout_ns = EXECS[action.c % len(EXECS)]
        streams = rq.Streams(stdin=True, stdout=True, stderr=action.c % 16 < 12, tty=action.c % 16 == 12)
        request: rq.Request
        match action.c // len(EXECS) % 5:
            case 0 | 1:
                request = rq.ExecSync(container_id=self._container(action), command=command, timeout_ns=timeout_ns)
            case 2:
                request = rq.Exec(container_id=self._container(action), command=command, streams=streams)
            case 3 if action.c % 2:
                request = rq.Attach(container_id=self._container(action), streams=streams)
            case 3:
                request = rq.PortForward(sandbox_id=self._pod(action), ports=(80,))
            case _:
                request = rq.OpenStream(purpose="exec", token=UNKNOWN_ID)
        self._call(request)
        self.take_up(action)

    def take_up(self, action: Action) -> None:
        """Come with the token of an offer: the last one usually, or one that may be used or old, or not at all."""
        if not self._offers or action.b % 8 == 7:
            return
        offer = self._offers[-1 if action.b % 4 else action.a % len(self._offers)]
        self._call(rq.OpenStream(purpose=offer.purpose, token=offer.token))

    def reopen(self, action: Action) -> None:
        self._call(rq.ReopenContainerLog(container_id=self._container(action)))

    def limit(self, action: Action) -> None:
        """Change some of a container's limits, or those of its pod, which is for the record only."""
        memory_bytes = MEMORIES_BYTES[action.b % len(MEMORIES_BYTES)]
        limits = LinuxContainerResources(cpu_shares=SHARES[action.c % len(SHARES)], memory_limit_in_bytes=memory_bytes)
        if action.c % 5 == 4:
            request: rq.Request = rq.UpdatePodSandboxResources(
                sandbox_id=self._pod(action), overhead=LinuxContainerResources(), resources=limits
            )
        else:
            request = rq.UpdateContainerResources(container_id=self._container(action), resources=limits)
        self._call(request)

    def pull(self, action: Action) -> None:
        self._call(rq.PullImage(image=ImageSpec(image=REFERENCES[action.a % len(REFERENCES)])))

    def remove_image(self, action: Action) -> None:
        self._call(rq.RemoveImage(image=ImageSpec(image=REFERENCES[action.a % len(REFERENCES)])))

    def image_status(self, action: Action) -> None:
        self._call(rq.ImageStatus(image=ImageSpec(image=REFERENCES[action.a % len(REFERENCES)])))

    def node_status(self, action: Action) -> None:
        self._call(rq.Status())

    def cancel(self, action: Action) -> None:
        waiting = [call.id for call in self.sim.calls.values() if call.open]
        if waiting:
            self.sim.cancel(waiting[action.a % len(waiting)])

    def prepare(self, action: Action) -> None:
        """Bring a pod with a container about that was just told to start, so that what follows meets one."""
        slot, number = action.a % PODS, action.b % CONTAINERS
        config = container_config(slot, number, action.c)
        self._call(rq.PullImage(image=config.image))
        self._call(rq.RunPodSandbox(config=pod_config(slot)), slot)
        self.sim.run(5 * S)
        if self.sim.serving:
            self._call(rq.CreateContainer(sandbox_id=self._pod(Action(name="", a=slot)), config=config), slot, number)
            self.sim.run(2 * S)
            self._call(rq.StartContainer(container_id=self._container(Action(name="", a=slot, b=number))))
            self.sim.run((20 * MS, 4 * MS, 1 * MS, 0)[action.b // 2 % 4])

    def race(self, action: Action) -> None:
        """Three things in quick succession that meet a container in the midst of something."""
        what = action.c
        if what % 3 == 0:
            self.sim.fail_next += [(fx.DeleteContainer, 0), (fx.StartContainer, action.b % 4)]
        elif what % 3 == 1:
            self.sim.slow_next.append(fx.StartContainer)
        for _ in range(3):
            name, number = _RACERS[what % len(_RACERS)]
            what //= len(_RACERS)
            getattr(self, name)(Action(name=name, a=action.a, b=action.b, c=number))
            for _ in range(action.b % 4):
                self.sim.tick()

    def hurry(self, action: Action) -> None:
        """Stop a container that ignores its signal, with much time at first and then with little."""
        self.create(replace(action, c=4))
        self.sim.run(1 * S)
        self.start(action)
        self.sim.run(100 * MS)
        self.stop(replace(action, c=3))
        self.sim.run(action.c % 50 * S)
        self.stop(replace(action, c=1))

    def botch_pull(self, action: Action) -> None:
        """Crash when an image's record was written, its writing called a failure, and its layers removed for that."""
        self.pull(action)
        self.meet(Action(name="meet", a=FAILABLE.index(fx.ApplyLayer)))
        self.sim.fail_next.append((fx.SaveRecord, 5))
        self.meet(Action(name="meet", a=FAILABLE.index(fx.RemoveLayer)))
        self.sim.run(100 * MS)
        self.crash(action)

    def owe(self, action: Action) -> None:
        """Stop a pod whose network cannot be released, and remove it about the time when that is tried again."""
        self.sim.hands.network_broken = True
        sandbox_id = self._pod(action)
        self.stop_pod(action)
        for _ in range(MEET_TICKS_MAX):
            if retry_timer(sandbox_id) in self.sim.timers or not self.sim.tick():
                break
        self.sim.hands.network_broken = action.c % 4 == 0
        if action.c % 2:
            self.sim.run(RETRY_FIRST_NS - action.c % 16 * MS)
        else:
            self.sim.run(RETRY_FIRST_NS + 1 * MS)
            self.sim.run(action.c % 128 * MS)
        self.remove_pod(action)

    def wake(self, action: Action) -> None:
        """Crash when a container was just started, and ask something of it before the look has come back."""
        self.create(action)
        self.sim.run(1 * S)
        key = self._container(action)
        self.start(action)
        for _ in range(MEET_TICKS_MAX):
            process = self.sim.world.processes.get(key)
            if (process is not None and process.running) or not self.sim.tick():
                break
        self.crash(Action(name="crash"))
        if action.c % 2:
            self.sim.slow_next.append(fx.ObserveContainer)
        what = action.c // 2 % 5
        if what == 4:
            self.sim.fail_next.append((fx.ObserveContainer, 0))
        else:
            getattr(self, ("start", "stop", "remove", "start")[what])(replace(action, c=2))
        if what == 3:
            self.stop(replace(action, c=2))

    def haunt(self, action: Action) -> None:
        """Remove a pod, after a crash that brought back a container which had been taken back, and will not go."""
        self.sim.fail_next += [(fx.MountRootfs, 0), (fx.DeleteRecord, 0)]
        self.create(action)
        self.sim.run(100 * MS)
        self.stop_pod(action)
        self.sim.run(500 * MS)
        self.sim.fail_next += [(fx.DeleteContainer, 0)] * (1 + action.c % 3)
        self.crash(Action(name="crash"))
        self.sim.run(action.c % 64 * MS)
        self.remove_pod(action)
        self.sim.run(5 * S)

    def repull(self, action: Action) -> None:
        """Pull an image again while its layers are being removed, or are owed."""
        self.remove_image(action)
        if action.c % 2:
            self.sim.fail_next.append((fx.RemoveLayer, 0))
        for _ in range(action.c // 2 % 12):
            self.sim.tick()
        if action.c % 3 == 0:
            self.sim.fail_next.append((fx.RemoveLayer, 0))
        self.pull(action)

    # --- fate ---------------------------------------------------------------------------------------------------

    def wait(self, action: Action) -> None:
        self.sim.run(WAITS_NS[action.a % len(WAITS_NS)])

    def tick(self, action: Action) -> None:
        for _ in range(action.a % 8 + 1):
            self.sim.tick()

    def meet(self, action: Action) -> None:
        """Run until an effect of one kind is under way, so that what follows meets it."""
        kind = FAILABLE[action.a % len(FAILABLE)]
        for _ in range(MEET_TICKS_MAX):
            if kind in self.sim.under_way or not self.sim.tick():
                return

    def crash(self, action: Action) -> None:
        self.sim.crash_server()
        self.sim.run(DOWNTIMES_NS[action.a % len(DOWNTIMES_NS)])
        self.sim.start_server()
        if action.b % 2:
            self.relist()

    def power_cut(self, action: Action) -> None:
        self.sim.crash_machine()
        self.sim.start_server()
        if action.b % 2:
            self.relist()

    def kill_monitor(self, action: Action) -> None:
        key = self._container(action)
        self.sim.world.kill_monitor(key)
        self.sim.noticed(key)

    def kill_process(self, action: Action) -> None:
        key = infra_id(self._pod(action)) if action.b >= 6 else self._container(action)
        process = self.sim.world.processes.get(key)
        if process is not None:
            self.sim.hands.processes.strike(process)

    def run_dry(self, action: Action) -> None:
        """A container runs out of memory: a child of its first process dies of it, or that itself."""
        process = self.sim.world.processes.get(self._container(action))
        if process is not None and process.alive:
            self.sim.hands.processes.run_dry(process, child=action.c % 2 == 0)

    def rot(self, action: Action) -> None:
        """A layer and every download are damaged while the server is away; the store drops what it finds damaged."""
        self.sim.crash_server()
        world = self.sim.world
        if world.layers:
            layer = tuple(world.layers)[action.a % len(world.layers)]
            world.damaged[layer] = True
            del world.layers[layer]
        world.rotten.update(dict.fromkeys(world.downloads, True))
        self.sim.start_server()

    def garble_row(self, action: Action) -> None:
        self._damage(action, lose=False)

    def lose_row(self, action: Action) -> None:
        self._damage(action, lose=True)

    def _damage(self, action: Action, *, lose: bool) -> None:
        """Both files of the journal are damaged in the same place while the server is away."""
        self.sim.crash_server()
        world = self.sim.world
        # A power cut may have brought back a garbled row over which something was written.
        rows = tuple(row for row, data in world.rows.items() if row not in world.aside and data != GARBLED)
        if rows:
            self.sim.damage(rows[action.a % len(rows)], lose=lose)
        self.sim.start_server()
        if action.b % 2:
            self.stop_pod(action)

    def lose_namespaces(self, action: Action) -> None:
        """Somebody unmounts a pod's namespaces while the server is away."""
        self.sim.crash_server()
        self.sim.world.lose_namespaces(self._pod(action))
        self.sim.start_server()

    def fail_next(self, action: Action) -> None:
        kind = FAILABLE[action.a % len(FAILABLE)]
        self.sim.fail_next.append((kind, action.b % (steps_of(kind) + 1)))

    def slow_next(self, action: Action) -> None:
        self.sim.slow_next.append(FAILABLE[action.a % len(FAILABLE)])

    def network(self, action: Action) -> None:
        self.sim.set_network(NETWORK if action.a % 2 else "")

    def plugins(self, action: Action) -> None:
        self.sim.hands.network_broken = action.a % 2 == 0

    def disk(self, action: Action) -> None:
        self.sim.hands.disk_full = action.a % 2 == 0

    def clock_step(self, action: Action) -> None:
        self.sim.step_clock(CLOCK_STEPS_NS[action.a % len(CLOCK_STEPS_NS)])

    def replace_pod(self, action: Action) -> None:
        """Make a pod again whose removal the journal fails to get, by a clock that has gone back, and crash."""
        slot = action.a % PODS
        self.sim.fail_next += [(fx.DeleteRecord, 0)] * (1 + action.b % 2)
        self.remove_pod(action)
        self.sim.run(300 * MS)
        self.clock_step(Action(name="clock_step", a=action.c % 2))
        self._call(rq.RunPodSandbox(config=pod_config(slot)), slot)
        self.sim.run(action.c % 500 * MS)
        self.crash(replace(action, a=0))

    def calm(self, action: Action) -> None:
        self.sim.release()


def _named(*names: str) -> Mapping[str, Callable[[Players, Action], None]]:
    return MappingProxyType({name: getattr(Players, name) for name in names})


_ACTIONS: Mapping[str, Callable[[Players, Action], None]] = _named(*(name for _, name in WEIGHTS))
