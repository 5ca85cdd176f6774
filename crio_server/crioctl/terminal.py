"""This end's terminal: raw while a command has it, as it was afterwards in every case, and its size."""

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Callable, Iterator

STDIN, STDOUT = 0, 1
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def raw(on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Have the terminal pass on every key, and give it back; to be entered in an event loop.

    Args:
        on_signal: Called when this process is asked to end, which would otherwise leave the terminal raw.
    """
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(STDIN)
    for number in _ENDING:
        loop.add_signal_handler(number, on_signal, number)
    try:
        tty.setraw(STDIN, termios.TCSADRAIN)  # what was typed ahead is for the command
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal itself has gone
            termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
        for number in _ENDING:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def resizes(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Tell the size of the terminal in characters, now and whenever it changes; without a terminal, never."""

    def look() -> None:
        size = _size()
        if size is not None:
            tell(size.columns, size.lines)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, look)
    try:
        look()
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


def _size() -> os.terminal_size | None:
    for descriptor in (STDIN, STDOUT):
        with contextlib.suppress(OSError):
            return os.get_terminal_size(descriptor)
    return None
