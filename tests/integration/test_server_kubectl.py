"""kubectl, a client that others have written, against our streams: through an API server that only passes them on."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.fake_apiserver import FakeApiServer
from tests.integration.harness import Crio
from tests.integration.waiting import wait_for

KUBECTL = shutil.which("kubectl")
KUBECTL_S = 40.0
SHELL = ("--", "sh", "-c")

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl, of Debian's kubernetes-client or another")


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    return ("busybox", "redis")


@pytest.fixture(scope="module")
def api(shared_crio: Crio) -> Iterator[FakeApiServer]:
    """A pod `web` with a redis and a container to attach to."""
    crio = shared_crio
    with crio.pod() as pod:
        containers = {
            "main": crio.begin(pod, ["redis-server", "--save", ""], "main", image=crio.images.redis),
            "echo": crio.begin(
                pod, ["sh", "-c", "while read line; do echo got $line; done; exit 0"], "echo", stdin=True
            ),
        }

        def offer(name: str, purpose: str, parameters: Mapping[str, list[str]]) -> str:
            if purpose == "portforward":
                answer = crio.client(pb.PortForwardRequest(pod_sandbox_id=pod))
                return str(answer.url)
            streams = {one: parameters.get(one) == ["true"] for one in ("stdin", "stdout", "stderr", "tty")}
            container = containers[parameters.get("container", ["main"])[0]]
            if purpose == "attach":
                return str(crio.client(pb.AttachRequest(container_id=container, **streams)).url)
            words = parameters["command"]
            return str(crio.client(pb.ExecRequest(container_id=container, cmd=words, **streams)).url)

        pods: dict[str, list[dict[str, Any]]] = {"web": [{"name": "main"}, {"name": "echo", "stdin": True}]}
        with FakeApiServer(pods, offer) as api:
            yield api


def argv(api: FakeApiServer, *words: str) -> list[str]:
    """A kubectl command line."""
    assert KUBECTL is not None
    return [KUBECTL, "--server", api.url, "--namespace", "default", *words]


def environment(home: Path) -> dict[str, str]:
    """With no configuration of the machine's own."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": "/dev/null"}


def kubectl(api: FakeApiServer, home: Path, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run kubectl; returns its code and what it said."""
    done = subprocess.run(
        argv(api, *words), input=stdin, capture_output=True, env=environment(home), timeout=KUBECTL_S, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_exec_gives_output_and_the_exit_code(api: FakeApiServer, tmp_path: Path) -> None:
    """Scripts go by it."""
    code, out, err = kubectl(api, tmp_path, "exec", "web", "-c", "echo", *SHELL, "echo out; exit 0")
    assert (code, out, err) == (0, b"out\n", b"")
    code, out, err = kubectl(api, tmp_path, "exec", "web", "-c", "echo", *SHELL, "echo out; echo err >&2; exit 3")
    assert (code, out) == (3, b"out\n")
    assert err.startswith(b"err\n") and b"exit code 3" in err


def test_exec_passes_input_on_to_its_end(api: FakeApiServer, tmp_path: Path) -> None:
    """`kubectl cp` and pipes do this."""
    text = b"".join(b"line %d\n" % number for number in range(200_000))
    code, out, err = kubectl(api, tmp_path, "exec", "-i", "web", "-c", "echo", "--", "cat", stdin=text)
    assert (code, err) == (0, b"")
    assert out == text


def test_exec_of_what_is_missing_says_so(api: FakeApiServer, tmp_path: Path) -> None:
    """With the runtime's words."""
    code, _, err = kubectl(api, tmp_path, "exec", "web", "-c", "main", "--", "no-such-program")
    assert code != 0 and b"no-such-program" in err


def test_attach_joins_a_running_container(api: FakeApiServer, tmp_path: Path) -> None:
    """The container goes on after its client."""
    client = subprocess.Popen(
        argv(api, "attach", "-i", "web", "-c", "echo"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(tmp_path),
    )
    assert client.stdin is not None and client.stdout is not None
    try:
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"got hello\n"
    finally:
        client.kill()
        client.communicate()


def test_port_forward_connects_to_the_pod_again_and_again(api: FakeApiServer, tmp_path: Path) -> None:
    """Each connection to the local port is one to the pod's."""
    client = subprocess.Popen(
        argv(api, "port-forward", "pod/web", ":6379"), stdout=subprocess.PIPE, env=environment(tmp_path)
    )
    assert client.stdout is not None
    try:
        line = client.stdout.readline()
        port = int(line.split(b"127.0.0.1:")[1].split()[0])

        def answers() -> bool:
            with socket.create_connection(("127.0.0.1", port), timeout=KUBECTL_S) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(100) == b"+PONG\r\n"

        wait_for("redis", answers)
        for _ in range(5):
            assert answers()
    finally:
        client.kill()
        client.communicate()


def test_what_clients_speak_is_understood(api: FakeApiServer) -> None:
    """Nobody fell back to anything: each upgrade above was accepted as it was offered first."""
    assert api.upgrades
    assert {upgrade.partition(" ")[0].lower() for upgrade in api.upgrades} <= {"spdy/3.1", "websocket"}
