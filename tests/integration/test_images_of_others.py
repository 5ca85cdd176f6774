"""Images that podman's builder and umoci made, mounted by us and unpacked by them: the same trees, file by file."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crio_core.image.platform import platform_of_machine
from crio_io.archives import copy_blob, read_images
from crio_io.image_source import open_source
from crio_io.storage.store import Store
from tests.integration.leftovers import MINE
from tests.integration.registry_fixture import archive, busybox_archive
from tests.integration.storage_fixture import member, picture, tar_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes owners and mounts: needs root"),
]
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000").decode("latin-1")
CONTAINERFILE = """
FROM localhost/criotest-base:1
RUN rm -r /gone /kept/inner && rm /single && mkdir /single && touch /single/x && ln /kept/first /kept/third
RUN chmod 2711 /kept && chown 12:34 /linked && mkfifo /kept/fifo && ln -s nowhere /kept/dangling && mv /renamed /moved
COPY tree/ /copied/
RUN rm -r /copied/d1 && mkdir /copied/d1 && echo again > /copied/d1/new
"""


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Podman with a store of its own, of which nothing stays."""
    if shutil.which("podman") is None:
        pytest.skip("needs podman")
    top = Path(tempfile.mkdtemp(prefix=f"{MINE}-"))  # it takes no longer paths
    places = [f"--{name}={top / name}" for name in ("root", "runroot", "tmpdir")]
    argv = ["podman", *places, "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]

    def run(*words: "str | Path") -> str:
        done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield run
    for command in (["image", "umount", "--all"], ["rmi", "--all", "--force"]):
        subprocess.run([*argv, *command], capture_output=True, timeout=120, check=False)
    for place in (top / "root/vfs", top / "root"):
        subprocess.run(["umount", "-l", str(place)], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(top)


def run(*words: "str | Path") -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


async def mounted(store: Store, image: Path, mountpoint: Path) -> Path:
    """Take up an image from a file or directory as a load does, and mount it."""
    source = open_source(image, store.root / "ingest")
    [found] = read_images(source, platform_of_machine("x86_64"), "read.example/x:1")
    for layer in found.layers:
        copy_blob(found.blobs[layer.digest], layer.digest, store.blob_path(layer), lambda _: None)
        await store.apply_layer(layer)
    source.close()
    return store.mount_rootfs("criotest", [layer.diff_id for layer in found.layers], mountpoint)


def differences(ours: Path, theirs: Path, *but: str) -> dict[str, object]:
    """What is not the same in two trees; of the names in `but` neither time nor attributes are compared."""
    left, right = picture(ours), picture(theirs)
    assert len(left) > 1
    for one in (left, right):
        for name in but:
            one[name] = one[name][:3]
    return {
        name: (left.get(name), right.get(name))
        for name in left.keys() | right.keys()
        if left.get(name) != right.get(name)
    }


def base() -> bytes:
    """A root that can run a build, with what is special about files."""
    headers = {"SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.xattr.user.some": "value"}
    return tar_of(
        (member("kept", tarfile.DIRTYPE, mode=0o3775, uid=5, gid=6, mtime=1_500_000_001), b""),
        (member("kept/first", mode=0o4755, uid=70_000, gid=1, mtime=1_500_000_002.25), b"content"),
        (member("kept/second", tarfile.LNKTYPE, "kept/first"), b""),
        (member("kept/inner/deep/file"), b"x"),
        (member("linked", tarfile.SYMTYPE, "kept", uid=9, mtime=1_500_000_003), b""),
        (member("capable", mode=0o755, mtime=1_500_000_004, pax_headers=headers), b"x"),
        (member("gone/one"), b"1"),
        (member("single"), b"a file"),
        (member("renamed/inner"), b"x"),
        (member("n\u00e9-" + "long/" * 30 + "name", mtime=1_500_000_005), b"deep"),
    )


async def test_image_built_by_podman_is_what_podman_and_umoci_make_of_it(
    store: Store, mountpoint: Path, tmp_path: Path, podman: Callable[..., str]
) -> None:
    """Buildah's layers: whiteouts, opaque directories, files moved and owned anew, in gzip or not at all."""
    root = tmp_path / "root"
    for content in (busybox_archive(), base()):
        (tmp_path / "part.tar").write_bytes(content)
        root.mkdir(exist_ok=True)
        run("tar", "-x", "--xattrs", "--xattrs-include=*", "-p", "-f", tmp_path / "part.tar", "-C", root)
    run("tar", "-c", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f", tmp_path / "base.tar", "-C", root, ".")
    podman("import", tmp_path / "base.tar", "localhost/criotest-base:1")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree.tar").write_bytes(archive({f"d{n}/f{m}": b"%d" % m for n in range(3) for m in range(20)}))
    run("tar", "-x", "-f", tmp_path / "tree.tar", "-C", tmp_path / "tree")
    (tmp_path / "Containerfile").write_text(CONTAINERFILE)
    podman("build", "--isolation=chroot", "--layers", "-t", "localhost/criotest:1", tmp_path)
    podman("save", "--format=oci-archive", "-o", tmp_path / "oci.tar", "localhost/criotest:1")
    podman("save", "--format=docker-archive", "-o", tmp_path / "docker.tar", "localhost/criotest:1")
    run("skopeo", "copy", "-q", "--insecure-policy", f"oci-archive:{tmp_path / 'oci.tar'}", f"oci:{tmp_path / 'oci'}:t")
    run("umoci", "raw", "unpack", "--image", f"{tmp_path / 'oci'}:t", tmp_path / "umoci")
    theirs = Path(podman("image", "mount", "localhost/criotest:1"))
    for image in ("oci.tar", "docker.tar", "oci"):
        ours = await mounted(store, tmp_path / image, mountpoint)
        assert (ours / "moved/inner").exists() and not (ours / "kept/inner").exists()
        assert os.getxattr(ours / "capable", "security.capability").decode("latin-1") == CAPABILITY
        assert differences(ours, theirs, ".") == {}
        assert differences(ours, tmp_path / "umoci", ".") == {}
        store.unmount_rootfs("criotest", ours)


async def test_image_changed_by_umoci_is_what_umoci_makes_of_it(store: Store, mountpoint: Path, tmp_path: Path) -> None:
    """Umoci's layers, of some thousand entries: links, times to the nanosecond, attributes, and what it takes away."""
    if shutil.which("umoci") is None:
        pytest.skip("needs umoci")
    image = f"{tmp_path / 'oci'}:t"
    run("umoci", "init", "--layout", tmp_path / "oci")
    run("umoci", "new", "--image", image)
    run("umoci", "unpack", "--image", image, tmp_path / "bundle")
    rootfs = tmp_path / "bundle/rootfs"
    for number in range(1500):
        path = rootfs / f"d{number % 40}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number)
        path.chmod(0o400 + number % 0o200)
        os.chown(path, number, number * 50)
        os.setxattr(path, "user.number", b"%d" % number)
        os.utime(path, ns=(10**18 + number, 10**18 + number * 7))
        if number % 3 == 0:
            os.link(path, path.with_name(f"hard{number}"))
        if number % 5 == 0:
            path.with_name(f"link{number}").symlink_to(f"../d{number % 7}/f{number}")
    os.mknod(rootfs / "null", 0o666 | 0o020000, os.makedev(1, 3))
    run("umoci", "repack", "--image", image, tmp_path / "bundle")
    run("umoci", "unpack", "--image", image, tmp_path / "again")
    rootfs = tmp_path / "again/rootfs"
    shutil.rmtree(rootfs / "d1")
    (rootfs / "d2/f2").unlink()
    shutil.rmtree(rootfs / "d3")
    (rootfs / "d3").write_bytes(b"a file now")
    (rootfs / "d4/f4").write_bytes(b"changed")
    run("umoci", "repack", "--image", image, tmp_path / "again")
    run("umoci", "raw", "unpack", "--image", image, tmp_path / "theirs")
    ours = await mounted(store, tmp_path / "oci", mountpoint)
    assert differences(ours, tmp_path / "theirs", ".") == {}
    store.unmount_rootfs("criotest", ours)
