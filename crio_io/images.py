"""Images on the host: the core's orders in the words of the registry client and of the store."""

import logging
import platform as host_platform
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import anyio

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import Code, OperationError, invalid
from crio_core.image.auth import Auth, Credentials, parse_auth_file
from crio_core.image.digest import digest_of, parse_digest
from crio_core.image.lookaside import Lookasides, parse_lookasides
from crio_core.image.platform import platform_of_machine
from crio_core.image.policy import ACCEPT_ANYTHING, Policy, parse_policy
from crio_core.image.reference import normalise, parse_reference
from crio_core.image.registries import RegistriesConfig, candidates, parse_registries
from crio_core.image.resolved import LayerDescriptor, ResolvedImage
from crio_core.layout import Layout
from crio_core.records import ImageRecord, ImageVolume
from crio_core.values import dataclass
from crio_io import mounts, rootfs
from crio_io.registry.blob import Progress
from crio_io.registry.client import RegistryClient
from crio_io.registry.signatures import Checker
from crio_io.storage.store import Store, Usage
from crio_io.vault import Vault

if TYPE_CHECKING:  # Loaded when an image comes out of a file or goes into one.
    from crio_io.archives import LocalImage
    from crio_io.image_source import Place

RESOLVED_MAX = 64
"""Resolved images remembered between the effects of their pulls; a forgotten one is asked for again."""
PARTIAL_BLOB_AGE_S = 86400.0
"""How long a partial download is kept for a pull that goes on with it."""
PROGRESS_EVERY_S = 0.25
"""How often at most the node is told how far a layer has come."""
CONF_BYTES_MAX = 1024 * 1024
CONF_FILES_MAX = 256
DEFAULT_POLICY = Path("/etc/containers/policy.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How registries are reached: the files of containers-registries.conf(5), credentials, certificates.

    Args:
        conf: The main file; it need not exist. An empty path means none.
        conf_dir: Its drop-ins, likewise.
        search: Registries for short names, in place of what the files say; empty leaves it to them.
        insecure: Hosts and address ranges that may be spoken to without TLS.
        auth_file: Credentials for pulls that bring none; empty for none.
        certs_dirs: Directories with a directory of certificates for each host.
        policy: The signature policy; empty for `DEFAULT_POLICY`, without which every image is accepted.
        policy_dir: Policies of namespaces, in place of that one: NAMESPACE.json.
        lookaside_dir: Where signatures are, containers-registries.d(5).
    """

    conf: Path = Path("/etc/containers/registries.conf")
    conf_dir: Path = Path("/etc/containers/registries.conf.d")
    search: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    auth_file: str = ""
    certs_dirs: tuple[Path, ...] = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
    policy: str = ""
    policy_dir: str = "/etc/crio/policies"
    lookaside_dir: Path = Path("/etc/containers/registries.d")


class ImageStore:
    """Executes the core's orders about images. Make one with `opened`."""

    def __init__(self, layout: Layout, options: RegistryOptions, vault: Vault, store: Store) -> None:
        self.store = store
        self._layout = layout
        self._options = options
        self._vault = vault
        self._platform = platform_of_machine(host_platform.machine())
        self._client = RegistryClient(certs_dirs=options.certs_dirs)
        self._resolved: dict[tuple[str, str], ResolvedImage] = {}
        self._news: dict[str, ev.LayerProgressed] = {}
        """How far downloads have come, by diff id, since the node was told."""
        self._has_news = anyio.Event()
        self._warned = False
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

    # --- pulling ------------------------------------------------------------------------------------------------

    async def resolve(self, order: fx.ResolveImage) -> ev.ImageResolved:
        """Ask the registries what a reference means."""
        if (offer := self._offers.get(order.auth)) is not None:
            return _resolved(offer, order.reference)
        found = await self._ask(order.reference, order.auth)
        policy = await mounts.in_thread("read signature policy", self._policy, order.namespace)
        if not policy.accepts_anything(found.reference):
            lookasides = await mounts.in_thread("read registries.d", _lookasides, self._options)
            checker = Checker(client=self._client, lookasides=lookasides, auth=await self._auth(order.auth))
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

    def _policy(self, namespace: str) -> Policy:
        """The policy of a namespace, or else of the node; blocking."""
        if namespace:
            if "/" in namespace or "\0" in namespace or namespace in (".", ".."):
                raise invalid("sandbox_config.metadata.namespace", namespace[:200], "a name without '/'")
            own = Path(self._options.policy_dir) / f"{namespace}.json"
            if own.exists():
                return parse_policy(str(own), _read_bounded(own))
        path = Path(self._options.policy) if self._options.policy else DEFAULT_POLICY
        if not self._options.policy and not path.exists():
            if not self._warned:
                log.warning("there is no signature policy %s: every image is accepted", path)
                self._warned = True
            return ACCEPT_ANYTHING
        return parse_policy(str(path), _read_bounded(path))

    async def _ask(self, reference: str, auth: str) -> ResolvedImage:
        config = await mounts.in_thread("read registries.conf", _registries, self._options)
        places = candidates(config, parse_reference(reference, "image.image"))
        found = await self._client.resolve(places, self._platform, await self._auth(auth))
        self._resolved.pop((reference, auth), None)
        self._resolved[(reference, auth)] = found
        while len(self._resolved) > RESOLVED_MAX:
            del self._resolved[next(iter(self._resolved))]
        return found

    async def _auth(self, handle: str) -> Auth:
        auths: Mapping[str, Credentials] = {}
        if self._options.auth_file:
            path = Path(self._options.auth_file)
            auths = parse_auth_file(await mounts.in_thread(f"read auth file {path}", _read_bounded, path))
        return Auth(cri=self._vault.get(handle), auths=auths)

    async def fetch(self, order: fx.FetchLayer) -> ev.LayerFetched:
        """Download a layer's blob, or copy it from the file that was offered."""
        offer = self._offers.get(order.auth)
        if offer is not None and (place := offer.blobs.get(parse_digest(order.digest))) is not None:
            return await self._copy(order, place)
        found = self._resolved.get((order.reference, order.auth)) or await self._ask(order.reference, order.auth)

        def note(progress: Progress) -> None:
            self._note(order.diff_id, progress.received_bytes, progress.bytes_per_s, progress.host)

        await self._client.fetch_blob(found.sources, _descriptor(order), self.store, note, await self._auth(order.auth))
        return ev.LayerFetched()

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

    async def _copy(self, order: fx.FetchLayer, place: "Place") -> ev.LayerFetched:
        from crio_io import archives

        layer = _descriptor(order)
        if not self.store.has_layer(layer.diff_id):
            began_s = time.monotonic()

            def note(copied_bytes: int) -> None:
                rate = copied_bytes / max(time.monotonic() - began_s, 0.001)
                anyio.from_thread.run_sync(self._note, order.diff_id, copied_bytes, rate, str(place.source.path))

            target = self.store.blob_path(layer)
            await mounts.in_thread(f"copy blob {layer.digest}", archives.copy_blob, place, layer.digest, target, note)
        return ev.LayerFetched()

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
    async def opened_images(self, path: Path, name: str = "") -> AsyncIterator["tuple[LocalImage, ...]"]:
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

    def mount_rootfs(self, container_id: str, layers: Sequence[str]) -> Path:
        """Mount a container's root filesystem in its bundle. Blocks."""
        path = Path(self._layout.rootfs(container_id))
        return self.store.mount_rootfs(container_id, tuple(parse_digest(one) for one in layers), path)

    async def mount_volumes(self, container_id: str, volumes: Sequence[ImageVolume]) -> tuple[tuple[str, str], ...]:
        """Mount the images that a container mounts, read-only, beside its root filesystem.

        Returns where each is, or where its sub path is, by its path in the container.
        """
        directory = Path(self._layout.image_volumes(container_id))
        found = []
        for index, volume in enumerate(volumes):
            layers = tuple(parse_digest(one) for one in volume.layers)
            target = await self.store.mount_image(layers, directory / str(index))
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

    def layers(self) -> tuple[str, ...]:
        """Diff ids of the layers in the store."""
        return tuple(str(one) for one in self.store.layer_ids())

    async def sweep(self) -> tuple[str, ...]:
        """Delete half layers and old half downloads. Whole layers and writable layers are the core's business."""
        return await self.store.sweep(None, None, PARTIAL_BLOB_AGE_S)

    async def usage(self) -> Usage:
        """What images take on disk."""
        return await self.store.usage()


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


def _descriptor(order: fx.FetchLayer | fx.ApplyLayer) -> LayerDescriptor:
    return LayerDescriptor(
        digest=parse_digest(order.digest),
        size_bytes=order.size_bytes,
        media_type=order.media_type,
        diff_id=parse_digest(order.diff_id),
    )


def _registries(options: RegistryOptions) -> RegistriesConfig:
    """Read anew for each pull: the files are small, and what they say is then always true."""
    files = []
    if options.conf.name and options.conf.exists():
        files.append((str(options.conf), _read_bounded(options.conf)))
    if options.conf_dir.name and options.conf_dir.is_dir():
        drop_ins = sorted(options.conf_dir.glob("*.conf"))[:CONF_FILES_MAX]
        files += [(str(path), _read_bounded(path)) for path in drop_ins]
    if options.search:
        listed = ", ".join(f'"{host}"' for host in options.search)
        files.append(("crio.conf", f"unqualified-search-registries = [{listed}]".encode()))
    return parse_registries(files, options.insecure)


def _lookasides(options: RegistryOptions) -> Lookasides:
    import yaml  # only for images that have to be signed

    documents: list[tuple[str, object]] = []
    if options.lookaside_dir.is_dir():
        for path in sorted(options.lookaside_dir.glob("*.yaml"))[:CONF_FILES_MAX]:
            try:
                documents.append((str(path), yaml.safe_load(_read_bounded(path))))
            except (yaml.YAMLError, RecursionError) as error:
                message = f"{path}: {error}"[:300]
                raise OperationError(Code.FAILED_PRECONDITION, "REGISTRIES_D_INVALID", message) from error
    return parse_lookasides(documents)


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(CONF_BYTES_MAX + 1)
    except OSError as error:
        raise OperationError(Code.FAILED_PRECONDITION, "FILE_UNREADABLE", f"{path}: {error.strerror}") from error
    if len(content) > CONF_BYTES_MAX:
        raise OperationError(
            Code.FAILED_PRECONDITION, "FILE_TOO_LARGE", f"{path}: expected at most {CONF_BYTES_MAX} bytes"
        )
    return content
