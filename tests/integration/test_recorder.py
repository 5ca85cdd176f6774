"""The recorder of a node: bounded in memory and on disk, and never in the node's way."""

import os
import subprocess
from pathlib import Path

import anyio
import pytest

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.cri import ImageSpec
from crio_core.errors import OperationError
from crio_core.replay import explanations, replay
from crio_core.replies import Created
from crio_core.sim import LATENCIES, Simulation
from crio_core.sim.images import BASE
from crio_core.sim.programs import container_config, pod_config
from crio_io import recorder as module
from crio_io.recorder import DUMPS_MAX, Recorder
from tests.integration.waiting import wait_for

ROUNDS = 12


def _recorded(sim: Simulation, path: Path | None = None) -> Recorder:
    assert sim.node is not None
    recorder = Recorder(sim.node, version="test", path=path)
    sim.on_event = recorder.note
    return recorder


def _live(sim: Simulation, number: int) -> str:
    """A pod with a container, from beginning to end; returns the pod's id."""
    pod = sim.ask(rq.RunPodSandbox(config=pod_config(0, attempt=number)))
    assert isinstance(pod, Created)
    made = sim.ask(rq.CreateContainer(sandbox_id=pod.id, config=container_config(0, 0)))
    assert isinstance(made, Created)
    sim.ask(rq.StartContainer(container_id=made.id))
    sim.ask(rq.ListContainers())
    sim.ask(rq.ExecSync(container_id=made.id, command=("echo", "out")))
    sim.ask(rq.RemovePodSandbox(sandbox_id=pod.id))
    return pod.id


def _sim() -> Simulation:
    sim = Simulation(4, latency=LATENCIES["instant"])
    sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    return sim


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # Between the renaming of a full file and the first line of the next.
        return 0


def test_the_ring_is_bounded_and_what_is_left_of_it_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Always on means bounded: old segments go, and the rest still tells the whole story of its time."""
    monkeypatch.setattr(module, "RING_STEPS", 40)
    sim = _sim()
    recorder = _recorded(sim)
    last = [_live(sim, number) for number in range(ROUNDS)][-1]
    path = anyio.run(recorder.dump, tmp_path / "recordings")
    lines = _lines(path)
    assert 40 <= len(lines) <= 82
    result = replay(lines)
    assert not result.differences
    assert explanations(result.node, last)[0]["path"][-1]["to"] == "gone"
    assert path.stat().st_mode & 0o777 == 0o600


def test_large_steps_end_a_segment_before_their_number_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Specs are large: their bytes are bounded too."""
    monkeypatch.setattr(module, "RING_BYTES", 20_000)
    sim = _sim()
    recorder = _recorded(sim)
    for number in range(ROUNDS):
        _live(sim, number)
    lines = _lines(anyio.run(recorder.dump, tmp_path))
    assert sum(b'"effects.CreateContainer"' in line or b'"CreateContainer"' in line for line in lines) <= 12
    assert not replay(lines).differences


def test_only_the_newest_dumps_are_kept(tmp_path: Path) -> None:
    """SIGUSR1 in a loop must not fill the disk."""
    recorder = _recorded(_sim())

    async def dump_often() -> list[Path]:
        return [await recorder.dump(tmp_path) for _ in range(DUMPS_MAX + 3)]

    paths = anyio.run(dump_often)
    assert sorted(tmp_path.iterdir()) == sorted(paths[-DUMPS_MAX:])


def test_a_full_file_is_kept_beside_the_next_and_both_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation begins a new segment, so that each file stands alone; together they are bounded."""
    monkeypatch.setattr(module, "FILE_BYTES_MAX", 60_000)
    path = tmp_path / "events.jsonl"
    sim = _sim()
    recorder = _recorded(sim, path)

    for number in range(ROUNDS):
        _live(sim, number)
    older = path.with_name("events.jsonl.1")
    wait_for("a full file", lambda: older.exists() or _size(path) >= 60_000)
    _live(sim, ROUNDS)
    anyio.run(recorder.aclose)
    for file in (path, older):
        result = replay(_lines(file))
        assert not result.differences
        assert result.events
        assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["events.jsonl", "events.jsonl.1"]


def test_steps_that_come_too_fast_leave_a_gap_and_the_recording_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node never waits for its recording."""
    monkeypatch.setattr(module, "WAITING_MAX", 3)
    path = tmp_path / "events.jsonl"
    sim = _sim()
    recorder = _recorded(sim, path)
    for number in range(ROUNDS):
        _live(sim, number)
    anyio.run(recorder.aclose)
    lines = _lines(path)
    assert sum(b'"format"' in line for line in lines) > 1, "there was no gap"
    assert not replay(lines).differences


def test_a_file_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    """A wrong path is the operator's mistake, and is said before the server serves."""
    with pytest.raises(OperationError, match=r"events\.jsonl cannot be written"):
        _recorded(_sim(), tmp_path / "absent" / "events.jsonl")


def test_what_is_no_regular_file_is_refused_and_left_as_it_is() -> None:
    """A typing error must not change the mode of a device."""
    before = os.stat("/dev/full").st_mode
    with pytest.raises(OperationError, match="no regular file"):
        _recorded(_sim(), Path("/dev/full"))
    assert os.stat("/dev/full").st_mode == before


@pytest.mark.integration
def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ENOSPC is the disk's business: pods go on."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system: needs root")
    disk = tmp_path / "criotest-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "criotest", str(disk)], check=True)
    try:
        sim = _sim()
        recorder = _recorded(sim, disk / "events.jsonl")
        for number in range(ROUNDS):
            _live(sim, number)
        anyio.run(recorder.aclose)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "No space left" in caplog.text


def test_progress_of_a_pull_is_in_no_recording(tmp_path: Path) -> None:
    """A long pull must not drive out of the ring what a replay needs; and the replay does well without it."""
    sim = Simulation(4)
    recorder = _recorded(sim)
    told: list[type] = []
    note = sim.on_event
    assert note is not None

    def listen(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        told.append(type(event))
        note(event, effects)

    sim.on_event = listen
    sim.ask(rq.PullImage(image=ImageSpec(image=BASE)))
    assert ev.LayerProgressed in told
    lines = _lines(anyio.run(recorder.dump, tmp_path / "recordings"))
    assert not any(b"LayerProgressed" in line for line in lines)
    assert not replay(lines).differences
