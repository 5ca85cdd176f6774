"""Watches one container to its end: waits with epoll, feeds `Monitor`, and carries out what that orders.

Every wake-up has a cause: a descriptor is ready, a signal arrived, or one of the few timers that exist only while they
are needed (a held line, a slow client, `--timeout`). A monitor whose container is quiet sleeps; one that works for a
watcher ends when it has been quiet for `QUIET_S`, and is made again with the next event.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from sys import byteorder

from conmon import attach, linux, monitor, oom, runtime, sync
from conmon.control import ControlLines, ReopenLogs
from conmon.create import remove
from conmon.diagnostics import Diagnostics
from conmon.ending import run_exit_command, write_exit
from conmon.handover import Handover
from conmon.log_set import Logs
from conmon.low import SIGKILL, Suppress, socket
from conmon.notify import NotifyRelay
from conmon.signals import FORWARDED, SIGNAL_BYTES, catch_signals, forget_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 65536
# A read of so much says that the container writes a lot and that we are faster: so its next writes are left to gather
# for a moment, instead of waking us, at the writer's cost, one by one.
GATHER_BYTES_MIN, GATHER_BYTES_MAX = 4096, 49152
GATHER_S = 0.0001
TERMINAL_DRAIN_BYTES_MAX = 1024 * 1024
HANGUP_WAIT_NS = 100_000_000
QUIET_S = 3.0  # long enough that a container that logs each second does not have a process made for each line
LOST_WAIT_NS = 1_000_000_000
EXIT_BYTES = 8  # of a child in the pipe of exits
EXITS_MAX = 64


class Loop:
    """One watcher at work.

    Args:
        given: The container, and every descriptor that belongs to it.
    """

    def __init__(self, given: Handover) -> None:
        options = given.options
        self._given = given
        self._options = options
        self._say = Diagnostics(options.cid, level=options.log_level, syslog=options.syslog)
        self._logs = Logs(given, self._say)
        self._machine = monitor.Monitor.resume(
            given.pid, is_exec=options.exec, oom_kills=given.oom_kills, oom_at_ns=given.oom_at_ns
        )
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: dict[Callable[[], None], int] = {}
        self._outputs = given.outputs
        self._paused = False
        self._attach: attach.Attach | None = None
        self._notify: NotifyRelay | None = None
        self._oom: oom.OomWatch | None = None
        self._terminal_fd = given.terminal_fd
        self._control = (ControlLines(typed=True), ControlLines(typed=False))
        self._code = 0
        self._over = False
        self.resting = False
        self._watch_all()

    def run(self) -> int:
        """Watch the container to its end, or until it rests; the code for the monitor's own exit."""
        catch_signals(self._given.wake[1])
        self._reap()  # what ended before this began to listen
        if self._given.exits[0] >= 0 and self._given.foreign_fd < 0 and not linux.parent_of(self._given.pid):
            # Its status is on the way from the watcher, or was lost with one like us that was killed.
            self._timers[self._on_lost] = time.monotonic_ns() + LOST_WAIT_NS
        if not self._over:
            self._balance()
        while not self._over:
            self._turn()
        return self._code

    def hand_over(self) -> Handover:
        """What another process with the same descriptors needs to go on; this one is closed."""
        given = self._given
        self._logs.hand_over(given)
        given.oom_kills, given.oom_at_ns = self._machine.oom_kills, self._machine.oom_at_ns
        if self._attach is not None:
            given.stdin_fd = self._attach.stdin_fd
            self._attach.leave()
        if self._notify is not None:
            self._notify.leave()
        self._poll.close()
        return given

    def rehearse(self) -> None:
        """Do the whole work around a process that sleeps, and leave no trace in this process."""
        os.kill(self._machine.pid, SIGKILL)
        self.run()
        forget_signals()
        self.release()

    def release(self) -> None:
        """Close every descriptor and leave files and names alone."""
        if self._notify is not None:
            del self._handlers[self._notify.fd]
            self._notify.close()
        for fd in {*self._handlers, *self._outputs, *self._given.keep_fds, self._given.wake[1]}:
            os.close(fd)
        self._handlers.clear()
        self._outputs.clear()
        self._logs.close(sync=False)
        self._poll.close()

    def _watch_all(self) -> None:
        given, options = self._given, self._options
        self._watch(given.wake[0], self._on_signals)
        if given.exits[0] >= 0:
            self._watch(given.exits[0], self._on_exits)
        if given.notify_fd >= 0:
            self._notify = NotifyRelay(given.notify_fd, options.sdnotify_socket)
            self._watch(self._notify.fd, self._notify.relay)
        if given.attach_fd >= 0:
            self._attach = attach.Attach(
                self._poll,
                socket(fileno=given.attach_fd),
                leave_stdin_open=options.leave_stdin_open or not options.stdin,
                patient=options.exec or not self._logs,
            )
            if given.stdin_fd >= 0:
                self._attach.set_stdin(given.stdin_fd)
            else:
                self._attach.close_stdin()
            for fd, lines in zip((given.control_fd, given.window_fd), self._control, strict=True):
                self._watch(fd, self._on_control(lines))
        if given.oom is not None:
            self._oom = oom.OomWatch(*given.oom)
            self._watch(self._oom.fd, self._on_oom, self._oom.events)
        if given.foreign_fd >= 0:
            self._watch(given.foreign_fd, self._on_foreign_end)
        for fd in self._outputs:
            self._watch(fd, self._on_output)
        if given.timeout_at_ns:
            self._timers[self._on_timeout] = given.timeout_at_ns

    # Waiting

    def _watch(self, fd: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _turn(self) -> None:
        wait_s = self._wait_s()
        resting = wait_s < 0 and self._may_rest()
        found = self._poll.poll(QUIET_S if resting else wait_s)
        if resting and not found:
            self.resting = self._over = True
            return
        for fd, events in found:
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
        deadlines += self._logs.deadlines_ns()
        if self._attach is not None and (attach_ns := self._attach.deadline_ns()):
            deadlines.append(attach_ns)
        if not deadlines:
            return -1
        return max(min(deadlines) - time.monotonic_ns(), 0) / 1e9

    def _may_rest(self) -> bool:
        """Whether this works for a watcher, and all that it knows is in its `Handover`."""
        return (
            self._given.exits[0] >= 0
            and self._machine.state is monitor.RUNNING
            and not self._timers
            and self._logs.resting
            and all(lines.resting for lines in self._control)
            and (self._attach is None or self._attach.resting)
        )

    def _run_timers(self) -> None:
        now_ns = time.monotonic_ns()
        for fire, at_ns in tuple(self._timers.items()):
            if at_ns <= now_ns:
                del self._timers[fire]
                fire()
        if self._machine.state is not monitor.EXITED:
            self._logs.expire(now_ns)
        if self._attach is not None and 0 < self._attach.deadline_ns() <= now_ns:
            self._attach.expire(now_ns)

    def _balance(self) -> None:
        """Read output only while the clients keep up; end when the last client has what it was owed."""
        if self._attach is None:
            return
        if self._attach.holding != self._paused and self._machine.state in (monitor.RUNNING, monitor.KILLING):
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

    def _on_exits(self, fd: int) -> None:
        """The watcher is the parent of the container: it reaps, and tells."""
        with Suppress(BlockingIOError):
            told = os.read(fd, EXIT_BYTES * EXITS_MAX)
            for at in range(0, len(told), EXIT_BYTES):
                pid, status = (int.from_bytes(told[begin : begin + 4], byteorder) for begin in (at, at + 4))
                if not self._over:
                    self._feed(monitor.ChildReaped(pid, status))

    def _reap(self) -> None:
        if self._given.exits[0] >= 0:
            return
        while not self._over:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._feed(monitor.ChildReaped(pid, status))

    def _on_foreign_end(self, fd: int) -> None:
        """The end of a process that is not our child can be seen, its status cannot."""
        self._unwatch(fd)
        os.close(fd)
        self._feed(monitor.ContainerExited(None))

    def _on_control(self, lines: ControlLines) -> Callable[[int], None]:
        def handle(fd: int) -> None:
            for order in lines.feed(os.read(fd, READ_BYTES)):
                if isinstance(order, ReopenLogs):
                    self._logs.reopen()
                elif self._terminal_fd >= 0:
                    runtime.resize(self._terminal_fd, order.rows, order.columns)

        return handle

    def _on_attach(self, clients: attach.Attach, fd: int, events: int) -> None:
        if fd == clients.fd:
            clients.accept()
        elif fd == clients.stdin_fd:
            clients.feed_stdin()
        else:
            clients.handle(fd, events)

    def _on_output(self, fd: int) -> None:
        if moved := self._move(fd, READ_BYTES):
            if GATHER_BYTES_MIN <= moved < GATHER_BYTES_MAX:
                time.sleep(GATHER_S)
            return
        if fd not in self._outputs:
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
        self._logs.write(stream, data)
        if self._attach is not None and self._attach.clients:
            self._attach.broadcast(stream, data)
        return len(data)

    def _on_oom(self, fd: int) -> None:
        kills = self._oom.read() if self._oom is not None else None
        if kills is None:
            self._forget_oom()
        else:
            self._feed(monitor.OomSeen(time.monotonic_ns(), kills))

    def _forget_oom(self) -> None:
        if self._oom is not None:
            self._unwatch(self._oom.fd)
            self._oom.close()
            self._oom = self._given.oom = None

    # Carrying out

    def _feed(self, event: monitor.Event) -> None:
        for effect in self._machine.step(event):
            self._carry_out(effect)

    def _carry_out(self, effect: monitor.Effect) -> None:
        if isinstance(effect, monitor.SendSignal):
            self._signal(effect.pid, effect.signum)
        elif isinstance(effect, monitor.KillGroup):
            self._kill_group(effect.pid)
        elif isinstance(effect, monitor.Drain):
            self._drain()
        elif isinstance(effect, monitor.RecordExit):
            self._record(effect)
        elif isinstance(effect, monitor.Finish):
            self._finish(effect.code)

    def _on_lost(self) -> None:
        self._feed(monitor.ContainerExited(None))

    def _on_timeout(self) -> None:
        self._feed(monitor.TimeoutExpired())

    def _on_kill_wait(self) -> None:
        self._feed(monitor.KillWaitExpired())

    def _signal(self, pid: int, signum: int) -> None:
        with Suppress(ProcessLookupError):  # it may have ended by itself: then its exit is on the way
            os.kill(pid, signum)

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
        if self._attach is not None:
            self._attach.accept_waiting()
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
        self._logs.finish()
        kills = self._oom.read() if self._oom is not None else None
        self._forget_oom()
        self._feed(monitor.OutputDrained(time.monotonic_ns(), kills or 0))

    def _record(self, exit: monitor.RecordExit) -> None:
        options = self._options
        for fd in self._given.held_fds:
            os.close(fd)
        self._logs.note_dropped(at_last=True)
        write_exit(options, exit, self._machine.pid, self._logs.dropped_bytes, self._say)
        if options.exec:
            self._tell(exit.code, exit.message)
        if self._attach is None:
            self._feed(monitor.ClientsServed())
        else:
            self._attach.end()

    def _tell(self, number: int, message: str) -> None:
        if self._given.sync_fd < 0:
            return
        key = sync.result_key(self._options.api_version, self._options.exec)
        try:
            sync.write_all(self._given.sync_fd, sync.sync_message(key, number, message))
        except OSError:
            # The caller left. It will find the container by looking; a monitor works on without it.
            os.close(self._given.sync_fd)
            self._given.sync_fd = -1

    def _finish(self, code: int) -> None:
        self._code = code
        self._over = True
        # Not sooner: whoever waits for the exit need not wait for the disk.
        self._logs.close(sync=not self._options.no_sync_log)
        if self._given.sync_fd >= 0:
            os.close(self._given.sync_fd)
            self._given.sync_fd = -1
        if self._attach is not None:
            self._attach.close()
            for path in (f"{self._options.bundle}/attach", self._given.link):
                if path:
                    remove(path)
        run_exit_command(self._options, self._given.environment)
