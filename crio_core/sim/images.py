"""The images that a simulated registry has when nobody says otherwise: they share layers, as real ones do."""

from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType

import orjson

from crio_core.events import ImageResolved, LayerDescriptor

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def _digest(text: str) -> str:
    return f"sha256:{sha256(text.encode()).hexdigest()}"


def image(
    reference: str,
    layers: tuple[str, ...],
    *,
    entrypoint: tuple[str, ...] = ("sleep", "inf"),
    packed: str = "",
) -> ImageResolved:
    """An image as a registry would resolve it.

    Args:
        reference: Its full name with a tag, such as `docker.io/library/base:1`.
        layers: Any words; equal words are equal layers.
        entrypoint: What it runs; see `crio_core.sim.lives.life_of` for what commands do.
        packed: By whom its layers were compressed, which makes other blobs of the same layers.
    """
    diff_ids = [_digest(f"diff {one}") for one in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint)},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    text = orjson.dumps(config).decode()
    repository = reference.rpartition(":")[0]
    return ImageResolved(
        image_id=_digest(text),
        tags=(reference,),
        digests=(f"{repository}@{_digest('manifest ' + reference + text)}",),
        config=text,
        user="",
        layers=tuple(
            LayerDescriptor(digest=_digest(f"blob {one}{packed}"), diff_id=diff, size_bytes=1000, media_type=GZIP)
            for one, diff in zip(layers, diff_ids, strict=True)
        ),
    )


PAUSE = "registry.k8s.io/pause:3.10"
BASE = "docker.io/library/base:1"
APP = "docker.io/library/app:1"
OTHER = "docker.io/library/other:1"
REPACKED = "quay.io/mirrored/base:1"

REGISTRY: Mapping[str, ImageResolved] = MappingProxyType(
    {
        PAUSE: image(PAUSE, ("pause",), entrypoint=("/pause",)),
        BASE: image(BASE, ("base",)),
        APP: image(APP, ("base", "app")),
        OTHER: image(OTHER, ("base", "common", "other")),
        REPACKED: image(REPACKED, ("base",), packed=" elsewhere"),
    }
)
