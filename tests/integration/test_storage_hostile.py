"""The store and hostile layers: what an image says leads nowhere, costs no more than it is worth, and is named."""

import io
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from crio_core.errors import Code, OperationError
from crio_core.image import tar
from crio_core.image.digest import parse_digest
from crio_io.openat2 import openat2
from crio_io.storage import layer_tree
from crio_io.storage.layer_tree import CHUNK_BYTES
from crio_io.storage.overlay import VOLATILE
from crio_io.storage.store import Store
from crio_io.storage.unpack import DISK_RESERVE_BYTES, Limits
from crio_io.storage.unpack_worker import QUEUE_CHUNKS_MAX, ROOM_BYTES
from tests.integration.registry_fixture import Layer, archive, pack
from tests.integration.storage_fixture import apply, descriptor, member, picture, refused, tar_of

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes owners and mounts: needs root")
pytestmark.append(needs_root)


OVERLAY_INODES = 7 if VOLATILE else 4
"""In a writable layer in which nothing is written: its directory, upper, work, one in that, and what says volatile."""
REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


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


def whiteouts(count: int) -> bytes:
    """Names hidden in directories that other entries made, and hidden again."""
    entries: dict[str, bytes | str] = {}
    for number in range(count):
        entries |= {
            f"d{number % 7}/f{number}": b"",
            f"d{number % 7}/.wh.f{number}": b"",
            f"d{number}/.wh..wh..opq": b"",
        }
    return archive(entries)


def deep_names(count: int) -> bytes:
    """Directories that no entry describes, each as deep as a name may be."""
    return archive({f"d{number}/" + "x/" * 100 + "f": b"" for number in range(count // 10)})


def replacements(count: int) -> bytes:
    """One name that is a tree and a file by turns: what is taken away again was counted when it was made."""
    members = []
    for number in range(count):
        members.append((member(f"d/{number % 5}/inner"), b""))
        if number % 5 == 4:
            members.append((member("d"), b"a file"))
    return tar_of(*members)


def links(count: int) -> bytes:
    """Every entry is reached through as many links as are followed."""
    chain = [(member(f"l{number + 1}", tarfile.SYMTYPE, f"l{number}"), b"") for number in range(30)]
    entries = [(member(f"l30/f{number}/x"), b"") for number in range(count)]
    return tar_of((member("l0", tarfile.DIRTYPE, mode=0o755), b""), *chain, *entries)


COUNT_CALLS = """
import io, os, sys
from crio_core.image.tar import TarReader
from crio_io.openat2 import openat2
from crio_io.storage.layer_tree import Tree
archive = io.BytesIO(sys.stdin.buffer.read())
os.chroot(".")
tree, reader = Tree(10**6, 10**9), TarReader(archive.read, lambda size: memoryview(archive.read(min(size, 65536))))
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
while (entry := reader.next()) is not None:
    tree.add(entry, reader)
tree.finish()
sys.setprofile(None)
print(calls)
"""


@pytest.mark.parametrize("corpus", [whiteouts, deep_names, replacements, links])
def test_ghsa_rp3h_work_grows_with_the_entries_only(tmp_path: Path, corpus: Callable[[int], bytes]) -> None:
    """GHSA-rp3h-jf77-q9p4: twice the entries take twice the calls, whatever they do to each other. Calls, not time."""

    def calls(count: int) -> int:
        place = tmp_path / str(count)
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", COUNT_CALLS],
            input=corpus(count), cwd=place, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return int(done.stdout)

    few, twice, more = calls(200), calls(400), calls(800)
    assert twice - few > 200, "the corpus reaches what it is about"
    assert more - twice <= 2.1 * (twice - few)


async def test_ghsa_rp3h_work_beyond_the_budget_ends_the_unpacking(tmp_path: Path, anyio_backend: Any) -> None:
    """GHSA-rp3h-jf77-q9p4: also what is linear must end: a processor's time is a budget, and it has a name."""
    store = Store(tmp_path / "criotest-store", Limits(cpu_s=1))
    await store.open()
    assert await refused(store, pack(deep_names(20_000))) == "TOO_MUCH_WORK"
    await apply(store, pack(archive({"f": b"x"})))
    await store.aclose()


async def test_r12_unpackings_side_by_side_leave_the_disk_its_reserve(tmp_path: Path, anyio_backend: Any) -> None:
    """Four layers at once each fit into what was free when they began, and not together."""
    root = tmp_path / "criotest-store"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160M", "criotest", root], check=True)
    free = [os.statvfs(root).f_bavail]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            free.append(os.statvfs(root).f_bavail)

    watcher = threading.Thread(target=watch)
    refusals = []
    store = Store(root)

    async def unpack_one(layer: Layer) -> None:
        try:
            await apply(store, layer)
        except OperationError as error:
            refusals.append((error.code, error.reason))

    await store.open()
    watcher.start()
    try:
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(unpack_one, pack(archive({f"f{number}": bytes(60_000_000)})))
        assert refusals
        assert {code for code, _ in refusals} == {Code.RESOURCE_EXHAUSTED}
        # Each may write what it has at hand before it looks again.
        assert min(free) * 4096 > DISK_RESERVE_BYTES - 4 * (ROOM_BYTES + QUEUE_CHUNKS_MAX * CHUNK_BYTES)
        await apply(store, pack(archive({"small": b"x"})))
    finally:
        done.set()
        watcher.join()
        await store.aclose()
        subprocess.run(["umount", "-l", root], check=True)


LOSE_CAPABILITIES = """
import sys, anyio
from pathlib import Path
from crio_core.errors import Code, OperationError
from crio_io.storage.store import Store
from tests.integration.registry_fixture import pack
from tests.integration.storage_fixture import apply
async def main():
    store = Store(Path(sys.argv[1]))
    await store.open()
    try:
        await apply(store, pack(Path(sys.argv[2]).read_bytes()))
    except OperationError as error:
        print(error.reason, error.message)
    await store.aclose()
anyio.run(main)
"""


def test_capabilities_of_a_file_that_cannot_be_stored_are_an_error_by_name(tmp_path: Path) -> None:
    """A server without CAP_SETFCAP, or a file system without attributes: `ping` would fail where nobody looks."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000").decode("latin-1")
    headers = {"SCHILY.xattr.security.capability": capability}
    (tmp_path / "layer.tar").write_bytes(tar_of((member("bin/ping", mode=0o755, pax_headers=headers), b"x")))
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-setfcap", "--inh-caps=-setfcap"),
            *(sys.executable, "-c", LOSE_CAPABILITIES, tmp_path / "criotest-store", tmp_path / "layer.tar"),
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.stdout.startswith("CAPABILITIES_UNSUPPORTED")
    assert "bin/ping" in done.stdout


def deep_layer() -> bytes:
    """No name in it is long, but each link begins where the last one has led: 3000 directories deep."""
    members = []
    for number in range(12):
        members.append((member(f"l{number}/" + "d/" * 250, tarfile.DIRTYPE, mode=0o755), b""))
        members.append((member(f"l{number + 1}", tarfile.SYMTYPE, f"l{number}/" + "d/" * 250), b""))
    return tar_of(*members)


async def test_ghsa_rp3h_layer_deeper_than_any_recursion_is_refused_and_leaves_nothing(store: Store) -> None:
    """GHSA-rp3h-jf77-q9p4: the depth of names says nothing of the depth of the tree, which everybody walks later."""
    for _ in range(2):
        assert await refused(store, pack(deep_layer())) == "ARCHIVE_INVALID"
        assert os.listdir(store.root / "ingest") == []
    assert await store.sweep(blobs_max_age_s=3600) == ()


def dig(top: Path, levels: int) -> None:
    """Make directories in each other, as a container can, deeper than any path leads; each with a file."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 60, dir_fd=here)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        inner = os.open("d" * 60, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


async def test_ghsa_rp3h_what_a_container_dug_is_measured_and_deleted(store: Store, mountpoint: Path) -> None:
    """A container's removal must not be owed for ever because of what it made; nor may its usage stay unknown."""
    levels = sys.getrecursionlimit() + 300
    layer = pack(archive({"f": b"x"}))
    await apply(store, layer)
    root = store.mount_rootfs("criotest", [parse_digest(layer.diff_id)], mountpoint)
    await anyio.to_thread.run_sync(dig, root, levels)
    before = len(os.listdir("/proc/self/fd"))
    assert (await store.writable_usage("criotest")).inodes == 2 * levels + OVERLAY_INODES
    store.unmount_rootfs("criotest", root)
    assert len(os.listdir("/proc/self/fd")) == before
    assert [os.listdir(store.root / room) for room in ("containers", "trash")] == [[], []]


async def test_r9_what_cannot_be_deleted_does_not_keep_a_sweep_from_the_rest(tmp_path: Path) -> None:
    """R9: one bad entry, here one that somebody has mounted something on, costs nothing but itself."""
    root = tmp_path / "criotest-store"
    bad = root / "unpacking" / "bad" / "mounted"
    bad.mkdir(parents=True)
    dig(root / "unpacking" / "bad", 50)
    (root / "unpacking" / "good").mkdir()
    store = Store(root)
    await store.open()
    subprocess.run(["mount", "-t", "tmpfs", "criotest", bad], check=True)
    try:
        (bad / "kept").touch()
        moved = await store.sweep(blobs_max_age_s=3600)
        [left] = (root / "trash").iterdir()
        assert (left / "mounted" / "kept").exists(), "what is mounted there is not the store's"
        assert "unpacking/good" in moved
        assert await store.sweep(blobs_max_age_s=3600) == ()
    finally:
        subprocess.run(["umount", "-l", *root.glob("*/*/mounted")], check=True)
    assert await store.sweep(blobs_max_age_s=3600) == (f"trash/{left.name}",)


async def test_cve_2024_3727_image_that_lies_about_a_blob_shares_no_file_with_an_honest_one(store: Store) -> None:
    """Two diff ids for one blob, at the same time: the one that is wrong is refused, and spoils nothing."""
    for number in range(4):
        honest = pack(archive({f"f{number}": os.urandom(50_000)}))
        other = pack(archive({"other": b""}))
        lie = Layer(blob=honest.blob, diff_id=other.diff_id)
        assert store.blob_path(descriptor(lie)) != store.blob_path(descriptor(honest))
        reasons: list[str] = []

        async def lied(lie: Layer = lie, reasons: list[str] = reasons) -> None:
            with pytest.raises(OperationError) as caught:
                await apply(store, lie)
            reasons.append(caught.value.reason)

        async with anyio.create_task_group() as group:
            group.start_soon(lied)
            group.start_soon(apply, store, honest)
        assert reasons == ["DIFF_ID_MISMATCH"]
        assert store.has_layer(parse_digest(honest.diff_id))
    assert os.listdir(store.root / "ingest") == []


async def test_cve_2026_55686_links_between_layers_are_not_followed_on_the_host(
    store: Store, mountpoint: Path, tmp_path: Path
) -> None:
    """A layer has `a -> a host directory`, the next one implies `a/secret`: what is there is nobody's to describe."""
    secret = tmp_path / "host" / "secret"
    secret.mkdir(parents=True)
    os.chown(secret, 4242, 4242)
    secret.chmod(0o750)
    os.setxattr(secret, "user.secret", b"of the host")
    layers = [
        pack(tar_of((member("./", tarfile.DIRTYPE, mode=0o755), b""), (member("b", tarfile.SYMTYPE, "a"), b""))),
        pack(tar_of((member("a", tarfile.SYMTYPE, str(tmp_path / "host")), b""))),
        pack(tar_of((member("a/secret/x"), b""), (member("b/secret/x"), b""))),
    ]
    for layer in layers:
        await apply(store, layer)
    root = store.mount_rootfs("criotest", [parse_digest(layer.diff_id) for layer in layers], mountpoint)
    for name in ("a", "a/secret", "b", "b/secret"):
        info = (root / name).lstat()
        assert (info.st_mode, info.st_uid) == (stat.S_IFDIR | 0o755, 0)
        assert os.listxattr(root / name) == []
    store.unmount_rootfs("criotest", root)
    assert secret.is_dir()


async def test_ghsa_rp3h_describing_what_layers_imply_costs_what_they_have(
    store: Store, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not layers times implied directories times depth: it is looked only where a layer has them, and only once."""
    looked: list[str] = []

    def counted(root: int, path: str, flags: int, resolve: int) -> int:
        looked.append(path)
        return openat2(root, path, flags, resolve)

    base = pack(tar_of(*((member(f"d{number}", tarfile.DIRTYPE, uid=7), b"") for number in range(50))))
    implying = [pack(archive({f"d{number}/e/e/e/{n}": b"" for number in range(50)})) for n in range(10)]
    layers = [base, *implying]
    for layer in layers:
        await apply(store, layer)
    diff_ids = [parse_digest(layer.diff_id) for layer in layers]
    monkeypatch.setattr("crio_io.storage.overlay.openat2", counted)
    root = store.mount_rootfs("criotest", diff_ids, mountpoint)
    assert {(root / f"d{number}").stat().st_uid for number in range(50)} == {7}
    shown = 50 * 11 + 3 * 50 * 10
    assert shown <= len(looked) <= shown + 3 * 50 * 2 + 60
    store.unmount_rootfs("criotest", root)
    monkeypatch.setattr("crio_io.storage.overlay.LOOKUPS_MAX", 1000)
    with pytest.raises(OperationError) as caught:
        store.mount_rootfs("criotest", diff_ids, mountpoint)
    assert caught.value.reason == "TOO_MANY_IMPLIED"
    store.unmount_rootfs("criotest", root)


async def test_what_a_layer_hides_describes_nothing_above_it(store: Store, mountpoint: Path) -> None:
    """A file or an opaque directory in between hides the lower directory, and so its owner and mode too."""
    owned = [(member(name, tarfile.DIRTYPE, mode=0o700, uid=7), b"") for name in ("f", "f/x", "o", "o/x", "s", "s/x")]
    layers = [
        pack(tar_of(*owned)),
        pack(tar_of((member("f"), b"a file"), (member("o/.wh..wh..opq"), b""))),
        pack(archive({"f/x/1": b"", "o/x/1": b"", "s/x/1": b""})),
    ]
    for layer in layers:
        await apply(store, layer)
    root = store.mount_rootfs("criotest", [parse_digest(layer.diff_id) for layer in layers], mountpoint)
    assert [(root / name).stat().st_uid for name in ("f", "f/x", "o/x", "s", "s/x")] == [0, 0, 0, 7, 7]
    assert stat.S_IMODE((root / "s/x").stat().st_mode) == 0o700
    store.unmount_rootfs("criotest", root)


async def test_mounting_again_looks_at_nothing_that_the_container_wrote(
    store: Store, mountpoint: Path, tmp_path: Path
) -> None:
    """After a crash the root is mounted again over what the container has made of it: a link to the host, say."""
    layers = [pack(tar_of((member("a", tarfile.DIRTYPE, uid=7), b""))), pack(archive({"a/b/c": b""}))]
    for layer in layers:
        await apply(store, layer)
    diff_ids = [parse_digest(layer.diff_id) for layer in layers]
    root = store.mount_rootfs("criotest", diff_ids, mountpoint)
    shutil.rmtree(root / "a")
    (root / "a").symlink_to(tmp_path)
    store.unmount(root)
    store.mount_rootfs("criotest", diff_ids, mountpoint)
    assert (root / "a").is_symlink()
    assert not (tmp_path / "b").exists()
    store.unmount_rootfs("criotest", root)


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


def sparse(real_bytes: int, segments: str, **more: str) -> bytes:
    """A file with GNU's sparse map of pax format 1.0: how large it says to be, and where its data are."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(real_bytes)}
    body = segments.encode()
    return tar_of((member("f", pax_headers=headers | more), body + bytes(-len(body) % 512)))


async def test_cve_2025_58183_sparse_files_are_bombs_within_bounds(store: Store) -> None:
    """CVE-2025-58183, CVE-2017-14992: a file of a petabyte, a map without end, and one that leads past the file."""
    assert await refused(store, pack(sparse(2**50, "0\n"))) == "LAYER_TOO_LARGE"
    assert await refused(store, pack(sparse(2**63, "0\n"))) in ("LAYER_TOO_LARGE", "ARCHIVE_INVALID")
    assert await refused(store, pack(sparse(10, "999999999\n"))) == "ARCHIVE_INVALID"
    assert await refused(store, pack(sparse(10**6, "70000\n" + "1\n0\n" * 70_000))) == "ARCHIVE_INVALID"
    assert await refused(store, pack(sparse(10, "1\n5\n9\n"))) == "ARCHIVE_INVALID"
    place = await apply(store, pack(sparse(900_000_000, "0\n")))
    info = (place / "f").stat()
    assert (info.st_size, info.st_blocks) == (900_000_000, 0)


async def test_cve_2021_20291_xz_is_not_even_begun(store: Store) -> None:
    """CVE-2021-20291: a decompressor that nobody needs cannot hang: refused by name, and under a false one."""
    plain = archive({"f": b"x"})
    for media_type, reason in (
        ("application/vnd.oci.image.layer.v1.tar+xz", "LAYER_TYPE_UNKNOWN"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "DECOMPRESSION_FAILED"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "DECOMPRESSION_FAILED"),
        ("application/vnd.oci.image.layer.v1.tar", "ARCHIVE_INVALID"),
    ):
        layer = Layer(blob=lzma.compress(plain), diff_id=pack(plain).diff_id, media_type=media_type)
        assert await refused(store, layer) == reason


@pytest.mark.parametrize(("bound", "kind"), [("IMPLIED_BYTES_MAX", "f"), ("REMEMBERED_BYTES_MAX", "directory")])
async def test_paths_that_are_remembered_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, kind: str
) -> None:
    """Half a megabyte of archive, compressed, made 50 MB of names that stayed in the server's memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer_tree, bound, 1000)
    made = tarfile.DIRTYPE if kind == "directory" else tarfile.REGTYPE
    deep = [member(f"{'a' * 100}/{at}/{'b' * 100}" + "/f" * (kind == "f"), made) for at in range(10)]
    stream = io.BytesIO(tar_of(*((one, b"") for one in deep)))
    reader = tar.TarReader(stream.read, lambda size: memoryview(stream.read(size)))
    tree = layer_tree.Tree(entries_max=1000, file_bytes_max=1000)

    def unpack() -> None:
        while (entry := reader.next()) is not None:
            tree.add(entry, reader)

    with pytest.raises(layer_tree.LayerRefusedError, match="bytes") as refused_by:
        unpack()
    assert refused_by.value.reason == "ARCHIVE_INVALID"
    assert 2 <= len(os.listdir(tmp_path / ("a" * 100))) <= 6


async def test_a_path_that_no_kernel_takes_is_refused_as_such(store: Store) -> None:
    """It is the archive that is wrong, and trying again changes nothing."""
    assert await refused(store, pack(tar_of((member("./" * 40_000 + "f"), b"x")))) == "ARCHIVE_INVALID"


async def test_an_attribute_that_the_file_system_cannot_store_is_named(store: Store, tmp_path: Path) -> None:
    """ext4 says that there is no space, of a disk with plenty: nobody frees any, and the pull is tried for ever."""
    value = "y" * 60_000
    layer = pack(tar_of((member("f", pax_headers={"SCHILY.xattr.user.x": value}), b"x")))
    with suppress(OSError):
        os.setxattr(tmp_path, "user.x", value.encode())
        pytest.skip("this file system stores attributes of 60 kB")
    assert await refused(store, layer) == "XATTR_UNSUPPORTED"
