"""Small immutable values for events and effects.

A frozen dataclass would be the usual choice. Its module alone adds 1.9 MB to every monitor that is started from the
command line, so the few values that a monitor needs are slotted classes with one shared base.
"""


class Value:
    """A value that is equal to another of its class with equal fields, and that is never changed after `__init__`."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and type(other) is type(self) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"
