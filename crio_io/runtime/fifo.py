"""Lets the process of a container that runc has created run, without another run of runc.

The process waits at a named pipe in runc's state of the container, `exec.fifo`, until somebody opens it to read, writes
a byte and becomes the program; who has read removes the name, from which runc tells a created container from a running
one (runc, `libcontainer/container_linux.go`). That is all that `runc start` does, after starting itself.
"""

import os
import select
from contextlib import suppress
from pathlib import Path

import anyio

FIFO = "exec.fifo"
WAIT_S = 30.0
"""How long the process may take to come to its pipe."""


async def let_run(state: Path, pid: int) -> bool:
    """Whether the process has been let go; if not, nothing was done, and runc itself can say why.

    Args:
        state: The directory of the container in runc's root.
        pid: The process that waits.
    """
    path = state / FIFO
    try:
        process = os.pidfd_open(pid)  # First: once the pipe is open, the process may be over at any time.
    except OSError:
        return False
    try:
        fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not await _read(fifo, process):
                return False
        finally:
            os.close(fifo)
    except FileNotFoundError:
        return False
    finally:
        os.close(process)
    with suppress(FileNotFoundError):
        path.unlink()
    return True


async def _read(fifo: int, process: int) -> bool:
    """Whether a byte came before the process ended; when one has, the program runs, which closes the pipe."""
    came = False
    with select.epoll() as both:
        both.register(fifo, select.EPOLLIN)
        both.register(process, select.EPOLLIN)
        with anyio.move_on_after(WAIT_S):
            while True:
                await anyio.wait_readable(both.fileno())
                ended = process in dict(both.poll(0))
                with suppress(BlockingIOError):
                    data = os.read(fifo, 16)
                    came = came or bool(data)
                    ended = ended or not data
                if ended:
                    break
    return came
