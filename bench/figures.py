"""What each figure is called, and the budget that this runtime is held to."""

from dataclasses import dataclass

from bench.peers import CONTAINERD, CRIO
from bench.scenarios import AT_ONCE, FLOOR, UNITS
from bench.statistics import Samples

WORDS = {
    "pod.up": "pod + container up",
    "pod.down": "pod + container down",
    "many.up": f"{AT_ONCE} pods at once, up",
    "many.down": f"{AT_ONCE} pods at once, down",
    "memory.idle": "server memory idle (PSS)",
    "memory.pod": "each pod with one container (PSS)",
    "cpu.polled": "CPU with 50 pods, polled as by a kubelet",
    "output.ExecSync": "output of a command, by ExecSync",
    "output.Exec": "output of a command, by Exec (stream)",
    "pull.large": "pull: large image",
    "pull.layered": "pull: 60 layers",
    "pull.same": "pull: large image, ten callers",
    "pull.ten": "pull: ten images at once",
    "pull.large.memory": "most memory above before: large image",
    "pull.layered.memory": "most memory above before: 60 layers",
    "pull.same.memory": "most memory above before: large image, ten callers",
    "pull.ten.memory": "most memory above before: ten images at once",
}


def words(figure: str) -> str:
    """How a figure is called in tables."""
    if figure in WORDS:
        return WORDS[figure]
    kind, _, rest = figure.partition(".")
    match kind:
        case "call" | "floor":
            return rest
        case "start":
            return f"start to serving, {rest} containers"
        case "memory":
            return f"memory with {rest} pods (PSS)"
        case "grown":
            what, _, level = rest.partition(".")
            return f"{what} beside {level} pods"
        case "core":
            return f"calls at {rest.rpartition('.')[2]} simulated pods"
        case _:
            return f"{kind} of {rest}"


def unit(figure: str) -> str:
    """The unit of a figure's samples."""
    return next((unit for prefix, unit in UNITS if figure.startswith(prefix) or figure.endswith(prefix)), "ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One line of the budget: medians, as a ratio to another subject or, with none, in the figure's own unit.

    Args:
        figure: What is limited.
        at_most: The limit.
        of: The subject that it is a ratio to.
        than: The figure of that subject, where it is another one.
    """

    figure: str
    at_most: float
    of: str = ""
    than: str = ""

    @property
    def against(self) -> str:
        """What is measured against, in words: a subject, another figure, or a unit."""
        return words(self.than) if self.than else self.of or unit(self.figure)

    def measured(self, samples: Samples) -> float | None:
        """What the run gave; None if it was not measured."""
        ours = samples.median(self.figure, CRIO)
        if ours is None or not self.of:
            return ours
        other = samples.median(self.than or self.figure, self.of)
        return ours / other if other else None


BUDGET = (
    Limit(figure="pod.up", at_most=0.50, of=CONTAINERD),
    Limit(figure="pod.up", at_most=1.25, of=FLOOR),
    Limit(figure="pod.down", at_most=0.80, of=CONTAINERD),
    Limit(figure="pod.down", at_most=1.15, of=FLOOR),
    Limit(figure="many.up", at_most=0.50, of=CONTAINERD),
    Limit(figure="many.down", at_most=0.75, of=CONTAINERD),
    Limit(figure="call.ExecSync", at_most=0.9, of=CONTAINERD),
    Limit(figure="call.ExecSync", at_most=1.3, of=FLOOR),
    *(
        Limit(figure=f"{method}.{count}", at_most=1.0, of=CONTAINERD)
        for method in ("ListContainers", "ListPodSandbox")
        for count in (150, 500)
    ),
    Limit(figure="memory.idle", at_most=48.0),
    Limit(figure="memory.pod", at_most=0.7),
    Limit(figure="start.500", at_most=500.0),
    Limit(figure="start.1000", at_most=1000.0),
    Limit(figure="pull.large", at_most=0.55, of=CONTAINERD),
    Limit(figure="pull.layered", at_most=0.75, of=CONTAINERD),
    Limit(figure="pull.same", at_most=1.1, of=CRIO, than="pull.large"),
    Limit(figure="pull.large.memory", at_most=100.0),
)
