"""Runs `crio` so that it kills itself at a chosen effect: `python -m tests.integration.killing_server`.

`CRIO_TEST_KILL` names a file. While it says, for example, `PrepareSandbox before 1`, the process ends by SIGKILL just
before it carries out the first such order that comes, or with `after` when the order is done and the core has not heard
of it. The file is removed first, so that one kill is ordered only once.
"""

import os
import signal
from pathlib import Path

from crio_core import effects as fx
from crio_core import events as ev
from crio_io.executor import HostExecutor
from crio_server.main import main


class Killer:
    """Counts orders while a kill is due, and kills this process at the chosen one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._run = HostExecutor.run
        self._seen = 0

    def hook(self) -> None:
        """Have every order pass by here."""
        killer = self

        async def run(self: HostExecutor, order: fx.Order) -> ev.Outcome:
            side = killer.due(order)
            if side == "before":
                killer.kill()
            outcome = await killer._run(self, order)
            if side == "after":
                killer.kill()
            return outcome

        HostExecutor.run = run  # type: ignore[method-assign]

    def due(self, order: fx.Order) -> str:
        """On which side of this order to kill; empty for neither."""
        if not self._file.exists():
            return ""
        name, side, number = self._file.read_text().split()
        self._seen += name == type(order).__name__
        return side if name == type(order).__name__ and self._seen == int(number) else ""

    def kill(self) -> None:
        """End as by `kill -9`."""
        self._file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Killer(Path(os.environ["CRIO_TEST_KILL"])).hook()
    main()
