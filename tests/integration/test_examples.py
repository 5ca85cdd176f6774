"""The examples as users run them: what they show is what the public API does."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from crio_core.cri import PodSandboxConfig
from crio_core.errors import OperationError
from crio_io import EngineOptions, open_engine
from examples import embed, pull_image
from tests.integration.leftovers import MINE
from tests.integration.registry_fixture import LocalRegistry, busybox_archive, pack

REPOSITORY = Path(__file__).resolve().parent.parent.parent
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, mounts and cgroups")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix=f"{MINE}-") as directory,
        LocalRegistry(Path(directory) / "registry") as registry,
    ):
        yield registry.push("busybox", [pack(busybox_archive())], config={"Env": ["PATH=/bin"]}).reference


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's tmp_path: the sockets of monitors need short paths.
    with tempfile.TemporaryDirectory(prefix=f"{MINE}-") as name:
        yield Path(name)


def _assert_no_process_of(directory: Path) -> None:
    """Processes that were told to end may take a moment until they are gone."""
    deadline_s = time.monotonic() + 5
    while found := [process for process in psutil.process_iter(["cmdline"]) if _mentions(process, directory)]:
        assert time.monotonic() < deadline_s, found
        psutil.wait_procs(found, timeout=1)


def _mentions(process: psutil.Process, directory: Path) -> bool:
    return str(directory) in " ".join(process.info["cmdline"] or ())


@needs_root
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_embed_runs_a_command_and_returns_its_exit_code(
    image: str, directory: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The runtime as a library, without a daemon, on either of anyio's backends; nothing of it stays."""
    command = ("sh", "-c", "echo hello; echo oops >&2; exit 3")
    assert anyio.run(embed.run, image, command, directory, backend=backend) == 3
    written = capfd.readouterr()
    assert (written.out, written.err) == ("hello\n", "oops\n")
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    _assert_no_process_of(directory)
    for place in ("ns", "containers", "sandboxes"):
        assert list((directory / "run" / place).iterdir()) == []


def test_embed_is_short_and_uses_public_names_only() -> None:
    """The example is the promise of a small API: nothing private, and about a page."""
    text = (REPOSITORY / "examples/embed.py").read_text()
    assert not re.search(r"\._|import _", text)
    assert len(text.splitlines()) <= 70


@needs_root
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pull_image_gives_the_files_of_an_image(
    image: str, directory: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pull and unpack as a library, without a node; a second pull finds everything there, and no process stays."""
    mountpoint = directory / "mnt"
    image_id = anyio.run(pull_image.pull, image, directory / "images", mountpoint, backend=backend)
    first = capfd.readouterr().out
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", image_id)
    assert "from 127.0.0.1" in first and first.splitlines()[-1].split()[:2] == ["bin", "dev"]
    assert anyio.run(pull_image.pull, image, directory / "images", backend=backend) == image_id
    assert "from 127.0.0.1" not in capfd.readouterr().out
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    _assert_no_process_of(directory)


@needs_root
def test_pull_of_what_is_not_there_is_one_error_and_leaves_nothing(image: str, directory: Path) -> None:
    """Not a group of errors around it, though layers are fetched side by side."""
    with pytest.raises(OperationError) as caught:
        anyio.run(pull_image.pull, f"{image}-none", directory / "images")
    assert caught.value.reason == "IMAGE_NOT_FOUND"
    assert list((directory / "images" / "ingest").iterdir()) == []


@needs_root
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_open_engine_raises_what_its_block_raised(directory: Path, backend: str) -> None:
    """A refusal that leaves the block is the refusal itself: a caller can catch `OperationError` around it."""

    async def ask_for_too_little() -> None:
        async with open_engine(EngineOptions(root=directory / "root", runroot=directory / "run")) as engine:
            await engine.run_pod(PodSandboxConfig())

    with pytest.raises(OperationError, match="metadata"):
        anyio.run(ask_for_too_little, backend=backend)
    _assert_no_process_of(directory)


WATCHED = """
import sys
from examples import core_only

def refuse(event, arguments):
    if event.partition(".")[0] in ("open", "os", "socket", "subprocess", "shutil", "ctypes"):
        raise RuntimeError(f"the core reached outside: {event} {arguments}")

sys.addaudithook(refuse)
core_only.main()
"""


def test_core_only_shows_the_effects_of_a_pod_and_touches_nothing() -> None:
    """The core alone can be driven by anybody: a pod is made, a retry gets the same answer, and it is removed."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    orders = re.findall(r"^ +\d+ \S+ +(\w+)$", done.stdout, re.MULTILINE)
    assert orders[:3] == ["SaveRecord", "PrepareSandbox", "AttachNetwork"]
    assert orders[-2:] == ["DeleteRecord", "Reply"]
    created = re.findall(r"Created\(id='(\w+)'\)", done.stdout)
    assert len(created) == 2
    assert len(set(created)) == 1


def test_importing_the_packages_alone_loads_next_to_nothing() -> None:
    """Helper processes import small parts of both packages; the public names must not make each of them pay for all."""
    script = "import sys; before = set(sys.modules); import crio_core, crio_io; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"crio_core", "crio_io"}
