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
        noted: Told the key and the value before and after each change; None stands for absence.
    """

    __slots__ = ("_items", "_noted", "_undo", "changes")

    def __init__(self, undo: list[Change], noted: Callable[[K, V | None, V | None], None] | None = None) -> None:
        self._items: dict[K, V] = {}
        self._undo = undo
        self._noted = noted
        self.changes = 0
        """How often something was changed: what was made of the table is still true while this is the same."""

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        return self._items.get(key)

    def keys(self) -> tuple[K, ...]:
        return tuple(self._items)

    def values(self) -> tuple[V, ...]:
        return tuple(self._items.values())

    def items(self) -> tuple[tuple[K, V], ...]:
        return tuple(self._items.items())

    def put(self, key: K, value: V) -> None:
        self.changes += 1
        before = self._items.get(key)
        self._undo.append((self._items, key, before))
        self._items[key] = value
        if self._noted is not None:
            self._noted(key, before, value)

    def pop(self, key: K) -> V | None:
        value = self._items.pop(key, None)
        if value is None:
            return None
        self.changes += 1
        self._undo.append((self._items, key, value))
        if self._noted is not None:
            self._noted(key, value, None)
        return value
