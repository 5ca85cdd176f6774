"""Reads stored layers from end to end: are all files there that were unpacked, and can every byte be read?"""

import os
import stat
from pathlib import Path

from crio_io import mounts
from crio_io.check import Finding, Kind, Owned, Thing
from crio_io.storage.store import LayerInfo, layers_in

READ_BYTES = 1024 * 1024


async def check_layers(storage: Path, owned: Owned) -> tuple[Finding, ...]:
    """Damage of layers that are in use.

    The store keeps of a layer how many inodes it has, not a digest of each file: files that are missing, added or
    unreadable are found, bytes that were changed in place are not.
    """
    layers = await mounts.in_thread("list layers", layers_in, storage)
    findings = []
    for name, info in layers.items():
        if info is None or not owned.owns(Thing(what="layer", key=str(info.diff_id), where="")):
            continue
        place = storage / "layers" / name / "fs"
        why = await mounts.in_thread(f"read layer {info.diff_id}", _why_damaged, place, info)
        if why:
            thing = Thing(what="layer", key=str(info.diff_id), where=os.fspath(place))
            findings.append(Finding(kind=Kind.DAMAGE, thing=thing, detail=why))
    return tuple(findings)


def _why_damaged(place: Path, info: LayerInfo) -> str:
    try:
        inodes = _read_all(place)
    except OSError as error:
        return f"it cannot be read: {error}"
    return "" if inodes == info.inodes else f"it has {inodes} inodes, and {info.inodes} were unpacked"


def _read_all(top: Path) -> int:
    """Read every file once; returns the number of inodes."""
    seen: set[int] = set()
    for directory, directories, names in os.walk(top, onerror=_report):
        seen.add(os.lstat(directory).st_ino)
        for name in (*directories, *names):
            path = os.path.join(directory, name)
            found = os.lstat(path)
            if found.st_ino not in seen and stat.S_ISREG(found.st_mode):
                with open(path, "rb", buffering=0) as file:
                    while file.read(READ_BYTES):
                        pass
            seen.add(found.st_ino)
    return len(seen)


def _report(error: OSError) -> None:
    raise error
