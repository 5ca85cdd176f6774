"""Reads the specifications of CDI devices, which vendors put into directories of the host.

They are looked for at each use, since a vendor's tool may write them anew at any time; a file that has not changed is
not read again. A file that is no specification takes nothing from the others.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from crio_core.errors import OperationError, invalid
from crio_core.oci.cdi import CdiSpec, ContainerEdits, DeviceNode, parse, resolve
from crio_core.values import replace
from crio_io import mounts

SUFFIXES = (".json", ".yaml", ".yml")
FILES_MAX = 1024
FILE_BYTES_MAX = 8 * 1024 * 1024
FAULTS_TOLD_MAX = 3

_Stamp = tuple[int, int, int]


class CdiDevices:
    """The devices that specifications describe.

    Args:
        directories: Where they are, as an option names them; those in a later one come before those in an earlier.
    """

    def __init__(self, directories: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")) -> None:
        self.directories = directories
        self._known: dict[Path, tuple[_Stamp, CdiSpec]] = {}

    async def edits(self, names: tuple[str, ...]) -> ContainerEdits:
        """What the named devices add to a container's spec, with the kind and the numbers of each device node.

        Raises:
            OperationError: FAILED_PRECONDITION for a device that cannot be given, INVALID_ARGUMENT for one whose
                specification is wrong.
        """
        return await mounts.in_thread("look up CDI devices", self._edits, names)

    def _edits(self, names: tuple[str, ...]) -> ContainerEdits:
        faults: list[str] = []
        read: dict[Path, tuple[_Stamp, CdiSpec]] = {}
        specs = [[one for _, one in self._specs(Path(directory), read, faults)] for directory in self.directories]
        self._known = read
        searched = "; not read: ".join((", ".join(self.directories), *faults[:FAULTS_TOLD_MAX]))
        found = resolve(names, specs, searched)
        return replace(found, deviceNodes=tuple(map(_described, found.deviceNodes)))

    def _specs(
        self, directory: Path, read: dict[Path, tuple[_Stamp, CdiSpec]], faults: list[str]
    ) -> Iterator[tuple[_Stamp, CdiSpec]]:
        try:
            paths = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES)[:FILES_MAX]
        except FileNotFoundError:
            return
        except OSError as error:
            faults.append(f"{directory}: {error.strerror}")
            return
        for path in paths:
            try:
                status = path.stat()
                stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._known.get(path)
                read[path] = known if known is not None and known[0] == stamp else (stamp, _read(path))
                yield read[path]
            except OSError as error:
                faults.append(f"{path}: {error.strerror}")
            except OperationError as error:
                faults.append(error.message)


def _read(path: Path) -> CdiSpec:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise invalid(str(path), "a larger file", f"at most {FILE_BYTES_MAX} bytes")
    return parse(str(path), _document(path, data))


def _document(path: Path, data: bytes) -> Any:
    try:
        return orjson.loads(data) if path.suffix == ".json" else _yaml(data)
    except (ValueError, RecursionError) as error:
        raise invalid(str(path), " ".join(str(error).split())[:200], "JSON or YAML") from error


def _yaml(data: bytes) -> Any:
    import yaml  # Only here: most nodes have no such file.

    try:
        return yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _described(node: DeviceNode) -> DeviceNode:
    """A node with what its specification does not say of it."""
    if node.type and (node.type == "p" or (node.major is not None and node.minor is not None)):
        return node
    path = node.hostPath or node.path
    try:
        status = os.stat(path)
    except OSError as error:
        raise invalid(f"CDI device node {node.path}", path, f"a device of the host ({error.strerror})") from error
    kinds = {stat.S_IFBLK: "b", stat.S_IFCHR: "c", stat.S_IFIFO: "p"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "")
    wanted = ("", kind, "u") if kind == "c" else ("", kind)
    if not kind or node.type not in wanted:
        raise invalid(f"CDI device node {node.path}", path, f"a device of type {node.type or 'b, c or p'}")
    return replace(node, type=kind, major=os.major(status.st_rdev), minor=os.minor(status.st_rdev))
