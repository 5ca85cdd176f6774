"""What is known of a layer in the store, and what its files and directories are called."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from crio_core.errors import OperationError
from crio_core.image.digest import Digest, parse_digest
from crio_core.image.resolved import LayerDescriptor
from crio_core.values import dataclass

LAYER_RECORD_BYTES_MAX = 64 * 1024 * 1024
RECORD_NAME = "layer.json"
_NAME_BITS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """A layer that is in the store; sizes are as on disk. If an entry `replaced` another, its archive is lost."""

    diff_id: Digest
    size_bytes: int
    inodes: int
    entries: int
    replaced: bool
    implied: tuple[str, ...]
    blob: str = ""
    """Digest of the blob that it was unpacked from; empty when that is not known."""


def layer_name(diff_id: Digest) -> str:
    """The short name of a layer's directory: 100 bits of its diff id, so that 128 of them fit in a mount's options."""
    return base64.b32encode(bytes.fromhex(diff_id.hex))[: _NAME_BITS // 5].decode().lower()


def blob_name(layer: LayerDescriptor) -> str:
    """The name of a download.

    The diff id is in it, for an image may lie about what a blob unpacks to: it then shares no file with one that is
    honest.
    """
    return f"{layer.digest.algorithm}-{layer.digest.hex}.{layer_name(layer.diff_id)}"


def layers_in(root: Path) -> Mapping[str, LayerInfo | None]:
    """What lies in the store at `root`, by the short names of layers; None for what is no whole layer. Only reads."""
    layers = root / "layers"
    if not layers.is_dir():
        return {}
    return {place.name: read_info(place) for place in sorted(layers.iterdir()) if place.name != "empty"}


def read_info(place: Path) -> LayerInfo | None:
    """What `layer.json` says; None for a directory that is no whole layer."""
    try:
        data = (place / RECORD_NAME).read_bytes()[:LAYER_RECORD_BYTES_MAX]
        record = json.loads(data)
        info = LayerInfo(
            diff_id=parse_digest(record["diff_id"]),
            size_bytes=int(record["size_bytes"]),
            inodes=int(record["inodes"]),
            entries=int(record["entries"]),
            replaced=bool(record.get("replaced", True)),
            implied=tuple(record["implied"]),
            blob=str(record.get("blob", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, OperationError):
        return None
    return info if layer_name(info.diff_id) == place.name and (place / "fs").is_dir() else None
