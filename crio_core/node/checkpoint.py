"""A node's whole state at one moment, as a value, and a node made from it again: where a recording begins."""

from typing import Any

from crio_core.node import Node, Settings
from crio_core.node.state import TABLES
from crio_core.node.table import Table
from crio_core.values import dataclass

SCALARS = ("next_effect", "at_ns", "wall_ns", "boot_id", "network", "network_reason", "last_generation")
HISTORY_TABLES = ("paths", "troubles", "inflight", "lanes", "timers", "departed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything of a node but its settings. Taking one copies no record, since records are values."""

    scalars: tuple[Any, ...]
    tables: tuple[tuple[tuple[Any, Any], ...], ...]
    history: tuple[tuple[tuple[Any, Any], ...], ...]


def take(node: Node) -> Checkpoint:
    """The state of a node between two steps."""
    state = node._state
    return Checkpoint(
        scalars=tuple(getattr(state, name) for name in SCALARS),
        tables=tuple(getattr(state, name).items() for name in TABLES),
        history=tuple(getattr(state.history, name).items() for name in HISTORY_TABLES),
    )


def restore(settings: Settings, checkpoint: Checkpoint) -> Node:
    """A node in this state."""
    node = Node(settings)
    state = node._state
    for name, items in zip(TABLES, checkpoint.tables, strict=True):
        _fill(getattr(state, name), items)
    # Filling the tables has told the history of it: what it remembers is replaced as a whole.
    for name, items in zip(HISTORY_TABLES, checkpoint.history, strict=True):
        table: Table[Any, Any] = Table(state.undo)
        _fill(table, items)
        setattr(state.history, name, table)
    for name, value in zip(SCALARS, checkpoint.scalars, strict=True):
        setattr(state, name, value)
    state.undo.clear()
    return node


def _fill(table: Table[Any, Any], items: tuple[tuple[Any, Any], ...]) -> None:
    for key, value in items:
        table.put(key, value)


def skip_answers(node: Node, count: int) -> None:
    """Let the node be as if it had answered this many questions, each with one reply and no other trace."""
    node._state.next_effect += count
