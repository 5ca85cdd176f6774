"""The directories of a store, and how what lies in them goes away again. Everything here blocks."""

import logging
import os
import secrets
import time
from collections.abc import Collection
from itertools import count
from pathlib import Path

from crio_core.errors import Code, OperationError
from crio_io.storage import deep
from crio_io.storage.files import make_directory

log = logging.getLogger(__name__)

ROOMS = ("ingest", "unpacking", "layers", "containers", "trash")
BLOB_IDLE_S = 600.0


class Rooms:
    """The directories under a store's root; `open` makes them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names = count()
        self._token = secrets.token_hex(4)  # A name of an earlier server's is never made again: see `_left`.
        self._left: frozenset[str] = frozenset()

    def open(self) -> None:
        """Make what is missing, and note what is left in there."""
        for room in ROOMS:
            make_directory(self._root / room)
        make_directory(self._root)
        # Pulls go on while the rest is swept: only what was there before them is a crash's.
        self._left = frozenset(place.name for place in (self._root / "unpacking").iterdir())

    def place_to_unpack(self, name: str) -> Path:
        """A directory that does not exist yet, for a layer with this short name."""
        place = self._root / "unpacking" / f"{name}.{self._token}.{next(self._names)}"
        deep.delete(place)
        return place

    def discard(self, place: Path) -> None:
        """Rename away, then delete: what is half deleted is never seen under its own name. Absent is success.

        Raises:
            OperationError: REMOVE_FAILED; renamed, it is out of sight all the same, and `sweep` goes on with it.
        """
        trash = self._root / "trash" / f"{os.getpid()}.{next(self._names)}"
        try:
            deep.delete(trash)
            place.rename(trash)
        except FileNotFoundError:
            return
        except OSError as error:
            raise remove_failed(place, error) from error
        try:
            deep.delete(trash)
        except OSError as error:
            raise remove_failed(place, error) from error

    def sweep(self, blobs_max_age_s: float) -> tuple[str, ...]:
        """Delete what a crash left half unpacked or half deleted, and blobs to which nobody has written for so long.

        Returns what was deleted; what cannot be is logged, and does not keep the rest.
        """
        removed = []
        for room, delete in (("unpacking", self.discard), ("trash", deep.delete)):
            for place in sorted((self._root / room).iterdir()):
                if room == "unpacking" and place.name not in self._left:
                    continue
                try:
                    delete(place)
                except (OSError, OperationError) as error:
                    log.warning("%s is left over and cannot be deleted: %s", place, error)
                else:
                    removed.append(f"{room}/{place.name}")
        return (*removed, *self.trim_blobs(blobs_max_age_s))

    def trim_blobs(
        self, max_age_s: float, bytes_max: int | None = None, spared: Collection[Path] = ()
    ) -> tuple[str, ...]:
        """Delete blobs that nobody has written to for so long, and then the oldest until they take no more than that.

        One that was written to within `BLOB_IDLE_S` is on its way, and stays; so do those that are spared.
        """
        now_s = time.time()
        found = []
        for place in (self._root / "ingest").iterdir():
            if place in spared:
                continue
            try:
                stat = place.stat()
            except FileNotFoundError:  # a pull has just ended
                continue
            except OSError as error:
                log.warning("%s cannot be looked at: %s", place, error)
                continue
            found.append((stat.st_mtime, stat.st_size, place))
        left_bytes = sum(size_bytes for _, size_bytes, _ in found)
        removed = []
        for mtime_s, size_bytes, place in sorted(found):
            too_many = bytes_max is not None and left_bytes > bytes_max and now_s - mtime_s > BLOB_IDLE_S
            if too_many or now_s - mtime_s > max_age_s:
                try:
                    place.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s is left over and cannot be deleted: %s", place, error)
                    continue
                left_bytes -= size_bytes
                removed.append(f"ingest/{place.name}")
        return tuple(removed)


def remove_failed(place: Path, error: OSError) -> OperationError:
    """Why something stays."""
    return OperationError(Code.INTERNAL, "REMOVE_FAILED", f"{place}: {error.strerror}")
