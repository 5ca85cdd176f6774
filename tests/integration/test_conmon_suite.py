"""One suite for three monitors: Debian's conmon is the reference, ours has to do the same alone and from a zygote."""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conmon_suite import MONITORS, Rig, alive, missing_parts, until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_parts()), reason=missing_parts() or "all parts are there"),
]


@pytest.fixture(params=MONITORS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(request.param, tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255)])
def test_exit_in_running_is_recorded_with_its_true_code(rig: Rig, script: str, code: int) -> None:
    """The exit file is what a server that was away believes (R18)."""
    case = rig.create("/bin/sh", "-c", script).start()
    assert case.messages == [{"data": case.pid}]
    assert case.exit_code() == code
    assert (case.folder / "persist/exit").read_text() == str(code) or rig.kind == "debian"
    case.gone()


def test_output_in_running_is_logged_byte_for_byte(rig: Rig) -> None:
    """Empty lines, both streams and bytes that are no text come back as they were written."""
    case = rig.create("/bin/sh", "-c", r"printf 'one\n\n\377\0two\n'; printf 'err\n' >&2; printf 'three\n'").start()
    case.exit_code()
    case.gone()
    assert case.output() == b"one\n\n\xff\0two\nthree\n"
    assert case.output("stderr") == b"err\n"


def test_long_output_is_joined_to_the_same_bytes(rig: Rig) -> None:
    """R39: the parts of a line of any length give the line."""
    case = rig.create("/bin/sh", "-c", "seq 20000 | dd bs=64k 2>/dev/null | /bin/busybox tr '\\n' x; echo; seq 5000")
    case.start().exit_code()
    case.gone()
    assert case.output() == "x".join(map(str, range(1, 20001))).encode() + b"x\n" + b"".join(
        b"%d\n" % n for n in range(1, 5001)
    )


def test_creation_that_fails_is_told_with_the_runtimes_words(rig: Rig) -> None:
    """A caller shows these words to a person."""
    case = rig.create("/bin/no-such-program")
    assert case.messages[0]["data"] == -1
    assert "no-such-program" in str(case.messages[0]["message"])
    case.gone()


def test_reopen_after_rename_goes_on_in_a_new_file(rig: Rig) -> None:
    """R38: kubelet renames, then asks for the reopen."""
    case = rig.create("/bin/sh", "-c", "echo before; read x; echo after", stdin=True).start()
    until(lambda: b"before" in case.log.read_bytes(), "nothing logged")
    old = case.log.rename(case.folder / "log.1")
    case.control("2 0 0\n")
    until(case.log.exists, "no new log")
    with case.attach() as client:
        client.send(b"\n")
        case.exit_code()
    assert case.output("stdout", old, case.log) == b"before\nafter\n"
    assert case.output("stdout", case.log) == b"after\n"


def test_resize_in_running_reaches_the_terminal(rig: Rig) -> None:
    """`kubectl exec -it` sends the size of its window over the control FIFO."""
    case = rig.create("/bin/sh", "-c", "read x; stty size", terminal=True, stdin=True).start()
    with case.attach() as client:
        case.control("1 33 77\n")
        client.send(b"go\n")
        case.exit_code()
    assert b"33 77\r\n" in case.output()


def test_two_clients_get_the_same_output_and_input_reaches_the_container(rig: Rig) -> None:
    """Attach is for many; each packet names its stream."""
    case = rig.create("/bin/sh", "-c", "read x; echo out $x; echo err $x >&2", stdin=True).start()
    with case.attach() as first, case.attach() as second:
        until(lambda: len(os.listdir(f"/proc/{case.monitor_pid}/fd")) > 0, "monitor is gone")
        first.send(b"word\n")
        for client in (first, second):
            got = {client.recv(9000), client.recv(9000)}
            assert got == {b"\x02out word\n", b"\x03err word\n"}
    assert case.exit_code() == 0


def test_client_that_ends_its_input_ends_the_containers(rig: Rig) -> None:
    """`stdin_once`: the first client's end of input is the container's, and its output still comes."""
    case = rig.create("/bin/cat", stdin=True).start()
    with case.attach() as client:
        client.send(b"last words")
        assert client.recv(9000) == b"\x02last words"
        client.shutdown(1)
        assert case.exit_code() == 0


def test_input_of_a_client_that_left_arrives_whole(rig: Rig) -> None:
    """A client writes faster than the container reads, and hangs up: all of it is passed on, then the end of input."""
    case = rig.create("/bin/sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.02; done; cat", stdin=True).start()
    data = b"".join(b"%d\n" % n for n in range(20000))
    with case.attach() as client:
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):  # pipe and socket are full
            while sent < len(data):
                sent += client.send(data[sent : sent + 8000])
    (rig.folder / "rootfs/tmp/go").touch()
    case.exit_code()
    case.gone()
    assert sent > 65536
    assert case.output() == data[:sent] + (b"" if data[:sent].endswith(b"\n") else b"\n")


def test_stdin_left_open_survives_a_client(rig: Rig) -> None:
    """Without `stdin_once` a second client goes on where the first stopped."""
    case = rig.create("/bin/sh", "-c", "read a; read b; echo $a$b", stdin=True, options=["--leave-stdin-open"]).start()
    with case.attach() as client:
        client.send(b"one\n")
    with case.attach() as client:
        client.send(b"two\n")
        assert case.exit_code() == 0
    assert case.output() == b"onetwo\n"


def test_exec_tells_pid_then_code(rig: Rig) -> None:
    """The current protocol of exec: two messages."""
    case = rig.create("/bin/sleep", "1000").start()
    job = rig.exec(case, "/bin/sh", "-c", "echo hello; exit 7")
    assert isinstance(job.read_sync()["data"], int)
    assert job.read_sync() == {"data": 7}
    job.gone()
    assert job.output() == b"hello\n"


def test_exec_of_the_old_protocol_tells_the_code_alone(rig: Rig) -> None:
    """CRI-O's ExecSync reads one message with `exit_code`."""
    case = rig.create("/bin/sleep", "1000").start()
    job = rig.exec(case, "/bin/sh", "-c", "exit 9", api_version=0)
    assert job.read_sync() == {"exit_code": 9}


def test_exec_that_runs_out_of_time_is_killed_and_told(rig: Rig) -> None:
    """R24: the answer comes by the timeout and a second."""
    case = rig.create("/bin/sleep", "1000").start()
    job = rig.exec(case, "/bin/sleep", "500", api_version=0, options=["-T", "1"])
    assert job.read_sync() == {"exit_code": -1, "message": "command timed out"}
    until(lambda: not alive(job.pid), "the command lives on")


def test_exec_that_leaves_a_daemon_with_its_output_still_answers(rig: Rig) -> None:
    """R24: nobody waits for an end of file that a daemon holds back."""
    case = rig.create("/bin/sleep", "1000").start()
    job = rig.exec(case, "/bin/sh", "-c", "sleep 500 & echo started", api_version=0)
    assert job.read_sync() == {"exit_code": 0}
    job.gone()
    assert job.output() == b"started\n"


def test_exit_command_runs_after_the_exit_file(rig: Rig) -> None:
    """An engine cleans up with it; it has to find the exit recorded."""
    script = rig.folder / "exit-command"
    script.write_text('#!/bin/sh\ncp "$1" "$2.tmp" && mv "$2.tmp" "$2"\n')
    script.chmod(0o755)
    mark = rig.folder / "mark"
    folder = rig.folder / f"criotest-{os.getpid()}-1-{rig.kind}/exits/criotest-{os.getpid()}-1-{rig.kind}"
    options = ["--exit-command", str(script), "--exit-command-arg", str(folder), "--exit-command-arg", str(mark)]
    case = rig.create("/bin/sh", "-c", "exit 4", options=options).start()
    until(mark.exists, "no exit command")
    assert mark.read_text() == "4"
    case.gone()


def test_signal_to_the_monitor_reaches_the_container(rig: Rig) -> None:
    """A service manager that ends the monitor means the container."""
    case = rig.create("/bin/sh", "-c", "trap 'exit 11' TERM; echo ready; while :; do sleep 0.05; done").start()
    until(lambda: b"ready" in case.log.read_bytes(), "not ready")
    os.kill(case.monitor_pid, signal.SIGTERM)
    assert case.exit_code() == 11


def test_size_limit_starts_the_log_anew(rig: Rig) -> None:
    """`log_size_max` bounds the file; what is in it is whole."""
    case = rig.create("/bin/sh", "-c", "seq 1 2000", options=["--log-size-max", "8192"]).start()
    case.exit_code()
    case.gone()
    assert case.log.stat().st_size <= 8192
    assert case.output().endswith(b"2000\n")


def test_none_driver_keeps_no_log(rig: Rig) -> None:
    """`none` is a driver like the others: the container runs and exits."""
    case = rig.create("/bin/sh", "-c", "seq 100000; exit 2", options=["--log-path", "none"]).start()
    assert case.exit_code() == 2
    assert not case.log.exists()


@pytest.mark.parametrize("stalled", [False, True])
def test_memory_kill_is_told_apart(rig: Rig, stalled: bool) -> None:
    """R20: an OOM kill of the container is marked; a plain kill is not."""
    script = "while :; do sleep 0.05; done" if stalled else "exec tail /dev/zero"
    case = rig.create("/bin/sh", "-c", script, memory_bytes=16 << 20).start()
    if stalled:
        os.kill(case.pid, signal.SIGKILL)
    assert case.exit_code() == 137
    case.gone()
    assert (case.folder / "oom").exists() is not stalled


def test_monitor_is_outside_of_the_containers_memory_cgroup(rig: Rig) -> None:
    """CVE-2019-14891: a memory bomb must not take its monitor along."""
    case = rig.create("/bin/sleep", "1000", memory_bytes=32 << 20).start()
    ours = Path(f"/proc/{case.monitor_pid}/cgroup").read_text()
    assert case.cid not in ours
    assert case.cid in Path(f"/proc/{case.pid}/cgroup").read_text()


def test_killed_monitor_is_noticed_and_records_nothing(rig: Rig) -> None:
    """R17: a server has to look at the container itself; no exit file ever claims a success."""
    case = rig.create("/bin/sleep", "1000").start()
    pidfd = os.pidfd_open(case.monitor_pid)
    os.kill(case.monitor_pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert not (case.folder / "exits" / case.cid).exists()
    assert alive(case.pid)
