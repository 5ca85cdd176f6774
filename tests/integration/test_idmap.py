"""Root filesystems and mounts under the ids of a user namespace, on the real kernel: right owners, and nothing left."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from crio_core.cri import IDMapping, UserNamespace
from crio_core.errors import OperationError
from crio_io import idmap, mounts, namespaces, user_namespace
from crio_io.storage.overlay import Lower, mount_read_only, mount_writable

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="mounts: needs root")]
BASE, LENGTH = 700_000, 1000
OVERFLOW = 65534
LAYERS = 200


def mapped(base: int = BASE, length: int = LENGTH) -> UserNamespace:
    runs = (IDMapping(host_id=base, container_id=0, length=length),)
    return UserNamespace(uids=runs, gids=runs)


@pytest.fixture
def users(tmp_path: Path) -> Iterator[str]:
    """A pinned user namespace."""
    directory = tmp_path / "criotest-ns"
    try:
        pins = namespaces.create(directory, ("user",), hostname="", sysctls={}, users=mapped())
        yield pins["user"].path
    finally:
        namespaces.release(directory)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A place to mount on; taken off, nothing of the mount is left."""
    place = tmp_path / "criotest-target"
    yield place
    mounts.unmount(str(place))
    assert mounted_below(place) == []


def layer(layers: Path, name: str, files: dict[str, int]) -> None:
    """An unpacked layer with files and their owners."""
    (layers / "empty").mkdir(parents=True, exist_ok=True)
    for path, owner in files.items():
        place = layers / name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
        os.chown(place, owner, owner)


def owner(path: Path) -> int:
    return path.lstat().st_uid


def mounted_below(path: Path) -> list[str]:
    return [one.mountpoint for one in mounts.mountinfo() if one.mountpoint.startswith(str(path))]


def test_files_of_layers_and_new_ones_have_the_pods_ids(tmp_path: Path, target: Path, users: str) -> None:
    """The disk keeps the image's ids; what the pod changes is copied up under its own."""
    layers, writable = tmp_path / "layers", tmp_path / "writable"
    layer(layers, "a", {"etc/conf": 0, "home/user": 5, "far": LENGTH})
    mount_writable(layers, [Lower(directory="a", implied=())], writable, target, users)
    assert [owner(target / name) for name in ("etc/conf", "home/user", "far")] == [BASE, BASE + 5, OVERFLOW]
    assert owner(target) == BASE
    (target / "etc" / "conf").write_text("changed")
    assert owner(writable / "upper" / "etc" / "conf") == BASE
    assert (layers / "a" / "etc" / "conf").read_text() == "a"
    assert owner(layers / "a" / "etc" / "conf") == 0
    with pytest.raises(OSError, match=r"Permission denied|Value too large"):
        (target / "far").write_text("an owner that the pod does not have cannot be copied up")


def test_directory_that_a_layer_implies_is_the_one_below_under_the_pods_ids(
    tmp_path: Path, target: Path, users: str
) -> None:
    """A layer with `tmp/x` and no `tmp` must not make /tmp the node's root's, nor change its mode."""
    layers = tmp_path / "layers"
    layer(layers, "low", {"tmp/low": 0})
    layer(layers, "high", {"tmp/high": 0, "new/deep/file": 0})
    (layers / "low" / "tmp").chmod(0o1777)
    lowers = [
        Lower(directory="low", implied=(".",)),
        Lower(directory="high", implied=(".", "tmp", "new", "new/deep")),
    ]
    mount_writable(layers, lowers, tmp_path / "writable", target, users)
    assert (owner(target / "tmp"), (target / "tmp").stat().st_mode & 0o7777) == (BASE, 0o1777)
    assert sorted(os.listdir(target / "tmp")) == ["high", "low"]
    assert owner(target) == owner(target / "new") == owner(target / "new" / "deep") == BASE


def test_many_layers_are_mounted_and_leave_one_mount_alone(tmp_path: Path, target: Path, users: str) -> None:
    """128 layers work for other pods; and none of the steps in between may stay in the node's mounts."""
    layers = tmp_path / "layers"
    for number in range(LAYERS):
        layer(layers, f"layer-with-a-long-name-{number:03}", {f"file{number}": number})
    lowers = [Lower(directory=f"layer-with-a-long-name-{number:03}", implied=()) for number in range(LAYERS)]
    before = mounted_below(Path("/"))
    mount_writable(layers, lowers, tmp_path / "writable", target, users)
    assert [owner(target / f"file{number}") for number in range(LAYERS)] == [BASE + n for n in range(LAYERS)]
    assert sorted(set(mounted_below(Path("/"))) - set(before)) == [str(target)]
    mount_writable(layers, lowers, tmp_path / "writable", target, users)
    assert mounted_below(target) == [str(target)], "done twice is done once"


def test_image_as_a_volume_is_mapped_and_read_only(tmp_path: Path, target: Path, users: str) -> None:
    """One layer alone too, which overlayfs takes only beside another."""
    layers = tmp_path / "layers"
    layer(layers, "a", {"file": 3})
    mount_read_only(layers, [Lower(directory="a", implied=())], target, users)
    assert owner(target / "file") == BASE + 3
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("x")


def test_image_without_layers_as_a_volume_is_an_empty_directory(tmp_path: Path, target: Path, users: str) -> None:
    """Such images carry only labels or annotations: the pod starts and finds nothing there."""
    layers = tmp_path / "layers"
    (layers / "empty").mkdir(parents=True)
    mount_read_only(layers, [], target, users)
    assert (os.listdir(target), owner(target)) == ([], BASE)
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").touch()
    assert mounted_below(target) == [str(target)]


def test_mount_that_fails_leaves_nothing(tmp_path: Path, target: Path, users: str) -> None:
    """A layer that is gone, found half-way: the next try begins where this one did."""
    layers = tmp_path / "layers"
    layer(layers, "a", {"file": 3})
    before = mounted_below(Path("/"))
    lowers = [Lower(directory="a", implied=()), Lower(directory="gone", implied=())]
    with pytest.raises(OperationError) as caught:
        mount_writable(layers, lowers, tmp_path / "writable", target, users)
    assert caught.value.reason == "MOUNT_FAILED"
    assert mounted_below(Path("/")) == before
    assert mounted_below(target) == []


def test_file_system_without_mapped_ids_is_named(tmp_path: Path, target: Path, users: str) -> None:
    """A volume on such a file system cannot be had, and the message says which."""
    with pytest.raises(OperationError, match="/proc/sys") as caught:
        idmap.mount_mapped("/proc/sys", str(target), users)
    assert caught.value.reason == "IDMAP_NOT_AVAILABLE"
    assert mounted_below(target) == []


def test_node_says_why_it_has_no_user_namespaces_for_pods(tmp_path: Path) -> None:
    """What is told the kubelet is tried out, not guessed from a version."""
    here = (99, 0)
    assert idmap.why_not(tmp_path, here) == ""
    assert "kernel 5.18" in idmap.why_not(tmp_path, (5, 18))
    assert "/proc/sys" in idmap.why_not(Path("/proc/sys"), here)


def test_process_that_holds_the_namespaces_has_none_of_our_descriptors() -> None:
    """A server that is killed meanwhile must leave no listening socket, and no end of a pipe, to a process that lives.

    The next start would take its socket for a live server's, and refuse.
    """
    runs = mapped().uids
    ours = sorted(os.listdir("/proc/self/fd"))
    with user_namespace.holder(namespaces.CLONE_FLAGS["net"], runs, runs) as pid:
        assert os.listdir(f"/proc/{pid}/fd") == []
        assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert sorted(os.listdir("/proc/self/fd")) == ours


def test_mappings_that_the_kernel_refuses_leave_no_pin_and_no_process(tmp_path: Path) -> None:
    """The process that holds the namespaces is gone however the block is left."""
    twice = IDMapping(host_id=BASE, container_id=0, length=2)
    wrong = UserNamespace(uids=(twice, twice), gids=(twice,))
    children = psutil.Process().children()
    with pytest.raises(OperationError) as caught:
        namespaces.create(tmp_path / "ns", ("net", "ipc", "uts", "user"), hostname="h", sysctls={}, users=wrong)
    assert caught.value.reason == "NAMESPACE_FAILED"
    assert not (tmp_path / "ns").exists()
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process().children() == children
