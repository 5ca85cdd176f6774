"""JSON from files and plugins: read within bounds, each field checked by type and named when it is wrong.

`FieldError` stays within this package: its callers turn it into an `OperationError` that also names the file or plugin.
"""

from collections.abc import Mapping
from typing import Any

import orjson

DOCUMENT_MAX_BYTES = 1 << 20
DEPTH_MAX = 64
SHOWN_MAX_CHARS = 200

JsonObject = dict[str, Any]


class FieldError(ValueError):
    """A field with a value that it cannot have."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}: {shown(value)} is not valid: expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


def shown(value: object) -> str:
    """A value as a message shows it: its repr, bounded."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX_CHARS else f"{text[:SHOWN_MAX_CHARS]}..."


def read_object(data: bytes | str, *, max_bytes: int = DOCUMENT_MAX_BYTES) -> JsonObject:
    """Parse one JSON object.

    Raises:
        FieldError: Too long, too deep, not JSON, or not an object.
    """
    if len(data) > max_bytes:
        raise FieldError("document", f"{len(data)} bytes", f"at most {max_bytes} bytes")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise FieldError("document", data[:40], f"JSON: {error}") from error
    if not isinstance(value, dict):
        raise FieldError("document", value, "a JSON object")
    if _deeper_than(value, DEPTH_MAX):
        raise FieldError("document", "its nesting", f"at most {DEPTH_MAX} levels")
    return value


def write(value: Mapping[str, Any]) -> str:
    """One JSON object as text, the same text for the same value."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def text_of(source: Mapping[str, Any], key: str, where: str = "") -> str:
    """A string field, empty when it is absent or null."""
    value = source.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FieldError(f"{where}{key}", value, "a string")
    return value


def number_of(source: Mapping[str, Any], key: str, where: str = "") -> int | None:
    """A whole-number field, None when it is absent or null."""
    value = source.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise FieldError(f"{where}{key}", value, "a whole number")
    return value


def flag_of(source: Mapping[str, Any], key: str) -> bool:
    """A boolean field that may also be written as a string (CNI SPEC, section 1)."""
    value = source.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise FieldError(key, value, "true or false")
    return value


def object_of(source: Mapping[str, Any], key: str, where: str = "") -> JsonObject:
    """An object field, empty when it is absent or null."""
    value = source.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FieldError(f"{where}{key}", value, "an object")
    return value


def texts_of(source: Mapping[str, Any], key: str, where: str = "", *, max_items: int) -> tuple[str, ...]:
    """A field with a list of strings, empty when it is absent or null."""
    items = items_of(source, key, where, max_items=max_items)
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise FieldError(f"{where}{key}[{index}]", item, "a string")
    return items


def objects_of(source: Mapping[str, Any], key: str, where: str = "", *, max_items: int) -> tuple[JsonObject, ...]:
    """A field with a list of objects, empty when it is absent or null."""
    items = items_of(source, key, where, max_items=max_items)
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise FieldError(f"{where}{key}[{index}]", item, "an object")
    return items


def items_of(source: Mapping[str, Any], key: str, where: str = "", *, max_items: int) -> tuple[Any, ...]:
    """A list field of bounded length, empty when it is absent or null."""
    value = source.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise FieldError(f"{where}{key}", value, "a list")
    if len(value) > max_items:
        raise FieldError(f"{where}{key}", f"{len(value)} items", f"at most {max_items}")
    return tuple(value)


def _deeper_than(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_deeper_than(item, levels - 1) for item in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_deeper_than(item, levels - 1) for item in value)
    return False
