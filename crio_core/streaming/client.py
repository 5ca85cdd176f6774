"""The client's side of exec, attach and port forwarding: the mirror image of `remotecommand` and `portforward`."""

import base64
import typing
from collections.abc import Iterable

from crio_core.errors import LocalError
from crio_core.streaming.portforward import Data, DataEnded, Dropped
from crio_core.streaming.protocol import Endpoint, Left, Protocol, ProtocolError, Wire
from crio_core.streaming.remotecommand import Ready, Stream, Wants
from crio_core.streaming.status import Exited, Failed
from crio_core.streaming.upgrade import PROTOCOL_VERSION, SPDY, TUNNEL, Headers, websocket_accept
from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the command has written, never empty."""

    stream: Stream
    data: bytes


CommandClientEvent = Ready | Output | Exited | Failed | Left


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The server has taken one connection: from now on data may be sent."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The server could not make one connection, or has lost it; it is over."""

    id: int
    text: str


ForwardingClientEvent = Opened | Data | DataEnded | Dropped | Broken | Left


def upgrade_headers(wire: Wire, endpoint: Endpoint, nonce: bytes) -> Headers:
    """The headers of a request for a stream, but for `host`; to be sent with POST for SPDY and GET for a WebSocket.

    Args:
        nonce: 16 random bytes, which only a WebSocket needs.
    """
    offered = b", ".join(name.encode() for name in _offered(wire, endpoint))
    if wire is Wire.SPDY:
        return ((b"connection", b"Upgrade"), (b"upgrade", SPDY), (PROTOCOL_VERSION, offered))
    return (
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", base64.b64encode(nonce)),
        (b"sec-websocket-protocol", offered),
    )


def agreed(wire: Wire, endpoint: Endpoint, nonce: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Protocol:
    """What the headers of a 101 response chose, names in lower case; `nonce` is what the request was made with.

    Raises:
        ProtocolError: It chose what was not offered.
    """
    found = dict(headers)
    chosen = found.get(b"upgrade", b"").lower()
    expected = SPDY.lower() if wire is Wire.SPDY else b"websocket"
    if chosen != expected:
        raise ProtocolError(f"the server upgrades to {chosen[:64]!r}: expected {expected.decode()}")
    if wire is not Wire.SPDY:
        proof = found.get(b"sec-websocket-accept", b"")
        if proof != websocket_accept(base64.b64encode(nonce)):
            raise ProtocolError(f"Sec-WebSocket-Accept: {proof[:64]!r} does not belong to this request")
    name = found.get(PROTOCOL_VERSION if wire is Wire.SPDY else b"sec-websocket-protocol", b"").decode("latin-1")
    offered = _offered(wire, endpoint)
    if name not in offered:
        raise ProtocolError(f"the server speaks {name[:64]!r}: expected {' or '.join(offered)}")
    return Protocol(wire=wire, name=name)


def _offered(wire: Wire, endpoint: Endpoint) -> tuple[str, ...]:
    """What this client speaks: of the protocols of commands only those with an exit code, which every server knows."""
    if endpoint is Endpoint.COMMAND:
        return ("v4.channel.k8s.io",) if wire is Wire.SPDY else ("v5.channel.k8s.io", "v4.channel.k8s.io")
    return {Wire.SPDY: ("portforward.k8s.io",), Wire.WEBSOCKET: ("v4.channel.k8s.io",), Wire.TUNNEL: (TUNNEL,)}[wire]


class CommandClientWire(typing.Protocol):
    """What one wire does for `CommandClient`."""

    def start(self) -> list[CommandClientEvent]: ...
    def receive(self, data: bytes) -> list[CommandClientEvent]: ...
    def send_input(self, data: bytes) -> None: ...
    def end_input(self) -> None: ...
    def resize(self, width: int, height: int) -> None: ...
    def take(self) -> bytes: ...


class CommandClient:
    """The client's side of one command, from the first byte after the 101 response; `start` comes first."""

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        self._wants = wants
        self._wire = _command_wire(protocol, wants)

    def start(self) -> list[CommandClientEvent]:
        """What happens before the server has said anything: over a WebSocket, where nothing is opened, `Ready`."""
        return self._wire.start()

    def receive(self, data: bytes) -> list[CommandClientEvent]:
        """What bytes of the socket mean; `b""` when the server has ended its side.

        `Exited` or `Failed` comes once at most, after all output. `Left` without one of them means that the connection
        was lost.

        Raises:
            ProtocolError: The server broke the protocol.
        """
        return self._wire.receive(data)

    def send_input(self, data: bytes) -> None:
        """Bytes for the command's standard input.

        Raises:
            LocalError: Before `Ready`, or for a command without input.
        """
        self._check_input()
        self._wire.send_input(data)

    def end_input(self) -> None:
        """Standard input is over; over a WebSocket before v5 there is no way to say so, and nothing is sent.

        Raises:
            LocalError: Before `Ready`, or for a command without input.
        """
        self._check_input()
        self._wire.end_input()

    def resize(self, width: int, height: int) -> None:
        """The terminal has this size, in characters; of a command without one nothing is sent.

        Raises:
            LocalError: Before `Ready`.
        """
        self._wire.resize(width, height)

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        return self._wire.take()

    def _check_input(self) -> None:
        if not self._wants.stdin:
            raise LocalError("this command was asked for without input")


class ForwardingClientWire(typing.Protocol):
    """What one wire does for `ForwardingClient`."""

    def connect(self, port: int) -> int: ...
    def receive(self, data: bytes) -> list[ForwardingClientEvent]: ...
    def send(self, id: int, data: bytes) -> None: ...
    def end(self, id: int) -> None: ...
    def drop(self, id: int) -> None: ...
    def take(self) -> bytes: ...


class ForwardingClient:
    """The client's side of port forwarding, from the first byte after the 101 response."""

    def __init__(self, protocol: Protocol, ports: tuple[int, ...]) -> None:
        """Take over after the 101 response; `ports` are those of the PortForwardRequest."""
        self._wire = _forwarding_wire(protocol, ports)

    def connect(self, port: int) -> int:
        """Ask for a connection to a port of the pod, and return its id; data may be sent when `Opened` has come.

        Raises:
            LocalError: Over a WebSocket, for a port that is used already, or after the first `receive`.
        """
        return self._wire.connect(port)

    def receive(self, data: bytes) -> list[ForwardingClientEvent]:
        """What bytes of the socket mean; `b""` when the server has ended its side.

        Raises:
            ProtocolError: The server broke the protocol.
        """
        return self._wire.receive(data)

    def send(self, id: int, data: bytes) -> None:
        """Bytes for one connection; of one that is over, none are sent.

        Raises:
            LocalError: Before `Opened`.
        """
        self._wire.send(id, data)

    def end(self, id: int) -> None:
        """Our side of one connection is over; over a WebSocket there is no way to say so."""
        self._wire.end(id)

    def drop(self, id: int) -> None:
        """Nothing more is wanted of one connection."""
        self._wire.drop(id)

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        return self._wire.take()


def _command_wire(protocol: Protocol, wants: Wants) -> CommandClientWire:
    match protocol.wire:
        case Wire.SPDY:
            from crio_core.streaming.client_command import SpdyCommandClient

            return SpdyCommandClient(protocol, wants)
        case Wire.WEBSOCKET:
            from crio_core.streaming.client_command_websocket import WebSocketCommandClient

            return WebSocketCommandClient(protocol, wants)
        case Wire.TUNNEL:
            raise LocalError("commands do not travel through a tunnel")


def _forwarding_wire(protocol: Protocol, ports: tuple[int, ...]) -> ForwardingClientWire:
    if protocol.wire is Wire.WEBSOCKET:
        from crio_core.streaming.client_forwarding_websocket import WebSocketForwardingClient

        return WebSocketForwardingClient(protocol, ports)
    from crio_core.streaming.client_forwarding import SpdyForwardingClient

    if protocol.wire is Wire.TUNNEL:
        from crio_core.streaming.tunnel import Tunnel

        return SpdyForwardingClient(Tunnel(client=True, streams_max=0))
    from crio_core.streaming.spdy import Connection

    return SpdyForwardingClient(Connection(client=True, streams_max=0))
