"""Which rows of the lifecycle tables were taken: a row that no simulation reaches is either dead or untested."""

from collections.abc import Mapping
from enum import Enum
from types import TracebackType
from typing import Any, Self

from crio_core.lifecycle.container import CONTAINER
from crio_core.lifecycle.engine import Lifecycle
from crio_core.lifecycle.image import IMAGE
from crio_core.lifecycle.layer import LAYER
from crio_core.lifecycle.sandbox import SANDBOX
from crio_core.lifecycle.session import SESSION

MACHINES: tuple[Lifecycle[Any], ...] = (SANDBOX, CONTAINER, IMAGE, LAYER, SESSION)


class Coverage:
    """Counts transitions while its block runs."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, Enum, type], int] = {}

    def __enter__(self) -> Self:
        for machine in MACHINES:
            machine.on_transition = self._count
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in MACHINES:
            machine.on_transition = None

    def _count(self, name: str, came_from: Enum, event: type, to: Enum) -> None:
        key = (name, came_from, event)
        self.taken[key] = self.taken.get(key, 0) + 1

    def missing(self) -> tuple[str, ...]:
        """Rows never taken, as `machine: state + event`."""
        return tuple(
            f"{machine.name}: {state.value} + {event.__name__}"
            for machine in MACHINES
            for state, event in machine.table
            if (machine.name, state, event) not in self.taken
        )

    def counts(self) -> Mapping[str, tuple[int, int]]:
        """Rows taken and rows in all, by machine."""
        return {
            machine.name: (sum(key[0] == machine.name for key in self.taken), len(machine.table))
            for machine in MACHINES
        }

    def report(self) -> tuple[str, ...]:
        """Lines for a person."""
        lines = [f"{name}: {taken} of {rows} transitions taken" for name, (taken, rows) in self.counts().items()]
        return (*lines, *(f"never taken: {row}" for row in self.missing()))
