"""Waiting for what is about to be: the one place in which tests sleep, between two looks at the world outside."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio.to_thread

T = TypeVar("T")
WAIT_S = 20.0
LOOK_EVERY_S = 0.005


def look_until(holds: Callable[[T], object], look: Callable[[], T], timeout_s: float) -> T:
    """Look again and again until what is seen is as wanted, or the time is over; what was seen last."""
    deadline_s = time.monotonic() + timeout_s
    while not holds(found := look()) and time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S)
    return found


def wait_for(what: str, look: Callable[[], T], *, timeout_s: float = WAIT_S) -> T:
    """Look again and again until there is something; returns it."""
    found = look_until(bool, look, timeout_s)
    assert found, f"waited {timeout_s:g} s in vain for: {what}"
    return found


async def wait_meanwhile(what: str, look: Callable[[], T], *, timeout_s: float = WAIT_S) -> T:
    """`wait_for` in a thread, so that the tasks of this loop go on."""
    return await anyio.to_thread.run_sync(partial(wait_for, what, look, timeout_s=timeout_s))
