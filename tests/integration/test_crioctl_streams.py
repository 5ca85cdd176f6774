"""crioctl's streams: exec, attach and port-forward, on a foreign server and on ours, with the same expectations.

What has a terminal runs on a pseudo terminal, as a person would have it.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.containerd_fixture import BRIDGE, TOOLS, WAIT_S, Result, containerd, free_port
from tests.integration.harness import Crio, Site
from tests.integration.waiting import look_until, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="containerd and runc need root"),
    pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"),
]

HTTP_PORT, ECHO_PORT, CLOSED_PORT = 8080, 8081, 8082
SERVE = f"""\
busybox mkdir -p /www; echo hello > /www/index.html
busybox httpd -p {HTTP_PORT} -h /www
exec busybox nc -ll -p {ECHO_PORT} -e cat
"""
OWN_PIDS = {"security_context": {"namespace_options": {"pid": "CONTAINER"}}}  # as a kubelet asks for; 0 means shared
TALK = """\
trap 'exit 0' TERM
echo ready
while read line; do echo "heard $line"; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server, and a pod of it in which the container `web` listens on two ports."""

    socket: Path
    directory: Path
    image: str
    pod: str
    pod_file: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "crio_server.crioctl", "-r", f"unix://{self.socket}", *arguments]

    def run(self, *arguments: str, data: bytes = b"") -> Result:
        done = subprocess.run(self.command(*arguments), input=data, capture_output=True, timeout=120, check=False)
        return Result(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.code == 0, f"crioctl {' '.join(arguments)}: {result}"
        return result.out.strip()

    def listens(self, container: str, port: int) -> bool:
        """Whether something in the pod listens on a port."""
        return f":{port:04X} " in self.run("exec", "-s", container, "cat", "/proc/net/tcp6", "/proc/net/tcp").out

    def cat(self, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Have `cat` give back what it reads."""
        command = self.command("exec", "-i", "web", "cat")
        return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)

    def begin(self, name: str, script: str, **fields: Any) -> str:
        """Create and start a container in the pod; returns its id."""
        path = self.directory / f"{name}.json"
        config = {
            "metadata": {"name": name},
            "image": {"image": self.image},
            "command": ["/bin/sh", "-c", script],
            "envs": [{"key": "PATH", "value": "/bin"}],
            "log_path": f"{name}.log",
            "linux": OWN_PIDS,
            **fields,
        }
        path.write_text(json.dumps(config))
        return self.ok("start", self.ok("create", self.pod, str(path), str(self.pod_file)))


@contextlib.contextmanager
def served(socket: Path, directory: Path, image: str, cgroup: str) -> Iterator[Served]:
    """Run the pod, and remove it at the end."""
    pod_file = directory / "streams-pod.json"
    config = {
        "metadata": {"name": "streams", "namespace": "criotest", "uid": "uid-streams"},
        "hostname": "streams",
        "log_directory": str(directory / "logs" / "streams"),
        "linux": {"cgroup_parent": cgroup, **OWN_PIDS},
    }
    pod_file.write_text(json.dumps(config))
    here = Served(socket=socket, directory=directory, image=image, pod="", pod_file=pod_file)
    here.ok("pull", image)
    here = dataclasses.replace(here, pod=here.ok("runp", str(pod_file)))
    try:
        web = here.begin("web", SERVE)
        for port in (HTTP_PORT, ECHO_PORT):
            wait_for(f"something listens on {port}", functools.partial(here.listens, web, port), timeout_s=WAIT_S)
        yield here
    finally:
        here.run("rmp", "-f", here.pod)


@pytest.fixture(scope="module", params=["containerd", "crio"])
def on(request: pytest.FixtureRequest, spared: set[str]) -> Iterator[Served]:
    """The pod on a server."""
    if request.param == "containerd":
        with containerd(spared) as place, served(place.socket, place.directory, place.image, f"/{BRIDGE}") as here:
            yield here
    else:
        site: Site = request.getfixturevalue("shared_site")
        cgroup = f"/{site.marks.name}/streams"
        with Crio(site), served(site.socket, site.directory, site.images.busybox, cgroup) as here:
            yield here


class Terminal:
    """crioctl on a pseudo terminal of its own."""

    def __init__(self, command: list[str], *, columns: int = 80, lines: int = 24) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, lines)
        self._before = termios.tcgetattr(self._theirs)
        self.child = subprocess.Popen(
            command,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.seen = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self._ours, data)

    def see(self, text: bytes) -> None:
        """Wait until a text is on the screen; what came before it is forgotten."""
        deadline_s = time.monotonic() + WAIT_S
        while text not in self.seen:
            left_s = deadline_s - time.monotonic()
            readable, _, _ = select.select([self._ours], [], [], max(left_s, 0))
            assert readable, f"not within {WAIT_S} s: {text!r} in {self.seen!r}"
            self.seen += os.read(self._ours, 65536)
        self.seen = self.seen.partition(text)[2]

    def ends(self) -> int:
        """Wait for the end; the exit code. The terminal has to be as it was."""
        code = self.child.wait(timeout=WAIT_S)
        assert termios.tcgetattr(self._theirs) == self._before
        return code

    def becomes_raw(self) -> None:
        """Wait until keys are passed on as they are: before, the terminal obeys some of them."""
        if not look_until(bool, lambda: not termios.tcgetattr(self._theirs)[3] & termios.ICANON, WAIT_S):
            os.set_blocking(self._ours, False)
            with contextlib.suppress(BlockingIOError):
                self.seen += os.read(self._ours, 65536)
            raise AssertionError(f"the terminal is not raw after {WAIT_S} s, code {self.child.poll()}: {self.seen!r}")


def test_exec_keeps_streams_apart_and_exits_as_the_command(on: Served) -> None:
    """A script sees what it would see without a container; the pod's name, or its id, is enough."""
    for name in ("web", "streams", "criotest/streams", on.pod[:9]):
        result = on.run("exec", name, "sh", "-c", "echo out; echo err >&2; exit 42")
        assert (result.code, result.out, result.err) == (42, "out\n", "err\n")


def test_exec_passes_input_on_to_its_end(on: Served) -> None:
    """From a pipe and from a file; a command that reads all of it ends."""
    data = os.urandom(3 << 20)
    done = on.cat(input=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")
    path = on.directory / "input"
    path.write_bytes(data[:100_000])
    with path.open("rb") as file:
        done = on.cat(stdin=file)
    assert (done.returncode, done.stdout == data[:100_000]) == (0, True)


def test_exec_of_what_cannot_run_says_why(on: Served) -> None:
    """Who mistyped a name has to see it."""
    result = on.run("exec", "web", "/no/such")
    assert result.code in (1, 126, 127)
    assert "/no/such" in result.err
    assert on.run("exec", "nothing", "true").code == 1
    assert on.run("exec", "-s", "-i", "web", "true").code == 2


def test_exec_whose_reader_has_seen_enough_ends_quietly(on: Served) -> None:
    """As `| head -1` does to any command."""
    command = " ".join(on.command("exec", "web", "sh", "-c", "'while :; do echo y; done'")) + " | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("y\n", "")


def test_exec_on_a_terminal_passes_keys_and_sizes_on(on: Served) -> None:
    """Ctrl-C is the command's, and a window that grows is known inside."""
    with Terminal(on.command("exec", "-it", "web", "sh"), columns=97, lines=31) as screen:
        # A runtime sets the first size when the command runs already, and what is typed ahead may be quicker.
        screen.type(
            b"until [ \"$(busybox stty size)\" = '31 97' ]; do :; done; trap 'echo caught' INT; echo tr''apped\n"
        )
        screen.see(b"trapped")
        screen.type(b"\x03\n")
        screen.see(b"caught")
        screen.resize(120, 50)
        screen.type(b"until [ \"$(busybox stty size)\" = '50 120' ]; do :; done; echo gr''own; exit 9\n")
        screen.see(b"grown")
        assert screen.ends() == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_exec_that_is_told_to_end_gives_the_terminal_back(on: Served, number: signal.Signals) -> None:
    """Otherwise a person is left with a terminal that shows nothing."""
    with Terminal(on.command("exec", "-it", "web", "sh")) as screen:
        screen.type(b"echo he''re\n")
        screen.see(b"here")
        screen.child.send_signal(number)
        assert screen.ends() == 128 + number


def test_attach_joins_the_streams_of_a_container(on: Served) -> None:
    """Lines that are typed reach the process that runs already; its output comes back."""
    container = on.begin("talk", TALK, stdin=True)
    command = on.command("attach", "-i", container)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"one\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"heard one\n"
        child.kill()


def test_keys_detach_from_a_container_which_runs_on(on: Served) -> None:
    """ctrl-p alone is the container's, ctrl-p ctrl-q is ours."""
    container = on.begin("typed", "busybox stty raw -echo; cat", stdin=True, tty=True)
    with Terminal(on.command("attach", "-it", container)) as screen:
        screen.becomes_raw()
        screen.type(b"\x10hello")
        screen.see(b"\x10hello")
        screen.type(b"\x10\x11")
        screen.see(b"detached")
        assert screen.ends() == 0
    with Terminal(on.command("attach", "-it", "--detach-keys", "ctrl-a,d", container)) as screen:
        screen.becomes_raw()
        screen.type(b"\x10\x11again")
        screen.see(b"\x10\x11again")
        screen.type(b"\x01d")
        assert screen.ends() == 0
    assert container in on.ok("ps", "-q").splitlines()


@contextlib.contextmanager
def forwarded(on: Served, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A port-forward that listens, and its first local port."""
    command = on.command("port-forward", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            line = child.stdout.readline().decode()
            assert line.startswith("Forwarding from 127.0.0.1:"), line
            yield child, int(line.split(":")[1].split()[0])
        finally:
            child.kill()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def echoed(connection: socket.socket, data: bytes) -> bytes:
    """Send and receive at the same time, until as much has come back."""
    sent, received = 0, bytearray()
    while len(received) < len(data):
        sending = [connection] if sent < len(data) else []
        readable, writable, _ = select.select([connection], sending, [], WAIT_S)
        assert readable or writable
        if writable:
            sent += connection.send(data[sent : sent + 65536])
        if readable:
            received += connection.recv(65536)
    return bytes(received)


def talk(port: int, data: bytes) -> bytes:
    """Send, end our side, and read to the end."""
    with connected(port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_port_forward_carries_connections_both_ways(on: Served) -> None:
    """A web server's answer, and a megabyte that comes back as it was sent, several at a time."""
    with forwarded(on, on.pod[:9], f":{HTTP_PORT}") as (_, port):
        for _ in range(3):
            answer = talk(port, b"GET / HTTP/1.0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"hello\n")
    data = os.urandom(1 << 20)
    with forwarded(on, "streams", f":{ECHO_PORT}") as (_, port), connected(port) as idle:
        with connected(port) as connection:
            assert echoed(connection, data) == data
        idle.sendall(b"still here")
        assert idle.recv(100) == b"still here"


def test_port_forward_to_a_closed_port_says_so_and_goes_on(on: Served) -> None:
    """The listener stays: the program in the pod may start later."""
    with forwarded(on, on.pod, f":{CLOSED_PORT}") as (child, port):
        assert talk(port, b"hello?") == b""
        assert child.stderr is not None
        line = child.stderr.readline().decode()
        assert line.startswith(f"crioctl: port {port} -> {CLOSED_PORT}: ") and "refused" in line
        assert talk(port, b"hello?") == b""
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=WAIT_S) == 130


def test_port_forward_on_a_port_that_is_taken_is_refused(on: Served) -> None:
    """Nothing is forwarded by half."""
    with socket.socket() as taken, socket.socket(socket.AF_INET6) as taken_too:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken_too.bind(("::1", port))
        taken.listen()
        taken_too.listen()
        result = on.run("port-forward", on.pod, f"{port}:{HTTP_PORT}")
    assert result.code == 2
    assert f"cannot listen on port {port}" in result.err
