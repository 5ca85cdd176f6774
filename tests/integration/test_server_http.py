"""HTTP/1.1 on the socket of the CRI: what clients other than the kubelet ask, and what nobody should be able to do."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.http1 import CONNECTIONS_MAX, HEAD_BYTES_MAX
from crio_server.listener import FIRST_BYTES_S, SILENT_MAX
from tests.integration.harness import Client, Crio
from tests.integration.test_server_pulls import LAYER, Held
from tests.integration.test_server_pulls import held as held
from tests.integration.test_simulate import Simulated, _simulated
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def simulated() -> Iterator[Simulated]:
    """A simulated server that takes its time for pulls."""
    with _simulated("--latency", "ordinary") as server:
        yield server


def http(path: Path) -> httpx.Client:
    """A client of the server at a socket."""
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://crio", timeout=20)


def lines_of(path: Path, url: str, seen: list[Mapping[str, Any]]) -> int:
    """Read a stream to its end into `seen`; returns the status."""
    with http(path) as client, client.stream("GET", url) as answer:
        for line in answer.iter_lines():
            seen.append(json.loads(line))
        return answer.status_code


def raw(path: Path, request: bytes) -> bytes:
    """What a server says to these bytes until it closes the connection."""
    with closing(socket.socket(socket.AF_UNIX)) as link:
        link.settimeout(20)
        link.connect(str(path))
        link.sendall(request)
        said = b""
        while data := link.recv(65536):
            said += data
        return said


def test_info_config_and_containers_are_what_crios_clients_know(crio: Crio) -> None:
    """CAdvisor finds its containers this way: the paths and members are a contract of CRI-O's."""
    pod_id = crio.run_pod()
    container_id = crio.begin(pod_id, ["sleep", "1000"])
    with http(crio.site.socket) as client:
        info = client.get("/info").json()
        assert info["storage_driver"] == "overlay"
        assert info["storage_root"] == str(crio.site.marks.root / "storage")
        assert info["cgroup_driver"] == "cgroupfs"
        about = client.get(f"/containers/{container_id}").json()
        status = crio.client(pb.ContainerStatusRequest(container_id=container_id, verbose=True))
        assert about["pid"] == json.loads(status.info["info"])["pid"]
        assert Path(about["root"], "bin").is_dir()
        assert (about["sandbox"], about["image_ref"]) == (pod_id, status.status.image_ref)
        assert about["created_time"] == status.status.created_at
        assert about["ip_addresses"][0].startswith(crio.site.marks.subnet)
        missing = client.get(f"/containers/{'e' * 64}")
        assert (missing.status_code, "not found" in missing.json()["error"]) == (404, True)
        config = client.get("/config")
        assert config.headers["content-type"] == "application/toml"
        assert f'listen = "{crio.site.socket}"' in config.text
        assert client.get("/nothing").status_code == 404
        assert client.post("/info", content=b"x" * 100_000).status_code == 405
        assert client.head("/info").headers["content-length"] == str(len(client.get("/info").content))
    crio.remove_all()


def test_curl_speaks_to_the_socket(crio: Crio) -> None:
    """The client that everybody has at hand."""
    argv = ["curl", "-sS", "--unix-socket", str(crio.site.socket), "http://crio/info"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    assert json.loads(done.stdout)["storage_driver"] == "overlay"


def test_stream_tells_of_a_pull_from_half_of_a_layer_to_its_end(own_crio: Crio, held: Held) -> None:
    """Issue 5: bytes, rate and step of each layer, streamed, until the pull is over."""
    reference = held.put("streamed", LAYER)
    held.hold_at(len(LAYER.blob) // 2)
    path = own_crio.site.socket
    with http(path) as client:
        assert client.get("/images/progress", params={"image": reference}).status_code == 404
    pull = own_crio.client.begin(pb.PullImageRequest(image=pb.ImageSpec(image=reference)))
    wait_for("the pull", lambda: own_crio.client(pb.StatusRequest(verbose=True)).info["creating"] != "[]")
    seen: list[Mapping[str, Any]] = []
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(lines_of, path, f"/images/progress?image={reference}", seen)
        half = len(LAYER.blob) // 2
        wait_for("half", lambda: any(half - 2**20 <= one.get("receivedBytes", 0) <= half for one in seen))
        held.released.set()
        assert pull.result().image_ref
        assert stream.result(20) == 200
    layers = [one for one in seen if one.get("digest") == LAYER.digest]
    fetching = [one for one in layers if one["step"] == "fetching"]
    assert fetching[0]["totalBytes"] == len(LAYER.blob)
    assert all(one["bytesPerS"] > 0 and one["host"] == held.host for one in fetching)
    received = [one["receivedBytes"] for one in layers]
    assert received == sorted(received)
    assert seen[-1] == {"image": reference, "state": "ready"}
    own_crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))


def test_reader_that_does_not_read_holds_up_nothing(own_crio: Crio, held: Held) -> None:
    """A terminal that was stopped with Ctrl-S must not stop a node's pulls, nor fill its memory."""
    reference = held.put("unread", LAYER)
    with closing(socket.socket(socket.AF_UNIX)) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        link.connect(str(own_crio.site.socket))
        link.sendall(b"GET /images/progress HTTP/1.1\r\nHost: crio\r\n\r\n")
        for _ in range(3):
            assert own_crio.client(pb.PullImageRequest(image=pb.ImageSpec(image=reference))).image_ref
            own_crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))


def test_simulated_pull_is_streamed_too(simulated: Simulated) -> None:
    """Who writes a client tries it without root and registry: all pulls, until the client leaves."""
    seen: list[Mapping[str, Any]] = []
    enough = threading.Event()

    def read() -> None:
        with http(simulated.socket) as client, client.stream("GET", "/images/progress") as answer:
            for line in answer.iter_lines():
                seen.append(json.loads(line))
                if seen[-1].get("state") == "ready":
                    enough.set()
                    return  # The connection is dropped in the middle of the stream.

    reader = threading.Thread(target=read)
    reader.start()
    while not enough.is_set():
        number = len(seen)
        simulated.client(pb.PullImageRequest(image=pb.ImageSpec(image=f"registry.example/streamed{number}:1")))
        enough.wait(1)
    reader.join(20)
    steps = [one["step"] for one in seen if "step" in one]
    assert {"waiting", "fetching", "applying"} <= set(steps)
    assert simulated.client(pb.VersionRequest()).runtime_name == "crio"


def test_end_of_the_server_ends_streams() -> None:
    """Somebody who watches for ever must not keep a server from its restart."""
    seen: list[Mapping[str, Any]] = []
    with _simulated() as server, ThreadPoolExecutor(1) as pool:
        stream = pool.submit(lines_of, server.socket, "/images/progress", seen)
        server.client(pb.PullImageRequest(image=pb.ImageSpec(image="registry.example/watched:1")))
        wait_for("news", lambda: seen)
        assert server.end() == 0
        assert isinstance(stream.exception(20), httpx.RemoteProtocolError)


GARBAGE: Mapping[str, bytes] = {
    "empty lines": b"\r\n\r\n\r\n\r\n",
    "zeros": bytes(5000),
    "chance": os.urandom(5000) + b"\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + os.urandom(200),
    "almost a preface": b"PRIX * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "endless header": b"GET /info HTTP/1.1\r\nHost: crio\r\nA: " + b"a" * (HEAD_BYTES_MAX + 1),
    "smuggled": b"GET /info HTTP/1.1\r\nHost: crio\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_refused_and_the_connection_closed(simulated: Simulated, what: str) -> None:
    """Any process of the node's administrators may write anything to the socket; the kubelet goes on being served."""
    said = raw(simulated.socket, GARBAGE[what])
    assert said.startswith(b"HTTP/1.1 4"), said[:200]
    assert simulated.client(pb.VersionRequest()).runtime_name == "crio"


@pytest.mark.parametrize("target", ["//[x/info", "/info?" + "&".join(f"a{n}=1" for n in range(17))])
def test_target_that_is_not_understood_is_the_clients_error(simulated: Simulated, target: str) -> None:
    """A typing error in a URL is answered, and the connection goes on: it is no fault of the server."""
    said = raw(
        simulated.socket,
        f"GET {target} HTTP/1.1\r\nHost: crio\r\n\r\n".encode()
        + b"GET /info HTTP/1.1\r\nHost: crio\r\nConnection: close\r\n\r\n",
    )
    assert said.startswith(b"HTTP/1.1 400")
    assert b"HTTP/1.1 200" in said


def test_preface_in_pieces_is_still_grpc(simulated: Simulated) -> None:
    """A stream has no packets: the first read may have one byte of it."""
    with closing(socket.socket(socket.AF_UNIX)) as link:
        link.settimeout(20)
        link.connect(str(simulated.socket))
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5):
            link.sendall(bytes([byte]))
        assert link.recv(9)[3] == 4, "a SETTINGS frame"
        link.sendall(b"\xff" * 100)
    assert simulated.client(pb.VersionRequest()).runtime_name == "crio"


def test_silent_connections_over_the_bound_cost_the_oldest_one(simulated: Simulated) -> None:
    """Nobody's forgotten connections use up the node's files, and none keeps out who comes after it."""
    links = [socket.socket(socket.AF_UNIX) for _ in range(SILENT_MAX + 1)]
    try:
        for link in links:
            link.settimeout(FIRST_BYTES_S / 2)
            link.connect(str(simulated.socket))
        assert links[0].recv(1) == b"", "closed before its time"
        client = Client(simulated.socket)
        assert client(pb.VersionRequest()).runtime_name == "crio"
        client.close()
        links[-1].sendall(b"GET /info HTTP/1.1\r\nHost: crio\r\n\r\n")
        assert links[-1].recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for link in links:
            link.close()


def test_connections_over_the_bound_are_refused_and_grpc_is_not(simulated: Simulated) -> None:
    """Forgotten watchers must not use up the node's files, nor keep the kubelet out."""
    links = [socket.socket(socket.AF_UNIX) for _ in range(CONNECTIONS_MAX)]
    try:
        for link in links:
            link.settimeout(20)
            link.connect(str(simulated.socket))
            link.sendall(b"GET /images/progress HTTP/1.1\r\nHost: crio\r\n\r\n")
            assert link.recv(100).startswith(b"HTTP/1.1 200")
        assert raw(simulated.socket, b"GET /info HTTP/1.1\r\nHost: crio\r\n\r\n").startswith(b"HTTP/1.1 503")
        client = Client(simulated.socket)
        assert client(pb.VersionRequest()).runtime_name == "crio"
        client.close()
    finally:
        for link in links:
            link.close()

    def served() -> bool:
        with http(simulated.socket) as client:
            return client.get("/info").status_code == 200

    wait_for("room for another connection", served)
