"""One monitor as a machine without I/O: events in, effects out.

The life of a monitor: the runtime is called (SPAWNED), it ended well and its pid file is read (IDENTIFYING), the
process runs (RUNNING), is being killed because its time is over (KILLING), has ended and its last output is collected
(DRAINING), its exit is recorded while attached clients get the last of their bytes (EXITED), and the monitor is done
(GONE).

The timer can fire after the exit, a killed process can end after nobody waited any longer, a signal can arrive at any
time: each of these is a row of `TRANSITIONS`. `step` looks the row up first, so a missing row changes nothing. Two
states are left in the step that enters them, since the pid file is read and the pipes are emptied without waiting.

A signal that arrives before the container is there goes to the runtime, and is kept for the container: the runtime may
have ended already, or not care.

Times are nanoseconds of the monotonic clock and arrive in events. Exit codes follow the shell: the code itself, or 128
plus the number of the signal.
"""

from conmon.value import Value

SPAWNED, IDENTIFYING, RUNNING, KILLING, DRAINING, EXITED, GONE = (
    "spawned",
    "identifying",
    "running",
    "killing",
    "draining",
    "exited",
    "gone",
)

UNKNOWN_EXIT_CODE = 255  # never 0: what nobody saw is not a success
TIMED_OUT_CODE = -1  # what the API of conmon 2.1 reports for an exec that ran out of time
TIMED_OUT_MESSAGE = "command timed out"
KILL_WAIT_NS = 1_000_000_000  # a killed process may be stuck in the kernel; the answer does not wait longer
OOM_BLAME_NS = 10_000_000_000  # a SIGKILL is blamed on an OOM kill in its cgroup at most this long before it
SIGKILL = 9


class Event(Value):
    __slots__ = ()


class RuntimeSucceeded(Event):
    """`runtime create` or `exec` ended with 0."""


class RuntimeFailed(Event):
    """The runtime ended otherwise; `message` is what it wrote to stderr."""

    __slots__ = ("code", "message")

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message


class ChildReaped(Event):
    """A child of the monitor ended with a wait status."""

    __slots__ = ("pid", "status")

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.status = status


class PidKnown(Event):
    """The pid file was read and the process is there to be watched."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid


class PidMissing(Event):
    """The pid file cannot be read or names a process that this monitor cannot watch."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message


class ContainerExited(Event):
    """The watched process ended with this wait status; None when it is gone and nobody can say how."""

    __slots__ = ("status",)

    def __init__(self, status: int | None) -> None:
        self.status = status


class StrangerReaped(Event):
    """A process that is not the container ended: an orphan that a subreaper inherits."""

    __slots__ = ("pid", "status")

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.status = status


class TimeoutExpired(Event):
    """The time that `--timeout` allows is over."""


class KillWaitExpired(Event):
    """The killed process did not end in `KILL_WAIT_NS`."""


class OutputDrained(Event):
    """Everything that was in the pipes when the container ended is in the log."""

    __slots__ = ("at_ns", "oom_kills")

    def __init__(self, at_ns: int, oom_kills: int) -> None:
        self.at_ns = at_ns
        self.oom_kills = oom_kills


class OomSeen(Event):
    """The count of OOM kills in the container's memory cgroup, read at `at_ns`."""

    __slots__ = ("at_ns", "oom_kills")

    def __init__(self, at_ns: int, oom_kills: int) -> None:
        self.at_ns = at_ns
        self.oom_kills = oom_kills


class SignalReceived(Event):
    """The monitor was asked to end the container with this signal."""

    __slots__ = ("signum",)

    def __init__(self, signum: int) -> None:
        self.signum = signum


class ClientsServed(Event):
    """Attached clients have what they were owed, or were given up."""


class Effect(Value):
    __slots__ = ()


class ReadPid(Effect):
    """Read the pid file and check that the process is there: `PidKnown | PidMissing`."""


class ReportPid(Effect):
    """Tell the caller that the container is created, then watch process, output and memory cgroup."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid


class ReportFailure(Effect):
    """Tell the caller that there is no container, and why."""

    __slots__ = ("code", "message")

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message


class SendSignal(Effect):
    """Send a signal to the runtime (`pid` 0) or to the container; a process that is gone is no error."""

    __slots__ = ("pid", "signum")

    def __init__(self, pid: int, signum: int) -> None:
        self.pid = pid
        self.signum = signum


class KillGroup(Effect):
    """Kill the process group of the container, and arm `KillWaitExpired`."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid


class Drain(Effect):
    """Move what is left in the pipes to the log and close it: `OutputDrained`."""


class RecordExit(Effect):
    """Write the exit files, tell a waiting caller, then serve the clients that are behind: `ClientsServed`."""

    __slots__ = ("code", "message", "oom_killed", "reason")

    def __init__(self, code: int, reason: str, oom_killed: bool, message: str) -> None:
        self.code = code
        self.reason = reason
        self.oom_killed = oom_killed
        self.message = message


class Finish(Effect):
    """Run the exit command and end with this code."""

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


TRANSITIONS: dict[tuple[str, type[Event]], str] = {
    (SPAWNED, RuntimeSucceeded): IDENTIFYING,
    (SPAWNED, RuntimeFailed): GONE,
    (SPAWNED, SignalReceived): SPAWNED,
    (IDENTIFYING, PidKnown): RUNNING,
    (IDENTIFYING, PidMissing): GONE,
    (RUNNING, ContainerExited): DRAINING,
    (RUNNING, TimeoutExpired): KILLING,
    (RUNNING, StrangerReaped): RUNNING,
    (RUNNING, OomSeen): RUNNING,
    (RUNNING, SignalReceived): RUNNING,
    (KILLING, ContainerExited): DRAINING,
    (KILLING, KillWaitExpired): DRAINING,
    (KILLING, StrangerReaped): KILLING,
    (KILLING, OomSeen): KILLING,
    (KILLING, SignalReceived): KILLING,
    (DRAINING, OutputDrained): EXITED,
    (EXITED, ClientsServed): GONE,
    (EXITED, ContainerExited): EXITED,  # ended after we stopped waiting for it
    (EXITED, TimeoutExpired): EXITED,  # the timer lost the race
    (EXITED, KillWaitExpired): EXITED,
    (EXITED, StrangerReaped): EXITED,
    (EXITED, SignalReceived): EXITED,
}


class NoTransition(Exception):
    """The loop fed an event that cannot happen in this state: a bug of the monitor."""


def exit_code(status: int | None) -> int:
    """The code that a wait status stands for; `UNKNOWN_EXIT_CODE` when there is none."""
    if status is None:
        return UNKNOWN_EXIT_CODE
    if status & 0x7F == 0:
        return (status >> 8) & 0xFF
    return 128 + (status & 0x7F)


class Monitor:
    """The machine.

    Args:
        is_exec: The process is an exec in a running container, not the container itself.
    """

    __slots__ = ("_is_exec", "_kept", "_status", "_timed_out", "oom_at_ns", "oom_kills", "pid", "state")

    def __init__(self, *, is_exec: bool = False) -> None:
        self.state = SPAWNED
        self.pid = 0
        self._is_exec = is_exec
        self._kept: tuple[int, ...] = ()
        self._status: int | None = None
        self._timed_out = False
        self.oom_kills = 0
        self.oom_at_ns: int | None = None

    @classmethod
    def resume(cls, pid: int, *, is_exec: bool, oom_kills: int, oom_at_ns: int | None) -> "Monitor":
        """The machine of a container that runs, in a process that did not create it.

        Args:
            oom_kills: What was counted so far.
            oom_at_ns: And when that last changed.
        """
        machine = cls(is_exec=is_exec)
        machine.state = RUNNING
        machine.pid = pid
        machine.oom_kills = oom_kills
        machine.oom_at_ns = oom_at_ns
        return machine

    def step(self, event: Event) -> tuple[Effect, ...]:
        """Apply one event.

        Raises:
            NoTransition: The event cannot happen now; nothing has changed.
        """
        event = self._classify(event)
        target = TRANSITIONS.get((self.state, type(event)))
        if target is None:
            raise NoTransition(f"{event!r} in state {self.state}")
        source, self.state = self.state, target
        return self._effects(source, event)

    def _classify(self, event: Event) -> Event:
        """Turn what was seen into the event that has a row: which child it was decides, not the order of arrival."""
        if isinstance(event, ChildReaped):
            if self.pid and event.pid == self.pid:
                return ContainerExited(event.status)
            return StrangerReaped(event.pid, event.status)
        return event

    def _effects(self, source: str, event: Event) -> tuple[Effect, ...]:
        if isinstance(event, OomSeen):
            self._count_oom(event.oom_kills, event.at_ns)
            return ()
        if isinstance(event, SignalReceived):
            return self._forward(source, event.signum)
        if isinstance(event, PidKnown):
            self.pid = event.pid
            return (ReportPid(event.pid), *(SendSignal(event.pid, signum) for signum in self._kept))
        if isinstance(event, ContainerExited):
            if source in (RUNNING, KILLING):
                self._status = event.status
                return (Drain(),)
            return ()
        return self._ending(source, event)

    def _ending(self, source: str, event: Event) -> tuple[Effect, ...]:
        if isinstance(event, RuntimeSucceeded):
            return (ReadPid(),)
        if isinstance(event, RuntimeFailed):
            return (ReportFailure(event.code, event.message), Finish(1))
        if isinstance(event, PidMissing):
            return (ReportFailure(1, event.message), Finish(1))
        if isinstance(event, TimeoutExpired) and source is RUNNING:
            self._timed_out = True
            return (KillGroup(self.pid),)
        if isinstance(event, KillWaitExpired) and source is KILLING:
            return (Drain(),)
        if isinstance(event, OutputDrained):
            self._count_oom(event.oom_kills, event.at_ns)
            return (self._verdict(event.at_ns),)
        if isinstance(event, ClientsServed):
            return (Finish(self._code()),)
        return ()

    def _forward(self, source: str, signum: int) -> tuple[Effect, ...]:
        if source is SPAWNED:
            self._kept = (*(kept for kept in self._kept if kept != signum), signum)
            return (SendSignal(0, signum),)
        if source in (RUNNING, KILLING):
            return (SendSignal(self.pid, signum),)
        return ()

    def _count_oom(self, oom_kills: int, at_ns: int) -> None:
        if oom_kills > self.oom_kills:
            self.oom_kills = oom_kills
            self.oom_at_ns = at_ns

    def _code(self) -> int:
        return TIMED_OUT_CODE if self._timed_out else exit_code(self._status)

    def _verdict(self, at_ns: int) -> RecordExit:
        """What ended the process. A counter of the cgroup alone blames old kills; the last signal has to fit too."""
        killed = self._status is not None and self._status & 0x7F == SIGKILL
        recent = self.oom_at_ns is not None and at_ns - self.oom_at_ns <= OOM_BLAME_NS
        oom_killed = killed and recent and not self._timed_out and not self._is_exec
        if self._timed_out:
            return RecordExit(TIMED_OUT_CODE, "TimedOut", False, TIMED_OUT_MESSAGE)
        code = exit_code(self._status)
        if oom_killed:
            reason = "OOMKilled"
        elif self._status is None:
            reason = "Unknown"
        else:
            reason = "Error" if code else "Completed"
        return RecordExit(code, reason, oom_killed, "")
