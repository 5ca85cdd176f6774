"""Runs `crio` so that looking at what was recorded hangs: `python -m tests.integration.hanging_server`.

While the file `CRIO_TEST_HANG` is there, no order of recovery is carried out. Each program that this process starts is
written down, a line for each, in the file `CRIO_TEST_PROGRAMS`.
"""

import os
import sys
from pathlib import Path

import anyio

from crio_core import effects as fx
from crio_core import events as ev
from crio_io.executor import HostExecutor
from crio_server.main import main

LOOKS = (fx.ObserveSandbox, fx.ObserveContainer, fx.WatchContainer, fx.SweepStorage)
STARTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.forkpty")


def note_programs(path: str) -> None:
    """Have the interpreter tell of every process that it makes (PEP 578)."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in STARTS:
            os.write(fd, f"{event} {args!r}"[:500].replace("\n", " ").encode() + b"\n")

    sys.addaudithook(hook)


def hang_while(file: Path) -> None:
    """Have every look wait until a file is gone."""
    inner = HostExecutor.run

    async def run(self: HostExecutor, order: fx.Order) -> ev.Outcome:
        while isinstance(order, LOOKS) and file.exists():
            await anyio.sleep(0.01)  # Nobody tells it: the file is taken away by another process.
        return await inner(self, order)

    HostExecutor.run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    note_programs(os.environ["CRIO_TEST_PROGRAMS"])
    hang_while(Path(os.environ["CRIO_TEST_HANG"]))
    main()
