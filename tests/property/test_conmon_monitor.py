"""The monitor's machine: every state and event is a row or a refusal, and no order of events loses an exit."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conmon import monitor
from conmon.monitor import TRANSITIONS, Monitor, NoTransition

STATES = ("spawned", "identifying", "running", "killing", "draining", "exited", "gone")
EVENTS = tuple(
    kind
    for _, kind in inspect.getmembers(monitor, inspect.isclass)
    if issubclass(kind, monitor.Event) and kind not in (monitor.Event, monitor.ChildReaped)
)
PID, STRANGER = 100, 200


def sample(kind: type[monitor.Event]) -> monitor.Event:
    values = {"code": 1, "message": "m", "pid": PID, "status": 0, "at_ns": 1, "oom_kills": 0, "signum": 15}
    names = () if kind.__init__ is object.__init__ else inspect.signature(kind.__init__).parameters
    return kind(**{name: values[name] for name in names if name in values})


def at(state: str) -> Monitor:
    """A machine that got to a state by its own rows."""
    path: dict[str, tuple[monitor.Event, ...]] = {
        "spawned": (),
        "identifying": (monitor.RuntimeSucceeded(),),
        "running": (monitor.RuntimeSucceeded(), monitor.PidKnown(PID)),
    }
    path["killing"] = (*path["running"], monitor.TimeoutExpired())
    path["draining"] = (*path["running"], monitor.ChildReaped(PID, 0))
    path["exited"] = (*path["draining"], monitor.OutputDrained(1, 0))
    path["gone"] = (*path["exited"], monitor.ClientsServed())
    machine = Monitor()
    for event in path[state]:
        machine.step(event)
    assert machine.state == state
    return machine


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", EVENTS)
def test_every_state_and_event_is_a_row_or_a_refusal(state: str, kind: type[monitor.Event]) -> None:
    """A pair that nobody thought of must not change anything."""
    machine = at(state)
    target = TRANSITIONS.get((state, kind))
    if target is None:
        with pytest.raises(NoTransition):
            machine.step(sample(kind))
        assert machine.state == state
    else:
        machine.step(sample(kind))
        assert machine.state == target


def test_gone_is_the_end_and_everything_leads_there() -> None:
    """No state is a trap, and nothing happens after the last one."""
    assert not [row for row in TRANSITIONS if row[0] == "gone"]
    reached = {"gone"}
    while True:
        more = {source for (source, _), target in TRANSITIONS.items() if target in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(STATES)


@given(st.lists(st.sampled_from((2, 3, 15)), max_size=8))
def test_signals_during_creation_reach_the_runtime_and_the_container(signals: list[int]) -> None:
    """The runtime may have ended, unseen as yet, when it gets one: then nobody would have got it."""
    machine = Monitor()
    for signum in signals:
        assert machine.step(monitor.SignalReceived(signum)) == (monitor.SendSignal(0, signum),)
    machine.step(monitor.RuntimeSucceeded())
    report, *sent = machine.step(monitor.PidKnown(PID))
    assert report == monitor.ReportPid(PID)
    assert {effect.signum for effect in sent if isinstance(effect, monitor.SendSignal)} == set(signals)
    assert all(isinstance(effect, monitor.SendSignal) and effect.pid == PID for effect in sent)
    assert len(sent) == len(set(signals))


@pytest.mark.parametrize(
    ("status", "seen_before_ns", "blamed"),
    [
        (9, 0, True),  # init was killed, the counter rose with it
        (9, monitor.OOM_BLAME_NS - 1, True),  # tearing down much memory takes its time
        (9, monitor.OOM_BLAME_NS + 1, False),  # an old kill of a child, then a SIGKILL from somebody else
        (15, 0, False),  # a child was killed, then the container was stopped with SIGTERM
        (137 << 8, 0, False),  # it exited by itself with a code that looks like it
        (0, 0, False),
    ],
)
def test_oom_is_blamed_only_when_signal_and_time_fit(status: int, seen_before_ns: int, blamed: bool) -> None:
    """R20: the counter of the cgroup alone is not the truth."""
    machine = at("running")
    end_ns = monitor.OOM_BLAME_NS * 2
    machine.step(monitor.OomSeen(end_ns - seen_before_ns, 1))
    machine.step(monitor.ChildReaped(PID, status))
    (record,) = machine.step(monitor.OutputDrained(end_ns, 1))
    assert isinstance(record, monitor.RecordExit)
    assert record.oom_killed is blamed
    assert (record.reason == "OOMKilled") is blamed


def test_exit_that_nobody_saw_is_never_a_success() -> None:
    """R17: a process that was no child of ours ends without telling how."""
    machine = at("running")
    machine.step(monitor.ContainerExited(None))
    (record,) = machine.step(monitor.OutputDrained(1, 0))
    assert record == monitor.RecordExit(monitor.UNKNOWN_EXIT_CODE, "Unknown", False, "")


def test_killed_process_that_stays_does_not_hold_back_the_answer() -> None:
    """R24: a process stuck in the kernel cannot make the caller wait for ever."""
    machine = at("killing")
    assert machine.step(monitor.KillWaitExpired()) == (monitor.Drain(),)
    (record,) = machine.step(monitor.OutputDrained(1, 0))
    assert record == monitor.RecordExit(monitor.TIMED_OUT_CODE, "TimedOut", False, monitor.TIMED_OUT_MESSAGE)


REAPED = st.builds(monitor.ChildReaped, st.sampled_from((PID, STRANGER)), st.sampled_from((0, 3 << 8, 9, 15, 139)))
ANY = st.one_of(
    REAPED,
    st.builds(monitor.OomSeen, st.integers(0, 10**12), st.integers(0, 5)),
    st.builds(monitor.SignalReceived, st.sampled_from((2, 3, 15))),
    st.sampled_from(
        [
            monitor.RuntimeSucceeded(),
            monitor.RuntimeFailed(1, "no"),
            monitor.PidKnown(PID),
            monitor.PidMissing("no"),
            monitor.TimeoutExpired(),
            monitor.KillWaitExpired(),
            monitor.OutputDrained(5, 0),
            monitor.ClientsServed(),
        ]
    ),
)


@settings(max_examples=300)
@given(st.lists(ANY, max_size=30), st.booleans())
def test_any_order_of_events_ends_at_most_once_and_tells_the_truth(events: list[monitor.Event], is_exec: bool) -> None:
    """Exactly one end, one record, and a code that is that of the container's first reaping."""
    machine = Monitor(is_exec=is_exec)
    effects: list[monitor.Effect] = []
    applied: list[monitor.Event] = []
    for event in events:
        try:
            effects += machine.step(event)
        except NoTransition:
            continue
        applied.append(event)
    records = [effect for effect in effects if isinstance(effect, monitor.RecordExit)]
    assert len(records) <= 1
    assert sum(isinstance(effect, monitor.Finish) for effect in effects) == (machine.state == "gone")
    timed_out = any(isinstance(effect, monitor.KillGroup) for effect in effects)
    statuses = [event.status for event in applied if isinstance(event, monitor.ChildReaped) and event.pid == PID]
    for record in records:
        if timed_out:
            assert record.code == monitor.TIMED_OUT_CODE
        else:
            assert record.code in {monitor.exit_code(status) for status in statuses}
            assert record.reason != "Completed" or record.code == 0


@given(st.integers(0, 255), st.integers(1, 64))
def test_exit_code_follows_the_shell(code: int, signum: int) -> None:
    """0 to 255 for an exit, 128 and the number for a signal."""
    assert monitor.exit_code(code << 8) == code
    assert monitor.exit_code(signum) == monitor.exit_code(signum | 0x80) == 128 + signum
    assert monitor.exit_code(None) == monitor.UNKNOWN_EXIT_CODE != 0
