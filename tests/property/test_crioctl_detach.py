"""The keys that detach: found wherever reads are cut, and everything else reaches the container."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_server.crioctl.detach import KEYS_MAX, DetachKeys, parse_keys
from crio_server.crioctl.errors import BadInput

few = st.sampled_from(b"ab")
keys_of_few = st.lists(few, min_size=1, max_size=4).map(bytes)
typed_of_few = st.lists(st.lists(few, max_size=5).map(bytes), max_size=8)


@given(keys_of_few, typed_of_few)
def test_keys_are_found_where_they_first_stand(keys: bytes, reads: list[bytes]) -> None:
    """With two characters, beginnings of the keys overlap in every way."""
    machine, passed, is_found = DetachKeys(keys), b"", False
    for data in reads:
        more, is_found = machine.feed(data)
        passed += more
        if is_found:
            break
    before, found, _ = b"".join(reads).partition(keys)
    assert is_found is bool(found)
    if is_found:
        assert passed == before
    else:
        held = next(size for size in range(len(keys) - 1, -1, -1) if before.endswith(keys[:size]))
        assert passed == before[: len(before) - held]


def test_nothing_detaches_without_keys() -> None:
    """An empty option turns it off."""
    assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("CTRL-A,d", b"\x01d"),
        ("ctrl-@,ctrl-[", b"\0\x1b"),
        ("-", b"-"),
        ("", b""),
    ],
)
def test_keys_are_read_as_docker_writes_them(text: str, keys: bytes) -> None:
    """People know these names."""
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "a,", "é", ",".join("a" * (KEYS_MAX + 1))])
def test_keys_that_are_none_are_refused(text: str) -> None:
    """A container that cannot be left is a bad surprise."""
    with pytest.raises(BadInput, match="--detach-keys"):
        parse_keys(text)
