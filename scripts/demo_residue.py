"""What the demonstration has on this machine right now, told from everybody else's by names that only it uses.

What cannot be named in advance (the far ends of veth pairs, ids) is remembered once it was seen in a place of ours, and
then looked for everywhere: so something that slipped out of our places is still found.
"""

import json
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

KINDS = ("processes", "mounts", "namespaces", "network links", "firewall rules", "cgroups", "files elsewhere")
FIREWALLS = ("iptables", "ip6tables")
DYING_S = 20.0
"""How long a killed process may take to be gone."""
FILE_PLACES = ("/run", "/var/lib/cni", "/var/log", "/tmp")
FILE_DEPTH_MAX = 3
Found = Mapping[str, tuple[str, ...]]


@dataclass(slots=True, kw_only=True)
class Residue:
    """Looks for what belongs to one run.

    Args:
        directory: Everything of the run is below it.
        network: Name of its CNI network, which stands in the comments of firewall rules.
        bridge: Name of its bridge.
    """

    directory: Path
    network: str
    bridge: str
    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)

    def look(self) -> Found:
        """Everything of ours that there is, by kind."""
        self._learn()
        return {
            "processes": tuple(f"{pid} {line}" for pid, line in self.processes().items()),
            "mounts": tuple(point for point, kind, _ in _mounts() if kind != "nsfs" and self._is_ours(point)),
            "namespaces": tuple(sorted(self._namespaces())),
            "network links": tuple(sorted(self._links())),
            "firewall rules": tuple(line for one in FIREWALLS for line in _firewall(one) if self._names_us(line)),
            "cgroups": tuple(sorted(self._cgroups())),
            "files elsewhere": tuple(self._files()),
        }

    def _learn(self) -> None:
        for place in ("run/sandboxes", "run/containers"):
            with suppress(FileNotFoundError):
                self.ids.update(entry.name for entry in (self.directory / place).iterdir())
        self.links.update(self._links())

    def _is_ours(self, path: str) -> bool:
        return path == str(self.directory) or path.startswith(f"{self.directory}/")

    def _names_us(self, text: str) -> bool:
        return any(mark in text for mark in (str(self.directory), self.network, self.bridge, *self.ids))

    def processes(self) -> dict[int, str]:
        """Processes that were started with our paths, run in our cgroups, or descend from one that does."""
        ours: dict[int, str] = {}
        parents: dict[int, int] = {}
        lines: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or entry.name == str(os.getpid()):
                continue
            pid = int(entry.name)
            with suppress(OSError, ValueError, IndexError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                told = command + (entry / "environ").read_text(errors="replace") + (entry / "cgroup").read_text()
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines[pid] = command
                if self._names_us(told):
                    ours[pid] = command
        while more := {pid: lines[pid] for pid, parent in parents.items() if parent in ours and pid not in ours}:
            ours.update(more)
        return dict(sorted(ours.items()))

    def sweep(self) -> None:
        """Take away by force what nobody else will any more: processes, mounts, firewall rules and control groups."""
        self._learn()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    select.select([handle], [], [], DYING_S)
                finally:
                    os.close(handle)
        for point in reversed([point for point, _, _ in _mounts() if self._is_ours(point)]):
            subprocess.run(["umount", "--lazy", point], stderr=subprocess.DEVNULL, check=False)
        self._remove_rules()
        for path in sorted(self._cgroups(), key=len, reverse=True):
            with suppress(OSError):  # said by whoever looks next; and the parent may be others', too
                Path(path).rmdir()
                Path(path).parent.rmdir()

    def _remove_rules(self) -> None:
        """Those of our pods in the nat table, and the chains to which they lead."""
        for program in FIREWALLS:
            ours = [
                shlex.split(line)[1:] for line in _firewall(program) if line.startswith("-A") and self._names_us(line)
            ]
            chains = dict.fromkeys(rule[0] for rule in ours if rule[0].startswith("CNI-"))
            deletions = [["-D", *rule] for rule in ours] + [["-X", chain] for chain in chains]
            for words in deletions:
                subprocess.run([program, "-w", "-t", "nat", *words], stderr=subprocess.DEVNULL, check=False)

    def _namespaces(self) -> set[str]:
        """Those pinned in our places, and those of our processes; not by number, which the kernel soon gives anew."""
        found = {name for point, kind, name in _mounts() if kind == "nsfs" and self._is_ours(point)}
        for pid in self.processes():
            found |= _namespaces_of(str(pid))
        return found - _namespaces_of("self")

    def _links(self) -> Iterator[str]:
        answer = subprocess.run(["ip", "-json", "link", "show"], stdout=subprocess.PIPE, check=True)
        for link in json.loads(answer.stdout):
            name = f"{link['ifname']} (index {link['ifindex']})"
            if link["ifname"] == self.bridge or link.get("master") == self.bridge or name in self.links:
                yield name

    def _cgroups(self) -> Iterator[str]:
        for top, _, _ in os.walk("/sys/fs/cgroup"):
            if self._names_us(Path(top).name):
                yield top

    def _files(self) -> Iterator[str]:
        for place in FILE_PLACES:
            for top, directories, names in os.walk(place):
                for name in (*directories, *names):
                    path = f"{top}/{name}"
                    if not self._is_ours(path) and self._names_us(name):
                        yield path
                if top.count("/") - place.count("/") >= FILE_DEPTH_MAX:
                    directories.clear()


def _namespaces_of(pid: str) -> set[str]:
    with suppress(OSError):
        return {str(link.readlink()) for link in Path("/proc", pid, "ns").iterdir()}
    return set()


def _mounts() -> Iterator[tuple[str, str, str]]:
    """Mount point, filesystem type, and root within the filesystem: for a namespace its name."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        yield fields[4], fields[fields.index("-") + 1], fields[3]


def _firewall(program: str) -> list[str]:
    with suppress(FileNotFoundError):
        done = subprocess.run([f"{program}-save"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        return done.stdout.decode(errors="replace").splitlines()
    return []


def table(columns: Mapping[str, Found]) -> str:
    """How many of each kind there were at each of the times."""
    rows = [("", *columns)] + [(kind, *(str(len(found[kind])) for found in columns.values())) for kind in KINDS]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
        )
        for row in rows
    )


def listed(found: Found) -> list[str]:
    """One line for each thing."""
    return [f"{kind}: {item}" for kind, items in found.items() for item in items]
