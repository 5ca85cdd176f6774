"""Our monitor where things go wrong: rotation at full speed, full disks, slow clients, kills and long lives."""

import contextlib
import json
import os
import random
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from crio_core.errors import OperationError
from crio_io.zygote import ZygoteClient
from tests.integration.conmon_suite import Case, Rig, alive, missing_parts, until
from tests.integration.leftovers import MINE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_parts()), reason=missing_parts() or "all parts are there"),
]

REOPENS = 100
CHURN = int(os.environ.get("CONMON_CHURN", "40"))


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path, shared_zygote: Path) -> Iterator[Rig]:
    made = Rig("zygote", tmp_path, None if getattr(request, "param", "") == "own zygote" else shared_zygote)
    try:
        yield made
    finally:
        made.close()


OWN_ZYGOTE = pytest.mark.parametrize("rig", ["own zygote"], indirect=True)
"""It is looked at as a process, or killed."""


def children(pid: int) -> list[int]:
    """Child processes, zombies too."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid: int) -> bool:
    return not alive(pid)


def wakeups(pid: int) -> int:
    """How often the process went to sleep: each wake-up ends with that."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


def workers(case: Case) -> list[int]:
    """What a monitor has made to do its work: nothing while its container is quiet."""
    return [pid for pid in children(case.monitor_pid) if command_line(pid) == command_line(case.monitor_pid)]


def worker(case: Case) -> int:
    """The one process that works for a monitor now."""
    until(lambda: workers(case), "nobody works")
    (pid,) = workers(case)
    return pid


def command_line(pid: int) -> bytes:
    """What `ps` shows for a process; nothing for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def all_are(pids: tuple[int, ...], state: str) -> bool:
    """Whether every process is in this state of proc(5)."""
    return all(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state for pid in pids)


def rss_kb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def test_rotation_at_full_speed_loses_and_garbles_nothing(rig: Rig) -> None:
    """R38: a writer at full speed across 100 reopens, and every file holds whole records."""
    script = "while [ ! -e /tmp/stop ]; do seq 1000; done; printf 'no newline'"
    case = rig.create("/bin/sh", "-c", script).start()
    files = []
    for number in range(REOPENS):
        until(lambda: case.log.exists() and case.log.stat().st_size > 0, "no more output")
        files.append(case.log.rename(case.folder / f"log.{number:03d}"))
        case.control("2 0 0\n")
        until(case.log.exists, "no new log")
    (rig.folder / "rootfs/tmp/stop").touch()
    case.exit_code()
    case.gone()
    output = case.output("stdout", *files, case.log)
    block = b"".join(b"%d\n" % n for n in range(1, 1001))
    rounds = len(output) // len(block)
    assert output == block * rounds + b"no newline\n"


def test_line_limit_is_exact(rig: Rig) -> None:
    """R39: a line of 20,000 bytes is 16,384 and the rest; one of 16,384 is whole."""
    script = "head -c 20000 /dev/zero | tr '\\0' a; echo; head -c 16384 /dev/zero | tr '\\0' b; echo; sleep 0.2"
    case = rig.create("/bin/sh", "-c", script.replace("tr ", "/bin/busybox tr ")).start()
    case.exit_code()
    case.gone()
    sizes = [(tag, len(data)) for _, tag, data in case.records()]
    assert sizes == [("P", 16384), ("F", 3616), ("F", 16384)]


def test_full_disk_never_stops_the_container_and_is_counted(rig: Rig) -> None:
    """R40: every byte is in the log or in the count, and the records that are there are whole."""
    small = rig.folder / "criotest-small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "criotest-small", str(small)], check=True)
    try:
        case = rig.create("/bin/sh", "-c", "seq 100000", options=["-l", f"k8s-file:{small}/log"]).start()
        assert case.exit_code() == 0
        case.gone()
        record = json.loads((case.folder / "persist/exit.json").read_text())
        kept = sum(len(data) for _, _, data in case.records(small / "log"))
        written = sum(len(str(n)) for n in range(1, 100001))
        assert record["log_dropped_bytes"] == written - kept > 0
        assert (case.folder / "log-dropped").read_text() == f"{written - kept}\n"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_disk_that_has_room_again_is_used_again(rig: Rig) -> None:
    """R40: after the disk was full the log goes on, and no record is torn."""
    small = rig.folder / "criotest-small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "criotest-small", str(small)], check=True)
    try:
        script = "seq 20000; read x; echo room again"
        case = rig.create("/bin/sh", "-c", script, stdin=True, options=["-l", f"{small}/log"]).start()
        until((case.folder / "log-dropped").exists, "nothing was dropped")
        subprocess.run(["mount", "-o", "remount,size=1m", str(small)], check=True)
        with case.attach() as client:
            client.send(b"\n")
            case.exit_code()
        case.gone()
        assert case.records(small / "log")[-1] == ("stdout", "F", b"room again")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def drip(client: socket.socket, pace_s: float) -> None:
    """Take one packet each `pace_s` until the monitor hangs up."""
    with contextlib.suppress(OSError):
        while client.recv(9000):
            time.sleep(pace_s)  # the pace of the client is what is tested


def exit_command(rig: Rig) -> tuple[list[str], Path]:
    """Options for an exit command, and the file that it leaves."""
    mark = rig.folder / "mark"
    script = rig.folder / "exit-command"
    script.write_text(f"#!/bin/sh\n: > {mark}\n")
    script.chmod(0o755)
    return ["--exit-command", str(script)], mark


def talkative(rig: Rig, kind: str, log: Path, options: list[str]) -> Case:
    """A container, or a command in one, that writes much once it is told to."""
    command = ("/bin/sh", "-c", "read x; seq 400000")
    if kind == "exec":
        case = rig.exec(rig.create("/bin/sleep", "1000").start(), *command, options=[*options, "-i"])
        case.read_sync()
        return case
    path = "none" if kind == "none" else f"k8s-file:{log}"
    return rig.create(*command, stdin=True, options=[*options, "-l", path]).start()


@pytest.mark.slow
@pytest.mark.parametrize("pace_s", [0.25, 3600], ids=["drip", "nothing"])
@pytest.mark.parametrize("kind", ["k8s-file", "none", "exec"])
def test_slow_client_holds_back_neither_log_nor_clients_nor_the_exit_command(
    rig: Rig, kind: str, pace_s: float
) -> None:
    """R23, R40: one that takes nothing, or a packet now and then, is let go; the others and the log get everything."""
    options, mark = exit_command(rig)
    case = talkative(rig, kind, rig.folder / "log", options)
    with case.attach() as slow, case.attach() as quick:
        slow.settimeout(None)
        threading.Thread(target=drip, args=(slow, pace_s), daemon=True).start()
        quick.send(b"\n")
        got = b""
        while not got.endswith(b"\n400000\n"):
            got += quick.recv(9000)[1:]
        assert got == b"".join(b"%d\n" % n for n in range(1, 400001))
        until(mark.exists, "the exit command does not run")
        case.gone()
    if kind == "k8s-file":
        assert case.output("stdout", rig.folder / "log") == got


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "exec"])
def test_only_client_that_takes_nothing_does_not_outlive_the_container(rig: Rig, kind: str) -> None:
    """R23: an engine that waits for the exit command would wait for ever, and a stop with it."""
    options, mark = exit_command(rig)
    case = talkative(rig, kind, rig.folder / "log", options)
    with case.attach() as client:
        client.send(b"\n")
        until(lambda: "pipe_write" in Path(f"/proc/{case.pid}/wchan").read_text(), "it does not wait for its reader")
        os.kill(case.pid, signal.SIGKILL)
        until(mark.exists, "the exit command does not run")
        case.gone()


def zygote_connection(rig: Rig) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(str(rig.folder / "zygote.sock"))
    return connection


@OWN_ZYGOTE
def test_log_that_hangs_and_silent_client_hold_back_no_other_creation(rig: Rig) -> None:
    """A log on a disk that hangs is one container's misfortune; a FIFO without a reader hangs in the same way."""
    log = rig.folder / "fifo"
    os.mkfifo(log)
    words = ["-c", "criotest-hung", "-u", "u", "-n", "hung", "-r", "/bin/true", "-b", str(rig.folder), "--full-attach"]
    packet = "\0".join(["spawn", str(rig.folder), "", "0", *words, "-l", str(log)]).encode()
    with zygote_connection(rig) as hung, zygote_connection(rig) as silent:
        hung.send(packet)
        assert anyio.run(rig.client.ensure) == rig.zygote_pid
        assert select.select([silent], [], [], 0)[0] == []
        assert rig.create("/bin/sh", "-c", "exit 3").start().exit_code() == 3
        assert select.select([hung], [], [], 0)[0] == []

        def named() -> list[int]:
            return [pid for pid in children(rig.zygote_pid) if b"criotest-hung" in command_line(pid)]

        until(named, "whoever gives up cannot find the process that hangs")
        log.open("rb").close()
        assert hung.recv(100).startswith(b"spawned ")


def test_zygote_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Its stderr is where it could say so; nobody finds that on a node."""
    with pytest.raises(OperationError, match="No such file or directory") as caught:
        anyio.run(ZygoteClient(tmp_path / "missing/zygote.sock").ensure)
    assert caught.value.reason == "ZYGOTE_NOT_STARTED"
    with pytest.raises(OperationError, match="no such interpreter"):
        anyio.run(ZygoteClient(tmp_path / "s", command=("/bin/sh", "-c", "echo no such interpreter >&2")).ensure)


def cpu_ticks(pid: int) -> int:
    """Time on a processor so far, in hundredths of a second (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_client_without_a_descriptor_for_it_does_not_make_the_monitor_spin(rig: Rig) -> None:
    """R41: a listener whose connection cannot be accepted polls as ready for ever."""
    case = rig.create("/bin/cat", stdin=True, options=["--leave-stdin-open"]).start()
    with case.attach() as first:
        first.send(b"x\n")
        assert first.recv(100) == b"\x02x\n"
        pid = worker(case)
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, limits[1]))
        with case.attach() as second:
            before = cpu_ticks(pid)
            end = time.monotonic() + 2
            until(lambda: time.monotonic() > end, "the clock stands still")
            assert cpu_ticks(pid) - before <= 4  # 2 % of the time
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            second.send(b"y\n")
            assert first.recv(100) == b"\x02y\n"


@OWN_ZYGOTE
@pytest.mark.slow
def test_idle_monitor_does_not_wake_up(rig: Rig) -> None:
    """R41: nothing happens, so nothing runs; also after a stop and a continue of the process."""
    case = rig.create("/bin/sleep", "1000", stdin=True).start()
    terminal = rig.create("/bin/sleep", "1000", terminal=True, stdin=True).start()
    pids = (case.monitor_pid, terminal.monitor_pid, rig.zygote_pid)
    until(lambda: set(children(rig.zygote_pid)) - set(pids), "the zygote does not make the next monitor")
    for signum, state in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S")):
        for pid in pids:
            os.kill(pid, signum)
        until(partial(all_are, pids, state), f"not all are {state}")
    until(lambda: not workers(case) and not workers(terminal), "somebody works although nothing happens")
    until(partial(all_are, pids, "S"), "somebody who has just reaped a worker does not go to sleep")
    before = [wakeups(pid) for pid in pids]
    end = time.monotonic() + float(os.environ.get("CONMON_IDLE_S", "3"))
    until(lambda: time.monotonic() > end, "the clock stands still", 120)
    assert [wakeups(pid) for pid in pids] == before


def test_terminal_that_nobody_has_open_does_not_make_the_monitor_spin(rig: Rig) -> None:
    """R41: a container that closes its terminal leaves a descriptor that would poll as ready for ever."""
    case = rig.create("/bin/sh", "-c", "exec </dev/null >/dev/null 2>&1; sleep 1000", terminal=True).start()
    until(lambda: os.readlink(f"/proc/{case.pid}/fd/1") == "/dev/null", "still on the terminal")
    until(lambda: not workers(case), "somebody works for a terminal that is closed")
    before = wakeups(case.monitor_pid)
    end = time.monotonic() + 1
    until(lambda: time.monotonic() > end, "the clock stands still")
    assert wakeups(case.monitor_pid) - before <= 1


def test_memory_of_a_monitor_stays_the_same_over_many_clients(rig: Rig) -> None:
    """R42: clients, resizes, reopens and output come and go; memory and descriptors do not grow."""
    case = rig.create("/bin/cat", stdin=True, options=["--leave-stdin-open"]).start()

    def use(times: int) -> tuple[int, int]:
        """Memory of the process that works, and descriptors when it has ended."""
        for _ in range(times):
            with case.attach() as client:
                client.send(b"some words\n")
                assert client.recv(9000) == b"\x02some words\n"
            case.control("1 24 80\n2 0 0\n")
        memory_kb = rss_kb(worker(case))
        until(lambda: len(os.listdir(f"/proc/{case.monitor_pid}/fd")) <= descriptors, "descriptors stay open")
        return memory_kb, len(os.listdir(f"/proc/{case.monitor_pid}/fd"))

    descriptors = len(os.listdir(f"/proc/{case.monitor_pid}/fd"))
    first, fds = use(50)
    second, fds_after = use(1000)
    assert fds == fds_after
    assert second <= first * 1.05


@OWN_ZYGOTE
def test_exit_while_nobody_watches_is_kept_with_code_and_time(rig: Rig) -> None:
    """R18, R19: no server, no zygote, no notification; what was recorded is there to be found."""
    case = rig.create("/bin/sh", "-c", "exit 42").start()
    os.kill(rig.zygote_pid, signal.SIGKILL)
    before_ns = time.time_ns()
    assert case.exit_code() == 42
    record = json.loads((case.folder / "persist/exit.json").read_text())
    assert (record["exit_code"], record["reason"], record["oom_killed"]) == (42, "Error", False)
    assert abs(record["finished_at_ns"] - before_ns) < 30e9


@OWN_ZYGOTE
def test_zygote_that_dies_is_replaced_and_its_monitors_do_not_notice(rig: Rig) -> None:
    """The server asks again and gets a new one; the containers of the old one live and are recorded."""
    old = rig.create("/bin/sh", "-c", "read x; exit 5", stdin=True).start()
    os.kill(rig.zygote_pid, signal.SIGKILL)
    until(lambda: not alive(rig.zygote_pid), "zygote lives")
    new = rig.create("/bin/sh", "-c", "exit 6").start()
    assert new.exit_code() == 6
    assert anyio.run(rig.client.ensure) != rig.zygote_pid
    with old.attach() as client:
        client.send(b"\n")
        assert old.exit_code() == 5


@OWN_ZYGOTE
def test_monitor_that_was_kept_ready_ends_with_its_zygote(rig: Rig) -> None:
    """It listens on a socket that no client will find again."""
    until(lambda: children(rig.zygote_pid), "no monitor is kept ready")
    spares = children(rig.zygote_pid)
    os.kill(rig.zygote_pid, signal.SIGKILL)
    for pid in spares:
        until(partial(ended, pid), f"monitor {pid} waits for nobody")


def test_monitor_killed_while_it_creates_takes_the_runtime_with_it(rig: Rig, tmp_path: Path) -> None:
    """R3: nothing is made that nobody watches, and the caller is told by the end of the pipe."""
    runtime = tmp_path / "slow"
    noted = tmp_path / "runtime.pid"
    runtime.write_text(f"#!/bin/sh\necho $$ > {noted}.new\nmv {noted}.new {noted}\nexec sleep 600\n")
    runtime.chmod(0o755)
    case = Case(rig=rig, cid=f"{MINE}-slow", folder=tmp_path)
    words = ["-c", case.cid, "-u", case.cid, "-n", "slow", "-r", str(runtime), "-b", str(tmp_path), "--full-attach"]
    rig.launch(case, [*words, "-l", "none"])
    until(noted.exists, "the runtime does not start")
    assert case.watched()
    os.kill(case.monitor_pid, signal.SIGKILL)
    assert case.read_sync() == {}
    os.close(case.sync_fd)
    pid = int(noted.read_text())
    until(lambda: not alive(pid), "the runtime goes on without a monitor")


def own_kb(pid: int) -> int:
    """Memory that a process shares with nobody."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("Private_Dirty:")[2].split()[0])


def test_memory_of_a_quiet_monitor_is_a_small_part_of_an_interpreter(rig: Rig) -> None:
    """A hundred of them are to need less than as many of conmon: what one does not share is what counts.

    So it is before the first event, after it was stopped and continued, and after a line of log.
    """
    case = rig.create(
        "/bin/sh", "-c", "read x; echo a line; read y", stdin=True, options=["--leave-stdin-open"]
    ).start()
    until(lambda: own_kb(case.monitor_pid) <= 400, "an idle monitor has more than 400 kB of its own")
    for signum, state in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S")):
        os.kill(case.monitor_pid, signum)
        until(partial(all_are, (case.monitor_pid,), state), f"it is not {state}")
    assert workers(case) == []
    with case.attach() as client:
        client.send(b"\n")
        assert client.recv(100) == b"\x02a line\n"
    until(lambda: not workers(case), "somebody works although nothing happens")
    assert own_kb(case.monitor_pid) <= 400
    assert case.output() == b"a line\n"


def test_work_of_a_monitor_that_was_quiet_goes_on_where_it_stopped(rig: Rig) -> None:
    """R38: part of a line, a rotation and a size, from one process that works to the next; the exit is the last."""
    script = "printf one; read x; echo two; read x; printf three; exit 9"
    case = rig.create("/bin/sh", "-c", script, stdin=True, options=["--leave-stdin-open"]).start()
    rotated: list[Path] = []
    for part in (b"one\n", b"two\n"):
        until(lambda: case.log.exists() and case.log.read_bytes().endswith(part), f"{part!r} is not logged")  # noqa: B023
        until(lambda: not workers(case), "somebody works although nothing happens")
        rotated.append(case.log.rename(case.folder / f"log.{len(rotated)}"))
        case.control("2 0 0\n")
        until(case.log.exists, "no new log")
        until(lambda: not workers(case), "somebody works although nothing happens")
        with case.attach() as client:
            client.send(b"\n")
            client.recv(100)
    assert case.exit_code() == 9
    case.gone()
    assert [tag for _, tag, _ in case.records(*rotated, case.log)] == ["P", "F", "F"]
    assert case.output("stdout", *rotated, case.log) == b"onetwo\nthree\n"


def test_worker_that_is_killed_is_replaced_and_the_exit_is_not_lost(rig: Rig) -> None:
    """R17: it is no monitor, only what one has made for now; a second one goes on with the log."""
    script = "echo one; read x; echo two; read x; exit 9"
    case = rig.create("/bin/sh", "-c", script, stdin=True, options=["--leave-stdin-open"]).start()
    for line in (b"one\n", b"two\n"):
        until(lambda: case.log.read_bytes().endswith(line), f"{line!r} is not logged")  # noqa: B023
        os.kill(worker(case), signal.SIGKILL)
        with case.attach() as client:
            client.send(b"\n")
            client.recv(100)
    assert case.exit_code() == 9
    case.gone()
    assert case.output() == b"one\ntwo\n"


@OWN_ZYGOTE
def test_second_start_finds_the_zygote_that_runs(rig: Rig) -> None:
    """Servers that start at once end up with one."""

    async def race() -> list[int]:
        found: list[int] = []

        async def one() -> None:
            found.append(await ZygoteClient(rig.folder / "zygote.sock").ensure())

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(one)
        return found

    assert set(anyio.run(race)) == {rig.zygote_pid}


def test_refused_request_says_why(rig: Rig) -> None:
    """A log that cannot be opened is told at once, before a process exists."""
    case = Case(rig=rig, cid="criotest-none", folder=rig.folder)
    with pytest.raises(OperationError, match="No such file or directory"):
        rig.launch(case, ["-c", "x", "-u", "x", "-r", "/bin/true", "-b", str(rig.folder), "-l", "/no/such/dir/log"])
    os.close(case.sync_fd)
    with pytest.raises(OperationError, match="Container UUID"):
        rig.launch(case, ["-c", "x", "-r", "/bin/true", "-l", "none"])
    os.close(case.sync_fd)


def test_title_tells_which_container_a_monitor_serves(rig: Rig) -> None:
    """`ps` and `crioctl tree` show it."""
    case = rig.create("/bin/sleep", "1000")
    words = Path(f"/proc/{case.monitor_pid}/cmdline").read_bytes().rstrip(b"\0")
    assert words == f"conmon -c {case.cid} -n {case.cid}".encode()
    assert Path(f"/proc/{case.monitor_pid}/comm").read_text() == "conmon\n"


def test_container_whose_monitor_was_killed_ends_with_it_known(rig: Rig) -> None:
    """R17: kill monitor and container in both orders; no order leaves an exit file that says 0."""
    for monitor_first in (True, False):
        case = rig.create("/bin/sleep", "1000").start()
        pid, pidfd = case.pid, os.pidfd_open(case.pid)
        for victim in (case.monitor_pid, pid) if monitor_first else (pid, case.monitor_pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)
        case.gone()
        path = case.folder / "exits" / case.cid
        assert not path.exists() or path.read_text() == "137"


@OWN_ZYGOTE
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_churn_with_random_kills_loses_no_exit(rig: Rig) -> None:
    """As many monitors as containers at the end, no zombie, and each exit is true or plainly unknown.

    `CONMON_CHURN=1000` runs it in full.
    """
    chance = random.Random(4)
    unwatched: set[str] = set()
    for number in range(CHURN):
        case = rig.create("/bin/sh", "-c", f"read x; exit {number % 200 + 1}", stdin=True).start()
        dice = chance.random()
        if dice < 0.1:
            os.kill(case.monitor_pid, signal.SIGKILL)
            unwatched.add(case.cid)
        elif dice < 0.2:
            os.kill(anyio.run(rig.client.ensure), signal.SIGKILL)
        if dice < 0.1:
            rig.runc("kill", case.cid, "KILL", check=False)  # its input ended with the monitor: it may be gone
            continue
        if number % 10:
            with case.attach() as client:
                client.send(b"\n")
                assert case.exit_code() == number % 200 + 1
            case.gone()
            rig.runc("delete", "-f", case.cid)
    expected = [case for index, case in enumerate(rig.cases) if index % 10 == 0 and case.cid not in unwatched]
    living = [case for case in rig.cases if case.watched()]
    assert [case.cid for case in living] == [case.cid for case in expected]
    for case in rig.cases:
        assert case.cid not in unwatched or not (case.folder / "exits" / case.cid).exists()
    zygote = anyio.run(rig.client.ensure)
    # A process that ended this very moment is a zombie until the zygote has looked.
    until(lambda: all(alive(pid) for pid in children(zygote)), "the zygote reaps its zombies")
