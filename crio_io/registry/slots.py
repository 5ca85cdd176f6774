"""Who may download now: a bound on transfers, shared fairly, that slow ones do not use up.

The bound is for the sake of disk and processor, and a transfer that trickles takes nothing of either. So when somebody
waits, transfers that came too slowly for a while give their place back and go on beside it (R13). A place that is free
goes to the waiter whose host, and then whose image, has the fewest.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from crio_io.mounts import named_step

FAST_MAX = 6
SLOW_MAX = 32
"""Transfers that gave their place back; a connection each, and the small buffers of one."""
SLOW_BYTES_PER_S = 256 * 1024
PATIENCE_S = 2.0
"""How long a transfer is watched before it is called slow, and how often those who wait have a look."""


class Slot:
    """A place. Whoever has it says what came."""

    __slots__ = ("host", "image", "is_slow", "looked_s", "received_bytes", "turn")

    def __init__(self, *, host: str, image: str) -> None:
        self.host = host
        self.image = image
        self.received_bytes = 0  # Since it was looked at last.
        self.looked_s = 0.0
        self.is_slow = False
        self.turn = anyio.Event()


class Slots:
    """The places of one node.

    Args:
        fast_max: Transfers at one time, besides slow ones.
        slow_max: Slow ones; when there are as many, another one keeps its place.
        slow_bytes_per_s: What is slow.
        patience_s: Over how long.
    """

    def __init__(
        self,
        *,
        fast_max: int = FAST_MAX,
        slow_max: int = SLOW_MAX,
        slow_bytes_per_s: int = SLOW_BYTES_PER_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._fast_max = fast_max
        self._slow_max = slow_max
        self._slow_bytes_per_s = slow_bytes_per_s
        self._patience_s = patience_s
        self._taken: list[Slot] = []
        self._waiting: list[Slot] = []

    @asynccontextmanager
    async def take(self, host: str, image: str, what: str) -> AsyncIterator[Slot]:
        """Have a place for the length of the block.

        Args:
            host: Where the transfer comes from first.
            image: What it is for.
            what: A noun for whoever asks what is waited for.
        """
        slot = Slot(host=host, image=image)
        self._waiting.append(slot)
        try:
            self._serve()
            if not slot.turn.is_set():
                with named_step(f"wait for one of {self._fast_max} downloads to end before {what}"):
                    await self._wait(slot)
            yield slot
        finally:
            (self._taken if slot in self._taken else self._waiting).remove(slot)
            self._serve()

    async def _wait(self, slot: Slot) -> None:
        while not slot.turn.is_set():
            with anyio.move_on_after(self._patience_s):
                await slot.turn.wait()
            self._look()

    def _look(self) -> None:
        """Take the places of those that were slow since the last look."""
        now_s = time.monotonic()
        for slot in self._taken:
            for_s = now_s - slot.looked_s
            if slot.is_slow or for_s < self._patience_s:
                continue
            may_be_slow = sum(one.is_slow for one in self._taken) < self._slow_max
            slot.is_slow = may_be_slow and slot.received_bytes < self._slow_bytes_per_s * for_s
            slot.received_bytes, slot.looked_s = 0, now_s
        self._serve()

    def _serve(self) -> None:
        """Give free places to those who wait."""
        while self._waiting and sum(not slot.is_slow for slot in self._taken) < self._fast_max:
            chosen = min(
                self._waiting,
                key=lambda slot: (
                    sum(slot.host == other.host for other in self._taken if not other.is_slow),
                    sum(slot.image == other.image for other in self._taken if not other.is_slow),
                ),
            )
            self._waiting.remove(chosen)
            self._taken.append(chosen)
            chosen.looked_s = time.monotonic()
            chosen.turn.set()
