"""What there is on this machine of one node: things below its own directories, and what elsewhere leads there.

Only what can be told to be this node's is looked for. Looking changes nothing.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crio_core.layout import Layout
from crio_core.node.images import KEEP_NS
from crio_io import mounts
from crio_io.cgroups import Cgroups
from crio_io.images import PARTIAL_BLOB_AGE_S
from crio_io.storage.layer_info import RECORD_NAME, LayerInfo, layers_in
from crio_io.sweep import is_attach_link
from crio_io.witness import is_unwatched

CGROUP_DEPTH_MAX = 8
STATE_BYTES_MAX = 1024 * 1024
CONF_FILES_MAX = 256
RESERVATIONS_MAX = 100_000
DEFAULT_IPAM_DIR = "/var/lib/cni/networks"
DEFAULT_BRIDGE = "cni0"
_ID = "[0-9a-f]{64}"
_CGROUP = re.compile(rf"crio-({_ID})(?:\.scope)?")
_TITLE = re.compile(rf"conmon -c ({_ID}) ".encode())


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Thing:
    """Something on this machine: `what` is a noun, `key` the id that it belongs to or has, `where` its path or pid."""

    what: str
    key: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where to look.

    Args:
        runtime_roots: State directories of the runtimes; they may be shared with others.
        cni_config_dir: Where the networks are described, for the reservations of addresses.
    """

    layout: Layout
    runtime_roots: tuple[str, ...]
    cni_config_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at the machine."""

    things: frozenset[Thing]
    pins: Mapping[str, int]
    """Inodes by path of everything that is pinned below the node's namespaces."""
    layers: Mapping[str, LayerInfo | None]
    unwatched: frozenset[str]
    """Ids of containers whose process lives and whose monitor does not."""


async def look(places: Places) -> Seen:
    """Look at everything once; nothing is changed."""
    return await mounts.in_thread("look at the node", _look, places)


def _age_of(layer: Path) -> str:
    """Whether a layer may have been kept for the next pull, if no record owns it."""
    try:
        made_s = (layer / RECORD_NAME).stat().st_mtime
    except FileNotFoundError:
        return "layer"
    return "young layer" if time.time() - made_s < KEEP_NS / 1e9 else "layer"


def _look(places: Places) -> Seen:
    layout = places.layout
    things: set[Thing] = set()
    directories = (
        ("bundle", Path(layout.containers)),
        ("sandbox directory", Path(layout.sandboxes)),
        ("namespaces", Path(layout.namespaces("x").parent)),
        ("exit file", Path(layout.exits)),
        ("attach link", Path(layout.attach)),
        ("image record", Path(layout.images)),
        ("writable layer", Path(layout.storage) / "containers"),
        ("half layer", Path(layout.storage) / "unpacking"),
        ("half layer", Path(layout.storage) / "trash"),
    )
    for what, directory in directories:
        for name in _names(directory):  # A file that is being written has more behind its id.
            if what == "attach link" and not is_attach_link(layout, directory / name):
                continue
            things.add(Thing(what=what, key=name.partition(".")[0], where=str(directory / name)))
    parents = Path(layout.scratch) / "cgroups"
    for name in _names(parents):
        things.add(Thing(what="parent control group", key=name.rpartition(".")[2], where=str(parents / name)))
    things.update(_scratch(layout))
    things.update(_partial(layout))
    layers = layers_in(Path(layout.storage))
    for name, info in layers.items():
        where = str(Path(layout.storage) / "layers" / name)
        if info is not None:
            things.add(Thing(what=_age_of(Path(where)), key=str(info.diff_id), where=where))
        else:
            things.add(Thing(what="broken layer", key=name, where=where))
    things.update(_mounted(layout))
    things.update(_runtime_states(places))
    things.update(_monitors(layout))
    things.update(_cgroups())
    things.update(_reservations(places.cni_config_dir))
    things.update(_links(places.cni_config_dir))
    unwatched = {name for name in _names(Path(layout.containers)) if is_unwatched(Path(layout.bundle(name)))}
    return Seen(things=frozenset(things), pins=_pins(layout), layers=layers, unwatched=frozenset(unwatched))


def _names(directory: Path) -> Sequence[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _scratch(layout: Layout) -> Iterable[Thing]:
    """Files of execs (`exec-RUNTIME-PID-NUMBER`) whose server has ended, and whatever else is in that place."""
    for name in _names(Path(layout.scratch)):
        if name != "cgroups" and not Path("/proc", name.split("-")[-2] if name.count("-") > 1 else "none").exists():
            yield Thing(what="scratch file", key=name, where=str(layout.scratch / name))


def _partial(layout: Layout) -> Iterable[Thing]:
    """Downloads that were broken off so long ago that no pull is expected to go on with them."""
    for name in _names(Path(layout.storage) / "ingest"):
        path = Path(layout.storage) / "ingest" / name
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > PARTIAL_BLOB_AGE_S:
                yield Thing(what="partial download", key=name, where=str(path))


def _links(cni_config_dir: str) -> Iterable[Thing]:
    """Ports of the bridges that are configured here whose other end never left the node: a plugin died with them.

    All others go with the namespace that their other end is in.
    """
    top = Path("/sys/class/net")
    numbers = {}
    for name in _names(top):
        with suppress(OSError, ValueError):
            numbers[name] = tuple(int((top / name / each).read_text()) for each in ("ifindex", "iflink"))
    ends = set(numbers.values())
    for bridge in sorted(_bridges(cni_config_dir)):
        for name in _names(top / bridge / "brif"):
            own, other = numbers.get(name, (0, 0))
            if own != other and (other, own) in ends:
                yield Thing(what="link", key=name, where=bridge)


def _mounted(layout: Layout) -> Iterable[Thing]:
    """Mounts below the directories of containers and sandboxes. Pins of namespaces are looked at by themselves."""
    tops = tuple(os.path.realpath(top) + "/" for top in (layout.containers, layout.sandboxes))
    for entry in mounts.mountinfo():
        for top in tops:
            if entry.mountpoint.startswith(top):
                key = entry.mountpoint.removeprefix(top).partition("/")[0]
                yield Thing(what="mount", key=key, where=entry.mountpoint)


def _pins(layout: Layout) -> Mapping[str, int]:
    """What is truly mounted: a file that is left of a pin is none."""
    top = Path(layout.namespaces("x").parent)
    mounted = {entry.mountpoint for entry in mounts.mountinfo() if entry.kind == "nsfs"}
    found = {}
    for sandbox_id in _names(top):
        for name in _names(top / sandbox_id):
            path = str(top / sandbox_id / name)
            if os.path.realpath(path) in mounted:
                with suppress(OSError):  # Let go of meanwhile.
                    found[path] = os.stat(path).st_ino
    return found


def _runtime_states(places: Places) -> Iterable[Thing]:
    """Containers in the runtimes' state directories whose bundle is one of this node's."""
    ours = re.compile(re.escape(f"{places.layout.containers}/".encode()) + f"({_ID})".encode())
    for root in places.runtime_roots:
        for name in _names(Path(root)):
            path = Path(root, name)
            state = path / "state.json" if path.is_dir() else path
            try:
                with state.open("rb") as file:
                    match = ours.search(file.read(STATE_BYTES_MAX))
            except OSError:
                continue  # Of another kind, or gone meanwhile.
            if match is not None:
                yield Thing(what="runtime state", key=match[1].decode(), where=str(path))


def _monitors(layout: Layout) -> Iterable[Thing]:
    """Processes that serve a bundle of this node: by their arguments, or by what they have open."""
    ours = re.compile(re.escape(f"{layout.containers}/".encode()) + f"({_ID})".encode())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        match = ours.search(command) if b"--exit-dir" in command else None
        if match is None and (title := _TITLE.match(command)) is not None and _has_open(entry, ours):
            match = title
        if match is not None:
            yield Thing(what="monitor", key=match[1].decode(), where=entry.name)


def _has_open(process: Path, ours: "re.Pattern[bytes]") -> bool:
    try:
        for entry in (process / "fd").iterdir():
            if ours.search(os.fsencode(os.readlink(entry))):
                return True
        return bool(ours.search(os.fsencode(os.readlink(process / "cwd"))))
    except OSError:
        return False


def _cgroups() -> Iterable[Thing]:
    """Control groups with the names that containers of this runtime have."""
    for hierarchy in Cgroups.detect().hierarchies:
        base = len(hierarchy.mountpoint.parts)
        for top, names, _ in os.walk(hierarchy.mountpoint):
            match = _CGROUP.fullmatch(os.path.basename(top))
            if match is not None:
                yield Thing(what="control group", key=match[1], where=top)
                names.clear()
            elif len(Path(top).parts) - base >= CGROUP_DEPTH_MAX:
                names.clear()


def _reservations(cni_config_dir: str) -> Iterable[Thing]:
    """Addresses that host-local has given away in the networks that are configured here, by whom they are for."""
    for directory in sorted(_reservation_dirs(cni_config_dir)):
        for name in _names(directory)[:RESERVATIONS_MAX]:
            if not name[0].isdigit() and ":" not in name:
                continue
            try:
                owner = (directory / name).read_text(errors="replace").split()
            except OSError:
                continue
            if owner and re.fullmatch(_ID, owner[0]):
                yield Thing(what="address", key=owner[0], where=str(directory / name))


def _reservation_dirs(cni_config_dir: str) -> set[Path]:
    found = set()
    for network, plugin in _plugins(cni_config_dir):
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict) and ipam.get("type") == "host-local":
            found.add(Path(ipam.get("dataDir") or DEFAULT_IPAM_DIR) / network)
    return found


def _bridges(cni_config_dir: str) -> set[str]:
    named = {
        plugin.get("bridge") or DEFAULT_BRIDGE
        for _, plugin in _plugins(cni_config_dir)
        if plugin.get("type") == "bridge"
    }
    return {name for name in named if isinstance(name, str) and "/" not in name}


def _plugins(cni_config_dir: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The plugins that are configured here, with the names of their networks.

    The server reports a configuration that cannot be read; here it only names nothing.
    """
    for name in _names(Path(cni_config_dir))[:CONF_FILES_MAX]:
        with suppress(OSError, ValueError, AttributeError):
            document = json.loads(Path(cni_config_dir, name).read_bytes()[:STATE_BYTES_MAX])
            network, plugins = document.get("name"), document.get("plugins", [document])
            if isinstance(network, str) and isinstance(plugins, list):
                yield from ((network, plugin) for plugin in plugins if isinstance(plugin, dict))
