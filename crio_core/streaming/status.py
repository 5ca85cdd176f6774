"""How a command ended: `metav1.Status` in JSON on the error stream since protocol v4, text before that."""

from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The command ran and ended."""

    code: int
    """0 to 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The command was not run to its end, or nobody knows how it ended."""

    message: str


Ended = Exited | Failed
