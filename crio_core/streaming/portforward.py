"""The server's side of port forwarding over one upgraded connection, whichever protocol it speaks.

Sources: kubernetes, kubelet/pkg/cri/streaming/portforward.
"""

import typing

from crio_core.streaming.protocol import Left, Protocol, Wire
from crio_core.values import dataclass

STREAMS_MAX = 1024  # two for each connection that one client forwards at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The client wants a connection to a port of the pod; `id` names it from now on."""

    id: int
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Bytes for one connection, never empty."""

    id: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEnded:
    """The peer has ended its side of one connection, and may still read (as shutdown(2) with SHUT_WR)."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The peer wants no more of one connection: it is over, and `id` means nothing any more."""

    id: int


ForwardingEvent = Connected | Data | DataEnded | Dropped | Left


class ForwardingWire(typing.Protocol):
    """What one wire does for `Forwarding`."""

    def start(self) -> list[ForwardingEvent]: ...
    def receive(self, data: bytes) -> list[ForwardingEvent]: ...
    def send(self, id: int, data: bytes) -> None: ...
    def end(self, id: int) -> None: ...
    def fail(self, id: int, text: str) -> None: ...
    def close(self) -> None: ...
    def take(self) -> bytes: ...


class Forwarding:
    """All connections that a client forwards over one upgraded connection.

    `start` comes first. After it and every other call, what `take` gives is to be written to the socket. A connection
    is over when both sides have ended it, when it has failed or was dropped; calls that name it later do nothing.
    """

    def __init__(self, protocol: Protocol, ports: tuple[int, ...]) -> None:
        """Take over after the 101 response.

        Args:
            protocol: What `upgrade.decide` has chosen.
            ports: Those of the PortForwardRequest; only a WebSocket needs them, whose streams have numbers alone.
        """
        self._wire = _wire_of(protocol, ports)

    def start(self) -> list[ForwardingEvent]:
        """What happens before the client has said anything: over a WebSocket, `Connected` for each port asked for."""
        return self._wire.start()

    def receive(self, data: bytes) -> list[ForwardingEvent]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        return self._wire.receive(data)

    def send(self, id: int, data: bytes) -> None:
        """Bytes that the pod has sent on one connection."""
        self._wire.send(id, data)

    def end(self, id: int) -> None:
        """The pod has ended its side of one connection; over a WebSocket only the end of all can be told."""
        self._wire.end(id)

    def fail(self, id: int, text: str) -> None:
        """One connection could not be made, or broke; the client is told why, and the connection is over."""
        self._wire.fail(id, text)

    def close(self) -> None:
        """Nothing more will be forwarded: all connections are over, and so is this one once `take` is written."""
        self._wire.close()

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        return self._wire.take()


def _wire_of(protocol: Protocol, ports: tuple[int, ...]) -> ForwardingWire:
    """The wire of a protocol, loaded when it is used: where clients speak SPDY, no WebSocket takes memory."""
    if protocol.wire is Wire.WEBSOCKET:
        from crio_core.streaming.forwarding_websocket import WebSocketForwarding

        return WebSocketForwarding(protocol, ports)
    from crio_core.streaming.forwarding_spdy import SpdyForwarding

    if protocol.wire is Wire.TUNNEL:
        from crio_core.streaming.tunnel import Tunnel

        return SpdyForwarding(Tunnel(client=False, streams_max=STREAMS_MAX))
    from crio_core.streaming.spdy import Connection

    return SpdyForwarding(Connection(client=False, streams_max=STREAMS_MAX))
