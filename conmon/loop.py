"""The loop of one monitor: it waits with epoll, feeds `Monitor`, and carries out what that orders.

Every wake-up has a cause: a descriptor is ready, a signal arrived, or one of the few timers that exist only while they
are needed (a held line, a slow client, `--timeout`). A monitor whose container is quiet sleeps.
"""

from __future__ import annotations

import fcntl
import os
import select
import time

from conmon import attach, linux, monitor, oom, runtime, sync
from conmon.control import ControlLines, ReopenLogs, Resize
from conmon.diagnostics import Diagnostics
from conmon.journald import JournalLog
from conmon.logs import STDERR, STDOUT, FileLog
from conmon.low import (
    SIGCHLD,
    SIGINT,
    SIGKILL,
    SIGQUIT,
    SIGTERM,
    SIGUSR1,
    SOCK_SEQPACKET,
    Suppress,
    default_signal,
    handle_signal,
    set_wakeup_fd,
)
from conmon.notify import NotifyRelay
from conmon.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 65536
SIGNAL_BYTES = 64
PIDFILE_BYTES_MAX = 32
TERMINAL_DRAIN_BYTES_MAX = 1024 * 1024
HANGUP_WAIT_NS = 100_000_000
DROPPED_NOTE_NS = 1_000_000_000
READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
FORWARDED = (SIGTERM, SIGINT, SIGQUIT)


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


def _heard(signum: int, frame: object) -> None:
    """The number is in the wake-up pipe already; the handler exists so that it gets there."""


class Loop:
    """One monitor at work.

    Making one opens everything that it needs; `run` then does the work, in the same process or in one forked from it.
    What is made before a fork costs memory once instead of in each monitor.

    Args:
        options: Checked by `options.check`.
        inherited: What the caller passed.
        environment: For the runtime and the exit command.
        logs: Open log drivers.
        oom_score: The OOM score adjustment that the runtime gets, as text; empty to leave it.
        passthrough: The runtime gets the monitor's own stdio, and there is nothing to log or attach to.

    Raises:
        OSError: The bundle or the socket folder does not take what has to be in it.
    """

    def __init__(
        self,
        options: Options,
        inherited: Inherited,
        environment: dict[str, str],
        logs: tuple[FileLog | JournalLog, ...],
        *,
        passthrough: bool,
        oom_score: bytes,
    ) -> None:
        self._options = options
        self._inherited = inherited
        self._environment = environment
        self._logs = logs
        self._passthrough = passthrough
        self._oom_score = oom_score
        self._say = Diagnostics(options.cid, level=options.log_level, syslog=options.syslog)
        self._machine = monitor.Monitor(is_exec=options.exec)
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: dict[Callable[[], None], int] = {}
        self._outputs: dict[int, int] = {}
        self._paused = False
        self._attach: attach.Attach | None = None
        self._notify: NotifyRelay | None = None
        self._console: runtime.ConsoleSocket | None = None
        self._oom: oom.OomWatch | None = None
        self._terminal_fd = -1
        self._keep_fds: list[int] = []
        self._error_fd = -1
        self._wake_fd = -1
        self._runtime_pid = 0
        self._link = ""
        self._window: Resize | None = None
        self._noted_ns = 0
        self._noted_bytes = 0
        self._code = 0
        self._over = False
        self._theirs: tuple[int, ...] = ()
        try:
            self._child = self._prepare()
        except OSError:
            self.release()
            raise

    def run(self) -> int:
        """Watch one container from its creation to its end; the code for the monitor's own exit."""
        self._begin()
        while not self._over:
            self._turn()
        return self._code

    def rehearse(self, child: int) -> None:
        """Do the whole work around a process that is a child already, and leave no trace in this process."""
        self._begin()
        while not self._over:
            if self._machine.state is monitor.RUNNING:
                self._signal(child, SIGKILL)
            self._turn()
        self._forget_signals()
        self.release()

    def release(self) -> None:
        """Close every descriptor and leave files and names alone: another process has them, or nobody."""
        if self._console is not None:
            del self._handlers[self._console.fd]
            self._console.detach()
        if self._notify is not None:
            del self._handlers[self._notify.fd]
            self._notify.detach()
        for fd in {*self._handlers, *self._outputs, *self._keep_fds, *self._theirs}:
            os.close(fd)
        self._handlers.clear()
        self._outputs.clear()
        self._keep_fds.clear()
        self._theirs = ()
        if self._attach is not None:
            self._attach.release()
        for log in self._logs:
            log.close()
        self._poll.close()

    # Setting up

    def _begin(self) -> None:
        set_wakeup_fd(self._wake_fd)
        for number in (SIGCHLD, SIGUSR1, *FORWARDED):
            handle_signal(number, _heard)
        if self._options.exec_attach and self._inherited.attach_fd >= 0:
            sync.write_all(self._inherited.attach_fd, sync.sync_message(self._key(), 0))
        self._runtime_pid = self._child.spawn()
        for fd in self._theirs:
            os.close(fd)
        self._theirs = ()
        if self._inherited.start_fd >= 0:
            os.close(self._inherited.start_fd)
        if self._passthrough:
            for target in range(3):
                os.dup2(stdio_null(), target)

    def _forget_signals(self) -> None:
        set_wakeup_fd(-1)
        for number in (SIGCHLD, SIGUSR1, *FORWARDED):
            default_signal(number)

    def _prepare(self) -> runtime.Child:
        options = self._options
        reader, self._wake_fd = os.pipe()
        self._keep_fds.append(self._wake_fd)
        os.set_blocking(reader, False)
        os.set_blocking(self._wake_fd, False)
        self._watch(reader, self._on_signals)
        if options.sdnotify_socket:
            self._notify = NotifyRelay(options.bundle, options.sdnotify_socket)
            self._watch(self._notify.fd, self._notify.relay)
        stdio, input_fd = self._make_stdio()
        if options.bundle and not self._passthrough:
            self._open_bundle()
        if self._attach is not None and input_fd >= 0:
            self._attach.set_stdin(input_fd)
        elif input_fd >= 0:
            self._keep_fds.append(input_fd)
        elif self._attach is not None and not options.terminal:
            self._attach.close_stdin()
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
        if self._passthrough:
            return (-1, -1, -1), -1
        null = stdio_null()
        error_read, error_write = os.pipe()
        self._error_fd = error_read
        self._keep_fds.append(error_read)
        if self._options.terminal:
            self._console = runtime.ConsoleSocket("/tmp")
            self._watch(self._console.fd, self._on_console)
            self._theirs = (error_write, null)
            return (null, null, error_write), -1
        out_read, out_write = os.pipe()
        self._outputs[out_read] = STDOUT
        in_read = in_write = -1
        if self._options.stdin:
            in_read, in_write = os.pipe()
            os.set_blocking(in_write, False)
        self._theirs = (error_write, out_write, null) + ((in_read,) if in_read >= 0 else ())
        return (in_read if in_read >= 0 else null, out_write, error_write), in_write

    def _open_bundle(self) -> None:
        options = self._options
        folder = options.bundle
        if not options.full_attach:
            folder = self._link = f"{options.socket_dir_path}/{options.cuuid}"
            if len(os.fsencode(folder)) == 107:
                folder = self._link = folder[:-1]
            _remove(self._link)
            os.symlink(options.bundle, self._link)
        server = attach.listen(folder, "attach", SOCK_SEQPACKET, 0o700)
        self._attach = attach.Attach(
            self._poll,
            server,
            leave_stdin_open=options.leave_stdin_open or not options.stdin,
            patient=options.exec or not self._logs,
        )
        for name, typed in (("ctl", True), ("winsz", False)):
            self._watch(self._open_fifo(f"{options.bundle}/{name}"), self._on_control(ControlLines(typed=typed)))

    def _open_fifo(self, path: str) -> int:
        _remove(path)
        os.mkfifo(path, 0o660)
        # Open for both, so that a writer that leaves is not a hang-up that polls as ready for ever.
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    # Waiting

    def _watch(self, fd: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _turn(self) -> None:
        for fd, events in self._poll.poll(self._wait_s()):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(fd)
            elif self._attach is not None:
                self._on_attach(self._attach, fd, events)
            if self._over:
                return
        self._run_timers()
        self._balance()

    def _wait_s(self) -> float:
        deadlines = list(self._timers.values())
        deadlines += [log.deadline_ns for log in self._logs if log.deadline_ns]
        if self._attach is not None and self._attach.clients:
            stall_ns = self._attach.stall_deadline_ns(ending=self._machine.state is monitor.EXITED)
            if stall_ns:
                deadlines.append(stall_ns)
        if not deadlines:
            return -1
        return max(min(deadlines) - time.monotonic_ns(), 0) / 1e9

    def _run_timers(self) -> None:
        if self._timers or self._logs or (self._attach is not None and self._attach.clients):
            now_ns = time.monotonic_ns()
            for fire, at_ns in tuple(self._timers.items()):
                if at_ns <= now_ns:
                    del self._timers[fire]
                    fire()
            for log in self._logs:
                if log.deadline_ns and log.deadline_ns <= now_ns and self._machine.state is not monitor.EXITED:
                    log.expire()
            if self._attach is not None:
                stall_ns = self._attach.stall_deadline_ns(ending=self._machine.state is monitor.EXITED)
                if stall_ns and stall_ns <= now_ns:
                    self._attach.drop_stalled(now_ns)

    def _balance(self) -> None:
        """Read output only while the clients keep up; end when the last client has what it was owed."""
        if self._attach is None:
            return
        if self._attach.behind != self._paused and self._machine.state in (monitor.RUNNING, monitor.KILLING):
            self._paused = not self._paused
            for fd in self._outputs:
                if self._paused:
                    self._unwatch(fd)
                else:
                    self._watch(fd, self._on_output)
        if self._machine.state is monitor.EXITED and not self._attach.owing:
            self._feed(monitor.ClientsServed())

    # What can happen

    def _on_signals(self, fd: int) -> None:
        try:
            numbers = os.read(fd, SIGNAL_BYTES)
        except BlockingIOError:
            return
        for number in numbers:
            if number in FORWARDED:
                self._feed(monitor.SignalReceived(number))
        self._reap()

    def _reap(self) -> None:
        while not self._over:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._runtime_pid:
                self._runtime_pid = 0
                self._on_runtime_end(monitor.exit_code(status))
            else:
                self._feed(monitor.ChildReaped(pid, status))

    def _on_runtime_end(self, code: int) -> None:
        if self._console is not None:
            # A runtime that has ended has sent its terminal already, or never will.
            self._take_console(self._console)
        if code == 0 and self._options.terminal and self._terminal_fd < 0 and not self._passthrough:
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

    def _on_console(self, fd: int) -> None:
        if self._console is not None:
            self._take_console(self._console)

    def _take_console(self, console: runtime.ConsoleSocket) -> None:
        self._unwatch(console.fd)
        self._console = None
        console.set_nonblocking()
        try:
            master = console.accept()
        except OSError as error:
            self._say.warn(f"console socket: {error}")
            console.close()
            return
        os.set_blocking(master, False)
        self._terminal_fd = master
        peer = runtime.prepare_terminal(master)
        if peer >= 0:
            self._keep_fds.append(peer)
        self._outputs[master] = STDOUT
        if self._window is not None:
            runtime.resize(master, self._window.rows, self._window.columns)
        if self._attach is not None:
            self._attach.set_stdin(os.dup(master))

    def _on_control(self, lines: ControlLines) -> Callable[[int], None]:
        def handle(fd: int) -> None:
            for order in lines.feed(os.read(fd, READ_BYTES)):
                if isinstance(order, ReopenLogs):
                    for log in self._logs:
                        log.reopen()
                elif self._terminal_fd >= 0:
                    runtime.resize(self._terminal_fd, order.rows, order.columns)
                else:
                    self._window = order

        return handle

    def _on_attach(self, clients: attach.Attach, fd: int, events: int) -> None:
        if fd == clients.fd:
            clients.accept()
        elif fd == clients.stdin_fd:
            clients.feed_stdin()
        else:
            clients.handle(fd, events)

    def _on_output(self, fd: int) -> None:
        if self._move(fd, READ_BYTES) or fd not in self._outputs:
            return
        if fd == self._terminal_fd:
            # Nobody has the terminal open now, which may change: look again later instead of at once.
            self._unwatch(fd)
            self._timers[self._watch_terminal] = time.monotonic_ns() + HANGUP_WAIT_NS
        else:
            self._unwatch(fd)
            del self._outputs[fd]
            os.close(fd)

    def _watch_terminal(self) -> None:
        if self._terminal_fd in self._outputs and self._terminal_fd not in self._handlers and not self._paused:
            self._watch(self._terminal_fd, self._on_output)

    def _move(self, fd: int, limit: int) -> int:
        """Take output to the logs and the clients; how much, 0 at the end."""
        try:
            data = os.read(fd, limit)
        except BlockingIOError:
            return -1
        except OSError:
            return 0
        if not data:
            return 0
        stream = self._outputs[fd]
        for log in self._logs:
            log.write(stream, data)
            if log.dropped_bytes:
                self._note_dropped()
        if self._attach is not None and self._attach.clients:
            self._attach.broadcast(stream, data)
        return len(data)

    def _dropped_bytes(self) -> int:
        return sum(log.dropped_bytes for log in self._logs)

    def _note_dropped(self) -> None:
        """Show the loss in the bundle, at most once a second."""
        now_ns = time.monotonic_ns()
        dropped = self._dropped_bytes()
        if dropped == self._noted_bytes or now_ns - self._noted_ns < DROPPED_NOTE_NS:
            return
        self._noted_ns, self._noted_bytes = now_ns, dropped
        self._write(f"{self._options.bundle or '.'}/log-dropped", b"%d\n" % dropped)

    def _on_oom(self, fd: int) -> None:
        if self._oom is not None:
            self._feed(monitor.OomSeen(time.monotonic_ns(), self._oom.read()))

    # Carrying out

    def _feed(self, event: monitor.Event) -> None:
        for effect in self._machine.step(event):
            self._carry_out(effect)

    def _carry_out(self, effect: monitor.Effect) -> None:
        if isinstance(effect, monitor.ReadPid):
            self._feed(self._read_pid())
        elif isinstance(effect, monitor.ReportPid):
            self._start_watching(effect.pid)
        elif isinstance(effect, monitor.ReportFailure):
            self._say.warn(effect.message)
            self._tell(-1, effect.message)
        elif isinstance(effect, monitor.SendSignal):
            self._signal(effect.pid or self._runtime_pid, effect.signum)
        elif isinstance(effect, monitor.KillGroup):
            self._kill_group(effect.pid)
        elif isinstance(effect, monitor.Drain):
            self._drain()
        elif isinstance(effect, monitor.RecordExit):
            self._record(effect)
        elif isinstance(effect, monitor.Finish):
            self._finish(effect.code)

    def _read_pid(self) -> monitor.Event:
        try:
            with open(self._options.container_pidfile, "rb", buffering=0) as file:
                pid = int(file.read(PIDFILE_BYTES_MAX))
        except (OSError, ValueError) as error:
            return monitor.PidMissing(f"pid file: {error}")
        try:
            # A child's pid is not given to another process before we reap it.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            if not self._machine.knows_exit_of(pid):
                return self._watch_foreign(pid)
        return monitor.PidKnown(pid)

    def _watch_foreign(self, pid: int) -> monitor.Event:
        """A process that is nobody's child here, such as a sandbox shared by containers: only its end can be seen."""
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            return monitor.PidMissing(f"process {pid} of the pid file: {error.strerror}")

        def ended(fd: int) -> None:
            self._unwatch(fd)
            os.close(fd)
            self._feed(monitor.ContainerExited(None))

        self._watch(fd, ended)
        return monitor.PidKnown(pid)

    def _start_watching(self, pid: int) -> None:
        if self._options.api_version >= 1 or not self._options.exec:
            self._tell(pid, "")
        self._oom = oom.watch(pid)
        if self._oom is not None:
            self._watch(self._oom.fd, self._on_oom, self._oom.events)
        if self._error_fd >= 0:
            self._outputs[self._error_fd] = STDERR
            self._keep_fds.remove(self._error_fd)
        for fd in self._outputs:
            self._watch(fd, self._on_output)
        if self._options.timeout > 0:
            self._timers[self._on_timeout] = time.monotonic_ns() + self._options.timeout * 1_000_000_000

    def _on_timeout(self) -> None:
        self._feed(monitor.TimeoutExpired())

    def _on_kill_wait(self) -> None:
        self._feed(monitor.KillWaitExpired())

    def _signal(self, pid: int, signum: int) -> None:
        if pid > 0:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                return

    def _kill_group(self, pid: int) -> None:
        with Suppress(ProcessLookupError):  # it may have ended by itself: then its exit is on the way
            group = os.getpgid(pid)
            if group > 1 and group != os.getpgid(0):
                os.killpg(group, SIGKILL)
            else:
                os.kill(pid, SIGKILL)
        self._timers[self._on_kill_wait] = time.monotonic_ns() + monitor.KILL_WAIT_NS

    def _drain(self) -> None:
        """Read what was in the pipes when the process ended; more than a pipe holds was written later by another."""
        for fd in tuple(self._outputs):
            self._unwatch(fd)
            os.set_blocking(fd, False)
            left = TERMINAL_DRAIN_BYTES_MAX
            if fd != self._terminal_fd:
                left = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            while left > 0:
                moved = self._move(fd, min(left, READ_BYTES))
                if moved <= 0:
                    break
                left -= moved
            os.close(fd)
        self._outputs.clear()
        self._terminal_fd = -1
        for log in self._logs:
            log.finish(sync=not self._options.no_sync_log)
        kills = self._oom.read() if self._oom is not None else 0
        if self._oom is not None:
            self._unwatch(self._oom.fd)
            self._oom.close()
            self._oom = None
        self._feed(monitor.OutputDrained(time.monotonic_ns(), kills))

    def _record(self, exit: monitor.RecordExit) -> None:
        options = self._options
        for fd in self._inherited.held_fds:
            os.close(fd)
        plain = b"%d" % exit.code
        if exit.oom_killed:
            self._write(f"{options.bundle or '.'}/oom", b"")
        if options.persist_dir:
            if exit.oom_killed:
                self._write(f"{options.persist_dir}/oom", b"")
            record = sync.exit_record(
                code=exit.code,
                reason=exit.reason,
                finished_at_ns=time.time_ns(),
                oom_killed=exit.oom_killed,
                pid=self._machine.pid,
                dropped_bytes=self._dropped_bytes(),
            )
            self._write(f"{options.persist_dir}/exit.json", record)
            self._write(f"{options.persist_dir}/exit", plain)
        if self._dropped_bytes() != self._noted_bytes:
            self._noted_ns = 0
            self._note_dropped()
        if options.exit_dir:
            self._write(f"{options.exit_dir}/{options.cid}", plain)
        if options.exec:
            self._tell(exit.code, exit.message)
        if self._attach is None:
            self._feed(monitor.ClientsServed())

    def _write(self, path: str, data: bytes) -> None:
        try:
            sync.write_file(path, data)
        except OSError as error:
            self._say.warn(f"{path}: {error.strerror}")

    def _key(self) -> str:
        return sync.result_key(self._options.api_version, self._options.exec)

    def _tell(self, number: int, message: str) -> None:
        if self._inherited.sync_fd < 0:
            return
        try:
            sync.write_all(self._inherited.sync_fd, sync.sync_message(self._key(), number, message))
        except OSError:
            # The caller left. It will find the container by looking; a monitor works on without it.
            os.close(self._inherited.sync_fd)
            self._inherited.sync_fd = -1

    def _finish(self, code: int) -> None:
        self._code = code
        self._over = True
        if self._inherited.sync_fd >= 0:
            os.close(self._inherited.sync_fd)
            self._inherited.sync_fd = -1
        if self._console is not None:
            self._console.close()
        if self._attach is not None:
            self._attach.close()
            for path in (f"{self._options.bundle}/attach", self._link):
                if path:
                    _remove(path)
        if self._options.exit_command:
            self._run_exit_command()

    def _run_exit_command(self) -> None:
        """Run the exit command as a child and wait for it, and for what the runtime may have left to reap."""
        self._forget_signals()
        linux.set_subreaper(False)
        child = os.fork()
        if child == 0:
            try:
                time.sleep(self._options.exit_delay)
                words = [self._options.exit_command, *self._options.exit_command_arg]
                os.execve(self._options.exit_command, words, self._environment)
            finally:
                os._exit(1)
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                return
            if pid == child and status:
                self._code = monitor.exit_code(status)


def _remove(path: str) -> None:
    """Take a name away; one that is not there is the usual case."""
    with Suppress(FileNotFoundError):
        os.unlink(path)


def stdio_null() -> int:
    """A descriptor of /dev/null."""
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
