"""Rows of the list of known pains, one test each, on our monitor from a zygote; and what a zygote is as a process."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conmon.oom import OomWatch
from crio_core.errors import OperationError
from tests.integration.conmon_suite import Case, Rig, alive, missing_parts, until
from tests.integration.leftovers import MINE
from tests.integration.test_conmon_faults import children, cpu_ticks, rss_kb, worker, workers

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_parts()), reason=missing_parts() or "all parts are there"),
]


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path, shared_zygote: Path) -> Iterator[Rig]:
    made = Rig("zygote", tmp_path, None if getattr(request, "param", "") == "own zygote" else shared_zygote)
    try:
        yield made
    finally:
        made.close()


OWN_ZYGOTE = pytest.mark.parametrize("rig", ["own zygote"], indirect=True)
"""It is looked at as a process, or killed."""


# --- the zygote as a process --------------------------------------------------------------------------------------


@OWN_ZYGOTE
def test_zygote_and_monitors_are_sessions_of_their_own_with_one_thread(rig: Rig) -> None:
    """No terminal, no server and no other monitor takes them along when it ends."""
    case = rig.create("/bin/sleep", "1000").start()
    for pid in (rig.zygote_pid, case.monitor_pid):
        assert os.getsid(pid) != os.getsid(0)
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
    assert os.getsid(case.monitor_pid) == case.monitor_pid != os.getsid(rig.zygote_pid)


def test_memory_of_a_container_is_not_merged_with_that_of_others(rig: Rig) -> None:
    """Monitors allow the kernel to share equal pages; a container that did would tell its neighbours what it holds."""
    case = rig.create("/bin/sleep", "1000").start()
    merging = {}
    for whose, pid in (("monitor", case.monitor_pid), ("container", case.pid)):
        try:
            merging[whose] = "ksm_merge_any: yes" in Path(f"/proc/{pid}/ksm_stat").read_text()
        except FileNotFoundError:
            pytest.skip("this kernel does not show who merges pages (Linux 6.9)")
    assert merging == {"monitor": True, "container": False}


@OWN_ZYGOTE
def test_ready_monitor_that_is_killed_is_replaced(rig: Rig) -> None:
    """It looks like any process that does nothing; the next request must not find nobody."""
    for _ in range(3):
        until(lambda: len(children(rig.zygote_pid)) == 1, "monitors of other tests are still there")
        (ready,) = children(rig.zygote_pid)
        os.kill(ready, signal.SIGKILL)
        until(lambda: children(rig.zygote_pid) not in ([], [ready]), "no other is ready")  # noqa: B023
    assert rig.create("/bin/sh", "-c", "exit 3").start().exit_code() == 3


def test_signal_between_the_runtimes_end_and_its_notice_reaches_the_container(rig: Rig) -> None:
    """The runtime is a zombie that takes any signal and does nothing; the container is there already."""
    noted, go, ready = (rig.folder / name for name in ("noted", "go", "ready"))
    runtime = rig.folder / "runtime"
    container = f"trap 'exit 21' TERM; : > {ready}; while :; do sleep 0.05; done"
    runtime.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 1 ]; do [ "$1" = --pid-file ] && file=$2; shift; done\n'
        f'/bin/busybox setsid /bin/sh -c "{container}" < /dev/null &\n'
        f"echo $! > $file; echo $$ > {noted}.new; mv {noted}.new {noted}\n"
        f"while [ ! -e {go} ]; do sleep 0.02; done\n"
    )
    runtime.chmod(0o755)
    case = rig.create("/bin/true", runtime=str(runtime), read=False)
    until(lambda: noted.exists() and ready.exists(), "the runtime does not start")
    creating = worker(case)
    os.kill(creating, signal.SIGSTOP)
    go.touch()
    until(lambda: not alive(int(noted.read_text())), "the runtime does not end")
    os.kill(case.monitor_pid, signal.SIGTERM)
    os.kill(creating, signal.SIGCONT)
    assert case.read_sync() == {"data": case.pid}
    assert case.exit_code() == 21


def test_bundle_that_takes_no_fifo_ends_the_creation_with_the_reason(rig: Rig) -> None:
    """The runtime is under way by then, and must not be left alone."""
    noted = rig.folder / "noted"
    runtime = rig.folder / "runtime"
    runtime.write_text(f"#!/bin/sh\necho $$ > {noted}.new; mv {noted}.new {noted}\nexec sleep 1000\n")
    runtime.chmod(0o755)
    folder = rig.folder / f"{MINE}-1-zygote"
    (folder / "ctl").mkdir(parents=True)
    case = rig.create("/bin/true", runtime=str(runtime))
    assert case.messages[0]["data"] == -1
    assert str(folder) in str(case.messages[0]["message"])
    case.gone()
    assert not noted.exists() or not alive(int(noted.read_text()))


# --- R20 ----------------------------------------------------------------------------------------------------------


def test_r20_child_killed_for_want_of_memory_and_then_sigterm_is_no_oom_kill(rig: Rig) -> None:
    """An old kill of a child is not why a container ends that was stopped."""
    script = "trap 'exit 143' TERM; tail /dev/zero; echo the child is dead; while :; do sleep 0.05; done"
    case = rig.create("/bin/sh", "-c", script, memory_bytes=16 << 20).start()
    until(lambda: b"the child is dead" in case.log.read_bytes(), "no child was killed")
    os.kill(case.pid, signal.SIGTERM)
    assert case.exit_code() == 143
    case.gone()
    assert not (case.folder / "oom").exists()
    assert b'"oom_killed": false' in (case.folder / "persist/exit.json").read_bytes()


@pytest.mark.parametrize("round", range(5))
def test_r20_container_killed_for_want_of_memory_is_always_told_so(rig: Rig, round: int) -> None:
    """The counter is read after the end, from a file that was opened before it."""
    case = rig.create("/bin/sh", "-c", "exec tail /dev/zero", memory_bytes=16 << 20).start()
    assert case.exit_code() == 137
    case.gone()
    assert (case.folder / "oom").exists()


# --- R40 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def logs(rig: Rig) -> Iterator[Path]:
    """A folder for logs that can be made read-only."""
    folder = rig.folder / "criotest-logs"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def read_only(folder: Path) -> None:
    """Put a read-only view of a folder over it; files that are open in it stay as they are."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def test_r40_folder_that_turns_read_only_costs_nothing_of_the_log(rig: Rig, logs: Path) -> None:
    """A rotation that cannot make the new file goes on in the old one; the container notices nothing."""
    case = rig.create("/bin/sh", "-c", "echo one; read x; echo two", stdin=True, options=["-l", f"{logs}/log"]).start()
    until(lambda: b"one" in (logs / "log").read_bytes(), "nothing logged")
    old = (logs / "log").rename(logs / "log.1")
    read_only(logs)
    case.control("2 0 0\n")
    with case.attach() as client:
        client.send(b"\n")
        assert case.exit_code() == 0
    case.gone()
    assert case.output("stdout", old) == b"one\ntwo\n"


def test_r40_log_on_a_read_only_disk_is_refused_before_anything_runs(rig: Rig, logs: Path) -> None:
    """Nobody should believe in a log that never was."""
    read_only(logs)
    with pytest.raises(OperationError, match="Read-only file system"):
        rig.create("/bin/true", options=["-l", f"{logs}/log"])


# --- R41, R42 -----------------------------------------------------------------------------------------------------


def odd_client(case: Case, how: int) -> socket.socket:
    """A client that goes half-way and stays."""
    client = case.attach()
    if how % 3 == 0:
        client.shutdown(socket.SHUT_RD)
    elif how % 3 == 1:
        client.shutdown(socket.SHUT_WR)
    else:
        client.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.send(b"more input than anybody reads " * 100)
    return client


@pytest.mark.parametrize("terminal", [False, True])
def test_r41_descriptors_in_odd_states_do_not_make_the_monitor_spin(rig: Rig, terminal: bool) -> None:
    """Half-closed clients, unread input, half a control line, closed output: what polls as ready has to be handled."""
    script = "exec >/dev/null 2>&1 </dev/null; exec sleep 1000"
    options = ["--leave-stdin-open"]
    case = rig.create("/bin/sh", "-c", script, stdin=True, terminal=terminal, options=options).start()
    until(lambda: os.readlink(f"/proc/{case.pid}/fd/1") == "/dev/null", "its output is open")
    fifos = [os.open(case.folder / name, os.O_RDWR | os.O_NONBLOCK) for name in ("ctl", "winsz")]
    for fd in fifos:
        os.write(fd, b"\xff\0 1 24 8")
    clients = [odd_client(case, how) for how in range(9)]
    for client in clients[6:9]:
        client.close()
    os.kill(case.monitor_pid, signal.SIGUSR1)
    pids = [case.monitor_pid, worker(case)]
    end = time.monotonic() + 1
    until(lambda: time.monotonic() > end, "the clock stands still")
    before = [cpu_ticks(pid) for pid in pids]
    end = time.monotonic() + 3
    until(lambda: time.monotonic() > end, "the clock stands still")
    assert sum(cpu_ticks(pid) for pid in pids) - sum(before) <= 3  # 1 % of the time
    for fd in fifos:
        os.close(fd)
    for client in clients:
        client.close()
    os.kill(case.pid, signal.SIGKILL)
    assert case.exit_code() == 137


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A cgroup in which the number of processes can be limited."""
    top = Path("/sys/fs/cgroup/pids")
    if not top.is_dir():
        pytest.skip("needs the pids controller of cgroup version 1")
    group = top / f"{MINE}-narrow"
    group.mkdir()
    yield group
    until(lambda: not (group / "cgroup.procs").read_text(), "something lives on in the cgroup")
    group.rmdir()


def test_r41_monitor_that_can_make_no_process_waits_without_spinning_and_goes_on(narrow: Path, rig: Rig) -> None:
    """A host that is out of process numbers costs time, and neither log nor exit."""
    case = rig.create("/bin/sh", "-c", "read x; echo a line; exit 6", stdin=True).start()
    until(lambda: not workers(case), "somebody works although nothing happens")
    (narrow / "cgroup.procs").write_text(str(case.monitor_pid))
    (narrow / "pids.max").write_text("1")
    before = cpu_ticks(case.monitor_pid)
    with case.attach() as client:
        client.send(b"\n")
        end = time.monotonic() + 2
        until(lambda: time.monotonic() > end, "the clock stands still")
        assert cpu_ticks(case.monitor_pid) - before <= 4  # 2 % of the time
        (narrow / "pids.max").write_text("max")
        assert case.exit_code() == 6
    case.gone()
    assert case.output() == b"a line\n"


def test_r41_counter_of_a_removed_cgroup_says_that_it_is_over() -> None:
    """The kernel reports its file as urgent for ever; who reads it must learn that there is nothing more to see."""
    top = next((one for one in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(one, "cgroup.procs").exists()), "")
    if not top or not os.access(top, os.W_OK):
        pytest.skip("needs a cgroup hierarchy of version 2")
    group = Path(top, f"{MINE}-removed")
    group.mkdir()
    try:
        fd = os.open(group / "cgroup.events", os.O_RDONLY)
    finally:
        group.rmdir()
    watch = OomWatch(fd, -1, 0)
    with select.epoll() as poll:
        poll.register(watch.fd, watch.events)
        assert poll.poll(1)
        assert watch.read() is None
        assert poll.poll(0), "the kernel has changed: nobody need stop polling"
    watch.close()


@pytest.mark.slow
def test_r42_many_short_lives_of_the_working_process_leave_nothing_in_the_monitor(rig: Rig) -> None:
    """Each has descriptors of its own in a table that is shared with the monitor: none may be left behind."""
    case = rig.create("/bin/cat", stdin=True, options=["--leave-stdin-open"]).start()
    until(lambda: not workers(case), "somebody works although nothing happens")

    def used() -> tuple[int, int]:
        with case.attach() as client:
            client.send(b"words\n")
            assert client.recv(100) == b"\x02words\n"
        os.kill(worker(case), signal.SIGSTOP)
        os.kill(worker(case), signal.SIGCONT)
        until(lambda: not workers(case), "somebody works although nothing happens")
        return len(os.listdir(f"/proc/{case.monitor_pid}/fd")), rss_kb(case.monitor_pid)

    first_fds, first_kb = used()
    for _ in range(4):
        fds, kb = used()
    assert fds == first_fds
    assert kb <= first_kb * 1.05
