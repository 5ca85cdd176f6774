"""Trying again, where that may help: bounded in count and in waiting."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

ATTEMPTS_MAX = 4
MIRROR_ATTEMPTS_MAX = 2
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 5.0
RETRY_AFTER_MAX_S = 20.0

Result = TypeVar("Result")


class RegistryError(Exception):
    """A request that did not give what was asked for.

    Args:
        reason: A stable word.
        message: What went wrong, with host and path.
        status: The HTTP status; 0 when there was no answer.
        retryable: Whether the same request may succeed a little later.
        retry_after_s: What the server asked to wait; 0 for nothing.
    """

    def __init__(
        self, *, reason: str, message: str, status: int = 0, retryable: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status
        self.retryable = retryable
        self.retry_after_s = retry_after_s


def backoff_s(failures: int, retry_after_s: float = 0.0) -> float:
    """How long to wait after so many failures in a row (at least one)."""
    own: float = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16), BACKOFF_MAX_S)
    return max(own, min(retry_after_s, RETRY_AFTER_MAX_S))


async def retrying(work: Callable[[], Awaitable[Result]], attempts_max: int = ATTEMPTS_MAX) -> Result:
    """Do `work`, again while it fails in a way that may pass.

    Raises:
        RegistryError: The last failure.
    """
    failures = 0
    while True:
        try:
            return await work()
        except RegistryError as error:
            failures += 1
            if not error.retryable or failures >= attempts_max:
                raise
            await anyio.sleep(backoff_s(failures, error.retry_after_s))
