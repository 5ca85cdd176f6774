"""Monitors under a server: they are shown, and lose no exit while they, their zygote and the server are killed."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import anyio
import psutil
import pytest

from crio_io.zygote import ZygoteClient
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

CHURN = int(os.environ.get("CONMON_CHURN", "40"))
"""How many containers; 1000 is the full test."""
SEED = int(os.environ.get("CRIO_TEST_SEED", "1"))
KEPT_EACH = 10


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """The images of this module."""
    return ("busybox",)


def processes_named(title: str) -> Iterator[psutil.Process]:
    """Processes whose command line begins with a title that they gave themselves."""
    for process in psutil.process_iter():
        try:
            if " ".join(process.cmdline()).startswith(title):
                yield process
        except psutil.Error:
            continue  # ended meanwhile


def zygote(crio: Crio) -> psutil.Process | None:
    """The zygote of this server; the monitor that it keeps ready has its title and is its child."""
    found = [one for one in processes_named("crio-conmon zygote ") if str(crio.site.directory) in one.cmdline()[0]]
    pids = {one.pid for one in found}
    return next((one for one in found if one.ppid() not in pids), None)


def no_zombie_of(process: psutil.Process) -> bool:
    return all(child.status() != psutil.STATUS_ZOMBIE for child in process.children())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_churn_with_kills_of_monitors_zygote_and_server_loses_no_exit(own_crio: Crio) -> None:
    """R17, R18: each exit is the true one, or plainly a failure when its only witness was killed."""
    crio, chance = own_crio, random.Random(SEED)
    kept: set[str] = set()
    with crio.pod() as pod:
        for number in range(CHURN):
            code = number % 200 + 1
            keep = number % KEPT_EACH == 0
            command = ["sleep", "600"] if keep else ["sh", "-c", f"sleep 0.05; exit {code}"]
            container = crio.begin(pod, command, name=f"churn-{number}")
            dice = chance.random()
            unseen = dice < 0.1
            if unseen:
                os.kill(crio.info(container)["monitorPid"], signal.SIGKILL)
            elif dice < 0.2 and (found := zygote(crio)) is not None:
                found.kill()
            elif dice < 0.25:
                crio.restart(signal.SIGKILL)
            if keep and not unseen:
                kept.add(container)
                continue
            if keep:
                crio.stop(container)
            status = crio.ended(container)
            assert status.exit_code != 0 if unseen else status.exit_code == code, f"number {number}, seed {SEED}"
            crio.client(pb.RemoveContainerRequest(container_id=container))

        def watched() -> set[str]:
            return {one.cmdline()[0].split()[2] for one in processes_named("conmon -c ") if not gone(one)} & ours

        def gone(process: psutil.Process) -> bool:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

        ours = {one.id for one in crio.client(pb.ListContainersRequest()).containers}
        assert ours == kept
        wait_for("as many monitors as containers", lambda: watched() == kept)
        for process in (psutil.Process(crio.pid), zygote(crio)):
            if process is not None:
                wait_for(f"no zombie of {process}", partial(no_zombie_of, process))
    # The zygote is not the one that was there at the beginning, and would be taken for residue.
    anyio.run(ZygoteClient(crio.site.directory / "run/zygote.sock").quit)
    crio.assert_clean()


def test_tree_shows_the_title_of_each_monitor(crio: Crio) -> None:
    """Which process serves which container is read from one picture."""
    with crio.pod() as pod:
        containers = [crio.begin(pod, ["sleep", "600"], name=name) for name in ("one", "two")]
        endpoint = f"unix://{crio.site.socket}"
        command = [sys.executable, "-m", "crio_server.crioctl", "-r", endpoint, "tree"]
        picture = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        for container in containers:
            monitor = crio.info(container)["monitorPid"]
            assert f"{monitor} conmon -c {container} -n " in picture
