"""A real runtime's command line: its answers, its complaints, and execs that do not behave."""

import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.errors import Code, OperationError
from crio_io.cgroups import Cgroups
from crio_io.moves import Moves
from crio_io.runtime import OciRuntime, messages, processes
from tests.integration.bundle_fixture import CGROUP_PARENT, RUNC, Bundles, process

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0 or not Path(RUNC).exists(), reason="needs root and runc"),
]

ID = "criotest-runtime"


def runtime_at(tmp_path: Path, name: str, path: str) -> OciRuntime:
    """A runtime with a state directory of its own."""
    moves = Moves(Cgroups.detect())
    return OciRuntime(name, path, str(tmp_path / name), systemd_cgroup=False, scratch=tmp_path / "scratch", moves=moves)


@pytest.fixture
def runtime(tmp_path: Path) -> OciRuntime:
    """The runtime of the tests."""
    return runtime_at(tmp_path, "runc", RUNC)


def create(bundle: Path, runtime: OciRuntime, name: str = ID) -> None:
    """`runc create`, with its output thrown away, because the container keeps it."""
    null = subprocess.DEVNULL
    argv = [runtime.path, *runtime.global_options(), "create", "--bundle", str(bundle), name]
    subprocess.run(argv, stdin=null, stdout=null, stderr=null, check=True, timeout=30)


@pytest.fixture
async def running(runtime: OciRuntime, tmp_path: Path) -> AsyncIterator[str]:
    """A container that runs until it is killed."""
    create(
        Bundles(root=tmp_path / "bundles").make(ID, "sh", "-c", "trap : TERM; while true; do sleep 600; done"), runtime
    )
    try:
        await runtime.start(ID)
        yield ID
    finally:
        with anyio.CancelScope(shield=True):
            await runtime.delete(ID)


@pytest.fixture(autouse=True)
def no_residue(tmp_path: Path) -> Iterator[None]:
    """No test leaves a cgroup, an unreaped child, or a file of an exec."""
    yield
    groups = Cgroups.detect()
    assert groups.pids(CGROUP_PARENT) == ()
    groups.remove(CGROUP_PARENT)
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []
    assert not (tmp_path / "scratch").exists() or list((tmp_path / "scratch").iterdir()) == []


def alive_with(argument: str) -> list[int]:
    """Live processes that have this argument."""
    found = []
    for candidate in psutil.process_iter(["cmdline", "status"]):
        if argument in (candidate.info["cmdline"] or ()) and candidate.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(candidate.pid)
    return found


async def test_container_goes_through_its_life(runtime: OciRuntime, tmp_path: Path) -> None:
    """Every command on a container in every state, each twice: done twice is done once."""
    assert await runtime.state(ID) is None
    await runtime.delete(ID)
    await runtime.kill(ID, "KILL")
    bundle = Bundles(root=tmp_path / "bundles").make(ID, "sleep", "600")
    create(bundle, runtime)
    try:
        created = await runtime.state(ID)
        assert created is not None and (created.status, created.bundle) == ("created", str(bundle))
        await runtime.start(ID)
        await runtime.start(ID)
        started = await runtime.state(ID)
        assert started is not None and (started.status, started.pid) == ("running", created.pid)
        await runtime.update(ID, b'{"memory": {"limit": 67108864}}')
        await runtime.kill(ID, "KILL", everyone=True)
        with anyio.fail_after(10):
            while (state := await runtime.state(ID)) is not None and state.status != "stopped":
                pass
        await runtime.kill(ID, "TERM")
        with pytest.raises(OperationError) as caught:
            await runtime.start(ID)
        assert caught.value.reason == "CONTAINER_NOT_RUNNING"
    finally:
        await runtime.delete(ID)
    await runtime.delete(ID)
    assert await runtime.state(ID) is None


async def test_missing_runtime_is_named(tmp_path: Path) -> None:
    """A handler whose program is not installed must say which program."""
    other = runtime_at(tmp_path, "other", "/nowhere/runtime")
    with pytest.raises(OperationError) as caught:
        await other.state(ID)
    assert caught.value.reason == "EXECUTABLE_NOT_FOUND" and "/nowhere/runtime" in caught.value.message


async def test_exec_collects_both_outputs_and_the_code(runtime: OciRuntime, running: str) -> None:
    """The plain case, and codes that a runtime could be confused by."""
    result = await runtime.exec_sync(running, process("sh", "-c", "echo out; echo err >&2; exit 255"), timeout_s=20)
    assert (result.stdout, result.stderr, result.exit_code, result.timed_out) == (b"out\n", b"err\n", 255, False)
    assert (await runtime.exec_sync(running, process("sh", "-c", "kill -9 $$"), timeout_s=20)).exit_code == 137


@pytest.mark.parametrize("args", [("no-such-program",), ("/tmp",), ("/bin/no-such-program",)])
async def test_exec_of_a_missing_program_says_so(runtime: OciRuntime, running: str, args: tuple[str, ...]) -> None:
    """A probe with a wrong path is the user's error: a reason to compare, and the name in a readable sentence."""
    with pytest.raises(OperationError) as caught:
        await runtime.exec_sync(running, process(*args), timeout_s=20)
    assert caught.value.code is Code.FAILED_PRECONDITION and args[0] in caught.value.message
    assert caught.value.reason in ("EXECUTABLE_NOT_FOUND", "EXECUTABLE_NOT_ALLOWED")
    assert "level=" not in caught.value.message and "\\" not in caught.value.message


async def test_exec_in_nothing_says_so(runtime: OciRuntime) -> None:
    """A container that is gone is not a failed command."""
    with pytest.raises(OperationError) as caught:
        await runtime.exec_sync("criotest-absent", process("true"), timeout_s=20)
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "CONTAINER_NOT_FOUND")


@pytest.mark.parametrize(
    "script",
    [
        "sleep 734501",
        "sleep 734501 & echo out",
        "(sleep 734501 &); (sleep 734501 &); sleep 734501",
        "trap '' TERM INT HUP; while true; do sleep 734501; done",
    ],
    ids=["plain", "daemon that holds stdout", "orphans", "ignores signals"],
)
async def test_exec_past_its_limit_is_killed_with_all_it_started(
    runtime: OciRuntime, running: str, script: str
) -> None:
    """R24: the reply comes by the limit plus a second, and nothing of the exec stays."""
    started_s = time.monotonic()
    result = await runtime.exec_sync(running, process("sh", "-c", script), timeout_s=0.4)
    assert result.timed_out and result.exit_code == 137 and time.monotonic() - started_s < 1.4
    assert result.stdout in (b"", b"out\n")
    with anyio.fail_after(5):
        while alive_with("734501"):
            pass


async def test_exec_that_is_cancelled_is_killed(runtime: OciRuntime, running: str) -> None:
    """The node shuts a session down: what it ran must not go on unseen."""
    with anyio.move_on_after(0.3):
        await runtime.exec_sync(running, process("sleep", "734502"), timeout_s=60)
    with anyio.fail_after(5):
        while alive_with("734502"):
            pass


async def test_endless_output_is_bounded(runtime: OciRuntime, running: str) -> None:
    """CVE-2022-1708, CVE-2022-31030: both streams at once, together within the bound, the rest thrown away."""
    before = psutil.Process().memory_info().rss
    script = "yes out & yes err >&2"
    result = await runtime.exec_sync(running, process("sh", "-c", script), timeout_s=1, output_max_bytes=1_000_000)
    assert len(result.stdout) + len(result.stderr) == 1_000_000 and result.truncated and result.timed_out
    assert min(len(result.stdout), len(result.stderr)) > 0
    assert psutil.Process().memory_info().rss - before < 32 * 1024 * 1024


async def test_a_hundred_execs_leave_nothing(runtime: OciRuntime, running: str) -> None:
    """R24, R42: descriptors and children are the same after many as after one."""
    await runtime.exec_sync(running, process("true"), timeout_s=20)
    before = len(os.listdir("/proc/self/fd"))
    async with anyio.create_task_group() as tasks:
        limit = anyio.CapacityLimiter(4)

        async def one() -> None:
            async with limit:
                await runtime.exec_sync(running, process("true"), timeout_s=20)

        for _ in range(40):
            tasks.start_soon(one)
    assert len(os.listdir("/proc/self/fd")) == before


def test_kill_does_not_hit_a_process_that_got_the_number_later() -> None:
    """PID reuse: the start time tells them apart."""
    with subprocess.Popen(["sleep", "60"]) as victim:
        facts = processes.look(victim.pid)
        assert facts is not None
        assert not processes.kill(victim.pid, facts.start_ticks + 1)
        assert victim.poll() is None
        assert processes.kill(victim.pid, facts.start_ticks)
        assert victim.wait(5) == -9
    assert processes.look(victim.pid) is None


def test_process_with_a_hostile_name_is_read(tmp_path: Path) -> None:
    """A program may be called anything, parentheses and line ends included."""
    program = tmp_path / "a) R 1 (\n"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"], start_new_session=True) as child:
        try:
            facts = processes.look(child.pid)
            assert facts is not None and facts.session == child.pid
        finally:
            child.kill()


@given(st.binary(max_size=300))
def test_any_noise_of_a_runtime_becomes_a_bounded_sentence(noise: bytes) -> None:
    """What a runtime writes is data: it may be cut, binary, or JSON of another shape."""
    assert len(messages.readable(noise, noise)) <= messages.MESSAGE_MAX_CHARS + 3


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (b'{"level":"warning","msg":"old kernel"}\n{"level":"error","msg":"it broke"}\n', "it broke"),
        (b'{"level":"error","msg":"one"}\n{"level":"error","msg":"one"}\n{"level":"fatal","msg":"two"}', "one; two"),
        (b'time="2026" level=error msg="exec: \\"x\\": not found"', 'exec: "x": not found'),
        (b"[1,2]\nnull\n7", ""),
    ],
)
def test_log_of_a_runtime_is_read(log: bytes, text: str) -> None:
    """JSON and text logs, repetitions, and lines that are neither."""
    assert messages.errors_in_log(log) == text


@pytest.mark.parametrize(
    "text",
    [
        "container does not exist",
        'container with id "x" does not exist',
        "loading container: file does not exist",
        "loading sandbox: file does not exist",
        "load container x: open /run/x/state.json: no such file or directory",
    ],
)
def test_absence_is_understood_in_every_runtimes_words(text: str) -> None:
    """runc, runsc and crun each say it in their own way; what is absent must count as removed."""
    assert messages.says_absent(text)
    assert messages.failure("runtime", "exec", text).reason == "CONTAINER_NOT_FOUND"


@pytest.mark.skipif(not Path("/usr/bin/runsc").exists(), reason="needs runsc")
async def test_commands_on_nothing_agree_between_runtimes(tmp_path: Path) -> None:
    """The same calls on runsc: absent is success, or has the same reason."""
    other = runtime_at(tmp_path, "runsc", "/usr/bin/runsc")
    assert await other.state(ID) is None
    await other.delete(ID)
    await other.kill(ID, "KILL")
    with pytest.raises(OperationError) as caught:
        await other.exec_sync(ID, process("true"), timeout_s=10)
    assert caught.value.reason == "CONTAINER_NOT_FOUND"
