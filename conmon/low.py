"""The C halves of `socket`, `signal` and `contextlib`, typed.

The Python halves load `enum`, `collections`, `functools` and more: a third of a monitor's memory when it is started
alone, and objects scattered between its own when it is forked, so that each forked one dirties more pages
(docs/monitor.md).
"""

import _signal  # type: ignore[import-not-found]  # typeshed has no stub for it
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_PEEK,
    MSG_TRUNC,
    SCM_RIGHTS,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
    socketpair,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

__all__ = (
    "AF_UNIX",
    "CMSG_SPACE",
    "MSG_PEEK",
    "MSG_TRUNC",
    "SCM_RIGHTS",
    "SIGCHLD",
    "SIGINT",
    "SIGKILL",
    "SIGPIPE",
    "SIGQUIT",
    "SIGTERM",
    "SIGUSR1",
    "SIGXFSZ",
    "SOCK_CLOEXEC",
    "SOCK_DGRAM",
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "SOL_SOCKET",
    "SO_PEERCRED",
    "Suppress",
    "accept",
    "default_signal",
    "handle_signal",
    "ignore_signal",
    "pause",
    "set_wakeup_fd",
    "socket",
    "socketpair",
)

SIGINT: int = _signal.SIGINT
SIGQUIT: int = _signal.SIGQUIT
SIGKILL: int = _signal.SIGKILL
SIGUSR1: int = _signal.SIGUSR1
SIGPIPE: int = _signal.SIGPIPE
SIGTERM: int = _signal.SIGTERM
SIGCHLD: int = _signal.SIGCHLD
SIGXFSZ: int = _signal.SIGXFSZ


def accept(server: socket) -> int:
    """The descriptor of the next connection, closed on exec and in the default blocking mode.

    Raises:
        OSError: Nobody waits, or descriptors ran out.
    """
    fd, _ = server._accept()  # type: ignore[attr-defined]  # what `socket.socket.accept` is made of
    return int(fd)


def handle_signal(number: int, handler: "Callable[[int, FrameType | None], None]") -> None:
    """Call `handler` for a signal."""
    _signal.signal(number, handler)


def ignore_signal(number: int) -> None:
    """Have the kernel drop a signal; for SIGCHLD this also reaps (sigaction(2))."""
    _signal.signal(number, _signal.SIG_IGN)


def default_signal(number: int) -> None:
    """Give a signal its default effect."""
    _signal.signal(number, _signal.SIG_DFL)


def set_wakeup_fd(fd: int) -> None:
    """Have the number of each handled signal written to `fd`; -1 for none. A full pipe is no news."""
    _signal.set_wakeup_fd(fd, warn_on_full_buffer=False)


def pause() -> None:
    """Sleep until a signal comes."""
    _signal.pause()


class Suppress:
    """`contextlib.suppress` for one class of errors.

    Args:
        error: The class to let pass.
    """

    __slots__ = ("_error",)

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        trace: "TracebackType | None",
    ) -> bool:
        return kind is not None and issubclass(kind, self._error)
