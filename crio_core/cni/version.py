"""Versions of the CNI specification and what each brought."""

from crio_core.cni.document import FieldError

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
IMPLIED = "0.1.0"
"""What a configuration without `cniVersion` means (CNI SPEC 0.2.0)."""
_KNOWN = ", ".join(SUPPORTED)

Version = tuple[int, int, int]

INTERFACES_SINCE: Version = (0, 3, 0)
"""Results list interfaces and any number of addresses."""
CHECK_SINCE: Version = (0, 4, 0)
"""CHECK exists, and DEL gets the result of ADD."""
NO_IP_VERSION_SINCE: Version = (1, 0, 0)
"""Addresses in results no longer say `"version": "4"`."""
STATUS_SINCE: Version = (1, 1, 0)


def number(text: str) -> Version:
    """A version of ours as numbers that compare."""
    major, minor, patch = text.split(".")
    return int(major), int(minor), int(patch)


def supported(text: str, field: str = "cniVersion") -> str:
    """A version that can be spoken; empty means the oldest.

    Raises:
        FieldError: It is not one of ours.
    """
    if not text:
        return IMPLIED
    if text not in SUPPORTED:
        raise FieldError(field, text, f"one of {_KNOWN}")
    return text


def chosen(version: str, versions: tuple[str, ...]) -> str:
    """The highest version that a configuration offers and we speak (`cniVersions`, CNI SPEC 1.1.0, section 1).

    Raises:
        FieldError: It offers none that we speak.
    """
    offered = [item for item in versions if item in SUPPORTED]
    if version in SUPPORTED or not offered:
        offered.append(supported(version))
    return max(offered, key=number)
