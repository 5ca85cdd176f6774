"""What plugins are told about a pod: nothing that a pod supplies can become something else on the way."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cni import Bandwidth, ConfFile, PodNetwork, bandwidth_from_annotations, parse_network, plan
from crio_core.cni.pod import PORT_MAPPINGS_MAX, capability_args, cni_args
from crio_core.cni.stats import BUCKETS_S, SERIES_MAX, PluginStats
from crio_core.cri import DNSConfig, PortMapping, Protocol
from crio_core.errors import OperationError

POD = PodNetwork(sandbox_id="c0ffee", namespace="default", name="web", uid="u")
NETWORK = parse_network(ConfFile(name="a.conf", content=b'{"name": "n", "type": "bridge"}'))


@given(namespace=st.text(max_size=12), name=st.text(max_size=12), uid=st.text(max_size=12))
def test_args_of_any_pod_hold_its_own_five_values_or_are_refused(namespace: str, name: str, uid: str) -> None:
    """A name such as `a;K8S_POD_NAMESPACE=kube-system` must not give a pod another identity."""
    pod = replace(POD, namespace=namespace, name=name, uid=uid)
    if any(char in ";=" or not char.isprintable() for char in namespace + name + uid):
        with pytest.raises(OperationError, match="CNI_ARGS"):
            cni_args(pod)
        return
    assert dict(pair.split("=") for pair in cni_args(pod).split(";")) == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": "c0ffee",
        "K8S_POD_UID": uid,
    }


@pytest.mark.parametrize("value", ["a;b", "a=b", "a\0b", "a\nb"])
def test_args_with_a_separator_in_a_value_are_refused(value: str) -> None:
    """The four ways to leave one's own field."""
    with pytest.raises(OperationError, match="K8S_POD_NAME"):
        cni_args(replace(POD, name=value))


@pytest.mark.parametrize(
    "pod",
    [
        replace(POD, sandbox_id="../x"),
        replace(POD, sandbox_id=""),
        replace(POD, ifname=""),
        replace(POD, ifname="a" * 16),
        replace(POD, ifname=".."),
        replace(POD, ifname="a/b"),
        replace(POD, ifname="a:b"),
        replace(POD, netns="/run/\0"),
        replace(POD, mac="00:11"),
        replace(POD, ips=("10.0.0",)),
        replace(POD, port_mappings=(PortMapping(container_port=0, host_port=80),)),
        replace(POD, port_mappings=(PortMapping(container_port=80, host_port=65536),)),
        replace(POD, port_mappings=(PortMapping(container_port=80, host_port=-1),)),
        replace(POD, port_mappings=(PortMapping(container_port=80, host_port=1, host_ip="10.0.0.0/8"),)),
        replace(POD, port_mappings=(PortMapping(container_port=1, host_port=1),) * (PORT_MAPPINGS_MAX + 1)),
    ],
)
def test_plan_of_a_pod_that_plugins_cannot_be_told_of_is_refused(pod: PodNetwork) -> None:
    """Checked before the first plugin runs, so that a refusal leaves nothing behind."""
    with pytest.raises(OperationError) as caught:
        plan(NETWORK, pod)
    assert caught.value.reason == "INVALID_FIELD"


def test_capabilities_have_the_names_and_shapes_of_the_conventions() -> None:
    """Plugins of other vendors read exactly these."""
    pod = replace(
        POD,
        port_mappings=(
            PortMapping(container_port=53, host_port=5353, protocol=Protocol.UDP, host_ip="127.0.0.1"),
            PortMapping(container_port=80, host_port=0),
        ),
        bandwidth=Bandwidth(ingress_bits=1_000_000),
        mac="02:00:00:00:00:01",
        ips=("10.0.0.5/24",),
        dns=DNSConfig(servers=("10.0.0.10",), searches=("svc",), options=("ndots:5",)),
        cgroup_path="/kubepods/x",
        annotations=(("a", "b"),),
    )
    assert capability_args(pod) == {
        "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}],
        "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 17179869176},
        "mac": "02:00:00:00:00:01",
        "ips": ["10.0.0.5/24"],
        "dns": {"servers": ["10.0.0.10"], "searches": ["svc"], "options": ["ndots:5"]},
        "cgroupPath": "/kubepods/x",
        "io.kubernetes.cri.pod-annotations": {"a": "b"},
    }
    assert json.loads(plan(NETWORK, pod).capabilities) == capability_args(pod)


@pytest.mark.parametrize(("text", "bits"), [("", 0), ("10M", 10**7), ("1Mi", 2**20), ("1k", 1000), ("2000000m", 2000)])
def test_bandwidth_annotations_are_quantities(text: str, bits: int) -> None:
    """The two annotations of Kubernetes, in its own notation."""
    annotations = {"kubernetes.io/ingress-bandwidth": text, "kubernetes.io/egress-bandwidth": "1G"}
    assert bandwidth_from_annotations(annotations) == Bandwidth(ingress_bits=bits, egress_bits=10**9)


@pytest.mark.parametrize("text", ["x", "-1", "999", "2P", "1e400", "10 M", "10Mb"])
def test_bandwidth_out_of_range_or_no_quantity_is_refused(text: str) -> None:
    """A limit that cannot be kept must not be dropped in silence."""
    with pytest.raises(OperationError, match="egress-bandwidth"):
        bandwidth_from_annotations({"kubernetes.io/egress-bandwidth": text})


def test_stats_beyond_their_bound_forget_the_series_unused_for_longest() -> None:
    """F26, R2: timings of plugins do not grow with the life of the server."""
    stats = PluginStats()
    stats.add("kept", "ADD", 0.007)
    for index in range(SERIES_MAX - 1):
        stats.add(f"p{index}", "ADD", 1000.0, "it broke")
    stats.add("kept", "ADD", 0.001)
    stats.add("last", "DEL", 1.0)
    names = [series.plugin for series in stats.series()]
    assert len(names) == SERIES_MAX and "kept" in names and "p0" not in names
    kept = next(series for series in stats.series() if series.plugin == "kept")
    assert (kept.runs, kept.failures, kept.max_s, kept.buckets[:2]) == (2, 0, 0.007, (1, 1))
    late = next(series for series in stats.series() if series.plugin == "p1")
    assert (late.failures, late.last_error, late.buckets[len(BUCKETS_S)]) == (1, "it broke", 1)
