"""Image manifests and indexes: Docker schema 2 and OCI (image-spec manifest.md, image-index.md, descriptor.md).

A document is exactly one kind, and every sign of its kind must agree: the Content-Type it came with, the `mediaType`
inside, and the members it has. A document that can be read both ways is refused (CVE-2021-41190).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from crio_core.errors import Code, OperationError
from crio_core.image.config import CONFIG_BYTES_MAX, LAYERS_MAX
from crio_core.image.digest import Digest, parse_digest
from crio_core.image.platform import Platform
from crio_core.values import dataclass

MANIFEST_BYTES_MAX = 4 * 1024 * 1024
LAYER_BYTES_MAX = 64 * 1024**3
INDEX_ENTRIES_MAX = 1024

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPTED_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

_CONFIG_TYPES = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
_LAYER_COMPRESSION: Mapping[str, str] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
# Servers that do not know manifests serve them under these; the document then speaks for itself.
_VAGUE_TYPES = frozenset({"", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a document says of another blob: its kind, digest and exact size."""

    media_type: str
    digest: Digest
    size_bytes: int
    platform: Platform | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image for one platform; `layers` are lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The same image for several platforms."""

    media_type: str
    entries: tuple[Descriptor, ...]


def refuse(reason: str, message: str) -> OperationError:
    """A refusal of a document that a registry served."""
    return OperationError(Code.INVALID_ARGUMENT, reason, message)


def layer_compression(media_type: str) -> str:
    """`none`, `gzip` or `zstd`.

    Raises:
        OperationError: for layers that are elsewhere (foreign), encrypted, or of an unknown kind.
    """
    shown = repr(media_type[:200])
    if "nondistributable" in media_type or "foreign" in media_type:
        raise refuse("FOREIGN_LAYER", f"layer of type {shown} is kept outside the registry and is not fetched")
    if media_type.endswith("+encrypted"):
        raise refuse("ENCRYPTED_LAYER", f"layer of type {shown} is encrypted")
    found = _LAYER_COMPRESSION.get(media_type)
    if found is None:
        raise refuse("LAYER_TYPE_UNKNOWN", f"layer of type {shown} is not a root filesystem layer")
    return found


def parse_document(body: bytes, content_type: str = "") -> Manifest | Index:
    """Read what a registry served as a manifest.

    Args:
        body: The document, its digest checked by the caller when one was asked for.
        content_type: The header it came with, with or without parameters.

    Raises:
        OperationError: INVALID_ARGUMENT with MANIFEST_INVALID, MANIFEST_AMBIGUOUS, FOREIGN_LAYER and others.
    """
    if len(body) > MANIFEST_BYTES_MAX:
        raise refuse("MANIFEST_TOO_LARGE", f"manifest has {len(body)} bytes, at most {MANIFEST_BYTES_MAX} are read")
    try:
        orjson.loads(body)  # Stricter than `json`: UTF-8 alone, and no halves of surrogate pairs.
        document = json.loads(body, object_pairs_hook=_unique_members)
    except (ValueError, RecursionError) as error:
        raise refuse("MANIFEST_INVALID", f"manifest is not JSON: {error}"[:300]) from error
    if not isinstance(document, dict):
        raise refuse("MANIFEST_INVALID", "manifest is not a JSON object")
    if document.get("schemaVersion") != 2 or isinstance(document["schemaVersion"], bool):
        raise refuse(
            "MANIFEST_VERSION", f"manifest has schemaVersion {document.get('schemaVersion')!r}, only 2 is read"
        )
    media_type = _kind(document, content_type)
    return _index(document, media_type) if media_type in INDEX_TYPES else _manifest(document, media_type)


def _unique_members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member appears twice")
    return found


def _kind(document: Mapping[str, Any], content_type: str) -> str:
    """The one media type that header, `mediaType` and members agree on."""
    header = content_type.partition(";")[0].strip().lower()
    inner = document.get("mediaType", "")
    if not isinstance(inner, str):
        raise refuse("MANIFEST_INVALID", "manifest: mediaType is not a string")
    has_index = "manifests" in document
    has_manifest = "layers" in document or "config" in document or "fsLayers" in document
    if has_index and has_manifest:
        raise refuse("MANIFEST_AMBIGUOUS", "document has the members of a manifest and of an index")
    if header and header not in _VAGUE_TYPES and inner and header != inner:
        raise refuse("MANIFEST_AMBIGUOUS", f"document came as {header[:100]!r} and calls itself {inner[:100]!r}")
    stated = inner or ("" if header in _VAGUE_TYPES else header)
    if not stated:
        stated = OCI_INDEX if has_index else OCI_MANIFEST
    if stated not in INDEX_TYPES | MANIFEST_TYPES:
        raise refuse("MANIFEST_TYPE_UNKNOWN", f"document of type {stated[:200]!r} is not an image")
    if (stated in INDEX_TYPES) != has_index or (stated in MANIFEST_TYPES) != has_manifest:
        raise refuse("MANIFEST_AMBIGUOUS", f"document of type {stated!r} does not have that type's members")
    return stated


def _index(document: Mapping[str, Any], media_type: str) -> Index:
    entries = document["manifests"]
    if not isinstance(entries, list) or len(entries) > INDEX_ENTRIES_MAX:
        raise refuse("MANIFEST_INVALID", f"index: manifests is not a list of at most {INDEX_ENTRIES_MAX}")
    found = (_descriptor(entry, "index entry", MANIFEST_BYTES_MAX) for entry in entries)
    return Index(media_type=media_type, entries=tuple(found))


def _manifest(document: Mapping[str, Any], media_type: str) -> Manifest:
    config = _descriptor(document.get("config"), "config", CONFIG_BYTES_MAX)
    if config.media_type not in _CONFIG_TYPES:
        raise refuse("NOT_AN_IMAGE", f"manifest's config is of type {config.media_type[:200]!r}: not a container image")
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > LAYERS_MAX:
        raise refuse("MANIFEST_INVALID", f"manifest: layers is not a list of at most {LAYERS_MAX}")
    found = tuple(_descriptor(layer, "layer", LAYER_BYTES_MAX) for layer in layers)
    for layer in found:
        layer_compression(layer.media_type)
    return Manifest(media_type=media_type, config=config, layers=found)


def _descriptor(value: object, what: str, size_bytes_max: int) -> Descriptor:
    if not isinstance(value, dict):
        raise refuse("MANIFEST_INVALID", f"{what} is not an object")
    media_type = value.get("mediaType")
    if not isinstance(media_type, str):
        raise refuse("MANIFEST_INVALID", f"{what}: mediaType is not a string")
    size_bytes = value.get("size")
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or not 0 <= size_bytes <= size_bytes_max:
        raise refuse("SIZE_INVALID", f"{what}: size {str(size_bytes)[:40]} is not in 0..{size_bytes_max}")
    return Descriptor(
        media_type=media_type,
        digest=parse_digest(value.get("digest"), f"{what}: digest"),
        size_bytes=size_bytes,
        platform=_platform(value.get("platform")),
    )


def _platform(value: object) -> Platform | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise refuse("MANIFEST_INVALID", "index entry: platform is not an object")
    words = {}
    for name in ("os", "architecture", "variant"):
        word = value.get(name) or ""
        if not isinstance(word, str):
            raise refuse("MANIFEST_INVALID", f"index entry: platform.{name} is not a string")
        words[name] = word
    return Platform(**words).normalised()
