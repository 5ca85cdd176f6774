"""Images in files: OCI layout directories, the same as one tar archive, and Docker archives; read and written.

What is read is data of a stranger: names are looked up, never joined to paths, and every document is bounded. What is
written has its layers uncompressed, so that their digests are their diff ids. (OCI image-spec, image-layout.md.)
"""

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crio_core.errors import Code, OperationError, invalid
from crio_core.image.config import CONFIG_BYTES_MAX, ImageConfig, parse_image_config
from crio_core.image.digest import Digest, digest_of, verify
from crio_core.image.manifest import (
    INDEX_TYPES,
    MANIFEST_BYTES_MAX,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    parse_document,
)
from crio_core.image.platform import Platform, choose
from crio_core.image.reference import normalise
from crio_core.image.resolved import LayerDescriptor, match_layers
from crio_core.values import dataclass
from crio_io.image_source import Place, Source, unreadable

IMAGES_MAX = 256
COPY_BYTES = 1024 * 1024
FORMS = ("oci-dir", "oci-archive", "docker-archive")
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImage:
    """An image in a file or directory, with the places of its layers' blobs by digest.

    Args:
        names: Full references that it is to have, each with a tag.
        manifest_digest: None for a Docker archive, which has no manifest.
    """

    names: tuple[str, ...]
    config: bytes
    manifest_digest: Digest | None
    layers: tuple[LayerDescriptor, ...]
    blobs: Mapping[Digest, Place]

    @property
    def image_config(self) -> ImageConfig:
        """What the configuration says."""
        return parse_image_config(self.config)


# --- reading ------------------------------------------------------------------------------------------------------


def read_images(source: Source, platform: Platform, name: str = "") -> tuple[LocalImage, ...]:
    """The images in an OCI layout directory, an OCI archive or a Docker archive, for this platform; blocking.

    Args:
        source: The directory or file; it must stay open as long as the images' places are used.
        platform: Which entry of an index is meant.
        name: A reference for an image that has no name of its own, or another one.

    Raises:
        OperationError: IMAGE_FILE_INVALID and what documents can be wrong in.
    """
    try:
        try:
            source.place("index.json")
        except FileNotFoundError:
            return _docker_images(source, platform, name)
        return _oci_images(source, platform, name)
    except OSError as error:
        raise unreadable(source.path, f"{error.filename}: {error.strerror}") from error


def _read(place: Place, bytes_max: int) -> bytes:
    if place.size_bytes > bytes_max:
        raise unreadable(place.source.path, f"a document has {place.size_bytes} bytes, at most {bytes_max} are read")
    with place.open() as file:
        return file.read(place.size_bytes)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _oci_images(source: Source, platform: Platform, name: str) -> tuple[LocalImage, ...]:
    body = _read(source.place("index.json"), MANIFEST_BYTES_MAX)
    index = parse_document(body)
    if not isinstance(index, Index):
        raise unreadable(source.path, "index.json is no index")
    entries = json.loads(body)["manifests"]
    by_name: dict[tuple[str, ...], list[int]] = {}
    for position, entry in enumerate(entries[:IMAGES_MAX]):
        by_name.setdefault(_annotated(entry), []).append(position)
    found = []
    for names, positions in by_name.items():
        chosen = choose(tuple(index.entries[at] for at in positions), platform)
        if chosen is None and len(positions) == 1:
            chosen = index.entries[positions[0]]
        if chosen is None:
            raise unreadable(source.path, f"nothing in it is for {platform}")
        document = _read(source.place(_blob_name(chosen.digest)), MANIFEST_BYTES_MAX)
        verify(document, chosen.digest, str(source.path))
        found.append(_oci_image(source, platform, _named(source.path, names, name), document, chosen.digest))
    return tuple(found)


def _annotated(entry: Mapping[str, Any]) -> tuple[str, ...]:
    annotations = entry.get("annotations") or {}
    for key in _NAMES:
        value = annotations.get(key) if isinstance(annotations, dict) else None
        # A name alone could as well be a tag: `busybox` is only believed to be one with something beside it.
        if isinstance(value, str) and ("/" in value or ":" in value):
            return (value,)
    return ()


def _named(path: Path, names: Sequence[str], name: str) -> tuple[str, ...]:
    wanted = (name,) if name else tuple(names)
    if not wanted:
        raise invalid("name", "", f"a reference, as the image in {path} has none")
    references = [normalise(one, "name") for one in wanted]
    if any(one.digest for one in references):
        raise invalid("name", wanted[0], "a reference with a tag, without a digest")
    return tuple(str(one) for one in references)


def _oci_image(source: Source, platform: Platform, names: tuple[str, ...], body: bytes, digest: Digest) -> LocalImage:
    manifest = parse_document(body)
    if isinstance(manifest, Index):
        entry = choose(manifest.entries, platform)
        if entry is None or entry.media_type in INDEX_TYPES:
            raise unreadable(source.path, f"nothing in it is for {platform}")
        body = _read(source.place(_blob_name(entry.digest)), MANIFEST_BYTES_MAX)
        verify(body, entry.digest, str(source.path))
        manifest = parse_document(body)
    if not isinstance(manifest, Manifest):
        raise unreadable(source.path, "indexes are nested more than once")
    config = _read(source.place(_blob_name(manifest.config.digest)), CONFIG_BYTES_MAX)
    verify(config, manifest.config.digest, str(source.path))
    layers = match_layers(manifest, parse_image_config(config), platform)
    blobs = {layer.digest: source.place(_blob_name(layer.digest)) for layer in layers}
    for layer in layers:
        if blobs[layer.digest].size_bytes != layer.size_bytes:
            raise unreadable(source.path, f"blob {layer.digest} is not as long as the manifest says")
    return LocalImage(names=names, config=config, manifest_digest=digest, layers=layers, blobs=blobs)


def _docker_images(source: Source, platform: Platform, name: str) -> tuple[LocalImage, ...]:
    """`docker save`: manifest.json names configurations, layers and tags."""
    try:
        listed = json.loads(_read(source.place("manifest.json"), MANIFEST_BYTES_MAX))
        found = []
        for entry in listed[:IMAGES_MAX]:
            config = _read(source.place(entry["Config"]), CONFIG_BYTES_MAX)
            image_config = parse_image_config(config)
            names = _named(source.path, entry.get("RepoTags") or (), name)
            if len(entry["Layers"]) != len(image_config.diff_ids):
                raise ValueError("layers and diff ids are not as many")
            places = [source.place(layer) for layer in entry["Layers"]]
            layers = tuple(
                LayerDescriptor(digest=diff_id, size_bytes=place.size_bytes, media_type=_DOCKER_LAYER, diff_id=diff_id)
                for diff_id, place in zip(image_config.diff_ids, places, strict=True)
            )
            blobs = dict(zip(image_config.diff_ids, places, strict=True))
            found.append(LocalImage(names=names, config=config, manifest_digest=None, layers=layers, blobs=blobs))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(source.path, f"manifest.json: {error!r}") from error
    return tuple(found)


def copy_blob(source: Place, digest: Digest, target: Path, note: Callable[[int], None]) -> None:
    """Copy a blob into a new file and check it; blocking.

    Raises:
        OperationError: DIGEST_MISMATCH, or NO_SPACE.
    """
    found = hashlib.new(digest.algorithm)
    left = source.size_bytes
    try:
        with source.open() as file, target.open("wb") as out:
            while left and (data := file.read(min(left, COPY_BYTES))):
                found.update(data)
                out.write(data)
                left -= len(data)
                note(source.size_bytes - left)
    except OSError as error:
        target.unlink(missing_ok=True)
        message = f"copying {digest} from {source.source.path}: {error.strerror}"
        raise OperationError(Code.RESOURCE_EXHAUSTED, "NO_SPACE", message) from error
    if found.hexdigest() != digest.hex:
        target.unlink(missing_ok=True)
        message = f"{source.source.path}: blob {digest}: what is there has {digest.algorithm}:{found.hexdigest()}"
        raise OperationError(Code.DATA_LOSS, "DIGEST_MISMATCH", message)


# --- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A layer's archive, made anew."""

    path: Path
    diff_id: Digest
    size_bytes: int


def staging(output: Path) -> Path:
    """A directory beside the output, on the same file system, in which it is made.

    Raises:
        OperationError: The output exists, or its directory does not.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OperationError(Code.ALREADY_EXISTS, "OUTPUT_EXISTS", f"{output} exists")
    try:
        return Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OperationError(Code.FAILED_PRECONDITION, "OUTPUT_FAILED", f"{output}: {error.strerror}") from error


def write_image(
    form: str, stage: Path, output: Path, names: Sequence[str], config: bytes, layers: Sequence[Packed]
) -> None:
    """Make the output of packed layers that lie in `stage`, which is removed; blocking.

    Args:
        form: One of FORMS.
    """
    made = stage / "image"
    made.mkdir()
    if form == "docker-archive":
        _docker_layout(made, names, config, layers)
    else:
        _oci_layout(made, names, config, layers)
    if form == "oci-dir":
        if output.exists():
            output.rmdir()
        made.chmod(0o755)
        made.rename(output)
    else:
        archive = stage / "archive.tar"
        with tarfile.open(archive, "w:", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(made.rglob("*")):
                tar.add(path, arcname=str(path.relative_to(made)), recursive=False, filter=_plain)
        archive.rename(output)


def remove_staging(stage: Path) -> None:
    """Remove what an output was made in; blocking."""
    shutil.rmtree(stage, ignore_errors=True)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same image gives the same archive: nothing of the machine goes into it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _oci_layout(made: Path, names: Sequence[str], config: bytes, layers: Sequence[Packed]) -> None:
    blobs = made / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    described = []
    for layer in layers:
        target = made / "blobs" / layer.diff_id.algorithm / layer.diff_id.hex
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            layer.path.rename(target)
        described.append({"mediaType": _OCI_LAYER, "digest": str(layer.diff_id), "size": layer.size_bytes})
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": _OCI_CONFIG, "digest": str(digest_of(config)), "size": len(config)},
            "layers": described,
        }
    ).encode()
    for body in (config, manifest):
        (blobs / digest_of(body).hex).write_bytes(body)
    entry = {"mediaType": OCI_MANIFEST, "digest": str(digest_of(manifest)), "size": len(manifest)}
    entries = [
        {**entry, "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}
        for name in names
    ] or [entry]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    (made / "index.json").write_text(json.dumps(index))
    (made / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _docker_layout(made: Path, names: Sequence[str], config: bytes, layers: Sequence[Packed]) -> None:
    for layer in layers:
        target = made / f"{layer.diff_id.hex}.tar"
        if not target.exists():
            layer.path.rename(target)
    config_name = f"{digest_of(config).hex}.json"
    (made / config_name).write_bytes(config)
    listed = [
        {"Config": config_name, "RepoTags": list(names), "Layers": [f"{layer.diff_id.hex}.tar" for layer in layers]}
    ]
    (made / "manifest.json").write_text(json.dumps(listed))
