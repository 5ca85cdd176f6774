"""What the core makes its values of: `dataclass`, with methods that are compiled when they are first used.

The standard library compiles six functions for every class as soon as the class is made, which took half of the time in
which a server with three hundred of them starts; most are never called. Here `__init__`, `__eq__` and `__hash__` take
their place in the class when they are looked up, and the rest is the same for every class. In all else such a class is
a dataclass: for `fields`, `replace` and `is_dataclass`, for orjson and for type checkers.

A program that forks workers would compile anew in each of them: what they are made of uses `dataclasses.dataclass`.
"""

import dataclasses
from collections.abc import Callable
from enum import Enum
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_Method = Callable[..., Any]
_new = object.__new__


class Word(Enum):
    """An enumeration whose members are keys of tables: each is one object, and is hashed as one.

    Enumerations of the standard library hash the name, and look the value up, by functions in Python.
    """

    __hash__ = object.__hash__
    if not TYPE_CHECKING:
        value = property(attrgetter("_value_"))


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
    names: dict[str, Any] = {}
    parameters, lines = _parameters(cls, names), _setting(cls, names, "self")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    init = compiled(f"def __init__({', '.join(['self', *parameters])}):", lines or [" pass"], names)
    init.__annotations__ = {field.name: field.type for field in dataclasses.fields(cls)} | {"return": None}
    return init


def _parameters(cls: Any, names: dict[str, Any]) -> list[str]:
    """The parameters of what makes objects; `names` gets what their defaults are called."""
    plain: list[str] = []
    keywords: list[str] = []
    names["_absent"] = object()
    for field in dataclasses.fields(cls):
        parameter = field.name
        if field.default is not dataclasses.MISSING:
            names[f"_default_{field.name}"] = field.default
            parameter += f"=_default_{field.name}"
        elif field.default_factory is not dataclasses.MISSING:
            names[f"_default_{field.name}"] = field.default_factory
            parameter += "=_absent"
        (keywords if field.kw_only else plain).append(parameter)
    return [*plain, "*", *keywords] if keywords else plain


def _setting(cls: Any, names: dict[str, Any], target: str) -> list[str]:
    """Lines that give an object the arguments."""
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        name = field.name
        if field.default_factory is not dataclasses.MISSING:
            lines.append(f" if {name} is _absent: {name} = _default_{name}()")
        # The slot's own method is found once, here, instead of by name at each assignment.
        slot = cls.__dict__.get(name)
        if hasattr(slot, "__set__"):
            names[f"_set_{name}"] = slot.__set__
            lines.append(f" _set_{name}({target}, {name})")
        else:
            names["_set"] = object.__setattr__
            lines.append(f" _set({target}, {name!r}, {name})")
    return lines


def maker(cls: Callable[P, T]) -> Callable[P, T]:
    """A plain function that makes values of a class, for those that are made in every step: it takes half the time.

    A call of a class puts its keywords into a dictionary first, a call of a function does not.
    """
    kind: Any = cls
    names: dict[str, Any] = {"_new": _new, "_kind": kind}
    parameters = _parameters(kind, names)
    lines = [" _made = _new(_kind)", *_setting(kind, names, "_made"), " return _made"]
    return compiled(f"def make({', '.join(parameters)}):", lines, names)


def _replace_of(cls: Any) -> _Method:
    """For values with slots: a changed field is given, the others are read out of their slots."""
    names: dict[str, Any] = {"_absent": object(), "_new": _new, "_cls": cls}
    lines = [" _changed = _new(_cls)"]
    parameters = []
    for field in dataclasses.fields(cls):
        name = field.name
        names[f"_set_{name}"] = cls.__dict__[name].__set__
        parameters.append(f"{name}=_absent")
        lines.append(f" _set_{name}(_changed, self.{name} if {name} is _absent else {name})")
    head = f"def __replace__({', '.join(['self', '/', '*', *parameters])}):"
    return compiled(head, [*lines, " return _changed"], names)


def _eq_of(cls: Any) -> _Method:
    lines = [
        " if other.__class__ is not self.__class__: return NotImplemented",
        f" return {_tuple(cls, 'self')} == {_tuple(cls, 'other')}",
    ]
    return compiled("def __eq__(self, other):", lines, {})


def _hash_of(cls: Any) -> _Method:
    return compiled("def __hash__(self):", [f" return hash({_tuple(cls, 'self')})"], {})


def _tuple(cls: Any, name: str) -> str:
    return f"({''.join(f'{name}.{field.name}, ' for field in dataclasses.fields(cls))})"


def compiled(head: str, lines: list[str], names: dict[str, Any]) -> _Method:
    """A function out of its first line, the lines below it, and what its names mean."""
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
        """What `dataclasses.replace` does, in a fraction of the time. A `__post_init__` is not called.

        Names are looked at only where there are slots: type checkers do that.
        """
        fields = getattr(value, "__dict__", None)
        if fields is None:
            return value.__replace__(**changes)
        changed = _new(type(value))
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
            if slots:
                result.__replace__ = _Late("__replace__", _replace_of)
            for name, method in methods.items():
                # Without fields there is nothing to do: the one of `object` is no function in Python.
                if name not in own and (name != "__init__" or dataclasses.fields(result)):
                    setattr(result, name, method)
            return result

        return made
