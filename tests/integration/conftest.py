"""Fixtures of the tests that run a whole server: each such test must leave its machine as it found it."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from crio_io.storage.store import Store
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration import residue
from tests.integration.harness import PLUGIN_DIR, Crio, Images, Site, push_images
from tests.integration.registry_fixture import LocalRegistry

PROGRAMS = ("runc", "conmon", "docker-registry", "iptables-save", "redis-server", "catatonit")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """A loopback registry with the images of the tests."""
    if os.geteuid() != 0:
        pytest.skip("makes namespaces, mounts and cgroups: needs root")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or not Path(PLUGIN_DIR, "bridge").exists():
        pytest.skip(f"needs the programs {', '.join(missing) or f'in {PLUGIN_DIR}'}")
    with LocalRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield push_images(registry)


@pytest.fixture(scope="module")
def shared_site(images: Images) -> Iterator[Site]:
    """Where the server of a module lives."""
    site = Site(images)
    yield site
    site.sweep()


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """Names of the images that the module's server has from the beginning; a module may say others."""
    return ("busybox",)


@pytest.fixture(scope="module")
def shared_crio(shared_site: Site, pulled: tuple[str, ...]) -> Iterator[Crio]:
    """A server for all tests of a module."""
    with Crio(shared_site) as crio:
        for name in pulled:
            crio.pull(getattr(crio.images, name))
        crio.note_baseline()
        yield crio


@pytest.fixture
def crio(shared_crio: Crio) -> Iterator[Crio]:
    """The module's server; whatever a test leaves fails it."""
    yield shared_crio
    # A test that failed half-way is not asked for more, but the next one gets a clean server.
    before = {pod.id for pod in shared_crio.client(pb.ListPodSandboxRequest()).items}
    shared_crio.remove_all()
    shared_crio.assert_clean()
    assert not before, f"the test left pods: {before}"


@pytest.fixture
def site(images: Images) -> Iterator[Site]:
    """Where a test's own server lives."""
    site = Site(images)
    yield site
    site.sweep()


@pytest.fixture
def own_crio(site: Site) -> Iterator[Crio]:
    """A server of the test's own, which it may kill; at the end it must be clean, its journal too."""
    with Crio(site) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        yield crio
        crio.remove_all()
        crio.assert_clean()
        crio.end()
        assert residue.journal_rows(site.marks) == []


# --- storage --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Store]:
    """A store of its own, open."""
    found = Store(tmp_path / "criotest-store")
    await found.open()
    yield found
    await found.aclose()


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """Where a test may mount something, which is taken off again."""
    place = tmp_path / "criotest-rootfs"
    yield place
    subprocess.run(["umount", "-l", str(place)], stderr=subprocess.DEVNULL, check=False)
