"""Which network pods get now, kept right whatever happens to the configuration directory and the plugins.

How it works:

- Nothing is watched. Every question looks at the directory: one listing, one stat a file. That costs far less than
  starting a pod, and cannot lose an event, a directory made anew, or the race between a file and its plugin's binary.
- Files are read again only when their stat differs, or when they changed so shortly before the last reading that the
  clock of the file system could hide a second change.
- Looking happens in a worker thread; what it makes is immutable and replaces the old picture in one step.
"""

import errno
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from anyio import to_thread

from crio_core.cni import ConfFile, Loaded, Network, choose, load
from crio_core.cni.config import CONF_FILES_MAX, CONF_MAX_BYTES, SUFFIXES
from crio_core.cni.errors import not_configured, plugin_not_found
from crio_core.errors import OperationError
from crio_core.values import dataclass
from crio_io.cni import find_plugins

UNSETTLED_NS = 100_000_000
"""A file that changed less than this before it was read may change again without its times showing it (on Linux before
6.13, which made the times of a file finer once somebody has looked at them)."""

Signature = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkState:
    """The network that pods get, or why there is none; paths of its plugins by name; and which files are not usable."""

    network: Network | None = None
    error: OperationError | None = None
    plugins: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """What one look at the directory found."""

    signature: Signature
    settled: bool
    loaded: Loaded


class NetworkConfigs:
    """The configuration directory and what follows from it.

    Args:
        conf_dir: Where configurations are; it need not exist yet.
        plugin_dirs: Where plugins are looked for.
        default_network: Name of the network for pods; empty takes the first.
    """

    def __init__(self, conf_dir: str, plugin_dirs: Sequence[str], default_network: str = "") -> None:
        self.conf_dir = conf_dir
        self.plugin_dirs = tuple(plugin_dirs)
        self.default_network = default_network
        self._picture: _Picture | None = None

    async def state(self) -> NetworkState:
        """The network for pods as of now, or why there is none."""
        self._picture, state = await to_thread.run_sync(self._look, self._picture)
        return state

    def _look(self, previous: _Picture | None) -> tuple[_Picture, NetworkState]:
        try:
            paths = _conf_paths(Path(self.conf_dir))
        except OSError as error:
            empty = _Picture(signature=(), settled=False, loaded=Loaded())
            reason = f"CNI configuration directory {self.conf_dir} cannot be read: {error.strerror}"
            return empty, NetworkState(error=not_configured(reason))
        signature = _signature(paths)
        if previous is not None and previous.settled and previous.signature == signature:
            picture = previous
        else:
            newest_ns = max((entry[4] for entry in signature), default=0)
            settled = time.time_ns() - newest_ns > UNSETTLED_NS
            picture = _Picture(signature=signature, settled=settled, loaded=_read(Path(self.conf_dir), paths))
        return picture, self._state(picture.loaded)

    def _state(self, loaded: Loaded) -> NetworkState:
        try:
            network = choose(loaded, self.default_network, self.conf_dir)
        except OperationError as error:
            return NetworkState(error=error, faults=loaded.faults)
        names = network.executables()
        found = find_plugins(names, self.plugin_dirs)
        for name in names:
            if name not in found:
                missing = plugin_not_found(name, network.name, self.plugin_dirs)
                return NetworkState(error=missing, faults=loaded.faults)
        return NetworkState(network=network, plugins=found, faults=loaded.faults)


def _conf_paths(conf_dir: Path) -> list[Path]:
    """Files that may be configurations: here, and in sub-directories, where others add plugins to a network."""
    with os.scandir(conf_dir) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    paths: list[Path] = []
    for entry in entries:
        if entry.name.endswith(SUFFIXES):
            paths.append(conf_dir / entry.name)
        elif entry.is_dir():
            paths.extend(_added_plugins(conf_dir / entry.name))
        if len(paths) >= CONF_FILES_MAX:
            break
    return paths[:CONF_FILES_MAX]


def _added_plugins(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as scan:
            return sorted(directory / entry.name for entry in scan if entry.name.endswith(".conf"))
    except OSError:
        return []  # Gone since, or not for us: it adds no plugins.


def _signature(paths: Iterable[Path]) -> Signature:
    """What changes when one of the files does."""
    entries = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            entries.append((str(path), error.errno or 0, 0, 0, 0))
        else:
            entries.append((str(path), status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(entries)


def _read(conf_dir: Path, paths: Iterable[Path]) -> Loaded:
    files: list[ConfFile] = []
    faults: list[str] = []
    for path in paths:
        name = str(path.relative_to(conf_dir))
        try:
            files.append(ConfFile(name=name, content=_content(path)))
        except OSError as error:
            faults.append(f"{name}: cannot be read: {error.strerror}")
    loaded = load(files)
    return Loaded(networks=loaded.networks, faults=(*faults, *loaded.faults))


def _content(path: Path) -> bytes:
    """The file, up to one byte more than the parser accepts; a pipe in its place neither blocks nor is read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(CONF_MAX_BYTES + 1)
