"""What lists are narrowed by, beyond what the server filters. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from crio_server.crioctl.errors import BadInput


class Listed(Protocol):
    """A pod or a container in a list."""

    @property
    def created_at(self) -> int: ...

    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=Listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """How many of the newest to keep; None keeps all."""

    count: int | None

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items, newest first."""
        ordered = sorted(items, key=lambda item: (-item.created_at, item.id))
        return ordered[: self.count]


def newest(latest: bool, last: int | None) -> Newest:
    """What --latest and --last N ask for."""
    if last is not None and last < 1:
        raise BadInput(f"--last {last}: expected 1 or more")
    return Newest(count=1 if latest else last)


def pattern(text: str | None, option: str) -> re.Pattern[str]:
    """A regular expression given with an option; without one, what fits everything.

    Raises:
        BadInput: It is not a regular expression.
    """
    try:
        return re.compile(text or "")
    except re.error as error:
        raise BadInput(f"{option} {text!r}: not a regular expression: {error}") from error
