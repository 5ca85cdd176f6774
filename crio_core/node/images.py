"""Images: pulling them once however many ask, sharing their layers, removing what nobody needs."""

from crio_core import effects as fx
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import Code, OperationError, invalid
from crio_core.events import LayerDescriptor, LayerProgressed, StoredLayer
from crio_core.image.reference import parse_image_id
from crio_core.lifecycle import image as im
from crio_core.lifecycle import layer as ly
from crio_core.node.naming import canonical_names, find_among, find_image
from crio_core.node.state import State
from crio_core.records import ContainerState, Failure, ImageRecord, ImageState, LayerState
from crio_core.replies import Done, Pulled
from crio_core.values import replace

RECORDS_LANE = "images"
"""Saves and deletions of image records go through one lane, so that a pull cannot overtake a removal."""
KEEP_NS = 3600 * 1_000_000_000
"""How long layers of a pull that did not come to its end are kept for the next one. No image names them that a kubelet
could collect, so they go at once when an image is removed, which frees space, or when there is none left."""
KEEP_TIMER = "layers/keep"


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
    if pull.state is ImageState.GONE and pull.reference:
        leave_layers(state, tuple(one.diff_id for one in pull.wanted))
    elif pull.state is ImageState.GONE:
        # Somebody wants space: what is only kept goes as well.
        removed = pull.image.layers if pull.image else ()
        sweep_layers(state, (*removed, *_kept(state)))


def _pull_ended(state: State, pull: im.Pull, failure: Failure | None) -> None:
    done = failure if failure is not None or pull.image is None else Pulled(image_id=pull.image.id)
    state.answer(pull.id, "pull", done)
    for sandbox_id in state.infra_pulls.pop(pull.id) or ():
        state.ended_infra_pulls.append((sandbox_id, failure))


def _want(state: State, pull: im.Pull, descriptor: LayerDescriptor) -> None:
    layer = state.layers.get(descriptor.diff_id)
    proof = layer is not None and layer.is_stored and descriptor.digest not in layer.blobs
    if layer is None:
        layer = ly.Layer(id=descriptor.diff_id, state=LayerState.ABSENT, descriptor=descriptor)
    if layer.state in (LayerState.ABSENT, LayerState.REMOVING, LayerState.OWING) or (
        proof and layer.state is not LayerState.PROVING
    ):
        layer = replace(layer, descriptor=descriptor, reference=pull.reference, auth=pull.auth)
        state.layers.put(layer.id, layer)
    # Only one blob is proven at a time: when that one's turn is over, the others are thought of again.
    wanted = ly.ProofWanted() if proof and layer.state is not LayerState.PROVING else ly.LayerWanted()
    advance_layer(state, layer.id, wanted)


def advance_layer(state: State, layer_id: str, event: object) -> None:
    """Apply an event to a layer, and tell the pulls that wait for it."""
    before = state.layers[layer_id]
    layer, outputs = ly.LAYER.step(before, event)
    if layer.state is LayerState.GONE:
        state.layers.pop(layer_id)
    else:
        state.layers.put(layer_id, layer)
    for output in outputs:
        assert not isinstance(output, fx.Answer | fx.Ask)
        state.emit(layer_id, output)
    if isinstance(event, ly.FetchFailed | ly.ApplyFailed | ly.ProofFailed):
        _layer_failed(state, layer, event.failure)
    elif layer.state is LayerState.APPLIED and before.state is not LayerState.APPLIED:
        _go_on(state, layer_id)


def _layer_failed(state: State, layer: ly.Layer, failure: Failure) -> None:
    """Fail the pulls whose own source it was that failed: another image may name the layer, and lie about it."""
    if failure.code == Code.RESOURCE_EXHAUSTED.value:
        sweep_layers(state, _kept(state))
    for pull in state.pulls.values():
        mine = (pull.reference, pull.auth) == (layer.reference, layer.auth) and layer.descriptor in pull.wanted
        if pull.state is ImageState.FETCHING and mine:
            advance_pull(state, pull.id, im.LayerFailed(failure=failure))
    _go_on(state, layer.id)


def _go_on(state: State, layer_id: str) -> None:
    """Let the pulls that need this layer go on: with what is there, or with a try of their own."""
    for known in state.pulls.values():
        pull = state.pulls.get(known.id)
        if pull is None or pull.state is not ImageState.FETCHING:
            continue
        for descriptor in pull.wanted:
            if descriptor.diff_id == layer_id and not _has(state, descriptor):
                _want(state, pull, descriptor)
        settle_pull(state, pull.id)
    # The pull that it came for may have failed meanwhile for another layer.
    leave_layers(state, (layer_id,))


def _has(state: State, descriptor: LayerDescriptor) -> bool:
    """Whether the content of this blob is in the store."""
    layer = state.layers.get(descriptor.diff_id)
    return layer is not None and layer.is_stored and descriptor.digest in layer.blobs


def note_progress(state: State, event: LayerProgressed) -> None:
    """Remember how far a layer has come, for those who ask; of one that is not being fetched it is old news."""
    layer = state.layers.get(event.diff_id)
    if layer is not None and layer.state in (LayerState.FETCHING, LayerState.PROVING):
        state.history.progress.put(event.diff_id, event)


def settle_pull(state: State, pull_id: str) -> None:
    """Record the image of a pull when its last layer is there."""
    pull = state.pulls.get(pull_id)
    if pull is None or pull.state is not ImageState.FETCHING:
        return
    if not all(_has(state, one) for one in pull.wanted):
        return
    resolved = pull.resolved
    assert resolved is not None
    known = state.images.get(resolved.image_id)
    image = ImageRecord(
        id=resolved.image_id,
        state=ImageState.RECORDING,
        tags=_union(known.tags if known else (), resolved.tags),
        digests=_union(known.digests if known else (), resolved.digests),
        layers=tuple(one.diff_id for one in pull.wanted),
        blobs=tuple(one.digest for one in pull.wanted),
        size_bytes=sum(state.layers[one].size_bytes for one in {one.diff_id: True for one in pull.wanted}),
        user=resolved.user,
        config=resolved.config,
        created_at_ns=known.created_at_ns if known else state.wall_ns,
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
            state.emit(RECORDS_LANE, fx.save(record=other))
    state.images.put(image.id, image)


# --- removing -----------------------------------------------------------------------------------------------------


def remove_image(state: State, call_id: int, request: rq.RemoveImage) -> None:
    """Remove the image that is named, with all its tags (CRI); one that is unknown is gone already."""
    image = find_image(state, request.image)
    if image is None:
        if not request.image.image:
            raise invalid("image.image", request.image.image, "an image reference or id")
        removal_id = _removal_of(state, request.image)
        if removal_id is None:
            state.reply(call_id, Done(), lane=RECORDS_LANE)  # Behind the deletion of its record.
        else:
            # Gone it is when its record is: a crash before that would bring it back.
            state.wait(call_id, removal_id, "remove")
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


def _removals(state: State) -> dict[str, im.Pull]:
    """By image the last removal whose record is still being deleted: an image may have been pulled in between."""
    return {
        pull.image.id: pull
        for pull in state.pulls.values()
        if pull.state is ImageState.REMOVING and pull.image is not None
    }


def _removal_of(state: State, spec: ImageSpec) -> str | None:
    """The removal under way of the image that is named, if there is one."""
    removals = _removals(state)
    image = find_among(tuple(pull.image for pull in removals.values() if pull.image is not None), spec)
    return None if image is None else removals[image.id].id


def is_being_removed(state: State, image_id: str) -> bool:
    """Whether the deletion of this image's record is under way."""
    return image_id in _removals(state)


def sweep_layers(state: State, candidates: tuple[str, ...]) -> None:
    """Remove those of the candidate layers that no image, pull or container needs.

    What is quarantined may be a container that has any of them mounted: they stay until a start that has nothing set
    aside.
    """
    if state.quarantined:
        return
    for diff_id in candidates:
        layer = state.layers.get(diff_id)
        idle = layer is not None and layer.state in (LayerState.APPLIED, LayerState.KEPT)
        if idle and not _needed(state, diff_id):
            advance_layer(state, diff_id, ly.LayerUnused())


def leave_layers(state: State, candidates: tuple[str, ...]) -> None:
    """Keep those of the candidate layers that nothing needs for a while: what interrupted a pull may pass."""
    if state.quarantined:
        return
    for diff_id in candidates:
        layer = state.layers.get(diff_id)
        if layer is None or layer.state is not LayerState.APPLIED or _needed(state, diff_id):
            continue
        if not _kept(state):
            state.emit(KEEP_TIMER, fx.arm(timer_id=KEEP_TIMER, after_ns=KEEP_NS))
        advance_layer(state, diff_id, ly.LayerLeft(until_ns=state.at_ns + KEEP_NS))


def sweep_kept(state: State) -> None:
    """Remove what was kept long enough."""
    sweep_layers(state, tuple(key for key in _kept(state) if state.layers[key].kept_until_ns <= state.at_ns))
    if left := _kept(state):
        first_ns = min(state.layers[key].kept_until_ns for key in left)
        state.emit(KEEP_TIMER, fx.arm(timer_id=KEEP_TIMER, after_ns=first_ns - state.at_ns))


def _kept(state: State) -> tuple[str, ...]:
    return tuple(one.id for one in state.layers.values() if one.state is LayerState.KEPT)


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


def load_layers(state: State, stored: tuple[StoredLayer, ...]) -> None:
    """Take up the layers that are in the store. An image that lacks one is no image: its record goes."""
    blobs: dict[str, dict[str, None]] = {one.diff_id: dict.fromkeys((one.blob,) if one.blob else ()) for one in stored}
    for image in state.images.values():
        for diff_id, blob in zip(image.layers, image.blobs, strict=False):
            blobs.setdefault(diff_id, {})[blob] = None
    for one in stored:
        descriptor = LayerDescriptor(digest="", diff_id=one.diff_id, size_bytes=0, media_type="")
        layer = ly.Layer(
            id=one.diff_id,
            state=LayerState.APPLIED,
            descriptor=descriptor,
            blobs=tuple(blobs[one.diff_id]),
            size_bytes=one.size_bytes,
        )
        state.layers.put(layer.id, layer)
    for image in state.images.values():
        if any(diff_id not in state.layers for diff_id in image.layers):
            state.images.pop(image.id)
            state.emit(RECORDS_LANE, fx.DeleteRecord(kind=image.KIND, record_id=image.id))
