"""Metrics of the server itself: on its socket always, over TCP when it is told to, and as Prometheus reads them."""

import re
import subprocess
from collections.abc import Mapping

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import REPOSITORY, Crio, Site
from tests.integration.test_server_http import http
from tests.integration.test_simulate import _simulated

pytestmark = pytest.mark.integration

Samples = Mapping[tuple[str, ...], float]


@pytest.fixture(scope="module")
def server_flags() -> tuple[str, ...]:
    """Flags of this module's server."""
    return ("--enable-metrics", "--metrics-port", "0")


def _samples(text: str) -> Samples:
    """Figures by the name of the sample and the values of its labels, `le` last."""
    return {
        (one.name, *(one.labels[key] for key in sorted(one.labels, key="le".__eq__))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def _address(crio: Crio) -> str:
    found = re.search(r"metrics at (http://127\.0\.0\.1:\d+)/metrics", crio.log.read_text())
    assert found is not None
    return found[1]


def test_metrics_tell_of_calls_effects_plugins_and_of_what_there_is(crio: Crio) -> None:
    """What was done between two looks is in the difference; failures are counted apart, whichever way a call went."""
    with http(crio.site.socket) as client:
        before = _samples(client.get("/metrics").text)
        with crio.pod() as pod:
            container = crio.create(pod, crio.container_config(["sleep", "1000"]))
            crio.client(pb.StartContainerRequest(container_id=container))
            for _ in range(5):
                crio.client(pb.ListContainersRequest())
            crio.client.refusal(pb.ContainerStatusRequest(container_id="none"))
            crio.client.refusal(pb.StartContainerRequest(container_id="none"))
            answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        found = _samples(answer.text)
        gone = _samples(client.get("/metrics").text)

    def more(*key: str) -> float:
        return found[key] - before.get(key, 0)

    assert more("crio_operations_total", "RunPodSandbox") == 1
    assert more("crio_operations_total", "StartContainer") == 2
    assert more("crio_operations_errors_total", "StartContainer") == 1
    assert more("crio_operations_total", "ListContainers") >= 5
    assert more("crio_operations_errors_total", "ContainerStatus") == 1
    assert more("crio_operations_seconds_count", "RunPodSandbox") == 1
    assert more("crio_operations_seconds_bucket", "RunPodSandbox", "+Inf") == 1
    assert more("crio_operations_seconds_sum", "RunPodSandbox") > 0
    assert more("crio_effects_total", "CreateContainer") == 1
    assert more("crio_network_plugin_seconds_count", "bridge", "ADD") == 1
    assert (found["crio_pods", "ready"], found["crio_containers", "running"]) == (1, 1)
    assert (gone["crio_pods", "ready"], gone["crio_containers", "running"]) == (0, 0)
    assert found["crio_images",] == 1 and found["crio_owed",] == 0 and found["crio_network_ready",] == 1
    assert found["process_resident_memory_bytes",] > 1 << 20


def test_over_tcp_there_are_metrics_and_nothing_else(crio: Crio) -> None:
    """Who may know how the server does need not know the configuration, nor what runs."""
    address = _address(crio)
    assert "crio_info" in httpx.get(f"{address}/metrics", timeout=20).text
    for path in ("/config", "/info", "/", "/metrics/"):
        assert httpx.get(address + path, timeout=20).status_code == 404


def test_an_address_that_is_taken_is_a_reason_not_to_start(crio: Crio, site: Site) -> None:
    """The message names the options."""
    port = _address(crio).rpartition(":")[2]
    second = Crio(site, "--enable-metrics", "--metrics-port", port)
    ended = subprocess.run(second.argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        f"crio.metrics.metrics_host and metrics_port: 127.0.0.1:{port}: address already in use" in ended.stderr.lower()
    )


def test_a_simulated_server_has_metrics_too() -> None:
    """The same page, of the simulated node."""
    with _simulated() as simulated, http(simulated.socket) as client:
        simulated.run_pod("counted")
        found = _samples(client.get("/metrics").text)
    assert found["crio_pods", "ready"] == 1
    assert found["crio_effects_total", "PrepareSandbox"] == 1
