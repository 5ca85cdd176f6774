"""The stats calls, against what containers are made to use."""

import grpc
import pytest

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

WRITTEN_BYTES = 3 * 1024 * 1024
BUSY = f"head -c {WRITTEN_BYTES} /dev/zero > /written; while :; do :; done"


def _stats(crio: Crio, container_id: str) -> pb.ContainerStats:
    answer = crio.client(pb.ContainerStatsRequest(container_id=container_id))
    assert isinstance(answer, pb.ContainerStatsResponse)
    return answer.stats


def _busy(crio: Crio, container_id: str) -> pb.ContainerStats | None:
    """Its figures, once two looks apart enough have shown that it is busy and what it has written."""
    stats = _stats(crio, container_id)
    seen = stats.cpu.usage_nano_cores.value > 0 and stats.writable_layer.used_bytes.value >= WRITTEN_BYTES
    return stats if seen else None


def test_stats_say_what_a_container_uses(crio: Crio) -> None:
    """CPU, memory and the writable layer are the container's own; the age of each is on it (R36)."""
    linux = pb.LinuxContainerConfig()
    linux.resources.memory_limit_in_bytes = 256 * 1024 * 1024
    with crio.pod(labels={"which": "stats"}) as pod_id:
        busy = crio.begin(pod_id, ["sh", "-c", BUSY], "busy", labels={"kind": "busy"}, linux=linux)
        crio.begin(pod_id, ["sleep", "1000"], "idle")
        found = wait_for("figures of a busy container", lambda: _busy(crio, busy), timeout_s=40)
        assert found is not None
        assert found.attributes.id == busy
        assert (found.attributes.metadata.name, dict(found.attributes.labels)) == ("busy", {"kind": "busy"})
        assert found.cpu.usage_core_nano_seconds.value > 0
        assert found.memory.usage_bytes.value >= found.memory.working_set_bytes.value > 0
        assert 0 < found.memory.available_bytes.value <= linux.resources.memory_limit_in_bytes
        assert found.writable_layer.used_bytes.value < 2 * WRITTEN_BYTES
        assert found.writable_layer.inodes_used.value >= 1
        images = crio.client(pb.ImageFsInfoRequest())
        assert found.writable_layer.fs_id.mountpoint == images.container_filesystems[0].fs_id.mountpoint
        now_ns = crio.status(busy).started_at
        assert found.cpu.timestamp > now_ns and found.memory.timestamp > now_ns

        pod = crio.client(pb.PodSandboxStatsRequest(pod_sandbox_id=pod_id)).stats
        assert pod.attributes.id == pod_id and dict(pod.attributes.labels) == {"which": "stats"}
        parts = pod.linux.containers
        assert {one.attributes.metadata.name for one in parts} == {"busy", "idle"}
        assert pod.linux.memory.usage_bytes.value == sum(one.memory.usage_bytes.value for one in parts)
        assert pod.linux.process.process_count.value >= 2
        assert pod.linux.network.default_interface.name == "eth0"
        assert pod.linux.network.default_interface.tx_errors.value == 0


def test_stats_are_listed_and_streamed_by_the_same_filters(crio: Crio) -> None:
    """The unary and the streamed calls hold the same containers; what has ended has no figures."""
    with crio.pod(labels={"which": "a"}) as first, crio.pod(labels={"which": "b"}) as second:
        one = crio.begin(first, ["sleep", "1000"], labels={"kind": "x"})
        two = crio.begin(second, ["sleep", "1000"])
        over = crio.begin(second, ["true"], "over")
        crio.ended(over)

        def listed(selector: pb.ContainerStatsFilter) -> set[str]:
            unary = crio.client(pb.ListContainerStatsRequest(filter=selector)).stats
            parts = list(crio.client(pb.StreamContainerStatsRequest(filter=selector)))
            found = {stats.attributes.id for stats in unary}
            assert found == {stats.attributes.id for part in parts for stats in part.container_stats}
            return found

        assert listed(pb.ContainerStatsFilter()) == {one, two}
        assert listed(pb.ContainerStatsFilter(id=one[:10])) == {one}
        assert listed(pb.ContainerStatsFilter(pod_sandbox_id=second)) == {two}
        assert listed(pb.ContainerStatsFilter(label_selector={"kind": "x"})) == {one}
        only = pb.PodSandboxStatsFilter(label_selector={"which": "b"})
        [pod] = crio.client(pb.ListPodSandboxStatsRequest(filter=only)).stats
        assert pod.attributes.id == second
        [part] = crio.client(pb.StreamPodSandboxStatsRequest(filter=only))
        assert [found.attributes.id for found in part.pod_sandbox_stats] == [second]


def test_callers_within_a_second_share_one_look(crio: Crio) -> None:
    """R36: who asks again at once gets the same sample, with its age, instead of another walk through the kernel."""
    with crio.pod() as pod_id:
        container_id = crio.begin(pod_id, ["sleep", "1000"])
        calls = [crio.client.begin(pb.ListContainerStatsRequest()) for _ in range(10)]
        stamps = [stats.cpu.timestamp for call in calls for stats in call.result(timeout=20).stats]
        assert len(stamps) == 10 and len(set(stamps)) < 10
        began = _stats(crio, container_id).cpu.timestamp
        wait_for("a look that is newer", lambda: _stats(crio, container_id).cpu.timestamp > began)


def test_a_pod_on_the_nodes_network_has_no_counters_of_its_own(crio: Crio) -> None:
    """What the node's interfaces count is not what the pod has sent."""
    linux = pb.LinuxPodSandboxConfig()
    linux.security_context.namespace_options.network = pb.NODE
    linux.security_context.namespace_options.pid = pb.CONTAINER
    with crio.pod(linux=linux) as pod_id:
        crio.begin(pod_id, ["sleep", "1000"])
        stats = crio.client(pb.PodSandboxStatsRequest(pod_sandbox_id=pod_id)).stats
        assert stats.linux.memory.usage_bytes.value > 0 and not stats.linux.HasField("network")


def test_a_pods_processor_time_goes_on_growing_when_a_container_is_made_anew(crio: Crio) -> None:
    """A counter that goes back is taken for a new one. A kubelet makes a group for each pod, named by its uid."""
    linux = pb.LinuxPodSandboxConfig(cgroup_parent=f"/{crio.site.marks.name}/poduid-counted")

    def cpu() -> pb.CpuUsage:
        answer = crio.client(pb.PodSandboxStatsRequest(pod_sandbox_id=pod_id))
        assert isinstance(answer, pb.PodSandboxStatsResponse)
        return answer.stats.linux.cpu

    with crio.pod(name="counted", linux=linux) as pod_id:
        busy = crio.begin(pod_id, ["sh", "-c", "while :; do :; done"], "busy")
        wait_for("a busy second", lambda: cpu().usage_core_nano_seconds.value > 1_000_000_000, timeout_s=40)
        crio.client(pb.StopContainerRequest(container_id=busy))
        before = cpu()
        crio.begin(pod_id, ["sleep", "1000"], "idle")
        wait_for("a newer look", lambda: cpu().timestamp > before.timestamp)
        assert cpu().usage_core_nano_seconds.value >= before.usage_core_nano_seconds.value


def test_stats_of_what_is_not_there_name_it(crio: Crio) -> None:
    """One container that is gone is an error of that call alone."""
    for request in (
        pb.ContainerStatsRequest(container_id="f" * 64),
        pb.PodSandboxStatsRequest(pod_sandbox_id="f" * 64),
    ):
        refused = crio.client.refusal(request)
        assert refused.code is grpc.StatusCode.NOT_FOUND and "f" * 64 in refused.message
