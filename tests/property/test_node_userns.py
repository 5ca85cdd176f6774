"""Pods with a user namespace in the core: what is ordered for them, and that everything of them is given back."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.cri import (
    ContainerConfig,
    IDMapping,
    ImageSpec,
    Mount,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    UserNamespace,
)
from crio_core.replies import Created
from crio_core.sim import Simulation
from crio_core.sim.images import BASE, PAUSE
from crio_core.sim.programs import container_config, pod_config

RUNS = (IDMapping(host_id=300_000, container_id=0, length=65_536),)
USERS = UserNamespace(uids=RUNS, gids=(replace(RUNS[0], host_id=400_000),))
ROOT = (300_000, 400_000)


def pod(pid: NamespaceMode = NamespaceMode.CONTAINER) -> PodSandboxConfig:
    config = pod_config(0)
    options = NamespaceOption(pid=pid, userns_options=USERS)
    context = replace(config.linux.security_context, namespace_options=options)
    return replace(config, linux=replace(config.linux, security_context=context))


def container(*mounts: Mount) -> ContainerConfig:
    """A container that says nothing of the user namespace of its pod."""
    return replace(container_config(0, 0), mounts=mounts, working_dir="/work")


class Watched:
    """A simulated node, and the orders that it was given."""

    def __init__(self) -> None:
        self.sim = Simulation(5)
        self.orders: list[Any] = []
        self.sim.on_event = self._note
        for image in (BASE, PAUSE):
            self.sim.ask(rq.PullImage(image=ImageSpec(image=image)))

    def _note(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        self.orders += [one.order for one in effects]

    def made(self, request: rq.Request) -> str:
        answer = self.sim.ask(request)
        assert isinstance(answer, Created)
        return answer.id

    def ordered(self, kind: type) -> Any:
        return [one for one in self.orders if type(one) is kind][-1]


def test_orders_of_such_a_pod_name_its_user_namespace_and_its_root() -> None:
    """The host does what it is told: the pins, who owns what is made, and under whose ids files are seen."""
    node = Watched()
    pod_id = node.made(rq.RunPodSandbox(config=pod()))
    prepared = node.ordered(fx.PrepareSandbox)
    assert (prepared.namespaces, prepared.users) == (("net", "uts", "ipc", "user"), USERS)
    mapped = Mount(container_path="/data", host_path="/srv", uidMappings=USERS.uids, gidMappings=USERS.gids)
    plain = Mount(container_path="/plain", host_path="/srv")
    key = node.made(rq.CreateContainer(sandbox_id=pod_id, config=container(mapped, plain)))
    users = f"/run/crio/ns/{pod_id}/user"
    mounted, created = node.ordered(fx.MountRootfs), node.ordered(fx.CreateContainer)
    assert (mounted.users, mounted.owner) == (created.users, created.owner) == (users, ROOT)
    spec = orjson.loads(created.spec)
    assert {"type": "user", "path": users} in spec["linux"]["namespaces"]
    assert spec["linux"]["uidMappings"] == [{"containerID": 0, "hostID": ROOT[0], "size": 65_536}]
    sources = {one["destination"]: one["source"] for one in spec["mounts"]}
    [(source, place)] = created.mapped_mounts
    assert (source, place, sources["/plain"]) == ("/srv", sources["/data"], "/srv")
    assert place.startswith(f"/run/crio/containers/{key}/"), "given back with the bundle"


@pytest.mark.parametrize("pid", [NamespaceMode.CONTAINER, NamespaceMode.POD])
def test_such_a_pod_lives_through_a_crash_and_is_given_back_whole(pid: NamespaceMode) -> None:
    """The pin of the user namespace is one of the pod's, whatever happens; so is an infra container in it."""
    node = Watched()
    pod_id = node.made(rq.RunPodSandbox(config=pod(pid)))
    node.sim.crash_server()
    node.sim.start_server()
    node.sim.run(1_000_000_000)
    node.made(rq.CreateContainer(sandbox_id=pod_id, config=container()))
    assert node.ordered(fx.MountRootfs).users == f"/run/crio/ns/{pod_id}/user"
    node.sim.ask(rq.RemovePodSandbox(sandbox_id=pod_id))
    node.sim.run()
    assert not node.sim.world.pins and not node.sim.world.files


def test_pod_without_one_has_none_of_it() -> None:
    """The orders of other pods stay what they were."""
    node = Watched()
    pod_id = node.made(rq.RunPodSandbox(config=pod_config(0)))
    node.made(rq.CreateContainer(sandbox_id=pod_id, config=container()))
    created = node.ordered(fx.CreateContainer)
    assert node.ordered(fx.PrepareSandbox).users == UserNamespace()
    assert (created.users, created.owner, created.mapped_mounts) == ("", (0, 0), ())
    assert "uidMappings" not in orjson.loads(created.spec)["linux"]
