"""One client of streams for every server: a command's output over SPDY, as kubectl gets it, counted and thrown away."""

import socket
from urllib.parse import urlsplit

import h11

from crio_core.streaming.client import CommandClient, Output, agreed, upgrade_headers
from crio_core.streaming.protocol import Endpoint, Left, Wire
from crio_core.streaming.remotecommand import Wants
from crio_core.streaming.status import Exited

READ_BYTES = 256 * 1024
CALL_S = 120.0


def _upgraded(url: str) -> tuple[socket.socket, CommandClient, bytes]:
    """A connection to the address of a command with standard output alone, and what came with its upgrade."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port), timeout=CALL_S)
    http = h11.Connection(h11.CLIENT)
    headers = [(b"host", b"bench"), *upgrade_headers(Wire.SPDY, Endpoint.COMMAND, b"")]
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    request = h11.Request(method="POST", target=target, headers=headers)
    sock.sendall((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    while not isinstance(event := http.next_event(), h11.InformationalResponse):
        if event is not h11.NEED_DATA:
            raise RuntimeError(f"{url} was not upgraded: {event}")
        http.receive_data(sock.recv(READ_BYTES))
    protocol = agreed(Wire.SPDY, Endpoint.COMMAND, b"", event.headers)
    client = CommandClient(protocol, Wants(stdin=False, stdout=True, stderr=False, tty=False))
    return sock, client, http.trailing_data[0]


def output_bytes(url: str) -> int:
    """Run the command that is offered at an address to its end; returns how much it has written.

    Raises:
        RuntimeError: It did not end well.
    """
    sock, client, early = _upgraded(url)
    with sock:
        events = [*client.start(), *(client.receive(early) if early else ())]
        size = 0
        while True:
            for event in events:
                match event:
                    case Output(data=data):
                        size += len(data)
                    case Exited(code=0):
                        return size
                    case Left() | Exited():
                        raise RuntimeError(f"{url}: {event} after {size} bytes")
            if data := client.take():
                sock.sendall(data)
            events = client.receive(sock.recv(READ_BYTES))
