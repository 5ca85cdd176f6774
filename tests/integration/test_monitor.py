"""Containers under a real monitor: created whole or not at all, and their true exit known, whoever dies first."""

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest

from crio_core.errors import Code, OperationError
from crio_io import exits, monitor, monitor_files, witness
from crio_io.cgroups import Cgroups
from crio_io.exits import Exit, ExitWatcher
from crio_io.monitor import ConmonMonitor, MonitorRequest
from crio_io.monitor_files import Created
from crio_io.moves import Moves
from crio_io.runtime import OciRuntime
from crio_io.witness import ExitRecord
from tests.integration.bundle_fixture import CGROUP_PARENT, CONMON, RUNC, Bundles
from tests.integration.conmon_suite import hasty_zygote
from tests.integration.leftovers import MINE
from tests.integration.waiting import wait_meanwhile

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path(RUNC).exists() or not Path(CONMON).exists(), reason="needs root, runc and conmon"
    ),
]

MONITOR_CGROUP = f"/{MINE}-monitors"


KINDS = ("debian", "alone", "zygote")
"""Debian's conmon, and our own: started as a program, as another engine would, and forked by a zygote."""
FORKED = pytest.mark.parametrize("site", ["zygote"], indirect=True)


class Site:
    """A runtime, a monitor and an exit watcher with directories of their own."""

    def __init__(self, root: Path, kind: str, zygote: Path) -> None:
        self.root = root
        self.kind = kind
        self.zygote = hasty_zygote(zygote) if kind == "zygote" else None
        self.bundles = Bundles(root=root / "bundles")
        self.groups = Cgroups.detect()
        moves = Moves(self.groups)
        self.runtime = OciRuntime(
            "runc", RUNC, str(root / "runc"), systemd_cgroup=False, scratch=root / "scratch", moves=moves
        )
        self.monitor = self.monitor_of(
            str(Path(sys.executable).with_name("crio-conmon")) if kind == "alone" else CONMON
        )
        self.watcher = ExitWatcher(root / "exits", root / "bundles", self.groups)

    def monitor_of(self, path: str, cgroup: str = MONITOR_CGROUP) -> ConmonMonitor:
        """A monitor by another program, or in another place."""
        return ConmonMonitor(
            path,
            self.runtime,
            exit_dir=self.root / "exits",
            socket_dir=self.root / "att",
            cgroups=self.groups,
            cgroup=cgroup,
            env={"PATH": os.environ["PATH"]},
            zygote=self.zygote if path == CONMON else None,
        )

    def request(self, name: str, *args: str, terminal: bool = False, memory_bytes: int = 0) -> MonitorRequest:
        """A bundle and the request to create it."""
        bundle = self.bundles.make(name, *args, terminal=terminal, memory_bytes=memory_bytes)
        log = str(self.root / f"{name}.log")
        return MonitorRequest(container_id=name, name=name, bundle=bundle, log_path=log, terminal=terminal)

    async def started(self, request: MonitorRequest) -> Created:
        """Create and start."""
        created = await self.monitor.create(request)
        await self.runtime.start(request.container_id)
        return created

    async def exit_of(self, name: str, created: Created) -> Exit:
        """Wait for the exit, not for ever."""
        with anyio.fail_after(40):
            return await self.watcher.wait(name, created.pid, created.pid_start_ticks, created.monitor_pid)

    async def has_pids(self, path: str, count: int) -> None:
        """Wait until a cgroup has this many processes."""
        what = f"{count} processes in {path}"
        await wait_meanwhile(what, lambda: len(self.groups.pids(path)) == count)

    async def clean(self) -> None:
        """Remove everything that a test made, and prove it."""
        for name in self.bundles.made:
            await self.runtime.delete(name)
            await self.monitor.stop(name, self.bundles.root / name)
            await self.monitor.stop(name, self.bundles.root / name)
            assert sorted(os.listdir(self.bundles.root / name)) == ["config.json", "rootfs"]
        for path in (MONITOR_CGROUP, CGROUP_PARENT):
            await self.has_pids(path, 0)  # what a monitor made for its work ends with it, a moment later
            self.groups.remove(path)
        for directory in ("att", "exits", "runc"):
            assert not (self.root / directory).exists() or os.listdir(self.root / directory) == []


@pytest.fixture(params=KINDS)
async def site(request: pytest.FixtureRequest, tmp_path: Path, shared_zygote: Path) -> AsyncIterator[Site]:
    """A site, cleaned and checked for residue afterwards."""
    made = Site(tmp_path, request.param, shared_zygote)
    try:
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await made.clean()


def wait_ended(pid: int) -> None:
    """Wait for the end of a process that is not our child; whether anybody has reaped it does not matter."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        assert poller.poll(10_000), f"process {pid} did not end"
    finally:
        os.close(handle)


def kill_and_wait(pid: int) -> None:
    """Kill a process that is not our child, and wait for its end."""
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid)


def witnessed(site: Site, name: str) -> ExitRecord:
    """The record that our own monitor has left."""
    found = witness.exit_record(site.bundles.root / name)
    assert found is not None
    return found


def finished_at_ns(site: Site, name: str) -> int:
    """When the monitor saw the end, as it has written it down."""
    if site.kind == "debian":
        return (site.root / "exits" / name).stat().st_mtime_ns
    return witnessed(site, name).finished_at_ns


async def test_container_that_exits_gives_its_code_and_log(site: Site) -> None:
    """The plain case, without a terminal."""
    request = site.request("criotest-plain", "sh", "-c", "echo hello; exit 3")
    created = await site.started(request)
    result = await site.exit_of("criotest-plain", created)
    assert (result.code, result.oom, result.reason) == (3, False, "")
    assert result.finished_at_ns == finished_at_ns(site, "criotest-plain")
    assert Path(request.log_path).read_text().endswith(" stdout F hello\n")


async def test_container_with_a_terminal_gives_its_code(site: Site) -> None:
    """The runtime hands the terminal to the monitor over a socket."""
    request = site.request("criotest-tty", "sh", "-c", "test -t 0 && exit 4", terminal=True)
    assert (await site.exit_of("criotest-tty", await site.started(request))).code == 4


async def test_container_without_a_log_leaves_none(site: Site) -> None:
    """An empty log path means no log, not one at a default place."""
    request = replace(site.request("criotest-nolog", "sh", "-c", "echo x; exit 5"), log_path="")
    assert (await site.exit_of("criotest-nolog", await site.started(request))).code == 5


async def test_create_twice_is_once(site: Site) -> None:
    """A repeated effect must not start a second monitor."""
    request = site.request("criotest-twice", "sleep", "600")
    assert await site.monitor.create(request) == await site.monitor.create(request)
    await site.has_pids(MONITOR_CGROUP, 1)
    assert monitor_files.recorded(request.bundle) == await site.monitor.create(request)


async def test_monitor_lives_outside_of_the_pod(site: Site) -> None:
    """CVE-2019-14891: a pod that eats its memory must not take its monitor along, in any hierarchy."""
    created = await site.started(site.request("criotest-cgroup", "sleep", "600"))
    lines = Path(f"/proc/{created.monitor_pid}/cgroup").read_text().splitlines()
    assert {line.split(":", 2)[2] for line in lines} == {MONITOR_CGROUP}
    assert site.groups.memory_path(created.pid) == f"{CGROUP_PARENT}/criotest-cgroup"


BUSCTL = f"""#!/bin/sh
echo "$@" >> {{calls}}
case "$*" in *ResetFailedUnit*) exit 1 ;; esac
for group in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
  [ -e "$group/cgroup.procs" ] || continue
  mkdir -p "$group{MONITOR_CGROUP}" && echo {{last_pid}} > "$group{MONITOR_CGROUP}/cgroup.procs"
done
exit {{code}}
"""
"""Stands for systemd: what it was told, and the process moved."""


def systemd(site: Site, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Path:
    """Put a stub for systemd's client into $PATH; returns the file with what it was told."""
    calls, program = site.root / "calls", site.root / "bin" / "busctl"
    program.parent.mkdir()
    last_pid = "$(echo $* | sed 's/.* PIDs au 1 //; s/ .*//')"
    program.write_text(BUSCTL.format(calls=calls, last_pid=last_pid, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return calls


async def test_monitor_of_a_slice_is_in_a_scope_before_it_does_anything(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2019-14891, where systemd arranges: it is told the slice, the name and the one process.

    R29: and, before that, to forget a scope of the same name that failed.
    """
    calls = systemd(site, monkeypatch)
    site.monitor = site.monitor_of(CONMON, "criotest.slice")
    created = await site.started(site.request("criotest-slice", "sleep", "600"))
    reset, start = calls.read_text().splitlines()
    assert reset.endswith("ResetFailedUnit s crio-conmon-criotest-slice.scope")
    assert " StartTransientUnit ssa(sv)a(sa(sv)) crio-conmon-criotest-slice.scope replace 5 " in start
    assert " Slice s criotest.slice " in start
    # The monitor that was moved has forked since: it and its child are both in there.
    assert created.monitor_pid in site.groups.pids(MONITOR_CGROUP)


async def test_scope_that_systemd_does_not_make_is_a_failure_that_leaves_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor in the wrong place would be found out by its victims; the fixture checks what is left."""
    systemd(site, monkeypatch, code=1)
    site.monitor = site.monitor_of(CONMON, "criotest.slice")
    with pytest.raises(OperationError, match=r"did not make scope crio-conmon-criotest-refused\.scope in"):
        await site.monitor.create(site.request("criotest-refused", "sleep", "600"))


async def test_missing_program_is_the_runtimes_complaint(site: Site) -> None:
    """R3, F7: a reason, a readable sentence, and no residue; the fixture checks the latter."""
    request = site.request("criotest-missing", "no-such-program")
    with pytest.raises(OperationError) as caught:
        await site.monitor.create(request)
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "EXECUTABLE_NOT_FOUND")
    assert '"no-such-program"' in caught.value.message and "level=" not in caught.value.message
    assert await site.runtime.state("criotest-missing") is None and not Path(request.log_path).exists()


async def test_failed_creation_keeps_a_log_that_was_there(site: Site) -> None:
    """An earlier attempt's log is somebody's evidence."""
    request = site.request("criotest-oldlog", "no-such-program")
    Path(request.log_path).write_text("earlier\n")
    with pytest.raises(OperationError):
        await site.monitor.create(request)
    assert Path(request.log_path).read_text().startswith("earlier\n")


async def test_monitor_that_says_nothing_is_a_failure_of_its_own(site: Site) -> None:
    """The monitor's name is wrong, or it dies early: that is not the container's fault."""
    request = site.request("criotest-mute", "true")
    with pytest.raises(OperationError) as caught:
        await site.monitor_of("/bin/false").create(request)
    assert caught.value.reason == "MONITOR_FAILED"
    with pytest.raises(OperationError) as caught:
        await site.monitor_of("/nowhere/conmon").create(request)
    assert caught.value.reason == "EXECUTABLE_NOT_FOUND"


@pytest.mark.parametrize("after_s", [0.001, 0.008, 0.014, 0.02, 0.026, 0.032])
async def test_creation_cut_short_at_any_moment_leaves_nothing(site: Site, after_s: float) -> None:
    """R3, R26: a timeout kills monitor, runtime and container; the same request succeeds afterwards."""
    request = site.request("criotest-cut", "sleep", "600")
    failure: OperationError | None = None
    try:
        await site.monitor.create(request, timeout_s=after_s)
    except OperationError as error:
        failure = error
    if failure is not None:  # It may also have been faster than that.
        assert failure.reason == "TIMEOUT"
        assert await site.runtime.state("criotest-cut") is None
        assert site.groups.pids(MONITOR_CGROUP) == () and site.groups.pids(CGROUP_PARENT) == ()
        assert not site.groups.exists(f"{CGROUP_PARENT}/criotest-cut")
    created = await site.monitor.create(request)
    assert psutil.pid_exists(created.pid)


async def test_creation_that_is_cancelled_leaves_nothing(site: Site) -> None:
    """R3: the same for a caller that goes away."""
    request = site.request("criotest-cancel", "sleep", "600")
    with anyio.move_on_after(0.015) as scope:
        await site.monitor.create(request)
    if scope.cancelled_caught:
        assert await site.runtime.state("criotest-cancel") is None
        assert site.groups.pids(MONITOR_CGROUP) == ()


async def test_killed_container_is_seen_with_its_code(site: Site) -> None:
    """R17, first order: the container dies, the monitor lives."""
    created = await site.started(site.request("criotest-killed", "sleep", "600"))
    async with anyio.create_task_group() as tasks:
        results: list[Exit] = []

        async def wait() -> None:
            results.append(await site.exit_of("criotest-killed", created))

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        os.kill(created.pid, signal.SIGKILL)
    assert (results[0].code, results[0].oom) == (137, False)


async def test_dead_monitor_means_an_unknown_code_and_never_zero(site: Site) -> None:
    """R17, second order: the monitor dies, then the container ends well. Nobody knows its code."""
    created = await site.started(site.request("criotest-orphan", "sh", "-c", "while test -e /tmp; do :; done; exit 0"))
    kill_and_wait(created.monitor_pid)
    (site.bundles.root / "criotest-orphan/rootfs/tmp").rmdir()
    result = await site.exit_of("criotest-orphan", created)
    assert (result.code, result.reason) == (None, "Unknown")


async def test_both_dead_means_an_unknown_code(site: Site) -> None:
    """R17, third order: found dead after a restart of the server."""
    created = await site.started(site.request("criotest-both", "sleep", "600"))
    kill_and_wait(created.monitor_pid)
    kill_and_wait(created.pid)
    assert (await site.exit_of("criotest-both", created)).code is None


async def test_exit_while_nobody_watched_is_found(site: Site) -> None:
    """R18: the server was down; the code and the time are in the file."""
    created = await site.started(site.request("criotest-later", "sh", "-c", "exit 9"))
    wait_ended(created.monitor_pid)
    result = await site.exit_of("criotest-later", created)
    assert (result.code, result.finished_at_ns) == (9, finished_at_ns(site, "criotest-later"))


@FORKED
@pytest.mark.parametrize("fault", ["size=4k,nr_inodes=1", "ro"], ids=["full", "read-only"])
async def test_exit_with_an_exit_directory_that_takes_nothing_is_found_in_the_bundle(site: Site, fault: str) -> None:
    """R18, R40: the exit is written down twice, in two places, and one is enough for the true code and time."""
    request = site.request("criotest-full", "sh", "-c", "while test -e /tmp; do :; done; exit 12")
    exit_dir = site.root / "exits"
    created = await site.started(request)
    subprocess.run(["mount", "-t", "tmpfs", "-o", fault, "criotest-exits", str(exit_dir)], check=True)
    try:
        (request.bundle / "rootfs/tmp").rmdir()
        result = await site.exit_of("criotest-full", created)
        assert os.listdir(exit_dir) == []
        assert (result.code, result.reason) == (12, "")
        assert result.finished_at_ns == witnessed(site, "criotest-full").finished_at_ns
    finally:
        subprocess.run(["umount", str(exit_dir)], check=True)


@FORKED
async def test_monitor_s_verdict_on_want_of_memory_is_believed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """R20: a counter that rose since the server began to look may be hours old; the monitor knows when (0012)."""
    created = await site.started(site.request("criotest-verdict", "sleep", "600"))
    counts = iter([0, 1])
    monkeypatch.setattr(Cgroups, "oom_kills", lambda *_: next(counts))
    os.kill(created.pid, signal.SIGKILL)
    result = await site.exit_of("criotest-verdict", created)
    assert (result.code, result.oom, result.reason) == (137, False, "")


@FORKED
async def test_monitor_that_is_killed_is_noticed_while_the_container_runs(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """R17: log and exit code are lost from then on, and not only when somebody misses them."""
    created = await site.started(site.request("criotest-unwatched", "sleep", "600"))
    bundle = site.bundles.root / "criotest-unwatched"
    assert not witness.is_unwatched(bundle)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(site.exit_of, "criotest-unwatched", created)
        await anyio.wait_all_tasks_blocked()
        kill_and_wait(created.monitor_pid)
        assert witness.is_unwatched(bundle)
        await wait_meanwhile("a warning", lambda: "its monitor" in caplog.text)
        os.kill(created.pid, signal.SIGKILL)
    assert caplog.text.count("its monitor") == 1


async def test_numbers_that_others_have_got_meanwhile_do_not_fool_it(site: Site) -> None:
    """PID reuse: a younger stranger has the numbers of the container and of its monitor, and is neither."""
    created = await site.started(site.request("criotest-reuse", "sh", "-c", "exit 6"))
    wait_ended(created.monitor_pid)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            confused = replace(created, pid=stranger.pid, monitor_pid=stranger.pid)
            assert (await site.exit_of("criotest-reuse", confused)).code == 6
            (site.root / "exits" / "criotest-reuse").unlink()
            (site.bundles.root / "criotest-reuse/exit.json").unlink(missing_ok=True)
            assert (await site.exit_of("criotest-reuse", confused)).code is None
        finally:
            stranger.kill()


async def test_stuck_monitor_is_not_waited_for_for_ever(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """R17: a monitor that is stopped never writes; the container is dead all the same."""
    monkeypatch.setattr(exits, "MONITOR_S", 0.3)
    created = await site.started(site.request("criotest-stuck", "sleep", "600"))
    os.kill(created.monitor_pid, signal.SIGSTOP)
    os.kill(created.pid, signal.SIGKILL)
    try:
        assert (await site.exit_of("criotest-stuck", created)).code is None
    finally:
        os.kill(created.monitor_pid, signal.SIGCONT)


async def test_exit_is_seen_without_any_notification(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """R19: no pidfd can be had (descriptors have run out, say); looking finds the exit."""
    monkeypatch.setattr(exits, "NO_WATCH_S", 0.02)
    created = await site.started(site.request("criotest-blind", "sh", "-c", "exit 8"))

    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("crio_io.exits.os.pidfd_open", refuse)
    assert (await site.exit_of("criotest-blind", created)).code == 8
    monkeypatch.undo()


async def test_exit_is_not_lost_when_the_watch_has_taken_the_last_descriptors(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R19: two are enough for a container, and a monitor that has to be waited for without one still gets its time."""
    created = await site.started(site.request("criotest-last", "sleep", "600"))
    opened: list[int] = []
    refused: list[object] = []
    has_both, has_no_more = anyio.Event(), anyio.Event()
    pidfd_open = os.pidfd_open

    def refuse(*what: object) -> int:
        refused.append(what)
        has_no_more.set()
        raise OSError(24, "Too many open files")

    def two_only(pid: int, flags: int = 0) -> int:
        if len(opened) == 2:
            refuse(pid)
        opened.append(pid)
        if len(opened) == 2:
            has_both.set()
        return pidfd_open(pid, flags)

    monkeypatch.setattr("crio_io.exits.os.pidfd_open", two_only)
    monkeypatch.setattr(select, "epoll", refuse)
    monkeypatch.setattr(exits, "GRACE_S", 0)
    os.kill(created.monitor_pid, signal.SIGSTOP)
    results: list[Exit] = []

    async def wait() -> None:
        results.append(await site.exit_of("criotest-last", created))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        with anyio.fail_after(20):
            await has_both.wait()
            os.kill(created.pid, signal.SIGKILL)
            await has_no_more.wait()
        os.kill(created.monitor_pid, signal.SIGCONT)
    monkeypatch.undo()
    assert opened == [created.pid, created.monitor_pid]
    assert refused == [(created.monitor_pid,)]
    assert [one.code for one in results] == [137]


@pytest.mark.parametrize(
    ("script", "code", "oom"),
    [
        ("exec tail /dev/zero", 137, True),
        ("tail /dev/zero; exit 143", 143, False),
    ],
    ids=["first process", "child, then its own exit"],
)
async def test_want_of_memory_is_told_by_the_kernels_counter(site: Site, script: str, code: int, oom: bool) -> None:
    """R20: OOMKilled exactly when the first process was the victim."""
    request = site.request("criotest-oom", "sh", "-c", script, memory_bytes=16 * 1024 * 1024)
    result = await site.exit_of("criotest-oom", await site.started(request))
    assert (result.code, result.oom, result.reason) == (code, oom, "OOMKilled" if oom else "")


async def test_reopened_log_goes_on_in_a_new_file(site: Site) -> None:
    """R38: the file was renamed away; the next line is in the new one."""
    script = "echo one; while test -e /tmp; do sleep 0.01; done; echo two; sleep 600"
    request = site.request("criotest-reopen", "sh", "-c", script)
    await site.started(request)
    log, old = Path(request.log_path), Path(request.log_path + ".1")
    await wait_meanwhile("the first line", lambda: log.read_text().endswith("one\n"))
    log.rename(old)
    await site.monitor.reopen_log(request.bundle, request.log_path)
    (request.bundle / "rootfs/tmp").rmdir()
    await wait_meanwhile("the second line", lambda: log.read_text().endswith("two\n"))
    assert old.read_text().endswith("one\n")


async def test_reopen_without_a_monitor_says_so(site: Site) -> None:
    """The FIFO is there, and nobody reads it."""
    request = site.request("criotest-noreader", "sleep", "600")
    created = await site.started(request)
    kill_and_wait(created.monitor_pid)
    with pytest.raises(OperationError) as caught:
        await site.monitor.reopen_log(request.bundle, request.log_path)
    assert caught.value.reason == "MONITOR_GONE"


async def test_reopen_ends_when_the_monitor_does(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """R38: a container that ends while its log is reopened is no slow monitor."""
    monkeypatch.setattr(monitor, "REOPEN_S", 60.0)
    request = site.request("criotest-reopenend", "sleep", "600")
    created = await site.started(request)
    os.kill(created.monitor_pid, signal.SIGSTOP)
    Path(request.log_path).rename(request.log_path + ".1")

    async def end() -> None:
        fifo = os.open(request.bundle / "ctl", os.O_RDWR | os.O_NONBLOCK)
        await wait_meanwhile("word for it", lambda: fcntl.ioctl(fifo, termios.FIONREAD, bytes(4)) != bytes(4))
        os.close(fifo)
        kill_and_wait(created.monitor_pid)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end)
            with pytest.raises(OperationError) as caught:
                await site.monitor.reopen_log(request.bundle, request.log_path)
    assert caught.value.reason == "MONITOR_GONE"


async def test_stop_kills_a_monitor_that_does_not_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """R26: helper processes = live containers, also when a helper hangs."""
    monkeypatch.setattr(monitor, "STOP_S", 0.05)
    request = site.request("criotest-hung", "sleep", "600")
    created = await site.started(request)
    os.kill(created.monitor_pid, signal.SIGSTOP)
    await site.runtime.delete("criotest-hung")
    # What it was writing then: conmon's names, and ours.
    for name in ("criotest-hung.AbC123", "criotest-hung.77.tmp"):
        (site.root / "exits" / name).touch()
    for name in ("exit.AbC123", "exit.json.77.tmp"):
        (request.bundle / name).touch()
    await site.monitor.stop("criotest-hung", request.bundle)
    wait_ended(created.monitor_pid)


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"pid": 1}', b"\xff\x00"])
async def test_stop_with_a_damaged_record_finds_the_monitor_by_looking(site: Site, damage: bytes) -> None:
    """R9, R26: one garbled file must not leave a monitor behind, or a container that cannot be removed."""
    request = site.request("criotest-garbled", "sleep", "600")
    created = await site.started(request)
    (request.bundle / monitor_files.PROCESSES_FILE).write_bytes(damage)
    await site.runtime.delete("criotest-garbled")
    await site.monitor.stop("criotest-garbled", request.bundle)
    wait_ended(created.monitor_pid)


async def test_attach_socket_answers_on_a_short_path(site: Site) -> None:
    """Streaming connects there: a deep state directory must not make the path too long for a socket."""
    await site.started(site.request("criotest-attach", "sh", "-c", "while true; do echo x; sleep 0.05; done"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(10)
        client.connect(str(site.root / "att" / "criotest-attach" / "attach"))
        assert client.recv(100).startswith(b"\x02x")
