"""`crio check`: residue and damage, on a live or a stopped node; with `--repair` it mends."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crio_core.errors import OperationError
from crio_server.commands.session import EXIT_FAILED, Session

if TYPE_CHECKING:
    from crio_io.check import Finding, Owned
    from crio_io.engine_options import EngineOptions

EXIT_FOUND = 3
"""Exit code when something was found and is not mended."""


@click.command("check")
@click.option("--deep", is_flag=True, help="Also read every stored layer that is in use from end to end.")
@click.option("--repair", is_flag=True, help="Mend what can be mended. The server must be stopped.")
@click.option("--yes", "-y", is_flag=True, help="With --repair: do not ask.")
@click.option("-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.pass_obj
def check_command(session: Session, deep: bool, repair: bool, yes: bool, output: str) -> None:
    """List what no record owns, and what is owned and not whole.

    Looking changes nothing, and works beside a running server, which is then asked what it owns. Exit codes: 0 nothing
    found or all of it mended, 1 it could not be checked or mended, 3 something was found.
    """
    import anyio

    config = session.load_or_exit().config
    try:
        code = anyio.run(_check, config, deep, repair, yes, output)
    except OperationError as error:
        click.echo(f"crio: {error.message}", err=True)
        code = EXIT_FAILED
    except PermissionError as error:
        click.echo(f"crio: {error}: check needs root", err=True)
        code = EXIT_FAILED
    raise SystemExit(code)


async def _check(config: Any, deep: bool, repair: bool, yes: bool, form: str) -> int:
    from crio_io.check import Kind
    from crio_server.options import engine_options

    options = engine_options(config)
    findings, live = await find(config, options, deep=deep)
    _show(findings, live, form)
    wrong = [one for one in findings if one.kind is not Kind.NOTE]
    if not wrong:
        return 0
    if not repair:
        return EXIT_FOUND
    if live:
        click.echo(
            "crio: a server is running, and it alone may change things here: stop it first. What it owes it tries "
            "again by itself, and what no record owns it removes when it starts.",
            err=True,
        )
        return EXIT_FAILED
    return await _mend(options, wrong, yes=yes)


async def find(config: Any, options: "EngineOptions", *, deep: bool) -> tuple[tuple["Finding", ...], bool]:
    """Everything that is found, and whether a server was running.

    Raises:
        OperationError: The journal, or the server, cannot be asked.
    """
    from crio_io import check, host
    from crio_io.engine_options import layout_of
    from crio_io.layer_check import check_layers
    from crio_io.looking import Places
    from crio_server.commands.live import ask_owned, is_live

    layout = layout_of(options)
    places = Places(
        layout=layout,
        runtime_roots=tuple(dict.fromkeys(one.root for one in options.runtimes.values())),
        cni_config_dir=options.cni_config_dir,
    )
    live = is_live(config.listen)
    damage: tuple[Finding, ...] = ()
    if live:

        async def owned() -> "Owned":
            return await ask_owned(config.listen, config.root)
    else:
        here = await host.look()
        read, damage = await check.owned_by_journal(layout, here.boot_id)

        async def owned() -> "Owned":
            return read

    findings = (*damage, *await check.check(places, owned, live=live))
    if deep:
        findings += await check_layers(Path(layout.storage), await owned())
    return findings, live


def _show(findings: Sequence["Finding"], live: bool, form: str) -> None:
    if form == "json":
        report = [
            {
                "kind": one.kind.value,
                "what": one.thing.what,
                "key": one.thing.key,
                "where": one.thing.where,
                "detail": one.detail,
                "mend": one.mend,
            }
            for one in findings
        ]
        click.echo(json.dumps({"live": live, "findings": report}, indent=2))
        return
    for one in findings:
        place = f" at {one.thing.where}" if one.thing.where else ""
        click.echo(f"{one.kind.value}: {one.thing.what} {one.thing.key}{place}: {one.detail}")
    if not findings:
        click.echo(f"nothing found; the server is {'running' if live else 'not running'}")


async def _mend(options: "EngineOptions", findings: Sequence["Finding"], *, yes: bool) -> int:
    from crio_io import host
    from crio_io.engine_options import layout_of, set_up_runtimes
    from crio_io.repair import repair
    from crio_io.zygote import ZygoteClient

    mendable = [one for one in findings if one.mend]
    click.echo("\nrepair:" if mendable else "\nnothing of this can be mended by a program", err=True)
    for one in mendable:
        click.echo(f"  {one.thing.what} {one.thing.key}: {one.mend}", err=True)
    if not mendable:
        return EXIT_FOUND
    if not yes:
        if not sys.stdin.isatty():
            click.echo("crio: nothing was changed: -y says that it may be", err=True)
            return EXIT_FOUND
        click.confirm("Go on?", abort=True, err=True)
    layout = layout_of(options)
    here = await host.look()
    _, monitors = set_up_runtimes(options, layout, here.cgroups, ZygoteClient(Path(layout.zygote)))
    failed = await repair(layout, tuple(monitors.values()), mendable)
    for one, why in failed:
        click.echo(f"crio: {one.thing.what} {one.thing.key} could not be mended: {why}", err=True)
    if failed:
        return EXIT_FAILED
    return 0 if len(mendable) == len(findings) else EXIT_FOUND
