"""Reads stored layers from end to end: is every byte what was unpacked, and nothing missing or added?"""

import os
from pathlib import Path

from crio_io import mounts
from crio_io.check import Finding, Kind, Owned
from crio_io.looking import Thing
from crio_io.storage import deep
from crio_io.storage.layer_info import LayerInfo, layers_in
from crio_io.storage.recipe import why_changed

MEND = "deletes it and forgets its images: the next pull fetches this layer again"


async def check_layers(storage: Path, owned: Owned) -> tuple[Finding, ...]:
    """Damage of layers that are in use.

    A layer's archive is made again by its recipe, and its digest compared with the diff id. Of a layer in which one
    entry took another's place the archive is lost, so only the number of its inodes is compared.
    """
    layers = await mounts.in_thread("list layers", layers_in, storage)
    findings = []
    for name, info in layers.items():
        if info is None or not owned.owns(Thing(what="layer", key=str(info.diff_id), where="")):
            continue
        place = storage / "layers" / name
        why = await mounts.in_thread(f"read layer {info.diff_id}", why_damaged, place, info)
        if why:
            findings.append(_finding(str(info.diff_id), place, why, owned))
    return tuple(findings)


def _finding(diff_id: str, place: Path, why: str, owned: Owned) -> Finding:
    thing = Thing(what="layer", key=diff_id, where=os.fspath(place))
    if diff_id in owned.layers:
        return Finding(kind=Kind.DAMAGE, thing=thing, detail=f"{why}; containers use it: remove them first")
    images = sorted(image_id for image_id, layers in owned.images.items() if diff_id in layers)
    with_it = tuple(Thing(what="image", key=image_id, where=diff_id) for image_id in images)
    return Finding(kind=Kind.DAMAGE, thing=thing, detail=why, mend=MEND, with_it=with_it)


def why_damaged(place: Path, info: LayerInfo) -> str:
    """What is wrong with a stored layer, empty for nothing; blocking."""
    try:
        _, inodes = deep.measure(place / "fs")
    except OSError as error:
        return f"it cannot be read: {error}"
    if inodes != info.inodes:
        return f"it has {inodes} inodes, and {info.inodes} were unpacked"
    return "" if info.replaced else why_changed(place, info.diff_id)
