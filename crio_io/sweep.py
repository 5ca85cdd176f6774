"""Removes what lies under the node's own directories and no record owns: what a crash left between two steps."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import OperationError
from crio_core.layout import Layout
from crio_io import mounts, namespaces, sandbox_files
from crio_io.bundle import remove_bundle
from crio_io.images import ImageStore
from crio_io.monitor import ConmonMonitor

log = logging.getLogger(__name__)


class Sweeper:
    """Compares the directories with the records, and removes the difference.

    Only names below the node's own roots are ever looked at, so nothing of anybody else can be taken; and only what
    was there when the node started, so nothing that is being made now.
    """

    def __init__(self, layout: Layout, images: ImageStore, monitors: Sequence[ConmonMonitor]) -> None:
        self._layout = layout
        self._images = images
        self._monitors = monitors
        self._found: dict[PurePosixPath, tuple[str, ...]] = {}

    async def look(self) -> None:
        """Note what is there. Before the node serves: what comes later is never swept."""
        self._found = await mounts.in_thread("list the node's directories", self._look)

    def _look(self) -> dict[PurePosixPath, tuple[str, ...]]:
        layout = self._layout
        writable = self._images.writable_layers
        pins = layout.namespaces("x").parent
        places = (layout.containers, writable, pins, layout.sandboxes, layout.exits, layout.attach, layout.scratch)
        return {place: _names(Path(place)) for place in places}

    async def sweep(self, order: fx.SweepStorage) -> ev.StorageSwept:
        """Remove what is not in the order; what cannot be removed is logged and found again by the next server."""
        removed: list[str] = []
        bundles = self._unowned(self._layout.containers, order.containers)
        writable = self._unowned(self._images.writable_layers, order.containers)
        for container_id in dict.fromkeys((*bundles, *writable)):
            await self._remove_container(container_id, removed)
        for sandbox_id in self._unowned(self._layout.namespaces("x").parent, order.sandboxes):
            await self._attempt(f"namespaces {sandbox_id}", removed, namespaces.release, self._ns(sandbox_id))
        for sandbox_id in self._unowned(self._layout.sandboxes, order.sandboxes):
            directory = Path(self._layout.sandbox(sandbox_id))
            await self._attempt(f"sandbox {sandbox_id}", removed, sandbox_files.remove, directory)
        await mounts.in_thread("remove exit files, links and scratch files", self._remove_small, order)
        removed += await self._images.sweep()
        self._found = {}  # Nothing of it is looked at again.
        for one in removed:
            log.info("swept: %s", one)
        return ev.StorageSwept(removed=tuple(removed))

    def _remove_small(self, order: fx.SweepStorage) -> None:
        """Exit files, links to attach sockets, and files of the execs of a server that was killed."""
        for container_id in self._unowned(self._layout.exits, order.containers):
            _unlink(Path(self._layout.exits, container_id))
        for name in self._unowned(self._layout.attach, order.containers):
            link = Path(self._layout.attach, name)
            if is_attach_link(self._layout, link):
                _unlink(link)
        for name in self._unowned(self._layout.scratch, ("cgroups",)):
            _unlink(Path(self._layout.scratch, name))

    def _ns(self, sandbox_id: str) -> Path:
        return Path(self._layout.namespaces(sandbox_id))

    def _unowned(self, directory: PurePosixPath, owned: Iterable[str]) -> list[str]:
        known = set(owned)
        return [name for name in self._found.get(directory, ()) if name not in known]

    async def _remove_container(self, container_id: str, removed: list[str]) -> None:
        bundle = Path(self._layout.bundle(container_id))
        try:
            for monitor in self._monitors:
                await monitor.delete(container_id, bundle)
            await mounts.in_thread(f"unmount container {container_id}", self._images.unmount_rootfs, container_id)
            await mounts.in_thread(f"remove bundle {bundle}", remove_bundle, bundle)
        except OperationError as error:
            log.warning("container %s is in no record and cannot be removed: %s", container_id, error.message)
        else:
            removed.append(f"container {container_id}")

    async def _attempt(self, what: str, removed: list[str], work: Callable[[Path], None], place: Path) -> None:
        try:
            await mounts.in_thread(f"remove {place}", work, place)
        except OperationError as error:
            log.warning("%s is in no record and cannot be removed: %s", what, error.message)
        else:
            removed.append(what)


def is_attach_link(layout: Layout, path: Path) -> bool:
    """Whether this leads to the attach socket of one of this node's containers; others may use the directory too."""
    try:
        return os.readlink(path).startswith(f"{layout.containers}/")
    except OSError:
        return False


def _unlink(path: Path) -> None:
    """One file that stays must not fail the sweep: each try would end at the same one."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s is in no record and cannot be removed: %s", path, error)


def _names(directory: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in directory.iterdir())) if directory.is_dir() else ()
