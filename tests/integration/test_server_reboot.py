"""The machine ends under a real server: what lay in memory is gone, process ids and namespaces mean nothing now."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

import anyio
import orjson
import psutil
import pytest

from crio_io.journal import Journal
from crio_io.journal_pair import Put
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration import residue
from tests.integration.harness import Crio, Site
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration
UNKNOWN_CODE = 255

LOGGER = """#!{python}
# The last plugin of the chain: notes what it is called with, and leaves the result as it is.
import json, os, sys
command = os.environ["CNI_COMMAND"]
if command == "VERSION":
    print(json.dumps({{"cniVersion": "0.4.0", "supportedVersions": ["0.4.0"]}}))
    sys.exit()
with open({calls!r}, "a") as file:
    print(command, os.environ.get("CNI_NETNS", ""), os.environ["CNI_CONTAINERID"], sep="|", file=file)
if command == "ADD":
    print(json.dumps(json.load(sys.stdin)["prevResult"]))
"""


class Network:
    """The site's network, with a plugin at its end that notes every call."""

    def __init__(self, site: Site) -> None:
        self.calls = site.directory / "calls"
        self.calls.touch()
        plugin = site.directory / "plugins" / "logger"
        plugin.parent.mkdir()
        plugin.write_text(LOGGER.format(python=sys.executable, calls=str(self.calls)))
        plugin.chmod(0o755)
        network = site.network()
        network["plugins"].append({"type": "logger"})
        site.write_network(network)
        self.flags = ("--cni-plugin-dir", str(plugin.parent))

    def taken(self) -> list[tuple[str, ...]]:
        """Calls so far (command, namespace, sandbox); they are forgotten."""
        lines = self.calls.read_text().splitlines()
        self.calls.write_text("")
        return [tuple(line.split("|")) for line in lines]


def power_off(crio: Crio) -> None:
    """End everything as a power cut does: no process gets to do anything more, and what lay in memory is lost."""
    marks = crio.site.marks
    crio.end(signal.SIGKILL)
    found = residue.processes(marks)
    # Monitors first, or they would see how their containers end.
    for pid in sorted(found, key=lambda pid: "conmon" not in found[pid]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for("the end of all processes", lambda: not [pid for pid in found if is_alive(pid)])
    for point in residue.mounts(marks):
        subprocess.run(["umount", "-l", point], capture_output=True, timeout=30, check=True)
    shutil.rmtree(marks.runroot)
    if marks.runtime_root.exists():
        shutil.rmtree(marks.runtime_root)
    for path in residue.cgroups(marks):
        path.rmdir()
    residue.remove_rules(marks)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def give_records_another_boot(crio: Crio) -> None:
    """The machine has not really booted anew: so the recorded pods are made ones of another boot."""
    marks = crio.site.marks

    async def rewrite() -> None:
        journal, loaded = await Journal.open(marks.root / "state.db", marks.runroot / "state.db")
        sandboxes = [orjson.loads(row.data) for row in loaded.rows if row.kind == "sandbox"]
        assert sandboxes
        await journal.write(
            [Put(kind="sandbox", id=one["id"], data=orjson.dumps(one | {"boot_id": "earlier"})) for one in sandboxes]
        )
        await journal.close()

    anyio.run(rewrite)
    shutil.rmtree(marks.runroot)


def test_after_a_reboot_pods_are_over_with_true_codes_and_no_namespace_is_touched(site: Site) -> None:
    """R6, R18: an exit file on disk still tells how a container ended, also one that nobody had read; else the code is
    said to be unknown. The network gives addresses back by the pod's id, never by a namespace."""
    network = Network(site)
    (site.directory / "flags").mkdir()
    with Crio(site, *network.flags) as crio:
        image = crio.pull(crio.images.busybox)
        crio.note_baseline()
        pod = crio.run_pod()
        known = crio.begin(pod, ["sh", "-c", "exit 9"], "known")
        before = crio.ended(known)
        waiting = "while [ ! -e /flags/go ]; do sleep 0.02; done; exit 23"
        mount = pb.Mount(container_path="/flags", host_path=str(site.directory / "flags"))
        unread = crio.begin(pod, ["sh", "-c", waiting], "unread", mounts=[mount])
        unread_pid = crio.info(unread)["pid"]
        cut_off = crio.begin(pod, ["sleep", "600"], "cut-off")
        created = crio.create(pod, crio.container_config(["true"], "created"))
        crio.end()  # A power cut could also take the last records, and with them these containers.
        (site.directory / "flags" / "go").touch()
        wait_for("an exit file", (site.marks.root / "exits" / unread).exists)
        assert not is_alive(unread_pid)
        network.taken()
        power_off(crio)
        give_records_another_boot(crio)

        crio.start()
        (found,) = crio.client(pb.ListPodSandboxRequest()).items
        assert (found.id, found.state) == (pod, pb.SANDBOX_NOTREADY)
        assert crio.status(known) == before
        codes = {one: crio.ended(one).exit_code for one in (known, unread, cut_off, created)}
        assert codes == {known: 9, unread: 23, cut_off: UNKNOWN_CODE, created: UNKNOWN_CODE}
        assert crio.client(pb.ImageStatusRequest(image=pb.ImageSpec(image=image))).image.id
        assert network.taken() == []

        crio.remove(pod)
        calls = network.taken()
        assert calls
        assert {(command, netns) for command, netns, _ in calls} == {("DEL", "")}
        crio.assert_clean()
        with crio.pod() as fresh:
            assert crio.run(fresh, "echo works") == (0, "works\n")
        crio.assert_clean()
        crio.end()
        assert residue.journal_rows(site.marks) == []


@pytest.mark.parametrize("damage", ["zeroed", "missing"])
def test_images_outlive_a_power_cut_that_took_the_journal_with_it(site: Site, damage: str) -> None:
    """R10, R11: one file was in memory and the other is damaged: the pods are over anyway, and no layer is lost."""
    with Crio(site) as crio:
        image = crio.pull(crio.images.told)
        crio.note_baseline()
        listed = crio.client(pb.ListImagesRequest()).images
        power_off(crio)
        journal = site.marks.root / "state.db"
        journal.with_name("state.db-wal").unlink(missing_ok=True)
        if damage == "missing":
            journal.unlink()
        else:
            journal.write_bytes(bytes(journal.stat().st_size))
        for _ in range(2):
            crio.start()
            assert crio.client(pb.ListImagesRequest()).images == listed
            crio.end(signal.SIGKILL)
        crio.start()
        with crio.pod() as pod:
            container = crio.begin(pod, [], image=crio.images.told)
            assert crio.ended(container).exit_code == 0
        crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)))
        crio.end()
    kept = list(journal.parent.glob("state.db.damaged-*"))
    assert len(kept) == (damage == "zeroed"), "what cannot be read is kept for whoever wants to know what happened"
    for path in kept:
        path.unlink()
