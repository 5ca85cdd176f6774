"""The life of an image: resolved at a registry, its layers fetched and applied, recorded, and one day removed.

While it is resolved an image has no id yet and is known by the pull that makes it. It is ready, and listed, only when
its layers are durable and its record is in the journal.
"""

from enum import Enum
from typing import Any

from crio_core import effects as fx
from crio_core.events import ImageResolved, LayerDescriptor, RecordDeleted, RecordSaved
from crio_core.lifecycle.engine import Arrival, Lifecycle, arrive
from crio_core.records import Failure, ImageRecord, ImageState
from crio_core.values import dataclass, replace

S = ImageState


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """A pull on its way, known by its reference and credentials; or, with `image` alone, an image being removed."""

    id: str
    state: ImageState
    reference: str = ""
    auth: str = ""
    image: ImageRecord | None = None
    resolved: ImageResolved | None = None

    @property
    def wanted(self) -> tuple[LayerDescriptor, ...]:
        """The layers that the image needs, once that is known."""
        return self.resolved.layers if self.resolved else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveFailed:
    """No registry could say what the reference means."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersApplied:
    """Every layer of the image is in the store; `image` is the record to keep."""

    image: ImageRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFailed:
    """A layer of the image could not be had."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNotSaved:
    """The journal refused the record."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRemoveRequested:
    """A client wants the image gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNotDeleted:
    """The journal did not let go of the record."""

    failure: Failure


TABLE: dict[tuple[Enum, type], Enum] = {
    (S.RESOLVING, ImageResolved): S.FETCHING,
    (S.RESOLVING, ResolveFailed): S.GONE,
    (S.FETCHING, LayersApplied): S.RECORDING,
    (S.FETCHING, LayerFailed): S.GONE,
    (S.RECORDING, RecordSaved): S.READY,
    (S.RECORDING, ImageNotSaved): S.GONE,
    (S.READY, ImageRemoveRequested): S.REMOVING,
    (S.REMOVING, RecordDeleted): S.GONE,
    (S.REMOVING, ImageNotDeleted): S.READY,
}


def _enter(record: Pull, came_from: Enum, event: Any) -> Arrival[Pull]:
    match record.state:
        case S.FETCHING:
            return arrive(record=replace(record, resolved=event), orders=(fx.Ask(what="layers"),))
        case S.RECORDING:
            image = replace(event.image, state=S.READY)
            return arrive(record=replace(record, image=image), orders=(fx.save(record=image),))
        case S.READY:
            if isinstance(event, ImageNotDeleted):
                return arrive(record=record, orders=(fx.Answer(operation="remove", failure=event.failure),))
            return arrive(record=record, orders=(fx.answered("pull"),))
        case S.REMOVING:
            image_id = record.image.id if record.image else record.id
            return arrive(record=record, orders=(fx.DeleteRecord(kind=ImageRecord.KIND, record_id=image_id),))
        case _:
            if isinstance(event, RecordDeleted):
                return arrive(record=record, orders=(fx.answered("remove"),))
            return arrive(record=record, orders=(fx.Answer(operation="pull", failure=event.failure),))


IMAGE = Lifecycle[Pull]("image", ImageState, initial=S.RESOLVING, final=frozenset({S.GONE}), table=TABLE, enter=_enter)
