"""Sizes of a terminal, as a client sends them: one JSON object after another, `{"Width":80,"Height":24}`. Pure.

Source: kubernetes, client-go/tools/remotecommand (TerminalSize).
"""

import orjson

from crio_core.streaming.protocol import ProtocolError
from crio_core.streaming.remotecommand import Resized

SIDE_MAX = 0xFFFF
_OBJECT_BYTES_MAX = 1024


class SizeReader:
    """Takes pieces of a stream of sizes, and gives what is complete."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[Resized]:
        """The sizes that end in this piece; one that is 0, as of a terminal that does not know, is passed over.

        Raises:
            ProtocolError: Something else than a size.
        """
        *whole, self._held = (self._held + data).split(b"}")  # the objects are flat: each ends with its first brace
        if len(self._held) > _OBJECT_BYTES_MAX:
            raise ProtocolError(f"a terminal's size takes more than {_OBJECT_BYTES_MAX} bytes")
        sizes = (_parse(text + b"}") for text in whole)
        return [size for size in sizes if size is not None]


def encode_size(width: int, height: int) -> bytes:
    """One size, as `SizeReader` takes it."""
    return b'{"Width":%d,"Height":%d}\n' % (width, height)


def _parse(text: bytes) -> Resized | None:
    try:
        size = orjson.loads(text)
    except orjson.JSONDecodeError:
        size = None
    if not isinstance(size, dict):
        raise ProtocolError(f"{text[:200]!r} is not the size of a terminal: expected an object with Width and Height")
    sides = {name.lower(): value for name, value in size.items()}
    width, height = (_side(sides.get(name, 0), name) for name in ("width", "height"))
    return Resized(width=width, height=height) if width and height else None


def _side(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= SIDE_MAX:
        raise ProtocolError(f"the {name} of a terminal is {str(value)[:40]!r}: expected 0 to {SIDE_MAX}")
    return value
