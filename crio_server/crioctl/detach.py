"""The keys that leave an attached container running: found in what is typed, and kept from the container. Pure."""

from crio_server.crioctl.errors import BadInput

DEFAULT_KEYS = "ctrl-p,ctrl-q"
KEYS_MAX = 16


def parse_keys(text: str) -> bytes:
    """The bytes of keys such as `ctrl-p,ctrl-q` or `a,ctrl-[`; none for an empty text, which turns detaching off.

    Raises:
        BadInput: A key is neither `ctrl-` with a letter or one of `@[\\]^_`, nor one character.
    """
    if not text:
        return b""
    keys = [_key(name, text) for name in text.split(",")]
    if len(keys) > KEYS_MAX:
        raise BadInput(f"--detach-keys {text!r}: expected at most {KEYS_MAX} keys")
    return bytes(keys)


def _key(name: str, text: str) -> int:
    control = name.lower().removeprefix("ctrl-")
    if name.lower().startswith("ctrl-") and len(control) == 1 and ("a" <= control <= "z" or control in "@[\\]^_"):
        return ord(control.upper()) - 0x40
    if len(name) == 1 and name.isascii():
        return ord(name)
    raise BadInput(f"--detach-keys {text!r}: {name!r} is no key: expected a character or one such as ctrl-p")


class DetachKeys:
    """Looks for the keys in what is typed. What may be their beginning is held back until it is known not to be."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._typed = 0  # how many of the keys, from the first on

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is for the container, and whether all keys were typed; what comes after them is for nobody."""
        if not self._keys:
            return data, False
        passed = bytearray()
        for byte in data:
            while self._typed and byte != self._keys[self._typed]:
                shorter = self._shorter()
                passed += self._keys[: self._typed - shorter]
                self._typed = shorter
            if byte != self._keys[self._typed]:
                passed.append(byte)
                continue
            self._typed += 1
            if self._typed == len(self._keys):
                return bytes(passed), True
        return bytes(passed), False

    def _shorter(self) -> int:
        """The length of the longest shorter beginning of the keys with which what was typed ends."""
        typed = self._keys[: self._typed]
        return next(size for size in range(self._typed - 1, -1, -1) if typed.endswith(self._keys[:size]))
