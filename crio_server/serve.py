"""The server: an engine behind a unix socket, until a signal ends it.

SIGTERM and SIGINT stop it cleanly, and containers go on running. SIGHUP reads the configuration again. SIGUSR1 writes
what the node was told lately into a file, for `crio replay`.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from crio_core.errors import OperationError
from crio_io.engine import Engine, open_engine
from crio_io.engine_options import layout_of
from crio_io.mounts import in_thread, running_steps
from crio_io.streaming.listener import StreamListener
from crio_server.commands.version import VERSION
from crio_server.config import Config, ConfigWarning, Loaded, apply_changes, reload
from crio_server.config.render import to_toml
from crio_server.cri.v1.api_grpc import ImageServiceBase, RuntimeServiceBase
from crio_server.lean import REST_S, settle
from crio_server.listener import SocketServer
from crio_server.metrics import EffectTimes, ServerMetrics
from crio_server.options import engine_options, listener_options
from crio_server.services.image import ImageService
from crio_server.services.rpc import Servable
from crio_server.services.runtime import NodeFacts, RuntimeService, user_namespaces_of
from crio_server.services.transfer import ImagesBase, Transfer
from crio_server.sockets import bound_port, bound_socket
from crio_server.status import StatusPages
from crio_server.tally import tallies
from crio_server.versions import write_versions

log = logging.getLogger("crio")

STOP_S = 5.0
"""How long calls that are under way may take at the end before they are cut off."""
END_S = 16.0
"""How long the whole end may take. A step that hangs in the kernel holds its thread for ever, and a thread holds the
process: what is still there then is left as a crash leaves it, for the next start to mend."""
_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}


def serve(
    config: Config,
    warnings: tuple[ConfigWarning, ...],
    *,
    notices: tuple[str, ...] = (),
    reread: Callable[[], Loaded] | None = None,
    record: str = "",
) -> None:
    """Serve until SIGTERM or SIGINT. Ends the process with code 1 and one line if it cannot start."""
    set_up_logging(config)
    for notice in notices:
        log.info("%s", notice)
    for warning in warnings:
        log.warning("%s", warning)
    try:
        asyncio.run(_Serving(config, reread, record).run())
    except OperationError as error:
        sys.exit(f"crio: {error.message}")
    except PermissionError as error:
        sys.exit(f"crio: {error}: crio needs root")


def set_up_logging(config: Config) -> None:
    """Log as the configuration says."""
    handler: logging.Handler
    handler = logging.FileHandler(config.log_file) if config.log_file else logging.StreamHandler()
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(_JsonFormatter() if config.log_format == "json" else logging.Formatter(text))
    logging.basicConfig(level=_LEVELS[config.log_level], handlers=[handler], force=True)
    if config.log_level != "trace":
        # What libraries say at INFO is about themselves.
        for name in ("asyncio", "hpack", "httpcore", "httpx", "transitions"):
            logging.getLogger(name).setLevel(logging.WARNING)


class _JsonFormatter(logging.Formatter):
    """One object a line, whatever is in the message; a traceback is a member."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "name": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _end_at_once() -> None:
    """End the process although some of its threads cannot."""
    for step in running_steps():
        log.warning("stopping without waiting any longer for: %s", step.name)
    logging.shutdown()
    os._exit(0)


class _Serving:
    """One run of the server."""

    def __init__(self, config: Config, reread: Callable[[], Loaded] | None, record: str) -> None:
        self._config = config
        self._reread = reread
        self._record = Path(record) if record else None
        self._dumping: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._hung_up = False
        self._engine: Engine | None = None
        self._ended = asyncio.Event()
        self._calls = tallies()
        self._times = EffectTimes()

    async def run(self) -> None:
        """Bind, open the engine, serve, and end in the opposite order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGUSR1, self._dump)
        listening = bound_socket(self._config.listen)
        metrics = None
        try:
            if self._config.enable_metrics:
                metrics = bound_port(self._config.metrics_host, self._config.metrics_port)
            options = replace(engine_options(self._config), version=VERSION, record=self._record)
            async with open_engine(options) as engine:
                self._engine = engine
                engine.driver.listeners.append(self._times.note)
                streams = StreamListener(listener_options(self._config), engine.driver, engine.streams)
                async with streams.serving():
                    await self._serve(engine, listening, streams.url, metrics)
        finally:
            Path(self._config.listen).unlink(missing_ok=True)
            listening.close()
            if metrics is not None:
                metrics.close()

    async def _serve(
        self, engine: Engine, listening: socket.socket, stream_url: str, metrics: socket.socket | None
    ) -> None:
        try:
            write_versions(self._config.version_file, self._config.root)
        except OSError as error:
            log.warning("crio wipe will take this for a rebooted machine: %s", error)
        pages = self._pages(engine)
        server = SocketServer(self._services(engine, stream_url), pages)
        await server.start(sock=listening)
        metrics_server = await _serve_metrics(metrics, pages) if metrics is not None else None
        asyncio.get_running_loop().call_later(REST_S, settle)
        log.info("crio %s serves at %s (pid %d), streams at %s", VERSION, self._config.listen, os.getpid(), stream_url)
        await self._ended.wait()
        log.info("stopping: containers go on running")
        last_resort = threading.Timer(END_S, _end_at_once)
        last_resort.daemon = True
        last_resort.start()
        server.close()
        if metrics_server is not None:
            metrics_server.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), STOP_S)

    def _services(self, engine: Engine, stream_url: str) -> list[Servable]:
        config = self._config
        facts = NodeFacts(
            version=VERSION,
            systemd_cgroup=config.cgroup_manager == "systemd",
            handlers=lambda: engine.handlers,
            user_namespaces=lambda: user_namespaces_of(engine.driver.node.settings),
            recursive_read_only=lambda: engine.recursive_read_only,
            verbose=self._verbose,
            witness=engine.witness,
            stream_url=lambda: stream_url,
            check_network=engine.network.check,
        )

        async def usage() -> tuple[str, int, int]:
            found = await engine.images.usage()
            return str(engine.images.store.root), found.size_bytes, found.inodes

        return [
            Servable(
                RuntimeServiceBase,
                RuntimeService(engine.driver, facts, engine.network.refresh, engine.stats, engine.feed),
                self._calls,
            ),
            Servable(ImagesBase, Transfer(engine), self._calls),
            Servable(
                ImageServiceBase,
                ImageService(engine.driver, engine.vault, usage, engine.stats.layers),
                self._calls,
            ),
        ]

    def _pages(self, engine: Engine) -> StatusPages:
        layout = layout_of(engine_options(self._config))
        return StatusPages(
            driver=engine.driver,
            config=lambda: to_toml(self._config),
            storage_root=str(engine.images.store.root),
            cgroup_driver=self._config.cgroup_manager,
            rootfs=lambda container_id: str(layout.rootfs(container_id)),
            metrics=ServerMetrics(engine.driver, VERSION, self._calls, self._times, engine.network.plugins.series).page,
        )

    def _verbose(self) -> Mapping[str, Any]:
        config = self._config
        return {
            "config": {
                "root": config.root,
                "runroot": config.runroot,
                "listen": config.listen,
                "cgroupDriver": config.cgroup_manager,
                "defaultRuntime": config.default_runtime,
                "runtimes": {one.name: one.command for one in config.runtimes},
                "cniConfDir": config.network_dir,
                "cniPluginDirs": list(config.plugin_dirs),
                "pauseImage": config.pause_image,
            },
            "pid": os.getpid(),
            "running": self._running(),
            "networkPlugins": self._plugins(),
            "journal": {"repairs": list(self._engine.journal_repairs) if self._engine is not None else []},
        }

    def _plugins(self) -> list[dict[str, object]]:
        """Network plugins: how often each ran with each verb, for how long, and what it said last that was wrong."""
        return [
            {
                "plugin": one.plugin,
                "verb": one.verb,
                "runs": one.runs,
                "failures": one.failures,
                "meanSeconds": one.total_s / one.runs,
                "maxSeconds": one.max_s,
                "lastError": one.last_error,
            }
            for one in (self._engine.network.plugins.series() if self._engine is not None else ())
        ]

    def _running(self) -> list[dict[str, object]]:
        """What the node is doing now, and for how long: the effects, and the file operations inside them."""
        if self._engine is None:
            return []
        now_ns = time.monotonic_ns()
        effects = [
            {"what": one.order, "for": one.lane, "seconds": (now_ns - one.since_ns) / 1e9}
            for one in self._engine.driver.running_effects()
        ]
        steps = [{"what": one.name, "seconds": time.monotonic() - one.started_s} for one in running_steps()]
        return [*effects, *steps]

    def _dump(self) -> None:
        """SIGUSR1: write down what the node was told lately; one at a time."""
        engine = self._engine
        if engine is None or engine.recorder is None or (self._dumping is not None and not self._dumping.done()):
            return
        recorder = engine.recorder

        async def dump() -> None:
            try:
                log.info(
                    "what the node was told lately: %s", await recorder.dump(Path(self._config.root) / "recordings")
                )
            except OperationError as error:
                log.error("%s", error.message)

        self._dumping = asyncio.create_task(dump())

    def _hang_up(self) -> None:
        """SIGHUP: reload, one at a time; what is told meanwhile is one more."""
        self._hung_up = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        """Take what can be taken now, as often as somebody asks; a configuration that is wrong changes nothing."""
        while self._hung_up and self._reread is not None and self._engine is not None:
            self._hung_up = False
            await self._reload_once(self._reread, self._engine)

    async def _reload_once(self, reread: Callable[[], Loaded], engine: Engine) -> None:
        try:
            loaded = await in_thread("read the configuration", reread)
        except OperationError as error:
            log.error("reload: the configuration in force is kept: %s", error.message)
            return
        for warning in loaded.warnings:
            log.warning("%s", warning)
        changes, refused = reload(self._config, loaded.config)
        for change in changes:
            log.info("reload: %s", change)
        for change in refused:
            log.warning("reload: needs a restart: %s", change)
        config = apply_changes(self._config, loaded.config)
        try:
            await engine.configure(await in_thread("read the configuration", engine_options, config))
        except OperationError as error:
            log.error("reload: the configuration in force is kept: %s", error.message)
            return
        self._config = config
        logging.getLogger().setLevel(_LEVELS[self._config.log_level])


async def _serve_metrics(listening: socket.socket, pages: StatusPages) -> asyncio.Server:
    """Serve the page of metrics, and nothing else."""
    from crio_server.http1 import HttpServer  # Only here: as in `listener.py`.

    http = HttpServer(pages.metrics_alone)
    server = await asyncio.get_running_loop().create_server(http.protocol, sock=listening)
    host, port = listening.getsockname()[:2]
    log.info("metrics at http://%s/metrics", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return server
