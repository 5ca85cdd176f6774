"""Creates one container: opens what it needs, calls the runtime, and hands over what there is to watch.

Nothing of the container is read here. Its output, its clients and its exit wait in their pipes and sockets, and as a
zombie, until the watcher takes them; so nothing is lost between the two, in one process or in two.
"""

from __future__ import annotations

import os
import select
import time
from fcntl import F_SETPIPE_SZ, fcntl

from conmon import attach, linux, monitor, oom, runtime, sync
from conmon.diagnostics import Diagnostics
from conmon.handover import Handover
from conmon.journald import JournalLog
from conmon.logs import STDERR, STDOUT, FileLog
from conmon.low import (
    SIGCHLD,
    SIGKILL,
    SIGUSR1,
    SOCK_SEQPACKET,
    Suppress,
)
from conmon.notify import listen_notify
from conmon.options import Options
from conmon.signals import FORWARDED, SIGNAL_BYTES, catch_signals, wake_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PIPE_BYTES = 256 * 1024
PIDFILE_BYTES_MAX = 32


class Inherited:
    """Descriptors that the caller gave: the pipes of conmon's protocol, and others to hold until the exit.

    Args:
        sync_fd: Where results are written, or -1.
        start_fd: What the runtime of an attached exec waits for, or -1.
        attach_fd: Where the attach socket is announced, or -1.
        held_fds: Such as ports that the caller reserves while the container runs.
    """

    def __init__(self, *, sync_fd: int, start_fd: int, attach_fd: int, held_fds: tuple[int, ...]) -> None:
        self.sync_fd = sync_fd
        self.start_fd = start_fd
        self.attach_fd = attach_fd
        self.held_fds = held_fds


class Means:
    """What a creation needs whatever is asked for, so that it can be made before anything is: signals that wake, and
    stdio.

    Attributes:
        wake: The wake-up pipe: reader and writer.
        null: /dev/null.
        output: A pipe for the runtime's output, which the container inherits.
        error: A pipe for its errors.
    """

    __slots__ = ("error", "null", "output", "wake")

    def __init__(self) -> None:
        self.wake = wake_pipe()
        catch_signals(self.wake[1])
        self.null = runtime.stdio_null()
        self.output = _output_pipe()
        self.error = _output_pipe()


class Creation:
    """One container in the making.

    Args:
        options: Checked by `options.check`.
        inherited: What the caller passed.
        means: Made for it alone; its signals are caught already.
        environment: For the runtime and the exit command.
        logs: Open log drivers.
        oom_score: The OOM score adjustment that the runtime gets, as text; empty to leave it.
        passthrough: The runtime gets the monitor's own stdio, and there is nothing to log or attach to.
        watcher_wake: The wake-up pipe of the process that will watch, when that is our parent; empty when it is us.

    Raises:
        OSError: The bundle or the socket folder does not take what has to be in it.
    """

    def __init__(
        self,
        options: Options,
        inherited: Inherited,
        means: Means,
        environment: dict[str, str],
        logs: tuple[FileLog | JournalLog, ...],
        *,
        passthrough: bool,
        oom_score: bytes,
        watcher_wake: tuple[int, int] | None = None,
    ) -> None:
        self._options = options
        self._inherited = inherited
        self._means = means
        self._environment = environment
        self._passthrough = passthrough
        self._oom_score = oom_score
        self._watcher_wake = watcher_wake
        self._watcher_signals: list[int] = []
        self._watcher_pid = os.getppid() if watcher_wake else os.getpid()
        self._say = Diagnostics(options.cid, level=options.log_level, syslog=options.syslog)
        self._machine = monitor.Monitor(is_exec=options.exec)
        self._console: runtime.ConsoleSocket | None = None
        self._error_fd = -1
        self._runtime_pid = 0
        self._theirs: tuple[int, ...] = ()
        self._ready = False
        self._over = False
        self.code = 0
        self.made = Handover(
            options,
            environment,
            wake=watcher_wake or means.wake,
            sync_fd=inherited.sync_fd,
            held_fds=inherited.held_fds,
        )
        self.made.log_fds = tuple((log.path, log.fileno()) for log in logs if isinstance(log, FileLog))
        for log in logs:
            if isinstance(log, JournalLog):
                self.made.journal = True
                log.close()
        self._child = self._prepare()

    def close_once_started(self, fd: int) -> None:
        """Close this descriptor as soon as the runtime is on its way."""
        self._theirs += (fd,)

    def begin(self) -> None:
        """Have the runtime run."""
        if self._options.exec_attach and self._inherited.attach_fd >= 0:
            sync.write_all(self._inherited.attach_fd, sync.sync_message(self._key(), 0))
        self._runtime_pid = self._child.spawn() if self._watcher_wake is None else self._child.start()
        if self._watcher_wake is not None:
            linux.prctl(linux.PR_SET_PDEATHSIG, SIGUSR1)
            self._end_unwatched()
        self._close(self._theirs)
        self._theirs = ()

    def _end_unwatched(self) -> None:
        """Where the watcher is gone, nothing is to be made that nobody will watch."""
        if os.getppid() != self._watcher_pid:
            os.kill(self._runtime_pid, SIGKILL)
            os._exit(1)

    def run(self) -> Handover | None:
        """See to what has begun; None when it failed and the caller was told: then `code` is the monitor's own exit."""
        if not self._options.exec_attach:
            self._open_bundle_meanwhile()
        if self._inherited.start_fd >= 0:
            os.close(self._inherited.start_fd)
        if self._passthrough:
            for target in range(3):
                os.dup2(runtime.stdio_null(), target)
        if not self._over:
            self._wait()
        if self._console is not None:
            self._console.close()
        if not self._ready:
            return None
        if self._watcher_wake is not None:
            self._close(self._means.wake)
            if self.made.timeout_at_ns:
                self._watcher_signals.append(SIGUSR1)  # asks for nothing, and has the watcher set its timer
            with Suppress(BlockingIOError):  # so many that the pipe is full: the watcher wakes anyway
                os.write(self._watcher_wake[1], bytes(self._watcher_signals))
        return self.made

    @staticmethod
    def _close(fds: Iterable[int]) -> None:
        for fd in fds:
            os.close(fd)

    # Opening

    def _prepare(self) -> runtime.Child:
        options, made = self._options, self.made
        if options.sdnotify_socket:
            made.notify_fd = listen_notify(options.bundle)
        stdio, made.stdin_fd = self._make_stdio()
        if options.exec_attach:
            self._open_bundle()
        return runtime.Child(
            runtime.arguments(options, self._console.path if self._console else ""),
            self._environment,
            stdio,
            oom_score=self._oom_score,
            start_fd=self._inherited.start_fd if options.exec_attach else -1,
            replace_listen_pid=options.replace_listen_pid,
        )

    def _make_stdio(self) -> tuple[tuple[int, int, int], int]:
        """Descriptors for the runtime's stdio, and our end of its input or -1."""
        means = self._means
        if self._passthrough:
            self._close((means.null, *means.output, *means.error))
            return (-1, -1, -1), -1
        self._error_fd, error_write = means.error
        out_read, out_write = means.output
        if self._options.terminal:
            self._close(means.output)
            self._console = runtime.ConsoleSocket(self._environment.get("TMPDIR") or "/tmp")
            self._theirs = (error_write, means.null)
            return (means.null, means.null, error_write), -1
        self.made.outputs[out_read] = STDOUT
        in_read, in_write = means.null, -1
        self._theirs = (error_write, out_write, means.null)
        if self._options.stdin:
            in_read, in_write = os.pipe()
            os.set_blocking(in_write, False)
            self._theirs += (in_read,)
        return (in_read, out_write, error_write), in_write

    def _open_bundle_meanwhile(self) -> None:
        """Open what clients need while the runtime works; without it there is no container."""
        try:
            self._open_bundle()
        except OSError as error:
            os.kill(self._runtime_pid, SIGKILL)
            os.waitpid(self._runtime_pid, 0)
            where = error.filename or f"bundle {self._options.bundle}"
            self._feed(monitor.RuntimeFailed(1, f"{where}: {error.strerror}"))

    def _open_bundle(self) -> None:
        options, made = self._options, self.made
        if self._watcher_wake is not None and options.conmon_pidfile:
            sync.write_file(options.conmon_pidfile, b"%d" % self._watcher_pid)
        if not options.bundle or self._passthrough:
            return
        folder = options.bundle
        if not options.full_attach:
            folder = made.link = f"{options.socket_dir_path}/{options.cuuid}"
            if len(os.fsencode(folder)) == 107:
                folder = made.link = folder[:-1]
            remove(made.link)
            os.symlink(options.bundle, made.link)
        made.attach_fd = attach.listen(folder, "attach", SOCK_SEQPACKET, 0o700).detach()
        made.control_fd = _open_fifo(f"{options.bundle}/ctl")
        made.window_fd = _open_fifo(f"{options.bundle}/winsz")

    # Waiting for the runtime

    def _wait(self) -> None:
        poll = select.epoll()
        poll.register(self._means.wake[0], select.EPOLLIN)
        if self._watcher_wake is not None:
            poll.register(self._watcher_wake[0], select.EPOLLIN)
        if self._console is not None:
            poll.register(self._console.fd, select.EPOLLIN)
        while not self._decided():
            for fd, _ in poll.poll():
                if self._decided():
                    break  # what is in the pipes now is the watcher's to see
                if fd == self._means.wake[0]:
                    numbers = os.read(fd, SIGNAL_BYTES)
                    if SIGUSR1 in numbers and self._watcher_wake is not None:
                        self._end_unwatched()
                    self._forward(numbers)
                    self._reap()
                elif self._watcher_wake is not None and fd == self._watcher_wake[0]:
                    self._hear_for_watcher(os.read(fd, SIGNAL_BYTES))
                elif self._console is not None:
                    poll.unregister(fd)
                    self._take_console(self._console)
        poll.close()

    def _decided(self) -> bool:
        return self._over or self._ready

    def _hear_for_watcher(self, numbers: bytes) -> None:
        """Requests to end are carried out here; what the watcher has to see is put back when we are done."""
        self._forward(numbers)
        if SIGCHLD in numbers and SIGCHLD not in self._watcher_signals:
            self._watcher_signals.append(SIGCHLD)

    def _forward(self, numbers: bytes) -> None:
        for number in numbers:
            if number in FORWARDED:
                self._feed(monitor.SignalReceived(number))

    def _reap(self) -> None:
        """The runtime alone: another child may be the container, whose status is the watcher's to see."""
        pid, status = os.waitpid(self._runtime_pid, os.WNOHANG)
        if not pid:
            return
        self._runtime_pid = 0
        code = monitor.exit_code(status)
        if self._console is not None:
            # A runtime that has ended has sent its terminal already, or never will.
            self._take_console(self._console)
        if code == 0 and self._options.terminal and self.made.terminal_fd < 0 and not self._passthrough:
            self._feed(monitor.RuntimeFailed(1, "the runtime did not set up a terminal"))
        elif code == 0:
            self._feed(monitor.RuntimeSucceeded())
        else:
            self._feed(monitor.RuntimeFailed(code, self._runtime_words(code)))

    def _runtime_words(self, code: int) -> str:
        words = b""
        if self._error_fd >= 0:
            os.set_blocking(self._error_fd, False)
            # A runtime that said nothing may have left a process behind that holds the pipe.
            with Suppress(BlockingIOError):
                words = os.read(self._error_fd, sync.MESSAGE_BYTES_MAX)
        return words.decode(errors="replace") or f"the runtime ended with status {code} and wrote no reason"

    def _take_console(self, console: runtime.ConsoleSocket) -> None:
        self._console = None
        console.set_nonblocking()
        try:
            master = console.accept()
        except OSError as error:
            self._say.warn(f"console socket: {error}")
            console.close()
            return
        os.set_blocking(master, False)
        self.made.terminal_fd = master
        peer = runtime.prepare_terminal(master)
        if peer >= 0:
            self.made.keep_fds = (peer,)
        self.made.outputs[master] = STDOUT
        if self.made.attach_fd >= 0:
            self.made.stdin_fd = os.dup(master)

    # Carrying out

    def _feed(self, event: monitor.Event) -> None:
        for effect in self._machine.step(event):
            self._carry_out(effect)

    def _carry_out(self, effect: monitor.Effect) -> None:
        if isinstance(effect, monitor.ReadPid):
            self._feed(self._read_pid())
        elif isinstance(effect, monitor.ReportPid):
            self._identified(effect.pid)
        elif isinstance(effect, monitor.ReportFailure):
            self._say.warn(effect.message)
            self._tell(-1, effect.message)
        elif isinstance(effect, monitor.SendSignal):
            with Suppress(ProcessLookupError):  # a container that ended at once
                os.kill(effect.pid or self._runtime_pid, effect.signum)
        elif isinstance(effect, monitor.Finish):
            self.code = effect.code
            self._over = True

    def _read_pid(self) -> monitor.Event:
        try:
            with open(self._options.container_pidfile, "rb", buffering=0) as file:
                pid = int(file.read(PIDFILE_BYTES_MAX))
        except (OSError, ValueError) as error:
            return monitor.PidMissing(f"pid file: {error}")
        if linux.parent_of(pid) != self._watcher_pid:
            # Nobody's child here, such as a sandbox shared by containers: only its end can be seen.
            try:
                self.made.foreign_fd = os.pidfd_open(pid)
            except OSError as error:
                return monitor.PidMissing(f"process {pid} of the pid file: {error.strerror}")
        return monitor.PidKnown(pid)

    def _identified(self, pid: int) -> None:
        made = self.made
        made.pid = pid
        made.oom = oom.watch(pid)
        if self._error_fd >= 0:
            made.outputs[self._error_fd] = STDERR
        if self._options.timeout > 0:
            made.timeout_at_ns = time.monotonic_ns() + self._options.timeout * 1_000_000_000
        if self._options.api_version >= 1 or not self._options.exec:
            self._tell(pid, "")
        self._ready = True

    def _key(self) -> str:
        return sync.result_key(self._options.api_version, self._options.exec)

    def _tell(self, number: int, message: str) -> None:
        if self.made.sync_fd < 0:
            return
        try:
            sync.write_all(self.made.sync_fd, sync.sync_message(self._key(), number, message))
        except OSError:
            # The caller left. It will find the container by looking; a monitor works on without it.
            os.close(self.made.sync_fd)
            self.made.sync_fd = -1


def remove(path: str) -> None:
    """Take a name away; one that is not there is the usual case."""
    with Suppress(FileNotFoundError):
        os.unlink(path)


def _output_pipe() -> tuple[int, int]:
    """A pipe in which a container that writes much need not wait for each read; what is not in it takes no memory."""
    reader, writer = os.pipe()
    with Suppress(OSError):  # above the host's limit
        fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer


def _open_fifo(path: str) -> int:
    remove(path)
    os.mkfifo(path, 0o660)
    # Open for both, so that a writer that leaves is not a hang-up that polls as ready for ever.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
