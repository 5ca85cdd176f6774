"""Limits of containers that run, as a kubelet changes them when a pod is resized in place."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
SET_BYTES = 64 * MIB


@pytest.fixture
def running(crio: Crio) -> Iterator[str]:
    """A container with a limit of memory."""
    linux = pb.LinuxContainerConfig()
    linux.resources.memory_limit_in_bytes = SET_BYTES
    with crio.pod() as pod:
        yield crio.begin(pod, ["sleep", "1000"], linux=linux)


def _update(crio: Crio, container: str, **limits: object) -> None:
    crio.client(
        pb.UpdateContainerResourcesRequest(container_id=container, linux=pb.LinuxContainerResources(**limits))  # type: ignore[arg-type]
    )


def _kept(crio: Crio, container: str) -> pb.LinuxContainerResources:
    return crio.status(container).resources.linux


def _held(container: str, *names: str) -> int:
    """What the kernel has in the first of these files that there is."""
    found = [path for name in names for path in Path("/sys/fs/cgroup").rglob(f"*{container}*/{name}")]
    return int(found[0].read_text())


def test_a_limit_that_is_changed_holds_and_is_shown(crio: Crio, running: str) -> None:
    """CRI, UpdateContainerResources: what the request leaves out stays, also over a restart of the server."""
    _update(crio, running, memory_limit_in_bytes=2 * SET_BYTES)
    assert _held(running, "memory.limit_in_bytes", "memory.max") == 2 * SET_BYTES
    _update(crio, running, cpu_quota=20_000, cpu_period=100_000, cpu_shares=512)
    kept = _kept(crio, running)
    assert (kept.memory_limit_in_bytes, kept.cpu_quota, kept.cpu_shares) == (2 * SET_BYTES, 20_000, 512)
    assert _held(running, "memory.limit_in_bytes", "memory.max") == 2 * SET_BYTES
    crio.restart(signal.SIGKILL)
    assert _kept(crio, running) == kept
    _update(crio, running, memory_limit_in_bytes=SET_BYTES)
    assert _kept(crio, running).memory_limit_in_bytes == SET_BYTES


def test_changes_at_the_same_time_are_all_made(crio: Crio, running: str) -> None:
    """Each call changes what it names, and is answered for itself."""
    calls = [
        crio.client.begin(pb.UpdateContainerResourcesRequest(container_id=running, linux=limits))
        for limits in (
            pb.LinuxContainerResources(cpu_shares=300),
            pb.LinuxContainerResources(memory_limit_in_bytes=3 * SET_BYTES),
            pb.LinuxContainerResources(cpu_quota=30_000),
        )
    ]
    for call in calls:
        call.result(timeout=20)
    kept = _kept(crio, running)
    assert (kept.cpu_shares, kept.memory_limit_in_bytes, kept.cpu_quota) == (300, 3 * SET_BYTES, 30_000)


def test_a_change_that_cannot_be_is_refused_and_nothing_changes(crio: Crio, running: str) -> None:
    """The message names field and value; of what has ended nothing is changed."""
    before = _kept(crio, running)
    for limits, field in (
        (pb.LinuxContainerResources(cpu_shares=1), "linux.resources.cpu_shares"),
        (pb.LinuxContainerResources(cpuset_cpus="x"), "linux.resources.cpuset_cpus"),
        (pb.LinuxContainerResources(memory_swap_limit_in_bytes=MIB), "linux.resources.memory_swap_limit_in_bytes"),
        (
            pb.LinuxContainerResources(hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=2 * MIB)]),
            "linux.resources.hugepage_limits[0].limit",
        ),
    ):
        refused = crio.client.refusal(pb.UpdateContainerResourcesRequest(container_id=running, linux=limits))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT and field in refused.message
    assert _kept(crio, running) == before
    nothing = pb.LinuxContainerResources(hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)])
    crio.client(pb.UpdateContainerResourcesRequest(container_id=running, linux=nothing))  # as kubelets name every size
    crio.client(pb.StopContainerRequest(container_id=running))
    refused = crio.client.refusal(pb.UpdateContainerResourcesRequest(container_id=running))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION and "exited" in refused.message


def test_limits_of_a_pod_are_noted(crio: Crio) -> None:
    """CRI, UpdatePodSandboxResources: the kubelet has set the pod's group already."""
    with crio.pod() as pod:
        limits = pb.LinuxContainerResources(cpu_shares=700)
        crio.client(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=limits))
        answer = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
        assert '"cpu_shares":700' in answer.info["info"]
        crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        refused = crio.client.refusal(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=limits))
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION


def test_crioctl_changes_limits(crio: Crio, running: str) -> None:
    """crictl's `update`, by its options."""
    endpoint = f"unix://{crio.site.socket}"
    words = [sys.executable, "-m", "crio_server.crioctl", "-r", endpoint, "update"]
    done = subprocess.run([*words, "--memory", str(MIB * 80), running[:12]], capture_output=True, text=True, check=True)
    assert done.stdout == f"{running}\n"
    assert _kept(crio, running).memory_limit_in_bytes == 80 * MIB
    refused = subprocess.run([*words, running[:12]], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "expected a limit to change" in refused.stderr
