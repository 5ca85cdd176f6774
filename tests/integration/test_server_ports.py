"""Port forwarding over a real server: connections into a pod's network, and what becomes of each."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from grpc import StatusCode

from crio_core.streaming.protocol import Wire
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio
from tests.integration.streaming_client import Forwarding
from tests.integration.test_server_streaming import descriptors, refusal
from tests.integration.waiting import wait_for

REDIS = 6379
NOBODY = 9
WIRES = (Wire.SPDY, Wire.TUNNEL, Wire.WEBSOCKET)


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    return ("busybox", "redis")


@pytest.fixture(scope="module")
def pod(shared_crio: Crio) -> Iterator[str]:
    """A pod with a redis that listens at its loopback address only, and a `cat` behind a port."""
    crio = shared_crio
    with crio.pod() as pod:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(REDIS), "--save", ""]
        redis = crio.begin(pod, command, "redis", image=crio.images.redis)
        wait_for("redis", lambda: crio.exec(redis, "redis-cli", "ping").stdout == b"PONG\n")
        yield pod


@pytest.fixture
def crio(shared_crio: Crio) -> Iterator[Crio]:
    """The module's server; a descriptor that a test leaves behind fails it."""
    before = descriptors(shared_crio)
    yield shared_crio
    wait_for("no descriptor left", lambda: descriptors(shared_crio) <= before)


def forward(crio: Crio, pod: str, *ports: int, wire: Wire = Wire.SPDY) -> Forwarding:
    """Ports of a pod."""
    answer: pb.PortForwardResponse = crio.client(pb.PortForwardRequest(pod_sandbox_id=pod, port=ports))
    return Forwarding(answer.url, wire, ports)


def ask(forwarding: Forwarding, number: int, line: bytes, answer: bytes) -> None:
    """Say something to redis and wait for its answer."""
    forwarding.data[number].clear()
    forwarding.send(number, line + b"\r\n")
    forwarding.until(lambda: bytes(forwarding.data[number]).endswith(answer))


@pytest.mark.parametrize("wire", WIRES)
def test_connections_reach_a_port_at_the_pods_loopback_address(crio: Crio, pod: str, wire: Wire) -> None:
    """What listens inside the pod only is what port forwarding is for."""
    with forward(crio, pod, REDIS, wire=wire) as forwarding:
        number = forwarding.connect(REDIS)
        ask(forwarding, number, b"SET a 1", b"+OK\r\n")
        ask(forwarding, number, b"GET a", b"$1\r\n1\r\n")


@pytest.mark.parametrize("wire", [Wire.SPDY, Wire.TUNNEL])
def test_connections_are_apart_and_one_may_end_without_the_others(crio: Crio, pod: str, wire: Wire) -> None:
    """A browser has several at a time."""
    with forward(crio, pod, REDIS, wire=wire) as forwarding:
        numbers = [forwarding.connect(REDIS) for _ in range(10)]
        for number in numbers:
            ask(forwarding, number, b"CLIENT SETNAME c%d" % number, b"+OK\r\n")
        forwarding.drop(numbers[0])
        forwarding.end(numbers[1])
        forwarding.until(lambda: numbers[1] in forwarding.ended)
        for number in numbers[2:]:
            ask(forwarding, number, b"CLIENT GETNAME", b"c%d\r\n" % number)


def test_port_that_nobody_listens_at_fails_and_the_others_go_on(crio: Crio, pod: str) -> None:
    """The reason is on the connection's own error stream."""
    with forward(crio, pod, REDIS, NOBODY) as forwarding:
        bad, good = forwarding.connect(NOBODY), forwarding.connect(REDIS)
        forwarding.until(lambda: bad in forwarding.broken)
        assert f"port {NOBODY}" in forwarding.broken[bad] and "refused" in forwarding.broken[bad]
        ask(forwarding, good, b"PING", b"+PONG\r\n")


def test_half_closed_connection_still_gives_its_answer(crio: Crio, shared_crio: Crio) -> None:
    """A client may say all that it has to say, end its side, and then listen."""
    with crio.pod() as pod:
        crio.begin(pod, ["sh", "-c", "nc -l -p 7000 -e sh -c 'wc -c; echo counted'"])
        with forward(crio, pod, 7000) as forwarding:
            number = -1

            def connects() -> bool:
                nonlocal number
                number = forwarding.connect(7000)
                forwarding.until(lambda: number in forwarding.opened or number in forwarding.broken)
                with suppress(TimeoutError):
                    forwarding.until(lambda: number in forwarding.broken, timeout_s=0.3)
                return number not in forwarding.broken

            wait_for("a listener", connects)
            for _ in range(50):
                forwarding.send(number, b"x" * 100_000)
            forwarding.end(number)
            forwarding.until(lambda: number in forwarding.ended)
            assert bytes(forwarding.data[number]) == b"5000000\ncounted\n"


SIX = """
import socket
with socket.create_server(("::1", 7001), family=socket.AF_INET6) as server:
    print("ready", flush=True)
    accepted, _ = server.accept()
    with accepted:
        accepted.sendall(b"six\\n")
"""


def test_listener_on_ipv6_only_is_reached(crio: Crio) -> None:
    """Some servers listen at ::1 and nowhere else."""
    with crio.pod() as pod:
        pid = crio.info(crio.begin(pod, ["sleep", "1000"]))["pid"]
        argv = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", SIX]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as listener:
            assert listener.stdout is not None and listener.stdout.readline() == b"ready\n"
            with forward(crio, pod, 7001) as forwarding:
                number = forwarding.connect(7001)
                forwarding.until(lambda: number in forwarding.ended or number in forwarding.broken)
                assert bytes(forwarding.data[number]) == b"six\n", forwarding.broken


def test_pod_on_the_nodes_network_is_reached_directly(crio: Crio) -> None:
    """It has no network of its own."""
    linux = pb.LinuxPodSandboxConfig()
    linux.security_context.namespace_options.network = pb.NODE
    linux.security_context.namespace_options.pid = pb.CONTAINER
    with socket.create_server(("127.0.0.1", 0)) as server, crio.pod(linux=linux) as pod:
        port = server.getsockname()[1]
        with forward(crio, pod, port) as forwarding:
            number = forwarding.connect(port)
            accepted, _ = server.accept()
            with accepted:
                forwarding.send(number, b"hello")
                assert accepted.recv(100) == b"hello"


def test_pod_that_is_stopped_ends_its_connections(crio: Crio) -> None:
    """Nothing of a stopped pod answers."""
    with crio.pod() as pod:
        crio.begin(pod, ["sh", "-c", "nc -l -p 7002 -e cat"])
        with forward(crio, pod, 7002) as forwarding:
            forwarding.connect(7002)
            crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
            forwarding.sock.settimeout(20)
            while not forwarding.left:
                forwarding.step()
        refused = crio.client.refusal(pb.PortForwardRequest(pod_sandbox_id=pod, port=[1]))
        assert refused.code is StatusCode.FAILED_PRECONDITION


def test_client_that_leaves_ends_its_connections_in_the_pod(crio: Crio, pod: str) -> None:
    """Redis must not collect them."""
    with forward(crio, pod, REDIS) as watching:
        watcher = watching.connect(REDIS)
        with forward(crio, pod, REDIS) as leaving:
            for _ in range(5):
                ask(leaving, leaving.connect(REDIS), b"CLIENT SETNAME leaving", b"+OK\r\n")

        def gone() -> bool:
            ask(watching, watcher, b"CLIENT LIST", b"\r\n")
            return b"name=leaving" not in watching.data[watcher]

        wait_for("the end of the connections", gone)


def test_slow_reader_of_one_connection_gets_everything(crio: Crio, pod: str) -> None:
    """100 MB from the pod, and no memory of the server's for what the client has not read."""
    value = b"v" * 10_000_000
    with forward(crio, pod, REDIS) as forwarding:
        number = forwarding.connect(REDIS)
        forwarding.send(number, b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n%s\r\n" % (len(value), value))
        forwarding.until(lambda: bytes(forwarding.data[number]) == b"+OK\r\n")
        before = crio.rss_bytes()
        forwarding.data[number].clear()
        forwarding.send(number, b"GET big\r\n" * 10)
        with forward(crio, pod, REDIS) as other:
            ask(other, other.connect(REDIS), b"PING", b"+PONG\r\n")
        assert crio.rss_bytes() - before < 16_000_000
        expected = (b"$%d\r\n" % len(value) + value + b"\r\n") * 10
        forwarding.until(lambda: len(forwarding.data[number]) >= len(expected))
        assert bytes(forwarding.data[number]) == expected


def test_token_is_spent_and_calls_that_cannot_be_are_refused(crio: Crio, pod: str) -> None:
    """As for commands."""
    answer = crio.client(pb.PortForwardRequest(pod_sandbox_id=pod))
    Forwarding(answer.url).close()
    assert refusal(lambda: Forwarding(answer.url)).status == 404
    refused = crio.client.refusal(pb.PortForwardRequest(pod_sandbox_id=pod, port=[70000]))
    assert refused.code is StatusCode.INVALID_ARGUMENT and refused.message.startswith("port[0]: 70000")
    refused = crio.client.refusal(pb.PortForwardRequest(pod_sandbox_id="nobody", port=[1]))
    assert refused.code is StatusCode.NOT_FOUND
