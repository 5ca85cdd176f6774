"""The methods of dataclasses-json for records, from the library itself, loaded by the first call of one.

The server writes and reads the same by faster ways (`records.encode`, `records.decode`) and never calls them: the
library, with what it brings along, would be a tenth of its memory. They are for other programs, and for the tests that
hold the two forms together.
"""

from typing import Any, Self


class JsonMethods:
    """`DataClassJsonMixin` for a dataclass that is seldom asked for it."""

    def to_dict(self, encode_json: bool = False) -> dict[str, Any]:
        """As dataclasses-json has it; so are the others."""
        values: dict[str, Any] = _with_library(type(self)).to_dict(self, encode_json)
        return values

    def to_json(self, **options: Any) -> str:
        text: str = _with_library(type(self)).to_json(self, **options)
        return text

    @classmethod
    def from_dict(cls, values: Any, *, infer_missing: bool = False) -> Self:
        made: Self = _with_library(cls).from_dict(values, infer_missing=infer_missing)
        return made

    @classmethod
    def from_json(cls, text: str | bytes, **options: Any) -> Self:
        made: Self = _with_library(cls).from_json(text, **options)
        return made


def _with_library(cls: Any) -> Any:
    from dataclasses_json import dataclass_json

    return dataclass_json(cls)  # which puts its own methods in the place of those above
