"""Places for downloads: bounded, fair, and not used up by those that trickle. No registry, no network."""

import anyio
import pytest

from crio_io.mounts import running_steps
from crio_io.registry.slots import Slot, Slots

pytestmark = pytest.mark.anyio
PATIENCE_S = 0.02


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Transfers:
    """Transfers that go on until they are ended; `order` says in which order they got a place."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.order: list[str] = []
        self.ends: dict[str, anyio.Event] = {}

    async def run(self, name: str, host: str, image: str, bytes_per_look: int = 0) -> None:
        self.ends[name] = anyio.Event()
        async with self.slots.take(host, image, f"layer {name}") as slot:
            self.order.append(name)
            while not self.ends[name].is_set():
                slot.received_bytes += bytes_per_look
                with anyio.move_on_after(PATIENCE_S / 4):
                    await self.ends[name].wait()

    async def until(self, count: int) -> None:
        with anyio.fail_after(10):
            while len(self.order) < count:
                await anyio.sleep(0)

    def end_all(self) -> None:
        for event in self.ends.values():
            event.set()


async def test_r13_trickling_transfers_give_their_places_to_those_who_wait() -> None:
    """R13: six layers that trickle must not keep a healthy one waiting, and are not broken off for it."""
    transfers = Transfers(Slots(fast_max=6, patience_s=PATIENCE_S))
    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(transfers.run, f"slow{number}", "a", f"a{number}", 1)
        await transfers.until(6)
        group.start_soon(transfers.run, "healthy", "a", "b")
        await transfers.until(7)
        assert not any(transfers.ends[f"slow{number}"].is_set() for number in range(6))
        transfers.end_all()


async def test_transfers_that_come_fast_keep_their_places_and_the_wait_has_a_name() -> None:
    """The bound holds, and whoever asks why nothing happens is told what is waited for."""
    transfers = Transfers(Slots(fast_max=2, patience_s=PATIENCE_S))
    async with anyio.create_task_group() as group:
        for number in range(2):
            group.start_soon(transfers.run, f"fast{number}", "a", "a", 10_000_000)
        await transfers.until(2)
        group.start_soon(transfers.run, "third", "b", "b")
        with anyio.move_on_after(PATIENCE_S * 10):
            await transfers.until(3)
        assert transfers.order == ["fast0", "fast1"]
        assert any(step.name == "wait for one of 2 downloads to end before layer third" for step in running_steps())
        transfers.ends["fast0"].set()
        await transfers.until(3)
        transfers.end_all()
    assert not any("layer third" in step.name for step in running_steps())


async def test_r13_free_place_goes_to_the_host_and_the_image_that_have_the_fewest() -> None:
    """R13: sixty layers of one image, asked for first, do not keep another image's only layer for the end."""
    transfers = Transfers(Slots(fast_max=2, patience_s=60))
    async with anyio.create_task_group() as group:
        for name, host, image in (
            ("a1", "a", "big"),
            ("a2", "a", "big"),
            ("a3", "a", "big"),
            ("a4", "a", "small"),
            ("b1", "b", "x"),
        ):
            group.start_soon(transfers.run, name, host, image, 0)
            await anyio.sleep(0)
        for gone, taken in (("a1", "b1"), ("b1", "a4"), ("a2", "a3")):
            transfers.ends[gone].set()
            await transfers.until(len(transfers.order) + 1)
            assert transfers.order[-1] == taken
        transfers.end_all()


async def test_there_is_an_end_to_slow_transfers_too() -> None:
    """Each slow one costs a connection: beyond the bound they keep their places, and others wait."""
    transfers = Transfers(Slots(fast_max=1, slow_max=2, patience_s=PATIENCE_S))
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(transfers.run, f"slow{number}", "a", "a")
        await transfers.until(3)
        with anyio.move_on_after(PATIENCE_S * 10):
            await transfers.until(4)
        assert len(transfers.order) == 3
        transfers.end_all()
        with anyio.fail_after(10):
            while len(transfers.order) < 4:
                await anyio.sleep(0)
        transfers.end_all()


async def test_cancelled_wait_and_cancelled_transfer_leave_no_place_taken() -> None:
    """A pull may be cancelled anywhere."""
    slots = Slots(fast_max=1, patience_s=PATIENCE_S)
    found: list[Slot] = []
    async with slots.take("a", "a", "first"):
        with anyio.move_on_after(PATIENCE_S):
            async with slots.take("b", "b", "second"):
                found.append(Slot(host="", image=""))
    for _ in range(2):
        with anyio.move_on_after(PATIENCE_S):
            async with slots.take("c", "c", "third"):
                await anyio.sleep_forever()
    with anyio.fail_after(10):
        async with slots.take("d", "d", "fourth") as slot:
            found.append(slot)
    assert found[-1].host == "d"
