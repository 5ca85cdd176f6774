"""What is left on the machine of one test's server: a reusable check, and a broom for failed tests.

Everything that a server under test makes carries a mark of its own: it lies below the site's directory, hangs on the
site's bridge, has an address of the site's subnet, or sits in a cgroup with the site's name. So the check looks at the
whole machine, and still never at anything that belongs to somebody else.
"""

import json
import os
import shlex
import signal
import sqlite3
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_DEPTH_MAX = 4
STORAGE_DEPTH_MAX = 2
IGNORED_FILES = frozenset({"state.db", "state.db-wal", "zygote.sock", "zygote.sock.lock"})
"""The journal, whose rows are checked, and the way to the process that monitors are forked from."""
IGNORED_DIRECTORY = "scratch/cgroups"
"""Notes about parent cgroups that the server has made: what is in there is checked."""


IDLE_ZYGOTES = 3

ROOMS_OF_A_NODE = frozenset(
    {
        *("root/exits", "root/images", "root/version", "root/storage"),
        *(f"root/storage/{room}" for room in ("containers", "ingest", "layers", "trash", "unpacking")),
        *(f"run/{room}" for room in ("attach", "containers", "ns", "sandboxes", "scratch", "version")),
    }
)
"""Directories and files of every node that has run, below the site's directory."""
ROOMS_OF_IMAGES = ("root/images/", "root/storage/layers/")
"""What lies in here belongs to images, which a test may leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What tells the things of one server under test from all others.

    Args:
        directory: Everything that it writes lies below.
        name: Of its CNI network and of its pods' parent cgroup.
        bridge: The bridge that its pods hang on.
        subnet: The first three numbers of their addresses, with the dot behind.
    """

    directory: Path
    name: str
    bridge: str
    subnet: str

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def runroot(self) -> Path:
        return self.directory / "run"

    @property
    def ipam(self) -> Path:
        return self.directory / "ipam"

    @property
    def runtime_root(self) -> Path:
        return self.directory / "runtime"


def find(marks: Marks, *, but_pids: frozenset[int] = frozenset()) -> frozenset[str]:
    """Everything there is of this server now, each thing as a line of text; `but_pids` are left out."""
    running = {pid: line for pid, line in processes(marks).items() if pid not in but_pids}
    # An idle node has the zygote and one monitor that is ready, in two processes; one more would be left over.
    zygotes = [pid for pid, line in running.items() if line[2:] == f"crio-conmon zygote {marks.runroot}/zygote.sock"]
    for pid in zygotes[:IDLE_ZYGOTES]:
        del running[pid]
    return frozenset(
        [
            *(f"process {pid}: {line}" for pid, line in running.items()),
            *(f"mount {point}" for point in mounts(marks)),
            *(f"link {line}" for line in links(marks)),
            *(f"address {path.name} is reserved" for path in marks.ipam.glob("*/*") if path.name[0].isdigit()),
            *(f"rule {line}" for line in rules(marks)),
            *(f"cgroup {path}" for path in cgroups(marks)),
            *(f"file {path}" for path in files(marks)),
        ]
    )


def of_ended(marks: Marks) -> frozenset[str]:
    """What there is besides what a node has when its server has ended, all pods are removed and images are kept."""
    found = {line for line in find(marks) if not _is_of_a_node(marks, line)}
    return frozenset({*found, *(f"record {row}" for row in journal_rows(marks))})


def _is_of_a_node(marks: Marks, line: str) -> bool:
    path = line.removeprefix(f"file {marks.directory}/")
    return path != line and (path in ROOMS_OF_A_NODE or path.startswith(ROOMS_OF_IMAGES))


def processes(marks: Marks) -> dict[int, str]:
    """Command lines, by pid, of the processes that are connected with the site; of zombies their state."""
    found = {}
    directory = os.fsencode(marks.directory)
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            command = Path(entry.path, "cmdline").read_bytes()
            places = [command, *(os.fsencode(os.readlink(f"{entry.path}/{name}")) for name in ("cwd", "root"))]
            own_cgroup = f"/{marks.name}/" in Path(entry.path, "cgroup").read_text()
            if own_cgroup or any(directory in place for place in places):
                state = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0]
                text = command.replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = f"{state} {text[:300]}"
    return found


def mounts(marks: Marks) -> list[str]:
    """Mount points below the site's directory, those that pin namespaces among them; the deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{marks.directory}/")), key=len, reverse=True)


def links(marks: Marks) -> list[str]:
    """Ports of the site's bridge."""
    lines = _output("ip", "-o", "link").splitlines()
    return [line.split(":")[1].strip() for line in lines if f"master {marks.bridge} " in line]


def rules(marks: Marks) -> list[str]:
    """Packet filter rules, IPv4 and IPv6, that name the site's network or addresses."""
    text = _output("iptables-save") + _output("ip6tables-save")
    return [line for line in text.splitlines() if marks.name in line or f" {marks.subnet}" in line]


def cgroups(marks: Marks) -> list[Path]:
    """Control groups below the site's parent, the parent itself included, in all hierarchies; the deepest first."""
    found = []
    for top, names, _ in os.walk(CGROUP_ROOT):
        path = Path(top)
        if marks.name in top:
            found.append(path)
        elif len(path.relative_to(CGROUP_ROOT).parts) >= CGROUP_DEPTH_MAX:
            names.clear()
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def files(marks: Marks) -> list[Path]:
    """Files and directories that the server and the runtime keep. Of image content only the tops are listed."""
    found = []
    for start in (marks.root, marks.runroot, marks.runtime_root):
        for top, directories, names in os.walk(start):
            path = Path(top)
            if path.is_relative_to(marks.root / "storage"):
                depth = len(path.relative_to(marks.root / "storage").parts)
                if depth >= STORAGE_DEPTH_MAX - 1:
                    found += [path / name for name in directories]
                    directories.clear()
            found += [path / name for name in names if name not in IGNORED_FILES]
            found += [path / name for name in directories]
    return [path for path in found if path != marks.runroot / IGNORED_DIRECTORY]


def journal_rows(marks: Marks) -> list[str]:
    """Rows of the journal, images apart, as `kind id state`; only while no server has the journal open."""
    if not (marks.root / "state.db").exists():
        return []
    with closing(sqlite3.connect(marks.root / "state.db")) as database:
        rows = database.execute("SELECT kind, id, data FROM record WHERE kind != 'image'").fetchall()
    return [f"{kind} {record_id} {json.loads(data).get('state')}" for kind, record_id, data in rows]


def sweep(marks: Marks) -> None:
    """Remove everything of a site by force, after a failure."""
    for _ in range(10):
        left = [pid for pid, line in processes(marks).items() if not line.startswith("Z") and pid != os.getpid()]
        if not left:
            break
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    for point in mounts(marks):
        subprocess.run(["umount", "-l", point], capture_output=True, timeout=30, check=False)
    for link in (*(line.partition("@")[0] for line in links(marks)), marks.bridge):
        subprocess.run(["ip", "link", "delete", link], capture_output=True, timeout=30, check=False)
    remove_rules(marks)
    for path in cgroups(marks):
        with suppress(OSError):
            path.rmdir()


def remove_rules(marks: Marks) -> None:
    """Remove the packet filter rules of a site."""
    for tool in ("iptables", "ip6tables"):
        nat = [tool, "-w", "-t", "nat"]
        chains = set()
        for rule in map(shlex.split, _output(*nat, "-S").splitlines()):
            if any(marks.name in word or word.startswith(marks.subnet) for word in rule) and rule[0] == "-A":
                subprocess.run([*nat, "-D", *rule[1:]], capture_output=True, timeout=30, check=False)
                chains |= {word for word in rule if word.startswith(("CNI-DN-", "CNI-SN-"))}
                chains |= {rule[1]} if rule[1].startswith("CNI-") and "HOSTPORT" not in rule[1] else set()
        for chain in sorted(chains):
            subprocess.run([*nat, "-F", chain], capture_output=True, timeout=30, check=False)
            subprocess.run([*nat, "-X", chain], capture_output=True, timeout=30, check=False)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
