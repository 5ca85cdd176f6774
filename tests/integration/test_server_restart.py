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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import orjson
import psutil
import pytest
from google.protobuf.message import Message

from crio_io.journal import Journal
from crio_io.journal_pair import Put
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import REPOSITORY, Crio, Refused
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("CRIO_TEST_KILLS", "20"))
"""How often the server is killed under load; set it higher to soak."""
SEED = int(os.environ.get("CRIO_TEST_SEED", "1"))
MOMENTS = 4
NO_ANSWER = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN),
    grpc.StatusCode.DEADLINE_EXCEEDED,  # A connection that waits longer with each server that it does not find.
)
"""Of a call that was interrupted: its client asks again. One that is never answered keeps its client from resting."""
REST_EVERY = 6
"""After so many kills a container ends while the server is down, the clients rest, and everything is checked."""


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


@pytest.mark.parametrize("kind", ["sandbox", "container"])
def test_a_record_that_cannot_be_read_is_named_and_everything_else_is_served(own_crio: Crio, kind: str) -> None:
    """R9: here it is of a later version's schema. What it owns goes on, over restarts, until it can be read again."""
    crio, marks = own_crio, own_crio.site.marks
    image = pb.ImageSpec(image=crio.images.told)
    crio.pull(image.image)
    pods = [crio.run_pod() for _ in range(2)]
    entry, sleep = ["sh", "-c"], ["sleep 600"]
    containers = [
        crio.begin(pods[0], entry, args=sleep, image=image.image),
        crio.begin(pods[1], entry, args=sleep),
    ]
    bad = {"sandbox": pods, "container": containers}[kind][0]
    process = psutil.Process(crio.info(containers[0])["pid"])
    before = [crio.status(one) for one in containers]

    async def rewrite(version: int) -> None:
        journal, loaded = await Journal.open(marks.root / "state.db", marks.runroot / "state.db")
        row = next(row for row in loaded.rows if row.id == bad)
        await journal.write([Put(kind=kind, id=bad, data=orjson.dumps(orjson.loads(row.data) | {"version": version}))])
        await journal.close()

    crio.end(signal.SIGKILL)
    anyio.run(rewrite, 99)
    for _ in range(2):
        crio.start()
        quarantined = json.loads(crio.client(pb.StatusRequest(verbose=True)).info["node"])["quarantined"]
        assert quarantined.keys() == {f"{kind}/{bad}"}
        assert "99" in quarantined[f"{kind}/{bad}"]
        listed = {one.id for one in crio.client(pb.ListPodSandboxRequest()).items}
        listed |= {one.id for one in crio.client(pb.ListContainersRequest()).containers}
        assert listed == {*pods, *containers} - {bad}
        assert crio.status(containers[1]) == before[1]
        assert crio.exec(containers[1], "true").exit_code == 0
        with crio.pod() as other:
            assert crio.run(other, "echo works") == (0, "works\n")
        assert process.is_running()
        if kind == "container":  # Nobody is known to use this image, and yet its layers have to stay.
            crio.client(pb.RemoveImageRequest(image=image))
        crio.end(signal.SIGKILL)
    anyio.run(rewrite, 1)
    crio.start()
    assert [crio.status(one) for one in containers] == before
    assert "web" in crio.output(containers[0], "cat", "/etc/passwd")
    crio.remove(*pods)
    crio.client(pb.RemoveImageRequest(image=image))


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


def wait_for_end(pid: int) -> None:
    """Wait until a process runs no longer."""
    wait_for(f"the end of process {pid}", lambda: not alive(pid))


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


class Clients:
    """Four clients of a server that is killed again and again. Each goes through lives of its own kind, and asks until
    it is answered; a refusal is a fault."""

    def __init__(self, crio: Crio) -> None:
        self.crio = crio
        self.over = threading.Event()
        self.faults: list[str] = []
        self.finished = [0] * len(self.KINDS)
        self._go = threading.Event()
        self._go.set()
        self._idle = [False] * len(self.KINDS)
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(len(self.KINDS))]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._go.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Every client has finished the life it was in, and begins no other within the block."""
        self._go.clear()
        wait_for("the clients to come to rest", lambda: all(self._idle), timeout_s=60)
        yield
        self._go.set()

    def _work(self, number: int) -> None:
        lives = 0
        try:
            while not self.over.is_set():
                self._idle[number] = True
                self._go.wait()
                self._idle[number] = False
                lives += 1
                self.KINDS[number](self, f"w{number}-{lives}")
                self.finished[number] += 1
        except BaseException as error:
            self.faults.append(f"client {number}: {error!r}")
        finally:
            self._idle[number] = True

    def insist(self, request: Message) -> Any:
        """Ask until the server has answered."""
        while True:
            try:
                answer = self.crio.client.attempt(request, timeout_s=10)
            except (ValueError, AttributeError):  # The channel was closed under the call.
                answer = None
            if answer is not None and not (isinstance(answer, Refused) and answer.code in NO_ANSWER):
                if isinstance(answer, Refused):
                    raise AssertionError(f"{request.DESCRIPTOR.name}: {answer}")
                return answer
            self.over.wait(0.02)

    def pod(self, name: str, pid: pb.NamespaceMode = pb.CONTAINER) -> None:
        """A pod with a container that is stopped."""
        crio = self.crio
        context = pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(pid=pid))
        config = crio.pod_config(name, linux=pb.LinuxPodSandboxConfig(security_context=context))
        pod = self.insist(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
        main = crio.container_config(["sleep", "600"])
        made = self.insist(pb.CreateContainerRequest(pod_sandbox_id=pod, config=main)).container_id
        self.insist(pb.StartContainerRequest(container_id=made))
        self.insist(pb.StopContainerRequest(container_id=made, timeout=0))
        self.insist(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        self.insist(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))

    def pod_with_infra(self, name: str) -> None:
        """The same with one process namespace, and so with an infra container that holds it."""
        self.pod(name, pid=pb.POD)

    def image(self, name: str) -> None:
        """An image comes and goes."""
        image = pb.ImageSpec(image=self.crio.images.told)
        ref = self.insist(pb.PullImageRequest(image=image)).image_ref
        assert self.insist(pb.ImageStatusRequest(image=image)).image.id == ref
        self.insist(pb.RemoveImageRequest(image=image))
        assert not self.insist(pb.ImageStatusRequest(image=image)).image.id

    KINDS = (pod, pod, pod_with_infra, image)


def begin_timed(crio: Crio, pod: str, number: int) -> tuple[str, Path]:
    """A container that ends with its number as its code when a file appears; returns its id, and that file."""
    flags = crio.site.directory / "flags"
    flags.mkdir(exist_ok=True)
    script = f"while [ ! -e /flags/{number} ]; do sleep 0.05; done; exit {number}"
    mount = pb.Mount(container_path="/flags", host_path=str(flags))
    return crio.begin(pod, ["sh", "-c", script], f"timed{number}", mounts=[mount]), flags / str(number)


def assert_nothing_is_found(crio: Crio) -> None:
    """What `crio check` says once the server has done all that it had to."""
    check = [*crio.argv, "check"]

    def clean() -> bool:
        done = subprocess.run(check, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
        findings[:] = [done.stdout + done.stderr]
        return done.returncode == 0

    findings: list[str] = []
    try:
        wait_for("a check that finds nothing", clean)
    except AssertionError as error:
        raise AssertionError(findings[0]) from error


def test_killed_at_random_under_busy_clients_loses_nothing(own_crio: Crio) -> None:
    """R7, R18, R26, R27, R30: whatever four clients do, each gets what it wants in the end; containers that run never
    notice, those that end meanwhile are reported as they ended, and at rest there is nothing but what is owned."""
    crio, choice = own_crio, random.Random(SEED)
    crio.pull(crio.images.pause)
    crio.note_baseline()
    steady = crio.run_pod(name="steady")
    lasting = crio.begin(steady, ["sleep", "600"], "lasting")
    before, info = crio.status(lasting), crio.info(lasting)
    rounds = range(KILLS // REST_EVERY)
    timed = [begin_timed(crio, steady, 11 + number % 100) for number in rounds]
    with Clients(crio) as clients:
        for kill in range(KILLS):
            clients.over.wait(choice.uniform(0.0, 0.6))
            number, rest = divmod(kill, REST_EVERY)
            if rest or number not in rounds:
                crio.restart(signal.SIGKILL)
                continue
            container, flag = timed[number]
            pid = crio.info(container)["pid"]
            crio.end(signal.SIGKILL)
            flag.touch()
            wait_for_end(pid)
            ended_ns = time.time_ns()
            crio.start()
            status = crio.ended(container)
            assert status.exit_code == int(flag.name), f"seed {SEED}"
            assert status.finished_at <= ended_ns + 200_000_000
            assert (crio.status(lasting), crio.info(lasting)) == (before, info)
            with clients.paused():
                assert_nothing_is_found(crio)
                assert clients.faults == [], f"seed {SEED}"
    assert clients.faults == [], f"seed {SEED}"
    assert all(clients.finished), f"seed {SEED}: {clients.finished}"
    assert (crio.status(lasting), crio.info(lasting)) == (before, info)
    crio.remove_all()
    crio.assert_clean()
    assert_nothing_is_found(crio)
