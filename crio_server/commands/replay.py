"""`crio replay`: runs a recording through the core and compares what comes out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from crio_core.errors import OperationError
from crio_server.commands.session import EXIT_FAILED
from crio_server.commands.version import VERSION

LINE_BYTES_MAX = 512 * 1024 * 1024
"""A line longer than this is no step of a recording: a segment with the largest journal is far below."""


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--at", type=click.IntRange(min=0), metavar="N", help="Stop after event N.")
@click.option(
    "--explain", "wanted", metavar="NAME", help="Then explain this pod, container or image; empty for everything."
)
@click.option("-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True)
def replay_command(file: Path, at: int | None, wanted: str | None, output: str) -> None:
    """Run a recording through the core and check that the same effects come out.

    FILE comes from `crio --record FILE`, or from SIGUSR1 to a server. No effect is carried out. Exit codes: 0 the same
    effects, 1 other effects or no such name, 2 no such file.
    """
    from crio_core.replay import explanations, replay

    try:
        with file.open("rb") as lines:
            result = replay(_lines(lines), until=at)
    except OperationError as error:
        raise _failed(error.message) from error
    found = None if wanted is None else explanations(result.node, wanted)
    if wanted and not found:
        raise _failed(f"event {result.last}: nothing has the name or id {wanted!r}")
    if output == "json":
        report = {
            "events": result.events,
            "last": result.last,
            "differences": [str(one) for one in result.differences],
            **({} if found is None else {"explain": found}),
        }
        click.echo(json.dumps(report, indent=2))
    else:
        _print(result.events, result.last, [str(one) for one in result.differences], found)
    if result.differences and result.version != VERSION:
        click.echo(f"crio: it was recorded by version {result.version}, and this is {VERSION}", err=True)
    if result.differences:
        raise SystemExit(EXIT_FAILED)


def _print(events: int, last: int, differences: list[str], found: object) -> None:
    same = "the same effects" if not differences else f"{len(differences)} of them with other effects"
    click.echo(f"{events} events replayed, the last is number {last}: {same}")
    for line in differences:
        click.echo(line, err=True)
    if isinstance(found, tuple):
        from crio_server.crioctl.explain import lines_of
        from crio_server.crioctl.output import print_lines

        for about in found:
            print_lines(lines_of(about, about.get("nowNs", about["sinceNs"])))


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(LINE_BYTES_MAX):
        yield line


def _failed(message: str) -> SystemExit:
    click.echo(f"crio: {message}", err=True)
    return SystemExit(EXIT_FAILED)
