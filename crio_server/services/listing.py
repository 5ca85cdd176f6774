"""List and status answers from records whose serialized form is kept until they change.

A kubelet lists everything every second, and asks the status of what it found; nearly nothing has changed since.
Records are values, so one that is the very object it was has the very bytes it had.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Identified)

BATCH_BYTES_MAX = 1024 * 1024
"""Of one message of a streamed list; a client's limit is 4 MiB where nobody raised it. One item alone may be larger."""
_ITEMS_TAG = b"\x0a"
"""Field 1, length-delimited: where every CRI list answer has its items, and every status answer its status."""


class ListCache(Generic[R]):
    """Builds the bytes of list and status answers.

    Args:
        translate: Makes the CRI message of one record.
    """

    def __init__(self, translate: Callable[[R], Message]) -> None:
        self._translate = translate
        self._items: dict[str, tuple[R, bytes]] = {}
        self._whole: tuple[Sequence[R], bytes] = ((), b"")
        """The last answer with everything, and what it was made of."""

    def answer(self, records: Sequence[R], *, everything: bool) -> bytes:
        """The serialized answer; `everything` says that nothing was filtered out, so that the cache can be pruned."""
        if records is self._whole[0]:
            return self._whole[1]
        joined = b"".join([self.item(record) for record in records])
        if everything:
            self.keep(records)
            self._whole = (records, joined)
        return joined

    def batches(self, records: Sequence[R], *, everything: bool) -> Iterator[bytes]:
        """The same answer in messages of bounded size, for a streamed list: no number of records is too many (R34)."""
        if everything:
            self.keep(records)
        batch: list[bytes] = []
        batch_bytes = 0
        for record in records:
            item = self.item(record)
            if batch and batch_bytes + len(item) > BATCH_BYTES_MAX:
                yield b"".join(batch)
                batch, batch_bytes = [], 0
            batch.append(item)
            batch_bytes += len(item)
        if batch:
            yield b"".join(batch)

    def keep(self, records: Sequence[R]) -> None:
        """Forget every record but these."""
        if len(self._items) > len(records):
            live = {record.id for record in records}
            self._items = {key: item for key, item in self._items.items() if key in live}

    def item(self, record: R) -> bytes:
        """The serialized answer with one record alone."""
        known = self._items.get(record.id)
        if known is not None and known[0] is record:
            return known[1]
        body = self._translate(record).SerializeToString()
        framed = _ITEMS_TAG + _varint(len(body)) + body
        self._items[record.id] = (record, framed)
        return framed


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
