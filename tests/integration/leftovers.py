"""What tests have left anywhere on the machine, whoever of them made it: a look that is cheap enough for every test.

`residue` knows one server under test and looks at all that it could have. This knows no server: it looks for the mark
that every test puts into the names of what it makes, and for the directory that pytest gives to tests. Processes are
looked at only if they began since, so it costs a few milliseconds; packet filter rules, for which programs have to be
started, and control groups further down are looked for once a module.
"""

import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.integration.residue import CGROUP_DEPTH_MAX, CGROUP_ROOT
from tests.integration.waiting import look_until

MARK = "criotest"
MINE = f"{MARK}{os.getpid() % 100_000:05d}"
"""What the names of all things have in them that tests of this process make, so that sessions can run side by side."""
FILE_PLACES = ("/run", "/run/netns", "/tmp", "/var/tmp", "/dev/shm", "/var/lib/cni", "/var/lib/cni/networks")
GONE_S = 10.0
"""How long something may take until it is gone that was told to go: monitors, helpers and their cgroups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The machine at one moment, for finding out later what has come since."""

    pids: frozenset[str]
    things: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookout:
    """Looks for what carries a mark of the tests.

    Args:
        marks: What the names of all things of tests have in them.
        deep: Look for packet filter rules and further down for control groups too.
    """

    marks: tuple[str, ...]
    deep: bool = False

    def scene(self) -> Scene:
        """What there is now."""
        return Scene(pids=frozenset(_pids()), things=frozenset(self._things()))

    def since(self, before: Scene, spared: Collection[str] = ()) -> frozenset[str]:
        """What has come since and is still there; what has one of the words in `spared` in it belongs to others."""
        new = [pid for pid in _pids() if pid not in before.pids]
        found = {*self._processes(new), *(self._things() - before.things)}
        return frozenset(line for line in found if not any(word in line for word in spared))

    @contextmanager
    def nothing_left(
        self, spared: Collection[str] = (), *, asked: Callable[[], bool] = lambda: True, wait_s: float = GONE_S
    ) -> Iterator[None]:
        """Fails when something of a block is left that does not go by itself in a while; if that is asked then."""
        before = self.scene()
        yield
        if not asked():
            return
        left = look_until(lambda found: not found, lambda: self.since(before, spared), wait_s)
        assert not left, "left on the machine:\n" + "\n".join(sorted(left))

    def everything(self) -> frozenset[str]:
        """All that there is on the machine, since whenever, but for what belongs to others that run now."""
        running = {f"{MARK}{int(pid) % 100_000:05d}" for pid in _pids()} - {MINE}
        found = self.since(Scene(pids=frozenset([str(os.getpid())]), things=frozenset()))
        return frozenset(line for line in found if not running.intersection(re.findall(rf"{MARK}\d{{5}}", line)))

    def _marked(self, text: str) -> bool:
        return any(mark in text for mark in self.marks)

    def _things(self) -> set[str]:
        """All but processes."""
        return {
            *(f"mount {point}" for point in _mounts() if self._marked(point)),
            *(f"link {line}" for line in _links() if self._marked(line)),
            *(f"cgroup {path}" for path in _cgroups(self._marked, CGROUP_DEPTH_MAX if self.deep else 1)),
            *(f"file {path}" for path in _files() if self._marked(path)),
            *(f"loop device {line}" for line in _loops() if self._marked(line)),
            *(f"rule {line}" for line in (_rules() if self.deep else ()) if self._marked(line)),
        }

    def _processes(self, pids: list[str]) -> set[str]:
        """Of some processes those that have to do with a test, and those that pytest itself has started."""
        found = set()
        for pid in pids:
            with suppress(OSError):
                entry = f"/proc/{pid}"
                name, _, stat = Path(entry, "stat").read_text().partition("(")[2].rpartition(")")
                state, parent = stat.split()[:2]
                command = Path(entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                places = [command, _link(f"{entry}/cwd"), _link(f"{entry}/root"), *_cgroup_paths(entry).splitlines()]
                where = [place for place in places if self._marked(place)]
                if where or parent == str(os.getpid()):
                    found.add(f"process {pid} {state} {command[:300] or name} of {where[0] if where else 'pytest'}")
        return found


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def _link(path: str) -> str:
    """Where a link of /proc leads; a process that ends has none any more."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _cgroup_paths(entry: str) -> str:
    """Paths of a process in the control groups; a zombie is in those that it ended in, and they may be gone."""
    state = Path(entry, "stat").read_text().rpartition(")")[2].split()[0]
    return "" if state == "Z" else Path(entry, "cgroup").read_text()


def _mounts() -> list[str]:
    """Mount points; pinned namespaces are among them."""
    with open("/proc/self/mountinfo") as file:
        return [line.split(" ", 5)[4] for line in file]


def _links() -> list[str]:
    """Network links of the node, those on a bridge with its name."""
    found = []
    for name in os.listdir("/sys/class/net"):
        master = os.path.basename(_link(f"/sys/class/net/{name}/master"))
        found.append(f"{name} on {master}" if master else name)
    return found


def _cgroups(marked: Callable[[str], bool], depth: int) -> list[str]:
    """Control groups with a mark, down to a depth below each hierarchy's root."""
    found, level = [], [str(CGROUP_ROOT), *(entry.path for entry in os.scandir(CGROUP_ROOT) if entry.is_dir())]
    for _ in range(depth):
        below = []
        for path in level:
            with suppress(FileNotFoundError):
                below += [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
        found += [path for path in below if marked(path)]
        level = below
    return found


def _files() -> list[str]:
    """What lies directly in the places where programs keep what they share."""
    found = []
    for place in FILE_PLACES:
        with suppress(FileNotFoundError, NotADirectoryError):
            found += [f"{place}/{name}" for name in os.listdir(place)]
    return found


def _loops() -> list[str]:
    """Loop devices with the files behind them."""
    found = []
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            with suppress(OSError):
                found.append(f"{name} of {Path('/sys/block', name, 'loop/backing_file').read_text().strip()}")
    return found


def _rules() -> list[str]:
    """Packet filter rules, IPv4 and IPv6, without their counters."""
    found = []
    for tool in ("iptables-save", "ip6tables-save"):
        try:
            text = subprocess.run([tool], capture_output=True, text=True, timeout=30, check=False).stdout
        except FileNotFoundError:
            continue
        found += [line for line in text.splitlines() if line.startswith(("-A", ":"))]
    return found
