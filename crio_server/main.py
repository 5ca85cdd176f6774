"""The command `crio`: without a subcommand it serves.

Only click and the configuration are imported here; what serves is imported when it is about to serve. The flags are
made from the table of options, so a flag exists exactly where an option names one.
"""

import gc
import importlib
import os
from typing import Any

import click

from crio_server.commands.check import check_command
from crio_server.commands.config import config_command
from crio_server.commands.replay import replay_command
from crio_server.commands.session import Session
from crio_server.commands.version import VERSION, version_command
from crio_server.commands.wipe import wipe_command
from crio_server.config import CONFIG_DIR, CONFIG_FILE, OPTIONS, ConfigWarning, Option, Sources
from crio_server.config.elsewhere import MISSING, Missing
from crio_server.config.kinds import FALSE_WORDS, TRUE_WORDS, Switch
from crio_server.config.layers import HANDLER_FLAG_FORM

LATENCIES = ("ordinary", "steady", "instant")
FAULTS = ("none", "few", "many")
"""The profiles of the simulation, the defaults first; named here, so that no command has to load them."""
MISSING_PREFIX = "missing_"
"""In click's names for flags that only CRI-O has, which the rest of the name spells; no option begins like this."""
SWITCHES = frozenset(
    [flag for row in OPTIONS if isinstance(row.kind, Switch) for flag in row.flags]
    + [flag for row in MISSING if not row.takes_value for flag in row.flag.split()]
    + ["--debug"]
)


def _negated(flag: str) -> str:
    return "--no-" + flag.removeprefix("--")


def _plain(arg: str) -> str:
    """`--x=true` and `--x=false`, as Go's flag packages take them, in click's spelling."""
    name, _, word = arg.partition("=")
    if name not in SWITCHES or word.lower() not in TRUE_WORDS | FALSE_WORDS:
        return arg
    return name if word.lower() in TRUE_WORDS else _negated(name)


class Crio(click.Group):
    """The command line of the server."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_plain(arg) for arg in args])


def _switch(name: str, flag: str, **more: Any) -> click.Option:
    return click.Option([name, f"{flag}/{_negated(flag)}"], default=None, **more)


def _flag(row: Option) -> click.Option:
    text = f"{row.doc} [${row.env}]" if row.env else row.doc
    if isinstance(row.kind, Switch):
        return _switch(row.name, row.flags[0], help=text)
    return click.Option([row.name, *row.flags], multiple=True, metavar="VALUE", help=text)


def _missing_flag(row: Missing) -> click.Option:
    flags = row.flag.split()
    name = MISSING_PREFIX + flags[0].removeprefix("--").replace("-", "_")
    if row.takes_value:
        return click.Option([name, *flags], multiple=True, hidden=True)
    return _switch(name, flags[0], hidden=True)


def _params() -> list[click.Parameter]:
    return [
        click.Option(
            ["config", "--config", "-c"],
            envvar="CONTAINER_CONFIG",
            metavar="FILE",
            help=f"Configuration file, empty for none; {CONFIG_FILE} if it is there. [$CONTAINER_CONFIG]",
        ),
        click.Option(
            ["config_dir", "--config-dir", "-d"],
            envvar="CONTAINER_CONFIG_DIR",
            default=CONFIG_DIR,
            show_default=True,
            metavar="DIRECTORY",
            help="Directory of drop-in files, *.conf. [$CONTAINER_CONFIG_DIR]",
        ),
        *(_flag(row) for row in OPTIONS if row.flags),
        click.Option(
            ["runtimes", "--runtimes"],
            multiple=True,
            metavar=HANDLER_FLAG_FORM,
            help="A runtime handler; may be repeated. [$CONTAINER_RUNTIMES]",
        ),
        click.Option(["runtime", "--runtime"], multiple=True, metavar="PATH", help="Path of the default runtime."),
        _switch("debug", "--debug", help="Short for --log-level debug."),
        click.Option(
            ["record", "--record"],
            metavar="FILE",
            help="Record what the node is told, for `crio replay`; environment values and credentials are left out.",
        ),
        click.Option(
            ["simulate", "--simulate"],
            is_flag=True,
            help="Serve a node that exists in memory only: no root, runtime or network is needed.",
        ),
        click.Option(["seed", "--seed"], type=int, metavar="N", help="With --simulate: all chance follows from it."),
        click.Option(
            ["latency", "--latency"], type=click.Choice(LATENCIES), help="With --simulate: how long things take."
        ),
        click.Option(["faults", "--faults"], type=click.Choice(FAULTS), help="With --simulate: how much goes wrong."),
        *(_missing_flag(row) for row in MISSING),
    ]


def session_of(params: dict[str, Any], environ: dict[str, str]) -> Session:
    """What click parsed, as sources of configuration.

    Args:
        params: Values by click's parameter name; None or () where a flag was not given.
        environ: The environment of the process.
    """
    path = params.pop("config")
    directory = params.pop("config_dir")
    record = params.pop("record", None)
    simulation = _simulation(params)
    flags: dict[str, tuple[str, ...]] = {}
    warnings: list[ConfigWarning] = []
    for name, given in params.items():
        if given is None or given == ():
            continue
        if name.startswith(MISSING_PREFIX):
            flag = "--" + name.removeprefix(MISSING_PREFIX).replace("_", "-")
            warnings.append(ConfigWarning(source=flag, key="", message="known to CRI-O, has no effect here"))
        elif isinstance(given, bool):
            flags[name] = ("true" if given else "false",)
        else:
            flags[name] = tuple(given)
    sources = Sources(
        config_path=CONFIG_FILE if path is None else path,
        config_required=bool(path),
        config_dir=directory,
        environ=environ,
        flags=flags,
    )
    return Session(sources=sources, flag_warnings=tuple(warnings), record=record or "", simulation=simulation)


def _simulation(params: dict[str, Any]) -> tuple[int, str, str] | None:
    wanted = params.pop("simulate", False)
    seed, latency, faults = (params.pop(name, None) for name in ("seed", "latency", "faults"))
    if wanted:
        return seed or 0, latency or LATENCIES[0], faults or FAULTS[0]
    for name, value in (("seed", seed), ("latency", latency), ("faults", faults)):
        if value is not None:
            raise click.UsageError(f"--{name} goes with --simulate only")
    return None


@click.pass_context
def _start(context: click.Context, /, **params: Any) -> None:
    """A Kubernetes container runtime: serves the CRI on a unix socket when no command is given."""
    context.obj = session_of(params, dict(os.environ))
    if context.invoked_subcommand is None:
        _serve(context.obj)


def _serve(session: Session) -> None:
    loaded = session.load_or_exit()
    # Imported by name and only now: the subcommands must not pay for the server.
    if session.simulation is not None:
        seed, latency, faults = session.simulation
        module = importlib.import_module("crio_server.simulate")
        profile = module.Profile(seed=seed, latency=latency, faults=faults, record=session.record)
        module.simulate(loaded.config, loaded.warnings, profile)
        return
    # Nothing of a start is garbage, so the collector would look in vain, a seventh of the time that it takes. It is on
    # again when the server has settled.
    gc.disable()
    importlib.import_module("crio_server.lean").stay_small()
    server = importlib.import_module("crio_server.serve")
    server.serve(loaded.config, loaded.warnings, notices=loaded.notices, reread=session.load, record=session.record)


main = Crio(
    "crio",
    callback=_start,
    params=_params(),
    commands=[check_command, config_command, replay_command, version_command, wipe_command],
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help=_start.__doc__,
)
click.version_option(VERSION, prog_name="crio")(main)


if __name__ == "__main__":
    main()
