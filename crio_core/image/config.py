"""The image configuration blob: what a container made from the image starts with (OCI image-spec, config.md).

Docker's configuration has the same members, so one reader does both. Whatever stands in it was written by a stranger:
every member is checked for its kind and bounded, and unknown members are ignored.
"""

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

import orjson

from crio_core.errors import Code, OperationError
from crio_core.image.digest import Digest, parse_digest
from crio_core.values import dataclass

CONFIG_BYTES_MAX = 4 * 1024 * 1024
LAYERS_MAX = 128
"""So many fit in the options of one overlay mount, wherever the store is; builders make up to 127."""
STRINGS_MAX = 8192
HISTORY_MAX = 4096
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One step of how the image was built; `empty_layer` steps have no layer of their own."""

    created: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The parts of an image configuration that a runtime acts on or shows."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
    exposed_ports: tuple[str, ...] = ()
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str = ""
    author: str = ""
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[HistoryEntry, ...] = ()


def parse_image_config(blob: bytes) -> ImageConfig:
    """Read a configuration blob whose digest has been checked already.

    Raises:
        OperationError: INVALID_ARGUMENT, reason IMAGE_CONFIG_INVALID, naming the member.
    """
    if len(blob) > CONFIG_BYTES_MAX:
        raise _bad("the whole blob", f"at most {CONFIG_BYTES_MAX} bytes, it has {len(blob)}")
    try:
        document = orjson.loads(blob)  # Stricter than `json`: UTF-8 alone, and no halves of surrogate pairs.
    except ValueError as error:
        raise _bad("the whole blob", "JSON") from error
    if not isinstance(document, dict):
        raise _bad("the whole blob", "a JSON object")
    config = _object(document, "config")
    rootfs = _object(document, "rootfs")
    if rootfs and rootfs.get("type") != "layers":
        raise _bad("rootfs.type", "'layers'")
    return ImageConfig(
        user=_string(config, "User"),
        env=_strings(config, "Env"),
        entrypoint=_strings(config, "Entrypoint"),
        cmd=_strings(config, "Cmd"),
        working_dir=_string(config, "WorkingDir"),
        volumes=_keys(config, "Volumes"),
        stop_signal=_string(config, "StopSignal"),
        labels=_labels(config),
        exposed_ports=_keys(config, "ExposedPorts"),
        architecture=_string(document, "architecture"),
        os=_string(document, "os"),
        variant=_string(document, "variant"),
        created=_string(document, "created"),
        author=_string(document, "author"),
        diff_ids=_diff_ids(rootfs),
        history=_history(document),
    )


def _bad(member: str, expected: str) -> OperationError:
    return OperationError(
        Code.INVALID_ARGUMENT, "IMAGE_CONFIG_INVALID", f"image configuration: {member}: expected {expected}"
    )


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(key, "an object")
    if len(value) > STRINGS_MAX:
        raise _bad(key, f"at most {STRINGS_MAX} members")
    return value


def _string(parent: Mapping[str, Any], key: str) -> str:
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise _bad(key, "a string without NUL")
    return value


def _strings(parent: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = parent.get(key)
    if value is None:
        return ()
    if isinstance(value, str):  # old Dockerfile builders wrote a single word for a list of one
        value = [value]
    if not isinstance(value, list) or len(value) > STRINGS_MAX:
        raise _bad(key, f"a list of at most {STRINGS_MAX} strings")
    if any(not isinstance(item, str) or "\0" in item for item in value):
        raise _bad(key, "strings without NUL")
    return tuple(value)


def _keys(parent: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = sorted(_object(parent, key))
    if any("\0" in item for item in found):
        raise _bad(key, "names without NUL")
    return tuple(found)


def _labels(config: Mapping[str, Any]) -> Mapping[str, str]:
    found = _object(config, "Labels")
    if any(not isinstance(value, str) for value in found.values()):
        raise _bad("Labels", "string values")
    return MappingProxyType(dict(sorted(found.items())))


def _diff_ids(rootfs: Mapping[str, Any]) -> tuple[Digest, ...]:
    found = rootfs.get("diff_ids") or []
    if not isinstance(found, list) or len(found) > LAYERS_MAX:
        raise _bad("rootfs.diff_ids", f"a list of at most {LAYERS_MAX} digests")
    return tuple(parse_digest(item, "image configuration: rootfs.diff_ids") for item in found)


def _history(document: Mapping[str, Any]) -> tuple[HistoryEntry, ...]:
    found = document.get("history") or []
    if not isinstance(found, list) or len(found) > HISTORY_MAX:
        raise _bad("history", f"a list of at most {HISTORY_MAX} entries")
    entries = []
    for item in found:
        if not isinstance(item, dict):
            raise _bad("history", "objects")
        entries.append(
            HistoryEntry(
                created=_string(item, "created"),
                created_by=_string(item, "created_by"),
                comment=_string(item, "comment"),
                empty_layer=item.get("empty_layer") is True,
            )
        )
    return tuple(entries)
