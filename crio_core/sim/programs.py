"""Programs for a simulated node: what clients ask and what befalls it, as values that can be kept and run again.

`crio_core/sim/players.py` carries them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crio_core.cri import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    LinuxContainerConfig,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    Mount,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
    PortMapping,
)
from crio_core.sim.chance import Chance
from crio_core.sim.images import APP, BASE, OTHER, PAUSE, REPACKED

PODS = 3
CONTAINERS = 2
REFERENCES = (BASE, APP, OTHER, PAUSE, "docker.io/library/nowhere:1", REPACKED)
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("sleep", "inf"),
    ("exit", "0"),
    ("exit", "3"),
    ("sleep", "20"),
    ("deaf",),
    ("stuck", "30"),
    ("crash",),
    ("slow", "5"),
)
BAD_DIRECTORY = "/proc/self/fd/7"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing that happens; what `a`, `b` and `c` mean depends on it, and any number will do."""

    name: str
    a: int = 0
    b: int = 0
    c: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What happens on a node, in order; `faults` is the name of a profile."""

    seed: int
    faults: str
    actions: tuple[Action, ...]


def pod_config(slot: int, attempt: int = 0, variant: int = 0) -> PodSandboxConfig:
    """A pod. Variants: 0 plain, 1 on the node's network, 2 with a shared PID namespace, 3 as another client has it."""
    pid = NamespaceMode.POD if slot == 2 or variant == 2 else NamespaceMode.CONTAINER
    network = NamespaceMode.NODE if slot == 1 or variant == 1 else NamespaceMode.POD
    return PodSandboxConfig(
        metadata=PodSandboxMetadata(name=f"pod{slot}", uid=f"uid{slot}", namespace="default", attempt=attempt),
        labels={"slot": str(slot)} if variant < 3 else {"slot": str(slot), "client": "other"},
        log_directory=f"/var/log/pods/{slot}",
        port_mappings=(PortMapping(container_port=80, host_port=8000 + slot),) if slot == 0 else (),
        linux=LinuxPodSandboxConfig(
            security_context=LinuxSandboxSecurityContext(namespace_options=NamespaceOption(pid=pid, network=network))
        ),
    )


def container_config(slot: int, number: int, what: int = 0) -> ContainerConfig:
    """A container of the pod in this slot; `what` chooses image and command."""
    options = pod_config(slot).linux.security_context.namespace_options
    return ContainerConfig(
        metadata=ContainerMetadata(name=f"c{number}"),
        image=ImageSpec(image=REFERENCES[what % 3]),
        command=COMMANDS[what % len(COMMANDS)],
        working_dir=BAD_DIRECTORY if what % 64 == 63 else "",
        log_path=f"c{number}.log",
        mounts=(Mount(container_path="/data", image=ImageSpec(image=REFERENCES[what // 3 % 3])),) * (what % 5 == 4),
        linux=LinuxContainerConfig(security_context=LinuxContainerSecurityContext(namespace_options=options)),
    )


WEIGHTS: tuple[tuple[int, str], ...] = (
    (10, "run_pod"),
    (6, "stop_pod"),
    (6, "remove_pod"),
    (2, "pod_status"),
    (3, "list_all"),
    (10, "create"),
    (10, "start"),
    (7, "stop"),
    (6, "remove"),
    (6, "status"),
    (6, "execute"),
    (2, "reopen"),
    (3, "limit"),
    (6, "pull"),
    (3, "remove_image"),
    (1, "image_status"),
    (1, "node_status"),
    (4, "cancel"),
    (8, "prepare"),
    (16, "wait"),
    (12, "tick"),
    (12, "meet"),
    (12, "race"),
    (4, "owe"),
    (4, "wake"),
    (3, "hurry"),
    (2, "haunt"),
    (2, "botch_pull"),
    (4, "repull"),
    (4, "crash"),
    (1, "lose_namespaces"),
    (1, "rot"),
    (1, "garble_row"),
    (1, "lose_row"),
    (2, "run_dry"),
    (1, "power_cut"),
    (2, "kill_monitor"),
    (3, "kill_process"),
    (5, "fail_next"),
    (3, "slow_next"),
    (1, "network"),
    (1, "plugins"),
    (1, "disk"),
    (1, "clock_step"),
    (2, "replace_pod"),
    (2, "calm"),
)


_NAMES = tuple(name for weight, name in WEIGHTS for _ in range(weight))


def random_program(seed: int, *, length_max: int = 60) -> Program:
    """The program of a seed."""
    chance = Chance(seed ^ 0x5EED)
    faults = chance.pick(("none", "few", "few", "many"))
    actions: list[Action] = []
    for number in range(4 + chance.below(length_max - 3)):
        # Most programs begin with something that the rest can meet.
        name = "prepare" if number < 2 and chance.happens(0.7) else chance.pick(_NAMES)
        actions.append(Action(name=name, a=chance.below(64), b=chance.below(8), c=chance.below(1000)))
    return Program(seed=seed, faults=faults, actions=tuple(actions))


def swarm_program(seed: int, *, length_max: int = 120) -> Program:
    """A one-sided program: about half of what can happen never does, and the rest with weights of the seed's own.

    What is rare among `random_program` becomes common in some of these, and so does what only many of one kind show.
    """
    chance = Chance(seed ^ 0x53A4)
    faults = chance.pick(("none", "few", "many", "many"))
    names = [name for _, name in WEIGHTS if chance.happens(0.5) for _ in range(1 + chance.below(12))] or list(_NAMES)
    actions = [Action(name="prepare", a=chance.below(64), b=chance.below(8), c=chance.below(1000))]
    for _ in range(4 + chance.below(length_max - 4)):
        actions.append(Action(name=chance.pick(names), a=chance.below(64), b=chance.below(8), c=chance.below(1000)))
    return Program(seed=seed, faults=faults, actions=tuple(actions))


def to_json(program: Program) -> dict[str, Any]:
    """A program as it is kept in the corpus."""
    actions = [[one.name, one.a, one.b, one.c] for one in program.actions]
    return {"seed": program.seed, "faults": program.faults, "actions": actions}


def from_json(fields: Mapping[str, Any]) -> Program:
    """Read what `to_json` made."""
    actions = tuple(Action(name=name, a=a, b=b, c=c) for name, a, b, c in fields["actions"])
    return Program(seed=fields["seed"], faults=fields["faults"], actions=actions)
