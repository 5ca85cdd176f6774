"""Short-lived programs: they end, are reaped, inherit nothing, and their output is bounded, whatever they do."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from crio_core.errors import Code, LocalError, OperationError
from crio_io import spawn
from tests.integration.waiting import wait_meanwhile

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture(
    params=[("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})], ids=["asyncio", "uvloop", "trio"]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every loop that can host the executors."""
    return request.param


@pytest.fixture(autouse=True)
def no_residue() -> Iterator[None]:
    """No test leaves a child that nobody reaps."""
    yield
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


async def until_gone(pid: int) -> None:
    """Wait for a process that is not ours to end."""
    await wait_meanwhile(
        f"the end of process {pid}",
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE,
    )


async def until_written(path: Path) -> str:
    """Wait for a file with a whole line."""
    await wait_meanwhile("a whole line", lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text().strip()


async def test_program_that_ends_gives_its_code_and_both_outputs() -> None:
    """The plain case."""
    done = await spawn.run(["/bin/sh", "-c", "cat; echo err >&2; exit 7"], stdin=b"in", timeout_s=5)
    assert done == spawn.Completed(returncode=7, stdout=b"in", stderr=b"err\n", truncated=False)


async def test_program_killed_by_a_signal_gives_a_negative_code() -> None:
    """A caller must be able to tell a crash from an exit."""
    assert (await spawn.run(["/bin/sh", "-c", "kill -9 $$"], timeout_s=5)).returncode == -9


async def test_input_and_output_larger_than_any_pipe_pass_without_deadlock() -> None:
    """A plugin may write while it is still being written to."""
    data = os.urandom(3_000_000)
    done = await spawn.run(["/bin/cat"], stdin=data, timeout_s=20, output_max_bytes=len(data))
    assert done.stdout == data and not done.truncated


async def test_program_that_does_not_read_its_input_is_no_error() -> None:
    """A program need not read; its closed pipe must not become a failure or a signal."""
    assert (await spawn.run(["/bin/true"], stdin=b"x" * 1_000_000, timeout_s=5)).returncode == 0


async def test_output_above_the_bound_is_dropped_and_said() -> None:
    """An endless talker costs its bound and not more (R9's cousin: every buffer has a bound)."""
    done = await spawn.run(["/bin/sh", "-c", "head -c 1000000 /dev/zero"], timeout_s=20, output_max_bytes=1000)
    assert (done.returncode, len(done.stdout), done.truncated) == (0, 1000, True)


async def test_only_listed_descriptors_are_inherited() -> None:
    """A leaked directory descriptor is a way out of a container (CVE-2024-21626)."""
    leaked = os.open("/", os.O_RDONLY)
    passed = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        script = (
            "import os\n"
            "for fd in os.listdir('/proc/self/fd'):\n"
            "    if os.path.exists(f'/proc/self/fd/{fd}'): print(fd, os.readlink(f'/proc/self/fd/{fd}'))"
        )
        done = await spawn.run([sys.executable, "-c", script], pass_fds=(passed,), timeout_s=20)
    finally:
        os.close(leaked)
        os.close(passed)
    links = dict(line.split(" ", 1) for line in done.stdout.decode().splitlines())
    assert links.keys() == {"0", "1", "2", str(passed)}
    assert links[str(passed)] == "/etc"


async def test_many_runs_leave_no_descriptor() -> None:
    """The 10,000th exec must find as many descriptors as the first (R24, R42)."""
    await spawn.run(["/bin/true"], timeout_s=5)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await spawn.run(["/bin/cat"], stdin=b"x", timeout_s=5)
        with pytest.raises(OperationError):
            await spawn.run(["/nowhere/program"], timeout_s=5)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_timeout_kills_the_whole_group_and_names_the_command(tmp_path: Path) -> None:
    """A plugin's children must not outlive its deadline."""
    child = tmp_path / "child"
    with pytest.raises(OperationError) as caught:
        await spawn.run(["/bin/sh", "-c", f"sleep 300 & echo $! > {child}; wait"], timeout_s=0.3)
    assert (caught.value.code, caught.value.reason) == (Code.DEADLINE_EXCEEDED, "TIMEOUT")
    assert "/bin/sh -c sleep 300" in caught.value.message
    await until_gone(int(child.read_text()))


async def test_cancellation_kills_the_whole_group(tmp_path: Path) -> None:
    """Cancelled at the only await: nothing keeps running."""
    child = tmp_path / "child"
    async with anyio.create_task_group() as tasks:
        command = ["/bin/sh", "-c", f"sleep 300 & echo $! > {child}; wait"]

        async def run() -> None:
            await spawn.run(command, timeout_s=60)

        tasks.start_soon(run)
        pid = int(await until_written(child))
        tasks.cancel_scope.cancel()
    await until_gone(pid)


async def test_daemon_that_holds_the_output_does_not_hold_the_call(tmp_path: Path) -> None:
    """R24: the end of the program ends the call."""
    child = tmp_path / "child"
    started = time.monotonic()
    done = await spawn.run(["/bin/sh", "-c", f"sleep 300 & echo $! > {child}; echo out"], timeout_s=30)
    assert done.stdout == b"out\n" and time.monotonic() - started < 10
    pid = int(child.read_text())
    assert psutil.pid_exists(pid)  # It is the program's business, not ours.
    psutil.Process(pid).kill()
    await until_gone(pid)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["/nowhere/program"], "EXECUTABLE_NOT_FOUND"),
        (["no-such-program-criotest"], "EXECUTABLE_NOT_FOUND"),
        (["/etc/passwd"], "SPAWN_FAILED"),
        (["/bin/true", "a\0b"], "SPAWN_FAILED"),
        (["/bin/true", "x" * 3_000_000], "SPAWN_FAILED"),
    ],
)
async def test_program_that_cannot_start_is_an_operation_error(argv: list[str], reason: str) -> None:
    """Every expected failure has a word that a program can compare."""
    with pytest.raises(OperationError) as caught:
        await spawn.run(argv, timeout_s=5)
    assert caught.value.reason == reason


async def test_missing_working_directory_is_not_a_missing_program() -> None:
    """Both are ENOENT; the message must blame the right one."""
    with pytest.raises(OperationError) as caught:
        await spawn.run(["/bin/true"], cwd="/nowhere", timeout_s=5)
    assert caught.value.reason == "SPAWN_FAILED" and "/nowhere" in caught.value.message


async def test_no_command_is_a_bug_of_the_caller() -> None:
    """A contract, not an outcome."""
    with pytest.raises(LocalError):
        await spawn.run([], timeout_s=5)


async def test_many_at_once_all_end() -> None:
    """A node starts many programs at the same time; none may wait for another's."""
    results: list[int] = []

    async def one(number: int) -> None:
        done = await spawn.run(["/bin/sh", "-c", f"exit {number}"], timeout_s=30)
        results.append(done.returncode)

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(one, number)
    assert sorted(results) == list(range(40))


async def test_start_does_not_copy_the_server(tmp_path: Path) -> None:
    """CPython takes vfork only under conditions; strace shows which call it was. Skipped where strace is missing."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    script = "from crio_io import spawn; spawn.start(['/bin/true']).wait()"
    command = ["strace", "-f", "-e", "trace=vfork,fork,clone", "-o", str(trace), sys.executable, "-c", script]
    await spawn.run(command, timeout_s=60)
    assert "vfork(" in trace.read_text() or "CLONE_VFORK" in trace.read_text()
