"""Reads what containers use: control groups, network counters, writable layers.

One look at a container serves everybody who asks within a second. Writable layers are counted far more seldom, since
counting means walking through them.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType

import anyio

from crio_core.counters import Counters, counters_of_v1, counters_of_v2
from crio_core.oci.cgroups import parent_directory
from crio_core.oci.facts import CgroupDriver
from crio_core.records import ContainerRecord
from crio_core.stats import (
    NS_PER_S,
    Interface,
    LayerUsage,
    Usage,
    interfaces_of,
    nano_cores,
    usage_of_v1,
    usage_of_v2,
)
from crio_io import mounts
from crio_io.cgroups import Cgroups, Hierarchy, Mode
from crio_io.storage.store import Store

FRESH_NS = NS_PER_S
KNOWN_MAX = 20_000
"""Containers and pods whose last look is kept to compare with; the oldest are forgotten."""
LAYER_FRESH_NS = 15 * NS_PER_S
LAYER_SHARE = 20
"""A layer is counted again at the earliest when this many times the time that it took has passed."""
FILE_BYTES_MAX = 1 << 16
"""Of one counter file; memory.stat, the longest, has about 2 kB."""
LAYERS_BUDGET_NS = NS_PER_S // 5
"""Once counting has taken this long within one call, what is left waits for the next."""

_V1_FILES: Mapping[str, tuple[str, ...]] = {
    "cpuacct": ("cpuacct.usage",),
    "memory": (
        "memory.stat",
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.memsw.usage_in_bytes",
        "memory.memsw.limit_in_bytes",
    ),
    "pids": ("pids.current",),
}
_V2_FILES = (
    *("cpu.stat", "memory.stat", "memory.current", "memory.max"),
    *("memory.swap.current", "memory.swap.max", "pids.current"),
    *("cpu.pressure", "memory.pressure", "io.pressure"),
)
_V1_COUNTERS: Mapping[str, tuple[str, ...]] = {
    "cpuacct": ("cpuacct.stat",),
    "cpu": ("cpu.stat",),
    "memory": ("memory.stat", "memory.max_usage_in_bytes", "memory.failcnt", "memory.oom_control"),
    "blkio": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
}
_V2_COUNTERS = ("cpu.stat", "memory.stat", "memory.peak", "memory.events", "io.stat")


_Places = list[tuple[Hierarchy, str]]
"""The directories of one control group: the hierarchy of each, and its path there."""
_Finding = Callable[[], _Places]


class StatsReader:
    """Looks at running containers, and at pods.

    Args:
        cgroups: The host's hierarchies.
        driver: How the groups of pods are named.
        store: Has the writable layers.
    """

    def __init__(self, cgroups: Cgroups, driver: CgroupDriver, store: Store) -> None:
        self._cgroups = cgroups
        self._driver = driver
        self._store = store
        self._looking = anyio.Lock()
        """Who asks while somebody looks waits for that look, and shares it."""
        self._last: dict[str, Usage] = {}
        self._layers: dict[str, tuple[LayerUsage, int, int]] = {}
        """What a layer had, when it was counted on the monotonic clock, and how long that took."""

    @property
    def filesystem(self) -> str:
        """Where writable layers are; the same word as in ImageFsInfo, by which a kubelet finds the file system."""
        return str(self._store.root)

    async def usage(
        self, records: Sequence[ContainerRecord], parents: Mapping[str, str] = MappingProxyType({})
    ) -> Mapping[str, Usage]:
        """What containers and pods use now, by id; what has no process, or no group, is left out.

        Args:
            records: The containers.
            parents: Of each pod that is asked for, its control group, as its request names it.
        """
        async with self._looking:
            return await mounts.in_thread("read control groups", self._usage, tuple(records), parents)

    def _usage(self, records: tuple[ContainerRecord, ...], parents: Mapping[str, str]) -> dict[str, Usage]:
        found: dict[str, Usage] = {}
        for key, places in self._wanted(records, parents):
            last = self._last.get(key)
            if last is not None and time.monotonic_ns() - last.at_ns < FRESH_NS:
                found[key] = last
            elif (now := self._look(places(), last)) is not None:
                self._last.pop(key, None)
                found[key] = self._last[key] = now
        while len(self._last) > KNOWN_MAX:
            del self._last[next(iter(self._last))]
        return found

    def _wanted(self, records: Sequence[ContainerRecord], parents: Mapping[str, str]) -> list[tuple[str, _Finding]]:
        """What is to be looked at, by id, and how its directories are found."""
        wanted: list[tuple[str, _Finding]] = [(record.id, partial(self._places, record)) for record in records]
        return wanted + [(pod_id, partial(self._places_of_pod, parent)) for pod_id, parent in parents.items()]

    async def counters(
        self, records: Sequence[ContainerRecord], parents: Mapping[str, str] = MappingProxyType({})
    ) -> Mapping[str, Counters]:
        """What only metrics tell of containers and pods, by id; arguments as for `usage`, and nobody shares a look."""
        return await mounts.in_thread("read control groups", self._counters, tuple(records), parents)

    def _counters(self, records: tuple[ContainerRecord, ...], parents: Mapping[str, str]) -> dict[str, Counters]:
        read = counters_of_v2 if self._cgroups.mode is Mode.V2 else counters_of_v1
        looked = (
            (key, self._files(places(), _V1_COUNTERS, _V2_COUNTERS)) for key, places in self._wanted(records, parents)
        )
        return {key: read(files) for key, files in looked if files}

    def _look(self, places: _Places, last: Usage | None) -> Usage | None:
        files = self._files(places, _V1_FILES, _V2_FILES)
        if not files:
            return None
        read = usage_of_v2 if self._cgroups.mode is Mode.V2 else usage_of_v1
        now = read(files, time.monotonic_ns(), time.time_ns())
        values = {name: getattr(now, name) for name in Usage.__dataclass_fields__}
        return Usage(**values | {"nano_cores": nano_cores(last, now)})

    def _files(
        self, places: _Places, v1_names: Mapping[str, tuple[str, ...]], v2_names: tuple[str, ...]
    ) -> dict[str, str]:
        """The contents of a group's files, by name; those that cannot be read are left out."""
        files: dict[str, str] = {}
        for hierarchy, path in places:
            names: Sequence[str] = v2_names if self._cgroups.mode is Mode.V2 else ()
            if not hierarchy.v2:
                names = [name for controller in hierarchy.controllers for name in v1_names.get(controller, ())]
            for name in names:
                with suppress(OSError):  # A kernel without this counter, or a container that ends just now.
                    files[name] = _read(f"{hierarchy.mountpoint}/{path}/{name}")
        return files

    def _places(self, record: ContainerRecord) -> _Places:
        """The container's directory in each hierarchy: where its process is, but not in a group that it made itself.

        A process that has the container's old number is in a group of another name, and is no process of it.
        """
        try:
            lines = _read(f"/proc/{record.pid}/cgroup").splitlines()
        except OSError:
            return []
        paths: dict[frozenset[str], str] = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            parts = path.split("/")
            own = [index for index, part in enumerate(parts) if record.id in part]
            if own:
                paths[frozenset(controllers.split(",")) if controllers else frozenset()] = "/".join(parts[: own[0] + 1])
        places = []
        for hierarchy in self._cgroups.hierarchies:
            key = frozenset() if hierarchy.v2 else frozenset(hierarchy.controllers)
            if key in paths and (hierarchy.v2 or key):
                places.append((hierarchy, paths[key].lstrip("/")))
        return places

    def _places_of_pod(self, parent: str) -> _Places:
        """The pod's directory in each hierarchy, whatever of it there is."""
        path = parent_directory(parent, self._driver)
        if not path:
            return []  # The root: everything on the node.
        return [(hierarchy, path) for hierarchy in self._cgroups.hierarchies if hierarchy.v2 or hierarchy.controllers]

    async def interfaces(self, pods: Sequence[Sequence[ContainerRecord]]) -> Sequence[tuple[Interface, ...]]:
        """Network counters of each pod, seen from one of its containers; none when none of them has a process."""
        return await mounts.in_thread("read network counters", lambda: [self._interfaces(pod) for pod in pods])

    def _interfaces(self, records: Sequence[ContainerRecord]) -> tuple[Interface, ...]:
        for record in records:
            if self._places(record):
                with suppress(OSError):
                    return interfaces_of(_read(f"/proc/{record.pid}/net/dev"))
        return ()

    async def layers(self, records: Sequence[ContainerRecord]) -> Mapping[str, LayerUsage]:
        """What containers have written, by id, as last counted; one whose turn has not come is left out."""
        began_ns = time.monotonic_ns()
        for record in sorted(records, key=lambda one: self._layers[one.id][1] if one.id in self._layers else 0):
            now_ns = time.monotonic_ns()
            if now_ns - began_ns > LAYERS_BUDGET_NS:
                break
            known = self._layers.get(record.id)
            if known is None or now_ns - known[1] > max(LAYER_FRESH_NS, known[2] * LAYER_SHARE):
                counted = await self._store.writable_usage(record.id)
                ended_ns = time.monotonic_ns()
                usage = LayerUsage(wall_ns=time.time_ns(), used_bytes=counted.size_bytes, inodes=counted.inodes)
                self._layers[record.id] = (usage, ended_ns, ended_ns - now_ns)
        while len(self._layers) > KNOWN_MAX:
            del self._layers[next(iter(self._layers))]
        return {record.id: self._layers[record.id][0] for record in records if record.id in self._layers}


def _read(path: str) -> str:
    """A small file of the kernel's. Twice as fast as a text file object, and this runs for many files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, FILE_BYTES_MAX).decode("utf-8", "surrogateescape")
    finally:
        os.close(descriptor)
