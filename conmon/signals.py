"""The signals that a monitor acts on, written to a pipe that its poll can wait for."""

import os

from conmon.low import (
    SIGCHLD,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    SIGUSR1,
    default_signal,
    handle_signal,
    set_wakeup_fd,
)

SIGNAL_BYTES = 64
FORWARDED = (SIGTERM, SIGINT, SIGQUIT)
CAUGHT = (SIGCHLD, SIGUSR1, *FORWARDED)


def heard(signum: int, frame: object) -> None:
    """The number is in the wake-up pipe already; the handler exists so that it gets there."""


def catch_signals(wake_fd: int) -> None:
    """Have the signals that a monitor acts on written to its wake-up pipe."""
    set_wakeup_fd(wake_fd)
    for number in CAUGHT:
        handle_signal(number, heard)


def forget_signals() -> None:
    """Undo `catch_signals`."""
    set_wakeup_fd(-1)
    for number in CAUGHT:
        default_signal(number)


def wake_pipe() -> tuple[int, int]:
    """A pipe for `catch_signals`: reader and writer, neither of which blocks."""
    wake = os.pipe()
    for fd in wake:
        os.set_blocking(fd, False)
    return wake
