"""What a pull knows once the documents are read: the image, its layers, and where their bytes can be had."""

from crio_core.errors import Code, OperationError
from crio_core.image.config import ImageConfig
from crio_core.image.digest import Digest
from crio_core.image.manifest import Manifest, refuse
from crio_core.image.platform import Platform, fitness
from crio_core.image.reference import Reference
from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One place to look for an image.

    Args:
        reference: What the user means, with the domain that a short name was given.
        host: `host[:port]` of the registry to ask; a mirror's may differ from the reference's domain.
        repository: Path on that host.
        insecure: Plain HTTP and unverified TLS are allowed.
        is_mirror: Whether a failure here only means to go on to the next.
    """

    reference: Reference
    host: str
    repository: str
    insecure: bool = False
    is_mirror: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescriptor:
    """One layer: the blob as fetched (`digest`, `size_bytes`, `media_type`) and as unpacked (`diff_id`)."""

    digest: Digest
    size_bytes: int
    media_type: str
    diff_id: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """An image whose documents are read and verified; `layers` are lowest first.

    Args:
        reference: The reference that answered, tagged, with its domain.
        repo_digest: Digest that the reference stands for at the registry: the index's, or else the manifest's.
        index: The index document when there is one, for `image save`; empty otherwise.
        sources: Where blobs can be fetched, best first; the first one served the manifest.
    """

    reference: Reference
    repo_digest: Digest
    manifest_digest: Digest
    manifest_media_type: str
    config_digest: Digest
    config: bytes
    image_config: ImageConfig
    manifest: bytes
    index: bytes = b""
    index_digest: Digest | None = None
    layers: tuple[LayerDescriptor, ...]
    sources: tuple[Candidate, ...] = ()

    @property
    def image_id(self) -> str:
        """The image's id: the digest of its configuration."""
        return self.config_digest.hex

    @property
    def compressed_bytes(self) -> int:
        """Bytes that fetching every layer takes."""
        return sum(layer.size_bytes for layer in self.layers)


def match_layers(manifest: Manifest, config: ImageConfig, wanted: Platform) -> tuple[LayerDescriptor, ...]:
    """Join the manifest's layers with the configuration's diff ids, and check that the image is for this machine.

    Raises:
        OperationError: LAYERS_MISMATCH or PLATFORM_MISMATCH.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise refuse(
            "LAYERS_MISMATCH",
            f"manifest has {len(manifest.layers)} layers, its configuration has {len(config.diff_ids)} diff ids",
        )
    stated = Platform(os=config.os or "linux", architecture=config.architecture, variant=config.variant).normalised()
    if config.architecture and fitness(stated, wanted) is None:
        raise OperationError(
            Code.FAILED_PRECONDITION, "PLATFORM_MISMATCH", f"image is for {stated}, this machine runs {wanted}"
        )
    return tuple(
        LayerDescriptor(digest=layer.digest, size_bytes=layer.size_bytes, media_type=layer.media_type, diff_id=diff_id)
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    )
