"""What the flags of `crio` said, for whichever subcommand runs."""

from dataclasses import replace

import click

from crio_core.errors import OperationError
from crio_core.values import dataclass
from crio_server.config import ConfigWarning, Loaded, Sources, load

EXIT_FAILED = 1
"""Exit code when the configuration is wrong or the work fails; click uses 2 for a wrong command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Where the configuration comes from, and what is to be said about flags that have no effect."""

    sources: Sources
    flag_warnings: tuple[ConfigWarning, ...]
    record: str = ""
    """A file to record what the node is told; empty for none."""
    simulation: tuple[int, str, str] | None = None
    """The seed and the latency and fault profiles of a simulated node; None for a real one."""

    def load(self) -> Loaded:
        """Read all sources.

        Raises:
            OperationError: Something in them is wrong.
        """
        loaded = load(self.sources)
        return replace(loaded, warnings=(*self.flag_warnings, *loaded.warnings))

    def load_or_exit(self) -> Loaded:
        """Read all sources; a wrong one ends the program with one line for each fault."""
        try:
            return self.load()
        except OperationError as error:
            for line in error.message.splitlines():
                click.echo(f"crio: {line}", err=True)
            raise SystemExit(EXIT_FAILED) from error
