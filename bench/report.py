"""The results: tables on the screen, a JSON file, plots."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import chart
from bench.figures import BUDGET, unit, words
from bench.peers import CONTAINERD, CRIO
from bench.scenarios import FLOOR
from bench.statistics import Samples, Summary

GROUPS = (
    ("A pod with one container", ("pod.", "many.")),
    ("Calls", ("call.", "output.")),
    (
        "With many containers recorded",
        ("ListContainers.", "ListPodSandbox.", "ContainerStatus.", "PodSandboxStatus.", "start."),
    ),
    ("Beside many pods", ("grown.",)),
    ("Memory and processor", ("memory.", "cpu.")),
    ("Pulls", ("pull.",)),
    ("The floor, command by command", ("floor.",)),
    ("The core on a simulated node", ("core.",)),
)


def write(samples: Samples, out: Path, about: dict[str, Any], console: Console | None = None) -> None:
    """Show and keep what a run has measured.

    Args:
        samples: What it measured.
        out: The directory for `results.json` and the plots.
        about: When, how and on what; see `machine`.
        console: Where the tables go; the standard output unless given.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(document(samples, about), indent=1) + "\n")
    (out / "results.md").write_text(markdown(samples))
    screen = console or Console()
    for title, prefixes in GROUPS:
        figures = [name for name in samples.values if name.startswith(prefixes)]
        if figures:
            screen.print(_table(title, figures, samples))
    screen.print(_budget(samples))
    for path in chart.draw(samples, out):
        screen.print(f"plot: {path}")
    screen.print(f"all samples: {out / 'results.json'}")


def document(samples: Samples, about: dict[str, Any]) -> dict[str, Any]:
    """Everything, for other programs: summaries, samples, budget."""
    return {
        "about": about,
        "figures": {
            name: {
                "words": words(name),
                "unit": unit(name),
                "subjects": {
                    subject: {**asdict(one), "samples": [round(value, 4) for value in samples.values[name][subject]]}
                    for subject, one in samples.of(name).items()
                },
            }
            for name in samples.values
        },
        "budget": [
            {
                "figure": limit.figure,
                "against": limit.against,
                "at_most": limit.at_most,
                "measured": limit.measured(samples),
            }
            for limit in BUDGET
        ],
    }


def markdown(samples: Samples) -> str:
    """The same tables as Markdown, for pages."""
    lines: list[str] = []
    for title, prefixes in GROUPS:
        figures = [name for name in samples.values if name.startswith(prefixes)]
        if not figures:
            continue
        lines += [f"### {title}", "", f"| figure | {CONTAINERD} | {CRIO} | {FLOOR} | of {CONTAINERD} | of {FLOOR} |"]
        lines.append("|---|--:|--:|--:|--:|--:|")
        for figure in figures:
            found = samples.of(figure)
            shown = [found.get(CONTAINERD), found.get(CRIO) or found.get("core"), found.get(FLOOR)]
            cells = [f"{_number(one.p50)} / {_number(one.p95)}" if one else "" for one in shown]
            ratios = (_ratio(found, CONTAINERD), _ratio(found, FLOOR))
            lines.append(f"| {words(figure)}, {unit(figure)} | {' | '.join((*cells, *ratios))} |")
        lines.append("")
    lines += ["### Budget", "", "| figure | against | at most | measured | |", "|---|---|--:|--:|---|"]
    for limit in BUDGET:
        measured = limit.measured(samples)
        if measured is not None:
            verdict = "met" if measured <= limit.at_most else "over"
            lines.append(
                f"| {words(limit.figure)} | {limit.against} | {limit.at_most:g} | {measured:.2f} | {verdict} |"
            )
    return "\n".join(lines) + "\n"


def machine(began: datetime.datetime, quick: bool) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "began": began.isoformat(timespec="seconds"),
        "quick": quick,
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "containerd": _first_line("containerd", "--version"),
        "runc": _first_line("runc", "--version"),
    }


def _first_line(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout.partition("\n")[0]


def _table(title: str, figures: Iterable[str], samples: Samples) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("figure")
    table.add_column("unit")
    for name in (CONTAINERD, CRIO, FLOOR):
        table.add_column(f"{name}\np50", justify="right")
        table.add_column("\np95", justify="right", style="dim")
    table.add_column("crio /\ncontainerd", justify="right")
    table.add_column("crio /\nfloor", justify="right")
    for figure in figures:
        found = samples.of(figure)
        cells: list[str] = []
        for name in (CONTAINERD, CRIO, FLOOR):
            one = found.get(name) or (found.get("core") if name == CRIO else None)
            cells += (_number(one.p50), _number(one.p95)) if one else ("", "")
        table.add_row(words(figure), unit(figure), *cells, _ratio(found, CONTAINERD), _ratio(found, FLOOR))
    return table


def _ratio(found: dict[str, Summary] | Any, other: str) -> str:
    ours, theirs = found.get(CRIO), found.get(other)
    return f"{ours.p50 / theirs.p50:.2f}" if ours and theirs and theirs.p50 else ""


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _budget(samples: Samples) -> Table:
    table = Table(title="Budget", title_justify="left", title_style="bold")
    for name in ("figure", "against", "at most", "measured", ""):
        table.add_column(name, justify="right" if name in ("at most", "measured") else "left")
    for limit in BUDGET:
        measured = limit.measured(samples)
        if measured is None:
            continue
        verdict = "[green]met" if measured <= limit.at_most else "[red]over"
        table.add_row(words(limit.figure), limit.against, f"{limit.at_most:g}", f"{measured:.2f}", verdict)
    return table
