"""What one process that creates a container gives to the one that watches it: numbers, words and open descriptors.

The two are the same process when a monitor is started alone. A monitor of a zygote has this as bytes: a process that is
made when something happens reads them, and leaves them for the next one when nothing has happened for a while
(docs/monitor.md).
"""

import marshal
import select

from conmon.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from conmon.logs import LogState

BYTES_MAX = 1024 * 1024


class Handover:
    """A container that runs.

    Args:
        options: What was asked.
        environment: For the exit command.
        wake: The pipe that tells of signals, both ends.
        sync_fd: Where results are written, or -1.
        held_fds: To be closed at the exit.
    """

    def __init__(
        self,
        options: Options,
        environment: dict[str, str],
        *,
        wake: tuple[int, int],
        sync_fd: int,
        held_fds: tuple[int, ...],
    ) -> None:
        self.options = options
        self.environment = environment
        self.wake = wake
        self.sync_fd = sync_fd
        self.held_fds = held_fds
        self.pid = 0
        self.foreign_fd = -1  # a pidfd of a process that is not a child of the monitor
        self.outputs: dict[int, int] = {}  # what the container writes, and the number of the stream
        self.terminal_fd = -1
        self.stdin_fd = -1
        self.keep_fds: tuple[int, ...] = ()  # open so that the other end sees no end
        self.attach_fd = -1
        self.link = ""
        self.control_fd = -1
        self.window_fd = -1
        self.notify_fd = -1
        self.oom: tuple[int, int, int] | None = None  # counter, event or -1, kills so far
        self.log_fds: tuple[tuple[str, int], ...] = ()
        self.log_states: tuple[LogState, ...] = ()  # of the same files, once somebody has written to them
        self.journal = False
        self.noted_bytes = 0  # of the log, lost, and told so far
        self.exits = (-1, -1)  # a pipe with pid and status of each child that the watcher has reaped, as two int
        self.oom_kills = 0
        self.oom_at_ns: int | None = None  # monotonic
        self.timeout_at_ns = 0  # monotonic

    def pack(self) -> bytes:
        """All of it, for `unpack` in another process that has the same descriptors."""
        fields = dict(vars(self))
        fields["options"] = dict(vars(self.options))
        return marshal.dumps(fields)

    @classmethod
    def unpack(cls, data: bytes) -> "Handover":
        """What `pack` packed; only for bytes of our own."""
        fields = marshal.loads(data)  # written by a process of ours into memory that nobody else has
        options = Options()
        vars(options).update(fields.pop("options"))
        made = cls.__new__(cls)
        vars(made).update(fields)
        made.options = options
        return made

    def causes(self) -> dict[int, int]:
        """Every descriptor that may need the watcher, and the events of epoll(7) to wait for."""
        wanted = [
            self.wake[0],
            self.exits[0],
            self.foreign_fd,
            self.attach_fd,
            self.control_fd,
            self.window_fd,
            self.notify_fd,
        ]
        wanted += self.outputs
        found = {fd: select.EPOLLIN for fd in wanted if fd >= 0}
        if self.oom is not None:
            counter_fd, event_fd, _ = self.oom
            found[counter_fd if event_fd < 0 else event_fd] = select.EPOLLPRI if event_fd < 0 else select.EPOLLIN
        return found
