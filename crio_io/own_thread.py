"""Runs a function in a thread that ends afterwards, because what it has unshared it can never share again."""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(function: Callable[[], Result]) -> Result:
    """Run a function and return what it returns, or raise what it raises; blocks."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # Carried over to the caller's thread, which raises it.
            failures.append(error)

    thread = threading.Thread(target=body, name="crio-unshare", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
