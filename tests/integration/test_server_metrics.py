"""The metrics calls: cAdvisor's names, and figures that agree with the stats calls."""

import pytest

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.services.metrics import LABELS
from tests.integration.harness import Crio
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

WRITTEN_BYTES = 3 * 1024 * 1024
BUSY = f"head -c {WRITTEN_BYTES} /dev/zero > /written; > /done; while :; do :; done"

Found = dict[tuple[str, ...], pb.Metric]


def _found(metrics: object, keys: dict[str, tuple[str, ...]]) -> Found:
    """Metrics by name and the values of the labels that a family has of its own; each has all of its labels, once."""
    found: Found = {}
    for one in metrics:  # type: ignore[attr-defined]
        assert len(one.label_values) == len(keys[one.name])
        key = (one.name.removeprefix("container_"), *one.label_values[len(LABELS) :])
        assert key not in found
        found[key] = one
    return found


def test_metrics_are_described_and_are_those_of_each_container_and_pod(crio: Crio) -> None:
    """A kubelet registers what is described, and takes no metric that does not fit its description."""
    described = crio.client(pb.ListMetricDescriptorsRequest()).descriptors
    keys = {one.name: tuple(one.label_keys) for one in described}
    assert len(keys) == len(described) and all(one.help for one in described)
    assert all(key[: len(LABELS)] == LABELS for key in keys.values())
    (filesystem,) = crio.client(pb.ImageFsInfoRequest()).container_filesystems
    linux = pb.LinuxContainerConfig()
    linux.resources.memory_limit_in_bytes = 256 * 1024 * 1024
    linux.resources.cpu_period, linux.resources.cpu_quota = 100_000, 20_000
    with crio.pod() as pod_id, crio.pod():
        busy = crio.begin(pod_id, ["sh", "-c", BUSY], "busy", linux=linux)
        # What is written is counted seldom, so it is there before the first look.
        wait_for("what is written", lambda: crio.exec(busy, "sh", "-c", "test -e /done").exit_code == 0)

        def look() -> tuple[Found, pb.PodSandboxMetrics] | None:
            answers = crio.client(pb.ListPodSandboxMetricsRequest()).pod_metrics
            assert len(answers) == 2
            (answer,) = (one for one in answers if one.pod_sandbox_id == pod_id)
            (inside,) = answer.container_metrics
            assert inside.container_id == busy
            found = _found(inside.metrics, keys)
            written = found.get(("fs_usage_bytes", filesystem.fs_id.mountpoint))
            throttled = found["cpu_cfs_throttled_periods_total",].value.value
            return (found, answer) if throttled and written and written.value.value >= WRITTEN_BYTES else None

        seen = wait_for("a container that was throttled and has written", look, timeout_s=40)
        assert seen is not None
        found, answer = seen
        status = crio.status(busy)
        image = status.image.image
        names = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status.metadata
        labels = ["busy", busy, image, busy, names.namespace, names.name]
        assert all(list(one.label_values[: len(LABELS)]) == labels for one in found.values())
        figures = {key: one.value.value for key, one in found.items()}
        assert figures["cpu_cfs_periods_total",] >= figures["cpu_cfs_throttled_periods_total",] > 0
        assert figures["memory_usage_bytes",] >= figures["memory_working_set_bytes",] > 0
        assert figures["memory_max_usage_bytes",] >= WRITTEN_BYTES
        assert figures["memory_failures_total", "pgfault", "container"] > 0
        assert figures["spec_memory_limit_bytes",] == 256 * 1024 * 1024
        assert (figures["spec_cpu_period",], figures["spec_cpu_quota",]) == (100_000, 20_000)
        assert figures["start_time_seconds",] == status.started_at // 10**9
        assert figures["oom_events_total",] == 0
        stats = crio.client(pb.ContainerStatsRequest(container_id=busy)).stats
        assert figures["cpu_usage_seconds_total", "total"] <= stats.cpu.usage_core_nano_seconds.value / 10**9
        assert found["memory_rss",].timestamp > status.started_at
        assert {one.metric_type for one in found.values()} == {pb.COUNTER, pb.GAUGE}
        network = _found(answer.metrics, keys)
        assert network["network_receive_packets_total", "eth0"].value.value >= 0
        assert list(network["network_transmit_bytes_total", "eth0"].label_values) == [
            "", pod_id, "", "", names.namespace, names.name, "eth0",
        ]  # fmt: skip
        parts = crio.client(pb.StreamPodSandboxMetricsRequest())
        streamed = [pod.pod_sandbox_id for part in parts for pod in part.pod_sandbox_metrics]
        assert pod_id in streamed and len(streamed) == 2
