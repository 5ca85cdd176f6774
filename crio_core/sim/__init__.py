"""A simulated node: the core on a world in memory, with a virtual clock, faults and crashes, from one seed."""

from crio_core.sim.images import REGISTRY, image
from crio_core.sim.profiles import FAULTS, LATENCIES, Faults, Latency
from crio_core.sim.registry import EveryImage
from crio_core.sim.simulation import SETTINGS, Call, Simulation
from crio_core.sim.world import Life, World

__all__ = [
    "FAULTS",
    "LATENCIES",
    "REGISTRY",
    "SETTINGS",
    "Call",
    "EveryImage",
    "Faults",
    "Latency",
    "Life",
    "Simulation",
    "World",
    "image",
]
