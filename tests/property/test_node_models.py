"""Each lifecycle against a model of a few dictionaries: what a client sees, when it asks one thing at a time.

The node is the simulated one, without faults but with restarts. Sandboxes, containers, images, layers and sessions
are compared after every rule.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import OperationError
from crio_core.records import SandboxState
from crio_core.replies import CONTAINER_STATES
from crio_core.sim import Simulation
from crio_core.sim.images import APP, BASE, OTHER
from crio_core.sim.profiles import STEADY, S
from crio_core.sim.programs import container_config, pod_config

SLOTS = st.integers(0, 2)
NUMBERS = st.integers(0, 1)
IMAGES = st.sampled_from((BASE, APP, OTHER))
RUN_FOR_EVER = 0
"""The command of `container_config` that ends only when it is told to; its image is `BASE`."""


class NodeModel(RuleBasedStateMachine):
    """One client, one question at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation(seed=3, latency=STEADY)
        self.pods: dict[int, tuple[str, bool]] = {}
        """Id and readiness of the pod in each slot."""
        self.containers: dict[tuple[int, int], tuple[str, str, int]] = {}
        """Id, state and exit code of each container."""
        self.images: set[str] = set()

    def _refused(self, request: rq.Request) -> bool:
        try:
            self.sim.ask(request)
        except OperationError:
            return True
        return False

    # --- sandboxes ----------------------------------------------------------------------------------------------

    @rule(slot=SLOTS)
    def run_pod(self, slot: int) -> None:
        request = rq.RunPodSandbox(config=pod_config(slot))
        known = self.pods.get(slot)
        if known is not None and not known[1]:
            assert self._refused(request)
            return
        created = self.sim.ask(request)
        assert isinstance(created, rp.Created)
        assert known is None or created.id == known[0]
        self.pods[slot] = (created.id, True)
        if slot == 2:
            self.images.add("registry.k8s.io/pause:3.10")

    @rule(slot=SLOTS)
    def stop_pod(self, slot: int) -> None:
        if slot in self.pods:
            self.sim.ask(rq.StopPodSandbox(sandbox_id=self.pods[slot][0]))
            self.pods[slot] = (self.pods[slot][0], False)
            for key, (container_id, state, code) in self.containers.items():
                if key[0] == slot and state != "exited":
                    self.containers[key] = (container_id, "exited", 137)
                else:
                    self.containers[key] = (container_id, state, code)

    @rule(slot=SLOTS)
    def remove_pod(self, slot: int) -> None:
        if slot in self.pods:
            self.sim.ask(rq.RemovePodSandbox(sandbox_id=self.pods.pop(slot)[0]))
            self.containers = {key: one for key, one in self.containers.items() if key[0] != slot}

    # --- containers ---------------------------------------------------------------------------------------------

    @rule(slot=SLOTS, number=NUMBERS)
    def create(self, slot: int, number: int) -> None:
        pod = self.pods.get(slot, ("0" * 64, False))
        request = rq.CreateContainer(sandbox_id=pod[0], config=container_config(slot, number, RUN_FOR_EVER))
        known = self.containers.get((slot, number))
        if not pod[1] or (known is None and BASE not in self.images):
            assert self._refused(request)
            return
        created = self.sim.ask(request)
        assert isinstance(created, rp.Created)
        assert known is None or created.id == known[0]
        self.containers.setdefault((slot, number), (created.id, "created", 0))

    @rule(slot=SLOTS, number=NUMBERS)
    def start(self, slot: int, number: int) -> None:
        known = self.containers.get((slot, number))
        if known is not None:
            refused = self._refused(rq.StartContainer(container_id=known[0]))
            assert refused == (known[1] == "exited")
            if not refused:
                self.containers[slot, number] = (known[0], "running", 0)

    @rule(slot=SLOTS, number=NUMBERS, grace_s=st.sampled_from((0, 10)))
    def stop(self, slot: int, number: int, grace_s: int) -> None:
        known = self.containers.get((slot, number))
        if known is not None:
            self.sim.ask(rq.StopContainer(container_id=known[0], grace_ns=grace_s * S))
            if known[1] != "exited":
                code = 143 if grace_s and known[1] == "running" else 137
                self.containers[slot, number] = (known[0], "exited", code)

    @rule(slot=SLOTS, number=NUMBERS, code=st.integers(0, 255))
    def end(self, slot: int, number: int, code: int) -> None:
        """The process ends by itself."""
        known = self.containers.get((slot, number))
        if known is not None and known[1] == "running":
            self.sim.hands.processes.end(self.sim.world.processes[known[0]], code)
            self.sim.run(1 * S)
            self.containers[slot, number] = (known[0], "exited", code)

    @rule(slot=SLOTS, number=NUMBERS)
    def remove(self, slot: int, number: int) -> None:
        known = self.containers.pop((slot, number), None)
        if known is not None:
            self.sim.ask(rq.RemoveContainer(container_id=known[0]))

    # --- sessions -----------------------------------------------------------------------------------------------

    @rule(slot=SLOTS, number=NUMBERS, hangs=st.booleans())
    def execute(self, slot: int, number: int, hangs: bool) -> None:
        known = self.containers.get((slot, number))
        if known is not None:
            command = ("hang",) if hangs else ("exit", "3")
            request = rq.ExecSync(container_id=known[0], command=command, timeout_ns=2 * S)
            if known[1] != "running" or hangs:
                assert self._refused(request)
            else:
                done = self.sim.ask(request)
                assert isinstance(done, rp.Executed)
                assert done.exit_code == 3

    # --- images and layers --------------------------------------------------------------------------------------

    @rule(reference=IMAGES)
    def pull(self, reference: str) -> None:
        self.sim.ask(rq.PullImage(image=ImageSpec(image=reference)))
        self.images.add(reference)

    @rule(reference=IMAGES)
    def remove_image(self, reference: str) -> None:
        refused = self._refused(rq.RemoveImage(image=ImageSpec(image=reference)))
        assert refused == (reference == BASE and bool(self.containers))
        if not refused:
            self.images.discard(reference)

    # --- the server ---------------------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        """The server is killed and comes back: nobody notices."""
        self.sim.run(1 * S)
        self.sim.crash_server()
        self.sim.start_server()

    # --- what a client sees -------------------------------------------------------------------------------------

    @invariant()
    def sandboxes_are_the_models(self) -> None:
        found = self.sim.ask(rq.ListPodSandbox())
        assert isinstance(found, rp.Sandboxes)
        assert {one.id: one.state is SandboxState.READY for one in found.items} == dict(self.pods.values())

    @invariant()
    def containers_are_the_models(self) -> None:
        found = self.sim.ask(rq.ListContainers())
        assert isinstance(found, rp.Containers)
        shown = {(one.id, CONTAINER_STATES[one.state], one.exit_code) for one in found.items}
        assert shown == set(self.containers.values())

    @invariant()
    def images_and_layers_are_the_models(self) -> None:
        found = self.sim.ask(rq.ListImages())
        assert isinstance(found, rp.Images)
        assert {tag for one in found.items for tag in one.tags} == self.images
        self.sim.run(1 * S)
        wanted = {layer.diff_id for tag in self.images for layer in self.sim.world.images[tag].layers}
        assert set(self.sim.world.layers) == wanted


TestNodeModel = NodeModel.TestCase
TestNodeModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
