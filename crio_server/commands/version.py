"""`crio version`: what this program is."""

import json
import platform

import click

VERSION = "0.1.0"
"""The version of the package; a test compares it with pyproject.toml. Reading package metadata would cost more memory
than the rest of the command line."""
CRI_VERSION = "v1"


@click.command("version")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
def version_command(as_json: bool) -> None:
    """Print the version of the program, of the CRI, of Python and of the machine."""
    facts = {
        "version": VERSION,
        "criVersion": CRI_VERSION,
        "pythonVersion": platform.python_version(),
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    titles = {"version": "Version", "criVersion": "CRI", "pythonVersion": "Python", "platform": "Platform"}
    for key, title in titles.items():
        click.echo(f"{title + ':':<10}{facts[key]}")
