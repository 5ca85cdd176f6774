"""Pinned namespaces, mounts and a sandbox's files: made whole or not at all, and gone without residue."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crio_core.errors import LocalError, OperationError
from crio_io import mounts, namespaces, sandbox_files

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="unshares namespaces and mounts: needs root"),
]

KINDS = ("net", "uts", "ipc")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where pins go; what a test has made is released, and that leaves nothing."""
    yield tmp_path / "criotest-ns"
    namespaces.release(tmp_path / "criotest-ns")
    left = host_mounts(tmp_path)
    for path in left:
        mounts.unmount(path)
    assert left == []


def inside(pins: dict[str, namespaces.NamespacePin], script: str) -> list[str]:
    """Output lines of a shell in the pinned namespaces."""
    options = [f"--{kind}={pin.path}" for kind, pin in pins.items()]
    done = subprocess.run(["nsenter", *options, "sh", "-c", script], check=True, capture_output=True, timeout=20)
    return done.stdout.decode().splitlines()


def host_mounts(prefix: Path) -> list[str]:
    """Mount points below a path."""
    return [entry.mountpoint for entry in mounts.mountinfo() if entry.mountpoint.startswith(str(prefix))]


async def test_created_namespaces_are_set_up_and_pinned(directory: Path) -> None:
    """What a container joins: its name, a loopback that is up, its own settings, no router advertisements."""
    sysctls = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "net.ipv4.ping_group_range": "0\t100"}
    pins = dict(namespaces.create(directory, KINDS, hostname="criotest-pod", sysctls=sysctls))
    assert {kind: pin.inode for kind, pin in pins.items()} == namespaces.observe(directory)
    script = (
        "hostname; cat /sys/class/net/lo/flags 2>/dev/null >&2; ip -o link show lo | grep -o 'LOWER_UP'; cd /proc/sys;"
        "cat net/ipv4/ip_forward kernel/shm_rmid_forced net/ipv6/conf/all/accept_ra net/ipv6/conf/default/accept_ra"
    )
    assert inside(pins, script) == ["criotest-pod", "LOWER_UP", "1", "1", "0", "0"]
    assert all(pins[kind].inode != Path(f"/proc/self/ns/{kind}").stat().st_ino for kind in KINDS)
    assert directory.stat().st_mode & 0o777 == 0o700
    namespaces.release(directory)
    assert host_mounts(directory) == [] and not directory.exists()


async def test_create_twice_keeps_the_first(directory: Path) -> None:
    """A repeated effect must not give a running pod a second network namespace."""
    first = namespaces.create(directory, KINDS, hostname="a", sysctls={})
    assert namespaces.create(directory, KINDS, hostname="a", sysctls={}) == first
    assert len(host_mounts(directory)) == 3


async def test_create_over_the_remains_of_a_crash_begins_anew(directory: Path) -> None:
    """R7: a server killed between two pins leaves some; a repeated creation ends with exactly one of each."""
    first = namespaces.create(directory, KINDS, hostname="a", sysctls={})
    mounts.unmount(first["ipc"].path)
    assert sorted(namespaces.observe(directory)) == ["net", "uts"]
    second = namespaces.create(directory, KINDS, hostname="a", sysctls={})
    assert second.keys() == first.keys() and namespaces.observe(directory)
    assert len(host_mounts(directory)) == 3


async def test_release_twice_and_of_nothing_is_success(directory: Path) -> None:
    """Undone when absent is success."""
    namespaces.release(directory)
    namespaces.create(directory, ("uts",), hostname="a", sysctls={})
    namespaces.release(directory)
    namespaces.release(directory)
    assert not directory.exists()


async def test_release_of_a_namespace_in_use_succeeds(directory: Path) -> None:
    """R28: a process that still lives in it must not keep the pin."""
    pins = namespaces.create(directory, ("net",), hostname="", sysctls={})
    with subprocess.Popen(["nsenter", f"--net={pins['net'].path}", "sleep", "60"]) as user:
        try:
            namespaces.release(directory)
            assert not directory.exists()
        finally:
            user.kill()


async def test_plain_file_is_not_a_pin(directory: Path) -> None:
    """R6: after a reboot the files are there and the namespaces are not."""
    directory.mkdir()
    (directory / "net").touch()
    assert namespaces.observe(directory) == {}
    assert namespaces.observe(directory / "absent") == {}


@pytest.mark.parametrize(
    ("sysctls", "reason"),
    [
        ({"net.ipv4.no_such_setting": "1"}, "SYSCTL_FAILED"),
        ({"net.ipv4.ip_forward": "not a number"}, "SYSCTL_FAILED"),
        ({"kernel.core_pattern": "|/bin/sh"}, "INVALID_FIELD"),
        ({"net.ipv4.ip_forward": "1\nkernel.core_pattern=x"}, "INVALID_FIELD"),
        ({"net.ipv4.../kernel/core_pattern": "x"}, "INVALID_FIELD"),
        ({"kernel.shmmax": "1"}, "INVALID_FIELD"),
    ],
)
async def test_refused_sysctl_leaves_nothing(directory: Path, sysctls: dict[str, str], reason: str) -> None:
    """R3, CVE-2022-0811, CVE-2022-0532: the last one belongs to an ipc namespace that this pod does not have."""
    with pytest.raises(OperationError) as caught:
        namespaces.create(directory, ("net", "uts"), hostname="a", sysctls=sysctls)
    assert caught.value.reason == reason
    assert host_mounts(directory) == [] and not directory.exists()


@given(name=st.text("net.ipv4/kersm+=,\n\0_-", min_size=1, max_size=40), value=st.text(max_size=20))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sysctl_is_either_refused_or_a_path_of_a_namespace(name: str, value: str) -> None:
    """CVE-2022-0811: whatever passes the check is below a namespaced directory and is one line."""
    try:
        checked = namespaces._settings({name: value}, KINDS)
    except OperationError:
        return
    for path, line in checked.items():
        assert path.startswith(("net/", "kernel/shm", "kernel/msg", "kernel/sem", "kernel/domainname", "fs/mqueue/"))
        assert ".." not in path.split("/") and "\0" not in path + line and "\n" not in path + line


async def test_unknown_kind_is_a_bug_of_the_caller(directory: Path) -> None:
    """A thread cannot make a pid namespace for others."""
    with pytest.raises(LocalError):
        namespaces.create(directory, ("pid",), hostname="", sysctls={})


async def test_over_long_hostname_is_refused(directory: Path) -> None:
    """The kernel takes 64 bytes."""
    with pytest.raises(OperationError) as caught:
        namespaces.create(directory, ("uts",), hostname="x" * 65, sysctls={})
    assert caught.value.reason == "INVALID_FIELD"


async def test_creation_that_is_cancelled_is_still_whole(directory: Path) -> None:
    """A caller leaving stops nothing half-way: after it, all pins are there, or none."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        namespaces.create(directory, KINDS, hostname="a", sysctls={})
    assert len(namespaces.observe(directory)) in (0, 3)


async def test_many_at_once_do_not_touch_the_node(directory: Path, tmp_path: Path) -> None:
    """The thread that unshares ends: none of the node's own namespaces changes, and no two pods share one."""
    before = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}
    made: list[namespaces.NamespacePin] = []

    async def one(number: int) -> None:
        made.extend((namespaces.create(tmp_path / f"p{number}", KINDS, hostname=f"p{number}", sysctls={})).values())

    try:
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(one, number)
        assert len({pin.inode for pin in made}) == 24
    finally:
        for number in range(8):
            namespaces.release(tmp_path / f"p{number}")
    assert {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS} == before
    assert host_mounts(tmp_path) == []


async def test_sandbox_files_are_readable_whatever_the_umask(tmp_path: Path) -> None:
    """Containers of any user read them, through a directory that nobody else enters (CVE-2021-41103)."""
    sandbox = tmp_path / "criotest-sb"
    files = {"resolv.conf": b"nameserver 10.0.0.1\n", "hostname": b"pod\n"}
    old = os.umask(0o077)
    try:
        sandbox_files.create(sandbox, files=files, shm_bytes=65536)
        sandbox_files.create(sandbox, files=files | {"hostname": b"new\n"}, shm_bytes=65536)
    finally:
        os.umask(old)
    try:
        assert (sandbox / "hostname").read_bytes() == b"new\n"
        assert (sandbox / "resolv.conf").stat().st_mode & 0o777 == 0o644
        assert sandbox.stat().st_mode & 0o777 == 0o700
        assert mounts.is_mounted(str(sandbox / "shm")) and len(host_mounts(sandbox)) == 1
        assert os.statvfs(sandbox / "shm").f_blocks * os.statvfs(sandbox / "shm").f_frsize == 65536
        assert (sandbox / "shm").stat().st_mode & 0o7777 == 0o1777
    finally:
        sandbox_files.remove(sandbox)
    sandbox_files.remove(sandbox)
    assert not sandbox.exists() and host_mounts(tmp_path) == []


@pytest.mark.parametrize("name", ["../etc/passwd", "shm", "", ".."])
async def test_sandbox_file_outside_the_directory_is_a_bug_of_the_caller(tmp_path: Path, name: str) -> None:
    """CVE-2025-0750: no name from a pod becomes a path."""
    with pytest.raises(LocalError):
        sandbox_files.create(tmp_path / "criotest-sb", files={name: b""}, shm_bytes=0)


async def test_stacked_mounts_are_all_taken_off(tmp_path: Path) -> None:
    """R28: whatever was mounted over a path, once or often, detaching frees it."""
    source, target = tmp_path / "source", tmp_path / "criotest-target"
    source.mkdir()
    target.mkdir()
    (source / "file").touch()
    try:
        mounts.mount(str(source), str(target), None, mounts.MS_BIND)
        mounts.mount("tmpfs", str(target), "tmpfs", 0)
        assert mounts.is_mounted(str(target))
    finally:
        await mounts.detach(str(target))
    await mounts.detach(str(target))
    await mounts.detach(str(tmp_path / "absent"))
    assert not mounts.is_mounted(str(target)) and not mounts.is_mounted(str(tmp_path / "absent"))
    assert mounts.running_steps() == ()
