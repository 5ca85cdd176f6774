"""Compares what the records say with what there is: residue that nobody owns, damage that somebody will miss.

Only what can be told to be this node's is called residue: what lies below its own directories, and processes, runtime
state and control groups that lead there. Looking changes nothing. On a live node things come and go meanwhile, so it is
looked twice, and between and after the looks it is asked what is owned: what was there both times and owned never is
residue; what was owned both times and there never is damage.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from crio_core.errors import LocalError
from crio_core.image.digest import parse_digest
from crio_core.layout import Layout
from crio_core.records import LOST, ContainerRecord, ImageRecord, SandboxRecord, decode
from crio_io import mounts
from crio_io.cgroups import Cgroups
from crio_io.journal import Journal
from crio_io.record_files import RecordFiles
from crio_io.storage.store import LayerInfo, layer_name, layers_in
from crio_io.witness import is_unwatched

CGROUP_DEPTH_MAX = 8
STATE_BYTES_MAX = 1024 * 1024
CONF_FILES_MAX = 256
RESERVATIONS_MAX = 100_000
DEFAULT_IPAM_DIR = "/var/lib/cni/networks"
_ID = "[0-9a-f]{64}"
_CGROUP = re.compile(rf"crio-({_ID})(?:\.scope)?")
_TITLE = re.compile(rf"conmon -c ({_ID}) ".encode())

ALIVE = ("created", "starting", "running", "stopping", "killing")
"""States of a container that has a process."""
PINNED = ("ready",)
"""States of a sandbox whose namespaces are there."""


class Kind(Enum):
    """What a finding is."""

    RESIDUE = "residue"
    """It is there, and no record owns it."""
    DAMAGE = "damage"
    """It is owned or needed, and it is not there or not whole."""
    NOTE = "note"
    """Worth knowing; nothing is wrong, or it cannot be told whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Thing:
    """Something on this machine: `what` is a noun, `key` the id that it belongs to or has, `where` its path or pid."""

    what: str
    key: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result. `mend` says what repair does about it; empty when repair does nothing.

    `with_it` is what repair removes together with the thing.
    """

    kind: Kind
    thing: Thing
    detail: str
    mend: str = ""
    with_it: tuple[Thing, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """What the records own.

    Args:
        sandboxes: States by id.
        containers: States by id.
        pins: Inodes of pinned namespaces of this boot by path, for each sandbox whose namespaces must be there.
        images: Diff ids by image id.
        layers: Layers that are known besides, such as those being fetched.
        quarantined: Reasons by `KIND/ID` of the records that cannot be read; what has such an id is owned.
        stale: Ids of what is of another boot: of it nothing is expected below the run directory.
    """

    sandboxes: Mapping[str, str] = field(default_factory=dict)
    containers: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layers: frozenset[str] = frozenset()
    quarantined: Mapping[str, str] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()

    def owns(self, thing: Thing) -> bool:
        """Whether any record owns this thing, be it one that cannot be read."""
        if self.unreadable(thing):
            return True
        if thing.what in ("layer", "broken layer"):
            return thing.key in self.layers or any(thing.key in layers for layers in self.images.values())
        return thing.key in self.sandboxes or thing.key in self.containers

    def unreadable(self, thing: Thing) -> bool:
        """Whether this thing is of a record that cannot be read."""
        return any(f"{kind}/{thing.key}" in self.quarantined for kind in (SandboxRecord.KIND, ContainerRecord.KIND))


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


def compare(first: Owned, looks: tuple[Seen, Seen], last: Owned) -> tuple[Finding, ...]:
    """What two looks and what is owned before, and between or after them, prove."""
    both = looks[0].things & looks[1].things
    findings = [_residue(thing) for thing in sorted(both) if not first.owns(thing) and not last.owns(thing)]
    # What is known to be ours by an unowned thing makes control groups and reservations with its id ours too.
    known = {one.thing.key for one in findings if one.thing.what not in _SHARED}
    findings = list(_attributed(findings, known))
    findings += _missing_layers(first, looks, last)
    findings += _missing_pins(first, looks, last)
    findings += _missing_bundles(first, looks, last)
    findings += _unreadable(first, both, last)
    findings += _missing_monitors(last, looks)
    return tuple(findings)


_SHARED = ("control group", "address")
"""Things in places that are shared with other programs, and that only their id tells apart."""
_MENDS = {
    "bundle": "deletes the container in its runtime, its monitor, its mounts and this directory",
    "writable layer": "unmounts and deletes it",
    "exit file": "deletes it",
    "sandbox directory": "unmounts its shared memory and deletes it",
    "namespaces": "unmounts and deletes them",
    "mount": "unmounts it",
    "runtime state": "deletes the container by force",
    "monitor": "ends it",
    "layer": "deletes it",
    "broken layer": "deletes it",
    "half layer": "deletes it",
    "control group": "kills what is in it and removes it",
    "parent control group": "removes it when nothing is in it any more, and the note about it",
    "address": "gives it back",
}


def _residue(thing: Thing) -> Finding:
    return Finding(kind=Kind.RESIDUE, thing=thing, detail="no record owns it", mend=_MENDS.get(thing.what, ""))


def _attributed(findings: Iterable[Finding], known: set[str]) -> Iterable[Finding]:
    """Of things in shared places only those with a known id are this node's; of the others one note an id will do."""
    noted: set[tuple[str, str]] = set()
    for one in findings:
        thing = one.thing
        if thing.what not in _SHARED or thing.key in known:
            yield one
        elif (thing.what, thing.key) not in noted:
            noted.add((thing.what, thing.key))
            detail = "not this node's, as far as can be told: nothing else here has this id"
            yield Finding(kind=Kind.NOTE, thing=thing, detail=detail)


def _missing_layers(first: Owned, looks: tuple[Seen, Seen], last: Owned) -> list[Finding]:
    findings = []
    for image_id in sorted(set(first.images) & set(last.images)):
        for diff_id in last.images[image_id]:
            name = layer_name(parse_digest(diff_id))
            if any(seen.layers.get(name) is not None for seen in looks):
                continue
            broken = any(name in seen.layers for seen in looks)
            detail = f"layer {diff_id} is {'not whole' if broken else 'missing'}"
            thing = Thing(what="image", key=image_id, where=diff_id)
            findings.append(
                Finding(
                    kind=Kind.DAMAGE, thing=thing, detail=detail, mend="forgets the image, so that it is pulled anew"
                )
            )
    return findings


def _missing_pins(first: Owned, looks: tuple[Seen, Seen], last: Owned) -> list[Finding]:
    findings = []
    for sandbox_id, pins in sorted(last.pins.items()):
        if first.sandboxes.get(sandbox_id) not in PINNED or last.sandboxes.get(sandbox_id) not in PINNED:
            continue
        if sandbox_id in last.stale:
            continue
        for path, inode in pins.items():
            if all(seen.pins.get(path) != inode for seen in looks):
                thing = Thing(what="namespaces", key=sandbox_id, where=path)
                detail = "the pod is ready and this namespace is not there: stop and remove the pod"
                findings.append(Finding(kind=Kind.DAMAGE, thing=thing, detail=detail))
    return findings


def _missing_bundles(first: Owned, looks: tuple[Seen, Seen], last: Owned) -> list[Finding]:
    """Of a container with a process, the bundle and the mounted root filesystem must be there."""
    findings = []
    for container_id, state in sorted(last.containers.items()):
        if container_id in last.stale or state not in ALIVE or first.containers.get(container_id) not in ALIVE:
            continue
        for what in ("bundle", "mount"):
            if not any(thing.what == what and thing.key == container_id for seen in looks for thing in seen.things):
                noun = "bundle" if what == "bundle" else "root filesystem"
                thing = Thing(what=what, key=container_id, where="")
                detail = f"the container is {state} and its {noun} is not there: remove the container"
                findings.append(Finding(kind=Kind.DAMAGE, thing=thing, detail=detail))
    return findings


def _unreadable(first: Owned, both: frozenset[Thing], last: Owned) -> list[Finding]:
    """Each record that cannot be read, with what there is of it: only together they may go."""
    findings = []
    for name, reason in sorted(last.quarantined.items()):
        if name not in first.quarantined:
            continue
        kind, _, record_id = name.partition("/")
        of_it = tuple(sorted(thing for thing in both if thing.key == record_id and thing.what in _MENDS))
        if (kind, record_id) == LOST:
            mend = "takes everything that is in no record for residue, from then on"
        elif of_it:
            things = ", ".join(f"{thing.what} {thing.where}" for thing in of_it)
            mend = f"forgets the {kind}, and removes with it: {things}"
        else:
            mend = f"forgets the {kind}; nothing is there of it"
        thing = Thing(what="record", key=record_id, where=name)
        findings.append(Finding(kind=Kind.DAMAGE, thing=thing, detail=reason, mend=mend, with_it=of_it))
    return findings


def _missing_monitors(last: Owned, looks: tuple[Seen, Seen]) -> list[Finding]:
    """A monitor that was killed cannot be had back: nobody else is the parent of the container's process."""
    detail = "the container runs without one, so nobody writes its log or will see its exit code: restart it"
    return [
        Finding(kind=Kind.DAMAGE, thing=Thing(what="monitor", key=container_id, where=""), detail=detail)
        for container_id in sorted(looks[0].unwatched & looks[1].unwatched)
        if last.containers.get(container_id) in ALIVE
    ]


# --- what the records own, without a server -----------------------------------------------------------------------


async def owned_by_journal(layout: Layout, boot_id: str) -> tuple[Owned, tuple[Finding, ...]]:
    """Read a journal that no server has open: a copy of it, so that nothing is mended on the way.

    Raises:
        OperationError: It cannot be read, or it is in use.
    """
    path, copy, files = Path(layout.journal), Path(layout.journal_copy), RecordFiles(layout)
    if not path.exists() and not copy.exists() and not files.traces():
        return Owned(), ()
    with tempfile.TemporaryDirectory(prefix="crio-check-") as scratch:
        first, second = Path(scratch) / "first", Path(scratch) / "second"
        await mounts.in_thread(f"copy {path}", _copy_journal, path, first)
        await mounts.in_thread(f"copy {copy}", _copy_journal, copy, second)
        journal, loaded = await Journal.open(first, second, files, keep_files=False)
        await journal.close()
    mend = "is done by the server when it starts"
    findings = [
        _journal_damage(path, repair.replace(str(first), str(path)).replace(str(second), str(copy)), mend)
        for repair in loaded.repairs
    ]
    quarantined = {f"{kind}/{name}": why for kind, name, why in loaded.quarantined}
    records = []
    for row in loaded.rows:
        try:
            records.append(decode(row.kind, row.data))
        except LocalError as error:
            quarantined[f"{row.kind}/{row.id}"] = str(error)
    return replace(owned_by_records(records, boot_id), quarantined=quarantined), tuple(findings)


def _journal_damage(path: Path, detail: str, mend: str) -> Finding:
    return Finding(kind=Kind.DAMAGE, thing=Thing(what="journal", key="", where=str(path)), detail=detail, mend=mend)


def _copy_journal(path: Path, target: Path) -> None:
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(path.with_name(path.name + suffix), target.with_name(target.name + suffix))


def owned_by_records(records: Iterable[SandboxRecord | ContainerRecord | ImageRecord], boot_id: str) -> Owned:
    """What these records own; what has another boot id is stale."""
    sandboxes: dict[str, SandboxRecord] = {}
    containers: dict[str, ContainerRecord] = {}
    images: dict[str, tuple[str, ...]] = {}
    for record in records:
        match record:
            case SandboxRecord():
                sandboxes[record.id] = record
            case ContainerRecord():
                containers[record.id] = record
            case ImageRecord():
                images[record.id] = record.layers
    stale = {key for key, one in sandboxes.items() if one.boot_id != boot_id}
    stale |= {key for key, one in containers.items() if one.sandbox_id in stale or one.sandbox_id not in sandboxes}
    return Owned(
        sandboxes={key: one.state.value for key, one in sandboxes.items()},
        containers={key: one.state.value for key, one in containers.items()},
        pins={key: {pin.path: pin.inode for pin in one.pins} for key, one in sandboxes.items() if key not in stale},
        images=images,
        layers=frozenset(layer for one in containers.values() for layer in one.layers),
        stale=frozenset(stale),
    )


async def check(places: Places, owned: Callable[[], Awaitable[Owned]], *, live: bool) -> tuple[Finding, ...]:
    """Look twice, and ask before, between and after what is owned.

    Args:
        live: A server works meanwhile: a layer that is being unpacked, or deleted, is no residue then.
    """
    first = await owned()
    one = await look(places)
    between = await owned()
    two = await look(places)
    findings = compare(first, (one, two), between)
    last = await owned()
    return tuple(
        found
        for found in findings
        if found.kind is Kind.DAMAGE
        or (not last.owns(found.thing) and not (live and found.thing.what in ("half layer", "broken layer")))
    )


# --- looking ------------------------------------------------------------------------------------------------------


def _look(places: Places) -> Seen:
    layout = places.layout
    things: set[Thing] = set()
    directories = (
        ("bundle", Path(layout.containers)),
        ("sandbox directory", Path(layout.sandboxes)),
        ("namespaces", Path(layout.namespaces("x").parent)),
        ("exit file", Path(layout.exits)),
        ("writable layer", Path(layout.storage) / "containers"),
        ("half layer", Path(layout.storage) / "unpacking"),
        ("half layer", Path(layout.storage) / "trash"),
    )
    for what, directory in directories:
        for name in _names(directory):  # A file that is being written has more behind its id.
            things.add(Thing(what=what, key=name.partition(".")[0], where=str(directory / name)))
    parents = Path(layout.scratch) / "cgroups"
    for name in _names(parents):
        things.add(Thing(what="parent control group", key=name.rpartition(".")[2], where=str(parents / name)))
    layers = layers_in(Path(layout.storage))
    for name, info in layers.items():
        where = str(Path(layout.storage) / "layers" / name)
        if info is not None:
            things.add(Thing(what="layer", key=str(info.diff_id), where=where))
        else:
            things.add(Thing(what="broken layer", key=name, where=where))
    things.update(_mounted(layout))
    things.update(_runtime_states(places))
    things.update(_monitors(layout))
    things.update(_cgroups())
    things.update(_reservations(places.cni_config_dir))
    unwatched = {name for name in _names(Path(layout.containers)) if is_unwatched(Path(layout.bundle(name)))}
    return Seen(things=frozenset(things), pins=_pins(layout), layers=layers, unwatched=frozenset(unwatched))


def _names(directory: Path) -> Sequence[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()


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
    for name in _names(Path(cni_config_dir))[:CONF_FILES_MAX]:
        try:
            document = json.loads(Path(cni_config_dir, name).read_bytes()[:STATE_BYTES_MAX])
            for plugin in document.get("plugins", [document]):
                ipam = plugin.get("ipam", {})
                if ipam.get("type") == "host-local":
                    found.add(Path(ipam.get("dataDir") or DEFAULT_IPAM_DIR) / document["name"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # The server reports a configuration that cannot be read; here it only names no directory.
    return found
