"""crioctl and servers whose streams are not what they should be, or speak another wire than it asks for first.

The streaming server is a thread with one socket, which a test tells what to do with each connection.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h11
import pytest

from crio_core.streaming.protocol import Endpoint, Left
from crio_core.streaming.remotecommand import Command, Input, InputEnded, Stream, Wants
from crio_core.streaming.status import Exited
from crio_core.streaming.upgrade import Accepted, decide
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.fake_cri import A_ID, WAIT_S, Place, fake_cri
from tests.integration.test_registry_security import certificate

pytestmark = pytest.mark.integration

Talk = Callable[[socket.socket], None]


@pytest.fixture
def place() -> Iterator[Place]:
    """The server, with a container."""
    with fake_cri() as here:
        here.containers(A_ID, state=pb.CONTAINER_RUNNING)
        yield here


@contextlib.contextmanager
def streaming(place: Place, *talks: Talk, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A streaming server that has these talks, one for each connection; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}/exec/token"
        place.fake.answers["Exec"] = lambda _: pb.ExecResponse(url=address)
        listener.settimeout(WAIT_S)

        def serve() -> None:
            for talk in talks:
                connection, _ = listener.accept()
                connection.settimeout(WAIT_S)
                with tls.wrap_socket(connection, server_side=True) if tls else connection as stream:
                    talk(stream)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address
        finally:
            thread.join(WAIT_S)
            assert not thread.is_alive()


def request_of(connection: socket.socket) -> tuple[h11.Request, h11.Connection]:
    machine = h11.Connection(h11.SERVER)
    while (event := machine.next_event()) is h11.NEED_DATA:
        machine.receive_data(connection.recv(65536))
    assert isinstance(event, h11.Request)
    assert machine.next_event() == h11.EndOfMessage()
    return event, machine


def answering(status: int, text: str) -> Talk:
    """Answer as any web server may."""

    def talk(connection: socket.socket) -> None:
        request_of(connection)
        head = f"HTTP/1.1 {status} So\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(head.encode() + text.encode())

    return talk


def upgraded(connection: socket.socket) -> Accepted:
    request, _ = request_of(connection)
    accepted = decide(request.method, request.headers, Endpoint.COMMAND)
    assert isinstance(accepted, Accepted), accepted
    lines = [b"HTTP/1.1 101 Switching Protocols", *(name + b": " + value for name, value in accepted.headers)]
    connection.sendall(b"\r\n".join((*lines, b"", b"")))
    return accepted


def shout(connection: socket.socket) -> None:
    """A command that reads all and writes it in upper case, over whichever wire the client has asked for."""
    accepted = upgraded(connection)
    command = Command(accepted.protocol, Wants(stdin=True, stdout=True, stderr=True, tty=False))
    events = command.start()
    connection.sendall(command.take())
    while True:
        for event in events:
            if isinstance(event, Input):
                command.send_output(Stream.STDOUT, event.data.upper())
            elif isinstance(event, InputEnded):
                command.send_status(Exited(code=5))
            elif isinstance(event, Left):
                return
        connection.sendall(command.take())
        events = command.receive(connection.recv(65536))


@pytest.mark.parametrize("status", [400, 403, 426])
def test_server_that_speaks_only_websockets_is_served_so(place: Place, status: int) -> None:
    """SPDY is asked for first, because every server of today knows it; an address is good for one attempt."""
    with (
        streaming(place, answering(status, "SPDY is gone"), shout),
        place.start("exec", "-i", A_ID, "cmd", stdin=-1) as child,
    ):
        out, err = child.communicate(b"hello", timeout=WAIT_S)
    assert (child.returncode, out, err) == (5, b"HELLO", b"")
    assert len(place.fake.requests("Exec")) == 2


def test_server_that_streams_over_tls_is_not_asked_who_it_is(place: Place, tmp_path: Path) -> None:
    """Its certificate is its own; that it is the one, the address says, which came over its socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path, "criotest", "127.0.0.1"))
    with streaming(place, shout, tls=context), place.start("exec", "-i", A_ID, "cmd", stdin=-1) as child:
        out, err = child.communicate(b"hello" * 100_000, timeout=WAIT_S)
    assert (child.returncode, out, err) == (5, b"HELLO" * 100_000, b"")
    with streaming(place, lambda connection: connection.close()) as address:
        place.fake.answers["Exec"] = lambda _: pb.ExecResponse(url=address.replace("http://", "https://"))
        code, _, err_text = place.run("exec", A_ID, "cmd")
    assert code == 3 and "https://" in err_text


def test_server_that_takes_no_wire_says_why(place: Place) -> None:
    """Both answers are shown."""
    with streaming(place, answering(403, "no SPDY"), answering(403, "nor a WebSocket")) as address:
        code, out, err = place.run("exec", A_ID, "cmd")
    assert (code, out) == (1, "")
    assert f"{address}: 403 So: no SPDY\n{address}: 403 So: nor a WebSocket\n" in err


def test_error_of_the_streaming_server_is_shown_with_its_text(place: Place) -> None:
    """What it says may come from anywhere, and does not reach the terminal as it is."""
    with streaming(place, answering(500, "no such container\x1b[2J")):
        code, _, err = place.run("exec", A_ID, "cmd")
    assert code == 1 and "500 So: no such container\\x1b[2J" in err


def garbage(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(b"\0\1\2\3 I am no web server\r\n\r\n")


def silence(connection: socket.socket) -> None:
    request_of(connection)


def broken_frames(connection: socket.socket) -> None:
    upgraded(connection)
    connection.sendall(b"\x80\x09\0\1\0\0\0\4\0\0\0\0")


def sudden_end(connection: socket.socket) -> None:
    upgraded(connection)


@pytest.mark.parametrize(
    ("talk", "text"),
    [
        (garbage, "no stream was opened"),
        (silence, "no stream was opened"),
        (broken_frames, "broke the protocol"),
        (sudden_end, "lost before the command ended"),
    ],
)
def test_stream_that_is_none_exits_1_and_says_so(place: Place, talk: Talk, text: str) -> None:
    """A command of which nobody knows how it ended has not succeeded."""
    with streaming(place, talk):
        code, out, err = place.run("exec", A_ID, "cmd")
    assert (code, out) == (1, "")
    assert text in err


def test_address_where_nobody_listens_exits_3(place: Place) -> None:
    """A server may stream at an address of its own machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/exec/token"
    place.fake.answers["Exec"] = lambda _: pb.ExecResponse(url=url)
    code, _, err = place.run("exec", A_ID, "cmd")
    assert code == 3 and url in err


@pytest.mark.parametrize("url", ["", "exec/token", "unix:///run/x.sock", "ftp://127.0.0.1/x"])
def test_address_that_is_not_of_the_web_is_refused(place: Place, url: str) -> None:
    """Nothing is sent anywhere."""
    place.fake.answers["Exec"] = lambda _: pb.ExecResponse(url=url)
    code, _, err = place.run("exec", A_ID, "cmd")
    assert code == 1 and "http://" in err


@pytest.mark.parametrize(
    ("arguments", "call", "instead"),
    [
        (("exec", A_ID, "cmd"), "Exec", "crioctl exec -s"),
        (("attach", A_ID), "Attach", "crioctl logs -f"),
        (("port-forward", "pod", "80"), "PortForward", "inspectp"),
    ],
)
def test_server_without_streams_is_named_with_what_to_do(
    place: Place, arguments: tuple[str, ...], call: str, instead: str
) -> None:
    """Some server may offer only what a kubelet's probes need."""
    pod = pb.PodSandbox(id="d" * 64, metadata=pb.PodSandboxMetadata(name="pod", namespace="n"))
    place.fake.answers["ListPodSandbox"] = lambda _: pb.ListPodSandboxResponse(items=[pod])
    code, _, err = place.run(*arguments)
    assert code == 1
    assert err.startswith(f"crioctl: {call}: UNIMPLEMENTED: ") and instead in err


def test_pod_with_several_running_containers_needs_a_name(place: Place) -> None:
    """A command in the wrong container may do harm."""
    other = "bb" + "3" * 62
    place.containers(A_ID, other, state=pb.CONTAINER_RUNNING)
    pod = pb.PodSandbox(id="d" * 64, metadata=pb.PodSandboxMetadata(name="pod", namespace="n"))
    place.fake.answers["ListPodSandbox"] = lambda _: pb.ListPodSandboxResponse(items=[pod])
    code, _, err = place.run("exec", "n/pod", "cmd")
    assert code == 2 and A_ID in err and other in err
    assert not place.fake.requests("Exec")
