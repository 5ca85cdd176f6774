"""What a pod hands on to its namespaces and containers: names, settings, and no more of the node than it has itself."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import CDIDevice, ContainerConfig, NamespaceMode, PodSandboxConfig
from crio_core.errors import Code, OperationError
from crio_core.node import specs
from crio_core.oci.facts import CgroupDriver, HostFacts, RootfsFacts, SpecDefaults
from crio_core.sim import Simulation
from crio_core.sim.profiles import MS
from crio_core.sim.programs import container_config, pod_config
from tests.property.test_node_regressions import run_container, run_pod, simulation


def node(**defaults: Any) -> Simulation:
    """A node whose configuration says this about every container."""
    sim = simulation()
    sim.settings = replace(sim.settings, defaults=replace(SpecDefaults(), **defaults))
    sim.crash_server()
    sim.start_server()
    return sim


def prepared(sim: Simulation, config: PodSandboxConfig) -> fx.PrepareSandbox:
    """The order that made the namespaces of a new pod."""
    found: list[fx.PrepareSandbox] = []
    sim.on_event = lambda event, effects: found.extend(
        one.order for one in effects if isinstance(one.order, fx.PrepareSandbox)
    )
    sim.ask(rq.RunPodSandbox(config=config))
    (order,) = found
    return order


def with_sysctls(config: PodSandboxConfig, **sysctls: str) -> PodSandboxConfig:
    return replace(
        config, linux=replace(config.linux, sysctls={name.replace("__", "."): v for name, v in sysctls.items()})
    )


def test_default_sysctls_are_set_in_every_pod_and_yield_to_its_own() -> None:
    """An operator's setting must hold for pods without an infra container too, which are nearly all."""
    sim = node(default_sysctls={"net.core.somaxconn": "512", "kernel.shmmax": "1"})
    order = prepared(sim, with_sysctls(pod_config(0), kernel__shmmax="2"))
    assert order.sysctls == {"net.core.somaxconn": "512", "kernel.shmmax": "2"}


def test_default_sysctls_of_a_namespace_that_is_the_nodes_are_left_out() -> None:
    """CVE-2022-0532: a default must not change the node."""
    sim = node(default_sysctls={"net.core.somaxconn": "512", "kernel.shmmax": "1"})
    assert prepared(sim, pod_config(1)).sysctls == {"kernel.shmmax": "1"}


def test_sysctl_that_is_the_nodes_is_refused_before_anything_is_reserved() -> None:
    """The refusal names the field, and there is nothing to unwind."""
    sim = node()
    with pytest.raises(OperationError, match=r"config\.linux\.sysctls") as refused:
        sim.ask(rq.RunPodSandbox(config=with_sysctls(pod_config(1), net__core__somaxconn="1")))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert not sim.world.rows


@pytest.mark.parametrize("parent", ["../../escape", "kubepods.slice", "/a/../../b"])
def test_cgroup_parent_that_is_no_path_is_refused_before_anything_is_reserved(parent: str) -> None:
    """Refused later, its removal would be refused as well, and be owed for ever."""
    sim, config = node(), pod_config(0)
    with pytest.raises(OperationError, match="cgroup_parent") as refused:
        sim.ask(rq.RunPodSandbox(config=replace(config, linux=replace(config.linux, cgroup_parent=parent))))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert not sim.world.rows


def container(sim: Simulation, pod: PodSandboxConfig, config: ContainerConfig) -> str:
    """A container in a new pod; returns its id."""
    created = sim.ask(rq.RunPodSandbox(config=pod))
    assert isinstance(created, rp.Created)
    sim.ask(rq.PullImage(image=config.image))
    made = sim.ask(rq.CreateContainer(sandbox_id=created.id, config=config))
    assert isinstance(made, rp.Created)
    return made.id


@pytest.mark.parametrize(
    ("slot", "hostname", "expected"), [(0, "web-0", "web-0"), (1, "", "node-7"), (1, "mine", "mine"), (0, "", None)]
)
def test_hostname_in_the_environment_is_what_the_pod_is_called(slot: int, hostname: str, expected: str | None) -> None:
    """A pod on the node's network (slot 1) is called as the node; one that says nothing is called by its id."""
    sim = node()
    key = container(sim, replace(pod_config(slot), hostname=hostname), container_config(slot, 0))
    assert sim.node is not None
    state = sim.node._state
    record = state.containers[key]
    mounted = ev.RootfsMounted(path="/r", facts=RootfsFacts(), node_name="node-7")
    variables = orjson.loads(specs.build(state, record, mounted).create.spec)["process"]["env"]
    assert f"HOSTNAME={expected or record.sandbox_id[:12]}" in variables


@pytest.mark.parametrize(("slot", "expected"), [(0, True), (1, False)])
def test_name_of_a_pod_that_says_none_is_its_ids_or_the_nodes(slot: int, expected: bool) -> None:
    """/etc/hostname must say what hostname(1) says."""
    order = prepared(node(), pod_config(slot))
    assert order.hostname == (order.sandbox_id[:12] if expected else "")


def given_more(config: ContainerConfig, **fields: Any) -> ContainerConfig:
    context = config.linux.security_context
    names = {name: fields.pop(name) for name in ("network", "pid", "ipc") if name in fields}
    context = replace(context, namespace_options=replace(context.namespace_options, **names), **fields)
    return replace(config, linux=replace(config.linux, security_context=context))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"privileged": True}, "config.linux.security_context.privileged"),
        ({"network": NamespaceMode.NODE}, "config.linux.security_context.namespace_options.network"),
        ({"pid": NamespaceMode.NODE}, "config.linux.security_context.namespace_options.pid"),
        ({"ipc": NamespaceMode.NODE}, "config.linux.security_context.namespace_options.ipc"),
    ],
)
def test_container_that_is_given_more_of_the_node_than_its_pod_is_refused(fields: dict[str, Any], named: str) -> None:
    """Who admitted the pod looked at the pod; the CRI's own words are that it must be privileged too."""
    sim = node()
    with pytest.raises(OperationError, match=named.replace(".", r"\.")) as refused:
        container(sim, pod_config(0), given_more(container_config(0, 0), **fields))
    assert refused.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "fields",
    [
        {"CDI_devices": (CDIDevice(name="vendor.com/gpu=0"),)},
        {"annotations": {"cdi.k8s.io/driver": "vendor.com/gpu=0"}},
    ],
)
def test_a_device_that_would_not_be_given_is_refused(fields: dict[str, Any]) -> None:
    """A program that was promised an accelerator would work without it, and nobody would know why it is slow."""
    sim = simulation()
    config = replace(container_config(0, 0), **fields)
    sim.ask(rq.PullImage(image=config.image))
    with pytest.raises(OperationError, match=r"'vendor\.com/gpu=0': no specification has it") as caught:
        sim.ask(rq.CreateContainer(sandbox_id=run_pod(sim), config=config))
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "CDI_DEVICE_NOT_FOUND")


def test_scratch_space_stays_writable_where_root_filesystems_are_read_only() -> None:
    """The option promises it: a program that writes its pid file to /run must go on working."""
    sim = node(read_only=True)
    key = container(sim, pod_config(0), container_config(0, 0))
    assert sim.node is not None
    state = sim.node._state
    mounted = ev.RootfsMounted(path="/r", facts=RootfsFacts())
    spec = orjson.loads(specs.build(state, state.containers[key], mounted).create.spec)
    assert spec["root"]["readonly"] is True
    kinds = {one["destination"]: one["type"] for one in spec["mounts"]}
    assert [kinds.get(path) for path in ("/run", "/tmp", "/var/tmp")] == ["tmpfs"] * 3


@pytest.mark.parametrize("driver", list(CgroupDriver))
def test_r29_a_control_group_that_is_left_never_has_the_name_of_the_next_one(driver: CgroupDriver) -> None:
    """R29: a scope that failed, for want of memory above all, would refuse another one of its name.

    Clients name the next attempt, and the pod that is made anew, as they named the last; what is on the node has ids.
    """
    sim = simulation()
    sim.settings = replace(sim.settings, host=HostFacts(cgroup_driver=driver))
    sim.crash_server()
    sim.start_server()
    groups: list[str] = []

    def note(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        created = (one.order for one in effects if isinstance(one.order, fx.CreateContainer))
        groups.extend(orjson.loads(one.spec)["linux"]["cgroupsPath"] for one in created)

    sim.on_event = note
    left: list[str] = []
    for attempt in range(4):
        pod = run_pod(sim)
        container = run_container(sim, pod)
        assert container in groups[-1] and sim.world.processes[container].running
        if attempt % 2:
            sim.hands.processes.run_dry(sim.world.processes[container], child=False)
            sim.run(100 * MS)
        # What the kernel or systemd holds on to outlives the container, and the pod.
        sim.fail_next.append((fx.DeleteContainer, 1))
        sim.ask(rq.RemoveContainer(container_id=container) if attempt < 2 else rq.RemovePodSandbox(sandbox_id=pod))
        left.append(container)
        assert container in sim.world.cgroups
    assert len(set(groups)) == len(groups) == len(left)
