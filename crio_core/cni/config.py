"""Network configurations: which files there are, what they say, and which of them is the pod network.

- Files ending in `.conf`, `.conflist` and `.json` count, in the order of their names, as libcni and CRI-O have it.
- The first valid file gives the pod network, unless a default network is named. A bad file is reported and passed over;
  one that is valid but whose plugins are missing is not: pods on a wrong network are worse than pods that wait.
- A configuration of nothing but the loopback plugin is no pod network: every pod has its `lo` anyway.
- What comes out is complete in itself. `Network.conf` is all that a later DEL needs, whatever happens to the file.

Sources: CNI SPEC 1.1.0 section 1; CVE-2021-20206 for the names of plugins.
"""

import re
from collections.abc import Iterable, Sequence

from crio_core.cni import version
from crio_core.cni.document import (
    FieldError,
    JsonObject,
    flag_of,
    object_of,
    objects_of,
    read_object,
    text_of,
    texts_of,
    write,
)
from crio_core.cni.errors import config_invalid, not_configured
from crio_core.errors import OperationError
from crio_core.values import dataclass

SUFFIXES = (".conf", ".conflist", ".json")
CONF_MAX_BYTES = 256 * 1024
STORED_CONF_MAX_BYTES = 4 * CONF_MAX_BYTES
"""A stored configuration also holds plugins that came from files of their own."""
CONF_FILES_MAX = 256
PLUGINS_MAX = 32
CAPABILITIES_MAX = 64
VERSIONS_MAX = 32

LOOPBACK = "loopback"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,254}")
_PLUGIN_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,126}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfFile:
    """A file of the configuration directory; the name of one in a sub-directory is `directory/file`."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One plugin of a chain."""

    type: str
    """Name of the executable."""
    ipam_type: str
    """Name of the executable that it delegates addresses to; may be empty."""
    capabilities: tuple[str, ...]
    """What it wants to be told of the pod in `runtimeConfig`."""
    conf: str
    """Its own configuration, a JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network that pods can be attached to."""

    name: str
    cni_version: str
    file_name: str
    disable_check: bool
    plugins: tuple[Plugin, ...]
    conf: str
    """The whole configuration as a list in JSON, with nothing left to look up; `stored_network` reads it."""

    def executables(self) -> tuple[str, ...]:
        """Every executable that it needs, once, in order."""
        names = [name for plugin in self.plugins for name in (plugin.type, plugin.ipam_type) if name]
        return tuple(dict.fromkeys(names))

    def is_loopback(self) -> bool:
        """True if it consists of the loopback plugin alone."""
        return all(plugin.type == LOOPBACK for plugin in self.plugins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a configuration directory holds: networks in order of file name, and why other files give none."""

    networks: tuple[Network, ...] = ()
    faults: tuple[str, ...] = ()


def load(files: Iterable[ConfFile]) -> Loaded:
    """Read the files of a configuration directory; never fails, whatever they hold."""
    every = sorted(files, key=lambda file: file.name)
    networks: dict[str, Network] = {}
    faults: list[str] = []
    for file in every:
        if "/" in file.name or not file.name.endswith(SUFFIXES):
            continue
        try:
            network = parse_network(file, every)
        except OperationError as error:
            faults.append(error.message)
            continue
        first = networks.setdefault(network.name, network)
        if first is not network:
            faults.append(f"{file.name}: ignored: network {network.name!r} is already defined by {first.file_name}")
    return Loaded(networks=tuple(networks.values()), faults=tuple(faults))


def choose(loaded: Loaded, default_network: str, conf_dir: str) -> Network:
    """The network for pods: the named one, otherwise the first.

    Raises:
        OperationError: CNI_NOT_CONFIGURED, with what was found instead.
    """
    for network in loaded.networks:
        if network.name == default_network or (not default_network and not network.is_loopback()):
            if network.is_loopback():
                raise not_configured(f"{network.file_name}: network {network.name!r} is loopback only")
            return network
    wanted = f"no CNI network named {default_network!r}" if default_network else "no CNI network for pods"
    message = f"{wanted} in {conf_dir}"
    if loaded.networks:
        found = ", ".join(f"{network.name!r} in {network.file_name}" for network in loaded.networks[:8])
        message = f"{message}; found {found}"
    if loaded.faults:
        message = f"{message}; not usable: {'; '.join(loaded.faults[:4])}"
    raise not_configured(message)


def parse_network(file: ConfFile, siblings: Sequence[ConfFile] = ()) -> Network:
    """Read one configuration file, in the list form or the single-plugin form, told apart by its content.

    Args:
        file: The file.
        siblings: Files that may hold further plugins of it, in the directory named after the network.

    Raises:
        OperationError: CNI_CONFIG_INVALID, naming file, field, value and what was expected.
    """
    try:
        source = read_object(file.content, max_bytes=CONF_MAX_BYTES)
        if "plugins" in source or file.name.endswith(".conflist"):
            return _network(source, file, siblings)
        # The single form was dropped in 1.0.0 but is still in use, also without a name: then the file gives it.
        single = {**source, "name": text_of(source, "name") or file.name}
        return _network(
            {"name": single["name"], "cniVersion": text_of(source, "cniVersion"), "plugins": [single]}, file, ()
        )
    except FieldError as error:
        raise config_invalid(file.name, error.field, error.value, error.expected) from error


def stored_network(conf: str) -> Network:
    """The network that a `Network.conf` was made from.

    Raises:
        OperationError: CNI_CONFIG_INVALID, if it is not such a text.
    """
    try:
        return _network(
            read_object(conf, max_bytes=STORED_CONF_MAX_BYTES), ConfFile(name="stored network", content=b""), ()
        )
    except FieldError as error:
        raise config_invalid("stored network", error.field, error.value, error.expected) from error


def _network(source: JsonObject, file: ConfFile, siblings: Sequence[ConfFile]) -> Network:
    name = text_of(source, "name")
    if not _NAME.fullmatch(name):
        raise FieldError("name", name, "letters, digits, '_', '.' and '-', beginning with a letter or digit")
    cni_version = version.chosen(text_of(source, "cniVersion"), texts_of(source, "cniVersions", max_items=VERSIONS_MAX))
    inlined = objects_of(source, "plugins", max_items=PLUGINS_MAX)
    plugins = [_plugin(plugin, f"plugins[{index}].") for index, plugin in enumerate(inlined)]
    if not flag_of(source, "loadOnlyInlinedPlugins"):
        plugins.extend(_plugins_from_files(name, siblings))
    if not 0 < len(plugins) <= PLUGINS_MAX:
        raise FieldError("plugins", f"{len(plugins)} plugins", f"1 to {PLUGINS_MAX}")
    disable_check = flag_of(source, "disableCheck")
    conf = {
        "name": name,
        "cniVersion": cni_version,
        "disableCheck": disable_check,
        "loadOnlyInlinedPlugins": True,
        "plugins": [read_object(plugin.conf) for plugin in plugins],
    }
    return Network(
        name=name,
        cni_version=cni_version,
        file_name=file.name,
        disable_check=disable_check,
        plugins=tuple(plugins),
        conf=write(conf),
    )


def _plugins_from_files(network: str, siblings: Sequence[ConfFile]) -> list[Plugin]:
    """Plugins that other programs add to a network by files `<network>/*.conf` (CNI SPEC 1.1.0, section 1)."""
    plugins: list[Plugin] = []
    for file in siblings:
        directory, _, base = file.name.rpartition("/")
        if directory == network and base.endswith(".conf"):
            plugins.append(_plugin(read_object(file.content, max_bytes=CONF_MAX_BYTES), f"{file.name}: "))
    return plugins


def _plugin(source: JsonObject, where: str) -> Plugin:
    plugin_type = text_of(source, "type", where)
    _check_type(plugin_type, f"{where}type")
    ipam_type = text_of(object_of(source, "ipam", where), "type", f"{where}ipam.")
    if ipam_type:
        _check_type(ipam_type, f"{where}ipam.type")
    capabilities = object_of(source, "capabilities", where)
    if len(capabilities) > CAPABILITIES_MAX:
        raise FieldError(f"{where}capabilities", f"{len(capabilities)} entries", f"at most {CAPABILITIES_MAX}")
    for key, value in capabilities.items():
        if not isinstance(value, bool):
            raise FieldError(f"{where}capabilities.{key}", value, "true or false")
    return Plugin(
        type=plugin_type,
        ipam_type=ipam_type,
        capabilities=tuple(sorted(key for key, value in capabilities.items() if value)),
        conf=write(source),
    )


def _check_type(name: str, field: str) -> None:
    """CVE-2021-20206: the name becomes a path, so nothing that could lead out of the plugin directories gets in."""
    if not _PLUGIN_TYPE.fullmatch(name):
        raise FieldError(field, name, "the name of an executable: letters, digits, '_' and '-' only")
