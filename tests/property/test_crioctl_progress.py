"""What `crioctl image pull` says of layers: right numbers from good servers, nothing from others."""

import json

from hypothesis import given
from hypothesis import strategies as st

from crio_server.crioctl.progress import BAR_CHARS, of_layers


def test_layers_of_a_pull_are_one_bar_with_rate_and_steps() -> None:
    """A person sees how much came, how fast, and what is still to be done."""
    layers = [
        {"state": "applied", "totalBytes": 50_000_000, "receivedBytes": 50_000_000},
        {"state": "fetching", "totalBytes": 50_000_000, "receivedBytes": 25_000_000, "bytesPerS": 5_000_000},
        {"state": "absent", "totalBytes": 0, "receivedBytes": 0},
    ]
    found = of_layers(json.dumps([{"layers": layers}]))
    assert found.startswith(f"[{'#' * (BAR_CHARS * 3 // 4)}{'.' * (BAR_CHARS // 4)}] 75MB of 100MB  5MB/s")
    assert found.endswith("layers: 1 done, 1 downloading, 1 waiting")


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one)).map(json.dumps))
def test_any_other_words_of_a_server_show_nothing(text: str) -> None:
    """The words come from a server that may be of another make."""
    assert of_layers(text) == ""
    assert of_layers('[{"layers": []}]') == ""
