"""`crio check` on real nodes: finds what is wrong, says nothing of what is right, and mends."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from crio_io.journal import Journal
from crio_io.journal_pair import Delete, Put
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration import residue
from tests.integration.harness import REPOSITORY, Crio, Site

pytestmark = pytest.mark.integration
EXIT_FOUND = 3
ROUNDS = 4


def _crio(crio: Crio, *argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*crio.argv, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _findings(crio: Crio, *argv: str) -> list[dict[str, str]]:
    """What check finds and calls wrong."""
    done = _crio(crio, "check", "-o", "json", *argv)
    assert done.stdout, done.stderr
    found = [one for one in json.loads(done.stdout)["findings"] if one["kind"] != "note"]
    assert done.returncode == (EXIT_FOUND if found else 0), done.stderr
    return found


def _forget(crio: Crio, *kinds: str) -> None:
    """Lose records, as no crash may: what they own becomes residue."""

    async def forget() -> None:
        marks = crio.site.marks
        journal, loaded = await Journal.open(marks.root / "state.db", marks.runroot / "state.db")
        await journal.write([Delete(kind=row.kind, id=row.id) for row in loaded.rows if row.kind in kinds])
        await journal.close()

    anyio.run(forget)


@pytest.fixture
def stopped(site: Site) -> Iterator[Crio]:
    """A node whose server was killed while a container ran; whatever the test does, everything is removed."""
    crio = Crio(site)
    crio.start()
    crio.pull(crio.images.busybox)
    crio.note_baseline()
    pod_id = crio.run_pod()
    crio.begin(pod_id, ["sleep", "1000"])
    crio.end(signal.SIGKILL)
    yield crio
    if not crio.runs:
        crio.start()
    crio.remove_all()
    crio.end()


def test_check_of_a_live_node_in_use_finds_nothing(crio: Crio) -> None:
    """F15: a node with pods, containers and images is in order, and the check says so."""
    with crio.pod() as pod_id:
        crio.begin(pod_id, ["sleep", "1000"])
        crio.create(pod_id, crio.container_config(["true"], name="created"))
        done = _crio(crio, "check", "--deep")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        assert "the server is running" in done.stdout or "note:" in done.stdout


def test_check_beside_pods_that_come_and_go_raises_no_false_alarm(crio: Crio) -> None:
    """What is being made is owned already, what is being removed is owned still."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def churn() -> None:
        try:
            while not ended.is_set():
                with crio.pod() as pod_id:
                    crio.begin(pod_id, ["true"])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(ROUNDS):
            assert _findings(crio) == []
    finally:
        ended.set()
        thread.join()
    assert not failures


def test_check_of_a_stopped_node_with_running_containers_finds_nothing_and_changes_nothing(stopped: Crio) -> None:
    """Containers outlive the server: what they need is owned by records, and the journal is only read."""
    journal = stopped.site.marks.root / "state.db"
    before = {path.name: path.read_bytes() for path in journal.parent.glob("state.db*")}
    assert _findings(stopped, "--deep") == []
    assert {path.name: path.read_bytes() for path in journal.parent.glob("state.db*")} == before


def test_repair_of_a_node_whose_records_are_lost_leaves_nothing_behind(stopped: Crio) -> None:
    """F15: every kind of residue is found, told to be this node's, and removed; images are not touched."""
    _forget(stopped, "sandbox", "container")
    found = _findings(stopped)
    whats = {one["what"] for one in found}
    assert whats == {
        *("bundle", "mount", "writable layer", "runtime state", "monitor", "control group"),
        *("sandbox directory", "namespaces", "address", "parent control group", "attach link"),
    }, found
    assert all(one["kind"] == "residue" and one["mend"] for one in found)

    asked = _crio(stopped, "check", "--repair")
    assert asked.returncode == EXIT_FOUND
    assert "nothing was changed" in asked.stderr
    assert len(_findings(stopped)) == len(found)

    mended = _crio(stopped, "check", "--repair", "-y")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "could not" not in mended.stderr
    assert _findings(stopped) == []
    # What a plugin keeps elsewhere only its DEL removes, which needs the record that is lost; the process that forks
    # monitors outlives them all.
    left = residue.find(stopped.site.marks) - stopped.baseline
    assert [one for one in left if not one.startswith("rule ") and "zygote" not in one] == []
    residue.remove_rules(stopped.site.marks)


ID = "0123456789abcdef"


def _id(number: int) -> str:
    """An id that no chance gives."""
    return f"{number:016x}" + ID * 3


def _planted(crio: Crio) -> dict[str, set[str]]:
    """Residue of every kind, each with an id of its own; where it is, by what the check calls it."""
    marks = crio.site.marks
    storage = marks.root / "storage"
    places = {
        "bundle": marks.runroot / "containers" / _id(1) / "config.json",
        "sandbox directory": marks.runroot / "sandboxes" / _id(2) / "hostname",
        "namespaces": marks.runroot / "ns" / _id(3) / "net",
        "exit file": marks.root / "exits" / _id(4),
        "writable layer": storage / "containers" / _id(5) / "upper" / "file",
        "half layer": storage / "unpacking" / "half" / "file",
        "broken layer": storage / "layers" / "sha256-broken" / "fs" / "file",
        "image record": marks.root / "images" / f"sha256:{_id(6)}",
        "partial download": storage / "ingest" / f"sha256-{_id(7)}",
        "scratch file": marks.runroot / "scratch" / f"exec-runc-{2**22 + 1}-1",
        "address": marks.ipam / marks.name / f"{marks.subnet}250",
    }
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_id(1))
    os.utime(places["partial download"], (0, 0))
    deep = {"broken layer": 2, "writable layer": 2, "exit file": 0, "image record": 0, "partial download": 0}
    deep |= {"scratch file": 0, "address": 0}
    found = {what: {str([place, *place.parents][deep.get(what, 1)])} for what, place in places.items()}
    link = crio.site.directory / "attach" / _id(8)
    link.symlink_to(marks.runroot / "containers" / _id(8))
    mount = marks.runroot / "containers" / _id(1) / "rootfs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "criotest", str(mount)], check=True)
    cgroups = {path / f"crio-{_id(1)}" for path in residue.CGROUP_ROOT.glob("*/") if (path / "cgroup.procs").exists()}
    if (residue.CGROUP_ROOT / "cgroup.procs").exists():
        cgroups = {residue.CGROUP_ROOT / f"crio-{_id(1)}"}
    for path in cgroups:
        (path.parent / marks.name).mkdir(exist_ok=True)
        (path.parent / marks.name / path.name).mkdir()
    ours = {str(path.parent / marks.name / path.name) for path in cgroups}
    return found | {"attach link": {str(link)}, "mount": {str(mount)}, "control group": ours}


def test_check_finds_exactly_what_is_planted_and_what_the_tests_own_residue_check_sees(site: Site) -> None:
    """R30: zero misses: each kind of thing that a crash could leave, and nothing besides; repair leaves none of it."""
    crio, marks = Crio(site, "--container-attach-socket-dir", str(site.directory / "attach")), site.marks
    crio.start()
    with crio.pod():
        pass  # The bridge is there from now on.
    crio.end()
    assert _findings(crio) == []
    before = residue.find(marks)
    planted = _planted(crio)
    veth = (f"{marks.name[:12]}v0", f"{marks.name[:12]}v1")
    subprocess.run(["ip", "link", "add", veth[0], "type", "veth", "peer", "name", veth[1]], check=True)
    try:
        subprocess.run(["ip", "link", "set", veth[0], "master", marks.bridge], check=True)
        found: dict[str, set[str]] = {}
        for one in _findings(crio):
            assert one["kind"] == "residue" and one["mend"]
            found.setdefault(one["what"], set()).add(one["where"])
        assert found == planted
        notes = json.loads(_crio(crio, "check", "-o", "json").stdout)["findings"]
        assert [(one["what"], one["key"]) for one in notes if one["kind"] == "note"][-1] == ("link", veth[0])
        # Whatever the tests' own check calls residue lies in something that was found.
        tops = {where for wheres in found.values() for where in wheres}
        for line in residue.find(marks) - before:
            kind, _, rest = line.partition(" ")
            if kind in ("file", "mount", "cgroup"):
                assert any(rest == top or rest.startswith(f"{top}/") or top.startswith(f"{rest}/") for top in tops), (
                    line
                )
            else:
                assert kind in ("address", "link"), line
    finally:
        subprocess.run(["ip", "link", "delete", veth[0]], check=False)
    mended = _crio(crio, "check", "--repair", "-y")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert _findings(crio) == []
    for path in residue.cgroups(marks):
        path.rmdir()  # The parent, which is the test's.
    assert residue.find(marks) - before == frozenset()


def test_check_of_a_live_node_finds_residue_and_repair_is_refused_beside_the_server(own_crio: Crio) -> None:
    """Beside a server nothing is changed, whatever was found."""
    strange = own_crio.site.marks.runroot / "containers" / ("a" * 64)
    strange.mkdir()
    (strange / "config.json").write_text("{}")
    (found,) = _findings(own_crio)
    assert (found["what"], found["key"]) == ("bundle", "a" * 64)
    refused = _crio(own_crio, "check", "--repair", "-y")
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    assert strange.exists()
    own_crio.end()
    assert _crio(own_crio, "check", "--repair", "-y").returncode == 0
    assert not strange.exists()
    own_crio.start()


def test_an_image_whose_layer_is_gone_is_found_forgotten_and_pulled_again(own_crio: Crio) -> None:
    """Damage of images: a record is worth nothing without its layers."""
    own_crio.pull(own_crio.images.told)
    layers = own_crio.site.marks.root / "storage" / "layers"
    image = next(one for one in own_crio.client(pb.ListImagesRequest()).images if own_crio.images.told in one.repo_tags)
    answer = own_crio.client(pb.ImageStatusRequest(image=pb.ImageSpec(image=image.id), verbose=True))
    newest = json.loads(answer.info["info"])["chainLayers"][-1]
    place = next(
        path
        for path in layers.iterdir()
        if (path / "layer.json").exists() and json.loads((path / "layer.json").read_text())["diff_id"] == newest
    )
    shutil.rmtree(place)
    (found,) = _findings(own_crio)
    assert (found["kind"], found["what"], found["key"]) == ("damage", "image", image.id)
    assert newest in found["detail"]
    own_crio.end()
    assert _crio(own_crio, "check", "--repair", "-y").returncode == 0
    assert _findings(own_crio) == []
    own_crio.start()
    assert own_crio.pull(own_crio.images.told) == image.id
    own_crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=image.id)))


def test_deep_check_finds_a_file_missing_from_a_layer(own_crio: Crio) -> None:
    """Presence is not enough: somebody may have deleted files of a layer."""
    layers = own_crio.site.marks.root / "storage" / "layers"
    victim = next(path for path in sorted(layers.glob("*/fs/bin/*")) if path.is_file() and not path.is_symlink())
    assert _findings(own_crio, "--deep") == []
    kept = victim.with_name("kept-elsewhere")
    moved = own_crio.site.directory / kept.name
    shutil.copy2(victim, moved)
    victim.unlink()
    (found,) = _findings(own_crio, "--deep")
    assert (found["kind"], found["what"]) == ("damage", "layer")
    assert "inodes" in found["detail"]
    shutil.copy2(moved, victim)


def test_r11_flipped_byte_in_a_layer_is_found_and_only_that_layer_is_fetched_again(own_crio: Crio) -> None:
    """R11: damage that no size, time or name tells of; its repair costs one layer, not the image, and not the store."""
    image_id = own_crio.pull(own_crio.images.told)
    answer = own_crio.client(pb.ImageStatusRequest(image=pb.ImageSpec(image=image_id), verbose=True))
    base, *_, newest = json.loads(answer.info["info"])["chainLayers"]
    layers = own_crio.site.marks.root / "storage" / "layers"
    places = {
        json.loads((path / "layer.json").read_text())["diff_id"]: path
        for path in layers.iterdir()
        if (path / "layer.json").exists()
    }
    kept = places[base].stat().st_ino
    victim = next(path for path in sorted((places[newest] / "fs").rglob("*")) if path.is_file() and path.stat().st_size)
    before = victim.stat()
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert _findings(own_crio) == []
    (found,) = _findings(own_crio, "--deep")
    assert (found["kind"], found["what"], found["key"]) == ("damage", "layer", newest)
    own_crio.end()
    assert _crio(own_crio, "check", "--deep", "--repair", "-y").returncode == 0
    assert _findings(own_crio, "--deep") == []
    own_crio.start()
    assert own_crio.pull(own_crio.images.told) == image_id
    assert places[base].stat().st_ino == kept, "what was whole is still there"
    content[-1] ^= 1
    assert victim.read_bytes() == content
    assert _findings(own_crio, "--deep") == []
    own_crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=image_id)))


def test_a_layer_that_a_container_uses_is_not_taken_from_under_it(stopped: Crio) -> None:
    """The file system below a mounted root may not be changed: it is said what to do first."""
    layers = stopped.site.marks.root / "storage" / "layers"
    victim = next(path for path in sorted(layers.glob("*/fs/**/*")) if path.is_file() and not path.is_symlink())
    content = victim.read_bytes()
    victim.write_bytes(content[:-1])
    (found,) = _findings(stopped, "--deep")
    assert (found["what"], found["mend"]) == ("layer", "")
    assert "containers use it" in found["detail"]
    assert _crio(stopped, "check", "--deep", "--repair", "-y").returncode == EXIT_FOUND
    victim.write_bytes(content)
    assert _findings(stopped, "--deep") == []


def test_a_damaged_journal_is_found_and_not_touched(stopped: Crio) -> None:
    """R9, R10: one damaged copy costs nothing, and the check tells of it before the server mends it."""
    copy = stopped.site.marks.runroot / "state.db"
    copy.with_name("state.db-wal").unlink(missing_ok=True)
    data = b"no database" * 1000
    copy.write_bytes(data)
    found = [one for one in _findings(stopped) if one["what"] == "journal"]
    assert [one["kind"] for one in found] == ["damage"]
    assert str(copy) in found[0]["detail"]
    assert copy.read_bytes() == data
    stopped.start()
    (kept,) = copy.parent.glob("state.db.damaged-*")
    assert kept.read_bytes() == data, "the server keeps it for whoever wants to know what happened"
    kept.unlink()


def test_what_an_unreadable_record_owns_is_no_residue_and_goes_only_together_with_it(stopped: Crio) -> None:
    """R9: the server leaves such a container alone, so must the check; whoever gives it up is shown what that means."""
    marks = stopped.site.marks
    (bundle,) = (marks.runroot / "containers").iterdir()
    container = bundle.name

    async def garble() -> None:
        journal, _ = await Journal.open(marks.root / "state.db", marks.runroot / "state.db")
        await journal.write([Put(kind="container", id=container, data=b"{}")])
        await journal.close()

    anyio.run(garble)
    (found,) = _findings(stopped)
    assert (found["kind"], found["what"], found["where"]) == ("damage", "record", f"container/{container}")
    assert "cannot be read" in found["detail"]
    for what in ("bundle", "mount", "monitor", "runtime state", "writable layer", "control group"):
        assert f"{what} /" in found["mend"] or f"{what} " in found["mend"]
    pid = int((bundle / "pidfile").read_text())
    stopped.start()
    (live,) = _findings(stopped)
    assert live == found
    assert psutil.pid_exists(pid)
    stopped.end()
    assert psutil.pid_exists(pid)
    assert _crio(stopped, "check", "--repair", "-y").returncode == 0
    assert not psutil.pid_exists(pid)
    assert _findings(stopped) == []


def test_namespaces_lost_under_a_ready_pod_are_damage(stopped: Crio) -> None:
    """Somebody unmounted them: the pod is not ready, and nobody has noticed."""
    (pin,) = (stopped.site.marks.runroot / "ns").glob("*/net")
    subprocess.run(["umount", str(pin)], check=True)
    found = _findings(stopped)
    assert ("damage", "namespaces", str(pin)) in [(one["kind"], one["what"], one["where"]) for one in found]
    stopped.start()
    stopped.remove_all()
    # The bridge plugin looks in the namespace for the address that its rule is about (1.1.1 and before).
    residue.remove_rules(stopped.site.marks)


def test_a_foreign_server_at_the_socket_is_not_taken_for_ours(site: Site) -> None:
    """What answers may be another runtime; what it owns is not known, so nothing may be called residue."""
    crio = Crio(site)
    crio.start()
    try:
        other = [word if word != str(site.marks.root) else str(site.directory / "other") for word in crio.argv]
        done = subprocess.run(
            [*other, "check"], capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False
        )
        assert done.returncode == 1
        assert "its root directory is" in done.stderr
    finally:
        crio.end()


def test_check_of_a_node_that_never_ran_finds_nothing(site: Site) -> None:
    """There need not be any directory yet, and the check makes none."""
    crio = Crio(site)
    assert _findings(crio) == []
    assert not Path(site.marks.root).exists()
