"""The server's side of port forwarding over one upgraded connection, whichever protocol it speaks.

Sources: kubernetes, kubelet/pkg/cri/streaming/portforward.
"""

from crio_core.streaming.protocol import Left, Protocol
from crio_core.values import dataclass


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
    """The client has ended its side of one connection, and may still read (as shutdown(2) with SHUT_WR)."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The client wants no more of one connection: it is over, and `id` means nothing any more."""

    id: int


ForwardingEvent = Connected | Data | DataEnded | Dropped | Left


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
        raise NotImplementedError

    def start(self) -> list[ForwardingEvent]:
        """What happens before the client has said anything: over a WebSocket, `Connected` for each port asked for."""
        raise NotImplementedError

    def receive(self, data: bytes) -> list[ForwardingEvent]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        raise NotImplementedError

    def send(self, id: int, data: bytes) -> None:
        """Bytes that the pod has sent on one connection."""
        raise NotImplementedError

    def end(self, id: int) -> None:
        """The pod has ended its side of one connection."""
        raise NotImplementedError

    def fail(self, id: int, text: str) -> None:
        """One connection could not be made, or broke; the client is told why, and the connection is over."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more will be forwarded: all connections are over, and so is this one once `take` is written."""
        raise NotImplementedError

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        raise NotImplementedError
