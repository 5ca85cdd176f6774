"""One life of a container under each monitor that a configuration can name, and what a server shows of monitors."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import psutil
import pytest

from crio_io.zygote import ZygoteClient
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import REPOSITORY, Crio, Site, read_log
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

SCRIPT = str(Path(sys.executable).with_name("crio-conmon"))
HANDLER = """
[crio.runtime.runtimes.watched]
runtime_path = "/usr/sbin/runc"
runtime_root = "{root}"
monitor_path = "{program}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to choose a monitor: flags, a handler of its own, and what its processes show as their program."""

    flags: tuple[str, ...] = ()
    handler_program: str = ""
    shown: str

    @property
    def handler(self) -> str:
        return "watched" if self.handler_program else ""


CHOICES = {
    "built-in": Choice(shown="conmon -c "),
    "conmon": Choice(flags=("--conmon", "/usr/bin/conmon"), shown="/usr/bin/conmon"),
    "script": Choice(flags=("--conmon", SCRIPT), shown=SCRIPT),
    "handler with conmon": Choice(handler_program="/usr/bin/conmon", shown="/usr/bin/conmon"),
    "handler with script": Choice(handler_program=SCRIPT, shown=SCRIPT),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_life_of_a_container_is_the_same_under_every_monitor(site: Site, choice: Choice) -> None:
    """The monitor is replaceable: create, log, exec, restart of the server, reopen, stop, and an OOM kill."""
    if choice.handler_program:
        folder = site.directory / "conf.d"
        folder.mkdir(exist_ok=True)
        text = HANDLER.format(root=site.marks.runtime_root, program=choice.handler_program)
        (folder / "10-monitor.conf").write_text(text)
    with Crio(site, *choice.flags) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        pod = crio.client(
            pb.RunPodSandboxRequest(config=crio.pod_config(), runtime_handler=choice.handler)
        ).pod_sandbox_id
        try:
            script = "trap 'exit 7' TERM; trap 'echo two' USR1; echo one; while :; do sleep 0.05; done"
            container = crio.begin(pod, ["sh", "-c", script])
            log = Path(crio.status(container).log_path)
            wait_for("the first line", lambda: [one.text for one in read_log(log)] == ["one\n"])
            monitor = crio.info(container)["monitorPid"]
            assert choice.shown.encode() in Path(f"/proc/{monitor}/cmdline").read_bytes()
            assert crio.output(container, "echo", "inside") == "inside\n"

            crio.restart(signal.SIGKILL)
            assert crio.status(container).state == pb.CONTAINER_RUNNING
            assert crio.info(container)["monitorPid"] == monitor
            rotated = log.rename(log.with_suffix(".1"))
            crio.client(pb.ReopenContainerLogRequest(container_id=container))
            assert log.exists()
            os.kill(crio.info(container)["pid"], signal.SIGUSR1)
            wait_for("the second line", lambda: [one.text for one in read_log(log)] == ["two\n"])
            assert [one.text for one in read_log(rotated)] == ["one\n"]
            crio.stop(container, timeout_s=20)
            assert crio.ended(container).exit_code == 7

            linux = pb.LinuxContainerConfig()
            linux.resources.memory_limit_in_bytes = 16 << 20
            hungry = crio.ended(crio.begin(pod, ["busybox", "tail", "/dev/zero"], "hungry", linux=linux))
            assert (hungry.exit_code, hungry.reason) == (137, "OOMKilled")
        finally:
            crio.remove(pod)
        crio.assert_clean()


def test_server_that_was_killed_finds_the_same_zygote(own_crio: Crio) -> None:
    """It outlives the server, so that the first container after a restart is as quick as any."""
    client = ZygoteClient(own_crio.site.directory / "run/zygote.sock")
    before = anyio.run(client.ensure)
    own_crio.restart(signal.SIGKILL)
    assert anyio.run(client.ensure) == before


def test_r40_server_that_is_away_costs_nothing_of_log_or_exit(own_crio: Crio) -> None:
    """Log and exit are the monitor's work: the container keeps its pace while nobody serves."""
    crio = own_crio
    with crio.pod() as pod:
        script = "until test -e /tmp/go; do sleep 0.05; done; seq 200000; exit 5"
        container = crio.begin(pod, ["sh", "-c", f"mkdir -p /tmp; {script}"])
        pid = crio.info(container)["pid"]
        crio.end(signal.SIGKILL)
        Path(f"/proc/{pid}/root/tmp").mkdir(exist_ok=True)
        Path(f"/proc/{pid}/root/tmp/go").touch()
        wait_for("the container's end", lambda: not psutil.pid_exists(pid))
        crio.start()
        status = crio.ended(container)
        assert status.exit_code == 5
        text = "".join(one.text for one in read_log(Path(status.log_path)))
        assert text == "".join(f"{number}\n" for number in range(1, 200001))


@pytest.fixture
def small(site: Site) -> Iterator[Path]:
    """A directory for logs on a disk that is soon full."""
    folder = site.directory / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "criotest-small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def explained(crio: Crio, wanted: str) -> str:
    command = [sys.executable, "-m", "crio_server.crioctl", "-r", f"unix://{crio.site.socket}", "explain", wanted]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_bytes_that_a_full_disk_cost_are_shown(small: Path, own_crio: Crio) -> None:
    """R40: the workload goes on, and whoever looks at it sees that its log is not whole."""
    crio = own_crio
    with crio.pod(log_directory=str(small)) as pod:
        whole = crio.begin(pod, ["true"], "whole")
        crio.ended(whole)
        assert crio.info(whole)["logDroppedBytes"] == 0
        container = crio.begin(pod, ["sh", "-c", "seq 100000; exec sleep 600"], "loud")
        command = Path(f"/proc/{crio.info(container)['pid']}/cmdline")
        wait_for("all of the output", lambda: command.read_bytes().startswith(b"sleep"))
        wait_for("a loss that is shown", lambda: crio.info(container)["logDroppedBytes"])
        crio.stop(container)
        crio.ended(container)
        kept = sum(len(one.text.rstrip("\n")) for one in read_log(Path(crio.status(container).log_path)))
        lost = crio.info(container)["logDroppedBytes"]
        assert lost + kept == sum(len(str(number)) for number in range(1, 100001))
        assert f"its log did not take {lost} bytes" in explained(crio, container)
        wait_for("a warning", lambda: f"container {container}: its log takes no more" in crio.log.read_text())
        assert crio.log.read_text().count("its log takes no more") == 1


def test_monitor_that_was_killed_is_shown_before_it_is_missed(own_crio: Crio) -> None:
    """R17: nobody writes the log or will see the exit code; an administrator can restart the container in time."""
    crio = own_crio
    with crio.pod() as pod:
        container = crio.begin(pod, ["sleep", "600"])
        info = crio.info(container)
        assert info["unwatched"] is False
        handle = os.pidfd_open(info["monitorPid"])
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
        wait_for("the server shows it", lambda: crio.info(container)["unwatched"])
        assert "its monitor has ended" in explained(crio, container)
        wait_for("a warning", lambda: f"container {container}: its monitor" in crio.log.read_text())
        check = subprocess.run([*crio.argv, "check"], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
        assert container in check.stdout and "nobody writes its log" in check.stdout, check
        crio.stop(container)
        status = crio.ended(container)
        assert status.exit_code != 0
        assert crio.info(container)["unwatched"] is False
