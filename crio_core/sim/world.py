"""What exists outside the server on a simulated node, and what of it nobody owns.

Three kinds of things, by what ends them. Processes, mounts, namespaces, links, cgroups and whatever lies under the run
directory end with the machine. Files on disk outlive it, as far as they were written back, and so do the journal's
rows. But those are contents of a file that is not synced, and most of the rest is names in directories, which the file
system writes in its own time: a power cut takes the newest of either away, back to its last sync, and neither waits for
the other. Syncing the journal also makes durable what was changed elsewhere before, as journalling file systems do.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from crio_core.events import ImageResolved, StoredLayer
from crio_core.node.specs import infra_id
from crio_core.records import ContainerRecord, ImageRecord, Record, SandboxRecord, decode
from crio_core.sim.chance import Chance

K = TypeVar("K")
V = TypeVar("V")
Row = tuple[str, str]
ROWS_KEPT_MAX = 256
NEVER_NS = 1 << 62
GARBLED = b"\0 no record"


@lru_cache(ROWS_KEPT_MAX)
def row_of(kind: str, data: bytes) -> Record:
    """What a row says. Most are looked at many times before they change: at each crash, and at rest."""
    return decode(kind, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What a container's process does of itself, and how it answers signals.

    Args:
        ends_after_ns: How long it runs when nobody stops it; `NEVER_NS` for ever.
        code: Its exit code then.
        deaf: It ignores the stop signal.
        term_ns: How long it takes to end after the stop signal.
        stuck_ns: How long it survives SIGKILL, in uninterruptible sleep; `NEVER_NS` until the world lets go of it.
    """

    ends_after_ns: int = NEVER_NS
    code: int = 0
    deaf: bool = False
    term_ns: int = 0
    stuck_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process ended: its code, the time of day, and whether the kernel killed it for want of memory."""

    code: int
    at_ns: int
    oom: bool = False


class Process:
    """A container's first process."""

    __slots__ = ("alive", "code", "container_id", "doomed", "leaving", "life", "pid", "running", "start_ticks")

    def __init__(self, container_id: str, pid: int, start_ticks: int, life: Life) -> None:
        self.container_id = container_id
        self.pid = pid
        self.start_ticks = start_ticks
        self.life = life
        self.running = False
        """False while the runtime holds it before the exec."""
        self.alive = True
        self.leaving = False
        """A signal was delivered of which it will end."""
        self.doomed = False
        """That was SIGKILL, and will work when the kernel lets it."""
        self.code: int | None = None


class World:
    """Everything outside the core. Keys are the ids of sandboxes and containers, and diff ids of layers."""

    def __init__(self, chance: Chance, images: Mapping[str, ImageResolved]) -> None:
        self._chance = chance
        self.images = images
        """What the registry has, by reference."""
        self.boots = 1
        self._next_pid = 100
        self._next_inode = 4026532000
        self._unsynced_rows: list[Callable[[], object]] = []
        self._unsynced_files: list[Callable[[], object]] = []
        # What ends with the machine.
        self.files: dict[str, bool] = {}
        """Sandbox directories; True when shared memory is mounted in them."""
        self.pins: dict[str, dict[str, int]] = {}
        self.links: dict[str, int] = {}
        """Network interfaces of pods, with the inode of the namespace that holds the other end."""
        self.mounts: dict[str, tuple[str, ...]] = {}
        """Mounted root filesystems, with their layers."""
        self.bundles: dict[str, str] = {}
        """Directories of containers, each with what its spec calls the sandbox."""
        self.monitors: dict[str, int] = {}
        self.runtime: dict[str, bool] = {}
        """Containers that the runtime knows."""
        self.cgroups: dict[str, dict[str, Any]] = {}
        """Those of containers, with the limits that were changed, by controller."""
        self.processes: dict[str, Process] = {}
        self.execs: dict[str, str] = {}
        """Containers of commands that run for a client, by session. They outlive the first process here, as they do
        where a pod's containers share their processes."""
        self.orphans: dict[str, bool] = {}
        """Containers with commands of a server that died; they end with the container's cgroup at the latest."""
        # What is on disk.
        self.rows: dict[Row, bytes] = {}
        self.aside: dict[Row, Record] = {}
        """What rows said that cannot be read any more, or are lost: whoever owned something owns it still."""
        self.addresses: dict[str, str] = {}
        self.addresses_given = 1
        """Addresses that the plugins have given away."""
        self.writable: dict[str, bool] = {}
        """Writable layers of containers."""
        self.exits: dict[str, End] = {}
        """Exit files, with what the monitor saw of a want of memory."""
        self.layers: dict[str, StoredLayer] = {}
        self.proven: dict[tuple[str, str], bool] = {}
        """Blobs that were seen to unpack to a layer, with its diff id."""
        self.downloads: dict[str, bool] = {}
        """Blobs that were downloaded and not unpacked; True when complete. A cache: nobody owns it."""
        self.rotten: dict[str, bool] = {}
        """Blobs that are not what their digest says; whoever unpacks one finds out."""
        self.old_containers: tuple[str, ...] = ()
        """Whose bundles, writable layers and exit files there were when the server started."""
        # What only the simulation knows.
        self.network_owed: dict[str, int] = {}
        """Sandboxes whose network was asked for since its last successful release, with the number of times."""
        self.ends: dict[str, End] = {}
        """How processes really ended."""
        self.unknowable: dict[str, bool] = {}
        """Containers whose end nobody could write down, or whose exit file a power cut may have taken."""
        self.damaged: dict[str, bool] = {}
        """Layers that the store once found damaged, and dropped."""
        self.thirsty: dict[str, bool] = {}
        """Containers in which the kernel killed some process for want of memory."""
        self.lost: dict[str, bool] = {}
        """Sandboxes whose namespaces somebody else unmounted."""
        self.unsaved: dict[str, bool] = {}
        """Records whose writing or deletion failed at least once."""
        self.struck: dict[str, bool] = {}
        """Sandboxes and containers that something befell which the server did not order: an exit, a kill, a loss."""
        self.violations: list[str] = []
        """What a program must never ask of a node, and did."""

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def next_pid(self) -> int:
        self._next_pid += 1
        return self._next_pid

    def next_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode

    # --- disk -------------------------------------------------------------------------------------------------

    def write(self, table: dict[K, V], key: K, value: V) -> None:
        """Put something on disk; a power cut may take it away until the next sync."""
        unsynced = self._log_of(table)
        if key in table:
            before = table[key]
            unsynced.append(lambda: table.__setitem__(key, before))
        else:
            unsynced.append(lambda: table.pop(key, None))
        table[key] = value

    def erase(self, table: dict[K, V], key: K) -> None:
        """Take something from disk, if it is there."""
        if key in table:
            before = table.pop(key)
            self._log_of(table).append(lambda: table.__setitem__(key, before))

    def _log_of(self, table: object) -> list[Callable[[], object]]:
        return self._unsynced_rows if table is self.rows else self._unsynced_files

    def sync_files(self) -> None:
        """Everything written so far survives a power cut, rows of the journal apart."""
        self._unsynced_files.clear()

    def sync_journal(self) -> None:
        """Everything written so far survives a power cut."""
        self._unsynced_rows.clear()
        self._unsynced_files.clear()

    def forget_past(self) -> None:
        """Everything is on disk, and of what is gone nothing is remembered: for a world that lasts."""
        self.sync_journal()
        for table in (self.ends, self.unknowable, self.struck, self.thirsty):
            for key in [key for key in table if key not in self.runtime and key not in self.writable]:
                table.pop(key)

    # --- ends -------------------------------------------------------------------------------------------------

    def kill_monitor(self, container_id: str) -> None:
        """The monitor dies; its container runs on, and nobody will write down how it ends."""
        self.monitors.pop(container_id, None)
        self.unknowable[container_id] = True

    def lose_namespaces(self, sandbox_id: str) -> None:
        """Somebody unmounts a sandbox's namespaces."""
        self.pins.pop(sandbox_id, None)
        self.links.pop(sandbox_id, None)
        self.lost[sandbox_id] = True
        self.struck[sandbox_id] = True

    def orphan_execs(self) -> None:
        """The server dies; commands that it ran for clients do not."""
        self.orphans.update(dict.fromkeys(self.execs.values(), True))
        self.execs.clear()

    def damage(self, row: Row, *, lose: bool) -> None:
        """A row is garbled in every copy, or lost."""
        self.aside[row] = row_of(row[0], self.rows[row])
        self.struck[row[1]] = True
        if lose:
            del self.rows[row]
        else:
            self.rows[row] = GARBLED

    def still_aside(self) -> None:
        """What was written anew since, or came to be as it was before, is not set aside any more."""
        for row in tuple(self.aside):
            if self.rows.get(row, GARBLED) != GARBLED:
                del self.aside[row]

    def repair(self) -> None:
        """What `crio check --repair` does: each record that is set aside goes with everything that is there of it."""
        self.still_aside()
        for kind, key in self.aside:
            self.rows.pop((kind, key), None)
            if kind == ImageRecord.KIND:
                continue
            # The containers of a sandbox that is gone are removed by the next server.
            its = (one for one, named in self.bundles.items() if named in (key, infra_id(key)))
            self.struck.update(dict.fromkeys(its, True))
            for table in (self.files, self.pins, self.links, self.addresses, self.network_owed, self.mounts):
                table.pop(key, None)
            mine = (self.bundles, self.monitors, self.runtime, self.cgroups, self.orphans, self.writable, self.exits)
            for other in mine:
                other.pop(key, None)
            if (process := self.processes.pop(key, None)) is not None:
                process.alive = False
        self.aside.clear()
        # A power cut may have taken back what was written over a garbled row.
        for row in [row for row, data in self.rows.items() if data == GARBLED]:
            del self.rows[row]

    def power_cut(self) -> None:
        """The machine stops at once and boots again: new boot id, numbers begin anew, the run directory is empty."""
        for unsynced in (self._unsynced_rows, self._unsynced_files):
            lost = self._chance.below(len(unsynced) + 1)
            for undo in reversed(unsynced[len(unsynced) - lost :]):
                undo()
            unsynced.clear()
        for process in self.processes.values():
            process.alive = False
            self.unknowable[process.container_id] = True
        self.unknowable.update(dict.fromkeys(self.ends, True))
        for table in (self.files, self.pins, self.links, self.mounts, self.bundles, self.monitors, self.runtime):
            table.clear()
        for ended in (self.cgroups, self.processes, self.execs, self.orphans):
            ended.clear()
        self.boots += 1
        # Numbers are used again after a boot, which is what makes remembering them dangerous.
        self._next_pid = 100
        self._next_inode = 4026532000

    # --- questions --------------------------------------------------------------------------------------------

    def alive(self, container_id: str) -> bool:
        """Whether the container's first process exists."""
        process = self.processes.get(container_id)
        return process is not None and process.alive

    def records(self) -> tuple[Record, ...]:
        """What the journal holds, as far as it can be read."""
        return tuple(row_of(kind, data) for (kind, _), data in self.rows.items() if data != GARBLED)

    def residue(self, records: Iterable[Record]) -> tuple[str, ...]:
        """Everything that neither these records own nor those set aside, each with its kind and key, in order."""
        sandboxes: dict[str, bool] = {}
        containers: dict[str, bool] = {}
        layers: dict[str, bool] = {}
        for record in (*records, *self.aside.values()):
            match record:
                case SandboxRecord():
                    sandboxes[record.id] = True
                case ContainerRecord():
                    containers[record.id] = True
                    layers.update(dict.fromkeys(record.every_layer, True))
                case ImageRecord():
                    layers.update(dict.fromkeys(record.layers, True))
        found: list[str] = []
        for kind, table, owners in self._kinds(sandboxes, containers, layers):
            found += [f"{kind} {key}" for key in table if key not in owners]
        return tuple(sorted(found))

    def _kinds(
        self, sandboxes: Mapping[str, bool], containers: Mapping[str, bool], layers: Mapping[str, bool]
    ) -> tuple[tuple[str, Mapping[str, object], Mapping[str, bool]], ...]:
        return (
            ("sandbox files", self.files, sandboxes),
            ("namespaces", self.pins, sandboxes),
            ("link", self.links, sandboxes),
            ("address", self.addresses, sandboxes),
            ("network owed", self.network_owed, sandboxes),
            ("mount", self.mounts, containers),
            ("writable layer", self.writable, containers),
            ("bundle", self.bundles, containers),
            ("monitor", self.monitors, containers),
            ("runtime state", self.runtime, containers),
            ("cgroup", self.cgroups, containers),
            ("process", {key: one for key, one in self.processes.items() if one.alive}, containers),
            ("command", self.orphans, containers),
            ("exit file", self.exits, containers),
            ("layer", self.layers, layers),
        )
