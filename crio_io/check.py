"""Compares what the records say with what there is: residue that nobody owns, damage that somebody will miss.

Only what can be told to be this node's is called residue (`looking.py`). On a live node things come and go meanwhile,
so it is looked twice, and between and after the looks it is asked what is owned: what was there both times and owned
never is residue; what was owned both times and there never is damage.
"""

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from crio_core.errors import LocalError
from crio_core.image.digest import parse_digest
from crio_core.layout import Layout
from crio_core.records import LOST, ContainerRecord, ImageRecord, SandboxRecord, decode
from crio_io import mounts
from crio_io.journal import Journal
from crio_io.looking import Places, Seen, Thing, look
from crio_io.record_files import RecordFiles
from crio_io.storage.layer_info import layer_name

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
        if thing.what in ("layer", "young layer", "broken layer"):
            if any(name.startswith((f"{ContainerRecord.KIND}/", f"{ImageRecord.KIND}/")) for name in self.quarantined):
                return True  # It may be mounted by a container whose record cannot be read, or an image's.
            return thing.key in self.layers or any(thing.key in layers for layers in self.images.values())
        if thing.what == "image record":
            return thing.key in self.images or f"{ImageRecord.KIND}/{thing.key}" in self.quarantined
        return thing.key in self.sandboxes or thing.key in self.containers

    def unreadable(self, thing: Thing) -> bool:
        """Whether this thing is of a record that cannot be read."""
        return any(f"{kind}/{thing.key}" in self.quarantined for kind in (SandboxRecord.KIND, ContainerRecord.KIND))


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


_SHARED = ("control group", "address", "link")
"""Things in places that are shared with other programs, and that only their id tells apart; a link has none."""
_UNDER_WAY = ("half layer", "broken layer", "image record", "partial download")
"""What a server may be making or deleting in this moment."""
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
    "attach link": "deletes it",
    "scratch file": "deletes it",
    "image record": "deletes it",
    "partial download": "deletes it",
}


def _residue(thing: Thing) -> Finding:
    if thing.what == "young layer":
        detail = "of a pull that did not come to its end: the server keeps it for the next pull, for an hour at most"
        return Finding(kind=Kind.NOTE, thing=thing, detail=detail)
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
            if thing.what == "link":
                detail = "both ends are on the node, so no pod uses it; whose it is cannot be told"
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
        layers=frozenset(layer for one in containers.values() for layer in one.every_layer),
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
        if found.kind is Kind.DAMAGE or (not last.owns(found.thing) and not (live and found.thing.what in _UNDER_WAY))
    )
