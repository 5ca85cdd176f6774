"""Control groups on the machine's own layout, and on made-up ones of every kind."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crio_core.errors import LocalError, OperationError
from crio_core.oci.facts import CgroupDriver
from crio_io import cgroups, host, mounts
from crio_io.cgroups import Cgroups, Hierarchy, Mode
from crio_io.pod_cgroups import PodCgroups
from tests.integration.leftovers import MINE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups: needs root"),
]

TOP = f"/{MINE}-cgroups"


@pytest.fixture
def groups() -> Iterator[Cgroups]:
    """The machine's control groups; what a test makes below `TOP` is removed."""
    found = Cgroups.detect()
    yield found
    found.kill(TOP)
    found.remove(TOP)
    assert not found.exists(TOP)


def joined(groups: Cgroups, path: str, script: str) -> "subprocess.Popen[bytes]":
    """A shell that is in a cgroup before it runs the script."""
    process = subprocess.Popen(["/bin/sh", "-c", f"read go; {script}"], stdin=subprocess.PIPE)
    groups.join(path, process.pid)
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.close()
    return process


def test_detect_finds_what_the_machine_mounts(groups: Cgroups) -> None:
    """The mode decides how specs are written, so it must come from looking and not from the kernel's version."""
    kinds = {entry.kind for entry in mounts.mountinfo() if entry.kind.startswith("cgroup")}
    assert {Mode.V1: {"cgroup"}, Mode.HYBRID: {"cgroup", "cgroup2"}, Mode.V2: {"cgroup2"}}[groups.mode] == kinds
    assert {"memory", "cpu", "pids"} <= groups.controllers


def entry(kind: str, mountpoint: Path, *options: str) -> mounts.MountEntry:
    """One line of a made-up mountinfo."""
    return mounts.MountEntry(root="/", mountpoint=str(mountpoint), kind=kind, super_options=("rw", *options))


def test_every_layout_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v1, hybrid as systemd and as other inits have it, v2, and none."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    unified = entry("cgroup2", tmp_path)
    v1 = (entry("cgroup", tmp_path, "cpu", "cpuacct"), entry("cgroup", tmp_path, "memory"))
    named = entry("cgroup", tmp_path, "xattr", "name=systemd")
    for layout, mode, controllers in (
        ((unified,), Mode.V2, {"cpu", "memory", "pids"}),
        ((*v1, named), Mode.V1, {"cpu", "cpuacct", "memory"}),
        ((named, *v1, unified), Mode.HYBRID, {"cpu", "cpuacct", "memory", "pids"}),
        ((named, unified), Mode.V2, {"cpu", "memory", "pids"}),
    ):
        monkeypatch.setattr(mounts, "mountinfo", lambda layout=layout: iter(layout))
        assert Cgroups.detect().mode is mode and Cgroups.detect().controllers == frozenset(controllers)
    monkeypatch.setattr(mounts, "mountinfo", lambda: iter(()))
    with pytest.raises(OperationError) as caught:
        Cgroups.detect()
    assert caught.value.reason == "CGROUPS_NOT_MOUNTED"


def test_create_and_remove_are_idempotent_in_every_hierarchy(groups: Cgroups) -> None:
    """Done twice is done once, undone when absent is success."""
    groups.create(f"{TOP}/pod/one")
    groups.create(f"{TOP}/pod/one")
    assert all((hierarchy.mountpoint / TOP[1:] / "pod/one").is_dir() for hierarchy in groups.hierarchies)
    groups.remove(f"{TOP}/pod")
    groups.remove(f"{TOP}/pod")
    assert not groups.exists(f"{TOP}/pod") and groups.exists(TOP)


def test_join_moves_a_process_in_every_hierarchy(groups: Cgroups) -> None:
    """CVE-2019-14891: a monitor that is left behind in one hierarchy is charged there."""
    groups.create(f"{TOP}/monitor")
    process = joined(groups, f"{TOP}/monitor", "exec sleep 60")
    lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    paths = {line.split(":", 2)[2] for line in lines}
    assert paths == {f"{TOP}/monitor"} and groups.memory_path(process.pid) == f"{TOP}/monitor"
    assert groups.pids(TOP) == (process.pid,)
    groups.kill(TOP)
    assert process.wait(5) == -9 and groups.memory_path(process.pid) is None


def test_join_of_a_process_that_is_gone_says_so(groups: Cgroups) -> None:
    """A monitor may die before it is moved."""
    groups.create(TOP)
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    with pytest.raises(OperationError) as caught:
        groups.join(TOP, process.pid)
    assert caught.value.reason == "PROCESS_GONE"


def test_kill_ends_everything_below_even_what_forks(groups: Cgroups) -> None:
    """R27: nothing of a pod outlives it, whatever it does when its siblings die."""
    groups.create(f"{TOP}/pod/one")
    first = joined(groups, f"{TOP}/pod/one", "sleep 60 & sleep 60 & wait")
    forker = joined(groups, f"{TOP}/pod/one", "while true; do (sleep 60 & exec sleep 0.01); done")
    deadline_s = time.monotonic() + 10
    while len(groups.pids(TOP)) < 8:
        assert time.monotonic() < deadline_s
    groups.kill(TOP)
    groups.kill(TOP)
    assert groups.pids(TOP) == () and (first.wait(5), forker.wait(5)) == (-9, -9)


def test_kill_of_a_frozen_cgroup_ends_it(groups: Cgroups) -> None:
    """A paused container must not survive its removal."""
    groups.create(TOP)
    process = joined(groups, TOP, "exec sleep 60")
    groups._freeze(TOP, True)
    groups.kill(TOP)
    assert process.wait(5) == -9


def test_remove_with_a_process_inside_fails_with_its_path(groups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residue is reported, not hidden."""
    monkeypatch.setattr(cgroups, "REMOVE_S", 0.05)
    groups.create(TOP)
    process = joined(groups, TOP, "exec sleep 60")
    with pytest.raises(OperationError) as caught:
        groups.remove(TOP)
    assert caught.value.reason == "CGROUP_FAILED" and TOP in caught.value.message
    groups.kill(TOP)
    process.wait(5)


def test_oom_kills_are_counted(groups: Cgroups) -> None:
    """R20: the kernel's own counter, not a notification."""
    groups.create(TOP)
    memory = next(h for h in groups.hierarchies if "memory" in h.controllers)
    limit = "memory.max" if memory.v2 else "memory.limit_in_bytes"
    (memory.mountpoint / TOP[1:] / limit).write_text(str(8 * 1024 * 1024))
    assert groups.oom_kills(TOP) == 0
    joined(groups, TOP, "exec tail /dev/zero").wait(20)
    assert groups.oom_kills(TOP) == 1 and groups.oom_kills(f"{TOP}/absent") == 0


@pytest.mark.parametrize("path", ["", "/", "relative", "/a/../../..", "//", "/a\0b"])
def test_path_that_is_not_below_the_root_is_a_bug_of_the_caller(groups: Cgroups, path: str) -> None:
    """Killing the root's processes would end the machine."""
    for action in (groups.kill, groups.create, groups.remove):
        with pytest.raises(LocalError):
            action(path)


def test_v2_hands_controllers_down_and_kills_by_its_own_file(tmp_path: Path) -> None:
    """What is written where, on a tree of plain files: this machine's v2 has no controllers to hand down."""
    (tmp_path / "cgroup.subtree_control").touch()
    (tmp_path / "pod").mkdir()
    for name in ("cgroup.subtree_control", "cgroup.kill", "cgroup.procs"):
        (tmp_path / "pod" / name).touch()
    unified = Hierarchy(mountpoint=tmp_path, controllers=("cpu", "memory"), v2=True)
    groups = Cgroups(mode=Mode.V2, hierarchies=(unified,))
    groups.create("/pod/one")
    assert (tmp_path / "pod/one").is_dir()
    assert (tmp_path / "pod/cgroup.subtree_control").read_text().endswith("+memory")
    groups.kill("/pod")
    assert (tmp_path / "pod/cgroup.kill").read_text() == "1"


def test_systemd_is_asked_with_a_whole_property_list() -> None:
    """No systemd runs here, so the message itself is checked: signature, count and types in busctl's notation."""
    words = cgroups._systemd_call("StartTransientUnit", "ssa(sv)a(sa(sv))", "a.scope", "replace")
    assert words[:5] == ("busctl", "--system", "--", "call", "org.freedesktop.systemd1")
    properties = cgroups._scope_properties("kubepods.slice", 42)
    assert properties[0] == "5" and properties[1:4] == ("Slice", "s", "kubepods.slice")
    assert properties[-4:] == ("PIDs", "au", "1", "42")


async def test_host_facts_agree_with_the_machine() -> None:
    """What the spec builder is told must be what this process can really do."""
    found = await host.look()
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.kernel >= (4, 18) and found.facts.controllers == found.cgroups.controllers
    assert {limit.name for limit in found.facts.rlimits} >= {"NOFILE", "NPROC", "CORE", "MEMLOCK"}
    lower = subprocess.run(["/bin/sh", "-c", "echo -1000 > /proc/self/oom_score_adj"], capture_output=True)
    assert (lower.returncode == 0) == found.facts.can_raise_limits == (found.facts.oom_score_adj_min == -1000)


def test_a_parent_is_whole_for_the_pod_that_comes_while_the_last_one_goes(groups: Cgroups, tmp_path: Path) -> None:
    """A parent half removed when a container is created in it fails that creation: coming and going take turns."""
    parents = PodCgroups(groups, CgroupDriver.CGROUPFS, tmp_path)
    faults: list[str] = []

    together = threading.Barrier(2, timeout=30)

    def come(pod: str) -> None:
        together.wait()
        parents.remember(pod, TOP)
        try:
            groups.create(f"{TOP}/{pod}")
        except OperationError as error:
            faults.append(f"{pod}: {error}")

    for number in range(40):
        last, following = f"last{number}", f"next{number}"
        parents.remember(last, TOP)
        groups.create(TOP)
        coming = threading.Thread(target=come, args=(following,))
        coming.start()
        together.wait()
        parents.forget(last, TOP)
        coming.join()
        groups.remove(f"{TOP}/{following}")
        parents.forget(following, TOP)
    assert faults == []
    assert not groups.exists(TOP)
    assert list(tmp_path.iterdir()) == []
