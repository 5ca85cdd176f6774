"""Each test leaves the machine as it found it, and fails if it does not; fixtures of the tests that run a whole server.

- After every test, and once more after every module, the machine is looked over for what carries a mark of the tests.
- A site is looked over for all that its server could have left, before it is swept. What sweeps, looks first.
- At the end of a session nothing with a mark may have come to be, or the session fails. What an earlier one has left
  is said, for somebody to remove.
"""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from crio_io.storage.store import Store
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.conmon_suite import hasty_zygote
from tests.integration.harness import PLUGIN_DIR, Crio, Images, Site, push_images
from tests.integration.leftovers import MARK, MINE, Lookout
from tests.integration.registry_fixture import LocalRegistry

PROGRAMS = ("runc", "conmon", "docker-registry", "iptables-save", "redis-server", "catatonit")
GOOD = pytest.StashKey[bool]()
"""Of a test: it has run, and has not failed."""
SPARED = pytest.StashKey[set[str]]()
"""Words in the names of what several tests share, and who shares it answers for."""
FOUND = pytest.StashKey[frozenset[str]]()
"""What there was with a mark before the session."""
LEFT = pytest.StashKey[frozenset[str]]()
"""What there is with a mark at its end."""


# --- nothing is left ------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """What others have left before is told apart at the end."""
    if not session.config.option.collectonly:
        session.config.stash[FOUND] = Lookout(marks=(MARK,), deep=True).everything()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The session fails when there is anything of the tests that was not there before it."""
    found = session.config.stash.get(FOUND, None)
    if found is None:
        return
    left = Lookout(marks=(MARK,), deep=True).everything()
    session.config.stash[LEFT] = left
    if left - found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what made the session fail, and what others have left."""
    found, left = (config.stash.get(key, frozenset[str]()) for key in (FOUND, LEFT))
    for title, lines in (("by these tests", left - found), ("before these tests", left & found)):
        if lines:
            terminalreporter.section(f"left on the machine {title}: remove it", red=lines.isdisjoint(found))
            for line in sorted(lines):
                terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether the test went well: one that failed half-way is not asked for more."""
    report = yield
    if call.when == "call":
        item.stash[GOOD] = not report.failed
    return report


@pytest.fixture
def went_well(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether the test has run and not failed: asked by fixtures that look before they sweep."""
    return lambda: request.node.stash.get(GOOD, False)


@pytest.fixture(scope="session")
def spared(pytestconfig: pytest.Config) -> set[str]:
    """Words in the names of what outlives a test on purpose."""
    return pytestconfig.stash.setdefault(SPARED, set())


@pytest.fixture(scope="session")
def marks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What tells the things of this session's tests from all others: names, and the directory that they lie in."""
    return (MINE, f"{tmp_path_factory.getbasetemp()}/")


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_by_a_module(marks: tuple[str, ...], spared: set[str]) -> Iterator[None]:
    """After a module and its fixtures: also packet filter rules, which it would take too long to list for each test."""
    with Lookout(marks=marks, deep=True).nothing_left(spared):
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(
    marks: tuple[str, ...], spared: set[str], nothing_is_left_by_a_module: None, went_well: Callable[[], bool]
) -> Iterator[None]:
    """After each test and its own fixtures."""
    with Lookout(marks=marks).nothing_left(spared, asked=went_well):
        yield


# --- a server and what it needs -------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Of the programs that tests start only the first compiles the code, which takes it half of its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, spared: set[str]) -> Iterator[Images]:
    """A loopback registry with the images of the tests."""
    if os.geteuid() != 0:
        pytest.skip("makes namespaces, mounts and cgroups: needs root")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or not Path(PLUGIN_DIR, "bridge").exists():
        pytest.skip(f"needs the programs {', '.join(missing) or f'in {PLUGIN_DIR}'}")
    directory = tmp_path_factory.mktemp("registry")
    spared.add(str(directory))
    with LocalRegistry(directory) as registry:
        yield push_images(registry)


@contextmanager
def a_site(images: Images, mode: int, went_well: Callable[[], bool]) -> Iterator[Site]:
    """Where a server lives: what it has left is looked for first, and swept then."""
    site = Site(images)
    site.directory.chmod(mode)
    try:
        yield site
        if went_well():
            site.assert_clean()
    finally:
        site.sweep()


@pytest.fixture(scope="module")
def site_mode() -> int:
    """The permissions of a site's directory; a module may say others."""
    return 0o700


@pytest.fixture(scope="module")
def shared_site(images: Images, site_mode: int, spared: set[str]) -> Iterator[Site]:
    """Where the server of a module lives."""
    with a_site(images, site_mode, lambda: True) as site:
        words = {str(site.directory), site.marks.name}
        spared |= words
        yield site
        spared -= words


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """Names of the images that the module's server has from the beginning; a module may say others."""
    return ("busybox",)


@pytest.fixture(scope="module")
def server_flags() -> tuple[str, ...]:
    """Flags of the module's server besides those of all; a module may say others."""
    return ()


@pytest.fixture(scope="module")
def shared_crio(shared_site: Site, pulled: tuple[str, ...], server_flags: tuple[str, ...]) -> Iterator[Crio]:
    """A server for all tests of a module."""
    with Crio(shared_site, *server_flags) as crio:
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
def site(images: Images, site_mode: int, went_well: Callable[[], bool]) -> Iterator[Site]:
    """Where a test's own server lives; when the test is over and its servers have ended, nothing of it is left."""
    with a_site(images, site_mode, went_well) as site:
        yield site


@pytest.fixture
def own_crio(site: Site) -> Iterator[Crio]:
    """A server of the test's own, which it may kill; at the end it must be clean, its journal too."""
    with Crio(site) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        yield crio
        crio.remove_all()
        crio.assert_clean()


# --- monitors -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_zygote(tmp_path_factory: pytest.TempPathFactory, spared: set[str]) -> Iterator[Path]:
    """The folder of what forks the monitors of a module's tests; what it keeps ready may be another one after each."""
    folder = tmp_path_factory.mktemp("zygote")
    spared.add(str(folder))
    yield folder
    anyio.run(hasty_zygote(folder).quit)
    spared.remove(str(folder))


# --- storage --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Store]:
    """A store of its own, open."""
    found = Store(tmp_path / "criotest-store")
    await found.open()
    yield found
    await found.aclose()


@pytest.fixture
def mountpoint(tmp_path: Path, went_well: Callable[[], bool]) -> Iterator[Path]:
    """Where a test may mount something, which it takes off again."""
    place = tmp_path / "criotest-rootfs"
    yield place
    mounted = place.is_mount()
    subprocess.run(["umount", "-l", str(place)], stderr=subprocess.DEVNULL, check=False)
    assert not (mounted and went_well()), f"the test left a mount at {place}"
