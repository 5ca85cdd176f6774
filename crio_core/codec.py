"""Events, effects and everything in them as JSON, and back: for recordings.

Every value says what it is, so no schema is needed to read it: `{"$": "events.TimerFired", "timer_id": ...}`. Only the
classes of the core's own vocabulary can be read; fields that have their default are left out. What must not be written
down is redacted on the way (`redact.py`).
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import PurePosixPath
from types import MappingProxyType, ModuleType
from typing import Any

import orjson

from crio_core import cri, effects, events, layout, records, replies, requests
from crio_core.errors import LocalError
from crio_core.lifecycle import image, layer, session
from crio_core.node import history, settings
from crio_core.oci import facts
from crio_core.redact import Mask, redacted

_MODULES: tuple[ModuleType, ...] = (
    *(cri, effects, events, facts, history, image, layer, layout, records, replies, requests, session, settings),
)
_PREFIX = "crio_core."


def _vocabulary() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in _MODULES:
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and (is_dataclass(value) or issubclass(value, Enum)):
                found[f"{module.__name__.removeprefix(_PREFIX)}.{value.__name__}"] = value
    return found


_CLASSES = _vocabulary()
_TAGS: Mapping[type, str] = {cls: tag for tag, cls in _CLASSES.items()}
_FIELDS: Mapping[Any, tuple[Field[Any], ...]] = {cls: fields(cls) for cls in _CLASSES.values() if is_dataclass(cls)}


def to_values(value: object, mask: Mask) -> Any:
    """What JSON has for a value of the core, without secrets.

    Raises:
        LocalError: The value is of no kind that the core has, or is a secret that it must not have.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Enum):
        return {"$": _tag(value), "is": value.value}
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return [to_values(one, mask) for one in value]
    if isinstance(value, list):
        return {"$list": [to_values(one, mask) for one in value]}
    if isinstance(value, frozenset):
        return {"$set": [to_values(one, mask) for one in sorted(value)]}
    if isinstance(value, dict | MappingProxyType):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: to_values(one, mask) for key, one in value.items()}
        return {"$map": [[to_values(key, mask), to_values(one, mask)] for key, one in value.items()]}
    if isinstance(value, PurePosixPath):
        return {"$path": str(value)}
    return _object(value, mask)


def _tag(value: object) -> str:
    tag = _TAGS.get(type(value))
    if tag is None:
        raise LocalError(f"{type(value).__name__} is no part of the core's vocabulary")
    return tag


def _object(value: object, mask: Mask) -> dict[str, Any]:
    values: dict[str, Any] = {"$": _tag(value)}
    clean = redacted(value, mask)
    for one in _FIELDS[type(clean)]:
        item = getattr(clean, one.name)
        if one.default is MISSING or item != one.default:
            values[one.name] = to_values(item, mask)
    return values


def from_values(values: Any) -> Any:
    """The value that `to_values` was given, redacted as it was.

    Raises:
        LocalError: The values are not of this vocabulary.
    """
    if isinstance(values, list):
        return tuple(from_values(one) for one in values)
    if not isinstance(values, dict):
        return values
    tag = values.get("$")
    if tag is not None:
        return _read_object(tag, values)
    if len(values) == 1:
        (key, inner), *_ = values.items()
        match key:
            case "$bytes":
                return base64.b64decode(inner)
            case "$list":
                return [from_values(one) for one in inner]
            case "$set":
                return frozenset(from_values(one) for one in inner)
            case "$map":
                return {from_values(name): from_values(one) for name, one in inner}
            case "$path":
                return PurePosixPath(inner)
    return {key: from_values(one) for key, one in values.items()}


def _read_object(tag: str, values: Mapping[str, Any]) -> Any:
    cls: Any = _CLASSES.get(tag)
    if cls is None:
        raise LocalError(f"{tag!r} is no part of the core's vocabulary")
    try:
        if issubclass(cls, Enum):
            return cls(values["is"])
        return cls(**{key: from_values(one) for key, one in values.items() if key != "$"})
    except (TypeError, ValueError, KeyError) as error:
        raise LocalError(f"{tag} cannot be read: {error}") from error


def dump_line(values: Any) -> bytes:
    """One line of JSON; text that is not Unicode, such as a file name in an error message, is escaped."""
    try:
        return orjson.dumps(values) + b"\n"
    except TypeError:
        return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def load_line(line: bytes) -> Any:
    """What `dump_line` wrote.

    Raises:
        LocalError: The line is not JSON.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            return json.loads(line)
        except ValueError as error:
            raise LocalError(f"not JSON: {error}") from error
