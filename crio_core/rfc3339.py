"""Times as RFC 3339 writes them, exact to the nanosecond, which `datetime` alone is not."""

import re
from datetime import UTC, datetime

_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)?")


def rfc3339(time_ns: int) -> str:
    """A wall clock time as RFC 3339 in UTC, with as many digits of the fraction as it has."""
    seconds, fraction_ns = divmod(time_ns, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{fraction_ns:09d}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"


def parse_rfc3339_ns(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time, with or without a zone (then UTC).

    Raises:
        ValueError: The text is not such a time.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    whole, fraction, zone = match.groups()
    moment = datetime.fromisoformat(whole.upper() + ("+00:00" if zone in (None, "Z", "z") else zone))
    return int(moment.timestamp()) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
