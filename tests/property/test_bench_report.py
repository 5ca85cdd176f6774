"""The benchmark's tables, budget and plots from made-up samples: no run is lost at its last line."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import report
from bench.figures import BUDGET, Limit, unit, words
from bench.peers import CONTAINERD, CRIO
from bench.scenarios import FLOOR
from bench.statistics import Samples


@pytest.fixture
def samples() -> Samples:
    """Something of every group."""
    made = Samples()
    for figure, ours, theirs in (
        ("pod.up", 40.0, 100.0),
        ("call.ExecSync", 10.0, 10.0),
        ("ListContainers.500", 2.0, 1.0),
        ("grown.up.1", 40.0, 80.0),
        ("grown.up.50", 41.0, 90.0),
        ("grown.down.1", 40.0, 80.0),
        ("grown.list.1", 1.0, 1.0),
        ("memory.idle", 40.0, 50.0),
        ("memory.1", 40.0, 50.0),
        ("memory.50", 70.0, 190.0),
        ("cpu.polled", 0.5, 4.0),
        ("pull.large.memory", 100.0, 70.0),
    ):
        made.add(figure, CRIO, ours, ours + 1)
        made.add(figure, CONTAINERD, theirs)
    made.add("pod.up", FLOOR, 35.0)
    made.add("floor.runc create", FLOOR, 20.0)
    made.add("core.calls.100", "core", 2000.0)
    return made


def test_report_shows_and_keeps_every_figure(samples: Samples, tmp_path: Path) -> None:
    """Ten minutes of measuring end in a table, a file for programs and two plots."""
    screen = io.StringIO()
    report.write(samples, tmp_path, {"began": "now"}, Console(file=screen, width=200))
    text = screen.getvalue()
    for figure in samples.values:
        assert words(figure) in text, figure
    assert "over" in text and "met" in text
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["figures"].keys() == samples.values.keys()
    assert document["figures"]["pod.up"]["subjects"][CRIO]["samples"] == [40.0, 41.0]
    page = (tmp_path / "results.md").read_text()
    for figure in samples.values:
        assert f"| {words(figure)}, {unit(figure)} |" in page, figure
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "comparison.svg", "growth.svg"}


def test_same_samples_give_the_same_plots(samples: Samples, tmp_path: Path) -> None:
    """A plot in the repository changes when figures do, and not with each run of the program."""
    for name in ("a", "b"):
        report.write(samples, tmp_path / name, {}, Console(file=io.StringIO()))
    for plot in ("comparison.svg", "growth.svg"):
        assert (tmp_path / "a" / plot).read_bytes() == (tmp_path / "b" / plot).read_bytes()


def test_limit_compares_medians_of_one_run(samples: Samples) -> None:
    """A budget is a ratio within a run, or an amount in the figure's own unit."""
    assert Limit(figure="pod.up", at_most=0.5, of=CONTAINERD).measured(samples) == pytest.approx(0.405)
    assert Limit(figure="memory.idle", at_most=48).measured(samples) == pytest.approx(40.5)
    assert Limit(figure="pod.down", at_most=0.5, of=CONTAINERD).measured(samples) is None


def test_every_figure_of_the_budget_has_words_and_a_unit() -> None:
    """The table names what it judges."""
    for limit in BUDGET:
        assert words(limit.figure) and unit(limit.figure) in ("ms", "MB")
