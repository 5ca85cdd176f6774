"""Messages of streamed lists: whole, in order, and bounded."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.services import listing
from crio_server.services.listing import ListCache


@dataclass(frozen=True)
class Item:
    id: str
    chars: int


def image(item: Item) -> pb.Image:
    return pb.Image(id=item.id, username="x" * item.chars)


@given(st.lists(st.integers(0, 300_000), max_size=12))
def test_batches_together_are_the_list_and_none_is_larger_than_its_bound(sizes: list[int]) -> None:
    """R34: however many records there are, no message passes a client's limit."""
    items = tuple(Item(id=str(index), chars=size) for index, size in enumerate(sizes))
    cache = ListCache[Item](image)
    batches = list(cache.batches(items, everything=True))
    assert b"".join(batches) == cache.answer(items, everything=True)
    found = [one.id for batch in batches for one in pb.StreamImagesResponse.FromString(batch).images]
    assert found == [item.id for item in items]
    assert all(len(batch) <= listing.BATCH_BYTES_MAX for batch in batches)
