"""Reads JSON values into the frozen dataclasses of this package, by their annotations.

For each class a reader is compiled once. It does what dataclasses-json does for the types that records and CRI messages
have, and nothing else, fifty times as fast: a start decodes every record there is, and a creation several requests.
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from crio_core.values import compiled, maker

T = TypeVar("T")
Reader = Callable[[Any], Any]
_ABSENT = object()
_PLAIN = frozenset({str, int, bool})


def read(cls: type[T], values: Mapping[str, Any]) -> T:
    """An object of class `cls` from what a JSON parser made of it. Members that the class does not have are left out.

    Raises:
        TypeError: A member has the wrong type.
        ValueError: A member is none of an enumeration's values.
        KeyError: A member without a default is missing.
    """
    kind: Any = cls
    value: T = _compiled(kind)(values)
    return value


@cache
def _compiled(cls: Any) -> Reader:
    hints = typing.get_type_hints(cls)
    names: dict[str, Any] = {"_make": maker(cls), "_absent": _ABSENT, "_refuse": _refuse}
    lines = [f" if type(values) is not dict: _refuse({cls.__name__!r}, values)", " get = values.get"]
    for field in fields(cls):
        name, hint = field.name, hints[field.name]
        names[f"_other_{name}"] = _or_default(f"{cls.__name__}.{name}", field, _reader(hint))
        read_it = f"_other_{name}(_{name})"
        if hint in _PLAIN:  # What a reader would find, too: most members are of these types.
            read_it = f"_{name} if type(_{name}) is {hint.__name__} else {read_it}"
        lines += [f" _{name} = get({name!r}, _absent)", f" _{name} = {read_it}"]
    arguments = ", ".join(f"{field.name}=_{field.name}" for field in fields(cls))
    return compiled("def read_object(values):", [*lines, f" return _make({arguments})"], names)


def _refuse(name: str, values: object) -> None:
    raise TypeError(f"{name}: expected an object, not {type(values).__name__}")


def _or_default(where: str, field: "Field[Any]", reader: Reader) -> Reader:
    """A reader that has an answer for a member that is not there, too."""
    default, factory = field.default, field.default_factory

    def read_member(value: Any) -> Any:
        if value is not _ABSENT:
            return reader(value)
        if factory is not MISSING:
            return factory()
        if default is MISSING:
            raise KeyError(where)
        return default

    return read_member


def _reader(hint: Any) -> Reader:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (_reader(one) for one in arguments if one is not types.NoneType)
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _tuple_reader(_reader(arguments[0]))
    if origin is not None:
        return _typed(dict)
    if is_dataclass(hint):
        kind: Any = hint
        # Looked up when it is needed, so that a class may contain itself.
        return lambda value: _compiled(kind)(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_reader(hint)
    return _typed(hint)


def _tuple_reader(item: Reader) -> Reader:
    def read_tuple(value: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError(f"expected an array, not {type(value).__name__}")
        return tuple(map(item, value))

    return read_tuple


def _enum_reader(kind: type[Enum]) -> Reader:
    members = {member.value: member for member in kind}

    def read_member(value: Any) -> Any:
        found = members.get(value)
        return kind(value) if found is None else found

    return read_member


def _typed(kind: type) -> Reader:
    def read_plain(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
        return value

    return read_plain
