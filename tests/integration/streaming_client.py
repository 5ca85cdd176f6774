"""A client of streams on plain sockets, for tests: the protocol's client side is the core's own, the rest is here."""

import os
import socket
import ssl
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import h11

from crio_core.streaming import client as cl
from crio_core.streaming.portforward import Data, DataEnded
from crio_core.streaming.protocol import Endpoint, Left, Protocol, Wire
from crio_core.streaming.remotecommand import Ready, Stream, Wants
from crio_core.streaming.status import Exited, Failed

CALL_S = 40.0
READ_BYTES = 65536


class NotUpgraded(Exception):
    """The server answered something else than 101.

    Args:
        status: What.
        body: And why.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body!r}")
        self.status = status
        self.body = body


def connected(url: str, context: ssl.SSLContext | None = None) -> socket.socket:
    """A connection to the host of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    sock = socket.create_connection((parts.hostname, parts.port), timeout=CALL_S)
    return sock if parts.scheme == "http" else (context or ssl.create_default_context()).wrap_socket(sock)


def upgraded(
    url: str, wire: Wire, endpoint: Endpoint, context: ssl.SSLContext | None = None
) -> tuple[socket.socket, Protocol, bytes]:
    """A connection after its upgrade, what is spoken on it, and what came early.

    Raises:
        NotUpgraded: The server refused.
    """
    sock = connected(url, context)
    try:
        return sock, *_agreed(sock, urlsplit(url).path, wire, endpoint)
    except BaseException:
        sock.close()
        raise


def _agreed(sock: socket.socket, path: str, wire: Wire, endpoint: Endpoint) -> tuple[Protocol, bytes]:
    nonce = os.urandom(16)
    http = h11.Connection(h11.CLIENT)
    headers = [(b"host", b"x"), *cl.upgrade_headers(wire, endpoint, nonce)]
    request = h11.Request(method="POST" if wire is Wire.SPDY else "GET", target=path, headers=headers)
    sock.sendall((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    status, body = 0, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = sock.recv(READ_BYTES)
            if not data and not status:
                raise ConnectionError("the server has hung up")
            http.receive_data(data)
        elif isinstance(event, h11.InformationalResponse):
            return cl.agreed(wire, endpoint, nonce, event.headers), http.trailing_data[0]
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            raise NotUpgraded(status, body)


class _Client:
    """One upgraded connection, read until something holds; `_take` is told of what has come."""

    _client: cl.CommandClient | cl.ForwardingClient

    def __init__(self, sock: socket.socket, early: bytes) -> None:
        self.sock = sock
        self.left = False
        self._early = early

    def _take(self, events: Iterable[object]) -> None:
        raise NotImplementedError

    def _seen(self) -> str:
        """What there was before the server left."""
        raise NotImplementedError

    def _flush(self) -> None:
        if data := self._client.take():
            self.sock.sendall(data)

    def step(self) -> None:
        """Read once."""
        data, self._early = self._early, b""
        self._take(self._client.receive(data or self.sock.recv(READ_BYTES)))
        self._flush()

    def until(self, holds: Any, timeout_s: float = CALL_S) -> None:
        """Read until something holds."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert not self.left, f"the server left: {self._seen()}"
            self.sock.settimeout(max(0.01, deadline_s - time.monotonic()))
            self.step()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Command(_Client):
    """One exec or attach.

    Args:
        url: Where the server offered it.
        wire: What to speak.
        streams: Which streams to ask for, as they were asked for in the CRI.
    """

    _client: cl.CommandClient

    def __init__(
        self, url: str, wire: Wire = Wire.SPDY, context: ssl.SSLContext | None = None, /, **streams: bool
    ) -> None:
        wants = {"stdin": False, "stdout": True, "stderr": True, "tty": False} | streams
        sock, protocol, early = upgraded(url, wire, Endpoint.COMMAND, context)
        super().__init__(sock, early)
        self._client = cl.CommandClient(protocol, Wants(**wants))
        self.output: dict[Stream, bytearray] = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        self.ended: Exited | Failed | None = None
        self.ready = False
        self._take(self._client.start())
        self._flush()
        self.until(lambda: self.ready)

    def _take(self, events: Iterable[object]) -> None:
        for event in events:
            match event:
                case Ready():
                    self.ready = True
                case cl.Output(stream=stream, data=data):
                    self.output[stream] += data
                case Exited() | Failed():
                    self.ended = event
                case Left():
                    self.left = True

    def _seen(self) -> str:
        return f"{self.ended} {self.output}"

    def send(self, data: bytes) -> None:
        """Write to the command's input."""
        self._client.send_input(data)
        self._flush()

    def end_input(self) -> None:
        """End the command's input."""
        self._client.end_input()
        self._flush()

    def resize(self, width: int, height: int) -> None:
        """Tell the size of the terminal."""
        self._client.resize(width, height)
        self._flush()

    def result(self) -> Exited | Failed:
        """Wait for the end of the command."""
        self.until(lambda: self.ended is not None)
        assert self.ended is not None
        return self.ended

    @property
    def stdout(self) -> bytes:
        return bytes(self.output[Stream.STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output[Stream.STDERR])


class Forwarding(_Client):
    """Forwarded ports of one pod.

    Args:
        url: Where the server offered it.
        wire: What to speak.
        ports: Those that were asked for in the CRI.
    """

    _client: cl.ForwardingClient

    def __init__(self, url: str, wire: Wire = Wire.SPDY, ports: tuple[int, ...] = ()) -> None:
        sock, protocol, early = upgraded(url, wire, Endpoint.FORWARDING)
        super().__init__(sock, early)
        self._client = cl.ForwardingClient(protocol, ports)
        self.opened: set[int] = set()
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.broken: dict[int, str] = {}

    def connect(self, port: int) -> int:
        """A connection to a port; returns its id when the server has taken it, or could not make it."""
        number = self._client.connect(port)
        self.data[number] = bytearray()
        self._flush()
        return number

    def _take(self, events: Iterable[object]) -> None:
        for event in events:
            match event:
                case cl.Opened(id=number):
                    self.opened.add(number)
                case Data(id=number, data=data):
                    self.data[number] += data
                case DataEnded(id=number):
                    self.ended.add(number)
                case cl.Broken(id=number, text=text):
                    self.broken[number] = text
                case Left():
                    self.left = True

    def _seen(self) -> str:
        return f"{self.broken} {self.data}"

    def send(self, number: int, data: bytes) -> None:
        """Write to a connection."""
        self.until(lambda: number in self.opened)
        self._client.send(number, data)
        self._flush()

    def end(self, number: int) -> None:
        """End our side of a connection."""
        self._client.end(number)
        self._flush()

    def drop(self, number: int) -> None:
        """Give a connection up."""
        self._client.drop(number)
        self._flush()
