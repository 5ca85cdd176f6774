"""Which image a name means, and how images are shown."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import Code, OperationError
from crio_core.image.reference import normalise, parse_image_id, parse_reference
from crio_core.node.state import State
from crio_core.records import ImageRecord
from crio_core.replies import ImageFound, Images
from crio_core.values import replace

ID_PREFIX = re.compile(r"[0-9a-f]{3,64}")


def find_image(state: State, spec: ImageSpec) -> ImageRecord | None:
    """The image that a caller names by id, by tag, by digest, or by the unique start of its id."""
    exact = parse_image_id(spec.image)
    return find_among(state.images.values(), spec) if exact is None else state.images.get(str(exact))


def find_among(images: Sequence[ImageRecord], spec: ImageSpec) -> ImageRecord | None:
    """The same, of these images."""
    name = spec.image
    exact = parse_image_id(name)
    if exact is not None:
        return next((one for one in images if one.id == str(exact)), None)
    try:
        names = canonical_names(name)
    except OperationError:
        return None
    for one in images:
        if any(known in names for known in (*one.tags, *one.digests)):
            return one
    short = _short_name(name)
    if short:
        found = [one for one in images if any(tag.endswith(short) for tag in one.tags)]
        if len(found) == 1:
            return found[0]
    if ID_PREFIX.fullmatch(name):
        found = [one for one in images if one.id.removeprefix("sha256:").startswith(name)]
        if len(found) == 1:
            return found[0]
    return None


def present_image(state: State, field: str, spec: ImageSpec) -> ImageRecord:
    """The image that a request's `field` names, which must be on the node."""
    image = find_image(state, spec)
    if image is None:
        raise OperationError(
            Code.NOT_FOUND, "IMAGE_NOT_FOUND", f"{field}: {spec.image!r} is not on this node: pull it first"
        )
    return image


def _short_name(text: str) -> str:
    """How the tags end that a short name may stand for, whatever registry it was found in; empty for a full name."""
    reference = parse_reference(text, "image.image").tagged()
    return f"/{reference}" if reference.is_short and not reference.digest else ""


def canonical_names(text: str) -> tuple[str, ...]:
    """How an image that `text` names is recorded: by its tag, by its digest, or by both.

    Raises:
        OperationError: INVALID_ARGUMENT, the text is not a reference.
    """
    reference = normalise(text, "image.image").tagged()
    names = []
    if reference.digest:
        names.append(str(reference.by_digest(reference.digest)))
    if reference.tag and not reference.digest:
        names.append(str(reference))
    return tuple(names)


def reference_of(image: ImageRecord, named: ImageSpec) -> str:
    """The image as a digest of the repository that it was asked for by; its id when it was never pulled by digest."""
    for text in (named.user_specified_image, named.image):
        try:
            repository = normalise(text, "image.image").name
        except OperationError:
            continue  # an id, or nothing
        for digest in image.digests:
            if digest.partition("@")[0] == repository:
                return digest
    return image.digests[0] if image.digests else image.id


def image_status(state: State, request: rq.ImageStatus) -> ImageFound:
    """The image that is named, if it is there."""
    image = find_image(state, request.image)
    return ImageFound(image=None if image is None else _shown(state, image))


def list_images(state: State, request: rq.ListImages) -> Images:
    """All images, or the one that is named."""
    if request.image.image:
        found = find_image(state, request.image)
        return Images(items=() if found is None else (_shown(state, found),))
    changes, settings, images = state.every_image
    if changes != state.images.changes or settings is not state.settings:
        images = Images(
            items=tuple(_shown(state, one) for one in sorted(state.images.values(), key=lambda one: one.id))
        )
        state.every_image = (state.images.changes, state.settings, images)
    return images


def _shown(state: State, image: ImageRecord) -> ImageRecord:
    return replace(image, pinned=pinned(state, image))


def pinned(state: State, image: ImageRecord) -> bool:
    """Whether the kubelet must not collect an image, by any of its names."""
    patterns = state.settings.pinned_images
    pause = canonical_names(state.settings.pause_image)
    names = (*image.tags, *image.digests)
    return any(name in pause or any(fnmatchcase(name, pattern) for pattern in patterns) for name in names)
