"""Exec over a real server's streams: bytes in and out, exit codes, terminals, and clients that misbehave."""

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
from grpc import StatusCode

from crio_core.streaming.protocol import Endpoint, Wire
from crio_core.streaming.remotecommand import Stream
from crio_core.streaming.status import Exited, Failed
from crio_io.streaming.listener import SILENT_MAX
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio
from tests.integration.streaming_client import Command, NotUpgraded, connected, upgraded
from tests.integration.waiting import wait_for

WIRES = (Wire.SPDY, Wire.WEBSOCKET)
MB = 1_000_000


@pytest.fixture(scope="module")
def target(shared_crio: Crio) -> Iterator[str]:
    """A container to run commands in, for the whole module."""
    with shared_crio.pod() as pod:
        yield shared_crio.begin(pod, ["sleep", "10000"])


@pytest.fixture
def crio(shared_crio: Crio, target: str) -> Iterator[Crio]:
    """The module's server; commands and descriptors that a test leaves behind fail it."""
    before = descriptors(shared_crio)
    yield shared_crio
    wait_for("no command left", lambda: commands(shared_crio, target) == [])
    wait_for("no runtime process and no zombie left", lambda: helpers(shared_crio) == [])
    wait_for("no descriptor left", lambda: descriptors(shared_crio) <= before)


def descriptors(crio: Crio) -> int:
    """How many of them the server has open."""
    return len(os.listdir(f"/proc/{crio.pid}/fd"))


def helpers(crio: Crio) -> list[str]:
    """Programs that the server runs, dead ones not reaped yet among them; not where monitors are forked."""
    children = psutil.Process(crio.pid).children(recursive=True)
    found = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            if "runc" in child.name() or child.status() == psutil.STATUS_ZOMBIE:
                found.append(f"{child.pid} {child.name()} {child.status()}")
    return found


def commands(crio: Crio, container_id: str) -> list[str]:
    """What runs in a container besides its first process."""
    first = crio.info(container_id)["pid"]
    namespace = os.readlink(f"/proc/{first}/ns/pid")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != first and os.readlink(f"/proc/{process.pid}/ns/pid") == namespace:
                found.append(" ".join(process.cmdline()))
    return found


def url(crio: Crio, container_id: str, *words: str, **streams: bool) -> str:
    """Where a command is offered."""
    wants = {"stdout": True, "stderr": True} | streams
    answer: pb.ExecResponse = crio.client(pb.ExecRequest(container_id=container_id, cmd=words, **wants))
    return answer.url


def command(crio: Crio, container_id: str, *words: str, wire: Wire = Wire.SPDY, **streams: bool) -> Command:
    """A command that runs."""
    return Command(url(crio, container_id, *words, **streams), wire, None, **streams)


def terminal(crio: Crio, container_id: str, *words: str, wire: Wire = Wire.SPDY) -> Command:
    """A command that runs in a terminal."""
    return command(crio, container_id, *words, wire=wire, stdin=True, stderr=False, tty=True)


def refusal(call: Callable[[], Any]) -> NotUpgraded:
    """How a client is turned away."""
    with pytest.raises(NotUpgraded) as refused:
        call()
    return refused.value


# --- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
def test_command_gets_input_and_its_end_and_gives_both_outputs_and_its_code(
    crio: Crio, target: str, wire: Wire
) -> None:
    """The whole of `kubectl exec -i`."""
    script = "echo out; echo err >&2; cat; echo end; exit 3"
    with command(crio, target, "sh", "-c", script, wire=wire, stdin=True) as running:
        running.send(b"one ")
        running.send(b"two\n")
        running.end_input()
        assert running.result() == Exited(code=3)
        assert (running.stdout, running.stderr) == (b"out\none two\nend\n", b"err\n")


@pytest.mark.parametrize("wire", WIRES)
def test_only_the_streams_that_were_asked_for_exist(crio: Crio, target: str, wire: Wire) -> None:
    """What nobody wants goes to /dev/null, and input that is not wanted is at its end at once."""
    script = "echo out; echo err >&2; cat"
    with command(crio, target, "sh", "-c", script, wire=wire, stdout=True, stderr=False) as running:
        assert running.result() == Exited(code=0)
        assert (running.stdout, running.stderr) == (b"out\n", b"")
    with command(crio, target, "sh", "-c", script, wire=wire, stdout=False, stderr=True) as running:
        assert running.result() == Exited(code=0)
        assert (running.stdout, running.stderr) == (b"", b"err\n")


def test_command_that_is_missing_fails_with_the_runtimes_words(crio: Crio, target: str) -> None:
    """The client is told what a person would be told."""
    with command(crio, target, "no-such-program") as running:
        ended = running.result()
        assert isinstance(ended, Failed) and "no-such-program" in ended.message


def test_command_killed_by_a_signal_ends_with_128_and_the_signal(crio: Crio, target: str) -> None:
    """As a shell has it."""
    with command(crio, target, "sh", "-c", "kill -9 $$") as running:
        assert running.result() == Exited(code=137)


@pytest.mark.parametrize("wire", WIRES)
def test_terminal_has_the_clients_size_and_follows_it(crio: Crio, target: str, wire: Wire) -> None:
    """An editor in it would be unusable otherwise."""
    script = (
        # The runtime passes a size on in its own time: input that was sent after it may be there before.
        "echo ready; read line; echo got $line; until [ \"$(stty size)\" = '43 132' ]; do sleep 0.05; done; "
        "trap 'stty size; exit 4' WINCH; echo trapped; while :; do sleep 0.05; done"
    )
    with terminal(crio, target, "sh", "-c", script, wire=wire) as running:
        running.resize(132, 43)
        running.until(lambda: b"ready\r\n" in running.stdout)
        running.send(b"hello\n")
        running.until(lambda: b"trapped\r\n" in running.stdout)
        assert running.stdout.count(b"hello\r\n") == 2, "typed characters are echoed once"
        running.resize(80, 24)
        assert running.result() == Exited(code=4)
        assert running.stdout.endswith(b"24 80\r\n")


def test_interrupt_typed_into_a_terminal_reaches_the_command(crio: Crio, target: str) -> None:
    """Ctrl-C is for the command, not for the runtime that stands between."""
    with terminal(crio, target, "sh", "-c", "trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done") as running:
        running.until(lambda: b"ready" in running.stdout)
        running.send(b"\x03")
        assert running.result() == Exited(code=7)


def test_terminal_whose_client_leaves_ends_its_command(crio: Crio, target: str) -> None:
    """A shell that nobody can type into is of no use."""
    with terminal(crio, target, "sh", "-c", "trap '' HUP; echo ready; while :; do sleep 100; done") as running:
        running.until(lambda: b"ready" in running.stdout)
    wait_for("the end of the command", lambda: commands(crio, target) == [])


# --- much -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
def test_much_output_comes_whole_and_takes_no_memory(crio: Crio, target: str, wire: Wire) -> None:
    """What the client has not taken waits in the command."""
    script = "seq 1 30000000 | head -c 200000000"
    wanted = hashlib.sha256(subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True).stdout).hexdigest()
    before = most = crio.rss_bytes()
    found, size = hashlib.sha256(), 0
    with command(crio, target, "sh", "-c", script, wire=wire) as running:
        while running.ended is None:
            running.step()
            found.update(running.stdout)
            size += len(running.stdout)
            running.output[Stream.STDOUT].clear()
            most = max(most, crio.rss_bytes())
        assert running.ended == Exited(code=0)
    assert (size, found.hexdigest()) == (200 * MB, wanted)
    assert most - before < 16 * MB


def test_much_input_arrives_whole(crio: Crio, target: str) -> None:
    """`kubectl cp` is this."""
    size = 100 * MB
    with command(crio, target, "sh", "-c", "wc -c; cat >/dev/null", stdin=True) as running:
        block = b"x" * MB
        for _ in range(size // MB):
            running.send(block)
        running.end_input()
        assert running.result() == Exited(code=0)
        assert running.stdout == b"%d\n" % size


def test_input_and_output_flow_at_the_same_time(crio: Crio, target: str) -> None:
    """Through `cat`, more than every buffer on the way holds."""
    size = 20 * MB
    with command(crio, target, "cat", stdin=True) as running:

        def feed() -> None:
            for _ in range(size // MB):
                running.send(b"y" * MB)
            running.end_input()

        feeding = threading.Thread(target=feed)
        feeding.start()
        assert running.result() == Exited(code=0)
        feeding.join()
        assert running.stdout == b"y" * size


def test_client_that_stops_reading_stops_its_command_and_nobody_else(crio: Crio, target: str) -> None:
    """No memory of the server's holds what a client does not take."""
    with command(crio, target, "sh", "-c", "yes | head -c 100000000; echo done >&2") as slow:
        before = crio.rss_bytes()
        with command(crio, target, "sh", "-c", "yes | head -c 20000000") as other:
            assert other.result() == Exited(code=0)
        assert any("head -c 100000000" in one for one in commands(crio, target))
        assert crio.rss_bytes() - before < 16 * MB
        assert slow.result() == Exited(code=0)
        assert len(slow.stdout) == 100 * MB and slow.stderr == b"done\n"


def test_many_at_the_same_time_each_get_their_own(crio: Crio, target: str) -> None:
    """Streams do not mix, and none waits for another."""
    running = [command(crio, target, "sh", "-c", f"read x; echo $x {n}; exit {n}", stdin=True) for n in range(20)]
    for n, one in reversed(list(enumerate(running))):
        one.send(b"in-%d\n" % n)
    for n, one in enumerate(running):
        with one:
            assert one.result() == Exited(code=n)
            assert one.stdout == b"in-%d %d\n" % (n, n)


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", ["sleep 1000", "sleep 1000 & sleep 1000", "setsid sleep 1000 & yes", "cat; sleep 1000"]
)
def test_client_that_leaves_ends_its_command_and_all_that_it_started(crio: Crio, target: str, script: str) -> None:
    """Whatever the command is doing then."""
    with command(crio, target, "sh", "-c", f"echo ready; {script}", stdin=True) as running:
        running.until(lambda: b"ready" in running.stdout)
    wait_for("the end of the command", lambda: commands(crio, target) == [])


def test_client_that_leaves_while_its_input_is_not_read_ends_its_command(crio: Crio, target: str) -> None:
    """Hanging up is noticed although what came before it cannot be passed on."""
    with command(crio, target, "sleep", "1000", stdin=True) as running:
        running.send(b"z" * 100_000)  # More than the pipe on the way holds; the rest waits in the kernel, with its end.
    wait_for("the end of the command", lambda: commands(crio, target) == [])


def test_container_that_stops_ends_its_commands_and_tells_their_clients(shared_crio: Crio) -> None:
    """A client must not wait for what cannot come."""
    crio = shared_crio
    with crio.pod() as pod:
        container = crio.begin(pod, ["sleep", "1000"])
        with command(crio, container, "sh", "-c", "echo ready; sleep 1000") as running:
            running.until(lambda: b"ready" in running.stdout)
            offered = url(crio, container, "true")
            crio.stop(container)
            assert running.result() == Exited(code=137)
            assert refusal(lambda: Command(offered)).status == 404
    wait_for("the end of the runtime", lambda: helpers(crio) == [])


def test_server_that_stops_ends_commands_and_leaves_containers(own_crio: Crio) -> None:
    """Its clients get the end of their connection, and its commands do not stay behind."""
    crio = own_crio
    with crio.pod() as pod:
        container = crio.begin(pod, ["sleep", "1000"])
        with command(crio, container, "sh", "-c", "echo ready; sleep 1000") as running:
            running.until(lambda: b"ready" in running.stdout)
            crio.end()
            with suppress(AssertionError):
                running.result()
            assert running.left or running.ended is not None
        crio.start()
        assert crio.status(container).state == pb.CONTAINER_RUNNING
        assert commands(crio, container) == []


# --- tokens and requests --------------------------------------------------------------------------------------------


def test_token_opens_one_stream_and_wrong_ones_tell_nothing(crio: Crio, target: str) -> None:
    """Used, wrong, of another purpose: all the same answer."""
    offered = url(crio, target, "true")
    base, _, token = offered.rpartition("/")
    answers = {
        refusal(lambda: Command(f"{base}/{'0' * 64}")).body,
        refusal(lambda: Command(f"{base}/x")).body,
        refusal(lambda: Command(f"{base}/{token[:-1]}")).body,
        refusal(lambda: Command(offered.replace("/exec/", "/attach/"))).body,
        refusal(lambda: Command(offered.replace("/exec/", "/other/"))).body,
        refusal(lambda: Command(base)).body,
    }
    with Command(offered) as running:
        assert running.result() == Exited(code=0)
    refused = refusal(lambda: Command(offered))
    assert refused.status == 404
    assert answers == {refused.body} == {b"no such stream\n"}


def test_request_that_is_no_upgrade_is_refused_and_spends_no_token(crio: Crio, target: str) -> None:
    """Looking at the address with curl must not use it up."""
    offered = url(crio, target, "true")
    path = "/" + offered.split("/", 3)[3]
    for request in (f"GET {path} HTTP/1.1", f"POST {path} HTTP/1.1", f"PUT {path} HTTP/1.1"):
        with connected(offered) as sock:
            sock.sendall(f"{request}\r\nHost: x\r\n\r\n".encode())
            assert sock.recv(65536).startswith((b"HTTP/1.1 400", b"HTTP/1.1 405", b"HTTP/1.1 403", b"HTTP/1.1 426"))
    with pytest.raises(NotUpgraded):
        upgraded(offered, Wire.SPDY, Endpoint.FORWARDING)[0].close()
    with Command(offered) as running:
        assert running.result() == Exited(code=0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 100,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"z" * 500,
        b"POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"b" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["zeros", "long", "tls", "body", "http2"],
)
def test_garbage_sent_to_the_port_ends_its_connection_only(crio: Crio, target: str, garbage: bytes) -> None:
    """The port is open to everything on the node."""
    offered = url(crio, target, "true")
    with connected(offered) as sock, suppress(ConnectionError):
        sock.sendall(garbage)
        with suppress(OSError):  # ENOTCONN: the server has had enough already.
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    with Command(offered) as running:
        assert running.result() == Exited(code=0)


def test_connections_that_say_nothing_keep_nobody_out(crio: Crio, target: str) -> None:
    """Each costs a descriptor, and there is an end to them."""
    offered = url(crio, target, "true")
    before = descriptors(crio)
    silent = [connected(offered) for _ in range(3 * SILENT_MAX)]
    try:
        with Command(offered) as running:
            assert running.result() == Exited(code=0)
        wait_for("most to be closed", lambda: descriptors(crio) - before <= SILENT_MAX)
    finally:
        for one in silent:
            one.close()


def test_client_that_breaks_the_protocol_ends_its_command(crio: Crio, target: str) -> None:
    """What comes after an upgrade is as untrusted as what came before."""
    with command(crio, target, "sleep", "1000", stdin=True) as running:
        running.sock.sendall(b"\x80\x02\x00\x01\x00\x00\x00\x0a" + bytes(10))  # SPDY/2
        wait_for("the end of the command", lambda: commands(crio, target) == [])


def test_no_token_is_in_the_servers_log(crio: Crio, target: str) -> None:
    """It is a password for a minute (log level debug)."""
    offered = url(crio, target, "true")
    with Command(offered) as running:
        running.result()
    refusal(lambda: Command(offered))
    assert offered.rpartition("/")[2] not in crio.log.read_text()


def test_calls_that_cannot_be_are_refused_at_once(crio: Crio, target: str) -> None:
    """With the CRI's own rules, before anybody connects."""
    refused = crio.client.refusal(pb.ExecRequest(container_id=target, cmd=["sh"], tty=True, stdout=True, stderr=True))
    assert refused.code is StatusCode.INVALID_ARGUMENT and refused.message.startswith("stderr: ")
    refused = crio.client.refusal(pb.ExecRequest(container_id=target, cmd=["sh"]))
    assert refused.code is StatusCode.INVALID_ARGUMENT
    refused = crio.client.refusal(pb.ExecRequest(container_id=target, stdout=True))
    assert refused.code is StatusCode.INVALID_ARGUMENT and refused.message.startswith("cmd: ")
    refused = crio.client.refusal(pb.ExecRequest(container_id="nobody", cmd=["sh"], stdout=True))
    assert refused.code is StatusCode.NOT_FOUND
