"""Copies of records beside what they own: what a node is rebuilt from when both files of its journal are lost (R10).

A sandbox's copy lies in its directory and a container's in its bundle, in memory like these, so each goes when the
thing goes that it tells of. An image's lies on disk, as its layers do. A copy is written behind the commit of its
record to memory or disk, whole or not at all; one that cannot be written is removed. So what is there is never older
than what a server that is killed in a commit finds in its journal.
"""

import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress

from crio_core.layout import Layout
from crio_core.records import ContainerRecord, ImageRecord, SandboxRecord

NAME = "record"
DURABLE = frozenset({ImageRecord.KIND})
"""Kinds whose copies lie on disk."""
FILE_BYTES_MAX = 17 * 1024 * 1024
"""Above the bound of a row, with its first line."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}", re.ASCII)
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
_Key = tuple[str, str]

log = logging.getLogger(__name__)


class RecordFiles:
    """The copies of one node, for its journal."""

    def __init__(self, layout: Layout) -> None:
        self._directories = {
            SandboxRecord.KIND: str(layout.sandboxes),
            ContainerRecord.KIND: str(layout.containers),
            ImageRecord.KIND: str(layout.images),
        }
        self._layers = f"{layout.storage}/layers"

    def put(self, kind: str, record_id: str, data: bytes) -> None:
        """Write a record's copy, in place of an older one. In the way of every call: paths are plain text here."""
        path = self._path(kind, record_id)
        if not path:
            return
        new = path + ".new"
        content = (_head(kind, record_id, data), data)
        try:
            try:
                fd = os.open(new, _FLAGS, 0o600)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                fd = os.open(new, _FLAGS, 0o600)
            try:
                if os.writev(fd, content) != sum(map(len, content)):
                    raise OSError("not all of it could be written")
            finally:
                os.close(fd)
            os.rename(new, path)
        except OSError as error:
            log.warning("no copy is kept of the record of %s %s: %s", kind, record_id, error)
            for each in (new, path):
                with suppress(OSError):
                    os.unlink(each)

    def remove(self, kind: str, record_id: str) -> None:
        """Remove a record's copy, and its directory when nothing else was ever made in there; absent is success."""
        path = self._path(kind, record_id)
        if path:
            with suppress(OSError):
                os.unlink(path)
            if kind not in DURABLE:
                with suppress(OSError):
                    os.rmdir(os.path.dirname(path))

    def read(self) -> tuple[dict[_Key, bytes], dict[_Key, tuple[bytes, str]]]:
        """All good copies, and each thing that has none, with what is there in place of it and the reason."""
        good: dict[_Key, bytes] = {}
        bad: dict[_Key, tuple[bytes, str]] = {}
        for key, path in self._places():
            try:
                with open(path, "rb") as file:
                    content = file.read(FILE_BYTES_MAX)
            except FileNotFoundError:
                bad[key] = (b"", "it is there, and its record is lost")
                continue
            except OSError as error:
                bad[key] = (b"", f"its record is lost, and the copy cannot be read: {error.strerror}")
                continue
            head, _, data = content.partition(b"\n")
            if head + b"\n" == _head(*key, data):
                good[key] = data
            else:
                bad[key] = (content, "its record is lost, and the copy's checksum does not match")
        return good, bad

    def complete(self, rows: Mapping[_Key, bytes]) -> None:
        """Write the copies that are missing of what is there, and drop those of images that are in no row."""
        for (kind, record_id), data in rows.items():
            path = self._path(kind, record_id)
            if path and not os.path.exists(path) and (kind in DURABLE or os.path.isdir(os.path.dirname(path))):
                self.put(kind, record_id, data)
        for key, _ in self._places():
            if key[0] in DURABLE and key not in rows:
                self.remove(*key)

    def traces(self) -> bool:
        """Whether anything is there that records would tell of: a node that never ran has nothing."""
        return any(_names(place) for place in (*self._directories.values(), self._layers))

    def _path(self, kind: str, record_id: str) -> str:
        """Where a record's copy is; empty for one that cannot have any."""
        directory = self._directories.get(kind)
        if directory is None or _ID.fullmatch(record_id) is None:
            return ""
        return f"{directory}/{record_id}" if kind in DURABLE else f"{directory}/{record_id}/{NAME}"

    def _places(self) -> Iterable[tuple[_Key, str]]:
        for kind, directory in self._directories.items():
            for name in _names(directory):
                path = self._path(kind, name)
                if path and not path.endswith(".new"):
                    yield (kind, name), path


def checksum(kind: str, record_id: str, data: bytes) -> int:
    """What tells that a record's bytes are those that were stored, under this kind and id."""
    return zlib.crc32(data, zlib.crc32(f"{kind}\0{record_id}\0".encode("utf-8", "surrogatepass")))


def _head(kind: str, record_id: str, data: bytes) -> bytes:
    return f"{checksum(kind, record_id, data):08x} {kind} {record_id}\n".encode()


def _names(directory: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(directory)))
    except OSError:
        return ()
