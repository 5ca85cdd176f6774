"""Mends what `check` has found, on a node without a server.

The journal is held open meanwhile, so that no server can start. Everything is undone by the same functions that undo it
when a record is removed, and each of them takes what is gone already for success.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from crio_core.errors import OperationError
from crio_core.image.digest import parse_digest
from crio_core.layout import Layout
from crio_core.oci.facts import CgroupDriver
from crio_core.records import LOST, ImageRecord
from crio_io import mounts, namespaces, sandbox_files
from crio_io.bundle import remove_bundle
from crio_io.cgroups import Cgroups
from crio_io.check import Finding
from crio_io.journal import Journal
from crio_io.journal_pair import Delete
from crio_io.looking import Thing
from crio_io.monitor import ConmonMonitor
from crio_io.pod_cgroups import PodCgroups
from crio_io.record_files import RecordFiles
from crio_io.runtime import processes
from crio_io.storage import deep
from crio_io.storage.store import Store

log = logging.getLogger(__name__)


async def repair(
    layout: Layout, monitors: Sequence[ConmonMonitor], findings: Sequence[Finding]
) -> tuple[tuple[Finding, str], ...]:
    """Mend all findings that can be mended; returns those that could not, with the reason.

    Raises:
        OperationError: JOURNAL_UNAVAILABLE, a server is running.
    """
    journal, _ = await Journal.open(Path(layout.journal), Path(layout.journal_copy), RecordFiles(layout))
    store = Store(Path(layout.storage))
    failed: list[tuple[Finding, str]] = []
    try:
        await store.open()
        mender = _Mender(layout, monitors, journal, store)
        for finding in sorted(findings, key=_order):
            if finding.mend and not (failed and finding.thing.where == "/".join(LOST)):
                try:
                    for thing in sorted(finding.with_it, key=_rank):
                        await mender.mend(thing)
                    await mender.mend(finding.thing)
                except OperationError as error:
                    failed.append((finding, error.message))
                except OSError as error:
                    failed.append((finding, str(error)))
    finally:
        await store.aclose()
        await journal.close()
    return tuple(failed)


def _order(finding: Finding) -> int:
    """Whole containers first, then what is left of them, then what they used."""
    if finding.thing.where == "/".join(LOST):
        return len(_ORDER) + 1  # From here on what is left counts as residue: only when nothing failed before.
    return _rank(finding.thing)


_ORDER = ("record", "bundle", "runtime state", "monitor", "mount", "writable layer", "control group")


def _rank(thing: Thing) -> int:
    return _ORDER.index(thing.what) if thing.what in _ORDER else len(_ORDER)


class _Mender:
    def __init__(self, layout: Layout, monitors: Sequence[ConmonMonitor], journal: Journal, store: Store) -> None:
        self._layout = layout
        self._monitors = monitors
        self._journal = journal
        self._store = store

    async def mend(self, thing: Thing) -> None:
        key, where = thing.key, Path(thing.where)
        match thing.what:
            case "bundle" | "runtime state":
                await self._container(key)
            case "monitor":
                await mounts.in_thread(f"end process {where}", _end, int(thing.where), key)
            case "mount":
                await mounts.detach(str(where))
            case "writable layer":
                rootfs = Path(self._layout.rootfs(key))
                await mounts.in_thread(f"unmount {rootfs}", self._store.unmount_rootfs, key, rootfs)
            case "sandbox directory":
                await mounts.in_thread(f"remove sandbox files in {where}", sandbox_files.remove, where)
            case "namespaces":
                await mounts.in_thread(f"unpin namespaces in {where}", namespaces.release, where)
            case "control group":
                await mounts.in_thread(f"remove control group {where}", _remove_cgroup, where)
            case "parent control group":
                await mounts.in_thread(f"forget {where}", _forget_parent, where, key)
            case "exit file" | "address" | "attach link" | "scratch file" | "image record" | "partial download":
                await mounts.in_thread(f"delete {where}", where.unlink, True)
            case "layer":
                await self._store.remove_layer(parse_digest(key))
            case "broken layer" | "half layer":
                await mounts.in_thread(f"delete {where}", deep.delete, where)
            case "record":
                kind, _, record_id = thing.where.partition("/")
                await self._journal.write((Delete(kind=kind, id=record_id),))
            case "image":
                await self._journal.write((Delete(kind=ImageRecord.KIND, id=key),))
            case _:
                return  # The journal is mended by being opened.

    async def _container(self, container_id: str) -> None:
        bundle = Path(self._layout.bundle(container_id))
        for monitor in self._monitors:
            await monitor.delete(container_id, bundle)
        rootfs = Path(self._layout.rootfs(container_id))
        await mounts.in_thread(f"unmount {rootfs}", self._store.unmount_rootfs, container_id, rootfs)
        await mounts.in_thread(f"remove bundle {bundle}", remove_bundle, bundle)


def _end(pid: int, container_id: str) -> None:
    """End a monitor, if the process with its number still is one of this container."""
    facts, command = processes.look(pid), b""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    if facts is not None and container_id.encode() in command:
        processes.kill(pid, facts.start_ticks)


def _forget_parent(note: Path, sandbox_id: str) -> None:
    """A note that is left is of the cgroupfs driver, which alone makes some, and says which parent it is about."""
    parents = PodCgroups(Cgroups.detect(), CgroupDriver.CGROUPFS, note.parent)
    parents.forget(sandbox_id, note.read_text())
    note.unlink(missing_ok=True)


def _remove_cgroup(directory: Path) -> None:
    cgroups = Cgroups.detect()
    for hierarchy in cgroups.hierarchies:
        if directory.is_relative_to(hierarchy.mountpoint):
            path = "/" + str(directory.relative_to(hierarchy.mountpoint))
            cgroups.kill(path)
            cgroups.remove(path)
