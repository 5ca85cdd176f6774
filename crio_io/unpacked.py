"""Images for programs that want their files and no node: pulled, unpacked and mounted under a directory of their own.

async with open_images(Path("/var/lib/mine")) as images:
    image = await images.pull("docker.io/library/busybox:1.36")
    await images.mount(image, Path("/mnt"))
"""

import platform as host_platform
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import anyio

from crio_core.cri import AuthConfig
from crio_core.image.auth import Auth
from crio_core.image.digest import Digest
from crio_core.image.platform import Platform, platform_of_machine
from crio_core.image.reference import parse_reference
from crio_core.image.registries import candidates
from crio_core.image.resolved import LayerDescriptor, ResolvedImage
from crio_io.mounts import in_thread
from crio_io.registry.blob import Progress
from crio_io.registry.client import RegistryClient
from crio_io.registry.configuration import RegistryOptions, read_registries
from crio_io.registry.credentials import CredentialSources
from crio_io.storage.store import Store


class UnpackedImages:
    """Images under one directory. Make one with `open_images`; every method raises `OperationError` when it fails."""

    def __init__(self, store: Store, client: RegistryClient, options: RegistryOptions, platform: Platform) -> None:
        self._store = store
        self._client = client
        self._options = options
        self._platform = platform
        self._credentials = CredentialSources()
        self._turns: WeakValueDictionary[Digest, anyio.Lock] = WeakValueDictionary()

    async def pull(
        self,
        reference: str,
        *,
        auth: AuthConfig | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> ResolvedImage:
        """Fetch an image and unpack its layers, in parallel; what is there already is left as it is.

        Args:
            reference: Such as `docker.io/library/busybox:1.36`, with a tag or a digest.
            auth: Credentials, in place of those of the auth file.
            progress: Told how far each blob has come.
        """
        config = await in_thread("read registries.conf", read_registries, self._options)
        places = candidates(config, parse_reference(reference))
        request, helpers = auth or AuthConfig(), config.credential_helpers
        shown = await self._credentials.gather(request, self._options.auth_file, helpers, places)
        image = await self._client.resolve(places, self._platform, shown)
        failures: list[Exception] = []

        async def get(layer: LayerDescriptor) -> None:
            try:
                await self._get(image, layer, progress, shown)
            except Exception as error:
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for layer in dict.fromkeys(image.layers):
                group.start_soon(get, layer)
        if failures:
            raise failures[0]
        return image

    async def _get(
        self, image: ResolvedImage, layer: LayerDescriptor, progress: Callable[[Progress], None], auth: Auth
    ) -> None:
        """A layer is taken from the store only if it came from this very blob (decision 0022).

        One at a time of a diff id, as the store asks: images share layers, and one image may list two blobs of one.
        """
        turn = self._turns.setdefault(layer.diff_id, anyio.Lock())
        async with turn:
            known = self._store.layer(layer.diff_id)
            if known is not None and known.blob == str(layer.digest):
                return
            await self._client.fetch_blob(image.sources, layer, self._store, progress, auth)
            if known is None:
                await self._store.apply_layer(layer)
            else:
                await self._store.prove_layer(layer)

    async def mount(self, image: ResolvedImage, target: Path) -> None:
        """Mount the files of a pulled image, read-only."""
        await self._store.mount_image([layer.diff_id for layer in image.layers], target)

    async def unmount(self, target: Path) -> None:
        """Take off such a mount; absent is success."""
        await in_thread(f"unmount {target}", self._store.unmount, target)


@asynccontextmanager
async def open_images(directory: Path, options: RegistryOptions | None = None) -> AsyncIterator[UnpackedImages]:
    """Open a store of images below a directory, which is made, for this process alone. Needs root.

    Args:
        directory: Not one of a running server.
        options: How registries are reached; by default as the system's files say.
    """
    options = options or RegistryOptions()
    store, client = Store(directory), RegistryClient(certs_dirs=options.certs_dirs)
    async with aclosing(client), aclosing(store):
        await store.open()
        yield UnpackedImages(store, client, options, platform_of_machine(host_platform.machine()))
