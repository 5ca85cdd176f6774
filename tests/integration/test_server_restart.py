"""The server ends, cleanly or not, at any moment; containers go on, and whoever asks again gets what they wanted."""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.message import Message

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration import residue
from tests.integration.harness import REPOSITORY, Crio, Refused, Site, wait_for

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("CRIO_TEST_KILLS", "20"))
"""How often the server is killed under load; set it higher to soak."""
SEED = int(os.environ.get("CRIO_TEST_SEED", "1"))
MOMENTS = 4


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """The images of this module."""
    return ("busybox", "redis")


class Redis:
    """A connection to a redis server."""

    def __init__(self, address: str) -> None:
        found = wait_for("redis", lambda: self._connected(address))
        assert found is not None
        self._connection = found
        self._connection.settimeout(10)

    def _connected(self, address: str) -> socket.socket | None:
        try:
            return socket.create_connection((address, 6379), timeout=5)
        except OSError:
            return None

    def ask(self, *words: str) -> str:
        """Send a command; returns the answer's first line."""
        text = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        self._connection.sendall(text.encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += self._connection.recv(4096)
        return answer.decode().splitlines()[-1]

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def address(crio: Crio, pod: str) -> str:
    """A pod's address."""
    found: str = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.network.ip
    return found


def test_redis_never_notices_that_the_server_restarts_or_is_killed(crio: Crio) -> None:
    """R32, and what the project promises: same ids, same process, same address, same connection."""
    with crio.pod() as pod:
        command = ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp"]
        container = crio.begin(pod, command, image=crio.images.redis)
        pids = [crio.info(container)[key] for key in ("pid", "monitorPid")]
        before, where = crio.status(container), address(crio, pod)
        redis = Redis(where)
        assert redis.ask("SET", "k", "v") == "+OK"
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            crio.restart(number)
            assert [crio.info(container)[key] for key in ("pid", "monitorPid")] == pids
            assert crio.status(container) == before
            assert address(crio, pod) == where
            assert crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.state == pb.SANDBOX_READY
            assert redis.ask("GET", "k") == "v"
            assert "redis-server" in crio.output(container, "redis-cli", "info", "server").replace("executable:", "")
        crio.stop(container, 20)
        assert crio.status(container).exit_code == 0
        redis.close()
        assert crio.client(pb.RunPodSandboxRequest(config=crio.pod_config("after"))).pod_sandbox_id
        for found in crio.client(pb.ListPodSandboxRequest()).items:
            if found.metadata.name == "after":
                crio.remove(found.id)


@pytest.mark.parametrize("damage", ["zeroed", "truncated", "missing", "directory"])
@pytest.mark.parametrize("place", ["root", "runroot"])
def test_a_journal_file_that_is_lost_costs_nothing(crio: Crio, place: str, damage: str) -> None:
    """R9, R10: one file lies on disk and one in memory; whatever becomes of one, the pod goes on as it was."""
    pod = crio.run_pod()
    container = crio.begin(pod, ["sleep", "600"])
    before = crio.status(container)
    crio.end(signal.SIGKILL)
    journal = getattr(crio.site.marks, place) / "state.db"
    spoil(journal, damage)
    crio.start()
    drop_damaged(crio)
    assert crio.status(container) == before
    assert crio.client(pb.ExecSyncRequest(container_id=container, cmd=["true"], timeout=30)).exit_code == 0
    crio.stop(container)
    assert crio.status(container).exit_code == 137
    crio.remove(pod)


@pytest.mark.parametrize("damage", ["zeroed", "missing"])
def test_pods_are_rebuilt_when_both_journal_files_are_lost(own_crio: Crio, damage: str) -> None:
    """R10: beside everything lies a copy of its record. The same ids, states, exit codes; no call notices anything."""
    crio = own_crio
    pod = crio.run_pod(port_mappings=[pb.PortMapping(container_port=80, host_port=38081)])
    container = crio.begin(pod, ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.02; done"])
    ended = crio.begin(pod, ["sh", "-c", "exit 9"], "ended")
    crio.ended(ended)

    def everything() -> list[object]:
        statuses = [crio.status(one) for one in (container, ended)]
        pods = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
        return [statuses, pods, crio.info(container), crio.client(pb.ListImagesRequest()).images]

    before = everything()
    crio.end(signal.SIGKILL)
    lose(crio, damage)
    for _ in range(2):
        crio.start()
        assert everything() == before
        told = crio.client(pb.StatusRequest(verbose=True)).info
        assert "journal/lost" in told["node"]
        crio.end(signal.SIGKILL)
    crio.start()
    assert crio.exec(container, "true").exit_code == 0
    crio.stop(container, 20)
    assert crio.status(container).exit_code == 7
    crio.remove(pod)
    drop_damaged(crio)
    crio.assert_clean()
    assert repaired(crio) == 0
    assert "journal/lost" not in crio.client(pb.StatusRequest(verbose=True)).info["node"]


def lose(crio: Crio, damage: str) -> None:
    """Damage both files of the journal of a server that has ended."""
    for place in (crio.site.marks.root, crio.site.marks.runroot):
        spoil(place / "state.db", damage)


def repaired(crio: Crio) -> int:
    """Stop the server, let `crio check` mend everything, and start it again; the check's exit code."""
    crio.end()
    repair = [*crio.argv, "check", "--repair", "-y"]
    done = subprocess.run(repair, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
    crio.start()
    drop_damaged(crio)
    return done.returncode


def drop_damaged(crio: Crio) -> None:
    """Remove the damaged journal files that were kept: no residue of a pod's."""
    for place in (crio.site.marks.root, crio.site.marks.runroot):
        for aside in place.glob("state.db.damaged-*"):
            aside.rmdir() if aside.is_dir() else aside.unlink()


def test_containers_go_on_running_when_every_record_is_lost(own_crio: Crio) -> None:
    """R10: without records nothing can be told to be residue, so nothing is killed, however often the server starts and
    whatever is recorded meanwhile; `Status` and `crio check` say so, and only its repair ends it."""
    crio = own_crio
    # Without its record a pod's network cannot be given back: only its plugins know their packet filter rules.
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
    host = pb.LinuxSandboxSecurityContext(namespace_options=options)
    pod = crio.run_pod(linux=pb.LinuxPodSandboxConfig(security_context=host))
    context = pb.LinuxContainerSecurityContext(namespace_options=options)
    container = crio.begin(pod, ["sleep", "600"], linux=pb.LinuxContainerConfig(security_context=context))
    process = psutil.Process(crio.info(container)["pid"])
    crio.end(signal.SIGKILL)
    lose(crio, "missing")
    for copy in (*crio.site.marks.runroot.glob("*/*/record"), *(crio.site.marks.root / "images").iterdir()):
        copy.unlink()
    crio.start()
    crio.pull(crio.images.busybox)
    for number in (signal.SIGTERM, signal.SIGKILL):
        crio.restart(number)
        wait_for(
            "the end of a sweep, if there is any",
            lambda: "SweepStorage" not in crio.client(pb.StatusRequest(verbose=True)).info["running"],
        )
        quarantined = json.loads(crio.client(pb.StatusRequest(verbose=True)).info["node"])["quarantined"]
        assert quarantined.keys() == {"journal/lost", f"sandbox/{pod}", f"container/{container}"}
        assert crio.client(pb.ListContainersRequest()).containers == []
        assert process.is_running()
    assert repaired(crio) == 0
    assert not process.is_running()
    assert json.loads(crio.client(pb.StatusRequest(verbose=True)).info["node"])["quarantined"] == {}
    crio.assert_clean()


def spoil(path: Path, damage: str) -> None:
    """Damage a file, and the log that belongs to it."""
    path.with_name(path.name + "-wal").unlink(missing_ok=True)
    match damage:
        case "zeroed":
            path.write_bytes(bytes(path.stat().st_size))
        case "truncated":
            os.truncate(path, 5000)
        case _:
            path.unlink()
            if damage == "directory":
                path.mkdir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_exit_while_the_server_is_down_is_reported_as_it_was(crio: Crio, number: int) -> None:
    """R18: the code is the container's own, and the time is when it ended, not when the server came back."""
    with crio.pod() as pod:
        flag = crio.site.directory / f"go{number}"
        script = "while [ ! -e /flags/go* ]; do sleep 0.02; done; rm /flags/go*; exit 23"
        flag.parent.joinpath("flags").mkdir(exist_ok=True)
        mount = pb.Mount(container_path="/flags", host_path=str(flag.parent / "flags"))
        container = crio.begin(pod, ["sh", "-c", script], mounts=[mount])
        pid = crio.info(container)["pid"]
        crio.end(number)
        (flag.parent / "flags" / "go").touch()
        wait_for("the container's end", lambda: not alive(pid))
        wait_for("the monitor's word on it", (crio.site.marks.root / "exits" / container).exists)
        ended_ns = time.time_ns()
        crio.start()
        status = crio.ended(container)
        assert status.exit_code == 23
        assert status.started_at < status.finished_at <= ended_ns


@pytest.mark.parametrize("victims", [("monitor",), ("monitor", "container"), ("container", "monitor")])
@pytest.mark.parametrize("down", [False, True], ids=["server up", "server down"])
def test_killed_monitor_and_container_end_as_exited_and_never_with_zero(
    crio: Crio, victims: tuple[str, ...], down: bool
) -> None:
    """R17: whatever died first, the container is seen to be over within seconds, and its code is not success."""
    with crio.pod() as pod:
        container = crio.begin(pod, ["sleep", "600"])
        info = crio.info(container)
        pids = {"monitor": info["monitorPid"], "container": info["pid"]}
        if down:
            crio.end(signal.SIGKILL)
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
        if down:
            crio.start()
        if "container" in victims:
            assert crio.ended(container).exit_code != 0
        else:
            # Only the monitor is dead: the process still runs, or is ended; it is never lost.
            state = crio.status(container).state
            assert state in (pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED)
            crio.stop(container)
            assert crio.ended(container).exit_code != 0
        assert not alive(pids["container"])


def alive(pid: int) -> bool:
    """Whether a process runs; one whose parent has not reaped it yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cut_off(crio: Crio, request: Message, after_s: float) -> None:
    """Send a request, kill the server after a while, and start it again."""
    future = crio.client.begin(request)
    answered = threading.Event()
    future.add_done_callback(lambda _: answered.set())
    answered.wait(after_s)
    crio.restart(signal.SIGKILL)
    future.cancel()


def length_s(call: Callable[[], object]) -> float:
    begun_s = time.monotonic()
    call()
    return time.monotonic() - begun_s


def fractions(length: float) -> Iterator[float]:
    return (length * number / MOMENTS for number in range(MOMENTS))


def test_killed_at_any_moment_of_making_a_pod_the_retry_succeeds(own_crio: Crio) -> None:
    """R7, R8: nothing of the first attempt is in the way, and nothing of it stays."""
    crio = own_crio
    for after_s in fractions(length_s(lambda: crio.remove(crio.run_pod()))):
        request = pb.RunPodSandboxRequest(config=crio.pod_config())
        cut_off(crio, request, after_s)
        pod = crio.client(request).pod_sandbox_id
        assert crio.run(pod, "echo works") == (0, "works\n")
        crio.remove(pod)
        crio.assert_clean()


def test_killed_at_any_moment_of_making_a_container_the_retry_succeeds(own_crio: Crio) -> None:
    """R26, R27: no monitor and no process without a record."""
    crio = own_crio
    with crio.pod() as pod:
        length = length_s(lambda: crio.begin(pod, ["sleep", "600"], "measured"))
        for number, after_s in enumerate(fractions(length)):
            main = crio.container_config(["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.02; done"], f"c{number}")
            request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=main)
            cut_off(crio, request, after_s)
            container = crio.client(request).container_id
            cut_off(crio, pb.StartContainerRequest(container_id=container), after_s / 4)
            crio.client(pb.StartContainerRequest(container_id=container))
            assert crio.exec(container, "true").exit_code == 0
            stop = pb.StopContainerRequest(container_id=container, timeout=20)
            cut_off(crio, stop, after_s / 4)
            crio.client(stop)
            assert crio.status(container).exit_code in (5, 137)
            remove = pb.RemoveContainerRequest(container_id=container)
            cut_off(crio, remove, after_s / 2)
            crio.client(remove)


@pytest.mark.parametrize("kind", ["stop", "remove"])
def test_killed_at_any_moment_of_ending_a_pod_the_retry_succeeds(own_crio: Crio, kind: str) -> None:
    """R4, R5: what was owed is still owed after the restart, and is paid."""
    crio = own_crio

    def ending(pod: str) -> Message:
        stop, remove = pb.StopPodSandboxRequest(pod_sandbox_id=pod), pb.RemovePodSandboxRequest(pod_sandbox_id=pod)
        return stop if kind == "stop" else remove

    def filled() -> str:
        pod = crio.run_pod()
        crio.begin(pod, ["sleep", "600"])
        return pod

    first = filled()
    length = length_s(lambda: crio.client(ending(first)))
    for after_s in fractions(length):
        pod = filled()
        cut_off(crio, ending(pod), after_s)
        crio.client(ending(pod))
        crio.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    crio.remove(first)


def test_killed_while_pulling_the_next_pull_succeeds(own_crio: Crio) -> None:
    """R12: half a layer is never taken for a whole one."""
    crio = own_crio
    request = pb.PullImageRequest(image=pb.ImageSpec(image=crio.images.redis))
    for after_s in (0.02, 0.1, 0.2):
        cut_off(crio, request, after_s)
    crio.client(request)
    with crio.pod() as pod:
        container = crio.begin(pod, ["redis-server", "--version"], image=crio.images.redis)
        assert crio.ended(container).exit_code == 0
    crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=crio.images.redis)))
    assert not [line for line in crio.left() if "/ingest/" in line or "/unpacking/" in line]


def test_killed_at_random_under_busy_clients_loses_nothing(own_crio: Crio) -> None:
    """R7, R26, R27: after any number of kills each pod can be finished by its client, and then nothing is left."""
    crio, choice, over = own_crio, random.Random(SEED), threading.Event()
    faults: list[str] = []
    finished = [0]

    def insist(request: Message) -> object:
        """Ask until the server has answered; a refusal is an answer."""
        while True:
            try:
                answer = crio.client.attempt(request, timeout_s=20)
            except (ValueError, AttributeError):  # The channel was closed under the call.
                answer = None
            gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
            if answer is not None and not (isinstance(answer, Refused) and answer.code in gone):
                return answer
            over.wait(0.02)

    def live(worker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            config = crio.pod_config(f"w{worker}-{number}")
            pod = insist(pb.RunPodSandboxRequest(config=config))
            if isinstance(pod, Refused):
                faults.append(f"run: {pod}")
                return
            assert isinstance(pod, pb.RunPodSandboxResponse)
            main = crio.container_config(["sleep", "600"])
            made = insist(pb.CreateContainerRequest(pod_sandbox_id=pod.pod_sandbox_id, config=main))
            if isinstance(made, pb.CreateContainerResponse):
                requests = [
                    pb.StartContainerRequest(container_id=made.container_id),
                    pb.StopContainerRequest(container_id=made.container_id, timeout=0),
                ]
                faults.extend(
                    f"{one.DESCRIPTOR.name}: {got}" for one in requests if isinstance(got := insist(one), Refused)
                )
            else:
                faults.append(f"create: {made}")
            for request in (
                pb.StopPodSandboxRequest(pod_sandbox_id=pod.pod_sandbox_id),
                pb.RemovePodSandboxRequest(pod_sandbox_id=pod.pod_sandbox_id),
            ):
                if isinstance(got := insist(request), Refused):
                    faults.append(f"{request.DESCRIPTOR.name}: {got}")
            finished[0] += 1

    workers = [threading.Thread(target=live, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(KILLS):
            over.wait(choice.uniform(0.0, 0.6))
            crio.restart(signal.SIGKILL)
    finally:
        over.set()
        for worker in workers:
            worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert faults == [], f"seed {SEED}"
    assert finished[0] >= 3, f"seed {SEED}"
    crio.remove_all()
    crio.assert_clean()


def test_containers_of_an_ended_server_and_site_are_all_known(site: Site) -> None:
    """The residue check itself sees what a server leaves running: a check that finds nothing proves nothing."""
    with Crio(site) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        pod = crio.run_pod(port_mappings=[pb.PortMapping(container_port=80, host_port=38080)])
        crio.begin(pod, ["sleep", "600"])
        kinds = {line.split()[0] for line in crio.left()}
        assert kinds == {"process", "mount", "link", "address", "rule", "cgroup", "file"}
        crio.end()
        assert {row.split()[0] for row in residue.journal_rows(site.marks)} == {"sandbox", "container"}
        crio.start()
        crio.remove_all()
        crio.assert_clean()
        crio.end()
        assert residue.journal_rows(site.marks) == []
        assert Path(site.directory).exists()
