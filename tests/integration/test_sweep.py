"""Removing what a crash left, on a disk that does not let go of everything: the rest goes, and the server stays."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import anyio
import pytest

from crio_core import effects as fx
from crio_core.layout import Layout
from crio_io import images
from crio_io.images import ImageStore
from crio_io.registry.configuration import RegistryOptions
from crio_io.sweep import Sweeper
from crio_io.vault import Vault
from tests.integration.waiting import wait_meanwhile

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of a node whose directories are there."""
    found = Layout(root=PurePosixPath(tmp_path / "root"), runroot=PurePosixPath(tmp_path / "run"))
    for directory in found.directories:
        Path(directory).mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture
async def store(layout: Layout) -> AsyncIterator[ImageStore]:
    """An empty store of that node."""
    async with ImageStore.opened(layout, RegistryOptions(), Vault()) as opened:
        yield opened


def old_blob(directory: Path, name: str) -> Path:
    """A partial download that no pull went on with."""
    path = directory / name
    path.write_bytes(b"half")
    long_ago_s = time.time() - images.PARTIAL_BLOB_AGE_S - 60
    os.utime(path, (long_ago_s, long_ago_s))
    return path


async def test_a_blob_that_cannot_be_deleted_stops_neither_the_tidying_nor_the_server(
    layout: Layout, store: ImageStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that got out of the task would end the server, with all its pods' calls."""
    monkeypatch.setattr(images, "TIDY_EVERY_S", 0.01)
    ingest = Path(layout.storage, "ingest")
    stuck = old_blob(ingest, "sha256-a")
    stuck.unlink()
    stuck.mkdir()  # Like a file of a read-only disk: unlink(2) fails, also for root.
    os.utime(stuck, (0, 0))
    first = old_blob(ingest, "sha256-b")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.tidy)
        await wait_meanwhile("the end of the first", lambda: not first.exists())
        ingest.rename(ingest.with_name("away"))  # Now not even the list can be read.
        await wait_meanwhile("a warning", lambda: "cannot be tidied up" in caplog.text)
        ingest.with_name("away").rename(ingest)
        last = old_blob(ingest, "sha256-c")
        await wait_meanwhile("the end of the last", lambda: not last.exists())
        tasks.cancel_scope.cancel()
    assert stuck.exists()


async def test_an_exit_file_that_cannot_be_removed_does_not_keep_the_rest(layout: Layout, store: ImageStore) -> None:
    """A sweep that fails is tried again, and would fail at the same file for ever."""
    exits, scratch = Path(layout.exits), Path(layout.scratch)
    (exits / "a").mkdir()
    (exits / "b").write_text("0")
    (scratch / "exec-runc-1-1").write_text("")
    sweeper = Sweeper(layout, store, ())
    await sweeper.look()
    await sweeper.sweep(fx.SweepStorage(containers=(), sandboxes=()))
    assert os.listdir(exits) == ["a"] and not os.listdir(scratch)


async def test_what_comes_after_a_sweep_is_not_swept_by_the_next(layout: Layout, store: ImageStore) -> None:
    """Its names are of before the node served; one that is taken again is somebody's."""
    mine = Path(layout.exits, "a")
    mine.write_text("0")
    sweeper = Sweeper(layout, store, ())
    await sweeper.look()
    order = fx.SweepStorage(containers=(), sandboxes=())
    await sweeper.sweep(order)
    assert not mine.exists()
    mine.write_text("0")
    await sweeper.sweep(order)
    assert mine.exists()
