"""The store on a real disk and a real kernel: unpacking as others do, hostile layers, and nothing half-made visible."""

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from crio_core.errors import OperationError
from crio_core.image.digest import Digest, parse_digest
from crio_core.image.resolved import LayerDescriptor
from crio_io.mounts import is_mounted
from crio_io.storage.store import Store, layer_name
from crio_io.storage.unpack import Limits
from tests.integration.registry_fixture import Layer, archive, busybox_archive, pack

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes owners and mounts: needs root")
pytestmark.append(needs_root)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Store]:
    found = Store(tmp_path / "criotest-store")
    await found.open()
    yield found
    await found.aclose()


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "criotest-rootfs"
    yield place
    subprocess.run(["umount", "-l", str(place)], stderr=subprocess.DEVNULL, check=False)


def descriptor(layer: Layer) -> LayerDescriptor:
    return LayerDescriptor(
        digest=parse_digest(layer.digest),
        size_bytes=len(layer.blob),
        media_type=layer.media_type,
        diff_id=parse_digest(layer.diff_id),
    )


async def apply(store: Store, layer: Layer) -> Path:
    """Put a layer's blob where a fetch would, and unpack it; gives the directory with its content."""
    found = descriptor(layer)
    store.blob_path(found.digest).write_bytes(layer.blob)
    await store.apply_layer(found)
    return store.layers / layer_name(found.diff_id) / "fs"


async def refused(store: Store, layer: Layer) -> str:
    """Unpack what must not be unpacked: the reason, when nothing of it is left."""
    with pytest.raises(OperationError) as caught:
        await apply(store, layer)
    assert os.listdir(store.root / "unpacking") == []
    assert os.listdir(store.root / "trash") == []
    assert not store.has_layer(parse_digest(layer.diff_id))
    return caught.value.reason


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    for key, value in more.items():
        setattr(info, key, value)
    return info


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree: kind, mode, owner, times, attributes, content, and names of one inode."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, list[str]] = {}
    for here, directories, files in os.walk(root):
        for name in [*directories, *files, *(["."] if Path(here) == root else [])]:
            path = Path(here) / name
            info = path.lstat()
            content: object = ""
            if stat.S_ISREG(info.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                inodes.setdefault(info.st_ino, []).append(str(path.relative_to(root)))
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            names = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in names)
            device = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
            found[str(path.relative_to(root))] = (
                info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, device, attributes, content,
            )  # fmt: skip
    found["links"] = tuple(sorted(tuple(sorted(same)) for same in inodes.values() if len(same) > 1))
    return found


def everything() -> bytes:
    """An archive with every kind of entry that an image may have."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    return tar_of(
        (member("./", tarfile.DIRTYPE, mode=0o755, mtime=1_600_000_000), b""),
        (member("d/", tarfile.DIRTYPE, mode=0o2775, uid=5, gid=6, mtime=1_600_000_001), b""),
        (member("d/file", mode=0o4755, uid=70_000, gid=1, mtime=1_600_000_002.25), b"content"),
        (member("d/hard", tarfile.LNKTYPE, "d/file"), b""),
        (member("d/link", tarfile.SYMTYPE, "../etc/passwd", uid=9, mtime=1_600_000_003), b""),
        (member("fifo", tarfile.FIFOTYPE, mode=0o600), b""),
        (member("null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3), b""),
        (
            member("cap", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": capability.decode("latin-1")}),
            b"x",
        ),
        (member("attr", pax_headers={"SCHILY.xattr.user.some": "value"}), b""),
        (member("n\u00e9-" + "long/" * 30 + "name"), b"deep"),
        (member("e\u0301"), b"decomposed"),
        (member("\u00e9"), b"composed"),
        (member("twice"), b"first"),
        (member("twice", mode=0o600), b"second"),
        (member("becomes-file/", tarfile.DIRTYPE), b""),
        (member("becomes-file/inner"), b"x"),
        (member("becomes-file"), b"now a file"),
    )


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_apply_makes_the_same_files_as_umoci(store: Store, tmp_path: Path, compression: str) -> None:
    """Another project's unpacker is the judge: owners, modes, times, attributes, links and content are the same."""
    layer = pack(everything(), compression)
    ours = picture(await apply(store, layer))
    image = tmp_path / "oci"
    subprocess.run(["umoci", "init", "--layout", image], check=True)
    subprocess.run(["umoci", "new", "--image", f"{image}:t"], check=True)
    (tmp_path / "layer.tar").write_bytes(everything())
    subprocess.run(["umoci", "raw", "add-layer", "--image", f"{image}:t", tmp_path / "layer.tar"], check=True)
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{image}:t", tmp_path / "theirs"], check=True)
    theirs = picture(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    # Directories that the archive does not describe have no time to keep; umoci also leaves the root's to chance.
    for name in [name for name in ours if name == "." or name.endswith("long")]:
        assert name == "." or stat.S_ISDIR(int(str(ours[name][0])))
        ours[name], theirs[name] = (*ours[name][:3], *ours[name][4:]), (*theirs[name][:3], *theirs[name][4:])
    assert {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]} == {}


async def test_mounted_layers_show_whiteouts_and_opaque_directories(store: Store, mountpoint: Path) -> None:
    """What an upper layer hides is hidden, what the same layer has stays, a directory over a file replaces it."""
    lower = pack(archive({"a/one": b"1", "a/two": b"2", "b/old": b"o", "c": b"c", "f/x": b"x", "g": b"file"}))
    upper = pack(
        archive(
            {
                "a/.wh.one": b"",
                "b/.wh..wh..opq": b"",
                "b/new": b"n",
                ".wh.c": b"",
                "c/": b"",
                "c/inner": b"i",
                "f/.wh.x": b"",
                "f/x/": b"",
                "g/": b"",
                ".wh..wh.plnk": b"",
            }
        )
    )
    layers = [lower, upper]
    for layer in layers:
        await apply(store, layer)
    root = await store.mount_rootfs("criotest", [parse_digest(layer.diff_id) for layer in layers], mountpoint)
    seen = {str(Path(here, name).relative_to(root)) for here, dirs, files in os.walk(root) for name in [*dirs, *files]}
    assert seen == {"a", "a/two", "b", "b/new", "c", "c/inner", "f", "f/x", "g"}
    (root / "a" / "two").write_bytes(b"changed")
    assert (await store.writable_usage("criotest")).size_bytes > 0
    await store.unmount_rootfs("criotest", root)
    assert not is_mounted(str(root))
    assert not root.exists()
    assert os.listdir(store.root / "containers") == []
    await store.unmount_rootfs("criotest", root)


async def test_mount_describes_directories_that_a_layer_left_out(store: Store, mountpoint: Path) -> None:
    """A layer with `tmp/x` but no `tmp` must not take the sticky bit from /tmp, nor the root's mode from the image."""
    lower = pack(
        tar_of(
            (member("./", tarfile.DIRTYPE, mode=0o711), b""),
            (member("tmp", tarfile.DIRTYPE, mode=0o1777, uid=7), b""),
            (member("tmp/deep", tarfile.DIRTYPE, mode=0o700), b""),
        )
    )
    upper = pack(archive({"tmp/deep/x": b"1"}))
    for layer in (lower, upper):
        await apply(store, layer)
    diff_ids = [parse_digest(lower.diff_id), parse_digest(upper.diff_id)]
    root = await store.mount_rootfs("criotest", diff_ids, mountpoint)
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in (".", "tmp", "tmp/deep")] == [0o711, 0o1777, 0o700]
    assert (root / "tmp").stat().st_uid == 7
    assert (root / "tmp/deep/x").read_bytes() == b"1"
    await store.unmount_rootfs("criotest", root)


async def test_128_layers_mount(store: Store, mountpoint: Path) -> None:
    """The options of a mount fit in one page; images with this many layers exist."""
    layers = [pack(archive({f"f{number}": b"%d" % number}), "none") for number in range(128)]
    async with anyio.create_task_group() as group:
        for layer in layers:
            group.start_soon(apply, store, layer)
    diff_ids = [parse_digest(layer.diff_id) for layer in layers]
    root = await store.mount_rootfs("criotest", diff_ids, mountpoint)
    assert {path.name for path in root.iterdir()} == {f"f{number}" for number in range(128)}
    await store.unmount_rootfs("criotest", root)
    with pytest.raises(OperationError) as caught:
        await store.mount_rootfs("criotest", diff_ids * 2, mountpoint)
    assert caught.value.reason == "TOO_MANY_LAYERS"
    await store.unmount_rootfs("criotest", root)


async def test_image_mounts_read_only(store: Store, mountpoint: Path) -> None:
    """An image as a volume; one layer alone needs a second for overlayfs."""
    layer = pack(busybox_archive())
    await apply(store, layer)
    root = await store.mount_image([parse_digest(layer.diff_id)], mountpoint)
    assert (root / "bin/busybox").exists()
    with pytest.raises(OSError, match="Read-only"):
        (root / "x").write_bytes(b"")
    await store.unmount(root)
    assert not root.exists()


async def test_cve_2025_47290_links_swapped_while_unpacking_lead_nowhere(store: Store, tmp_path: Path) -> None:
    """CVE-2025-47290: a layer's directories are swapped for links to the host while it is unpacked: none gets out."""
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = pack(archive({f"d/f{number}": b"x" * 2000 for number in range(1500)}), "none")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for place in (store.root / "unpacking").glob("*/fs"):
                try:
                    (place / "d").rename(place / "aside")
                    (place / "d").symlink_to(outside)
                    (place / "d").unlink()
                    (place / "aside").rename(place / "d")
                except OSError:
                    continue

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        await apply(store, layer)
    except OperationError:
        pass  # the tree was pulled from under it: refused is right, written elsewhere is not
    finally:
        stop.set()
        swapper.join()
    assert os.listdir(outside) == []


async def test_cve_2021_32760_link_entries_change_nothing_outside(store: Store, tmp_path: Path) -> None:
    """CVE-2021-32760: links to host files, and entries through them, change no mode, owner or content there."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"safe")
    victim.chmod(0o600)
    before = picture(tmp_path)["victim"]
    path = str(victim)
    layer = pack(
        tar_of(
            (member("s", tarfile.SYMTYPE, path, mode=0o777, uid=1234), b""),
            (member("s", tarfile.REGTYPE, mode=0o777, uid=1234), b"changed"),
            (member("up", tarfile.SYMTYPE, "../../../../../../../../" + path), b""),
            (member("up2", tarfile.SYMTYPE, "/.."), b""),
            (member("up2" + path, mode=0o666), b"inside"),
            (member("dir", tarfile.SYMTYPE, str(tmp_path)), b""),
            (member("dir/victim", mode=0o666), b"inside"),
        )
    )
    place = await apply(store, layer)
    assert picture(tmp_path)["victim"] == before
    assert (place / path.lstrip("/")).read_bytes() == b"inside"
    for hostile in (member("x", tarfile.LNKTYPE, path), member("x", tarfile.LNKTYPE, "../../../etc/passwd")):
        assert await refused(store, pack(tar_of((hostile, b"")))) in ("HARDLINK_TARGET_MISSING", "ARCHIVE_INVALID")
    assert await refused(store, pack(tar_of((member("../../up"), b"x")))) == "ARCHIVE_INVALID"


async def test_image_cannot_speak_to_overlayfs(store: Store) -> None:
    """`trusted.overlay.redirect` in an archive would make one layer show another directory of the host's choice."""
    names = ("trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.redirect", "security.selinux")
    headers = {f"SCHILY.xattr.{name}": "y" for name in names}
    place = await apply(store, pack(tar_of((member("d", tarfile.DIRTYPE, pax_headers=headers), b""))))
    assert os.listxattr(place / "d") == []


async def test_cve_2025_58183_bombs_are_refused_within_their_bounds(tmp_path: Path, anyio_backend: Any) -> None:
    """CVE-2025-58183, CVE-2017-14992: a layer that grows a thousandfold, or has endless entries, is stopped early."""
    store = Store(tmp_path / "criotest-store", Limits(floor_bytes=1_000_000, ratio=2, entries=100))
    await store.open()
    for compression in ("gzip", "zstd"):
        bomb = pack(archive({"zeros": bytes(40_000_000)}), compression)
        assert len(bomb.blob) < 400_000
        assert await refused(store, bomb) == "LAYER_TOO_LARGE"
    assert await refused(store, pack(archive({f"f{number}": b"" for number in range(101)}))) == "TOO_MANY_ENTRIES"
    assert await refused(store, pack(archive({"d/" * 300 + "x": b""}))) == "ARCHIVE_INVALID"
    await store.aclose()


async def test_ghsa_rp3h_work_grows_with_the_entries_only(store: Store) -> None:
    """GHSA-rp3h-jf77-q9p4: names replaced again and again, and deep names, cost what they take to write, no more."""
    replaced: dict[str, bytes | str] = {}
    for number in range(100):
        replaced[f"d{number}/" + "x/" * 100] = b""
        replaced[f"d{number}/.wh.y"] = b""
    with anyio.fail_after(30):
        await apply(store, pack(archive(replaced)))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_cve_2021_20291_broken_streams_end_with_an_error(store: Store, compression: str) -> None:
    """CVE-2021-20291: truncated and damaged streams end in bounded time, with a named error and no process left."""
    good = pack(archive({"f": os.urandom(300_000)}), compression)
    half = good.blob[: len(good.blob) // 2]
    damaged = half + bytes(64) + good.blob[len(half) + 64 :]
    for blob in (half, damaged, b"", good.blob + b"trailing garbage"):
        with anyio.fail_after(30):
            layer = Layer(blob=blob, diff_id=good.diff_id, media_type=good.media_type)
            reason = await refused(store, layer)
            assert reason in ("DECOMPRESSION_FAILED", "ARCHIVE_INVALID", "DIFF_ID_MISMATCH")


async def test_r12_layer_with_another_diff_id_is_never_visible(store: Store) -> None:
    """R12: content that is not what the configuration says is refused, and its blob is not kept."""
    honest, other = pack(archive({"a": b"1"})), pack(archive({"a": b"2"}))
    lie = Layer(blob=other.blob, diff_id=honest.diff_id)
    assert await refused(store, lie) == "DIFF_ID_MISMATCH"
    assert os.listdir(store.root / "ingest") == []
    await apply(store, honest)


async def test_r12_cancelled_apply_leaves_nothing_and_can_be_done_again(store: Store) -> None:
    """R12, R13: an apply that is cancelled at any of its waits frees its process and directory."""
    layer = pack(archive({f"f{number}": os.urandom(500) for number in range(2000)}))
    for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1):
        with anyio.move_on_after(delay_s):
            await apply(store, layer)
        assert os.listdir(store.root / "unpacking") == []
    place = await apply(store, layer)
    assert len(os.listdir(place)) == 2000
    assert os.listdir(store.root / "ingest") == []


async def test_r15_apply_of_one_layer_at_the_same_time_unpacks_it_once(store: Store) -> None:
    """R15: whoever comes second finds the layer there."""
    layer = pack(archive({"f": b"x"}))
    await apply(store, layer)
    place = store.layers / layer_name(parse_digest(layer.diff_id))
    inode = place.stat().st_ino
    for _ in range(3):
        await apply(store, layer)
    assert place.stat().st_ino == inode
    assert len(store.list_layers()) == 1


async def test_r11_reopened_store_lists_whole_layers_and_sweeps_the_rest(store: Store, tmp_path: Path) -> None:
    """R11, R9: a new server finds what is whole; a damaged record hides that layer alone; the sweep takes the rest."""
    good, bad = pack(archive({"a": b"1"})), pack(archive({"b": b"2"}))
    for layer in (good, bad):
        await apply(store, layer)
    (store.layers / layer_name(parse_digest(bad.diff_id)) / "layer.json").write_bytes(b"{")
    (store.root / "unpacking" / "left" / "fs").mkdir(parents=True)
    (store.root / "ingest" / ("sha256-" + "0" * 64)).write_bytes(b"part")
    again = Store(store.root)
    await again.open()
    good_id = parse_digest(good.diff_id)
    assert [info.diff_id for info in again.list_layers()] == [good_id]
    assert again.usage().inodes == 2
    none: frozenset[Digest] = frozenset()
    removed = await again.sweep(frozenset({good_id}), none, frozenset(), blobs_max_age_s=3600)
    assert sorted(room.partition("/")[0] for room in removed) == ["layers", "unpacking"]
    assert len(await again.sweep(frozenset({good_id}), none, frozenset(), blobs_max_age_s=-1)) == 1
    await again.remove_layer(good_id)
    await again.remove_layer(good_id)
    assert again.list_layers() == ()
    assert sorted(os.listdir(again.layers)) == ["empty"]
    assert stat.S_IMODE(again.root.stat().st_mode) == 0o700


async def test_documents_come_back_or_are_named_as_damaged(store: Store) -> None:
    """Manifests and configurations are what a later `image save` is made of."""
    data = b'{"a": 1}'
    digest = parse_digest("sha256:" + hashlib.sha256(data).hexdigest())
    await store.put_document(digest, data)
    assert await store.get_document(digest) == data
    (store.root / "documents" / f"sha256-{digest.hex}").write_bytes(b"other")
    with pytest.raises(OperationError) as caught:
        await store.get_document(digest)
    assert caught.value.reason == "DIGEST_MISMATCH"
    await store.remove_document(digest)
    with pytest.raises(OperationError) as caught:
        await store.get_document(digest)
    assert caught.value.reason == "DOCUMENT_NOT_FOUND"


async def test_r12_sweep_beside_pulls_takes_only_what_an_earlier_server_left(tmp_path: Path) -> None:
    """R12: a layer whose unpacking begins while the store is swept is not taken for a crash's."""
    (tmp_path / "unpacking" / "left").mkdir(parents=True)
    store = Store(tmp_path)
    await store.open()
    (tmp_path / "unpacking" / "begun").mkdir()
    assert await store.sweep(None, frozenset(), None, blobs_max_age_s=3600) == ("unpacking/left",)
    assert os.listdir(tmp_path / "unpacking") == ["begun"]
