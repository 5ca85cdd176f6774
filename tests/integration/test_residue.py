"""The checks for residue can fail: of each kind of thing one is planted, found, and removed again."""

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from crio_io.cgroups import Cgroups
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration import residue
from tests.integration.harness import Crio, Site
from tests.integration.leftovers import MARK, MINE, Lookout
from tests.integration.waiting import wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes mounts, links and control groups: needs root"),
]

NAME = f"{MINE}-planted"
Planting = Callable[[Path, ExitStack], None]


def run(*words: "str | Path") -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


def begun(stack: ExitStack, *words: "str | Path") -> "subprocess.Popen[bytes]":
    """A process, and its end."""
    process = stack.enter_context(subprocess.Popen(words))
    stack.callback(process.kill)
    return process


def plant_mount(place: Path, stack: ExitStack) -> None:
    run("mount", "-t", "tmpfs", NAME, place)
    stack.callback(run, "umount", place)


def plant_namespace(place: Path, stack: ExitStack) -> None:
    run("ip", "netns", "add", NAME)
    stack.callback(run, "ip", "netns", "delete", NAME)


def plant_link(place: Path, stack: ExitStack) -> None:
    run("ip", "link", "add", f"{MINE}p", "type", "bridge")
    stack.callback(run, "ip", "link", "delete", f"{MINE}p")


def plant_port(place: Path, stack: ExitStack) -> None:
    """The end of a pod's cable, whose own name says nothing."""
    plant_link(place, stack)
    run("ip", "link", "add", "veth-p", "type", "veth", "peer", "name", "veth-q")
    stack.callback(run, "ip", "link", "delete", "veth-p")
    run("ip", "link", "set", "veth-p", "master", f"{MINE}p")


def plant_cgroup(place: Path, stack: ExitStack) -> None:
    groups = Cgroups.detect()
    groups.create(f"/{NAME}")
    stack.callback(groups.remove, f"/{NAME}")


def plant_process(place: Path, stack: ExitStack) -> None:
    """One that nobody waits for, whose parent has ended."""
    shell = subprocess.run(
        ["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], cwd=place, capture_output=True, check=True
    )
    pid = int(shell.stdout)
    stack.callback(partial(wait_for, "its end", lambda: not Path(f"/proc/{pid}").exists()))
    stack.callback(os.kill, pid, 9)


def plant_process_of_a_cgroup(place: Path, stack: ExitStack) -> None:
    """A container's, whose words and places say nothing."""
    groups = Cgroups.detect()
    groups.create(f"/{NAME}")
    stack.callback(groups.remove, f"/{NAME}")
    groups.join(f"/{NAME}", begun(stack, "sleep", "600").pid)


def plant_child(place: Path, stack: ExitStack) -> None:
    """A child of ours that has ended, and that nobody has waited for."""
    child = stack.enter_context(subprocess.Popen(["true"]))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def plant_file(place: Path, stack: ExitStack) -> None:
    path = Path("/run", NAME)
    path.touch()
    stack.callback(path.unlink)


def plant_loop(place: Path, stack: ExitStack) -> None:
    image = place / "disk.img"
    image.write_bytes(bytes(1 << 20))
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop devices here: {done.stderr}")
    device = done.stdout.strip()
    stack.callback(partial(wait_for, "its end", lambda: not Path("/sys/block", Path(device).name, "loop").exists()))
    stack.callback(run, "losetup", "--detach", device)


def plant_deep_cgroup(place: Path, stack: ExitStack) -> None:
    """Below somebody else's, as where a kubelet's pods are."""
    groups = Cgroups.detect()
    groups.create(f"/planted/{NAME}")
    stack.callback(groups.remove, "/planted")


def plant_rule(place: Path, stack: ExitStack) -> None:
    rule = ["OUTPUT", "-d", "198.18.0.1", "-m", "comment", "--comment", NAME, "-j", "ACCEPT"]
    run("iptables", "-w", "-A", *rule)
    stack.callback(run, "iptables", "-w", "-D", *rule)


PLANTINGS = {
    "mount": (plant_mount, f"mount .*{NAME}"),
    "namespace": (plant_namespace, f"mount /run/netns/{NAME}"),
    "link": (plant_link, f"link {MINE}p$"),
    "port": (plant_port, f"link veth-p on {MINE}p"),
    "cgroup": (plant_cgroup, f"cgroup .*/{NAME}"),
    "process": (plant_process, "process [0-9]+ [RSD] sleep 600 of .*"),
    "process of a cgroup": (plant_process_of_a_cgroup, "process [0-9]+ [RSD] sleep 600 of .*"),
    "child": (plant_child, "process [0-9]+ Z true of pytest"),
    "file": (plant_file, f"file /run/{NAME}"),
    "loop device": (plant_loop, f"loop device loop[0-9]+ of .*{NAME}/disk.img"),
}
DEEP_PLANTINGS = {
    "cgroup below others": (plant_deep_cgroup, f"cgroup .*/planted/{NAME}"),
    "rule": (plant_rule, f"rule -A OUTPUT .*{NAME}"),
}


@contextmanager
def planted(planting: Planting, place: Path) -> Iterator[None]:
    place.mkdir()
    with ExitStack() as stack:
        planting(place, stack)
        yield


def found(pattern: str, lines: frozenset[str]) -> bool:
    return any(re.search(pattern, line) for line in lines)


@pytest.mark.parametrize("kind", PLANTINGS)
def test_what_a_test_leaves_fails_it(tmp_path: Path, marks: tuple[str, ...], kind: str) -> None:
    """What finds nothing proves something only if it can find: the check of every test, and what is spared by it."""
    planting, pattern = PLANTINGS[kind]
    lookout = Lookout(marks=marks)
    before = lookout.scene()
    with ExitStack() as stack:
        with pytest.raises(AssertionError, match=pattern), lookout.nothing_left(wait_s=0):
            stack.enter_context(planted(planting, tmp_path / NAME))
        assert lookout.since(before, (" ",)) == frozenset(), "what has a word of others in it is theirs"
        assert found(pattern, Lookout(marks=(MARK,), deep=True).everything()) or kind == "child"
    assert lookout.since(before) == frozenset()


@pytest.mark.parametrize("kind", DEEP_PLANTINGS)
def test_what_takes_longer_to_find_fails_the_module_and_the_session(
    tmp_path: Path, marks: tuple[str, ...], kind: str
) -> None:
    """Not asked after each test, and still by nobody missed."""
    planting, pattern = DEEP_PLANTINGS[kind]
    lookout = Lookout(marks=marks, deep=True)
    with ExitStack() as stack:
        with pytest.raises(AssertionError, match=pattern), lookout.nothing_left(wait_s=0):
            stack.enter_context(planted(planting, tmp_path / NAME))
        assert found(pattern, lookout.everything())
    assert not found(pattern, lookout.everything())


def test_what_goes_by_itself_is_waited_for(marks: tuple[str, ...]) -> None:
    """A helper that was told to end is not residue a moment later; nor is what a failed test is not asked for."""
    with Lookout(marks=marks).nothing_left():
        child = subprocess.Popen(["sleep", "600"])
        child.kill()
        ending = threading.Timer(0.1, child.wait)
        ending.start()
    ending.join()
    with ExitStack() as stack, Lookout(marks=marks).nothing_left(asked=lambda: False):
        begun(stack, "sleep", "600")


def test_what_a_server_leaves_behind_is_all_known(site: Site) -> None:
    """The check of a site sees every kind of thing that a running pod has, beside the server and after its end."""
    with Crio(site) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        pod = crio.run_pod(port_mappings=[pb.PortMapping(container_port=80, host_port=38080)])
        crio.begin(pod, ["sleep", "600"])
        kinds = {"process", "mount", "link", "address", "rule", "cgroup", "file"}
        assert {line.split()[0] for line in crio.left()} == kinds
        crio.end()
        left = residue.of_ended(site.marks)
        assert {line.split()[0] for line in left} == kinds | {"record"}
        assert {line.split()[1] for line in left if line.startswith("record")} == {"sandbox", "container"}
        crio.start()
        crio.remove_all()
        crio.assert_clean()
    assert residue.of_ended(site.marks) == frozenset()
