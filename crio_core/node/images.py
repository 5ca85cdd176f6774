"""Images: finding them by any of their names, pulling them once however many ask, removing what nobody needs."""

import re
from dataclasses import replace
from fnmatch import fnmatchcase

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import Code, OperationError, invalid
from crio_core.events import LayerDescriptor, LayerProgressed
from crio_core.image.reference import normalise, parse_image_id, parse_reference
from crio_core.lifecycle import image as im
from crio_core.lifecycle.layer import LAYER, Layer, LayerUnused, LayerWanted
from crio_core.node.state import State
from crio_core.records import ContainerState, Failure, ImageRecord, ImageState, LayerState
from crio_core.replies import Done, Images, Pulled

RECORDS_LANE = "images"
"""Saves and deletions of image records go through one lane, so that a pull cannot overtake a removal."""
ID_PREFIX = re.compile(r"[0-9a-f]{3,64}")


def find_image(state: State, spec: ImageSpec) -> ImageRecord | None:
    """The image that a caller names by id, by tag, by digest, or by the unique start of its id."""
    name = spec.image
    exact = parse_image_id(name)
    if exact is not None:
        return state.images.get(str(exact))
    try:
        names = canonical_names(name)
    except OperationError:
        return None
    for one in state.images.values():
        if any(known in names for known in (*one.tags, *one.digests)):
            return one
    short = _short_name(name)
    if short:
        found = [one for one in state.images.values() if any(tag.endswith(short) for tag in one.tags)]
        if len(found) == 1:
            return found[0]
    if ID_PREFIX.fullmatch(name):
        found = [one for key, one in state.images.items() if key.removeprefix("sha256:").startswith(name)]
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


def list_images(state: State, request: rq.ListImages) -> Images:
    """All images, or the one that is named."""
    if request.image.image:
        found = find_image(state, request.image)
        return Images(items=() if found is None else (found,))
    return Images(items=tuple(sorted(state.images.values(), key=lambda one: one.id)))


def pinned(state: State, tags: tuple[str, ...]) -> bool:
    """Whether the kubelet must not collect an image with these tags."""
    patterns = state.settings.pinned_images
    pause = canonical_names(state.settings.pause_image)
    return any(tag in pause or any(fnmatchcase(tag, pattern) for pattern in patterns) for tag in tags)


# --- pulling ------------------------------------------------------------------------------------------------------


def pull_image(state: State, call_id: int, request: rq.PullImage) -> None:
    """Join the pull of the same reference with the same credentials, or begin it."""
    names = canonical_names(request.image.image)
    if parse_image_id(request.image.image):
        raise invalid("image.image", request.image.image, "a reference such as docker.io/library/redis:7, not an id")
    # Namespaces may have different signature policies: their pulls share layers, not verdicts.
    pull_id = f"pull/{names[0]}/{request.auth}" + (f"/{request.namespace}" if request.namespace else "")
    state.wait(call_id, pull_id, "pull")
    _begin_pull(state, pull_id, request.image.image, request.auth, request.namespace)


def pull_for_infra(state: State, sandbox_id: str, image: ImageSpec) -> None:
    """Pull the image of infra containers; the sandbox is told when that is over."""
    pull_id = f"pull/{canonical_names(image.image)[0]}/"
    waiting = state.infra_pulls.get(pull_id) or ()
    state.infra_pulls.put(pull_id, (*waiting, sandbox_id))
    _begin_pull(state, pull_id, image.image, "")


def _begin_pull(state: State, pull_id: str, reference: str, auth: str, namespace: str = "") -> None:
    if pull_id in state.pulls:
        return
    state.pulls.put(pull_id, im.Pull(id=pull_id, state=ImageState.RESOLVING, reference=reference, auth=auth))
    state.emit(pull_id, fx.ResolveImage(reference=reference, auth=auth, namespace=namespace))


def advance_pull(state: State, pull_id: str, event: object) -> None:
    """Apply an event to a pull or a removal and do what its lifecycle asks for."""
    pull, outputs = im.IMAGE.step(state.pulls[pull_id], event)
    if pull.state in (ImageState.READY, ImageState.GONE):
        state.pulls.pop(pull_id)
    else:
        state.pulls.put(pull_id, pull)
    if pull.state is ImageState.READY and pull.image is not None:
        _record(state, pull.image)
    for output in outputs:
        match output:
            case fx.Answer(operation="pull"):
                _pull_ended(state, pull, output.failure)
            case fx.Answer():
                state.answer(pull_id, output.operation, output.failure)
            case fx.Ask():
                for descriptor in pull.wanted:
                    _want(state, pull, descriptor)
                settle_pull(state, pull_id)
            case fx.SaveRecord() | fx.DeleteRecord():
                state.emit(RECORDS_LANE, output, owner=pull_id)
            case _:
                state.emit(pull_id, output)
    if pull.state is ImageState.GONE:
        sweep_layers(state, tuple(one.diff_id for one in pull.wanted) or (pull.image.layers if pull.image else ()))


def _pull_ended(state: State, pull: im.Pull, failure: Failure | None) -> None:
    done = failure if failure is not None or pull.image is None else Pulled(image_id=pull.image.id)
    state.answer(pull.id, "pull", done)
    for sandbox_id in state.infra_pulls.pop(pull.id) or ():
        state.ended_infra_pulls.append((sandbox_id, failure))


def _want(state: State, pull: im.Pull, descriptor: LayerDescriptor) -> None:
    layer = state.layers.get(descriptor.diff_id)
    if layer is None or layer.state in (LayerState.REMOVING, LayerState.OWING):
        # One that is on its way out was perhaps found in the store, where no digest of a blob is known.
        layer = Layer(
            id=descriptor.diff_id,
            state=layer.state if layer else LayerState.ABSENT,
            descriptor=descriptor,
            reference=pull.reference,
            auth=pull.auth,
        )
        state.layers.put(layer.id, layer)
    advance_layer(state, descriptor.diff_id, LayerWanted())


def advance_layer(state: State, layer_id: str, event: object) -> None:
    """Apply an event to a layer, and tell the pulls that wait for it."""
    before = state.layers[layer_id]
    layer, outputs = LAYER.step(before, event)
    if layer.state is LayerState.GONE:
        state.layers.pop(layer_id)
    else:
        state.layers.put(layer_id, layer)
    for output in outputs:
        assert not isinstance(output, fx.Answer | fx.Ask)
        state.emit(layer_id, output)
    if layer.state is before.state or layer.state not in (LayerState.APPLIED, LayerState.REMOVING, LayerState.GONE):
        return
    for pull in state.pulls.values():
        if pull.state is ImageState.FETCHING and any(one.diff_id == layer_id for one in pull.wanted):
            if layer.failure is not None and layer.state is not LayerState.APPLIED:
                advance_pull(state, pull.id, im.LayerFailed(failure=layer.failure))
            else:
                settle_pull(state, pull.id)
    if layer.state is LayerState.APPLIED:
        # The pull that wanted it may have failed meanwhile for another layer.
        sweep_layers(state, (layer_id,))


def note_progress(state: State, event: LayerProgressed) -> None:
    """Remember how far a layer has come, for those who ask; of one that is not being fetched it is old news."""
    layer = state.layers.get(event.diff_id)
    if layer is not None and layer.state is LayerState.FETCHING:
        state.history.progress.put(event.diff_id, event)


def settle_pull(state: State, pull_id: str) -> None:
    """Record the image of a pull when its last layer is there."""
    pull = state.pulls.get(pull_id)
    if pull is None or pull.state is not ImageState.FETCHING:
        return
    layers = [state.layers.get(one.diff_id) for one in pull.wanted]
    if any(layer is None or layer.state is not LayerState.APPLIED for layer in layers):
        return
    resolved = pull.resolved
    assert resolved is not None
    known = state.images.get(resolved.image_id)
    tags = _union(known.tags if known else (), resolved.tags)
    image = ImageRecord(
        id=resolved.image_id,
        state=ImageState.RECORDING,
        tags=tags,
        digests=_union(known.digests if known else (), resolved.digests),
        layers=tuple(one.diff_id for one in pull.wanted),
        size_bytes=sum(layer.size_bytes for layer in {one.id: one for one in layers if one}.values()),
        user=resolved.user,
        config=resolved.config,
        created_at_ns=known.created_at_ns if known else state.wall_ns,
        pinned=pinned(state, tags),
    )
    # What is about to be written stands for whatever an earlier write that failed has left.
    state.unsaved.pop(f"{image.KIND}/{image.id}")
    advance_pull(state, pull_id, im.LayersApplied(image=image))


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _record(state: State, image: ImageRecord) -> None:
    """Keep an image; a tag that it took from another image is that one's no longer."""
    for other in state.images.values():
        left = tuple(tag for tag in other.tags if tag not in image.tags)
        if other.id != image.id and left != other.tags:
            other = replace(other, tags=left)
            state.images.put(other.id, other)
            state.emit(RECORDS_LANE, fx.SaveRecord(record=other))
    state.images.put(image.id, image)


# --- removing -----------------------------------------------------------------------------------------------------


def remove_image(state: State, call_id: int, request: rq.RemoveImage) -> None:
    """Remove the image that is named, with all its tags (CRI); one that is unknown is gone already."""
    image = find_image(state, request.image)
    if image is None:
        if not request.image.image:
            raise invalid("image.image", request.image.image, "an image reference or id")
        state.reply(call_id, Done())
        return
    users = [one.id for one in state.containers.values() if image.id in one.every_image]
    if users:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "IMAGE_IN_USE",
            f"image: {request.image.image!r} is used by container {users[0]}"
            + (f" and {len(users) - 1} more" if len(users) > 1 else "")
            + ": remove them first",
        )
    removal_id = f"removal/{image.id}/{call_id}"
    state.images.pop(image.id)
    state.pulls.put(removal_id, im.Pull(id=removal_id, state=ImageState.READY, image=image))
    state.wait(call_id, removal_id, "remove")
    advance_pull(state, removal_id, im.ImageRemoveRequested())


def is_being_removed(state: State, image_id: str) -> bool:
    """Whether the deletion of this image's record is under way."""
    return any(
        pull.state is ImageState.REMOVING and pull.image is not None and pull.image.id == image_id
        for pull in state.pulls.values()
    )


def sweep_layers(state: State, candidates: tuple[str, ...]) -> None:
    """Remove those of the candidate layers that no image, pull or container needs.

    What is quarantined may be a container that has any of them mounted: they stay until a start that has nothing set
    aside.
    """
    if state.quarantined:
        return
    for diff_id in candidates:
        layer = state.layers.get(diff_id)
        if layer is None or layer.state is not LayerState.APPLIED or _needed(state, diff_id):
            continue
        advance_layer(state, diff_id, LayerUnused())


def _needed(state: State, diff_id: str) -> bool:
    return (
        any(diff_id in image.layers for image in state.images.values())
        or any(
            any(one.diff_id == diff_id for one in pull.wanted)
            or (pull.image is not None and diff_id in pull.image.layers)
            for pull in state.pulls.values()
        )
        or any(
            diff_id in container.every_layer
            for container in state.containers.values()
            if container.state is not ContainerState.GONE
        )
    )


def load_layers(state: State, stored: tuple[str, ...]) -> None:
    """Take up the layers that are in the store. An image that lacks one is no image: its record goes."""
    for diff_id in stored:
        descriptor = LayerDescriptor(digest="", diff_id=diff_id, size_bytes=0, media_type="")
        state.layers.put(diff_id, Layer(id=diff_id, state=LayerState.APPLIED, descriptor=descriptor))
    for image in state.images.values():
        if any(diff_id not in state.layers for diff_id in image.layers):
            state.images.pop(image.id)
            state.emit(RECORDS_LANE, fx.DeleteRecord(kind=image.KIND, record_id=image.id))
