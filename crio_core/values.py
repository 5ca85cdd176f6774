"""`dataclass`, with methods that are compiled when they are first used.

The standard library compiles six functions for every class as soon as the class is made, which took half of the time in
which a server with three hundred of them starts; most are never called. Here `__init__`, `__eq__` and `__hash__` take
their place in the class when they are looked up, and the rest is the same for every class. In all else such a class is
a dataclass: for `fields`, `replace` and `is_dataclass`, for orjson and for type checkers.

A program that forks workers would compile anew in each of them: what they are made of uses `dataclasses.dataclass`.
"""

import dataclasses
from collections.abc import Callable
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

_Method = Callable[..., Any]


class _Late:
    """A method that is compiled when it is looked up for the first time, and is an ordinary one from then on."""

    __slots__ = ("_compiled", "_name")

    def __init__(self, name: str, compiled: Callable[[Any], _Method]) -> None:
        self._name = name
        self._compiled = compiled

    def __get__(self, instance: object, owner: Any = None) -> Any:
        cls = next(one for one in owner.__mro__ if one.__dict__.get(self._name) is self)
        method = self._compiled(cls)
        method.__qualname__ = f"{cls.__qualname__}.{self._name}"
        setattr(cls, self._name, method)
        return getattr(owner if instance is None else instance, self._name)


def _init_of(cls: Any) -> _Method:
    names: dict[str, Any] = {"absent": object()}
    parameters: list[str] = []
    keywords: list[str] = []
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        name, parameter = field.name, field.name
        if field.default is not dataclasses.MISSING:
            names[f"default_{name}"] = field.default
            parameter += f"=default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            names[f"default_{name}"] = field.default_factory
            parameter += "=absent"
            lines.append(f" if {name} is absent: {name} = default_{name}()")
        (keywords if field.kw_only else parameters).append(parameter)
        # The slot's own method is found once, here, instead of by name at each assignment.
        slot = cls.__dict__.get(name)
        if hasattr(slot, "__set__"):
            names[f"set_{name}"] = slot.__set__
            lines.append(f" set_{name}(self, {name})")
        else:
            names["set"] = object.__setattr__
            lines.append(f" set(self, {name!r}, {name})")
    if keywords:
        parameters += ["*", *keywords]
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    init = _compiled(f"def __init__({', '.join(['self', *parameters])}):", lines or [" pass"], names)
    init.__annotations__ = {field.name: field.type for field in dataclasses.fields(cls)} | {"return": None}
    return init


def _eq_of(cls: Any) -> _Method:
    lines = [
        " if other.__class__ is not self.__class__: return NotImplemented",
        f" return {_tuple(cls, 'self')} == {_tuple(cls, 'other')}",
    ]
    return _compiled("def __eq__(self, other):", lines, {})


def _hash_of(cls: Any) -> _Method:
    return _compiled("def __hash__(self):", [f" return hash({_tuple(cls, 'self')})"], {})


def _tuple(cls: Any, name: str) -> str:
    return f"({''.join(f'{name}.{field.name}, ' for field in dataclasses.fields(cls))})"


def _compiled(head: str, lines: list[str], names: dict[str, Any]) -> _Method:
    found: dict[str, _Method] = {}
    exec("\n".join([head, *lines]), names, found)
    (method,) = found.values()
    return method


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_assignment(self: object, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deletion(self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


_METHODS: dict[str, Any] = {
    "__init__": _Late("__init__", _init_of),
    "__eq__": _Late("__eq__", _eq_of),
    "__repr__": _repr,
}
_FROZEN: dict[str, Any] = {
    "__hash__": _Late("__hash__", _hash_of),
    "__setattr__": _refuse_assignment,
    "__delattr__": _refuse_deletion,
}
_CHANGING: dict[str, Any] = {"__hash__": None}


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import replace as replace
else:

    def replace(value: Any, /, **changes: Any) -> Any:
        """What `dataclasses.replace` does; in a tenth of the time for values without slots, which have most fields.

        Names are not looked at: type checkers do that.
        """
        fields = getattr(value, "__dict__", None)
        if fields is None:
            return dataclasses.replace(value, **changes)
        changed = object.__new__(type(value))
        changed.__dict__.update(fields, **changes)
        return changed

    def dataclass(*, frozen: bool = False, slots: bool = False, kw_only: bool = False) -> Callable[[type], type]:
        """Make a class a dataclass; the arguments are those of the standard library. Its own methods are kept.

        Raises:
            TypeError: A field is left out of `__init__` or of comparisons, which these methods do not know.
        """
        methods = _METHODS | (_FROZEN if frozen else _CHANGING)

        def made(cls: type) -> type:
            own = frozenset(cls.__dict__)
            result = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(cls)
            for field in dataclasses.fields(result):
                if not (field.init and field.compare and field.hash is None):
                    raise TypeError(f"{cls.__qualname__}.{field.name}: only `default`, `default_factory` and `repr`")
            for name, method in methods.items():
                if name not in own:
                    setattr(result, name, method)
            return result

        return made
