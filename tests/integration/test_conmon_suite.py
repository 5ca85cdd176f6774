"""One suite for three monitors: Debian's conmon is the reference, ours has to do the same alone and from a zygote."""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from crio_core.errors import OperationError
from tests.integration.conmon_suite import MONITORS, Rig, alive, missing_parts, until
from tests.integration.leftovers import MINE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_parts()), reason=missing_parts() or "all parts are there"),
]


@pytest.fixture(params=MONITORS)
def rig(request: pytest.FixtureRequest, tmp_path: Path, shared_zygote: Path) -> Iterator[Rig]:
    made = Rig(request.param, tmp_path, shared_zygote)
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


def test_r25_shell_of_a_client_that_left_ends(rig: Rig) -> None:
    """R25: without a hang-up it would wait for input for ever, and nobody could type any."""
    host = rig.create("/bin/sleep", "1000").start()
    shell = rig.exec(host, "/bin/sh", options=["-i"])
    assert isinstance(shell.read_sync()["data"], int)
    with shell.attach() as client:
        client.send(b"echo here\n")
        assert client.recv(9000) == b"\x02here\n"
    assert shell.read_sync() == {"data": 0}


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
    folder = rig.folder / f"{MINE}-1-{rig.kind}/exits/{MINE}-1-{rig.kind}"
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


# --- the command line and the pipes of a caller -------------------------------------------------------------------


def note_taker(rig: Rig, script: str = "echo no >&2; exit 1") -> tuple[str, Path]:
    """A runtime that notes its arguments, one a line, and does as the script says."""
    noted = rig.folder / "arguments"
    runtime = rig.folder / "runtime"
    runtime.write_text(f'#!/bin/sh\nfor word; do echo "$word"; done > {noted}.new\nmv {noted}.new {noted}\n{script}\n')
    runtime.chmod(0o755)
    return str(runtime), noted


def marking(rig: Rig, code: int = 0) -> tuple[list[str], Path]:
    """Options for an exit command that leaves a mark and ends with this code."""
    mark = rig.folder / "mark"
    command = rig.folder / "exit-command"
    command.write_text(f"#!/bin/sh\n: > {mark}\nexit {code}\n")
    command.chmod(0o755)
    return ["--exit-command", str(command)], mark


def test_runtime_is_called_with_what_the_options_say(rig: Rig) -> None:
    """Another engine relies on the order: global options before the command, its own after it."""
    runtime, noted = note_taker(rig)
    options = ["-s", "--no-pivot", "--no-new-keyring", "--runtime-opt", "--one=1", "--runtime-opt=two", "--no-sync-log"]
    case = rig.create("/bin/true", options=options, runtime=runtime)
    assert case.messages[0]["data"] == -1
    assert noted.read_text().splitlines() == [
        *("--systemd-cgroup", f"--root={rig.folder}/runc", "create", "--bundle", str(case.folder)),
        *("--pid-file", f"{case.folder}/pidfile", "--no-pivot", "--no-new-keyring", "--one=1", "two", case.cid),
    ]


def test_restore_is_asked_of_the_runtime(rig: Rig) -> None:
    """A checkpoint is a directory that the runtime reads."""
    runtime, noted = note_taker(rig)
    case = rig.create("/bin/true", options=["--restore", "/check/point"], runtime=runtime)
    words = noted.read_text().splitlines()
    assert words[1:4] == ["restore", "--bundle", str(case.folder)]
    assert words[words.index("--image-path") + 1] == "/check/point"
    assert "--detach" in words


def test_monitor_waits_at_the_start_pipe(rig: Rig) -> None:
    """Its caller moves it to another cgroup before anything is started from there."""
    runtime, noted = note_taker(rig)
    reader, writer = os.pipe()
    case = rig.create("/bin/true", runtime=runtime, pipes={"start": reader}, read=False)
    os.close(reader)

    def waits() -> bool:
        pids = [case.program.pid] if case.program else descendants(case.monitor_pid)
        return any("pipe_read" in Path(f"/proc/{pid}/wchan").read_text() for pid in pids)

    until(waits, "nobody waits")
    assert not noted.exists()
    os.write(writer, b"\0")
    os.close(writer)
    if case.program:
        case.started()
    assert case.read_sync()["data"] == -1
    assert noted.exists()


def descendants(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_attached_exec_loses_nothing_from_its_first_byte_on(rig: Rig) -> None:
    """The caller is told when it can attach, attaches, and then lets the command begin."""
    host = rig.create("/bin/sleep", "1000").start()
    (start_read, start_write), (attach_read, attach_write) = os.pipe(), os.pipe()
    os.write(start_write, b"\0")
    pipes = {"start": start_read, "attach": attach_write}
    job = rig.exec(host, "/bin/sh", "-c", "echo first; exit 6", options=["--exec-attach"], pipes=pipes)
    for fd in (start_read, attach_write):
        os.close(fd)
    if job.program:
        job.started()
    assert os.read(attach_read, 100).startswith(b'{"data": 0')
    with job.attach() as client:
        os.write(start_write, b"\0")
        assert client.recv(100) == b"\x02first\n"
        assert isinstance(job.read_sync()["data"], int)
        assert job.read_sync()["data"] == 6
    for fd in (start_write, attach_read):
        os.close(fd)


def test_monitor_in_the_foreground_ends_with_the_containers_code(rig: Rig) -> None:
    """`--sync`: the exit command runs, and its own code is nobody's."""
    if rig.kind == "zygote":
        pytest.skip("a monitor of a zygote is never in anybody's foreground")
    options, mark = marking(rig, 9)
    case = rig.create("/bin/sh", "-c", "read x; exit 5", stdin=True, options=["--sync", *options]).start()
    assert case.program is not None and case.program.poll() is None
    with case.attach() as client:
        client.send(b"\n")
        assert case.program.wait(20) == 5
    assert mark.exists()


def test_console_socket_is_where_temporary_files_are(rig: Rig) -> None:
    """`$TMPDIR`: a host whose /tmp is not for services names another place."""
    folder = rig.folder / "t"
    folder.mkdir()
    runtime, noted = note_taker(rig)
    rig.environment["TMPDIR"] = str(folder)
    rig.create("/bin/true", terminal=True, runtime=runtime)
    words = noted.read_text().splitlines()
    assert words[words.index("--console-socket") + 1].startswith(f"{folder}/")
    assert rig.kind == "debian" or list(folder.iterdir()) == []


def test_exit_command_runs_after_a_creation_that_failed(rig: Rig) -> None:
    """An engine has begun something, and cleans up with it."""
    options, mark = marking(rig)
    case = rig.create("/bin/no-such-program", options=options)
    assert case.messages[0]["data"] == -1
    until(mark.exists, "no exit command")


def test_exit_command_waits_for_its_delay(rig: Rig) -> None:
    """`--exit-delay`: whoever reads the exit first has a moment to do so."""
    options, mark = marking(rig)
    case = rig.create("/bin/true", options=[*options, "--exit-delay", "1"]).start()
    case.exit_code()
    until(mark.exists, "no exit command")
    assert mark.stat().st_mtime - (case.folder / "exits" / case.cid).stat().st_mtime >= 0.99


def test_passed_through_stdio_is_the_monitors_own(rig: Rig) -> None:
    """`passthrough`: a service manager reads what the container writes, and there is no log."""
    if rig.kind == "zygote":
        with pytest.raises(OperationError, match="passthrough driver needs a monitor that its caller started"):
            rig.create("/bin/true", options=["-l", "passthrough"])
        return
    output = rig.folder / "output"
    with output.open("wb") as file:
        rig.stdout = file
        case = rig.create("/bin/sh", "-c", "echo straight; exit 3", options=["-l", "passthrough"]).start()
    assert case.exit_code() == 3
    assert output.read_bytes() == b"straight\n"


def test_limit_of_all_logs_ends_the_log(rig: Rig) -> None:
    """`--log-global-size-max`: after that many bytes nothing more is written, and the last record is whole."""
    case = rig.create("/bin/seq", "10000", options=["--log-global-size-max", "5000"]).start()
    assert case.exit_code() == 0
    case.gone()
    assert 5000 <= case.log.stat().st_size < 5100
    assert case.output() == b"".join(b"%d\n" % number for number in range(1, len(case.records()) + 1))


@pytest.mark.parametrize(
    "words",
    [
        *(("-l", "k8s-file"), ("-l", "k8s-file:"), ("-l", "k8s-file:/tmp/x", "--log-tag", "t"), ("-l", "smoke:/tmp/x")),
        *(("-l", "none", "-T", "five"), ("-l", "none", "--no-such-option")),
    ],
)
def test_wrong_command_line_is_refused_before_anything_is_started(rig: Rig, words: tuple[str, ...]) -> None:
    """The caller gets a reason and no process."""
    runtime, noted = note_taker(rig)
    if rig.kind == "zygote":
        with pytest.raises(OperationError) as caught:
            rig.create("/bin/true", options=words, runtime=runtime)
        assert caught.value.reason == "MONITOR_REFUSED"
    else:
        case = rig.create("/bin/true", options=words, runtime=runtime, read=False)
        assert case.program is not None and case.program.returncode == 1
        assert case.read_sync() == {}
    assert not noted.exists()


def test_number_in_hexadecimal_is_a_number(rig: Rig) -> None:
    """Options are read with strtol(3)."""
    case = rig.create("/bin/sh", "-c", "exit 3", options=["-T", "0x100", "--log-size-max", "010000"]).start()
    assert case.exit_code() == 3


def test_container_that_runs_out_of_time_is_killed(rig: Rig) -> None:
    """`--timeout` is for containers too."""
    case = rig.create("/bin/sleep", "500", options=["-T", "1"]).start()
    assert case.exit_code() in (137, -1)
    case.gone()
    until(lambda: not alive(case.pid), "it lives on")


def test_second_log_is_written_beside_none(rig: Rig) -> None:
    """`-l` can be given more than once."""
    log = rig.folder / "other"
    case = rig.create("/bin/echo", "word", options=["-l", "none", "-l", f"k8s-file:{log}"]).start()
    case.exit_code()
    case.gone()
    assert case.output("stdout", log) == b"word\n"


def test_attach_socket_is_reached_through_the_socket_directory(rig: Rig) -> None:
    """Without `--full-attach` a short path leads to the bundle, which may lie deep."""
    folder = rig.folder / "s"
    folder.mkdir()
    case = rig.create("/bin/cat", stdin=True, full_attach=False, options=["--socket-dir-path", str(folder)]).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        folder_fd = os.open(folder, os.O_PATH)
        client.connect(f"/proc/self/fd/{folder_fd}/{case.cid}/attach")
        os.close(folder_fd)
        client.send(b"here\n")
        assert client.recv(100) == b"\x02here\n"


def test_window_size_has_a_fifo_of_its_own(rig: Rig) -> None:
    """Newer engines resize through `winsz`."""
    case = rig.create("/bin/sh", "-c", "read x; stty size", terminal=True, stdin=True).start()
    with case.attach() as client:
        fd = os.open(case.folder / "winsz", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"41 97\n")
        os.close(fd)
        client.send(b"go\n")
        case.exit_code()
    assert b"41 97\r\n" in case.output()


def test_exec_with_a_terminal_has_one(rig: Rig) -> None:
    """`exec -t`: its console is handed over as that of a container."""
    host = rig.create("/bin/sleep", "1000").start()
    job = rig.exec(host, "/bin/sh", "-c", "test -t 1 && exit 8", terminal=True)
    assert isinstance(job.read_sync()["data"], int)
    assert job.read_sync() == {"data": 8}


@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_other_signals_to_end_reach_the_container_too(rig: Rig, name: str) -> None:
    """A person at a keyboard, or a service manager that is told to."""
    script = f"trap 'exit 12' {name}; echo ready; while :; do sleep 0.05; done"
    case = rig.create("/bin/sh", "-c", script).start()
    until(lambda: b"ready" in case.log.read_bytes(), "not ready")
    os.kill(case.monitor_pid, getattr(signal, f"SIG{name}"))
    assert case.exit_code() == 12


def test_signal_to_look_again_ends_nothing(rig: Rig) -> None:
    """SIGUSR1 asks a monitor to look for its children."""
    case = rig.create("/bin/sh", "-c", "read x; exit 4", stdin=True).start()
    os.kill(case.monitor_pid, signal.SIGUSR1)
    with case.attach() as client:
        client.send(b"\n")
        assert case.exit_code() == 4


def test_signal_during_a_creation_reaches_the_runtime(rig: Rig) -> None:
    """Whoever gives up meanwhile ends what is there: the runtime."""
    ready = rig.folder / "ready"
    script = f"trap 'echo given up >&2; exit 1' TERM\n: > {ready}\nwhile :; do sleep 0.05; done"
    runtime, _ = note_taker(rig, script)
    case = rig.create("/bin/true", runtime=runtime, read=False)
    until(ready.exists, "the runtime does not start")
    os.kill(case.monitor_pid, signal.SIGTERM)
    message = case.read_sync()
    assert message["data"] == -1
    assert "given up" in str(message["message"])
