"""Plots of a run, as SVG: the comparison for the front page, and how it grows with the number of pods."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures import unit, words
from bench.peers import CONTAINERD, CRIO
from bench.scenarios import FLOOR
from bench.statistics import Samples

COLOURS = {CONTAINERD: "#8a8f98", CRIO: "#2f6fde", FLOOR: "#d9b44a"}
BARS = (
    *("pod.up", "pod.down", "many.up", "many.down", "call.ExecSync", "ListContainers.500"),
    *("memory.idle", "memory.pod", "cpu.polled", "start.500", "pull.large", "pull.layered"),
)
LINES = (
    ("grown.up", "pod + container up, ms"),
    ("grown.down", "pod + container down, ms"),
    ("grown.list", "ListContainers, ms"),
    ("memory", "memory of the runtime, MB PSS"),
)
COLUMNS = 4


def draw(samples: Samples, out: Path) -> list[Path]:
    """Write the plots for which there are figures; returns where they are."""
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "criobench", "font.size": 9})
    drawn = []
    bars = [name for name in BARS if CRIO in samples.of(name)]
    if bars:
        drawn.append(_save(_comparison(samples, bars), out / "comparison.svg"))
    if _levels(samples, "grown.up"):
        drawn.append(_save(_growth(samples), out / "growth.svg"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path


def _comparison(samples: Samples, names: list[str]) -> Figure:
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 1.7 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for place in grid.flat:
        place.set_axis_off()
    for place, name in zip(grid.flat, names, strict=False):
        _bars(place, samples, name)
    figure.suptitle("Medians of one run; less is better", fontsize=10)
    return figure


def _bars(place: Axes, samples: Samples, name: str) -> None:
    found = samples.of(name)
    subjects = [subject for subject in (FLOOR, CRIO, CONTAINERD) if subject in found]
    values = [found[subject].p50 for subject in subjects]
    place.set_axis_on()
    bars = place.barh(subjects, values, color=[COLOURS[subject] for subject in subjects], height=0.7)
    place.bar_label(bars, labels=[f"{value:.3g}" for value in values], padding=3)
    place.set_title(f"{words(name)}, {unit(name)}", fontsize=9, loc="left")
    place.set_xlim(0, max(values) * 1.25)
    place.set_xticks([])
    for side in ("top", "right", "bottom"):
        place.spines[side].set_visible(False)


def _levels(samples: Samples, prefix: str) -> list[int]:
    names = (name.rpartition(".") for name in samples.values)
    return sorted(int(level) for what, _, level in names if what == prefix and level.isdecimal())


def _growth(samples: Samples) -> Figure:
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for place, (prefix, title) in zip(figure.subplots(2, 2).flat, LINES, strict=True):
        levels = _levels(samples, prefix)
        for subject, colour in COLOURS.items():
            points = [(level, samples.median(f"{prefix}.{level}", subject)) for level in levels]
            known = [(level, value) for level, value in points if value is not None]
            if known:
                place.plot(*zip(*known, strict=True), marker="o", color=colour, label=subject)
        place.set_title(title, fontsize=9, loc="left")
        place.set_xlabel("pods running")
        place.set_ylim(bottom=0)
        place.grid(alpha=0.3)
        place.legend(frameon=False)
    return figure
