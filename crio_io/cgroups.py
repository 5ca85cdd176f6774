"""Control groups by the filesystem: v1, hybrid (v1 controllers beside a v2 mount) and v2, told apart by looking.

A cgroup path here is absolute within every hierarchy, such as `/kubepods/pod1/c1`. The functions of `Cgroups` block for
as long as the kernel takes (moving a process waits for an RCU grace period); async code calls them through
`mounts.in_thread`.
"""

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from pathlib import Path

from crio_core.errors import Code, LocalError, OperationError
from crio_core.values import dataclass
from crio_io import mounts, spawn

CONTROLLERS_V1 = frozenset(
    (
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "net_cls",
        "net_prio",
        "pids",
        "rdma",
    )
)
REMOVE_S = 2.0
"""How long a removal waits for dying processes to leave the cgroup."""
KILL_S = 5.0
"""How long a kill waits for every process to be gone."""
RETRY_S = 0.01
CGROUPS_MAX = 10_000
"""Descendants that a walk visits before it says that the tree is not one of ours."""
SYSTEMD_TIMEOUT_S = 10.0


class Mode(Enum):
    """How the machine mounts control groups."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One mounted tree of cgroups; `controllers` is empty for v1's named trees."""

    mountpoint: Path
    controllers: tuple[str, ...]
    v2: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroups:
    """The mounted hierarchies, and what can be done in all of them at once."""

    mode: Mode
    hierarchies: tuple[Hierarchy, ...]

    @classmethod
    def detect(cls) -> "Cgroups":
        """Look at the mounts of this machine.

        Raises:
            OperationError: CGROUPS_NOT_MOUNTED.
        """
        found: dict[tuple[str, ...], Hierarchy] = {}
        unified: Hierarchy | None = None
        for entry in mounts.mountinfo():
            if entry.kind == "cgroup2" and unified is None:
                mountpoint = Path(entry.mountpoint)
                controllers = tuple((mountpoint / "cgroup.controllers").read_text().split())
                unified = Hierarchy(mountpoint=mountpoint, controllers=controllers, v2=True)
            elif entry.kind == "cgroup":
                named = tuple(option for option in entry.super_options if option.startswith("name="))
                controllers = tuple(option for option in entry.super_options if option in CONTROLLERS_V1)
                key = controllers or named
                if key and key not in found:
                    found[key] = Hierarchy(mountpoint=Path(entry.mountpoint), controllers=controllers, v2=False)
        with_controllers = any(hierarchy.controllers for hierarchy in found.values())
        if unified is None and not with_controllers:
            raise OperationError(Code.FAILED_PRECONDITION, "CGROUPS_NOT_MOUNTED", "no control groups are mounted")
        mode = Mode.V2 if not with_controllers else Mode.V1 if unified is None else Mode.HYBRID
        return cls(mode=mode, hierarchies=(*found.values(), *((unified,) if unified else ())))

    @property
    def controllers(self) -> frozenset[str]:
        """Every controller that some hierarchy has."""
        return frozenset(name for hierarchy in self.hierarchies for name in hierarchy.controllers)

    def create(self, path: str) -> None:
        """Make a cgroup and its parents in every hierarchy; present is success.

        Raises:
            OperationError: CGROUP_FAILED.
        """
        try:
            for hierarchy in self.hierarchies:
                _make(hierarchy, path)
        except OSError as error:
            raise _failed(f"creating cgroup {path}", error) from error

    def join(self, path: str, pid: int) -> None:
        """Move a process into a cgroup of every hierarchy.

        Raises:
            OperationError: CGROUP_FAILED, or PROCESS_GONE when there is no such process.
        """
        try:
            for hierarchy in self.hierarchies:
                _write(_inside(hierarchy, path) / "cgroup.procs", str(pid))
        except ProcessLookupError as error:
            raise OperationError(Code.NOT_FOUND, "PROCESS_GONE", f"process {pid} is gone") from error
        except OSError as error:
            raise _failed(f"moving process {pid} into cgroup {path}", error) from error

    def exists(self, path: str) -> bool:
        """Whether some hierarchy has this cgroup."""
        return any(_inside(hierarchy, path).is_dir() for hierarchy in self.hierarchies)

    def pids(self, path: str) -> tuple[int, ...]:
        """Every process in a cgroup or below it, in any hierarchy, in order of number; of an absent cgroup, none."""
        found: set[int] = set()
        for hierarchy in self.hierarchies:
            for directory in _tree(_inside(hierarchy, path)):
                found.update(_read_pids(directory))
        return tuple(sorted(found))

    def remove(self, path: str) -> None:
        """Remove a cgroup with all below it from every hierarchy; absent is success.

        Raises:
            OperationError: CGROUP_FAILED when processes are still inside.
        """
        deadline_s = time.monotonic() + REMOVE_S
        try:
            for hierarchy in self.hierarchies:
                # Deepest first: the walk is parents first.
                for directory in reversed(tuple(_tree(_inside(hierarchy, path)))):
                    _remove_directory(directory, deadline_s)
        except OSError as error:
            raise _failed(f"removing cgroup {path}", error) from error

    def kill(self, path: str) -> None:
        """Kill every process in a cgroup and below it, and wait until they are gone; absent is success.

        Raises:
            OperationError: PROCESSES_REMAIN when some would not die in time (they hang in the kernel).
        """
        deadline_s = time.monotonic() + KILL_S
        for hierarchy in self.hierarchies:
            if hierarchy.v2:
                # One write that no fork can outrun; kernels before 5.14 do not have the file.
                with suppress(FileNotFoundError):
                    _write(_inside(hierarchy, path) / "cgroup.kill", "1")
        while pids := self.pids(path):
            # Without that file, what forks faster than we read is held still while it is being killed.
            self._freeze(path, True)
            try:
                handles = [handle for pid in pids if (handle := _open_pid(pid)) is not None]
                for handle in handles:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                self._freeze(path, False)
            _wait_all(handles, deadline_s)
            if time.monotonic() >= deadline_s:
                remaining = self.pids(path)
                if not remaining:
                    return
                message = f"cgroup {path}: processes {_listed(remaining)} did not die within {KILL_S:g} s"
                raise OperationError(Code.DEADLINE_EXCEEDED, "PROCESSES_REMAIN", message)

    def oom_kills(self, path: str) -> int:
        """How many processes of this very cgroup the kernel has killed for want of memory; 0 when it is absent."""
        for hierarchy in self.hierarchies:
            if "memory" in hierarchy.controllers:
                directory = _inside(hierarchy, path)
                names = ("memory.events.local", "memory.events") if hierarchy.v2 else ("memory.oom_control",)
                for name in names:
                    with suppress(OSError):
                        return _field(directory / name, "oom_kill")
        return 0

    def memory_path(self, pid: int) -> str | None:
        """The cgroup that a process's memory is charged to; None when the process is gone."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text("utf-8", "surrogateescape").splitlines()
        except OSError:
            return None
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(",") or (self.mode is Mode.V2 and not controllers):
                return path.removesuffix(" (deleted)")
        return None

    def _freeze(self, path: str, frozen: bool) -> None:
        for hierarchy in self.hierarchies:
            directory = _inside(hierarchy, path)
            with suppress(OSError):  # Best effort: killing works without, it only may need more rounds.
                if "freezer" in hierarchy.controllers and not hierarchy.v2:
                    _write(directory / "freezer.state", "FROZEN" if frozen else "THAWED")
                elif hierarchy.v2 and self.mode is Mode.V2:
                    _write(directory / "cgroup.freeze", "1" if frozen else "0")


async def systemd_scope(name: str, *, parent_slice: str, pid: int) -> None:
    """Have systemd move a process into a new scope; one of that name which holds the process already is success.

    Args:
        name: The unit, ending in `.scope`.
        parent_slice: The slice to make it in.
        pid: The process.

    Raises:
        OperationError: SYSTEMD_FAILED.
    """
    # A failed unit of the same name would refuse the new one (R29); resetting one that is absent fails, harmlessly.
    await spawn.run(_systemd_call("ResetFailedUnit", "s", name), timeout_s=SYSTEMD_TIMEOUT_S)
    argv = _systemd_call(
        "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "replace", *_scope_properties(parent_slice, pid), "0"
    )
    done = await spawn.run(argv, timeout_s=SYSTEMD_TIMEOUT_S)
    if done.returncode != 0 and not await mounts.in_thread(f"look at process {pid}", _is_in_unit, pid, name):
        message = f"systemd did not make scope {name} in {parent_slice}: {done.stderr_text()}"
        raise OperationError(Code.INTERNAL, "SYSTEMD_FAILED", message)


def _is_in_unit(pid: int, name: str) -> bool:
    try:
        return any(line.endswith(f"/{name}") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    except OSError:
        return False


def _systemd_call(method: str, signature: str, *arguments: str) -> tuple[str, ...]:
    service, path = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
    return ("busctl", "--system", "--", "call", service, path, f"{service}.Manager", method, signature, *arguments)


def _scope_properties(parent_slice: str, pid: int) -> tuple[str, ...]:
    """The property list in busctl's notation: how many, then name, type and value of each."""
    properties = (
        ("Slice", "s", parent_slice),
        ("Delegate", "b", "true"),
        ("DefaultDependencies", "b", "false"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("PIDs", "au", "1", str(pid)),
    )
    return (str(len(properties)), *(word for item in properties for word in item))


def _inside(hierarchy: Hierarchy, path: str) -> Path:
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts or "\0" in path or path.strip("/") == "":
        raise LocalError(f"{path!r} is not the absolute path of a cgroup below the root")
    return hierarchy.mountpoint / path.lstrip("/")


def _make(hierarchy: Hierarchy, path: str) -> None:
    directory = _inside(hierarchy, path)
    if directory.is_dir():
        return
    current = hierarchy.mountpoint
    for part in directory.relative_to(hierarchy.mountpoint).parts:
        if hierarchy.v2:
            for name in hierarchy.controllers:
                # One at a time: a controller that cannot be handed down must not hold back the others.
                with suppress(OSError):
                    _write(current / "cgroup.subtree_control", f"+{name}")
        parent, current = current, current / part
        with suppress(FileExistsError):
            current.mkdir(mode=0o755)
        if "cpuset" in hierarchy.controllers and not hierarchy.v2:
            # A v1 cpuset starts empty and takes no process until it has both (cpuset(7)).
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not (current / name).read_text().strip():
                    _write(current / name, (parent / name).read_text())


def _tree(top: Path) -> Iterator[Path]:
    """A cgroup and all below it, parents first; nothing when absent."""
    waiting = [top] if top.is_dir() else []
    for _ in range(CGROUPS_MAX):
        if not waiting:
            return
        directory = waiting.pop()
        yield directory
        with suppress(FileNotFoundError), os.scandir(directory) as entries:
            waiting.extend(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    raise OperationError(
        Code.RESOURCE_EXHAUSTED, "CGROUP_FAILED", f"{top} has more than {CGROUPS_MAX} cgroups below it"
    )


def _read_pids(directory: Path) -> Iterable[int]:
    try:
        return [int(word) for word in (directory / "cgroup.procs").read_text().split()]
    except OSError:
        return ()  # Removed meanwhile, or a threaded cgroup, whose processes are listed by its domain.


def _remove_directory(directory: Path, deadline_s: float) -> None:
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(RETRY_S)
        else:
            return


def _open_pid(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _wait_all(handles: list[int], deadline_s: float) -> None:
    """Wait for the end of processes, whose pidfds are closed."""
    for handle in handles:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        poller.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
        os.close(handle)
    if not handles:
        time.sleep(RETRY_S)  # Listed but gone: the kernel has not finished with them.


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _write(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _listed(pids: tuple[int, ...]) -> str:
    return ", ".join(str(pid) for pid in pids[:8]) + (", ..." if len(pids) > 8 else "")


def _failed(what: str, error: OSError) -> OperationError:
    return OperationError(Code.INTERNAL, "CGROUP_FAILED", f"{what}: {error}")
