"""The store of image content: layers unpacked once by diff id, and containers' root filesystems.

    ingest/      blobs while they are fetched, whole or partial; deleted once they are unpacked
    unpacking/   layers while they are unpacked
    layers/      one directory for each layer: `fs` (its content) and `layer.json`
    containers/  what each container writes
    trash/       what is being deleted

A layer appears in `layers/` by one rename, after its content and its `layer.json` are durable; so what is there is
complete (R11, R12). It disappears by one rename to `trash/`. A compressed blob is not kept: beside `fs` lies a recipe
(`recipe.py`) by which an image that is saved gets its layers packed anew, with the same diff ids.
"""

import errno
import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import anyio

from crio_core.errors import Code, LocalError, OperationError, not_found
from crio_core.image.digest import Digest
from crio_core.image.resolved import LayerDescriptor
from crio_core.values import dataclass
from crio_io.mounts import entering, in_thread, unmount_or_report
from crio_io.storage import deep
from crio_io.storage.files import make_directory, sync_directory, sync_filesystem
from crio_io.storage.layer_info import RECORD_NAME, LayerInfo, blob_name, layer_name, read_info
from crio_io.storage.overlay import Lower, mount_read_only, mount_writable
from crio_io.storage.recipe import FILE_NAME as RECIPE_NAME
from crio_io.storage.recipe import pack_layer
from crio_io.storage.rooms import Rooms, remove_failed
from crio_io.storage.unpack import Limits, Template, Unpacked, Unpacking, start_unpacking

UNPACKINGS_MAX = 4
log = logging.getLogger(__name__)
_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What something takes on disk."""

    size_bytes: int
    inodes: int


class Store:
    """Image content under one directory. Only one process may have it open.

    What is fetched, applied or proved of one diff id at the same time would share an unpacking: whoever calls does one
    after the other, as the node does by its records and `UnpackedImages` by its locks.

    Args:
        root: The directory; `open` makes it.
        limits: What one layer may take.
    """

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.root = root.absolute()
        self.layers = self.root / "layers"
        self._limits = limits or Limits()
        self._awaited: set[Path] = set()
        """Blobs that are being unpacked, or wait for it."""
        self._infos: dict[Digest, LayerInfo] = {}
        self._unpackings: dict[Digest, Unpacking] = {}
        self._template = Template()
        self._template_users = 0
        self._rooms = Rooms(self.root)
        self._slots = anyio.CapacityLimiter(UNPACKINGS_MAX)
        self._sync_lock = anyio.Lock()
        self._syncs_asked = 0
        self._syncs_done = 0

    async def open(self) -> None:
        """Make the directories and remember which layers are there."""
        await in_thread(f"open store {self.root}", self._open)

    async def aclose(self) -> None:
        """End what is running; partial downloads stay for the next time."""
        for unpacking in tuple(self._unpackings.values()):
            await self._give_up(unpacking)
        await in_thread("end the unpacking template", self._template.close, lambda: True)

    # Blobs

    def blob_path(self, layer: LayerDescriptor) -> Path:
        """Where the bytes of a layer's blob are while it is fetched."""
        return self.root / "ingest" / blob_name(layer)

    async def start_unpacking(self, layer: LayerDescriptor) -> Unpacking | None:
        """Begin to unpack a blob that is still being fetched, if a process may be started now.

        `apply_layer` takes over what was begun here; `stop_unpacking` ends it.
        """
        await self.stop_unpacking(layer.diff_id)
        running = sum(unpacking.is_running for unpacking in self._unpackings.values())
        if layer.diff_id in self._infos or running >= UNPACKINGS_MAX:
            return None
        return await self._begin(layer)

    async def stop_unpacking(self, diff_id: Digest) -> None:
        """End an unpacking that nobody will apply; none is success."""
        unpacking = self._unpackings.get(diff_id)
        if unpacking is not None:
            await self._give_up(unpacking)

    async def forget_blob(self, layer: LayerDescriptor) -> None:
        """Delete the bytes of a layer's blob; absent is success."""
        await in_thread(f"delete blob {layer.digest}", lambda: self.blob_path(layer).unlink(missing_ok=True))

    async def trim_blobs(self, max_age_s: float, bytes_max: int) -> tuple[str, ...]:
        """Delete blobs that nobody has written to for so long, and then the oldest until they take no more than that.

        One that was written to within `BLOB_IDLE_S` is on its way, and stays; so does one that waits to be unpacked.
        Returns what was deleted; what cannot be is logged, and does not keep the rest.

        Raises:
            OSError: The directory of the blobs cannot be read.
        """
        return await in_thread("trim blobs", self._rooms.trim_blobs, max_age_s, bytes_max, frozenset(self._awaited))

    # Layers

    async def apply_layer(self, layer: LayerDescriptor) -> LayerInfo:
        """Unpack a fetched layer, make it durable and put it in place; one that is in place is left as it is.

        Raises:
            OperationError: The layer was refused (ARCHIVE_INVALID, LAYER_TOO_LARGE, DIFF_ID_MISMATCH, ...), or the disk
                is full (NO_SPACE). Nothing of it stays, except the blob when trying again makes sense.
        """
        if (info := self._infos.get(layer.diff_id)) is not None:
            await self.forget_blob(layer)
            return info
        unpacking = self._unpackings.get(layer.diff_id)  # before anything waits: a cancellation must find it
        self._awaited.add(self.blob_path(layer))
        try:
            async with self._slots:  # not held while waiting for the disk: one sync then serves many layers
                if unpacking is None:
                    unpacking = self._unpackings.get(layer.diff_id) or await self._begin(layer)
                unpacked = await unpacking.result()
            return await self._put_in_place(layer, unpacking, unpacked)
        except OperationError as error:
            if error.code not in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED) or error.reason == "LAYER_TOO_LARGE":
                await self.forget_blob(layer)
            raise
        except OSError as error:
            raise disk_failed(f"layer {layer.diff_id}", error) from error
        finally:
            self._awaited.discard(self.blob_path(layer))
            if unpacking is not None:
                await self._give_up(unpacking)

    def has_layer(self, diff_id: Digest) -> bool:
        """Whether a layer is in place."""
        return diff_id in self._infos

    def layer(self, diff_id: Digest) -> LayerInfo | None:
        """A layer that is in place."""
        return self._infos.get(diff_id)

    def list_layers(self) -> tuple[LayerInfo, ...]:
        """Every layer that is in place, by diff id."""
        return tuple(self._infos[diff_id] for diff_id in sorted(self._infos))

    async def prove_layer(self, layer: LayerDescriptor) -> None:
        """See that a fetched blob unpacks to its diff id. Nothing of it stays, and a layer in place is not touched.

        Raises:
            OperationError: As `apply_layer`.
        """
        unpacking: Unpacking | None = None
        self._awaited.add(self.blob_path(layer))
        try:
            async with self._slots:
                unpacking = await self._begin(layer)
                await unpacking.result()
        finally:
            self._awaited.discard(self.blob_path(layer))
            if unpacking is not None:
                await self._give_up(unpacking)
            with anyio.CancelScope(shield=True):
                await self.forget_blob(layer)

    async def remove_layer(self, diff_id: Digest) -> None:
        """Delete a layer; absent is success.

        Raises:
            OperationError: REMOVE_FAILED; the layer is out of sight all the same and `sweep` goes on with it.
        """
        self._infos.pop(diff_id, None)
        await in_thread(f"remove layer {diff_id}", self._rooms.discard, self.layers / layer_name(diff_id))

    async def pack_layer(self, diff_id: Digest, output: Path) -> int:
        """Make a layer's archive again, with its very diff id, into a new file. Returns its size in bytes.

        Raises:
            OperationError: LAYER_NOT_REPRODUCIBLE.
        """
        return await in_thread(f"pack layer {diff_id}", pack_layer, self.layers / layer_name(diff_id), diff_id, output)

    # Root filesystems

    def mount_rootfs(self, container_id: str, diff_ids: Sequence[Digest], rootfs: Path, users: str = "") -> Path:
        """Mount a container's root filesystem, with a writable layer of its own; mounted already is success. Blocks.

        Args:
            container_id: Whose it is.
            diff_ids: The image's layers, lowest first.
            rootfs: The mount point; it is made.
            users: Path of the user namespace under whose ids the files are seen; empty for the node's.

        Raises:
            OperationError: LAYER_NOT_FOUND, TOO_MANY_LAYERS, MOUNT_FAILED or IDMAP_NOT_AVAILABLE.
        """
        lowers = self._lowers(diff_ids)
        writable = self._container(container_id)
        entering(f"mount {rootfs}")
        _reported(mount_writable, self.layers, lowers, writable, rootfs, users)
        return rootfs

    async def mount_image(self, diff_ids: Sequence[Digest], target: Path, users: str = "") -> Path:
        """Mount an image's layers read-only, as a volume; mounted already is success.

        Raises:
            OperationError: As `mount_rootfs`.
        """
        lowers = self._lowers(diff_ids)
        await in_thread(f"mount {target}", _reported, mount_read_only, self.layers, lowers, target, users)
        return target

    def unmount(self, target: Path) -> None:
        """Take off a mount that this store made, and its empty directory; absent is success. Blocks.

        Raises:
            OperationError: UNMOUNT_FAILED.
        """
        entering(f"unmount {target}")
        unmount_or_report(str(target))
        try:
            target.rmdir()
        except FileNotFoundError:
            return
        except NotADirectoryError:
            target.unlink(missing_ok=True)
        except OSError as error:
            raise remove_failed(target, error) from error

    def unmount_rootfs(self, container_id: str, rootfs: Path) -> None:
        """Unmount a container's root filesystem and delete what it wrote; absent is success. Blocks.

        Raises:
            OperationError: UNMOUNT_FAILED or REMOVE_FAILED.
        """
        self.unmount(rootfs)
        entering(f"remove writable layer of {container_id}")
        self._rooms.discard(self._container(container_id))

    def upper(self, container_id: str) -> Path:
        """The directory with what a container wrote."""
        return self._container(container_id) / "upper"

    # Sizes and order

    async def usage(self) -> Usage:
        """What images take: layers with all that lies beside them, and blobs that are fetched.

        The content of layers, which does not change, was measured when they were unpacked.
        """
        return await in_thread("measure images", self._usage, tuple(self._infos.values()))

    async def writable_usage(self, container_id: str) -> Usage:
        """What a container's writable layer takes; nothing when it has no root filesystem."""
        place = self._container(container_id)
        try:
            size_bytes, inodes = await in_thread(f"measure {place}", deep.measure, place)
        except FileNotFoundError:
            return Usage(size_bytes=0, inodes=0)
        return Usage(size_bytes=size_bytes, inodes=inodes)

    async def sweep(self, blobs_max_age_s: float) -> tuple[str, ...]:
        """Delete what a crash left half unpacked or half deleted, and partial blobs older than `blobs_max_age_s`.

        Younger ones stay, so that the next pull goes on with them. Returns what it deleted; what cannot be deleted is
        logged, and does not keep the rest.
        """
        return await in_thread("sweep store", self._rooms.sweep, blobs_max_age_s)

    # Blocking bodies

    def _open(self) -> None:
        self._rooms.open()
        make_directory(self.layers / "empty")
        (self.layers / "empty").chmod(0o755)
        for place in sorted(self.layers.iterdir()):
            info = read_info(place)
            if info is not None:
                self._infos[info.diff_id] = info
        for info in self._infos.values():
            # A server that was killed when it had put the layer in place.
            (self.root / "ingest" / f"{info.blob.replace(':', '-')}.{layer_name(info.diff_id)}").unlink(missing_ok=True)

    def _usage(self, infos: Sequence[LayerInfo]) -> Usage:
        size_bytes = sum(info.size_bytes for info in infos)
        inodes = sum(info.inodes for info in infos)
        places = [self.layers, self.layers / "empty", self.root / "ingest", *(self.root / "ingest").iterdir()]
        for info in infos:
            place = self.layers / layer_name(info.diff_id)
            places += [place, place / RECORD_NAME, place / RECIPE_NAME]
        for path in places:
            with suppress(FileNotFoundError):  # a layer that is removed, a blob that is unpacked
                size_bytes += path.lstat().st_blocks * 512
                inodes += 1
        return Usage(size_bytes=size_bytes, inodes=inodes)

    def _start(self, layer: LayerDescriptor) -> Unpacking:
        place = self._rooms.place_to_unpack(layer_name(layer.diff_id))
        directory = place / "fs"
        place.mkdir(mode=0o700)
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
        try:
            return start_unpacking(self._template, layer, self.blob_path(layer), directory, self._limits)
        except BaseException as error:
            deep.delete(place)
            if isinstance(error, FileNotFoundError):
                raise not_found("blob", str(layer.digest)) from None
            raise

    async def _begin(self, layer: LayerDescriptor) -> Unpacking:
        """Start a process; shielded, for a cancellation between its start and its being known would lose it."""
        with anyio.CancelScope(shield=True):
            self._template_users += 1
            try:
                unpacking = await in_thread(f"start unpacking {layer.digest}", self._start, layer)
            except BaseException:
                await self._leave_template()
                raise
            self._unpackings[layer.diff_id] = unpacking
        return unpacking

    async def _leave_template(self) -> None:
        """The template lives as long as anything is unpacked: an idle server keeps no process for it."""
        self._template_users -= 1
        if not self._template_users:
            with anyio.CancelScope(shield=True):
                await in_thread("end the unpacking template", self._template.close, lambda: not self._template_users)

    async def _give_up(self, unpacking: Unpacking) -> None:
        """End a process and delete what it made, unless that was put in place; also when cancelled."""
        if self._unpackings.get(unpacking.layer.diff_id) is not unpacking:
            return
        del self._unpackings[unpacking.layer.diff_id]
        with anyio.CancelScope(shield=True):
            await unpacking.end()
            try:
                await in_thread(f"delete {unpacking.directory}", self._rooms.discard, unpacking.directory.parent)
            except OperationError as error:  # how the unpacking ended is what matters; a sweep tries this again
                log.warning("what was unpacked of %s stays: %s", unpacking.layer.digest, error.message)
            finally:
                await self._leave_template()

    async def _put_in_place(self, layer: LayerDescriptor, unpacking: Unpacking, unpacked: Unpacked) -> LayerInfo:
        info = LayerInfo(
            diff_id=unpacked.diff_id,
            size_bytes=unpacked.size_bytes,
            inodes=unpacked.inodes,
            entries=unpacked.entries,
            replaced=unpacked.replaced,
            implied=unpacked.implied,
            blob=str(layer.digest),
        )
        place = unpacking.directory.parent
        record = json.dumps({"schema": 1, **asdict(info), "diff_id": str(info.diff_id)}).encode()
        await in_thread(f"write {place}", (place / RECORD_NAME).write_bytes, record)
        await self._sync()
        with anyio.CancelScope(shield=True):
            await in_thread(f"put layer {layer.diff_id} in place", self._rename, place, layer.diff_id)
            self._infos[info.diff_id] = info
            # Not before: a server that is killed during the sync would have neither the layer nor its blob.
            await self.forget_blob(layer)
        return info

    async def _sync(self) -> None:
        """syncfs, shared by those who wait for it at the same time: one that began after the asking serves them all."""
        self._syncs_asked += 1
        mine = self._syncs_asked
        async with self._sync_lock:
            if self._syncs_done >= mine:
                return
            covers = self._syncs_asked
            await in_thread(f"sync {self.root}", sync_filesystem, self.root)
            self._syncs_done = covers

    def _rename(self, place: Path, diff_id: Digest) -> None:
        target = self.layers / layer_name(diff_id)
        if target.exists():  # one that no index knows: damaged, or of another digest with the same name
            info = read_info(target)
            if info is not None and info.diff_id != diff_id:
                raise LocalError(f"layers {info.diff_id} and {diff_id} have the same name")
            self._rooms.discard(target)
        place.rename(target)
        sync_directory(self.layers)

    def _lowers(self, diff_ids: Sequence[Digest]) -> tuple[Lower, ...]:
        found = []
        # Of a layer that comes twice only the upper one shows, and overlayfs takes no directory twice.
        for diff_id in reversed(dict.fromkeys(reversed(diff_ids))):
            info = self._infos.get(diff_id)
            if info is None:
                raise not_found("layer", str(diff_id))
            found.append(Lower(directory=f"{layer_name(diff_id)}/fs", implied=info.implied))
        return tuple(found)

    def _container(self, container_id: str) -> Path:
        if not _CONTAINER_ID.fullmatch(container_id):
            raise LocalError(f"{container_id!r} is not a container id")
        return self.root / "containers" / container_id


def _reported(function: Callable[..., None], *arguments: object) -> None:
    """Call a blocking function of `overlay`, and name what the disk said."""
    try:
        function(*arguments)
    except OSError as error:
        raise OperationError(Code.INTERNAL, "MOUNT_FAILED", f"{error.filename}: {error.strerror}") from error


def disk_failed(what: str, error: OSError) -> OperationError:
    """What a write to the store's disk failed with: NO_SPACE, which may pass, or STORE_FAILED."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    code, reason = (Code.RESOURCE_EXHAUSTED, "NO_SPACE") if full else (Code.INTERNAL, "STORE_FAILED")
    return OperationError(code, reason, f"{what}: {error.strerror}")
