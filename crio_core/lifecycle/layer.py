"""The life of an image layer: downloaded once, unpacked once, whatever number of pulls wants it at the same time.

A layer has no record of its own in the journal: the images that are recorded name their layers. What no image needs any
more goes; what an interrupted pull leaves is kept for a while, so that the next one goes on with it.

Who names a layer by its diff id has not shown that he may have its content. So a layer that is there serves a pull only
if the blob that this pull's manifest names was seen to unpack to it; else that blob is fetched first, with the pull's
own credentials (docs/decisions/0022-a-layer-serves-those-who-name-its-blob.md).
"""

from dataclasses import field
from enum import Enum
from typing import Any

from crio_core import effects as fx
from crio_core.events import LayerApplied, LayerDescriptor, LayerFetched, LayerProved
from crio_core.lifecycle.engine import Arrival, Lifecycle, Output, arrive
from crio_core.lifecycle.release import PartReleased, ReleaseFailed, RetryDue, retry_after_ns, retry_timer
from crio_core.records import Failure, LayerState
from crio_core.values import dataclass, replace

S = LayerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer by its diff id. `descriptor`, `reference` and `auth` are of the pull that it was last fetched for."""

    id: str
    state: LayerState
    descriptor: LayerDescriptor
    reference: str = ""
    auth: str = field(default="", repr=False)
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that were seen to unpack to it."""
    size_bytes: int = 0
    kept_until_ns: int = 0
    """Monotonic; only in state kept."""
    retries: int = 0
    failure: Failure | None = None

    @property
    def is_stored(self) -> bool:
        """Whether its content is in the store, and stays there."""
        return self.state in (S.APPLIED, S.PROVING, S.KEPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWanted:
    """A pull needs the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofWanted:
    """A pull needs the layer and names a blob that nobody has seen yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed:
    """The blob could not be had; what came so far is kept for the next try."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyFailed:
    """The blob could not be unpacked, or not made durable: some of it may be in the store, and is removed."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofFailed:
    """The blob could not be had, or is not this layer's: that is no fault of the layer in the store."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLeft:
    """The pull that needed the layer did not come to its end."""

    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUnused:
    """No image and no container needs the layer any more."""


TABLE: dict[tuple[Enum, type], Enum] = {
    (S.ABSENT, LayerWanted): S.FETCHING,
    (S.FETCHING, LayerWanted): S.FETCHING,
    (S.FETCHING, LayerFetched): S.APPLYING,
    # An earlier removal may have failed, and left the layer that was then wanted again.
    (S.FETCHING, FetchFailed): S.REMOVING,
    (S.APPLYING, LayerWanted): S.APPLYING,
    (S.APPLYING, LayerApplied): S.APPLIED,
    (S.APPLYING, ApplyFailed): S.REMOVING,
    (S.APPLIED, LayerWanted): S.APPLIED,
    (S.APPLIED, ProofWanted): S.PROVING,
    (S.APPLIED, LayerLeft): S.KEPT,
    (S.APPLIED, LayerUnused): S.REMOVING,
    (S.PROVING, LayerWanted): S.PROVING,
    (S.PROVING, LayerProved): S.APPLIED,
    (S.PROVING, ProofFailed): S.APPLIED,
    (S.KEPT, LayerWanted): S.APPLIED,
    (S.KEPT, ProofWanted): S.PROVING,
    (S.KEPT, LayerUnused): S.REMOVING,
    (S.REMOVING, PartReleased): S.GONE,
    (S.REMOVING, ReleaseFailed): S.OWING,
    # Wanted again while it is being removed: the lane makes the download wait for the removal.
    (S.REMOVING, LayerWanted): S.FETCHING,
    (S.OWING, LayerWanted): S.FETCHING,
    (S.OWING, RetryDue): S.OWING,
    (S.OWING, PartReleased): S.GONE,
    (S.OWING, ReleaseFailed): S.OWING,
    (S.FETCHING, PartReleased): S.FETCHING,
    (S.FETCHING, ReleaseFailed): S.FETCHING,
    # The timer of the owed removal was cancelled too late to be stopped.
    (S.FETCHING, RetryDue): S.FETCHING,
}


def _download(order: type[fx.FetchLayer] | type[fx.ProveLayer], record: Layer) -> Output:
    """Either order has the blob fetched from where the layer's last pull would have it, by that pull's rights."""
    blob = record.descriptor
    return order(
        reference=record.reference,
        auth=record.auth,
        digest=blob.digest,
        diff_id=blob.diff_id,
        size_bytes=blob.size_bytes,
        media_type=blob.media_type,
    )


def _enter(record: Layer, came_from: Enum, event: Any) -> Arrival[Layer]:
    layer = record.descriptor
    match record.state:
        case S.FETCHING:
            if came_from is S.FETCHING:
                return arrive(record=record)
            cancel = (fx.CancelTimer(timer_id=retry_timer(record.id)),) if came_from is S.OWING else ()
            return arrive(record=replace(record, failure=None), orders=(*cancel, _download(fx.FetchLayer, record)))
        case S.APPLYING:
            if came_from is S.APPLYING:
                return arrive(record=record)
            apply = fx.ApplyLayer(
                digest=layer.digest,
                diff_id=layer.diff_id,
                size_bytes=layer.size_bytes,
                media_type=layer.media_type,
            )
            return arrive(record=record, orders=(apply,))
        case S.APPLIED:
            if isinstance(event, LayerApplied):
                record = replace(record, size_bytes=event.size_bytes, blobs=(layer.digest,))
            elif isinstance(event, LayerProved):
                record = replace(record, blobs=(*record.blobs, layer.digest))
            elif isinstance(event, ProofFailed):
                record = replace(record, failure=event.failure)
            return arrive(record=record)
        case S.PROVING:
            if came_from is S.PROVING:
                return arrive(record=record)
            return arrive(record=replace(record, failure=None), orders=(_download(fx.ProveLayer, record),))
        case S.KEPT:
            return arrive(record=replace(record, kept_until_ns=event.until_ns))
        case S.REMOVING:
            if isinstance(event, FetchFailed | ApplyFailed):
                record = replace(record, failure=event.failure)
            return arrive(record=record, orders=(fx.RemoveLayer(diff_id=layer.diff_id),))
        case S.OWING:
            if isinstance(event, ReleaseFailed):
                record = replace(record, failure=event.failure, retries=record.retries + 1)
                timer = fx.arm(timer_id=retry_timer(record.id), after_ns=retry_after_ns(record.retries))
                return arrive(record=record, orders=(timer,))
            return arrive(record=record, orders=(fx.RemoveLayer(diff_id=layer.diff_id),))
        case _:
            return arrive(record=record)


LAYER = Lifecycle[Layer]("layer", LayerState, initial=S.ABSENT, final=frozenset({S.GONE}), table=TABLE, enter=_enter)
