"""From files, environment and flags to one `Config`.

Later layers win: defaults, crio.conf, drop-ins in the order of their names, environment, flags. A list replaces the
earlier list; a runtime handler's table replaces the earlier table of that name. Everything that is wrong in any source
is reported at once, and nothing of a configuration with something wrong in it is used.
"""

import stat
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import Any

from crio_core.errors import Code, OperationError
from crio_core.values import dataclass
from crio_server.config.handler import RUNTIMES_TABLE, RuntimeHandler
from crio_server.config.layers import (
    INHERIT,
    ConfigWarning,
    Layer,
    layer_from_environment,
    layer_from_flags,
    layer_from_toml,
    problem,
)
from crio_server.config.options import Config

CONFIG_FILE = "/etc/crio/crio.conf"
CONFIG_DIR = "/etc/crio/crio.conf.d"
FILE_BYTES_MAX = 1024 * 1024
DROP_INS_MAX = 256
PROBLEMS_SHOWN_MAX = 20
UNTRUSTED = "untrusted"
"""Handler into which `runtime_untrusted_workload` is read."""
SHIM_PREFIX = "containerd-shim-"
DEFAULT = Config()


def systemd_is_running() -> bool:
    """Whether systemd is the running init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a configuration comes from; kept to read it again at SIGHUP.

    Args:
        config_path: The single file; empty for none.
        config_required: Whether a missing single file is an error: it is when somebody named it.
        config_dir: Directory of drop-ins (`*.conf`); empty for none. A missing one is empty.
        environ: Environment variables.
        flags: Texts given on the command line, by field of `Config`; also `runtimes`, `runtime` and `debug`.
        has_systemd: Whether systemd runs the machine; decides an empty `cgroup_manager`.
    """

    config_path: str = CONFIG_FILE
    config_required: bool = False
    config_dir: str = CONFIG_DIR
    environ: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_systemd: bool = field(default_factory=systemd_is_running)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration and what should be said about it.

    Args:
        config: What counts.
        warnings: One for each key that was not read.
        notices: Decisions taken in the owner's place, as sentences.
    """

    config: Config
    warnings: tuple[ConfigWarning, ...] = ()
    notices: tuple[str, ...] = ()


def load(sources: Sources) -> Loaded:
    """Read all sources; blocking file I/O.

    Raises:
        OperationError: Something is wrong; the message has one line for each bad value, with its source and key.
    """
    environment, flags = layer_from_environment(sources.environ), layer_from_flags(sources.flags)
    return merge([*_file_layers(sources), environment, flags], sources.has_systemd)


def merge(layers: list[Layer], has_systemd: bool) -> Loaded:
    """Lay layers over each other, the first lowest; reads nothing.

    Raises:
        OperationError: Something is wrong; the message has one line for each bad value, with its source and key.
    """
    notices: list[str] = []
    problems = [line for layer in layers for line in layer.problems]
    if not problems:
        merged = _Merged(layers)
        config = merged.config(has_systemd, notices)
        problems = merged.problems
    if problems:
        hidden = len(problems) - PROBLEMS_SHOWN_MAX
        shown = problems[:PROBLEMS_SHOWN_MAX] + ([f"and {hidden} more"] if hidden > 0 else [])
        raise OperationError(Code.INVALID_ARGUMENT, "INVALID_CONFIG", "\n".join(shown))
    warnings = tuple(warning for layer in layers for warning in layer.warnings)
    return Loaded(config=config, warnings=warnings, notices=tuple(notices))


def _file_layers(sources: Sources) -> list[Layer]:
    layers: list[Layer] = []
    if sources.config_path:
        path = Path(sources.config_path)
        if sources.config_required or path.exists():
            layers.append(_file_layer(path))
    if sources.config_dir:
        layers.extend(_drop_in_layers(Path(sources.config_dir)))
    return layers


def _drop_in_layers(directory: Path) -> list[Layer]:
    try:
        paths = sorted(directory.iterdir(), key=lambda path: path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Layer(source=str(directory), problems=[f"{directory}: cannot be read: {error.strerror}"])]
    if len(paths) > DROP_INS_MAX:
        text = problem(str(directory), f"{len(paths)} entries", f"at most {DROP_INS_MAX}")
        return [Layer(source=str(directory), problems=[text])]
    layers = []
    for path in paths:
        if path.name.endswith(".conf") and not path.name.startswith("."):
            layers.append(_file_layer(path))
        else:
            layer = Layer(source=str(path))
            layer.warn("", "not read: only files whose name ends in .conf are")
            layers.append(layer)
    return layers


def _file_layer(path: Path) -> Layer:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return Layer(source=str(path), problems=[f"{path}: not a regular file"])
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        return Layer(source=str(path), problems=[f"{path}: cannot be read: {error.strerror}"])
    if len(data) > FILE_BYTES_MAX:
        return Layer(source=str(path), problems=[f"{path}: larger than {FILE_BYTES_MAX} bytes"])
    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        return Layer(source=str(path), problems=[f"{path}: not valid TOML: {error}"])
    return layer_from_toml(str(path), document)


class _Merged:
    """All layers laid over each other, and the checks that need more than one value."""

    def __init__(self, layers: list[Layer]) -> None:
        self.problems: list[str] = []
        self.values: dict[str, Any] = {}
        self.handlers: dict[str, dict[str, Any]] = {"runc": {}}
        self.origins: dict[str, str] = {}
        explicit_at = runtime_at = trust_at = -1
        runtime = trust = ""
        for at, layer in enumerate(layers):
            self.values.update(layer.values)
            self.handlers.update({name: dict(values) for name, values in layer.handlers.items()})
            self.origins.update(layer.origins)
            if "default_runtime" in layer.values:
                explicit_at = at
            if "runtime" in layer.legacy:
                runtime, runtime_at = layer.legacy["runtime"], at
                self._set_path(PurePosixPath(runtime).name, runtime)
            if "runtime_untrusted_workload" in layer.legacy:
                self._set_path(UNTRUSTED, layer.legacy["runtime_untrusted_workload"])
                self.handlers[UNTRUSTED]["runtime_type"] = "vm"
            if "default_workload_trust" in layer.legacy:
                trust, trust_at = layer.legacy["default_workload_trust"], at
            if "plugin_dir" in layer.legacy:
                earlier = self.values.get("plugin_dirs", DEFAULT.plugin_dirs)
                self.values["plugin_dirs"] = tuple(dict.fromkeys((*earlier, layer.legacy["plugin_dir"])))
            for key in layer.legacy:
                layer.warnings.append(
                    ConfigWarning(source=layer.source, key=key, message=f"an old key, read as {_NEW_NAMES[key]}")
                )
        if trust == UNTRUSTED and trust_at > explicit_at:
            self.values["default_runtime"] = UNTRUSTED
            self.origins["default_runtime"] = self.origins["default_workload_trust"]
        elif runtime and runtime_at > explicit_at:
            self.values["default_runtime"] = PurePosixPath(runtime).name
            self.origins["default_runtime"] = self.origins["runtime"]

    def _set_path(self, name: str, command: str) -> None:
        """Point a handler at a command, keeping what else is known of it."""
        self.handlers.setdefault(name, {})["runtime_path"] = command if command.startswith("/") else ""

    def config(self, has_systemd: bool, notices: list[str]) -> Config:
        if not self.values.get("cgroup_manager"):
            chosen = "systemd" if has_systemd else "cgroupfs"
            self.values["cgroup_manager"] = chosen
            runs = "runs" if has_systemd else "does not run"
            notices.append(f"cgroup_manager: {chosen}, because systemd {runs} this machine")
        self._resolve_monitor_cgroup(self.values, "conmon_cgroup", self._where("conmon_cgroup"))
        default = self.values.get("default_runtime", DEFAULT.default_runtime)
        if default not in self.handlers:
            text = f"a handler that has a table [{RUNTIMES_TABLE}.{default}], or one of " + ", ".join(self.handlers)
            self.problems.append(problem(self._where("default_runtime"), default, text))
        handlers = tuple(self._handler(name, default) for name in self.handlers)
        return Config(runtimes=handlers, **self.values)

    def _where(self, name: str) -> str:
        return self.origins.get(name, f"default of {name}")

    def _handler(self, name: str, default: str) -> RuntimeHandler:
        values = dict(self.handlers[name])
        where = self.origins.get(f"{RUNTIMES_TABLE}.{name}", name)
        if values.pop(INHERIT, False) and name != default and default in self.handlers:
            source = RuntimeHandler(name=default, **_without_inherit(self.handlers[default]))
            values |= {
                "runtime_path": source.runtime_path,
                "runtime_type": source.runtime_type,
                "runtime_root": source.runtime_root,
            }
        path = values.get("runtime_path", "")
        if PurePosixPath(path or name).name.startswith(SHIM_PREFIX):
            expected = "an OCI command-line runtime (the shims of containerd speak another protocol)"
            self.problems.append(problem(f"{where}.runtime_path", path, expected))
        self._resolve_monitor_cgroup(values, "monitor_cgroup", f"{where}.monitor_cgroup")
        return RuntimeHandler(name=name, **values)

    def _resolve_monitor_cgroup(self, values: dict[str, Any], key: str, where: str) -> None:
        """A slice is something that only systemd has; system.slice is what CRI-O's own files say without it, too."""
        manager, cgroup = self.values["cgroup_manager"], values.get(key, "")
        if manager == "cgroupfs" and cgroup == "system.slice":
            values[key] = ""
        elif manager == "cgroupfs" and cgroup.endswith(".slice") and not cgroup.startswith("/"):
            self.problems.append(problem(where, cgroup, "a path, pod or nothing, because cgroup_manager is cgroupfs"))


_NEW_NAMES = {
    "runtime": f"a table under [{RUNTIMES_TABLE}] and default_runtime",
    "runtime_untrusted_workload": f"[{RUNTIMES_TABLE}.{UNTRUSTED}]",
    "default_workload_trust": "default_runtime",
    "plugin_dir": "one more entry of plugin_dirs",
}


def _without_inherit(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != INHERIT}
