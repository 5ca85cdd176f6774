"""The end of a streamed exec, whatever its runtime is doing then. Shells stand for runtimes."""

import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from crio_core.errors import OperationError
from crio_io.runtime.execs import ExecFiles, StreamedExec, exec_files

pytestmark = pytest.mark.anyio
MARK = "98765"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ExecFiles]:
    with exec_files(tmp_path / "criotest-scratch", b"{}") as files:
        yield files
    assert os.listdir(tmp_path / "criotest-scratch") == []


@pytest.fixture
def stdio() -> Iterator[tuple[int, int, int]]:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    yield null, null, null
    os.close(null)


def left() -> list[str]:
    """Commands that were not killed."""
    found = (one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"]))
    return [" ".join(words) for words in found if MARK in words]


def running(files: ExecFiles, stdio: tuple[int, int, int], script: str) -> StreamedExec:
    """A runtime that does this."""
    return StreamedExec("sh", "criotest", ["sh", "-c", script], files, stdio)


@pytest.mark.parametrize(
    "script",
    [
        f"sleep {MARK}",
        f"sleep 0.3; setsid sleep {MARK} & wait; sleep 0.2; setsid sleep {MARK} & wait",
        f"while :; do sleep {MARK}; done",
    ],
    ids=["runs", "begins", "begins-again"],
)
async def test_exec_that_is_killed_leaves_nothing_whatever_it_was_doing(
    files: ExecFiles, stdio: tuple[int, int, int], script: str
) -> None:
    """A client may leave before the runtime has started anything: what it starts later must not stay."""
    with running(files, stdio, script) as one:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.kill)
            await one.wait()
        await one.end()
    assert left() == []
    with running(files, stdio, script) as one:
        await one.end()
    assert left() == []


async def test_exec_that_ends_by_itself_gives_its_code_or_the_signal_that_killed_its_runtime(
    files: ExecFiles, stdio: tuple[int, int, int]
) -> None:
    """A runtime that was killed has no exit code to pass on."""
    with running(files, stdio, "exit 7") as one:
        await one.wait()
        assert one.result() == 7
    with running(files, stdio, "kill -9 $$") as one:
        await one.wait()
        with pytest.raises(OperationError, match="killed by signal 9"):
            one.result()
