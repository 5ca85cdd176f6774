"""A simulated registry that knows every reference: the same image for the same reference, everywhere."""

from collections.abc import Iterator, Mapping

from crio_core.errors import OperationError
from crio_core.events import ImageResolved
from crio_core.image.reference import normalise
from crio_core.sim.images import image

BASES = 8
"""How many base layers there are: images share them, as real ones do."""
MISSING = "missing"
"""Images whose name ends so are not there: for those who want to see a pull fail."""


class EveryImage(Mapping[str, ImageResolved]):
    """Images by whatever reference they are asked for; nothing is kept.

    Args:
        known: Images that are as they are described here.
    """

    def __init__(self, known: Mapping[str, ImageResolved]) -> None:
        self._known = known

    def __getitem__(self, reference: str) -> ImageResolved:
        if reference in self._known:
            return self._known[reference]
        try:
            name = normalise(reference, "image.image").tagged()
        except OperationError as error:
            raise KeyError(reference) from error
        repository = str(name).partition("@")[0]
        if name.digest:
            base = image(f"{repository}:by-digest", (str(name.digest),))
            return ImageResolved(
                image_id=base.image_id,
                tags=(),
                digests=(str(name.by_digest(name.digest)),),
                config=base.config,
                user="",
                layers=base.layers,
            )
        text = str(name)
        if text in self._known:
            return self._known[text]
        if text.rpartition(":")[0].endswith(MISSING):
            raise KeyError(reference)
        number = sum(text.encode()) % BASES
        return image(text, (f"base {number}", text))

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
