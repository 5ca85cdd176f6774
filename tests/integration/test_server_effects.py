"""The server is killed between two chosen effects: whoever asks again gets what they wanted, and nothing stays."""

import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.message import Message

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import CALL_S, Crio, Site
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

POD_ORDERS = (
    "SaveRecord 1",  # The sandbox's reservation.
    "PrepareSandbox 1",
    "AttachNetwork 1",
    "SaveRecord 2",
    "SaveRecord 3",
    "SaveRecord 4",
    "MountRootfs 1",
    "CreateContainer 1",
    "WatchContainer 1",
    "StartContainer 1",
    "SignalContainer 1",
    "DeleteContainer 1",
    "ReleaseRootfs 1",
    "DeleteRecord 1",  # The container's.
    "DetachNetwork 1",
    "ReleaseNamespaces 1",
    "RemoveSandboxFiles 1",
    "DeleteRecord 2",  # The sandbox's.
)
INFRA_ORDERS = ("MountRootfs 1", "CreateContainer 1", "StartContainer 1", "DeleteContainer 2")
"""The infra container is made first, and deleted last."""
RECOVERY_ORDERS = ("ObserveSandbox 1", "ObserveContainer 1", "SweepStorage 1")
UNWINDING_ORDERS = ("DetachNetwork 1", "RemoveSandboxFiles 1", "DeleteRecord 1")
PULL_ORDERS = ("ResolveImage 1", "FetchLayer 1", "ApplyLayer 1", "SaveRecord 1")
SIDES = ("before", "after")


class Victim:
    """A server that kills itself where it is told to, and a client that asks until it is answered."""

    def __init__(self, crio: Crio, file: Path) -> None:
        self.crio = crio
        self.file = file
        self.died = False

    def die_at(self, order: str, side: str) -> None:
        """Order a kill."""
        self.died = False
        name, number = order.split()
        new = self.file.with_suffix(".new")
        new.write_text(f"{name} {side} {number}")
        new.replace(self.file)

    def call(self, request: Message) -> Any:
        """Ask; when the server dies meanwhile, start it and ask again. A refusal fails the test."""
        future = self.crio.client.begin(request)
        wait_for(f"an answer to {request.DESCRIPTOR.name}", lambda: future.done() or self.dead(), timeout_s=CALL_S)
        if not self.dead():
            try:
                answer = future.result()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                wait_for("the server's end", self.dead)
            else:
                return answer
        future.cancel()
        self.revive()
        return self.crio.client(request)

    def revive(self) -> None:
        """Start the server that has killed itself."""
        assert self.crio.end() == -signal.SIGKILL, self.crio.tail()
        self.died = True
        self.crio.start()

    def revive_dead(self, order: str) -> None:
        """The kill must have happened; a server that died after its last answer is started."""
        wait_for(f"the kill at {order}", lambda: self.died or self.dead())
        if not self.died:
            self.revive()

    def die_while_starting(self, order: str, side: str) -> None:
        """Restart the server, which is killed at an order of its recovery, and then once more."""
        self.crio.end(signal.SIGKILL)
        self.die_at(order, side)
        with suppress(AssertionError):  # It may be killed before it serves.
            self.crio.start()
        wait_for(f"the kill at {order}", lambda: not self.file.exists())
        self.crio.end(signal.SIGKILL)
        self.crio.start()

    def dead(self) -> bool:
        """Whether the server has ended, and was not started again."""
        return bool(psutil.Process(self.crio.pid).status() == psutil.STATUS_ZOMBIE)


@pytest.fixture(scope="module")
def shared_victim(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """One server for all kills; what a test leaves would be seen by the next."""
    file = tmp_path_factory.mktemp("kill") / "at"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRIO_TEST_KILL", str(file))
        with Crio(shared_site, launcher=("-m", "tests.integration.killing_server")) as crio:
            crio.pull(crio.images.busybox)
            crio.pull(crio.images.pause)
            crio.note_baseline()
            yield Victim(crio, file)


@pytest.fixture
def victim(shared_victim: Victim) -> Iterator[Victim]:
    """The server, which must be clean when a test begins and when it ends."""
    yield shared_victim
    shared_victim.file.unlink(missing_ok=True)
    if shared_victim.dead():
        shared_victim.revive()
    shared_victim.crio.remove_all()
    shared_victim.crio.assert_clean()


def live(victim: Victim, name: str, pid: pb.NamespaceMode = pb.CONTAINER) -> None:
    """A pod's life, every step of which is asked for again when the server dies under it."""
    crio, call = victim.crio, victim.call
    context = pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(pid=pid))
    config = crio.pod_config(name, linux=pb.LinuxPodSandboxConfig(security_context=context))
    run = pb.RunPodSandboxRequest(config=config)
    pod = call(run).pod_sandbox_id
    main = crio.container_config(["sleep", "600"])
    container = call(pb.CreateContainerRequest(pod_sandbox_id=pod, config=main)).container_id
    call(pb.StartContainerRequest(container_id=container))
    pods = call(pb.ListPodSandboxRequest()).items
    assert [(one.id, one.metadata) for one in pods] == [(pod, config.metadata)]
    containers = call(pb.ListContainersRequest()).containers
    assert [(one.id, one.metadata.name, one.state) for one in containers] == [(container, "main", pb.CONTAINER_RUNNING)]
    call(pb.StopContainerRequest(container_id=container, timeout=0))
    status = call(pb.ContainerStatusRequest(container_id=container)).status
    assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 137)
    call(pb.RemoveContainerRequest(container_id=container))
    call(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    call(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", POD_ORDERS)
def test_killed_at_an_effect_of_a_pods_life_the_retry_succeeds(victim: Victim, order: str, side: str) -> None:
    """R7, R8, R26, R27: done and not recorded, or recorded and not done: both are mended, and nothing is left."""
    victim.die_at(order, side)
    live(victim, f"{order.replace(' ', '-').lower()}-{side}")
    victim.revive_dead(order)
    assert victim.call(pb.ListPodSandboxRequest()).items == []
    victim.crio.assert_clean()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", INFRA_ORDERS)
def test_killed_at_an_effect_of_an_infra_container_the_retry_succeeds(victim: Victim, order: str, side: str) -> None:
    """R3: no client knows this container: nobody but the pod's own recovery asks for it again, or removes it."""
    victim.die_at(order, side)
    live(victim, f"infra-{order.replace(' ', '-').lower()}-{side}", pid=pb.POD)
    victim.revive_dead(order)
    assert victim.call(pb.ListPodSandboxRequest()).items == []
    victim.crio.assert_clean()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", RECOVERY_ORDERS)
def test_killed_while_recovering_the_next_start_recovers(victim: Victim, order: str, side: str) -> None:
    """R7, R32: a server that crashes while it starts must not make it worse; what was swept half is swept whole."""
    crio = victim.crio
    with crio.pod() as pod:
        running = crio.begin(pod, ["sleep", "600"])
        created = crio.create(pod, crio.container_config(["sleep", "600"], "created"))
        before = [crio.status(running), crio.info(running), crio.status(created)]
        for place in ("containers", "sandboxes"):
            (crio.site.marks.runroot / place / ("f" * 64)).mkdir()
        victim.die_while_starting(order, side)
        assert [crio.status(running), crio.info(running), crio.status(created)] == before
        wait_for("a sweep", lambda: not list(crio.site.marks.runroot.glob(f"*/{'f' * 64}")))
        crio.client(pb.StartContainerRequest(container_id=created))
        assert crio.exec(created, "true").exit_code == 0


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", UNWINDING_ORDERS)
def test_killed_while_a_failed_pod_is_taken_back_nothing_of_it_stays(victim: Victim, order: str, side: str) -> None:
    """R3, R4: an ADD that failed may have left anything; the DEL is owed whoever dies, and the name is free."""
    site, config = victim.crio.site, victim.crio.pod_config(f"unwound-{order.split()[0].lower()}-{side}")
    network = site.network()
    network["plugins"][0]["ipam"] = {"type": "static", "addresses": [{"address": "not an address"}]}
    site.write_network(network)
    try:
        victim.die_at(order, side)
        with pytest.raises(grpc.RpcError) as caught:
            victim.call(pb.RunPodSandboxRequest(config=config))
        assert "address" in str(caught.value)
        victim.revive_dead(order)
    finally:
        site.write_network()
    victim.crio.assert_clean()
    victim.crio.remove(victim.call(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


@pytest.mark.parametrize("side", SIDES)
def test_killed_while_a_layer_is_removed_it_goes_with_the_next_image(victim: Victim, side: str) -> None:
    """R30: its image is forgotten. It may be of an interrupted pull, so it is kept: for an hour, or until a removal."""
    crio, image = victim.crio, pb.ImageSpec(image=victim.crio.images.redis)
    crio.pull(image.image)
    victim.die_at("RemoveLayer 1", side)
    victim.call(pb.RemoveImageRequest(image=image))
    victim.revive_dead("RemoveLayer 1")
    crio.pull(image.image)
    victim.call(pb.RemoveImageRequest(image=image))
    crio.assert_clean()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", PULL_ORDERS)
def test_killed_at_an_effect_of_a_pull_the_next_pull_succeeds(victim: Victim, order: str, side: str) -> None:
    """R12: half an image is never taken for a whole one."""
    image = pb.ImageSpec(image=victim.crio.images.redis)
    victim.die_at(order, side)
    ref = victim.call(pb.PullImageRequest(image=image)).image_ref
    victim.revive_dead(order)
    status = victim.call(pb.ImageStatusRequest(image=image)).image
    assert ref in (status.id, *status.repo_digests)
    with victim.crio.pod() as pod:
        container = victim.crio.begin(pod, ["redis-server", "--version"], image=image.image)
        assert victim.crio.ended(container).exit_code == 0
    victim.call(pb.RemoveImageRequest(image=image))
    victim.crio.assert_clean()


SLOW_RUNTIME = """#!/bin/sh
case "$*" in *" create "*)
  touch {directory}/begun
  until [ -e {directory}/go ]; do sleep 0.02; done;;
esac
exec /usr/sbin/runc "$@"
"""


def is_deleting(crio: Crio) -> bool:
    """Whether the server is about to delete a container now."""
    running = json.loads(crio.client(pb.StatusRequest(verbose=True)).info["running"])
    return any(one["what"] == "DeleteContainer" for one in running)


@pytest.mark.parametrize("hurry", [True, False], ids=["soon", "late"])
def test_creation_that_outlives_the_server_leaves_nothing(site: Site, hurry: bool) -> None:
    """R26, R27: a runtime that is still creating when its server is killed is waited for, or killed, then undone."""
    go, begun, runtime = (site.directory / name for name in ("go", "begun", "slow-runc"))
    runtime.write_text(SLOW_RUNTIME.format(directory=site.directory))
    runtime.chmod(0o755)
    with Crio(site, "--runtimes", f"runc:{runtime}:{site.marks.runtime_root}") as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        pod = crio.run_pod()
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=crio.container_config(["sleep", "600"]))
        future = crio.client.begin(request)
        wait_for("the runtime", begun.exists)
        crio.restart(signal.SIGKILL)
        future.cancel()
        if hurry:
            wait_for("the server's own look at it", lambda: is_deleting(crio))
            go.touch()
        else:
            wait_for("the end of the creation", lambda: not any(str(runtime) in line for line in crio.left()))
            go.touch()
        container = crio.client(request).container_id
        crio.client(pb.StartContainerRequest(container_id=container))
        assert [one.id for one in crio.client(pb.ListContainersRequest()).containers] == [container]
        crio.remove(pod)
        crio.assert_clean()
