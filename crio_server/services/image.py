"""The CRI's ImageService, as far as it is implemented."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import orjson

from crio_core import cri
from crio_core import requests as rq
from crio_core.errors import invalid
from crio_core.records import ContainerRecord, ImageRecord
from crio_core.replies import Containers, ImageFound, Images, Pulled
from crio_core.stats import LayerUsage
from crio_io.driver import Caller
from crio_io.vault import Vault
from crio_server import translate
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.lean import give_back_soon
from crio_server.services.explanation import explanation, pulls
from crio_server.services.listing import ListCache

Usage = Callable[[], Awaitable[tuple[str, int, int]]]
"""Where images are stored, the bytes and the inodes that they take."""
Layers = Callable[[Sequence[ContainerRecord]], Awaitable[Mapping[str, LayerUsage]]]
"""What writable layers take, by the ids of containers; each is counted now and then."""


class ImageService:
    """Images.

    Args:
        driver: Runs the node.
        vault: Keeps credentials, which never enter the node.
        usage: Measures the image store.
        layers: Measures writable layers.
    """

    def __init__(self, driver: Caller, vault: Vault, usage: Usage, layers: Layers) -> None:
        self._driver = driver
        self._vault = vault
        self._usage = usage
        self._layers = layers
        self._images = ListCache[ImageRecord](translate.image)

    def ListImages(self, request: pb.ListImagesRequest) -> bytes:
        items, everything = self._list(request)
        return self._images.answer(items, everything=everything)

    async def StreamImages(self, request: pb.StreamImagesRequest) -> AsyncIterator[bytes]:
        items, everything = self._list(request)
        for batch in self._images.batches(items, everything=everything):
            yield batch

    def _list(self, request: pb.ListImagesRequest | pb.StreamImagesRequest) -> tuple[Sequence[ImageRecord], bool]:
        spec = translate.read(cri.ImageSpec, request.filter.image, "filter.image")
        found = self._driver.ask(rq.ListImages(image=spec))
        assert isinstance(found, Images)
        return found.items, not spec.image

    def ImageStatus(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse | Awaitable[pb.ImageStatusResponse]:
        spec = translate.read(cri.ImageSpec, request.image, "image")
        if not spec.image:
            raise invalid("image.image", "", "an image reference or id")
        found = self._driver.ask(rq.ImageStatus(image=spec))
        assert isinstance(found, ImageFound)
        if request.verbose:
            return self._verbose(spec.image, found.image)
        return pb.ImageStatusResponse(image=translate.image(found.image) if found.image is not None else None)

    async def _verbose(self, reference: str, image: ImageRecord | None) -> pb.ImageStatusResponse:
        info = await pulls(self._driver, reference)
        if image is None:
            return pb.ImageStatusResponse(info=info)
        info.update(await explanation(self._driver, "image", image.id))
        info["info"] = orjson.dumps(translate.image_info(image)).decode()
        return pb.ImageStatusResponse(image=translate.image(image), info=info)

    async def PullImage(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        spec = translate.read(cri.ImageSpec, request.image, "image")
        auth = translate.read(cri.AuthConfig, request.auth, "auth")
        namespace = request.sandbox_config.metadata.namespace
        try:
            pulled = await self._driver.call(rq.PullImage(image=spec, auth=self._vault.keep(auth), namespace=namespace))
        finally:
            give_back_soon()
        assert isinstance(pulled, Pulled)
        return pb.PullImageResponse(image_ref=pulled.image_id)

    async def RemoveImage(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        spec = translate.read(cri.ImageSpec, request.image, "image")
        await self._driver.call(rq.RemoveImage(image=spec))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        path, used_bytes, inodes = await self._usage()
        containers = self._driver.ask(rq.ListContainers())
        assert isinstance(containers, Containers)
        written = (await self._layers(containers.items)).values()
        return pb.ImageFsInfoResponse(
            image_filesystems=[_filesystem(path, used_bytes, inodes)],
            container_filesystems=[
                _filesystem(path, sum(one.used_bytes for one in written), sum(one.inodes for one in written))
            ],
        )


def _filesystem(path: str, used_bytes: int, inodes: int) -> pb.FilesystemUsage:
    return pb.FilesystemUsage(
        timestamp=time.time_ns(),
        fs_id=pb.FilesystemIdentifier(mountpoint=path),
        used_bytes=pb.UInt64Value(value=used_bytes),
        inodes_used=pb.UInt64Value(value=inodes),
    )
