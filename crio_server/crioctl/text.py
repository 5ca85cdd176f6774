"""Words, sizes and times for people, and the cleaning of what others wrote. Pure functions."""

import re

ID_CHARS = 13  # as many as crictl shows

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_AGES = ((60, 1, "second"), (3600, 60, "minute"), (48 * 3600, 3600, "hour"), (14 * 86400, 86400, "day"))


def clean(text: str, *, keep_newlines: bool = False) -> str:
    """Make control characters visible: names, labels and messages come from pods, and a terminal obeys escapes."""
    return "".join(char if char.isprintable() or (keep_newlines and char == "\n") else _visible(char) for char in text)


def _visible(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def short_id(identifier: str) -> str:
    """The first characters of an id, without the algorithm of a digest."""
    algorithm, colon, digest = identifier.partition(":")
    return (digest if colon and algorithm.isalnum() else identifier)[:ID_CHARS]


def parse_duration_s(text: str) -> float:
    """Seconds of `10`, `2s`, `1m30s` or `500ms`.

    Raises:
        ValueError: The text is none of these.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration: expected seconds, or a form such as 2s, 1m30s or 500ms")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def age(then_ns: int, now_ns: int) -> str:
    """How long ago, in one unit: `5 seconds ago`, `3 weeks ago`; both times are wall clock nanoseconds."""
    elapsed_s = max(0, now_ns - then_ns) // 1_000_000_000
    if elapsed_s == 0:
        return "just now"
    for below_s, unit_s, unit in _AGES:
        if elapsed_s < below_s:
            return _ago(elapsed_s // unit_s, unit)
    days = elapsed_s // 86400
    if days < 60:
        return _ago(days // 7, "week")
    return _ago(days // 30, "month") if days < 730 else _ago(days // 365, "year")


def _ago(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


def size(count_bytes: int) -> str:
    """A size in decimal units with three digits, as image tools print it: `4.5MB`."""
    value = float(count_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError("unreachable: the last unit always returns")
