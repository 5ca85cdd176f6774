"""Layers for tests of the store: made member by member, put in as a fetch would, and compared as trees."""

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from crio_core.errors import OperationError
from crio_core.image.digest import parse_digest
from crio_core.image.resolved import LayerDescriptor
from crio_io.storage.layer_info import layer_name
from crio_io.storage.store import Store
from tests.integration.registry_fixture import Layer


def descriptor(layer: Layer) -> LayerDescriptor:
    return LayerDescriptor(
        digest=parse_digest(layer.digest),
        size_bytes=len(layer.blob),
        media_type=layer.media_type,
        diff_id=parse_digest(layer.diff_id),
    )


async def apply(store: Store, layer: Layer) -> Path:
    """Put a layer's blob where a fetch would, and unpack it; gives the directory with its content."""
    found = descriptor(layer)
    store.blob_path(found).write_bytes(layer.blob)
    await store.apply_layer(found)
    return store.layers / layer_name(found.diff_id) / "fs"


async def refused(store: Store, layer: Layer) -> str:
    """Unpack what must not be unpacked: the reason, when nothing of it is left."""
    with pytest.raises(OperationError) as caught:
        await apply(store, layer)
    assert os.listdir(store.root / "unpacking") == []
    assert os.listdir(store.root / "trash") == []
    assert not store.has_layer(parse_digest(layer.diff_id))
    return caught.value.reason


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    for key, value in more.items():
        setattr(info, key, value)
    return info


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree: kind, mode, owner, times, attributes, content, and names of one inode."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, list[str]] = {}
    for here, directories, files in os.walk(root):
        for name in [*directories, *files, *(["."] if Path(here) == root else [])]:
            path = Path(here) / name
            info = path.lstat()
            content: object = ""
            if stat.S_ISREG(info.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                inodes.setdefault(info.st_ino, []).append(str(path.relative_to(root)))
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            names = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in names)
            device = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
            found[str(path.relative_to(root))] = (
                info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, device, attributes, content,
            )  # fmt: skip
    found["links"] = tuple(sorted(tuple(sorted(same)) for same in inodes.values() if len(same) > 1))
    return found
