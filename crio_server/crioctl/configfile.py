"""Pod and container files, as crictl's and CRI-O's users have them, read into CRI messages.

JSON or YAML. A key may be written `log_path`, `logPath` or `LogPath`, an enum as its number or its name. Nothing is
dropped in silence: an unknown key is refused with its path and the nearest key that exists, a value of the wrong kind
with what was expected, and what only old CRI-O knew is moved to where it belongs now (`oldfiles.py`), with a warning.
"""

import difflib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import oldfiles
from crio_server.crioctl.errors import BadInput

FILE_BYTES_MAX = 4 * 1024 * 1024
VALUES_MAX = 100_000  # a YAML file can name one value many times: this bounds what it grows to
DEPTH_MAX = 64

Warn = Callable[[str], None]
M = TypeVar("M", bound=Message)

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def load_pod(path: Path, warn: Warn) -> pb.PodSandboxConfig:
    """Read a pod sandbox configuration; a missing uid is made up, as crictl does.

    Args:
        warn: Called with each sentence about an old form that was understood.

    Raises:
        BadInput: The file cannot be used; the message names the file and the key.
    """
    config = _load(path, pb.PodSandboxConfig(), oldfiles.modern_pod, warn)
    _require(path, "metadata.name", config.metadata.name)
    _require(path, "metadata.namespace", config.metadata.namespace)
    config.metadata.uid = config.metadata.uid or str(uuid.uuid4())
    return config


def load_container(path: Path, warn: Warn) -> pb.ContainerConfig:
    """Read a container configuration.

    Args:
        warn: Called with each sentence about an old form that was understood.

    Raises:
        BadInput: The file cannot be used; the message names the file and the key.
    """
    config = _load(path, pb.ContainerConfig(), oldfiles.modern_container, warn)
    _require(path, "metadata.name", config.metadata.name)
    _require(path, "image.image", config.image.image)
    config.image.user_specified_image = config.image.user_specified_image or config.image.image
    return config


def _load(path: Path, message: M, modernise: Callable[[dict[str, Any], Warn], None], warn: Warn) -> M:
    values = parse(path, read(path))
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected an object with keys such as metadata, found {_kind(values)}")
    try:
        modernise(values, lambda sentence: warn(f"{path}: {sentence}"))
        _Filler(path).fill(message, values, "", DEPTH_MAX)
    except oldfiles.Conflict as error:
        raise BadInput(f"{path}: {error}") from error
    return message


def read(path: Path) -> bytes:
    """The bytes of a file, up to a bound.

    Raises:
        BadInput: It is not there, not readable or too large.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error
    if len(content) > FILE_BYTES_MAX:
        raise BadInput(f"{path}: larger than {FILE_BYTES_MAX} bytes")
    return content


def parse(path: Path, content: bytes) -> Any:
    """The value in a JSON or YAML file; JSON is tried first unless the name ends in .yaml or .yml.

    Raises:
        BadInput: It is neither; the message has the line and column.
    """
    json_error: Exception | None = None
    if path.suffix not in (".yaml", ".yml"):
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            json_error = error
    if path.suffix == ".json" or content.lstrip()[:1] in (b"{", b"["):
        raise BadInput(f"{path}: not valid JSON: {json_error}") from json_error
    import yaml  # only for files that are not JSON: the parser takes a while to load

    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error


def _require(path: Path, key: str, value: str) -> None:
    if not value:
        raise BadInput(f"{path}: {key}: missing or empty")


class _Filler:
    """Copies parsed values into a message, by its descriptor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = 0

    def refuse(self, key: str, text: str) -> BadInput:
        return BadInput(f"{self.path}: {key or 'top level'}: {text}")

    def fill(self, message: Message, values: Mapping[Any, Any], prefix: str, depth: int) -> None:
        """Set the fields of `message` from an object of the file, whose keys stand at `prefix`."""
        if depth == 0:
            raise self.refuse(prefix, f"nested more than {DEPTH_MAX} levels deep")
        seen: dict[str, str] = {}
        for key, value in values.items():
            field = _field_named(message, str(key))
            where = f"{prefix}.{key}" if prefix else str(key)
            if field is None:
                raise self.refuse(where, _unknown(str(key), message))
            if field.name in seen:
                raise self.refuse(where, f"given twice, also as {seen[field.name]}")
            seen[field.name] = str(key)
            if value is not None:
                self.set_field(message, field, value, where, depth)

    def set_field(self, message: Message, field: FieldDescriptor, value: Any, where: str, depth: int) -> None:
        if _is_map(field):
            self.expect(dict, value, where, "an object of strings")
            target = getattr(message, field.name)
            for key, text in value.items():
                target[self.string(key, where)] = self.string(text, f"{where}.{key}")
        elif field.is_repeated:
            self.expect(list, value, where, "a list")
            target = getattr(message, field.name)
            for index, item in enumerate(value):
                at = f"{where}[{index}]"
                if field.message_type is not None:
                    self.expect(dict, item, at, "an object")
                    self.fill(target.add(), item, at, depth - 1)
                else:
                    target.append(self.scalar(field, item, at))
        elif field.message_type is not None:
            self.expect(dict, value, where, "an object")
            child = getattr(message, field.name)
            child.SetInParent()
            self.fill(child, value, where, depth - 1)
        else:
            setattr(message, field.name, self.scalar(field, value, where))

    def expect(self, kind: type, value: Any, where: str, expected: str) -> None:
        self.values += 1
        if self.values > VALUES_MAX:
            raise self.refuse(where, f"more than {VALUES_MAX} values")
        if not isinstance(value, kind):
            raise self.refuse(where, f"expected {expected}, found {_kind(value)}")

    def string(self, value: Any, where: str) -> str:
        self.expect(str, value, where, "a string (in YAML, quote it)")
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.refuse(where, "not valid Unicode") from error
        return text

    def scalar(self, field: FieldDescriptor, value: Any, where: str) -> str | bytes | bool | int:
        kind = field.cpp_type
        if field.enum_type is not None:
            return self.enum(field.enum_type, value, where)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            self.expect(bool, value, where, "true or false")
            return bool(value)
        if kind in _INTEGERS:
            return self.integer(value, where, *_INTEGERS[kind])
        text = self.string(value, where)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text

    def integer(self, value: Any, where: str, lowest: int, highest: int) -> int:
        number = value
        if isinstance(value, str):  # the JSON form of protobuf writes 64-bit integers as strings
            try:
                number = int(value)
            except ValueError as error:
                raise self.refuse(where, f"expected an integer, found {value!r}") from error
        elif isinstance(value, float) and value.is_integer():
            number = int(value)
        elif isinstance(value, bool):
            number = None
        self.expect(int, number, where, "an integer")
        if not lowest <= number <= highest:
            raise self.refuse(where, f"{number} is out of range: {lowest} to {highest}")
        return int(number)

    def enum(self, enum: EnumDescriptor, value: Any, where: str) -> int:
        names = {one.name: one.number for one in enum.values}
        if isinstance(value, str):
            wanted = value.upper()
            whole = [number for name, number in names.items() if name.upper() == wanted]
            ending = [number for name, number in names.items() if name.upper().endswith(f"_{wanted}")]
            if len(whole) == 1 or len(ending) == 1:
                return (whole or ending)[0]
        elif isinstance(value, int) and not isinstance(value, bool) and value in names.values():
            return value
        choices = ", ".join(f"{number} {name}" for name, number in names.items())
        raise self.refuse(where, f"{value!r} is not one of: {choices}")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _plain(key: str) -> str:
    return key.replace("_", "").lower()


def _field_named(message: Message, key: str) -> FieldDescriptor | None:
    found = next((field for field in message.DESCRIPTOR.fields if _plain(field.name) == _plain(key)), None)
    return cast(FieldDescriptor | None, found)  # its stubs also name the class of the C implementation


def _unknown(key: str, message: Message) -> str:
    known = [field.name for field in message.DESCRIPTOR.fields]
    near = difflib.get_close_matches(_plain(key), [_plain(name) for name in known], n=1, cutoff=0.6)
    if near:
        name = next(name for name in known if _plain(name) == near[0])
        return f"unknown key; did you mean {name}?"
    return f"unknown key; known here: {', '.join(known)}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}
    return names.get(type(value)) or f"{value!r}"
