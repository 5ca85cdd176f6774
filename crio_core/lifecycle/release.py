"""What the lifecycles of sandboxes, containers and layers share: giving back what a record holds, and owing what will
not go.
"""

from crio_core.records import Failure, Part
from crio_core.values import dataclass

RETRY_FIRST_NS = 1_000_000_000
RETRY_LIMIT_NS = 300_000_000_000
DOUBLINGS_MAX = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReleased:
    """A part that the record held does not exist any more."""

    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReleased:
    """Nothing is left of what was to be given back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFailed:
    """The part taken last could not be given back."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDue:
    """It is time to try an owed release again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The server came back and found this record in its journal."""


def retry_timer(record_id: str) -> str:
    """The timer of a record's owed work."""
    return f"{record_id}/retry"


def retry_after_ns(retries: int) -> int:
    """1 s after the first failure, twice as long after each other one, at most 5 minutes."""
    return min(RETRY_FIRST_NS << min(max(retries - 1, 0), DOUBLINGS_MAX), RETRY_LIMIT_NS)
