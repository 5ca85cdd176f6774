"""A server that starts with a thousand recorded containers serves at once, whatever looking at them takes."""

import json
import os
import signal
import threading
from pathlib import Path

import anyio
import psutil
import pytest

from bench.starts import RECORDED, add_records, drop_records
from crio_io.cgroups import Cgroups
from crio_io.exits import BEGINNINGS_MAX, ExitWatcher
from crio_io.runtime import processes
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, Site
from tests.integration.waiting import wait_for, wait_meanwhile

pytestmark = pytest.mark.integration


def test_lists_and_status_answer_while_every_look_hangs_and_no_program_was_started(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R31, R33: nothing before serving waits for a look or a program; what runs is found to run afterwards."""
    hang, programs = site.directory / "hang", site.directory / "programs"
    monkeypatch.setenv("CRIO_TEST_HANG", str(hang))
    monkeypatch.setenv("CRIO_TEST_PROGRAMS", str(programs))
    journal = (site.marks.root / "state.db", site.marks.runroot / "state.db")
    with Crio(site, launcher=("-m", "tests.integration.hanging_server")) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        pod = crio.run_pod()
        container = crio.begin(pod, ["sleep", "600"])
        before, pid = crio.status(container), crio.info(container)["pid"]
        assert programs.read_text()
        crio.end()
        made = anyio.run(add_records, *journal, RECORDED, True)
        hang.touch()
        programs.unlink()

        crio.start()
        # What a runtime knows is asked beside everything else, once.
        started = [line for line in programs.read_text().splitlines() if "'features']" not in line]
        assert started == []
        assert len(crio.client(pb.ListContainersRequest()).containers) == RECORDED + 1
        assert len(crio.client(pb.ListPodSandboxRequest()).items) == RECORDED + 1
        running = json.loads(crio.client(pb.StatusRequest(verbose=True)).info["running"])
        assert sum(one["what"] == "ObserveSandbox" for one in running) == RECORDED + 1
        assert crio.status(container) == before
        assert crio.exec(container, "true").exit_code == 0

        hang.unlink()
        wait_for(
            "the pods without namespaces to be found out",
            lambda: [one.id for one in ready(crio)] == [pod],
            timeout_s=60,
        )
        assert crio.status(container) == before
        assert psutil.pid_exists(pid)
        crio.end(signal.SIGKILL)
        anyio.run(drop_records, *journal, made)
        for record in made:
            for place in ("sandboxes", "containers"):
                directory = site.marks.runroot / place / record.id
                if directory.is_dir():
                    (directory / "record").unlink()
                    directory.rmdir()
        crio.start()
        crio.remove_all()
        crio.assert_clean()


class SlowCounters:
    """Counters of control groups that answer when they are let, and that know how many ask at once."""

    def __init__(self) -> None:
        self.asking = self.most = self.asked = 0
        self.let = threading.Event()
        self._lock = threading.Lock()

    def kills(self) -> int:
        """How many a control group counts: none."""
        with self._lock:
            self.asking += 1
            self.asked += 1
            self.most = max(self.most, self.asking)
        assert self.let.wait(30)
        with self._lock:
            self.asking -= 1
        return 0


@pytest.mark.anyio
async def test_of_many_watches_a_few_are_begun_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R31: begun all at once they held up the first call by more than a second, though nothing had to wait for them."""
    counters = SlowCounters()
    monkeypatch.setattr(Cgroups, "memory_path", lambda self, pid: "/criotest")
    monkeypatch.setattr(Cgroups, "oom_kills", lambda self, path: counters.kills())
    watcher = ExitWatcher(tmp_path, tmp_path, Cgroups.detect())
    facts = processes.look(os.getpid())
    assert facts is not None
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(watcher.wait, f"c{number}", os.getpid(), facts.start_ticks, 0)
        with anyio.fail_after(30):
            await wait_meanwhile("as many as may", lambda: counters.asked >= BEGINNINGS_MAX)
            for _ in range(100):
                await anyio.sleep(0)
            assert counters.asked == BEGINNINGS_MAX
            counters.let.set()
            await wait_meanwhile("all the others", lambda: counters.asked >= 50)
        assert counters.most == BEGINNINGS_MAX
        tasks.cancel_scope.cancel()


def ready(crio: Crio) -> list[pb.PodSandbox]:
    """Pods that are ready."""
    wanted = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))
    return list(crio.client(pb.ListPodSandboxRequest(filter=wanted)).items)
