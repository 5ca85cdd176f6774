"""The kinds of value that a configuration key can have.

A kind reads what TOML gave (`read`), reads what a flag or an environment variable gave (`read_text`), and writes a
value back in a form that TOML takes (`write`). What it refuses, it refuses with `Refused`, which carries a description
of what was expected; the loader knows the file and the key and makes a sentence of it.
"""

import re
from abc import ABC, abstractmethod
from ipaddress import ip_address
from pathlib import PurePosixPath

from crio_core.values import dataclass

TEXT_CHARS_MAX = 65536
"""Longest string accepted as one value; seccomp and policy live in files of their own, so nothing real comes near."""
LIST_ITEMS_MAX = 4096
INT64_MAX = 2**63 - 1
_UNWRITABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
"""Control characters, and the halves of characters that stand for bytes that are not UTF-8."""
TRUE_WORDS = frozenset({"1", "t", "true"})
FALSE_WORDS = frozenset({"0", "f", "false"})


class Refused(ValueError):
    """A value that a kind does not take.

    Args:
        expected: What would have been taken, as a noun phrase.
        value: The part of the value at fault, when it is one item of a list.
    """

    def __init__(self, expected: str, value: object = None) -> None:
        super().__init__(expected)
        self.expected = expected
        self.value = value


class Kind(ABC):
    """One kind of value."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """What this kind takes, as a noun phrase for messages and documentation."""

    @abstractmethod
    def read(self, raw: object) -> object:
        """The value for what TOML gave; raises `Refused`."""

    def read_text(self, text: str) -> object:
        """The value for the text of a flag or an environment variable; raises `Refused`."""
        return self.read(text)

    def read_texts(self, texts: tuple[str, ...]) -> object:
        """The value for a flag given several times: the last one counts; raises `Refused`."""
        return self.read_text(texts[-1])

    def write(self, value: object) -> object:
        """The value in TOML's types."""
        return value


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A string without control characters, optionally of one form."""

    pattern: str = ""
    form: str = "text"
    may_be_empty: bool = True

    @property
    def expected(self) -> str:
        return f"{self.form} or nothing" if self.pattern and self.may_be_empty else self.form

    def read(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise Refused(f"a string ({self.expected})")
        if not raw:
            if self.may_be_empty:
                return raw
            raise Refused(self.expected)
        if len(raw) > TEXT_CHARS_MAX or _UNWRITABLE.search(raw):
            raise Refused(f"{self.expected}, of at most {TEXT_CHARS_MAX} characters and without control characters")
        if self.pattern and not re.fullmatch(self.pattern, raw):
            raise Refused(self.expected)
        return raw


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words; an alias is read as the word that it stands for."""

    words: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...] = ()

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(word or '""' for word in self.words)

    def read(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise Refused(self.expected)
        word = dict(self.aliases).get(raw, raw)
        if word not in self.words:
            raise Refused(self.expected)
        return word


@dataclass(frozen=True, slots=True)
class FilePath(Kind):
    """An absolute path, kept in its shortest spelling."""

    may_be_empty: bool = False

    @property
    def expected(self) -> str:
        return "an absolute path or nothing" if self.may_be_empty else "an absolute path"

    def read(self, raw: object) -> str:
        text = Text(form=self.expected).read(raw)
        if not text and self.may_be_empty:
            return text
        path = PurePosixPath(text)
        if not path.is_absolute() or ".." in path.parts:
            raise Refused(f"{self.expected}, without ..")
        return "/" + str(path).lstrip("/")


@dataclass(frozen=True, slots=True)
class IpAddress(Kind):
    """An IP address, of either version, or nothing."""

    @property
    def expected(self) -> str:
        return "an IP address or nothing"

    def read(self, raw: object) -> str:
        text = Text(form=self.expected).read(raw)
        try:
            return text and str(ip_address(text))
        except ValueError:
            raise Refused(self.expected) from None


@dataclass(frozen=True, slots=True)
class Switch(Kind):
    """true or false."""

    @property
    def expected(self) -> str:
        return "true or false"

    def read(self, raw: object) -> bool:
        if not isinstance(raw, bool):
            raise Refused(self.expected)
        return raw

    def read_text(self, text: str) -> bool:
        word = text.lower()
        if word not in TRUE_WORDS | FALSE_WORDS:
            raise Refused(self.expected)
        return word in TRUE_WORDS


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """A whole number in a range, or one of a few others that mean something special."""

    least: int
    most: int = INT64_MAX
    also: tuple[int, ...] = ()

    @property
    def expected(self) -> str:
        limits = f"a whole number of at least {self.least}"
        if self.most != INT64_MAX:
            limits = f"a whole number from {self.least} to {self.most}"
        return limits + "".join(f", or {number}" for number in self.also)

    def read(self, raw: object) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise Refused(self.expected)
        if not self.least <= raw <= self.most and raw not in self.also:
            raise Refused(self.expected)
        return raw

    def read_text(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            raise Refused(self.expected)
        return self.read(int(text))


@dataclass(frozen=True, slots=True)
class ListOf(Kind):
    """A list of strings, each of one kind, in the order given; repeated items are kept once.

    A flag may be given several times, and each of its values (and an environment variable's) is split at commas.
    """

    item: Text | FilePath | Choice

    @property
    def expected(self) -> str:
        return f"a list of strings, each {self.item.expected}"

    def read(self, raw: object) -> tuple[str, ...]:
        if not isinstance(raw, list | tuple):
            raise Refused(self.expected)
        if len(raw) > LIST_ITEMS_MAX:
            raise Refused(f"at most {LIST_ITEMS_MAX} items")
        items: dict[str, None] = {}
        for entry in raw:
            try:
                items[self.item.read(entry)] = None
            except Refused as refused:
                raise Refused(f"each item to be {refused.expected}", entry) from None
        return tuple(items)

    def read_text(self, text: str) -> tuple[str, ...]:
        return self.read([part.strip() for part in text.split(",") if part.strip()])

    def read_texts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return self.read_text(",".join(texts))

    def write(self, value: object) -> list[str]:
        return [str(entry) for entry in value] if isinstance(value, tuple) else []
