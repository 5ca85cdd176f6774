"""The journal: what was acknowledged is there after any end, and no damage to a file stops an opening."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import anyio
import anyio.lowlevel
import pytest

from crio_core.errors import LocalError, OperationError
from crio_core.layout import Layout
from crio_core.records import LOST
from crio_io import journal, journal_file, journal_pair
from crio_io.journal import Journal
from crio_io.journal_file import DISK, MEMORY
from crio_io.journal_open import LoadResult
from crio_io.journal_pair import Change, Delete, Put
from crio_io.record_files import NAME, RecordFiles

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PAGE_BYTES = 4096
DEADLINE_S = 30.0
KINDS = ("sandbox", "container", "image")


def put(name: str, data: bytes = b"data") -> Put:
    """A record of a container."""
    return Put(kind="container", id=name, data=data)


def content(result: LoadResult) -> dict[str, bytes]:
    """Rows by id."""
    return {row.id: row.data for row in result.rows}


async def reopened(path: Path, copy: Path | None = None) -> LoadResult:
    """What a later server finds; the files are closed again."""
    opened, result = await Journal.open(path, copy)
    await opened.close()
    return result


async def filled(path: Path, rows: int) -> dict[str, bytes]:
    """A closed journal with rows of all sizes."""
    opened, _ = await Journal.open(path)
    chance = random.Random(1)
    expected = {f"c{number}": chance.randbytes(chance.choice((10, 900, 3000, 20_000))) for number in range(rows)}
    await opened.write([put(name, data) for name, data in expected.items()])
    await opened.close()
    return expected


async def test_new_journal_is_empty_and_private(tmp_path: Path) -> None:
    """Records hold environment variables with secrets (CVE-2021-41103)."""
    old = os.umask(0)
    try:
        opened, result = await Journal.open(tmp_path / "new" / "state.db")
        await opened.write([put("a")])
        files = list((tmp_path / "new").iterdir())
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        await opened.close()
    finally:
        os.umask(old)
    assert result == LoadResult(rows=(), quarantined=(), repairs=())


async def test_changes_of_one_write_are_applied_in_order(tmp_path: Path) -> None:
    """The last word about a row counts, also within one write and across a group."""
    opened, _ = await Journal.open(tmp_path / "j")
    await opened.write([put("a", b"1"), put("b"), put("a", b"2"), Delete(kind="container", id="b"), put("c")])
    await opened.write([Delete(kind="container", id="c"), Delete(kind="container", id="absent"), put("d", b"")])
    await opened.write([])
    await opened.close()
    assert content(await reopened(tmp_path / "j")) == {"a": b"2", "d": b""}


async def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    """R7, R10: the server is killed in the middle of writing; everything that it was told is committed is there."""
    path = tmp_path / "j"
    script = (
        "import anyio, sys, pathlib\n"
        "from crio_io.journal import Journal\n"
        "from crio_io.journal_pair import Put\n"
        "async def main():\n"
        "    opened, _ = await Journal.open(pathlib.Path(sys.argv[1]))\n"
        "    for number in range(100000):\n"
        "        await opened.write([Put(kind='container', id=f'c{number}', data=b'x' * 500)])\n"
        "        print(number, flush=True)\n"
        "anyio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        acknowledged = 0
        while acknowledged < 50:
            acknowledged = int(server.stdout.readline())
        server.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in server.stdout if line.endswith(b"\n"))])
    result = await reopened(path)
    assert result.quarantined == () and {f"c{number}" for number in range(acknowledged + 1)} <= content(result).keys()
    assert len(result.rows) <= acknowledged + 2


@pytest.mark.parametrize("victim", ["j", "j-copy"])
@pytest.mark.parametrize(
    "damage", ["truncated", "zeroed", "zeroed page", "flipped", "flipped header", "noise", "directory", "gone"]
)
async def test_damage_to_one_file_loses_nothing(tmp_path: Path, damage: str, victim: str) -> None:
    """R10: the copy speaks, the bad file is kept aside, and writing goes on."""
    expected = await filled(tmp_path / "origin" / "j", 60)
    chance = random.Random(damage + victim)
    for attempt in range(6):
        place = tmp_path / f"{damage} {victim} {attempt}"
        shutil.copytree(tmp_path / "origin", place)
        spoil(place / victim, damage, chance)
        opened, result = await Journal.open(place / "j")
        assert content(result) == expected and result.quarantined == ()
        await opened.write([put("new"), Delete(kind="container", id="c0")])
        await opened.close()
        again = await reopened(place / "j")
        assert again.repairs == () and content(again).keys() == {*expected, "new"} - {"c0"}


def spoil(path: Path, damage: str, chance: random.Random) -> None:
    """Damage a file in one of the ways of the world."""
    data = bytearray(path.read_bytes())
    page = chance.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES
    match damage:
        case "truncated":
            del data[chance.randrange(len(data)) :]
        case "zeroed":
            data[:] = bytes(len(data))
        case "zeroed page":
            data[page : page + PAGE_BYTES] = bytes(PAGE_BYTES)
        case "flipped":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "flipped header":
            data[chance.randrange(100)] ^= 1 << chance.randrange(8)
        case "noise":
            data[:] = chance.randbytes(5000)
        case "directory":
            path.unlink()
            path.mkdir()
            return
        case _:
            path.unlink()
            return
    path.write_bytes(data)


async def test_damage_to_both_files_is_quarantined_and_the_rest_is_served(tmp_path: Path) -> None:
    """R9: one bad record never stops the others; it is listed with its reason and its bytes are kept."""
    expected = await filled(tmp_path / "j", 20)
    for name in ("j", "j-copy"):
        data = bytearray((tmp_path / name).read_bytes())
        data[data.index(expected["c7"][:10])] ^= 4
        (tmp_path / name).write_bytes(data)
    opened, result = await Journal.open(tmp_path / "j")
    await opened.write([put("new")])
    await opened.close()
    assert result.quarantined == (("container", "c7", "checksum does not match"),)
    assert content(result) == {name: data for name, data in expected.items() if name != "c7"}
    assert len(result.repairs) == 2 and all("damaged-1" in repair for repair in result.repairs)
    for _ in range(2):
        again = await reopened(tmp_path / "j")
        assert again.repairs == ()
        assert again.quarantined == result.quarantined  # Until somebody has dealt with it, however long that takes.


@pytest.mark.parametrize("change", [put("c7"), Delete(kind="container", id="c7")], ids=["written", "deleted"])
async def test_quarantine_ends_when_the_row_is_written_anew_or_deleted(tmp_path: Path, change: Change) -> None:
    """What was lost is pulled again, or given up by `crio check --repair`: then nothing is reported any more."""
    expected = await filled(tmp_path / "j", 20)
    for name in ("j", "j-copy"):
        data = bytearray((tmp_path / name).read_bytes())
        data[data.index(expected["c7"][:10])] ^= 4
        (tmp_path / name).write_bytes(data)
    opened, result = await Journal.open(tmp_path / "j")
    assert result.quarantined
    await opened.write([change])
    await opened.close()
    for victim in ("j", "j-copy"):
        assert (await reopened(tmp_path / "j")).quarantined == ()
        (tmp_path / victim).unlink()


def layout(directory: Path) -> Layout:
    """A node's, below a directory."""
    return Layout(root=PurePosixPath(directory / "root"), runroot=PurePosixPath(directory / "run"))


async def open_node(place: Layout) -> tuple[Journal, LoadResult]:
    """A journal with copies of its records beside what they tell of."""
    return await Journal.open(Path(place.journal), Path(place.journal_copy), RecordFiles(place))


async def node(directory: Path) -> tuple[Layout, dict[tuple[str, str], bytes]]:
    """A closed journal with records of every kind, and copies of them."""
    place = layout(directory)
    rows = {(kind, f"{kind}-{number}"): f"{kind} {number}".encode() * 99 for kind in KINDS for number in range(3)}
    opened, result = await open_node(place)
    assert result == LoadResult(rows=(), quarantined=(), repairs=())
    await opened.write([Put(kind=kind, id=name, data=b"older") for kind, name in rows])
    await opened.write([Put(kind=kind, id=name, data=data) for (kind, name), data in rows.items()])
    await opened.write([Put(kind=kind, id="gone", data=b"x") for kind in KINDS])
    await opened.write([Delete(kind=kind, id="gone") for kind in KINDS])
    await opened.close()
    return place, rows


def found_rows(result: LoadResult) -> dict[tuple[str, str], bytes]:
    """Rows by kind and id."""
    return {(row.kind, row.id): row.data for row in result.rows}


@pytest.mark.parametrize("damage", ["gone", "zeroed", "noise", "directory"])
async def test_records_are_rebuilt_from_their_copies_when_both_files_are_lost(tmp_path: Path, damage: str) -> None:
    """R10: nothing acknowledged is lost, and it is said that something might be until `crio check --repair`."""
    place, rows = await node(tmp_path)
    for path in (place.journal, place.journal_copy):
        spoil(Path(path), damage, random.Random(1))
    for opening in range(3):
        opened, result = await open_node(place)
        assert found_rows(result) == rows
        assert [(kind, name) for kind, name, _ in result.quarantined] == [LOST]
        assert ("9 records were rebuilt from their copies" in result.repairs) == (opening == 0)
        await opened.write([Put(kind="image", id="later", data=b"x"), Delete(kind="image", id="later")])
        await opened.close()
    opened, _ = await open_node(place)
    await opened.write([Delete(kind=LOST[0], id=LOST[1])])
    await opened.close()
    opened, result = await open_node(place)
    await opened.close()
    assert (found_rows(result), result.quarantined) == (rows, ())


async def test_images_are_known_after_a_power_cut_that_took_the_journal(tmp_path: Path) -> None:
    """R11: their layers are on disk and are good; without their records all of them would be swept."""
    place, rows = await node(tmp_path)
    shutil.rmtree(place.runroot)
    Path(place.journal).write_bytes(b"not a database" * 1000)
    opened, result = await open_node(place)
    await opened.close()
    assert found_rows(result) == {key: data for key, data in rows.items() if key[0] == "image"}
    assert LOST in [(kind, name) for kind, name, _ in result.quarantined]


async def test_a_copy_that_is_damaged_or_lost_too_is_quarantined_by_its_name(tmp_path: Path) -> None:
    """R9: what cannot be rebuilt is named, so that its pod and its processes are left alone."""
    place, rows = await node(tmp_path)
    Path(place.bundle("container-0"), NAME).write_bytes(b"torn")
    Path(place.sandbox("sandbox-1"), NAME).unlink()
    Path(place.sandbox("sandbox-1"), "hostname").touch()
    for path in (place.journal, place.journal_copy):
        Path(path).unlink()
    opened, result = await open_node(place)
    await opened.close()
    lost = {("container", "container-0"), ("sandbox", "sandbox-1")}
    assert found_rows(result) == {key: data for key, data in rows.items() if key not in lost}
    assert {(kind, name) for kind, name, _ in result.quarantined} == {*lost, LOST}


async def test_copies_are_made_for_a_journal_that_has_none(tmp_path: Path) -> None:
    """R32: an upgraded server finds pods that an older one made; from then on they can be rebuilt as well."""
    place, rows = await node(tmp_path)
    for kind, name in rows:
        directory = {"sandbox": place.sandbox, "container": place.bundle}.get(kind)
        (Path(directory(name), NAME) if directory else Path(place.images, name)).unlink()
    Path(place.images, "stale").write_bytes(b"of an image that was deleted when the server was killed")
    opened, result = await open_node(place)
    await opened.close()
    assert found_rows(result) == rows
    assert not Path(place.images, "stale").exists()
    for path in (Path(place.journal), Path(place.journal_copy)):
        path.unlink()
    opened, result = await open_node(place)
    await opened.close()
    assert found_rows(result) == rows


async def test_a_copy_that_cannot_be_written_is_not_left_behind_the_record(tmp_path: Path) -> None:
    """R45: memory may be full. An old copy would later speak for a record that has changed."""
    place, _ = await node(tmp_path)
    path = Path(place.sandbox("sandbox-0"), NAME)
    path.with_name(f"{NAME}.new").mkdir()
    opened, _ = await open_node(place)
    await opened.write([Put(kind="sandbox", id="sandbox-0", data=b"changed")])
    await opened.close()
    assert not path.exists()


async def test_any_damage_to_both_files_still_opens(tmp_path: Path) -> None:
    """R10: whatever is returned is true, whatever cannot be is gone, and the next write works."""
    expected = await filled(tmp_path / "origin" / "j", 60)
    chance = random.Random(7)
    for attempt in range(25):
        place = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "origin", place)
        kinds = ("truncated", "zeroed page", "flipped", "flipped header", "noise")
        for name in ("j", "j-copy"):
            spoil(place / name, chance.choice(kinds), chance)
        opened, result = await Journal.open(place / "j")
        assert content(result).items() <= expected.items()
        await opened.write([put("new")])
        await opened.close()
        assert content(await reopened(place / "j")) == content(result) | {"new": b"data"}


async def test_copy_that_is_one_write_behind_is_brought_up_to_date(tmp_path: Path) -> None:
    """The server was killed between the two commits: the newer one counts, and it is not called damage."""
    await filled(tmp_path / "j", 3)
    stale = (tmp_path / "j-copy").read_bytes()
    opened, _ = await Journal.open(tmp_path / "j")
    await opened.write([put("late"), Delete(kind="container", id="c1")])
    await opened.close()
    (tmp_path / "j-copy").write_bytes(stale)
    result = await reopened(tmp_path / "j")
    assert content(result).keys() == {"c0", "c2", "late"} and "behind" in result.repairs[0]
    assert not list(tmp_path.glob("*damaged*")) and (await reopened(tmp_path / "j")).repairs == ()


async def test_damage_found_while_writing_is_repaired_from_the_copy(tmp_path: Path) -> None:
    """A disk may go bad under a running server: the write succeeds, and nothing is lost."""
    opened, _ = await Journal.open(tmp_path / "j")
    await opened.write([put(f"c{number}", b"x" * 2000) for number in range(50)])
    first = opened._pair._copies[0]
    assert first is not None
    first.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    first.execute("PRAGMA shrink_memory")  # Nothing is cached any more.
    size_bytes = (tmp_path / "j").stat().st_size
    with (tmp_path / "j").open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xff" * (size_bytes - PAGE_BYTES))
    await opened.write([put("late")])
    await opened.write([put("later")])
    await opened.close()
    result = await reopened(tmp_path / "j")
    assert len(result.rows) == 52 and result.repairs == () and list(tmp_path.glob("j.damaged-1"))


async def test_full_disk_refuses_the_write_and_keeps_the_rest(tmp_path: Path) -> None:
    """R45: at ENOSPC the caller is told, and what is stored stays readable and removable."""
    opened, _ = await Journal.open(tmp_path / "j")
    await opened.write([put(f"c{number}", b"x" * 1000) for number in range(20)])
    for copy in opened._pair._copies:
        assert copy is not None
        copy.execute("PRAGMA max_page_count=1")  # SQLite raises it to the present size: not one page more.
    with pytest.raises(OperationError) as caught:
        await opened.write([put("big", b"x" * 1_000_000)])
    assert caught.value.reason == "JOURNAL_FULL"
    await opened.write([Delete(kind="container", id="c0")])
    await opened.close()
    assert content(await reopened(tmp_path / "j")).keys() == {f"c{number}" for number in range(1, 20)}


@pytest.mark.parametrize("full", [0, 1])
async def test_a_write_succeeds_while_the_disk_of_one_file_is_full(tmp_path: Path, full: int) -> None:
    """R45: what was acknowledged is in the other file, and the full one gets it when there is room."""
    path, copy = tmp_path / "disk" / "j", tmp_path / "memory" / "j"
    opened, _ = await Journal.open(path, copy)
    await opened.write([put(f"c{number}", b"x" * 1000) for number in range(20)])
    connection = opened._pair._copies[full]
    assert connection is not None
    connection.execute("PRAGMA max_page_count=1")
    await opened.write([put("big", b"x" * 1_000_000)])
    await opened.write([Delete(kind="container", id="c0"), put("c1", b"new")])
    expected = {f"c{number}": b"x" * 1000 for number in range(2, 20)} | {"big": b"x" * 1_000_000, "c1": b"new"}
    # A server that is killed now leaves these files.
    for victim in (path, copy):
        shutil.copytree(victim.parent, tmp_path / "killed" / victim.parent.name)
    result = await reopened(tmp_path / "killed/disk/j", tmp_path / "killed/memory/j")
    assert content(result) == expected
    assert full == DISK or "behind" in result.repairs[0]
    connection.execute("PRAGMA max_page_count=100000")
    await opened.write([put("late")])
    await opened.close()
    (path, copy)[1 - full].unlink()
    assert content(await reopened(path, copy)) == expected | {"late": b"data"}


async def test_writes_go_on_by_the_disk_while_memory_is_lost_and_come_back_to_it(tmp_path: Path) -> None:
    """Each of the two is enough for a write, in whatever order they fail, and no older write overtakes a newer one."""
    path, copy = tmp_path / "disk" / "j", tmp_path / "memory" / "j"
    opened, _ = await Journal.open(path, copy)
    memory = opened._pair._copies[MEMORY]
    assert memory is not None

    async def write_in_turn(name: str) -> None:
        for number in range(30):
            memory.execute(f"PRAGMA max_page_count={1 if 10 <= number < 20 else 100_000}")
            await opened.write([put(name, b"%d" % number * 2000)])
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for number in range(7):
            tasks.start_soon(write_in_turn, f"c{number}")
    await opened.close()
    expected = {f"c{number}": b"29" * 2000 for number in range(7)}
    (path, copy)[random.Random(3).randrange(2)].unlink()
    assert content(await reopened(path, copy)) == expected


async def test_second_file_is_lost_at_a_reboot_and_that_is_no_damage(tmp_path: Path) -> None:
    """It is kept in memory, which is emptied; a node that starts must not cry wolf."""
    path, copy = tmp_path / "disk" / "j", tmp_path / "memory" / "j"
    opened, _ = await Journal.open(path, copy)
    await opened.write([put("a")])
    await opened.close()
    shutil.rmtree(copy.parent)
    result = await reopened(path, copy)
    assert content(result) == {"a": b"data"}
    assert result.repairs == ()
    assert copy.exists()


async def test_second_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers would each believe their own."""
    monkeypatch.setattr(journal_file, "BUSY_S", 0.05)
    opened, _ = await Journal.open(tmp_path / "j")
    await opened.write([put("a")])
    with pytest.raises(OperationError) as caught:
        await Journal.open(tmp_path / "j")
    assert caught.value.reason == "JOURNAL_UNAVAILABLE"
    await opened.close()
    assert (await reopened(tmp_path / "j")).repairs == ()


async def test_journal_of_a_later_version_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R32: a downgrade must say so, and not call the new format damage."""
    with monkeypatch.context() as later:
        later.setattr(journal_file, "SCHEMA_VERSION", 9)
        await filled(tmp_path / "j", 3)
    with pytest.raises(OperationError) as caught:
        await Journal.open(tmp_path / "j")
    assert caught.value.reason == "JOURNAL_TOO_NEW" and not list(tmp_path.glob("*damaged*"))


async def test_writers_at_once_share_the_transactions_of_the_disk(tmp_path: Path) -> None:
    """Group commit: hundreds of writes are a few transactions there, and every one of them is in it."""
    opened, _ = await Journal.open(tmp_path / "j")
    disk = opened._pair._copies[DISK]
    assert disk is not None
    commits: list[str] = []
    disk.set_trace_callback(lambda statement: commits.append(statement) if statement == "COMMIT" else None)
    async with anyio.create_task_group() as tasks:
        for number in range(400):
            tasks.start_soon(opened.write, [put(f"c{number}")])
    await opened.close()
    assert 0 < len(commits) < 250
    (tmp_path / "j-copy").unlink()
    assert len((await reopened(tmp_path / "j")).rows) == 400


async def test_more_writers_than_the_bound_all_get_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound makes callers wait, and loses none."""
    monkeypatch.setattr(journal, "WAITING_MAX", 3)
    opened, _ = await Journal.open(tmp_path / "j")
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(opened.write, [put(f"c{number}")])
    await opened.close()
    assert len((await reopened(tmp_path / "j")).rows) == 50


@contextmanager
def hanging_disk(opened: Journal) -> Iterator[None]:
    """Let no statement to the file on disk come back until the block ends."""
    disk = opened._pair._copies[DISK]
    assert disk is not None
    well = threading.Event()
    disk.set_trace_callback(lambda _: well.wait(DEADLINE_S))
    try:
        yield
    finally:
        well.set()


async def on_their_way(opened: Journal, writes: int) -> None:
    """Wait until so many writes wait for the journal's thread."""
    with anyio.fail_after(DEADLINE_S):
        while opened._tickets < writes:
            await anyio.lowlevel.checkpoint()


async def test_cancelled_writer_waits_until_the_write_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller leaving stops nothing half-way, and its number is never signalled after it was closed."""
    monkeypatch.setattr(journal, "QUICK_BYTES_MAX", 0)  # All go through the thread.
    opened, _ = await Journal.open(tmp_path / "j")
    async with anyio.create_task_group() as tasks:
        with hanging_disk(opened):
            for number in range(50):
                tasks.start_soon(opened.write, [put(f"c{number}")])
            await on_their_way(opened, 50)
            tasks.cancel_scope.cancel()
    await opened.close()
    assert len((await reopened(tmp_path / "j")).rows) == 50


@pytest.mark.parametrize(
    "change", [put(""), put("a\0b"), put("x" * 2000), put("a", b"x" * (journal_pair.DATA_MAX_BYTES + 1))]
)
async def test_row_outside_the_bounds_is_a_bug_of_the_caller(tmp_path: Path, change: Put) -> None:
    """Every buffer has a bound."""
    opened, _ = await Journal.open(tmp_path / "j")
    try:
        with pytest.raises(LocalError):
            await opened.write([change])
    finally:
        await opened.close()


async def test_close_twice_is_once_and_writing_afterwards_is_a_bug(tmp_path: Path) -> None:
    """Shutdown may be asked for from two sides."""
    opened, _ = await Journal.open(tmp_path / "j")
    await opened.close()
    await opened.close()
    with pytest.raises(LocalError):
        await opened.write([put("a")])


async def test_a_sync_reaches_the_disk_after_every_write_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: a plugin's address outlives a power cut, and so must the record that owns it; many pods share one sync."""
    opened, _ = await Journal.open(tmp_path / "a", tmp_path / "b")
    synced: list[int] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    await opened.write([put("c")])
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(opened.sync)
    assert set(synced) == {(tmp_path / "a-wal").stat().st_ino}
    assert len(synced) < 50
    shared = len(synced)
    await opened.sync()
    assert len(synced) == shared + 1
    await opened.close()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the journal said, and hears no more."""
    said = [record.getMessage() for record in caplog.records if record.name == journal_pair.__name__]
    caplog.clear()
    return said


async def after_power_cut(path: Path, scratch: Path) -> dict[str, bytes]:
    """What a server would find now of the file on disk alone."""
    shutil.copytree(path.parent, scratch)
    return content(await reopened(scratch / path.name, scratch / "memory"))


async def test_a_sync_that_fails_is_logged_once_and_the_next_one_makes_the_file_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failed fsync(2) the kernel may have dropped pages, and the next fsync succeeds without them."""
    path = tmp_path / "disk" / "a"
    opened, _ = await Journal.open(path, tmp_path / "memory" / "a")
    await opened.write([put("c")])

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "broken", str(fd))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        await opened.sync()
    said = warnings_of(caplog)
    assert len(said) == 1 and "broken" in said[0]
    old = path.stat().st_ino
    await opened.sync()
    assert warnings_of(caplog) == [] and path.stat().st_ino != old
    assert await after_power_cut(path, tmp_path / "cut") == {"c": b"data"}
    await opened.write([put("d")])
    await opened.sync()
    assert warnings_of(caplog) == []
    assert await after_power_cut(path, tmp_path / "again") == {"c": b"data", "d": b"data"}
    await opened.close()


async def test_a_sync_of_a_full_disk_says_that_nothing_is_promised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log may be synced well, and lack the write: whoever looks for lost addresses later must find a reason."""
    path = tmp_path / "disk" / "a"
    opened, _ = await Journal.open(path, tmp_path / "memory" / "a")
    disk = opened._pair._copies[DISK]
    assert disk is not None
    disk.execute("PRAGMA max_page_count=1")
    await opened.write([put("big", b"x" * 100_000)])
    await opened.sync()
    said = warnings_of(caplog)
    assert len(said) == 1 and "full" in said[0]
    disk.execute("PRAGMA max_page_count=100000")
    await opened.sync()
    assert warnings_of(caplog) == []
    assert await after_power_cut(path, tmp_path / "cut") == {"big": b"x" * 100_000}
    await opened.close()


async def test_writes_wait_for_a_disk_that_hangs_once_it_is_owed_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is owed is held in memory, and a dead disk gives no error by which it could be given up."""
    monkeypatch.setattr(journal_pair, "BEHIND_MAX", 10)
    opened, _ = await Journal.open(tmp_path / "j")
    async with anyio.create_task_group() as tasks:
        with hanging_disk(opened):
            for number in range(30):
                tasks.start_soon(opened.write, [put(f"c{number}")])
            await on_their_way(opened, 20)
            assert len(opened._pair._behind[DISK]) == 10
    await opened.close()
    (tmp_path / "j-copy").unlink()
    assert len((await reopened(tmp_path / "j")).rows) == 30
