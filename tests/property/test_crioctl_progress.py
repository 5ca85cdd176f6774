"""What `crioctl image pull` says of layers: right numbers from good servers, nothing from others."""

import asyncio
import json
import re
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_server.crioctl import progress
from crio_server.crioctl.progress import Layer, layers_of, shown

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class Terminal(StringIO):
    """Takes what a terminal would be sent."""

    def isatty(self) -> bool:
        return True


def told(*layers: dict[str, object]) -> str:
    return json.dumps([{"layers": layers}])


HALF = told(
    {"digest": A, "step": "done", "totalBytes": 50_000_000, "receivedBytes": 50_000_000},
    {"digest": B, "step": "fetching", "totalBytes": 50_000_000, "receivedBytes": 25_000_000, "bytesPerS": 5_000_000},
)


def pulled(stream: StringIO, *news: tuple[Layer, ...]) -> str:
    """What is shown of a pull that lasts until all news were told; without escapes, in lines."""

    async def run() -> None:
        left, ended = list(news), asyncio.Event()

        async def detail() -> tuple[Layer, ...]:
            if not left:
                ended.set()
                return ()
            return left.pop(0)

        await shown(ended.wait(), "Pulling web:1", detail, stream)

    asyncio.run(run())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")


def test_terminal_shows_a_bar_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person sees of each layer how much came, how fast, and what is being done with it."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    lines = pulled(Terminal(), layers_of(HALF)).splitlines()
    assert any(re.search(r"aaaaaaaaaaaa .*━{32} done, 50MB", line) for line in lines), lines
    assert any(re.search(r"bbbbbbbbbbbb .*━{3}.* fetching, 25MB of 50MB, 5MB/s", line) for line in lines), lines
    assert any("Pulling web:1" in line and "75MB of 100MB" in line for line in lines), lines


def test_low_terminal_shows_the_layers_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """More layers than lines: what is under way is what one looks for."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "6")
    monkeypatch.setenv("TERM", "xterm")
    waiting = [Layer(name=f"layer{n}", step="waiting", received_bytes=0, total_bytes=10) for n in range(50)]
    busy = Layer(name="busy", step="fetching", received_bytes=5, total_bytes=10)
    text = pulled(Terminal(), (*waiting, busy))
    assert "busy" in text
    assert len(set(re.findall(r"layer\d+", text))) < 5


def test_pipe_gets_a_plain_line_for_each_step_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of a job says how the pull went, without escapes and without a line for every refresh."""
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 1000.0)
    applying = told({"digest": B, "step": "applying", "totalBytes": 50_000_000, "receivedBytes": 50_000_000})
    stream = StringIO()
    pulled(stream, layers_of(HALF), layers_of(HALF), layers_of(applying))
    assert stream.getvalue().splitlines() == [
        "Pulling web:1",
        "aaaaaaaaaaaa: done, 50MB",
        "bbbbbbbbbbbb: fetching, 25MB of 50MB, 5MB/s",
        "bbbbbbbbbbbb: applying, 50MB",
    ]


def test_pipe_hears_of_a_long_download_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing for minutes looks like a hang."""
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    stream = StringIO()
    pulled(stream, layers_of(HALF), layers_of(HALF))
    assert stream.getvalue().count("bbbbbbbbbbbb: fetching, 25MB of 50MB, 5MB/s") == 2


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one)).map(json.dumps))
def test_any_other_words_of_a_server_show_nothing(text: str) -> None:
    """The words come from a server that may be of another make."""
    assert layers_of(text) == ()
    assert layers_of('[{"layers": []}]') == ()


@given(st.text(min_size=1))
def test_names_of_a_server_cannot_steer_a_terminal(name: str) -> None:
    """What a server calls its layers is data, also for a pipe."""
    stream = StringIO()
    one = Layer(name=name, step="fetching", received_bytes=1, total_bytes=2)
    progress._Lines("x", stream).show((one,))
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))
