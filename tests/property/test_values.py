"""The classes of `crio_core.values` beside the same classes of the standard library."""

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core import values

WORDS = st.text(max_size=3)
FIELDS = st.fixed_dictionaries(
    {"name": WORDS}, optional={"size_bytes": st.integers(0, 3), "labels": st.dictionaries(WORDS, WORDS, max_size=2)}
)


def _pair(**arguments: bool) -> tuple[Any, Any]:
    """The same class, made by the standard library and by us; both are new and have never been used."""

    def declare() -> type:
        class Image:
            """An image."""

            KIND: ClassVar[str] = "image"

            name: str
            size_bytes: int = 0
            labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
            secret: str = dataclasses.field(default="s", repr=False)

        return Image

    return dataclasses.dataclass(**arguments)(declare()), values.dataclass(**arguments)(declare())


KINDS = pytest.mark.parametrize(
    "arguments",
    [
        {"frozen": True, "slots": True, "kw_only": True},
        {"frozen": True, "kw_only": True},
        {"frozen": True, "slots": True},
        {"slots": True},
    ],
    ids=lambda given: "-".join(given),
)


@KINDS
@given(one=FIELDS, other=FIELDS)
def test_object_made_is_told_apart_like_a_dataclass(
    arguments: dict[str, bool], one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Records are compared and events are printed: neither may tell that the methods came later."""
    theirs, ours = _pair(**arguments)
    assert (ours(**one) == ours(**other)) == (theirs(**one) == theirs(**other))
    assert ours(**one) == ours(**one)
    assert ours(**one) != theirs(**one)
    assert repr(ours(**one)) == repr(theirs(**one))
    assert dataclasses.asdict(ours(**one)) == dataclasses.asdict(theirs(**one))
    assert dataclasses.replace(ours(**one), **other) == ours(**(one | other))
    assert orjson.dumps(ours(**one)) == orjson.dumps(theirs(**one))


@KINDS
def test_class_looked_at_has_the_signature_of_a_dataclass(arguments: dict[str, bool]) -> None:
    """What reads signatures, as test data does, sees the same parameters before any object is made."""
    theirs, ours = _pair(**arguments)
    shapes = [
        [(one.name, one.kind, one.annotation) for one in inspect.signature(cls).parameters.values()]
        for cls in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    assert typing.get_type_hints(ours.__init__) == typing.get_type_hints(theirs.__init__)
    assert ours.__match_args__ == theirs.__match_args__


@KINDS
def test_object_made_with_wrong_arguments_is_refused(arguments: dict[str, bool]) -> None:
    """A forgotten field is found where the object is made, the first time too."""
    _, ours = _pair(**arguments)
    with pytest.raises(TypeError, match=r"Image\.__init__\(\) missing 1 required .*argument: 'name'"):
        ours()
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        ours(name="a", colour="red")


def test_frozen_object_assigned_to_stays_as_it_was() -> None:
    """The core shares its values freely because nobody can change them."""
    _, ours = _pair(frozen=True, slots=True, kw_only=True)
    image = ours(name="a")
    with pytest.raises(dataclasses.FrozenInstanceError, match="'name'"):
        image.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError, match="'name'"):
        del image.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.other = "b"
    assert image == ours(name="a")


def test_frozen_object_hashed_is_found_by_an_equal_one() -> None:
    """Values are keys of tables."""
    _, ours = _pair(frozen=True, slots=True, kw_only=True)
    assert {ours(name="a", labels=()): 1}[ours(name="a", labels=())] == 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(ours(name="a", labels={}))


def test_changing_object_hashed_is_refused() -> None:
    """An object that changes would be lost in a table."""
    _, ours = _pair(slots=True)
    changing = ours(name="a")
    changing.name = "b"
    assert changing == ours(name="b")
    with pytest.raises(TypeError, match="unhashable"):
        hash(changing)


def test_default_made_by_a_factory_is_of_one_object() -> None:
    """Two objects never share a list."""
    _, ours = _pair(slots=True)
    assert ours(name="a").labels is not ours(name="a").labels


def test_class_with_methods_of_its_own_keeps_them() -> None:
    """A class that prints itself without its secrets goes on doing so."""

    @values.dataclass(frozen=True, slots=True, kw_only=True)
    class Own:
        name: str

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    one = Own(name="a")
    assert (repr(one), hash(one)) == ("own", 7)
    assert one == Own(name="b")


def test_class_derived_from_another_takes_its_fields_too() -> None:
    """Each class of a family compiles its own methods, whichever is used first."""

    @values.dataclass(frozen=True, slots=True, kw_only=True)
    class Base:
        name: str

    @values.dataclass(frozen=True, slots=True, kw_only=True)
    class Derived(Base):
        size_bytes: int = 0

    derived = Derived(name="a", size_bytes=1)
    assert (derived.name, derived.size_bytes) == ("a", 1)
    assert repr(Base(name="a")).endswith("Base(name='a')")
    assert Base(name="a") != derived


def test_object_made_with_an_ending_of_its_own_runs_it() -> None:
    """The configuration fills in what follows other options when it is made."""

    @values.dataclass(frozen=True, slots=True, kw_only=True)
    class Paths:
        root: str
        state: str = ""

        def __post_init__(self) -> None:
            object.__setattr__(self, "state", f"{self.root}/state")

    assert Paths(root="/a").state == "/a/state"


@pytest.mark.parametrize(
    "other", [dataclasses.field(init=False), dataclasses.field(compare=False), dataclasses.field(hash=False)]
)
def test_class_with_a_field_of_another_kind_is_refused(other: Any) -> None:
    """What the methods here do not know fails when the class is made, instead of behaving otherwise."""
    with pytest.raises(TypeError, match=r"Odd\.count"):

        @values.dataclass(slots=True)
        class Odd:
            count: int = other


@KINDS
@given(one=FIELDS, changes=FIELDS)
def test_object_changed_or_made_by_a_function_equals_the_dataclass(
    arguments: dict[str, bool], one: dict[str, Any], changes: dict[str, Any]
) -> None:
    """The short ways of making what is made in every step make the same."""
    theirs, ours = _pair(**arguments)
    expected = dataclasses.replace(theirs(**one), **changes)
    for made in (values.replace(ours(**one), **changes), values.maker(ours)(**{**one, **changes})):
        assert type(made) is ours
        assert dataclasses.asdict(made) == dataclasses.asdict(expected)
    with pytest.raises(TypeError, match="colour"):
        values.maker(ours)(name="a", colour="red")


def test_default_of_a_maker_is_made_anew() -> None:
    """Two objects never share a list, whichever way they are made."""
    _, ours = _pair(frozen=True, slots=True, kw_only=True)
    make = values.maker(ours)
    assert make(name="a").labels == {} and make(name="a").labels is not make(name="a").labels


class _Colour(values.Word):
    RED = "red"
    BLUE = "blue"


def test_word_is_an_enumeration_that_hashes_itself() -> None:
    """Values, names and look-ups are those of any enumeration."""
    assert (_Colour("red"), _Colour.RED.value, _Colour["BLUE"].name) == (_Colour.RED, "red", "BLUE")
    assert {_Colour.RED: 1}[_Colour("red")] == 1 and hash(_Colour.RED) == object.__hash__(_Colour.RED)
    assert orjson.dumps({"colour": _Colour.BLUE}) == b'{"colour":"blue"}'
