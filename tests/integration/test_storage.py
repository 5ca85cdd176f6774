"""The store on a real disk and a real kernel: unpacking as others do, hostile layers, and nothing half-made visible."""

import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from crio_core.errors import OperationError
from crio_core.image.config import LAYERS_MAX
from crio_core.image.digest import Digest, parse_digest
from crio_io.layer_check import why_damaged
from crio_io.mounts import is_mounted, unmount
from crio_io.storage.layer_info import layer_name
from crio_io.storage.overlay import OPTIONS_BYTES_MAX, VOLATILE, Lower, lowerdir, mount_writable
from crio_io.storage.store import UNPACKINGS_MAX, Store, Usage
from tests.integration.registry_fixture import Layer, archive, busybox_archive, pack
from tests.integration.storage_fixture import apply, descriptor, member, picture, refused, tar_of
from tests.integration.waiting import wait_meanwhile

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes owners and mounts: needs root")
pytestmark.append(needs_root)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


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
    root = store.mount_rootfs("criotest", [parse_digest(layer.diff_id) for layer in layers], mountpoint)
    seen = {str(Path(here, name).relative_to(root)) for here, dirs, files in os.walk(root) for name in [*dirs, *files]}
    assert seen == {"a", "a/two", "b", "b/new", "c", "c/inner", "f", "f/x", "g"}
    (root / "a" / "two").write_bytes(b"changed")
    assert (await store.writable_usage("criotest")).size_bytes > 0
    store.unmount_rootfs("criotest", root)
    assert not is_mounted(str(root))
    assert not root.exists()
    assert os.listdir(store.root / "containers") == []
    store.unmount_rootfs("criotest", root)


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
    root = store.mount_rootfs("criotest", diff_ids, mountpoint)
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in (".", "tmp", "tmp/deep")] == [0o711, 0o1777, 0o700]
    assert (root / "tmp").stat().st_uid == 7
    assert (root / "tmp/deep/x").read_bytes() == b"1"
    store.unmount_rootfs("criotest", root)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # Each of the layers is made durable, which takes its time.
async def test_128_layers_mount(store: Store, mountpoint: Path) -> None:
    """The options of a mount fit in one page; images with this many layers exist."""
    layers = [pack(archive({f"f{number}": b"%d" % number}), "none") for number in range(128)]
    async with anyio.create_task_group() as group:
        for layer in layers:
            group.start_soon(apply, store, layer)
    diff_ids = [parse_digest(layer.diff_id) for layer in layers]
    root = store.mount_rootfs("criotest", diff_ids, mountpoint)
    assert {path.name for path in root.iterdir()} == {f"f{number}" for number in range(128)}
    store.unmount_rootfs("criotest", root)
    with pytest.raises(OperationError) as caught:
        store.mount_rootfs("criotest", [*diff_ids, *await more_layers(store, 50)], mountpoint)
    assert caught.value.reason == "TOO_MANY_LAYERS"
    store.unmount_rootfs("criotest", root)


async def more_layers(store: Store, count: int) -> list[Digest]:
    """Layers beyond those that an image may have."""
    layers = [pack(archive({f"more{number}": b""}), "none") for number in range(count)]
    for layer in layers:
        await apply(store, layer)
    return [parse_digest(layer.diff_id) for layer in layers]


def test_layers_of_every_image_that_is_pulled_fit_in_one_mount() -> None:
    """An image with more is refused when it is pulled, not when a container of it is made: wherever the store is."""
    lowers = [Lower(directory=f"{'x' * 20}/fs", implied=()) for _ in range(LAYERS_MAX)]
    container = len(f"/containers/{'0' * 64}/upper")
    assert len(lowerdir(lowers)) + 2 * (container + 300) + len(",upperdir=,workdir=") < OPTIONS_BYTES_MAX


async def test_layer_that_comes_twice_in_an_image_is_mounted_once(store: Store, mountpoint: Path) -> None:
    """Older builders write the same empty layer again and again; the upper of two is the one that shows."""
    one, other = pack(archive({"f": b"one", "g": b"g"})), pack(archive({"f": b"other", ".wh.g": b""}))
    for layer in (one, other):
        await apply(store, layer)
    first, second = parse_digest(one.diff_id), parse_digest(other.diff_id)
    root = store.mount_rootfs("criotest", [first, second, first, second, first], mountpoint)
    assert ((root / "f").read_bytes(), (root / "g").read_bytes()) == (b"one", b"g")
    store.unmount_rootfs("criotest", root)
    store.mount_rootfs("criotest", [first, second, first, second], mountpoint)
    assert ((root / "f").read_bytes(), (root / "g").exists()) == (b"other", False)
    store.unmount_rootfs("criotest", root)


async def test_image_mounts_read_only(store: Store, mountpoint: Path) -> None:
    """An image as a volume; one layer alone needs a second for overlayfs."""
    layer = pack(busybox_archive())
    await apply(store, layer)
    root = await store.mount_image([parse_digest(layer.diff_id)], mountpoint)
    assert (root / "bin/busybox").exists()
    with pytest.raises(OSError, match="Read-only"):
        (root / "x").write_bytes(b"")
    store.unmount(root)
    assert not root.exists()


async def test_image_without_layers_mounts_empty_and_read_only(store: Store, mountpoint: Path) -> None:
    """Such images carry only labels or annotations; overlayfs has no way to show nothing."""
    root = await store.mount_image([], mountpoint)
    assert os.listdir(root) == [] and root.is_mount()
    with pytest.raises(OSError, match="Read-only"):
        (root / "x").touch()
    store.unmount(root)
    assert not root.exists()


async def test_relative_paths_are_those_of_the_caller(
    tmp_path: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program names its directories as it likes: the thread that mounts has another working directory."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path("criotest-store"))
    await store.open()
    layer = pack(archive({"f": b"1"}))
    await apply(store, layer)
    target = Path(mountpoint.name)
    await store.mount_image([parse_digest(layer.diff_id)], target)
    assert (mountpoint / "f").read_bytes() == b"1"
    store.unmount(target)
    assert not mountpoint.exists()
    store.mount_rootfs("criotest", [parse_digest(layer.diff_id)], target)
    assert (mountpoint / "f").read_bytes() == b"1"
    store.unmount_rootfs("criotest", target)
    await store.aclose()


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


@pytest.mark.parametrize("step", ["sync_filesystem", "sync_directory"])
async def test_r12_end_while_a_layer_becomes_durable_loses_neither_layer_nor_blob(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """R12, F2: a server that is killed during the sync, which may be long, must not have to fetch the layer again."""
    layer = pack(archive({"f": os.urandom(5000)}))
    kept = []

    def fails(_: Path) -> None:
        kept.append(store.blob_path(descriptor(layer)).read_bytes() == layer.blob)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(f"crio_io.storage.store.{step}", fails)
        with pytest.raises(OperationError) as caught:
            await apply(store, layer)
    assert (caught.value.reason, kept) == ("STORE_FAILED", [True])
    assert store.blob_path(descriptor(layer)).read_bytes() == layer.blob
    await store.apply_layer(descriptor(layer))
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


async def test_r11_reopened_store_lists_whole_layers_and_sweeps_half_ones(store: Store, tmp_path: Path) -> None:
    """R11, R9: a new server finds what is whole; a damaged record hides that layer alone."""
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
    assert again.list_layers()[0].inodes == 2
    assert await again.sweep(blobs_max_age_s=3600) == ("unpacking/left",)
    assert len(await again.sweep(blobs_max_age_s=-1)) == 1
    await again.remove_layer(good_id)
    await again.remove_layer(good_id)
    assert again.list_layers() == ()
    assert sorted(os.listdir(again.layers)) == sorted(["empty", layer_name(parse_digest(bad.diff_id))])
    assert stat.S_IMODE(again.root.stat().st_mode) == 0o700


async def test_r11_each_kind_of_damage_to_a_layer_is_found_by_its_content(store: Store) -> None:
    """R11: a byte that was changed in place, a file cut short or filled with zeros, as power cuts leave them."""
    content = os.urandom(20_000)
    layer = pack(archive({"d/f": content, "d/g": b"other", "link": "d", "link/through": b"x"}))
    place = (await apply(store, layer)).parent
    [info] = store.list_layers()
    assert not why_damaged(place, info)
    victim = place / "fs" / "d" / "f"
    flipped = bytearray(content)
    flipped[12_345] ^= 1
    for damage in (bytes(flipped), content[:-1], content[:16_384] + bytes(3616), b""):
        victim.write_bytes(damage)
        assert why_damaged(place, info)
    victim.write_bytes(content)
    assert not why_damaged(place, info)
    (place / "fs" / "added").touch()
    assert "inodes" in why_damaged(place, info)
    (place / "fs" / "added").unlink()
    recipe = (place / "recipe").read_bytes()
    (place / "recipe").write_bytes(recipe[:-10])
    assert why_damaged(place, info)


async def test_r11_layer_with_replaced_entries_raises_no_false_alarm(store: Store) -> None:
    """What the first of two entries had is stored nowhere, so that its digest says nothing; one missing file does."""
    place = (await apply(store, pack(everything()))).parent
    [info] = store.list_layers()
    assert info.replaced
    assert not why_damaged(place, info)
    (place / "fs" / "attr").unlink()
    assert "inodes" in why_damaged(place, info)


def du(*places: Path) -> tuple[int, int]:
    """What du(1) says of these places together: bytes and inodes."""
    figures = []
    for option in ("--block-size=1", "--inodes"):
        said = subprocess.run(["du", "-s", "-c", option, *places], capture_output=True, text=True, check=True).stdout
        figures.append(int(said.splitlines()[-1].split()[0]))
    return figures[0], figures[1]


async def test_usage_of_images_and_containers_is_what_du_finds(store: Store, mountpoint: Path) -> None:
    """A kubelet deletes images by these numbers: recipes, records and downloads take space as well as layers do."""
    layers = [pack(archive({f"d{n}/f{m}": os.urandom(9000 * n) for m in range(50)})) for n in range(3)]
    for layer in layers:
        await apply(store, layer)
    store.blob_path(descriptor(pack(busybox_archive()))).write_bytes(os.urandom(100_000))
    again = Store(store.root)
    await again.open()
    for one in (store, again):
        found = await one.usage()
        assert (found.size_bytes, found.inodes) == du(store.layers, store.root / "ingest")
    root = store.mount_rootfs("criotest", [parse_digest(layer.diff_id) for layer in layers], mountpoint)
    (root / "written").write_bytes(os.urandom(70_000))
    (root / "d1" / "f1").write_bytes(b"changed")
    written = await store.writable_usage("criotest")
    assert (written.size_bytes, written.inodes) == du(store.root / "containers" / "criotest")
    assert (await store.usage()).size_bytes == found.size_bytes
    store.unmount_rootfs("criotest", root)
    assert await store.writable_usage("criotest") == Usage(size_bytes=0, inodes=0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of its own in a file beside the mount point."""
    image, place = tmp_path / "disk.img", tmp_path / "criotest-disk"
    image.write_bytes(b"")
    os.truncate(image, 128 * 1024 * 1024)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False).returncode != 0:
        pytest.skip("no loop devices here")
    yield place
    for mounted in (place, tmp_path / "criotest-after"):
        subprocess.run(["umount", "-l", str(mounted)], stderr=subprocess.DEVNULL, check=False)


async def test_r11_after_a_power_cut_every_listed_layer_is_what_it_was(
    disk: Path, tmp_path: Path, anyio_backend: Any
) -> None:
    """R11: the disk as it is at the moment of an acknowledgement, without what only memory has, has it all."""
    store = Store(disk / "criotest-store")
    await store.open()
    layers = [pack(archive({f"d{n}/f{m}": os.urandom(20_000) for m in range(100)})) for n in range(3)]
    for layer in layers[:2]:
        await apply(store, layer)
    unfinished = descriptor(layers[2])
    store.blob_path(unfinished).write_bytes(layers[2].blob[:-1000])
    unpacking = await store.start_unpacking(unfinished)
    assert unpacking is not None
    unpacking.available(len(layers[2].blob) - 1000)
    # What was written to a loop device is in its file, and what was not is lost with the copy, as with the power.
    (tmp_path / "after.img").write_bytes((tmp_path / "disk.img").read_bytes())
    await store.aclose()
    after = tmp_path / "criotest-after"
    after.mkdir()
    subprocess.run(["mount", "-o", "loop", tmp_path / "after.img", after], check=True)
    again = Store(after / "criotest-store")
    await again.open()
    assert {str(info.diff_id) for info in again.list_layers()} == {layer.diff_id for layer in layers[:2]}
    for info in again.list_layers():
        assert not why_damaged(again.layers / layer_name(info.diff_id), info)
    await again.sweep(blobs_max_age_s=3600)
    assert (os.listdir(again.root / "unpacking"), os.listdir(again.root / "trash")) == ([], [])
    await again.aclose()


async def test_r12_sweep_beside_pulls_takes_only_what_an_earlier_server_left(tmp_path: Path) -> None:
    """R12: a layer whose unpacking begins while the store is swept is not taken for a crash's."""
    (tmp_path / "unpacking" / "left").mkdir(parents=True)
    store = Store(tmp_path)
    await store.open()
    (tmp_path / "unpacking" / "begun").mkdir()
    assert await store.sweep(blobs_max_age_s=3600) == ("unpacking/left",)
    assert os.listdir(tmp_path / "unpacking") == ["begun"]


async def test_r30_blob_that_waits_to_be_unpacked_is_not_left_over(store: Store) -> None:
    """R30: on a slow disk the layers before it take longer than a blob may lie idle; it is whole, and awaited."""
    layer = pack(archive({"f": b"content"}))
    wanted = descriptor(layer)
    path = store.blob_path(wanted)
    path.write_bytes(layer.blob)
    old_s = time.time() - 7200
    os.utime(path, (old_s, old_s))
    async with anyio.create_task_group() as group:
        others = [object() for _ in range(UNPACKINGS_MAX)]
        for other in others:
            await store._slots.acquire_on_behalf_of(other)
        group.start_soon(store.apply_layer, wanted)
        await wait_meanwhile("a layer that waits", lambda: path in store._awaited)
        assert await store.trim_blobs(3600, 0) == ()
        for other in others:
            store._slots.release_on_behalf_of(other)
    assert store.has_layer(wanted.diff_id)
    path.write_bytes(layer.blob)
    os.utime(path, (old_s, old_s))
    assert await store.trim_blobs(3600, 0) == (f"ingest/{path.name}",)


@pytest.mark.parametrize(("kind", "link"), [(tarfile.REGTYPE, ""), (tarfile.SYMTYPE, "a"), (tarfile.SYMTYPE, "other")])
async def test_directories_that_became_something_else_leave_no_trace(store: Store, kind: bytes, link: str) -> None:
    """A file, a link to itself, a link to another: nothing is done to what is not there, or behind the link."""
    layer = tar_of(
        (member("other/b", tarfile.DIRTYPE, mtime=1000), b""),
        (member("a", tarfile.DIRTYPE, mtime=2000), b""),
        (member("a/b", tarfile.DIRTYPE, mtime=3000), b""),
        (member("a", kind, link), b""),
    )
    path = await apply(store, pack(layer, "none"))
    assert sorted(os.listdir(path)) == ["a", "other"]
    assert (path / "other/b").stat().st_mtime == 1000


async def test_r30_partial_blobs_are_bounded_by_age_and_by_size(store: Store) -> None:
    """R30: each failed pull may leave half a layer; the oldest go, and what is being written to stays."""
    now_s = time.time()
    for name, age_s, size_bytes in (
        ("sha256-a", 7200, 10),
        ("sha256-b", 3000, 40),
        ("sha256-c", 2000, 40),
        ("sha256-d", 5, 60),
    ):
        path = store.root / "ingest" / name
        path.write_bytes(bytes(size_bytes))
        os.utime(path, (now_s - age_s, now_s - age_s))
    assert await store.trim_blobs(3600, 1000) == ("ingest/sha256-a",)
    assert await store.trim_blobs(3600, 100) == ("ingest/sha256-b",)
    assert await store.trim_blobs(3600, 10) == ("ingest/sha256-c",)
    assert os.listdir(store.root / "ingest") == ["sha256-d"]


async def test_r30_blob_of_a_layer_that_is_in_place_goes_at_the_next_start(store: Store) -> None:
    """R12, R30: a server killed between the two leaves both; another blob of the same layer is gone on with."""
    layer = pack(archive({"f": b"content"}))
    await apply(store, layer)
    own, other = (
        store.blob_path(descriptor(layer)),
        store.blob_path(descriptor(pack(archive({"f": b"content"}), "none"))),
    )
    own.write_bytes(layer.blob)
    other.write_bytes(b"half")
    again = Store(store.root)
    await again.open()
    assert os.listdir(store.root / "ingest") == [other.name]
    await again.aclose()


def test_writable_mount_is_volatile_and_can_be_made_again_over_what_it_left(tmp_path: Path) -> None:
    """A volatile mount that a crash took away leaves a mark, with which the kernel refuses the next one."""
    layers, writable, target = tmp_path / "layers", tmp_path / "writable", tmp_path / "root"
    (layers / "empty").mkdir(parents=True)
    for content in ("first", "second"):
        mount_writable(layers, (), writable, target)
        try:
            options = next(
                line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {target} " in line
            )
            assert ("volatile" in options) == bool(VOLATILE)
            assert content == "first" or (target / "file").read_text() == "first"
            (target / "file").write_text(content)
        finally:
            unmount(str(target))
