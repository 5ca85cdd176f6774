"""Content digests, checked where they enter.

A digest names files and URLs, so one that is not exactly an algorithm and its number of lower-case hex digits
never gets past this module (OCI image-spec, descriptor.md, section Digests).
"""

import hashlib
import hmac
import re
from dataclasses import dataclass

from crio_core.errors import Code, OperationError, invalid

HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Digest:
    """An algorithm and its lower-case hex; only `parse_digest` and `digest_of` should make one."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    def __post_init__(self) -> None:
        """Refuse what `parse_digest` would refuse, so that no other way of making one is weaker."""
        if HEX_LENGTHS.get(self.algorithm) != len(self.hex) or not _HEX.fullmatch(self.hex):
            raise invalid("digest", f"{self.algorithm}:{self.hex}"[:200], "sha256:<64 hex> or sha512:<128 hex>")


def parse_digest(text: object, field: str = "digest") -> Digest:
    """Read `algorithm:hex`.

    Raises:
        OperationError: INVALID_ARGUMENT for another algorithm, length or alphabet, or for anything but a string.
    """
    if not isinstance(text, str):
        raise invalid(field, text, "a digest as a string")
    algorithm, _, hex_digits = text.partition(":")
    if HEX_LENGTHS.get(algorithm) != len(hex_digits) or not _HEX.fullmatch(hex_digits):
        raise invalid(field, text[:200], "sha256:<64 hex> or sha512:<128 hex>")
    return Digest(algorithm=algorithm, hex=hex_digits)


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    """The digest of bytes that are all in memory."""
    return Digest(algorithm=algorithm, hex=hashlib.new(algorithm, data).hexdigest())


def verify(data: bytes, expected: Digest, what: str) -> None:
    """Check bytes against the digest that named them.

    Raises:
        OperationError: DATA_LOSS, reason DIGEST_MISMATCH.
    """
    found = digest_of(data, expected.algorithm)
    if not hmac.compare_digest(found.hex, expected.hex):
        raise OperationError(Code.DATA_LOSS, "DIGEST_MISMATCH", f"{what}: expected {expected}, received {found}")
