"""What verbose statuses say of networks: whether a pod's is still what was reported, and how the plugins do."""

import json
import subprocess
from typing import Any

import pytest
from grpc import StatusCode

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, Site
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration


def info(crio: Crio, pod: str) -> Any:
    """What verbose status adds."""
    answer = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    return json.loads(answer.info["info"])


def test_address_that_somebody_took_from_a_pod_is_a_fault_in_its_status(crio: Crio) -> None:
    """R46: the address in the status is what ADD said; whether it is still true is looked at when somebody asks."""
    with crio.pod() as pod:
        before = info(crio, pod)
        assert before["networkFault"] == ""
        address = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.network.ip
        change = [
            "nsenter",
            f"--net={before['namespaces']['net']}",
            "ip",
            "address",
            "{}",
            f"{address}/24",
            "dev",
            "eth0",
        ]
        subprocess.run([word.format("del") for word in change], check=True, timeout=20)
        fault = info(crio, pod)["networkFault"]
        # The plugins find what else they made for the pod by its address.
        subprocess.run([word.format("add") for word in change], check=True, timeout=20)
        assert fault != "" and "bridge" in fault


def network_ready(crio: Crio) -> pb.RuntimeCondition:
    """The condition that a kubelet waits for."""
    status: pb.RuntimeStatus = crio.client(pb.StatusRequest()).status
    return next(one for one in status.conditions if one.type == "NetworkReady")


def test_plugin_that_says_it_is_not_ready_makes_the_node_so_until_it_is(site: Site) -> None:
    """CNI 1.1.0, STATUS: a node whose plugin waits for its controller must get no pods, for the plugin's own reason."""
    ready = site.directory / "ready"
    refusal = '{"cniVersion": "1.1.0", "code": 50, "msg": "no controller yet"}'
    plugin = site.write_plugin("STATUS", f"[ -e {ready} ] || {{ echo '{refusal}'; exit 1; }}", version="1.1.0")
    with Crio(site, "--cni-plugin-dir", str(plugin.parent)) as crio:
        wait_for("the plugin's word", lambda: "no controller yet" in network_ready(crio).message)
        assert not network_ready(crio).status
        refused = crio.client.refusal(pb.RunPodSandboxRequest(config=crio.pod_config()))
        assert (refused.code, "no controller yet" in refused.message) == (StatusCode.UNAVAILABLE, True)
        ready.touch()
        wait_for("the plugin's other word", lambda: network_ready(crio).status)
        crio.remove(crio.run_pod())


def test_runs_of_plugins_are_counted_with_their_last_error(crio: Crio) -> None:
    """F26: a plugin that has become slow or fails now and then must be found without reading logs."""
    with crio.pod() as pod:
        info(crio, pod)
    found = json.loads(crio.client(pb.StatusRequest(verbose=True)).info["networkPlugins"])
    by_run = {(one["plugin"], one["verb"]): one for one in found}
    assert {("bridge", "ADD"), ("bridge", "CHECK"), ("bridge", "DEL")} <= by_run.keys()
    added = by_run["bridge", "ADD"]
    assert added["runs"] >= 1 and 0 < added["meanSeconds"] <= added["maxSeconds"]


def test_verbose_status_of_a_pod_has_the_configuration_that_it_was_made_from(crio: Crio) -> None:
    """What `crioctl ctr create` sends along with a container, as the CRI wants it."""
    config = crio.pod_config(labels={"app": "web"}, port_mappings=[pb.PortMapping(container_port=80)])
    pod = crio.run_pod(config)
    told = info(crio, pod)["config"]
    assert (told["metadata"]["name"], told["labels"]) == (config.metadata.name, {"app": "web"})
    assert told["log_directory"] == config.log_directory
    assert told["port_mappings"][0]["container_port"] == 80
    crio.remove(pod)
