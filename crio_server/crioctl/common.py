"""What many commands share: options, ids in both spellings, and doing one thing to several ids."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from crio_server.crioctl.client import Client, run
from crio_server.crioctl.endpoint import Settings
from crio_server.crioctl.errors import BadInput, Problem, Unreachable
from crio_server.crioctl.output import FORMATS, print_data, print_lines

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")


def start(work: Callable[[Client], Awaitable[Result]]) -> Result:
    """Run the body of a command with a connected client."""
    settings = click.get_current_context().find_object(Settings)
    assert settings is not None, "the command line's root sets this before any command runs"
    return run(settings, work)


def ids_arguments(kind: str) -> Callable[[Command], Command]:
    """Ids as arguments, as crictl has them, or with --id, as CRI-O's crioctl has them; any prefix that fits one."""

    def decorate(command: Command) -> Command:
        named = click.option("--id", "named_ids", multiple=True, metavar="ID", help=f"Id of the {kind}, or a prefix.")
        return named(click.argument("ids", nargs=-1, metavar="[ID]...")(command))

    return decorate


def gathered(ids: Sequence[str], named_ids: Sequence[str], *, needed: bool = True) -> tuple[str, ...]:
    """All ids that were given, in either spelling.

    Raises:
        click.UsageError: None was given although one is needed.
    """
    given = (*named_ids, *ids)
    if needed and not given:
        raise click.UsageError("no id given", click.get_current_context())
    return given


def output_option(default: str) -> Callable[[Command], Command]:
    """`-o table|json|yaml`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default=default,
        show_default=True,
        help="How to print it.",
    )


def label_option(text: str) -> Callable[[Command], Command]:
    """`--label KEY=VALUE`, any number of times."""
    return click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help=text)


def parse_labels(pairs: Sequence[str]) -> Mapping[str, str]:
    """Labels given as KEY=VALUE.

    Raises:
        BadInput: One has no `=`, or no key.
    """
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadInput(f"--label {pair!r}: expected KEY=VALUE")
        labels[key] = value
    return labels


async def each(ids: Sequence[str], action: Callable[[str], Awaitable[None]]) -> None:
    """Do something to each id in turn; a refusal of one is reported and does not spare the others.

    Raises:
        click.exceptions.Exit: One or more were refused; the code is that of the last.
        Unreachable: The server went away.
    """
    code = 0
    for identifier in ids:
        try:
            await action(identifier)
        except Unreachable:
            raise
        except Problem as problem:
            problem.show()
            code = problem.exit_code
    if code:
        raise click.exceptions.Exit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One status, as lines for people and as data for machines."""

    lines: Sequence[str]
    data: Mapping[str, Any]


async def show_each(wanted: Sequence[str], form: str, look: Callable[[str], Awaitable[View]]) -> None:
    """Print the status of each of several things; data of more than one comes as a list, as from crictl."""
    collected: list[Mapping[str, Any]] = []

    async def show(given: str) -> None:
        view = await look(given)
        if form == "table":
            print_lines(view.lines)
        else:
            collected.append(view.data)

    try:
        await each(wanted, show)
    finally:
        if collected:
            print_data(collected[0] if len(wanted) == 1 else collected, form)


def warn(sentence: str) -> None:
    """Say something on standard error."""
    click.echo(f"crioctl: warning: {sentence}", err=True)


def wants_blocks(ctx: click.Context, group: str) -> bool:
    """Whether a list goes to a program that reads CRI-O's crioctl: `pod list | grep ^ID | cut -c5-` is such a one.

    Those scripts call the commands of the groups; their lists keep the old form in a pipe, unless -o names another.
    """
    in_group = ctx.parent is not None and ctx.parent.command.name == group
    defaulted = ctx.get_parameter_source("output") is click.core.ParameterSource.DEFAULT
    return in_group and defaulted and not sys.stdout.isatty()
