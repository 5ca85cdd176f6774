"""`crio config`: the effective configuration, or the commented default."""

import click

from crio_server.commands.session import Session


@click.command("config")
@click.option("--default", "wants_default", is_flag=True, help="Print the defaults, commented, and read no file.")
@click.pass_obj
def config_command(session: Session, wants_default: bool) -> None:
    """Print the effective configuration as TOML that can be read again; warnings go to standard error."""
    from crio_server.config.render import default_toml, to_toml

    if wants_default:
        click.echo(default_toml(), nl=False)
        return
    loaded = session.load_or_exit()
    for line in (*loaded.warnings, *loaded.notices):
        click.echo(f"crio: {line}", err=True)
    click.echo(to_toml(loaded.config), nl=False)
