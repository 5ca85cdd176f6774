"""Images on the host: the core's orders in the words of the registry client and of the store."""

import logging
import platform as host_platform
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import anyio

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.image.auth import Auth
from crio_core.image.digest import digest_of, parse_digest
from crio_core.image.platform import platform_of_machine
from crio_core.image.reference import normalise, parse_reference
from crio_core.image.registries import RegistriesConfig, candidates
from crio_core.image.resolved import Candidate, LayerDescriptor, ResolvedImage
from crio_core.layout import Layout
from crio_core.records import ImageRecord, ImageVolume
from crio_io import mounts, rootfs
from crio_io.registry.blob import Progress, Rates
from crio_io.registry.client import RegistryClient
from crio_io.registry.configuration import RegistryOptions, read_lookasides, read_policy, read_registries
from crio_io.registry.credentials import CredentialSources
from crio_io.registry.signatures import Checker
from crio_io.storage.store import Store, Usage
from crio_io.vault import Vault

if TYPE_CHECKING:  # Loaded when an image comes out of a file or goes into one.
    from crio_io.archives import LocalImage
    from crio_io.image_source import Place

log = logging.getLogger(__name__)

RESOLVED_MAX = 64
"""Resolved images remembered between the effects of their pulls; a forgotten one is asked for again."""
PARTIAL_BLOB_AGE_S = 86400.0
"""How long a partial download is kept for a pull that goes on with it."""
PARTIAL_BLOBS_BYTES_MAX = 8 * 1024**3
"""How much partial downloads may take together; the oldest go first."""
TIDY_EVERY_S = 600.0
PROGRESS_EVERY_S = 0.25
"""How often at most the node is told how far a layer has come."""


class ImageStore:
    """Executes the core's orders about images. Make one with `opened`."""

    def __init__(self, layout: Layout, options: RegistryOptions, vault: Vault, store: Store) -> None:
        self.store = store
        self._layout = layout
        self._options = options
        self._vault = vault
        self._platform = platform_of_machine(host_platform.machine(), _features(Path("/proc/cpuinfo")))
        self._client = RegistryClient(certs_dirs=options.certs_dirs, rates=Rates(window_s=options.progress_window_s))
        self._resolved: dict[tuple[str, str], ResolvedImage] = {}
        self._news: dict[str, ev.LayerProgressed] = {}
        """How far downloads have come, by diff id, since the node was told."""
        self._has_news = anyio.Event()
        self._credentials = CredentialSources()
        self._offers: dict[str, LocalImage] = {}
        self._offer_numbers = count(1)

    @classmethod
    @asynccontextmanager
    async def opened(cls, layout: Layout, options: RegistryOptions, vault: Vault) -> AsyncIterator["ImageStore"]:
        """Open the store below the layout's root, and close it and every connection at the end."""
        store = Store(Path(layout.storage))
        await store.open()
        images = cls(layout, options, vault, store)
        try:
            yield images
        finally:
            await images._client.aclose()
            await store.aclose()

    def reload(self, options: RegistryOptions) -> None:
        """Reach registries by other options from now on."""
        self._options = options
        self._client.reload(options.certs_dirs, Rates(window_s=options.progress_window_s))

    # --- pulling ------------------------------------------------------------------------------------------------

    async def resolve(self, order: fx.ResolveImage) -> ev.ImageResolved:
        """Ask the registries what a reference means."""
        if (offer := self._offers.get(order.auth)) is not None:
            return _resolved(offer, order.reference)
        found, auth = await self._ask(order.reference, order.auth)
        policy = await mounts.in_thread("read signature policy", read_policy, self._options, order.namespace)
        if not policy.accepts_anything(found.reference):
            lookasides = await mounts.in_thread("read registries.d", read_lookasides, self._options)
            checker = Checker(client=self._client, lookasides=lookasides, auth=auth)
            await checker.check(policy, found)
        tags = (str(found.reference),) if found.reference.tag and not found.reference.digest else ()
        return ev.ImageResolved(
            image_id=str(found.config_digest),
            tags=tags,
            digests=(str(found.reference.by_digest(found.repo_digest)),),
            config=found.config.decode(),
            user=found.image_config.user,
            layers=_wanted(found.layers),
        )

    async def _ask(self, reference: str, handle: str) -> tuple[ResolvedImage, Auth]:
        config = await mounts.in_thread("read registries.conf", read_registries, self._options)
        places = candidates(config, parse_reference(reference, "image.image"))
        auth = await self._auth(handle, config, places)
        found = await self._client.resolve(places, self._platform, auth)
        self._resolved.pop((reference, handle), None)
        self._resolved[(reference, handle)] = found
        while len(self._resolved) > RESOLVED_MAX:
            del self._resolved[next(iter(self._resolved))]
        return found, auth

    async def _auth(self, handle: str, config: RegistriesConfig, places: Sequence[Candidate]) -> Auth:
        request = self._vault.get(handle)
        return await self._credentials.gather(request, self._options.auth_file, config.credential_helpers, places)

    async def fetch(self, order: fx.FetchLayer) -> ev.LayerFetched:
        """Download a layer's blob, or copy it from the file that was offered."""
        if not self.store.has_layer(parse_digest(order.diff_id)):
            await self._fetch(order)
        return ev.LayerFetched()

    async def prove(self, order: fx.ProveLayer) -> ev.LayerProved:
        """Fetch a blob, and see that it is a layer that is in the store already."""
        await self._fetch(order)
        await self.store.prove_layer(_descriptor(order))
        return ev.LayerProved()

    async def _fetch(self, order: fx.FetchLayer | fx.ProveLayer) -> None:
        offer = self._offers.get(order.auth)
        if offer is not None and (place := offer.blobs.get(parse_digest(order.digest))) is not None:
            await self._copy(order, place)
            return
        found = self._resolved.get((order.reference, order.auth))
        if found is None:
            found, _ = await self._ask(order.reference, order.auth)
        config = await mounts.in_thread("read registries.conf", read_registries, self._options)
        auth = await self._auth(order.auth, config, found.sources)

        def note(progress: Progress) -> None:
            self._note(order.diff_id, progress.received_bytes, progress.bytes_per_s, progress.host)

        await self._client.fetch_blob(found.sources, _descriptor(order), self.store, note, auth)

    def _note(self, diff_id: str, received_bytes: int, bytes_per_s: float, host: str) -> None:
        self._news[diff_id] = ev.LayerProgressed(
            diff_id=diff_id, received_bytes=received_bytes, bytes_per_s=round(bytes_per_s), host=host
        )
        self._has_news.set()

    async def tell_progress(self, tell: Callable[[ev.LayerProgressed], None]) -> None:
        """Tell how far downloads have come, of each only the latest and now and then; runs until it is cancelled."""
        while True:
            await self._has_news.wait()
            self._has_news = anyio.Event()
            news, self._news = self._news, {}
            for one in news.values():
                tell(one)
            await anyio.sleep(PROGRESS_EVERY_S)

    async def _copy(self, order: fx.FetchLayer | fx.ProveLayer, place: "Place") -> None:
        from crio_io import archives

        layer = _descriptor(order)
        began_s = time.monotonic()

        def note(copied_bytes: int) -> None:
            rate = copied_bytes / max(time.monotonic() - began_s, 0.001)
            anyio.from_thread.run_sync(self._note, order.diff_id, copied_bytes, rate, str(place.source.path))

        target = self.store.blob_path(layer)
        await mounts.in_thread(f"copy blob {layer.digest}", archives.copy_blob, place, layer.digest, target, note)

    @contextmanager
    def offered(self, image: "LocalImage") -> Iterator[str]:
        """For the length of the block, pulls with the handle that this gives take this image, and ask no registry."""
        handle = f"offer-{next(self._offer_numbers)}"
        self._offers[handle] = image
        try:
            yield handle
        finally:
            del self._offers[handle]

    @asynccontextmanager
    async def opened_archive(self, path: Path, name: str = "") -> AsyncIterator["tuple[LocalImage, ...]"]:
        """For the length of the block, the images in a file or directory, for this machine."""
        from crio_io import archives, image_source

        source = await mounts.in_thread(f"open {path}", image_source.open_source, path, self.store.root / "ingest")
        try:
            yield await mounts.in_thread(f"read images of {path}", archives.read_images, source, self._platform, name)
        finally:
            source.close()

    async def save(self, record: ImageRecord, names: Sequence[str], output: Path, form: str) -> None:
        """Write an image to a file or directory that does not exist yet; an error leaves nothing.

        Args:
            record: The image.
            names: References that are written beside it.
            output: What to make.
            form: One of `crio_io.archives.FORMS`.
        """
        from crio_io import archives

        stage = await mounts.in_thread(f"make {output}", archives.staging, output)
        try:
            packed = {}
            for text in dict.fromkeys(record.layers):
                diff_id = parse_digest(text)
                size_bytes = await self.store.pack_layer(diff_id, stage / diff_id.hex)
                packed[text] = archives.Packed(path=stage / diff_id.hex, diff_id=diff_id, size_bytes=size_bytes)
            layers = tuple(packed[text] for text in record.layers)
            config = record.config.encode()
            await mounts.in_thread(f"write {output}", archives.write_image, form, stage, output, names, config, layers)
        finally:
            with anyio.CancelScope(shield=True):
                await mounts.in_thread(f"remove {stage}", archives.remove_staging, stage)

    async def apply(self, order: fx.ApplyLayer) -> ev.LayerApplied:
        """Unpack a downloaded layer."""
        info = await self.store.apply_layer(_descriptor(order))
        return ev.LayerApplied(size_bytes=info.size_bytes)

    async def remove(self, diff_id: str) -> None:
        """Delete an unpacked layer."""
        await self.store.remove_layer(parse_digest(diff_id))

    # --- root filesystems ---------------------------------------------------------------------------------------

    def mount_rootfs(self, container_id: str, layers: Sequence[str], users: str = "") -> Path:
        """Mount a container's root filesystem in its bundle, under the ids of the user namespace at `users`. Blocks."""
        path = Path(self._layout.rootfs(container_id))
        return self.store.mount_rootfs(container_id, tuple(parse_digest(one) for one in layers), path, users)

    async def mount_volumes(
        self, container_id: str, volumes: Sequence[ImageVolume], users: str = ""
    ) -> tuple[tuple[str, str], ...]:
        """Mount the images that a container mounts, read-only, beside its root filesystem.

        Returns where each is, or where its sub path is, by its path in the container.
        """
        directory = Path(self._layout.image_volumes(container_id))
        found = []
        for index, volume in enumerate(volumes):
            layers = tuple(parse_digest(one) for one in volume.layers)
            target = await self.store.mount_image(layers, directory / str(index), users)
            found.append((volume.target, str(await rootfs.inside(target, volume.sub_path))))
        return tuple(found)

    def unmount_rootfs(self, container_id: str) -> None:
        """Unmount a container's root filesystem and the images that it mounts, and delete what it wrote. Blocks."""
        for target in _entries(Path(self._layout.image_volumes(container_id))):
            self.store.unmount(target)
        self.store.unmount_rootfs(container_id, Path(self._layout.rootfs(container_id)))

    @property
    def writable_layers(self) -> PurePosixPath:
        """The directory of containers' writable layers, one entry each, by id."""
        return PurePosixPath(self.store.root / "containers")

    def layers(self) -> tuple[ev.StoredLayer, ...]:
        """The layers in the store."""
        return tuple(
            ev.StoredLayer(diff_id=str(one.diff_id), size_bytes=one.size_bytes, blob=one.blob)
            for one in self.store.list_layers()
        )

    async def sweep(self) -> tuple[str, ...]:
        """Delete half layers and old half downloads. Whole layers and writable layers are the core's business."""
        return await self.store.sweep(PARTIAL_BLOB_AGE_S)

    async def tidy(self) -> None:
        """Delete partial downloads that no pull has gone on with, again and again; runs until it is cancelled."""
        while True:
            await anyio.sleep(TIDY_EVERY_S)
            try:
                removed = await self.store.trim_blobs(PARTIAL_BLOB_AGE_S, PARTIAL_BLOBS_BYTES_MAX)
            except OSError as error:  # The disk may be well again next time; containers run on meanwhile.
                log.warning("partial downloads cannot be tidied up: %s", error)
                continue
            for one in removed:
                log.info("deleted %s: no pull went on with it", one)

    async def usage(self) -> Usage:
        """What images take on disk."""
        return await self.store.usage()


def _features(cpuinfo: Path) -> frozenset[str]:
    """What the first processor can, by the kernel's words; nothing where it has no such line."""
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, words = line.partition(":")
        if name.strip() == "flags":
            return frozenset(words.split())
    return frozenset()


def _wanted(layers: Sequence[LayerDescriptor]) -> tuple[ev.LayerDescriptor, ...]:
    return tuple(
        ev.LayerDescriptor(
            digest=str(layer.digest),
            diff_id=str(layer.diff_id),
            size_bytes=layer.size_bytes,
            media_type=layer.media_type,
        )
        for layer in layers
    )


def _resolved(image: "LocalImage", name: str) -> ev.ImageResolved:
    reference = normalise(name)
    digest = image.manifest_digest
    return ev.ImageResolved(
        image_id=str(digest_of(image.config)),
        tags=(str(reference),),
        digests=(str(reference.by_digest(digest)),) if digest else (),
        config=image.config.decode(),
        user=image.image_config.user,
        layers=_wanted(image.layers),
    )


def _entries(directory: Path) -> tuple[Path, ...]:
    return tuple(sorted(directory.iterdir())) if directory.is_dir() else ()


def _descriptor(order: fx.FetchLayer | fx.ApplyLayer | fx.ProveLayer) -> LayerDescriptor:
    return LayerDescriptor(
        digest=parse_digest(order.digest),
        size_bytes=order.size_bytes,
        media_type=order.media_type,
        diff_id=parse_digest(order.diff_id),
    )
