"""The whole runtime in one process, without a server: what `crio` serves and what other programs embed.

async with open_engine(EngineOptions(root=..., runroot=...)) as engine:
    pod = await engine.run_pod(PodSandboxConfig(...))
"""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from crio_core import requests as rq
from crio_core.cri import AuthConfig, ContainerConfig, ImageSpec, PodSandboxConfig
from crio_core.errors import Code, CrioError, OperationError, invalid, not_found
from crio_core.events import JournalLoaded
from crio_core.image.reference import parse_image_id
from crio_core.layout import Layout
from crio_core.node import Node
from crio_core.node.naming import canonical_names
from crio_core.oci.facts import CgroupDriver
from crio_core.records import ContainerRecord, ContainerState, is_current
from crio_core.replies import ContainerFound, Created, Executed, ImageFound, Pulled, Result
from crio_io import host, mounts, witness
from crio_io.bundle import sandboxes_of
from crio_io.cni import CniRunner
from crio_io.container_log import ContainerLog, read_log
from crio_io.driver import Driver
from crio_io.engine_options import EngineOptions, layout_of, set_up_runtimes, settings_of
from crio_io.executor import HostExecutor
from crio_io.exits import ExitWatcher
from crio_io.feed import Feed, Listening
from crio_io.images import ImageStore
from crio_io.journal import Journal
from crio_io.journal_open import LoadResult
from crio_io.network_watch import NetworkWatch
from crio_io.pod_cgroups import PodCgroups
from crio_io.record_files import RecordFiles
from crio_io.recorder import Recorder
from crio_io.stats import StatsReader
from crio_io.streaming.streams import Streams
from crio_io.sweep import Sweeper
from crio_io.vault import Vault
from crio_io.zygote import ZygoteClient

log = logging.getLogger(__name__)

NS_PER_S = 1_000_000_000
RECURSIVE_READ_ONLY_KERNEL_MIN = (5, 12)
"""The first kernel that can: it has mount_setattr(2)."""
DRAIN_S = 10.0
"""How long work that is under way may take when an engine ends; what is cut off then is resumed by the next one."""


class Engine:
    """A running node. Every method raises `OperationError` when the node refuses or the work fails."""

    def __init__(
        self, driver: Driver, executor: HostExecutor, vault: Vault, here: host.Host, zygote: ZygoteClient
    ) -> None:
        self.driver = driver
        self.images = executor.images
        self.streams = executor.streams
        self.stats = StatsReader(here.cgroups, here.facts.cgroup_driver, executor.images.store)
        self.vault = vault
        self._executor = executor
        self._host = here
        self._zygote = zygote
        self.recorder: Recorder | None = None
        self.feed = Feed(driver.ask)
        self.journal_repairs: tuple[str, ...] = ()
        """What was wrong with the journal when the engine was opened, and was mended, in sentences."""
        self.network = NetworkWatch(executor.cni, driver.feed)
        self.recursive_read_only: frozenset[str] = frozenset()
        """Names of the handlers known to mount read-only with all that is mounted below; "" is the default's."""
        self._configured = anyio.Event()

    @property
    def handlers(self) -> tuple[str, ...]:
        """Names of the runtime handlers that pods can have."""
        return tuple(self.driver.node.settings.handlers)

    async def configure(self, options: EngineOptions) -> None:
        """Go by other options from now on, as far as they are not about where everything lies.

        Containers keep the runtime that they were made with. Nothing changes when anything is wrong.

        Raises:
            OperationError: The default runtime's program is missing, or a monitor's.
        """
        options, monitors = await mounts.in_thread(
            "look for runtimes", set_up_runtimes, options, self._executor.layout, self._host.cgroups, self._zygote
        )
        facts = self._host.facts
        if not options.selinux:
            facts = replace(facts, selinux=False)
        elif facts.selinux:
            log.warning("selinux: files and volumes of containers are not labelled: an enforcing node denies them")
        self._executor.monitors.update(monitors)
        self._executor.cdi.directories = options.cdi_spec_dirs
        self.images.reload(options.registries)
        settings = settings_of(options, self._executor.layout, facts)
        self.driver.node.reload(settings)
        if self.recorder is not None:
            self.recorder.reloaded(settings)
        self.network.configure(options.cni_config_dir, options.cni_plugin_dirs, options.cni_default_network)
        self._configured.set()

    async def watch_features(self) -> None:
        """Ask the runtimes what they know, now and after each configuration; runs until it is cancelled.

        They are asked beside everything else: no start waits for a program that hangs.
        """
        while True:
            await self._configured.wait()
            self._configured = anyio.Event()
            able = set()
            for name in self.handlers if self._host.kernel >= RECURSIVE_READ_ONLY_KERNEL_MIN else ():
                try:
                    if "rro" in await self._executor.monitors[name].runtime.mount_options():
                        able.add(name)
                except CrioError as error:
                    log.warning("runtime handler %s does not say what it knows: %s", name, error)
            if self.driver.node.settings.default_handler in able:
                able.add("")
            self.recursive_read_only = frozenset(able)

    async def pull(self, reference: str, auth: AuthConfig | None = None) -> str:
        """Pull an image; returns its id."""
        handle = self.vault.keep(auth or AuthConfig())
        pulled = await self.driver.call(rq.PullImage(image=ImageSpec(image=reference), auth=handle))
        assert isinstance(pulled, Pulled)
        return pulled.image_id

    def witness(self, container_id: str) -> Mapping[str, Any]:
        """What only a container's monitor, or its absence, tells: whether it is watched, and what its log has lost."""
        return witness.facts(Path(self._executor.layout.bundle(container_id)))

    async def load(self, path: Path, name: str = "") -> tuple[str, ...]:
        """Take up the images in an OCI layout directory, an OCI archive or a Docker archive; returns their references.

        An archive may be compressed with gzip or zstd.

        Args:
            path: The directory or file.
            name: A reference for an image that brings none, or in place of its own.
        """
        loaded = []
        async with self.images.opened_archive(path, name) as images:
            for image in images:
                with self.images.offered(image) as handle:
                    for one in image.names:
                        await self.driver.call(rq.PullImage(image=ImageSpec(image=one), auth=handle))
                        loaded.append(one)
        return tuple(loaded)

    async def save(self, reference: str, path: Path, form: str = "oci-archive") -> str:
        """Write an image to a file or directory that does not exist yet; returns its id.

        Args:
            reference: Its name or id; a name goes into the file, an id takes all names along.
            path: What to make.
            form: `oci-dir`, `oci-archive` or `docker-archive`.
        """
        from crio_io.archives import FORMS

        if form not in FORMS:
            raise invalid("format", form, f"one of {', '.join(FORMS)}")
        found = await self.driver.call(rq.ImageStatus(image=ImageSpec(image=reference)))
        assert isinstance(found, ImageFound)
        if found.image is None:
            raise not_found("image", reference)
        names = found.image.tags
        if parse_image_id(reference) is None:
            names = tuple(tag for tag in names if tag in canonical_names(reference)) or names
        await self.images.save(found.image, names, path, form)
        return found.image.id

    async def run_pod(self, config: PodSandboxConfig, runtime_handler: str = "") -> str:
        """Make a pod sandbox and wait until it is ready; returns its id."""
        made = await self.driver.call(rq.RunPodSandbox(config=config, runtime_handler=runtime_handler))
        assert isinstance(made, Created)
        return made.id

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        """Create a container in a ready sandbox; returns its id."""
        made = await self.driver.call(rq.CreateContainer(sandbox_id=sandbox_id, config=config))
        assert isinstance(made, Created)
        return made.id

    async def start_container(self, container_id: str) -> None:
        """Run a created container's process."""
        await self.driver.call(rq.StartContainer(container_id=container_id))

    async def wait_container(self, container_id: str) -> ContainerRecord:
        """Wait until a container has exited; returns it with its exit code."""

        def exited(answer: Result) -> bool:
            assert isinstance(answer, ContainerFound)
            return answer.container.state is ContainerState.EXITED

        answer = await self.driver.until(rq.ContainerStatus(container_id=container_id), exited)
        assert isinstance(answer, ContainerFound)
        return answer.container

    def listen(self) -> Listening:
        """What happens to pods and containers from now on, in order: `async for happening in engine.listen()`."""
        return self.feed.listen()

    async def read_log(self, container_id: str) -> ContainerLog:
        """What a container has written so far, as far as its pod has a log directory and it a log path."""
        found = await self.driver.call(rq.ContainerStatus(container_id=container_id))
        assert isinstance(found, ContainerFound)
        path = found.container.log_path
        if not path:
            raise OperationError(Code.FAILED_PRECONDITION, "NO_LOG", f"container {found.container.id} has no log path")
        return await mounts.in_thread(f"read log {path}", read_log, Path(path))

    async def exec(self, container_id: str, command: tuple[str, ...], timeout_s: float = 0) -> Executed:
        """Run a command in a running container; returns its output and exit code."""
        done = await self.driver.call(
            rq.ExecSync(container_id=container_id, command=command, timeout_ns=int(timeout_s * NS_PER_S))
        )
        assert isinstance(done, Executed)
        return done

    async def stop_container(self, container_id: str, grace_s: float = 10) -> None:
        """Stop a container: its stop signal, then after `grace_s` a kill."""
        await self.driver.call(rq.StopContainer(container_id=container_id, grace_ns=int(grace_s * NS_PER_S)))

    async def remove_container(self, container_id: str) -> None:
        """Remove a container, killed first if it runs."""
        await self.driver.call(rq.RemoveContainer(container_id=container_id))

    async def stop_pod(self, sandbox_id: str) -> None:
        """Stop a pod: kill its containers, give back its network."""
        await self.driver.call(rq.StopPodSandbox(sandbox_id=sandbox_id))

    async def remove_pod(self, sandbox_id: str) -> None:
        """Remove a pod and its containers."""
        await self.driver.call(rq.RemovePodSandbox(sandbox_id=sandbox_id))


@asynccontextmanager
async def open_engine(options: EngineOptions) -> AsyncIterator[Engine]:
    """Set up a node under its own directories and run it until the block ends.

    Containers go on running after that; the next engine with the same directories finds them. An exception that leaves
    the block arrives as it is, not wrapped by the task groups in between.

    Raises:
        OperationError: A program is missing, or the directories are in use by another engine.
    """
    body: BaseException | None = None
    try:
        async with _opened(options) as engine:
            try:
                yield engine
            except BaseException as error:
                body = error
                raise
    except BaseExceptionGroup as group:
        found: BaseException = group
        while found is not body and isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
            found = found.exceptions[0]
        if body is not None and found is body:
            raise body from body.__cause__
        raise


async def _containers_here(layout: Layout, loaded: LoadResult) -> Mapping[str, str]:
    """What the bundles say, where the journal does not say all, or says it in the words of another version."""
    if not loaded.quarantined and all(is_current(row.kind, row.data) for row in loaded.rows):
        return {}
    return await mounts.in_thread("read the bundles", sandboxes_of, Path(layout.containers))


@asynccontextmanager
async def _opened(options: EngineOptions) -> AsyncIterator[Engine]:
    layout = layout_of(options)
    for directory in layout.directories:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    cgroup_driver = CgroupDriver.SYSTEMD if options.systemd_cgroup else CgroupDriver.CGROUPFS
    here = await host.look(cgroup_driver, layers=Path(layout.root))
    zygote = ZygoteClient(Path(layout.zygote))
    options, monitors = await mounts.in_thread(
        "look for runtimes", set_up_runtimes, options, layout, here.cgroups, zygote
    )
    vault = Vault()
    async with AsyncExitStack() as stack:
        files = RecordFiles(layout)
        journal, loaded = await Journal.open(Path(layout.journal), Path(layout.journal_copy), files)
        stack.push_async_callback(journal.close)
        for repair in loaded.repairs:
            log.warning("journal: %s", repair)
        for kind, record_id, reason in loaded.quarantined:
            log.error("journal: %s %s: %s: `crio check` lists what it may own", kind, record_id, reason)
        images = await stack.enter_async_context(ImageStore.opened(layout, options.registries, vault))
        sweeper = Sweeper(layout, images, tuple(monitors.values()))
        await sweeper.look()
        quarantined = {f"{kind}/{record_id}": reason for kind, record_id, reason in loaded.quarantined}
        executor = HostExecutor(
            layout=layout,
            journal=journal,
            monitors=monitors,
            cni=CniRunner(options.cni_plugin_dirs),
            exits=ExitWatcher(Path(layout.exits), Path(layout.containers), here.cgroups),
            images=images,
            pod_cgroups=PodCgroups(here.cgroups, cgroup_driver, Path(layout.scratch) / "cgroups"),
            sweeper=sweeper,
            streams=Streams(options.stream_idle_s),
        )
        driver = Driver(Node(settings_of(options, layout, here.facts)), executor)
        engine = Engine(driver, executor, vault, here, zygote)
        await engine.configure(options)
        engine.journal_repairs = loaded.repairs
        engine.recorder = Recorder(driver.node, version=options.version, path=options.record)
        stack.push_async_callback(engine.recorder.aclose)
        driver.listeners += (engine.recorder.note, engine.feed.note)
        await stack.enter_async_context(driver.running())
        driver.feed(
            JournalLoaded(
                rows=tuple((row.kind, row.id, row.data) for row in loaded.rows),
                boot_id=here.boot_id,
                at_ns=time.monotonic_ns(),
                wall_ns=time.time_ns(),
                quarantined=quarantined,
                layers=images.layers(),
                here=await _containers_here(layout, loaded),
            )
        )
        async with anyio.create_task_group() as tasks:
            await engine.network.refresh()
            tasks.start_soon(engine.network.watch)
            tasks.start_soon(engine.network.watch_plugins)
            tasks.start_soon(engine.watch_features)
            tasks.start_soon(images.tidy)
            tasks.start_soon(images.tell_progress, driver.feed)
            try:
                yield engine
            finally:
                # Also when the block failed: what it began is finished, and no helper process stays.
                with anyio.move_on_after(DRAIN_S, shield=True):
                    await executor.streams.aclose()
                    await driver.drained()
                    # Monitors do not need it; the next engine forks its own from its own version of the code.
                    await zygote.quit()
                tasks.cancel_scope.cancel()
