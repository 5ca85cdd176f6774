"""Images in and out of files, against the files of skopeo, umoci and docker's format."""

import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crio_core.errors import OperationError
from crio_core.image.platform import platform_of_machine
from crio_io.archives import read_images
from crio_io.image_source import open_source
from crio_io.storage.unpack import Limits
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import REPOSITORY, Crio
from tests.integration.registry_fixture import archive, busybox_archive, pack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not all(map(shutil.which, ("skopeo", "umoci"))), reason="needs skopeo and umoci"),
]


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """The images of this module."""
    return ("busybox", "told")


def crioctl(crio: Crio, *words: str, code: int = 0) -> str:
    """Run crioctl against the server; gives its standard output, or standard error when it must fail."""
    argv = [sys.executable, "-m", "crio_server.crioctl", "-r", f"unix://{crio.site.socket}", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def status(crio: Crio, name: str) -> pb.Image:
    found: pb.Image = crio.client(pb.ImageStatusRequest(image=pb.ImageSpec(image=name))).image
    return found


def remove(crio: Crio, name: str) -> None:
    crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


def stored(crio: Crio) -> set[str]:
    """What is in the store, by room and name."""
    root = crio.site.marks.root / "storage"
    rooms = ("ingest", "unpacking", "layers", "trash")
    return {f"{room}/{name}" for room in rooms for name in os.listdir(root / room)}


@pytest.fixture(scope="module")
def awkward() -> bytes:
    """A layer with what makes archives hard to write again: links, devices, sparse files, attributes, whiteouts."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, more in (
            ("z-first", tarfile.REGTYPE, {"size": 3000, "mode": 0o4755, "mtime": 1.5}),
            ("dir", tarfile.DIRTYPE, {"mode": 0o1777, "uid": 70000}),
            ("dir/" + "long" * 60, tarfile.REGTYPE, {"size": 1, "pax_headers": {"SCHILY.xattr.user.a": "b\udcff"}}),
            ("dir/hard", tarfile.LNKTYPE, {"linkname": "z-first"}),
            ("link", tarfile.SYMTYPE, {"linkname": "dir"}),
            ("link/through", tarfile.REGTYPE, {"size": 700}),
            ("null", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
            (".wh.gone", tarfile.REGTYPE, {}),
            ("implied/empty", tarfile.REGTYPE, {}),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            for key, value in more.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(os.urandom(member.size)))
    return out.getvalue() + b"what follows the end"


def test_saved_image_has_its_very_layers_and_is_read_by_others(crio: Crio, tmp_path: Path, awkward: bytes) -> None:
    """Blobs are not kept, so layers are packed anew: bit for bit, or an image that was saved would be another one."""
    reference = crio.images.registry.push("awkward", [pack(busybox_archive()), pack(awkward)]).reference
    image_id = crio.pull(reference)
    before = status(crio, reference)
    for form, kind in (("oci-dir", "oci"), ("oci-archive", "oci-archive"), ("docker-archive", "docker-archive")):
        path = tmp_path / f"{form}.out"
        assert image_id in crioctl(crio, "image", "save", "-f", form, reference, str(path))
        config = subprocess.run(
            ["skopeo", "inspect", "--config", "--raw", f"{kind}:{path}"], capture_output=True, timeout=60, check=True
        ).stdout
        assert f"sha256:{hashlib.sha256(config).hexdigest()}" == image_id
        copied = tmp_path / f"{form}.copied"
        subprocess.run(
            ["skopeo", "copy", "-q", "--insecure-policy", f"{kind}:{path}", f"dir:{copied}"], timeout=60, check=True
        )
        remove(crio, reference)
        assert not status(crio, reference).id
        assert crioctl(crio, "image", "load", str(path)).split() == ["Loaded:", reference]
        after = status(crio, reference)
        assert (after.id, after.size, list(after.repo_tags)) == (before.id, before.size, list(before.repo_tags))
        assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == [], "nothing is left of the making"
    assert "exists" in crioctl(crio, "image", "save", reference, str(tmp_path / "oci-archive.out"), code=1)
    remove(crio, reference)


def test_images_of_skopeo_and_umoci_are_loaded(crio: Crio, tmp_path: Path) -> None:
    """The files that people have are made by these; compressed layers, and a layout that umoci has changed."""
    image_id, source = status(crio, crio.images.told).id, f"docker://{crio.images.told}"
    copy = ("skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", source)
    layout = tmp_path / "layout"
    subprocess.run([*copy, f"oci:{layout}:latest"], timeout=60, check=True)
    subprocess.run([*copy, f"docker-archive:{tmp_path / 'docker.tar'}:named.example/x:2"], timeout=60, check=True)
    assert crioctl(crio, "image", "load", "--name", "loaded.example/a:1", str(layout)) == "Loaded: loaded.example/a:1\n"
    assert crioctl(crio, "image", "load", str(tmp_path / "docker.tar")) == "Loaded: named.example/x:2\n"
    assert status(crio, "loaded.example/a:1").id == image_id
    assert "a reference" in crioctl(crio, "image", "load", str(layout), code=1), "'latest' is no name"
    subprocess.run(["umoci", "config", "--image", f"{layout}:latest", "--config.user", "99"], timeout=60, check=True)
    crioctl(crio, "image", "load", "--name", "loaded.example/umoci:1", str(layout))
    changed = status(crio, "loaded.example/umoci:1")
    assert (changed.id != image_id, changed.uid.value) == (True, 99)
    remove(crio, "loaded.example/umoci:1")


def test_imported_tree_is_an_image_that_runs(crio: Crio, tmp_path: Path) -> None:
    """A root filesystem and nothing else: owners, modes, times, links and attributes arrive in the container."""
    root = tmp_path / "root"
    with tarfile.open(fileobj=io.BytesIO(busybox_archive())) as tar:
        tar.extractall(root, filter="fully_trusted")
    mark = root / "etc" / "mark"
    mark.write_text("from the tree\n")
    os.link(mark, root / "etc" / "again")
    os.chown(mark, 12, 34)
    mark.chmod(0o2640)
    crioctl(crio, "image", "import", str(root), "made.example/tree:1", "-c", "sh", "-e", "A=b")
    with crio.pod() as pod:
        script = "cat /etc/again; ls -ln /etc/mark; echo $A"
        code, text = crio.run(pod, script, image="made.example/tree:1")
    assert code == 0 and "from the tree" in text and "-rw-r-S---    2 12       34" in text and "b\n" in text, text
    remove(crio, "made.example/tree:1")


def test_file_that_is_no_image_or_lies_is_refused_and_leaves_nothing(crio: Crio, tmp_path: Path) -> None:
    """A file is as much a stranger's word as a registry is."""
    before = stored(crio)
    crioctl(crio, "image", "save", "-f", "oci-dir", crio.images.told, str(tmp_path / "good"))
    remove(crio, crio.images.told)
    index = json.loads((tmp_path / "good" / "index.json").read_text())
    manifest = tmp_path / "good" / "blobs" / "sha256" / index["manifests"][0]["digest"].partition(":")[2]
    layer = json.loads(manifest.read_text())["layers"][-1]["digest"].partition(":")[2]
    blob = tmp_path / "good" / "blobs" / "sha256" / layer
    content = bytearray(blob.read_bytes())
    content[700] ^= 1
    blob.write_bytes(content)
    assert "blob" in crioctl(crio, "image", "load", str(tmp_path / "good"), code=1)
    manifest.write_text(manifest.read_text() + " ")
    assert "expected sha256" in crioctl(crio, "image", "load", str(tmp_path / "good"), code=1)
    (tmp_path / "none").write_bytes(b"\x1f\x8b no image")
    assert "no OCI layout" in crioctl(crio, "image", "load", str(tmp_path / "none"), code=1)
    (tmp_path / "other.tar").write_bytes(archive({"f": b"content"}))
    assert "manifest.json" in crioctl(crio, "image", "load", str(tmp_path / "other.tar"), code=1)
    assert not status(crio, crio.images.told).id
    crio.pull(crio.images.told)
    assert stored(crio) == before


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_compressed_archives_are_loaded(crio: Crio, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """`docker save | gzip` is how images travel; nothing of the decompressed archive stays."""
    before, image_id = stored(crio), status(crio, crio.images.told).id
    crioctl(crio, "image", "save", "-f", "docker-archive", crio.images.told, str(tmp_path / "image.tar"))
    (tmp_path / "image.tar.z").write_bytes(compress((tmp_path / "image.tar").read_bytes()))
    remove(crio, crio.images.told)
    assert crioctl(crio, "image", "load", str(tmp_path / "image.tar.z")).split() == ["Loaded:", crio.images.told]
    assert status(crio, crio.images.told).id == image_id
    assert stored(crio) == before


def read_docker(path: Path, scratch: Path) -> str:
    """Read a Docker image as the server does: why it is refused, or empty."""
    try:
        source = open_source(path, scratch, Limits(floor_bytes=1_000_000, ratio=200))
        try:
            read_images(source, platform_of_machine("x86_64"), "read.example/x:1")
        finally:
            source.close()
    except OperationError as error:
        return f"{error.reason}: {error.message}"
    return ""


def test_cve_2024_3727_names_in_a_directory_lead_to_its_own_regular_files_only(tmp_path: Path) -> None:
    """CVE-2024-3727: `../`, links out, FIFOs and devices: none is opened, none holds the thread up."""
    layer = archive({"f": b"x"})
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    rootfs = {"type": "layers", "diff_ids": [diff_id]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    image = tmp_path / "image"
    (image / "sub").mkdir(parents=True)
    for place in (image, image / "sub", tmp_path):
        (place / "config.json").write_bytes(config)
        (place / "layer.tar").write_bytes(layer)
    (tmp_path / "outside.json").write_bytes(config)
    (tmp_path / "outside.tar").write_bytes(layer)
    (image / "inside.json").symlink_to("sub/config.json")
    (image / "absolute.json").symlink_to("/config.json")
    (image / "out.json").symlink_to(tmp_path / "outside.json")
    (image / "up.tar").symlink_to("../outside.tar")
    os.mkfifo(image / "fifo")
    os.mknod(image / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))

    def read(config_name: str, layer_name: str) -> str:
        listed = [{"Config": config_name, "Layers": [layer_name], "RepoTags": ["read.example/x:1"]}]
        (image / "manifest.json").write_text(json.dumps(listed))
        return read_docker(image, tmp_path)

    assert read("config.json", "layer.tar") == ""
    assert read("inside.json", "sub/layer.tar") == ""
    assert read("absolute.json", "layer.tar") == "", "the directory is the root of what is in it"
    for name in ("../outside.json", "out.json", str(tmp_path / "outside.json"), "sub", "fifo", "device"):
        assert name in read(name, "layer.tar")
    for name in ("../outside.tar", "up.tar", str(tmp_path / "outside.tar"), "sub", "fifo", "device"):
        assert name in read("config.json", name)


def test_archive_that_is_a_fifo_or_of_an_unknown_kind_is_refused_at_once(tmp_path: Path) -> None:
    """CVE-2021-20291, CVE-2017-14992: xz is not read, a thousandfold archive is given up, no FIFO is waited for."""
    os.mkfifo(tmp_path / "fifo")
    assert "no regular file" in read_docker(tmp_path / "fifo", tmp_path)
    (tmp_path / "image.tar.xz").write_bytes(lzma.compress(archive({"f": b"x"})))
    assert "xz" in read_docker(tmp_path / "image.tar.xz", tmp_path)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as out:
        out.write(bytes(20_000_000))
    assert "decompresses to more than" in read_docker(tmp_path / "bomb.tar.gz", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["bomb.tar.gz", "fifo", "image.tar.xz"]


def test_a_huge_extension_header_of_an_archive_is_refused_unread(tmp_path: Path) -> None:
    """A few kilobytes, compressed, would take gigabytes of the server's memory."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    path = tmp_path / "image.tar"
    path.write_bytes(header.tobuf())
    os.truncate(path, 1 << 32)
    assert f"an extension header has {1 << 32} bytes" in read_docker(path, tmp_path)
