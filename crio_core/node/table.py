"""A dictionary whose changes can be taken back until the step that made them is over."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
"""Values are never None: that stands for absence."""
Change = tuple[dict[Any, Any], Any, Any]
"""A dictionary, a key, and the value that it had."""


def take_back(changes: list[Change], mark: int = 0) -> None:
    """Undo the changes after the first `mark`, the last one first, and forget them."""
    for items, key, before in reversed(changes[mark:]):
        if before is None:
            items.pop(key)
        else:
            items[key] = before
    del changes[mark:]


class Table(Generic[K, V]):
    """A dictionary that writes down how to undo each change.

    Args:
        undo: Where to, for `take_back`; emptied by the node when a step is over.
    """

    __slots__ = ("_items", "_undo", "get")

    def __init__(self, undo: list[Change]) -> None:
        self._items: dict[K, V] = {}
        self._undo = undo
        self.get: Callable[[K], V | None] = self._items.get
        """The dictionary's own, as nothing else of a node is called as often."""

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def keys(self) -> tuple[K, ...]:
        return tuple(self._items)

    def values(self) -> tuple[V, ...]:
        return tuple(self._items.values())

    def items(self) -> tuple[tuple[K, V], ...]:
        return tuple(self._items.items())

    def put(self, key: K, value: V) -> None:
        items = self._items
        self._undo.append((items, key, items.get(key)))
        items[key] = value

    def pop(self, key: K) -> V | None:
        value = self._items.pop(key, None)
        if value is not None:
            self._undo.append((self._items, key, value))
        return value


class WatchedTable(Table[K, V]):
    """A table whose changes somebody wants to know of.

    Args:
        undo: As for a table.
        noted: Told the key and the value before and after each change; None stands for absence.
    """

    __slots__ = ("_noted", "changes")

    def __init__(self, undo: list[Change], noted: Callable[[K, V | None, V | None], None]) -> None:
        super().__init__(undo)
        self._noted = noted
        self.changes = 0
        """How often something was changed: what was made of the table is still true while this is the same."""

    def put(self, key: K, value: V) -> None:
        before = self.get(key)
        super().put(key, value)
        self.changes += 1
        self._noted(key, before, value)

    def pop(self, key: K) -> V | None:
        value = super().pop(key)
        if value is not None:
            self.changes += 1
            self._noted(key, value, None)
        return value
