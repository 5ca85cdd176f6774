"""Which AppArmor profile a container asks the node for, and what its spec says when there is none."""

from dataclasses import replace

import orjson
import pytest

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import ContainerConfig, ProfileType, SecurityProfile
from crio_core.node import specs
from crio_core.oci.facts import RootfsFacts
from crio_core.sim import Simulation
from crio_core.sim.programs import container_config
from tests.property.test_node_regressions import run_pod, simulation

LOCALHOST = SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="localhost/mine")
UNCONFINED = SecurityProfile(profile_type=ProfileType.UNCONFINED)


def _with(config: ContainerConfig, profile: SecurityProfile) -> ContainerConfig:
    context = replace(config.linux.security_context, apparmor=profile)
    return replace(config, linux=replace(config.linux, security_context=context))


def _created(sim: Simulation, config: ContainerConfig) -> tuple[str, fx.MountRootfs]:
    """A new container, and the order that mounted its root filesystem."""
    orders: list[fx.MountRootfs] = []
    sim.on_event = lambda event, effects: orders.extend(
        one.order for one in effects if isinstance(one.order, fx.MountRootfs)
    )
    pod = run_pod(sim)
    sim.ask(rq.PullImage(image=config.image))
    created = sim.ask(rq.CreateContainer(sandbox_id=pod, config=config))
    assert isinstance(created, rp.Created)
    (order,) = orders
    return created.id, order


@pytest.mark.parametrize(
    ("profile", "enabled", "asked"),
    [
        (SecurityProfile(), True, "crio-default"),
        (SecurityProfile(), False, ""),
        (UNCONFINED, True, ""),
        (LOCALHOST, True, "mine"),
    ],
)
def test_the_node_is_asked_for_the_profile_that_the_spec_will_name(
    profile: SecurityProfile, enabled: bool, asked: str
) -> None:
    """What is put in a spec without being loaded makes the runtime fail, late and with its own words."""
    sim = simulation()
    sim.settings = replace(sim.settings, host=replace(sim.settings.host, apparmor=enabled))
    sim.crash_server()
    sim.start_server()
    key, order = _created(sim, _with(container_config(0, 0), profile))
    assert order.apparmor_profile == asked
    assert sim.node is not None
    state = sim.node._state
    for there in (True, False):
        mounted = ev.RootfsMounted(path="/r", facts=RootfsFacts(), apparmor=there)
        process = orjson.loads(specs.build(state, state.containers[key], mounted).create.spec)["process"]
        # A profile by name that is not there is refused by the node, and never comes here.
        kept = there or profile is LOCALHOST
        assert process.get("apparmorProfile", "") == (asked if kept else "")
