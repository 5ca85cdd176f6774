"""Images without a node: pulls at the same time share what they have in common, and no record is wrong about it."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from crio_core.image.digest import parse_digest
from crio_core.image.resolved import LayerDescriptor
from crio_io import open_images
from crio_io.registry.client import RegistryClient
from crio_io.storage.layer_info import layer_name, layers_in
from tests.integration.registry_fixture import LocalRegistry, archive, pack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes owners: needs root"),
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("criotest-registry")) as found:
        yield found


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[LayerDescriptor]:
    """Every layer whose blob is fetched, in order."""
    found = []
    fetch_blob = RegistryClient.fetch_blob

    async def noted(self: RegistryClient, sources: Any, layer: LayerDescriptor, *rest: Any) -> None:
        found.append(layer)
        await fetch_blob(self, sources, layer, *rest)

    monkeypatch.setattr(RegistryClient, "fetch_blob", noted)
    return found


async def test_ten_pulls_at_once_of_images_that_share_layers_fetch_each_layer_once(
    registry: LocalRegistry, tmp_path: Path, fetched: list[LayerDescriptor]
) -> None:
    """A program that wants many images of one base asks for them together."""
    shared = [pack(archive({f"base{layer}/{name}": os.urandom(10_000) for name in range(50)})) for layer in range(3)]
    own = [pack(archive({f"own{number}": b"%d" % number})) for number in range(10)]
    references = [registry.push(f"share/{number}", [*shared, own[number]]).reference for number in range(10)]
    async with open_images(tmp_path / "images") as images, anyio.create_task_group() as group:
        for reference in references:
            group.start_soon(images.pull, reference)
    assert set(Counter(layer.diff_id for layer in fetched).values()) == {1}
    infos = layers_in(tmp_path / "images")
    blobs = {layer_name(parse_digest(layer.diff_id)): layer.digest for layer in [*shared, *own]}
    assert {name: info and info.blob for name, info in infos.items()} == blobs
    assert os.listdir(tmp_path / "images" / "ingest") == os.listdir(tmp_path / "images" / "unpacking") == []


async def test_image_with_one_content_under_two_blobs_has_both_proved_and_the_first_recorded(
    registry: LocalRegistry, tmp_path: Path, fetched: list[LayerDescriptor]
) -> None:
    """Decision 0022: what a record says of a layer's blob is what its content was unpacked from."""
    files = archive({f"f{number}": os.urandom(10_000) for number in range(50)})
    layers = [pack(files, compression) for compression in ("gzip", "zstd", "none")]
    reference = registry.push("twice", layers).reference
    async with open_images(tmp_path / "images") as images:
        image = await images.pull(reference)
    assert len({layer.diff_id for layer in image.layers}) == 1
    assert sorted(str(layer.digest) for layer in fetched) == sorted(layer.digest for layer in layers)
    [info] = layers_in(tmp_path / "images").values()
    assert info is not None and info.blob == str(fetched[0].digest)
    assert os.listdir(tmp_path / "images" / "ingest") == os.listdir(tmp_path / "images" / "unpacking") == []
