"""How the server begins, reloads and ends: its socket, its signals, its configuration, and its own bugs."""

import os
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import anyio
import grpc
import pytest

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.cri import (
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
)
from crio_core.errors import OperationError
from crio_core.node import Node
from crio_core.replies import Done
from crio_core.sim.simulation import SETTINGS
from crio_io.driver import Driver
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration import residue
from tests.integration.harness import Crio, Site
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration


def test_socket_is_for_root_and_its_group_whatever_the_umask(site: Site) -> None:
    """CVE-2021-41103 and its kin: who can write to the socket is root on the node. State is nobody else's to see."""
    before = os.umask(0)
    try:
        with Crio(site):
            found = site.socket.stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o660
            for directory in (site.marks.root, site.marks.runroot):
                assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert not site.socket.exists()


def test_stale_socket_is_replaced_and_a_live_one_refused(site: Site) -> None:
    """After a crash the server starts by itself; a second server must not take the first one's place."""
    with Crio(site) as first:
        first.end(signal.SIGKILL)
        assert site.socket.exists()
        first.start()
        second = Crio(site)
        done = subprocess.run(second.argv, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1
        assert str(site.socket) in done.stderr
        assert "Traceback" not in done.stderr
        first.client(pb.VersionRequest())


def test_file_in_the_place_of_the_socket_is_left_alone(site: Site) -> None:
    """A wrong path in the configuration must not cost anybody a file."""
    site.socket.write_text("precious")
    done = subprocess.run(Crio(site).argv, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, site.socket.read_text()) == (1, "precious")
    assert "no socket" in done.stderr


def test_second_server_on_the_same_state_is_refused(site: Site) -> None:
    """Two servers on one journal would undo each other's pods."""
    with Crio(site):
        other = Crio(site, "--listen", str(site.directory / "other.sock"))
        done = subprocess.run(other.argv, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert str(site.marks.root) in done.stderr


def write(site: Site, text: str) -> None:
    directory = site.directory / "conf.d"
    directory.mkdir(exist_ok=True)
    (directory / "50-test.conf").write_text(text)


def test_hangup_takes_what_can_be_taken_and_serving_goes_on(site: Site) -> None:
    """A reload that is wrong changes nothing; one that is right counts at once; containers notice neither."""
    with Crio(site) as crio:
        crio.pull(crio.images.busybox)
        with crio.pod() as pod:
            container = crio.begin(pod, ["sleep", "600"])
            write(site, "[crio.runtime]\npids_limit = 'many'\n")
            crio.signal(signal.SIGHUP)
            wait_for("the refusal in the log", lambda: "reload: the configuration in force is kept" in crio.tail())
            write(site, '[crio.runtime]\ndefault_env = ["RELOADED=yes"]\n[crio.api]\nlisten = "/elsewhere.sock"\n')
            crio.signal(signal.SIGHUP)
            wait_for("the reload in the log", lambda: "reload: " in crio.tail().rpartition("is kept")[2])
            code, text = crio.run(pod, "echo $RELOADED", "after")
            assert (code, text) == (0, "yes\n")
            assert crio.output(container, "echo", "alive") == "alive\n"


def handlers(crio: Crio) -> list[str]:
    return [one.name for one in crio.client(pb.StatusRequest()).runtime_handlers]


def test_hangup_brings_handlers_and_limits_that_the_next_pod_and_container_have(site: Site) -> None:
    """What a reload says that it took must count: in Status, for a pod that asks, and for the next log."""
    runc = shutil.which("runc")
    assert runc is not None
    with Crio(site) as crio:
        crio.pull(crio.images.busybox)
        assert handlers(crio) == ["", "runc"]
        write(
            site,
            f"""
[crio.runtime]
log_size_max = 8192
[crio.runtime.runtimes.other]
runtime_path = "{runc}"
runtime_root = "{site.marks.runtime_root}"
monitor_cgroup = "/{site.marks.name}/monitors"
""",
        )
        crio.signal(signal.SIGHUP)
        wait_for("the new handler", lambda: handlers(crio) == ["", "runc", "other"])
        config = crio.pod_config()
        request = pb.RunPodSandboxRequest(config=config, runtime_handler="other")
        pod = crio.client(request).pod_sandbox_id
        code, text = crio.run(pod, "yes 1234567 | head -n 10000", "talker")
        assert (code, text[-8:]) == (0, "1234567\n")
        assert len(text) < 8192, "the log was never started anew"
        container = crio.begin(pod, ["sleep", "600"])
        monitor = Path(f"/proc/{crio.info(container)['monitorPid']}/cgroup").read_text()
        assert f"/{site.marks.name}/monitors" in monitor
        crio.remove(pod)
    for path in residue.cgroups(site.marks):  # the configuration's own, so nobody else removes it
        path.rmdir()


def test_missing_program_of_one_handler_costs_its_pods_only(site: Site) -> None:
    """A node whose second runtime was uninstalled serves all others, and says what is missing."""
    write(site, "[crio.runtime.runtimes.other]\nruntime_path = '/no/such/runtime'\n")
    with Crio(site) as crio:
        crio.pull(crio.images.busybox)
        assert "/no/such/runtime" in crio.tail()
        assert handlers(crio) == ["", "runc"]
        refused = crio.client.refusal(pb.RunPodSandboxRequest(config=crio.pod_config(), runtime_handler="other"))
        assert (refused.code, "'other'" in refused.message) == (grpc.StatusCode.NOT_FOUND, True)
        with crio.pod():
            pass
    write(site, "[crio.runtime]\ndefault_runtime = 'other'\n[crio.runtime.runtimes.other]\nruntime_path = '/no/such'\n")
    done = subprocess.run(Crio(site).argv, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, "/no/such" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[crio.runtime]\npids_limit = 'many'\n", ("50-test.conf", "pids_limit", "many", "expected")),
        ("[crio.runtime]\ncgroup_manager = 'fancy'\n", ("50-test.conf", "cgroup_manager", "fancy", "expected")),
        ("this is no TOML", ("50-test.conf",)),
        ("[crio.runtime]\nseccomp_profile = '/no/such/profile.json'\n", ("seccomp_profile", "/no/such/profile.json")),
    ],
)
def test_wrong_configuration_stops_the_start_with_one_message(site: Site, text: str, words: tuple[str, ...]) -> None:
    """File, key, value and what was expected: a person can repair it without reading code."""
    write(site, text)
    done = subprocess.run(Crio(site).argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not site.socket.exists()


def test_unknown_key_warns_and_the_server_starts(site: Site) -> None:
    """A configuration of a later version must not stop a node."""
    write(site, "[crio.runtime]\nno_such_key = 1\n")
    with Crio(site) as crio:
        assert "no_such_key" in crio.log.read_text()
        assert "50-test.conf" in crio.log.read_text()


def test_client_that_talks_nonsense_or_nothing_disturbs_nobody(site: Site) -> None:
    """The socket is reachable for every process of its group: none of them may stop the others."""
    with Crio(site) as crio:
        idle = []
        for payload in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(4096),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 999,
        ):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(site.socket))
            connection.sendall(payload)
            idle.append(connection)
        for _ in range(3):
            crio.client(pb.VersionRequest())
        for connection in idle:
            connection.close()
        assert crio.client(pb.StatusRequest()).status.conditions


class Faulty(Node):
    """A node with a bug: it cannot apply one kind of outcome."""

    def step(self, event: ev.Event) -> tuple[fx.Effect, ...]:
        if isinstance(event, ev.EffectEnded) and isinstance(event.outcome, ev.RecordSaved):
            raise TypeError("a bug of the core")
        return super().step(event)


class Hands:
    """Carries out nothing and says that it went well."""

    async def run(self, order: fx.Order) -> ev.Outcome:
        """The outcome of an order."""
        return ev.RecordSaved() if isinstance(order, fx.SaveRecord) else ev.RecordDeleted()


@pytest.mark.anyio
async def test_bug_of_the_core_fails_one_call_and_not_the_server() -> None:
    """R9: what one request runs into must not end the process that serves all others."""
    metadata = PodSandboxMetadata(name="web", uid="u", namespace="default")
    host = LinuxSandboxSecurityContext(namespace_options=NamespaceOption(network=NamespaceMode.NODE))
    config = PodSandboxConfig(metadata=metadata, linux=LinuxPodSandboxConfig(security_context=host))
    driver = Driver(Faulty(SETTINGS), Hands())
    async with driver.running():
        with anyio.fail_after(10):
            with pytest.raises(OperationError, match="a bug of the core"):
                await driver.call(rq.RunPodSandbox(config=config))
            assert await driver.call(rq.StopPodSandbox(sandbox_id="x" * 64)) == Done()


@pytest.fixture
def anyio_backend() -> str:
    """The server's own."""
    return "asyncio"
