"""The client's side of exec, attach and port forwarding: the mirror image of `remotecommand` and `portforward`."""

from crio_core.streaming.portforward import Data, DataEnded
from crio_core.streaming.protocol import Endpoint, Left, Protocol, Wire
from crio_core.streaming.remotecommand import Ready, Stream, Wants
from crio_core.streaming.status import Exited, Failed
from crio_core.streaming.upgrade import Headers
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


ForwardingClientEvent = Opened | Data | DataEnded | Broken | Left


def upgrade_headers(wire: Wire, endpoint: Endpoint, nonce: bytes) -> Headers:
    """The headers of a request for a stream, but for `host`; to be sent with POST for SPDY and GET for a WebSocket.

    Args:
        nonce: 16 random bytes, which only a WebSocket needs.
    """
    raise NotImplementedError


def agreed(wire: Wire, endpoint: Endpoint, nonce: bytes, headers: Headers) -> Protocol:
    """What the headers of a 101 response chose; `nonce` is what the request was made with.

    Raises:
        ProtocolError: It chose what was not offered.
    """
    raise NotImplementedError


class CommandClient:
    """The client's side of one command, from the first byte after the 101 response; `start` comes first."""

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        raise NotImplementedError

    def start(self) -> list[CommandClientEvent]:
        """What happens before the server has said anything: over a WebSocket, where nothing is opened, `Ready`."""
        raise NotImplementedError

    def receive(self, data: bytes) -> list[CommandClientEvent]:
        """What bytes of the socket mean; `b""` when the server has ended its side.

        `Exited` or `Failed` comes once at most, after all output. `Left` without one of them means that the connection
        was lost.

        Raises:
            ProtocolError: The server broke the protocol.
        """
        raise NotImplementedError

    def send_input(self, data: bytes) -> None:
        """Bytes for the command's standard input."""
        raise NotImplementedError

    def end_input(self) -> None:
        """Standard input is over; over a WebSocket before v5 there is no way to say so, and nothing is sent."""
        raise NotImplementedError

    def resize(self, width: int, height: int) -> None:
        """The terminal has this size, in characters."""
        raise NotImplementedError

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        raise NotImplementedError


class ForwardingClient:
    """The client's side of port forwarding, from the first byte after the 101 response."""

    def __init__(self, protocol: Protocol, ports: tuple[int, ...]) -> None:
        """Take over after the 101 response; `ports` are those of the PortForwardRequest."""
        raise NotImplementedError

    def connect(self, port: int) -> int:
        """Ask for a connection to a port of the pod, and return its id."""
        raise NotImplementedError

    def receive(self, data: bytes) -> list[ForwardingClientEvent]:
        """What bytes of the socket mean; `b""` when the server has ended its side.

        Raises:
            ProtocolError: The server broke the protocol.
        """
        raise NotImplementedError

    def send(self, id: int, data: bytes) -> None:
        """Bytes for one connection."""
        raise NotImplementedError

    def end(self, id: int) -> None:
        """Our side of one connection is over."""
        raise NotImplementedError

    def drop(self, id: int) -> None:
        """Nothing more is wanted of one connection."""
        raise NotImplementedError

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        raise NotImplementedError
