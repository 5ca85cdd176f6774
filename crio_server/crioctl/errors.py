"""What can go wrong in a command, sorted by the exit code that a script sees.

0 it worked · 1 the server said no · 2 the command line or a file is wrong · 3 the server cannot be reached.
"""

from typing import IO, Any

import click

from crio_server.crioctl.text import clean

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3


class Problem(click.ClickException):
    """A failure with a message for a person and an exit code for a script."""

    exit_code = EXIT_REFUSED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message; a server or a file may have worded it, so control characters are made visible."""
        click.echo(f"crioctl: {clean(self.message, keep_newlines=True)}", file=file, err=file is None)


class Refused(Problem):
    """The server, or the machine on its behalf, did not do what was asked."""


class BadInput(Problem):
    """An argument or a configuration file cannot be used as it is."""

    exit_code = EXIT_USAGE


class Unreachable(Problem):
    """No CRI server answers at the endpoint."""

    exit_code = EXIT_UNREACHABLE


class ServerRefusal(Refused):
    """A gRPC status other than OK, with the call that got it."""

    def __init__(self, call: str, code: str, text: str) -> None:
        super().__init__(f"{call}: {code}: {text}")
        self.code = code
