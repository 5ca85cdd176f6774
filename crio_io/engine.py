"""The whole runtime in one process, without a server: what `crio` serves and what other programs embed.

async with open_engine(EngineOptions(root=..., runroot=...)) as engine:
    pod = await engine.run_pod(PodSandboxConfig(...))
"""

import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import anyio

from crio_core import requests as rq
from crio_core.cni import Attachment, Network, PodNetwork
from crio_core.cni.stats import PluginStats
from crio_core.cri import AuthConfig, ContainerConfig, Device, ImageSpec, PodSandboxConfig
from crio_core.errors import Code, CrioError, OperationError, invalid, not_found
from crio_core.events import JournalLoaded, NetworkChanged
from crio_core.image.reference import parse_image_id
from crio_core.layout import Layout
from crio_core.node import Handler, Node, Settings
from crio_core.node.naming import canonical_names
from crio_core.oci.facts import CgroupDriver, HostFacts, SpecDefaults
from crio_core.records import ContainerRecord, ContainerState, SandboxRecord, SandboxState, is_current
from crio_core.replies import ContainerFound, Created, Executed, ImageFound, Pulled, Result
from crio_core.values import dataclass
from crio_io import host, mounts, witness
from crio_io.bundle import sandboxes_of
from crio_io.cgroups import Cgroups
from crio_io.cni import CniRunner
from crio_io.cni_watch import NetworkConfigs
from crio_io.container_log import ContainerLog, read_log
from crio_io.driver import Driver
from crio_io.executor import HostExecutor
from crio_io.exits import ExitWatcher
from crio_io.images import ImageStore
from crio_io.journal import Journal
from crio_io.journal_open import LoadResult
from crio_io.monitor import ConmonMonitor
from crio_io.moves import Moves
from crio_io.pod_cgroups import PodCgroups
from crio_io.record_files import RecordFiles
from crio_io.recorder import Recorder
from crio_io.registry.configuration import RegistryOptions
from crio_io.runtime import OciRuntime
from crio_io.stats import StatsReader
from crio_io.streaming.streams import IDLE_S, Streams
from crio_io.sweep import Sweeper
from crio_io.vault import Vault
from crio_io.zygote import ZygoteClient

log = logging.getLogger(__name__)

NS_PER_S = 1_000_000_000
NETWORK_LOOK_S = 2.0
READY_ASKED_S = 5.0
"""How often network plugins that are ready are asked whether they still are: as often as a kubelet asks."""
UNREADY_ASKED_S = 0.5
"""How often those are asked that are not: pods wait for them."""
CHECK_S = 5.0
"""How long a status waits for what network plugins say."""
RECURSIVE_READ_ONLY_KERNEL_MIN = (5, 12)
"""The first kernel that can: it has mount_setattr(2)."""
BUILT_IN_MONITOR = "conmon"
"""What a forked monitor calls itself in place of a program's path."""
DRAIN_S = 10.0
"""How long work that is under way may take when an engine ends; what is cut off then is resumed by the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """One OCI runtime: its program, where it keeps its state, and its monitor program."""

    path: str = "runc"
    root: str = "/run/runc"
    vm: bool = False
    allowed_annotations: tuple[str, ...] = ()
    privileged_without_host_devices: bool = False
    no_sync_log: bool = True
    """Whether logs of containers that have ended get to the disk when the kernel likes."""
    monitor_path: str = ""
    """A program with conmon's command line; empty for the monitors that are built in."""
    monitor_env: Mapping[str, str] = field(default_factory=dict)
    monitor_cgroup: str = ""
    """A path, or a slice of systemd's; empty leaves monitors where the engine is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine is set up; the defaults are those of `crio`."""

    root: Path = Path("/var/lib/crio")
    runroot: Path = Path("/run/crio")
    runtimes: Mapping[str, RuntimeOptions] = field(default_factory=lambda: {"runc": RuntimeOptions()})
    default_runtime: str = "runc"
    systemd_cgroup: bool = False
    cni_config_dir: str = "/etc/cni/net.d"
    cni_plugin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    cni_default_network: str = ""
    drop_infra: bool = True
    pause_image: str = "registry.k8s.io/pause:3.10"
    pause_command: tuple[str, ...] = ("/pause",)
    pinned_images: tuple[str, ...] = ()
    log_size_max_bytes: int = -1
    namespaces_dir: str = ""
    exits_dir: str = ""
    attach_dir: str = ""
    log_directory: str = ""
    additional_devices: tuple[Device, ...] = ()
    image_volumes: bool = True
    selinux: bool = False
    defaults: SpecDefaults = SpecDefaults()
    registries: RegistryOptions = RegistryOptions()
    stream_idle_s: float = IDLE_S
    """How long nothing may move on a stream of a client."""
    version: str = ""
    """Of the program around the engine, for recordings."""
    record: Path | None = None
    """A file to record everything in that the node is told; the latest of it is always kept in memory."""


class Engine:
    """A running node. Every method raises `OperationError` when the node refuses or the work fails."""

    def __init__(
        self, driver: Driver, executor: HostExecutor, vault: Vault, here: host.Host, zygote: ZygoteClient
    ) -> None:
        self.driver = driver
        self.images = executor.images
        self.streams = executor.streams
        self.stats = StatsReader(here.cgroups, executor.images.store)
        self.vault = vault
        self._executor = executor
        self._host = here
        self._zygote = zygote
        self.recorder: Recorder | None = None
        self.journal_repairs: tuple[str, ...] = ()
        """What was wrong with the journal when the engine was opened, and was mended, in sentences."""
        self._networks = NetworkConfigs("", ())
        self._last_network = ("", "")
        self._network: Network | None = None
        self._refusal: tuple[Network, str] | None = None
        """A network whose plugins have said that they are not ready, and why."""
        self.recursive_read_only: frozenset[str] = frozenset()
        """Names of the handlers known to mount read-only with all that is mounted below; "" is the default's."""
        self._configured = anyio.Event()
        self._looks = 0
        self._looking = anyio.Lock()

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
        self._executor.monitors.update(monitors)
        self._executor.cni.plugin_dirs = options.cni_plugin_dirs
        self.images.reload(options.registries)
        settings = settings_of(options, self._executor.layout, facts)
        self.driver.node.reload(settings)
        if self.recorder is not None:
            self.recorder.reloaded(settings)
        self._networks = NetworkConfigs(options.cni_config_dir, options.cni_plugin_dirs, options.cni_default_network)
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

    async def watch_network(self) -> None:
        """Look at the CNI configuration again and again; runs until it is cancelled."""
        while True:
            await self.refresh_network()
            await anyio.sleep(NETWORK_LOOK_S)

    async def watch_plugins(self) -> None:
        """Ask the plugins again and again whether they could attach a pod now; runs until it is cancelled.

        They are asked beside everything else, since no status and no pod may wait for a plugin that hangs. Plugins that
        cannot say so (before CNI 1.1.0) are taken for ready.
        """
        while True:
            if (network := self._network) is not None:
                refusal = None
                try:
                    await self._executor.cni.status(network)
                except OperationError as error:
                    refusal = network, error.message
                if refusal != self._refusal:
                    self._refusal = refusal
                    log.warning("network %s: %s", network.name, refusal[1] if refusal else "its plugins are ready")
                    await self.refresh_network()
            await anyio.sleep(UNREADY_ASKED_S if self._refusal else READY_ASKED_S)

    async def refresh_network(self) -> None:
        """Look at the CNI configuration now, and tell the node which network pods get.

        Who asks while somebody looks shares the next look with all others who do.
        """
        looks = self._looks
        async with self._looking:
            if self._looks > looks:
                return
            self._looks += 1
            await self._look_at_network()

    async def _look_at_network(self) -> None:
        state = await self._networks.state()
        self._executor.cni.known = state.plugins
        self._network = state.network
        network = state.network.conf if state.network else ""
        reason = state.error.message if state.error else ""
        if self._refusal is not None and self._refusal[0] == state.network:
            network, reason = "", self._refusal[1]
        if (network, reason) != self._last_network:
            self._last_network = (network, reason)
            self.driver.feed(NetworkChanged(network=network, reason=reason))
            for fault in state.faults:
                log.warning("CNI configuration: %s", fault)

    @property
    def plugins(self) -> PluginStats:
        """How long network plugins take, and what went wrong with them last."""
        return self._executor.cni.stats

    async def check_network(self, sandbox: SandboxRecord) -> str:
        """Have the plugins compare a pod's network with what was reported of it; what is wrong, or nothing."""
        netns = next((pin.path for pin in sandbox.pins if pin.kind == "net"), "")
        if not (sandbox.attachment and netns and sandbox.state is SandboxState.READY):
            return ""
        meta = sandbox.metadata
        pod = PodNetwork(sandbox_id=sandbox.id, namespace=meta.namespace, name=meta.name, uid=meta.uid, netns=netns)
        try:
            with anyio.fail_after(CHECK_S):
                await self._executor.cni.check(Attachment.from_json(sandbox.attachment), pod)
        except OperationError as error:
            return error.message
        except TimeoutError:
            return f"the network plugins did not answer a CHECK within {CHECK_S:g} s"
        return ""

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


def _program(path: str, what: str) -> str:
    found = shutil.which(path)
    if found is None:
        raise OperationError(
            Code.FAILED_PRECONDITION,
            "PROGRAM_NOT_FOUND",
            f"{what}: {path!r} is not an executable file, nor one in $PATH",
        )
    return os.path.realpath(found) if os.path.isabs(path) else found


def set_up_runtimes(
    options: EngineOptions, layout: Layout, cgroups: Cgroups, zygote: ZygoteClient
) -> tuple[EngineOptions, dict[str, ConmonMonitor]]:
    """The options without the runtime handlers whose program is missing, and the monitors of all, by handler.

    Containers may be left of a handler that has lost its program: they are looked after as well as can be.

    Raises:
        OperationError: PROGRAM_NOT_FOUND, the default runtime's or a monitor's.
    """
    monitors = {}
    moves = Moves(cgroups)
    usable = dict(options.runtimes)
    for name, runtime in options.runtimes.items():
        path = runtime.path
        try:
            path = _program(runtime.path, f"runtime {name}")
        except OperationError as error:
            if name == options.default_runtime:
                raise
            log.warning("pods cannot have runtime handler %s: %s", name, error.message)
            del usable[name]
        oci = OciRuntime(
            name,
            path,
            runtime.root,
            systemd_cgroup=options.systemd_cgroup,
            scratch=Path(layout.scratch),
            moves=moves,
        )
        monitors[name] = ConmonMonitor(
            _program(runtime.monitor_path, f"monitor of runtime {name}") if runtime.monitor_path else BUILT_IN_MONITOR,
            oci,
            exit_dir=Path(layout.exits),
            socket_dir=Path(layout.attach),
            cgroups=cgroups,
            cgroup=runtime.monitor_cgroup,
            log_size_max_bytes=options.log_size_max_bytes,
            no_sync_log=runtime.no_sync_log,
            env=runtime.monitor_env or {"PATH": os.environ.get("PATH", os.defpath)},
            zygote=None if runtime.monitor_path else zygote,
        )
    return replace(options, runtimes=usable), monitors


def layout_of(options: EngineOptions) -> Layout:
    """Where everything of an engine lies."""
    return Layout(
        root=PurePosixPath(options.root),
        runroot=PurePosixPath(options.runroot),
        namespaces_dir=options.namespaces_dir,
        exits_dir=options.exits_dir,
        attach_dir=options.attach_dir,
    )


def settings_of(options: EngineOptions, layout: Layout, facts: HostFacts) -> Settings:
    """What the core decides by."""
    return Settings(
        layout=layout,
        host=facts,
        defaults=options.defaults,
        handlers={
            name: Handler(
                name=name,
                vm=one.vm,
                allowed_annotations=one.allowed_annotations,
                privileged_without_host_devices=one.privileged_without_host_devices,
            )
            for name, one in options.runtimes.items()
        },
        default_handler=options.default_runtime,
        drop_infra=options.drop_infra,
        pause_image=options.pause_image,
        pause_command=options.pause_command,
        pinned_images=options.pinned_images,
        log_directory=options.log_directory,
        additional_devices=options.additional_devices,
        image_volumes=options.image_volumes,
    )


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
        driver.on_step = engine.recorder.note
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
            await engine.refresh_network()
            tasks.start_soon(engine.watch_network)
            tasks.start_soon(engine.watch_plugins)
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
