"""A command that goes on printing lines, as a test reads them."""

import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.integration.harness import REPOSITORY
from tests.integration.waiting import WAIT_S, wait_for


class Shown:
    """The command, and the words of each line."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def once_it_listens(self, cause: Callable[[], object]) -> None:
        """Cause lines until one is printed."""

        def listens() -> bool:
            cause()
            return not self._lines.empty()

        wait_for("a first line", listens)

    def until(self, last: Callable[[list[str]], bool]) -> list[list[str]]:
        """The lines up to the first that is `last`."""
        told: list[list[str]] = []
        while not told or not last(told[-1]):
            told.append(self._lines.get(timeout=WAIT_S).split())
        return told

    def interrupt(self) -> tuple[int, str]:
        """End it with Ctrl-C; returns its code and what it said on stderr."""
        assert self._process.stderr is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(WAIT_S), self._process.stderr.read()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._reader.join(WAIT_S)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def shown(*argv: str) -> Iterator[Shown]:
    """Run a command for the length of a block."""
    running = Shown(argv)
    try:
        yield running
    finally:
        running.close()
