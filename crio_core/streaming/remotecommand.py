"""The server's side of one command (exec or attach) over one upgraded connection, whichever protocol it speaks.

Sources: kubernetes, kubelet/pkg/cri/streaming/remotecommand.
"""

from enum import Enum

from crio_core.streaming.protocol import Left, Protocol
from crio_core.streaming.status import Ended
from crio_core.values import dataclass


class Stream(Enum):
    """Where output goes."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """Which streams the command has, from the ExecRequest or AttachRequest; with `tty` there is no `stderr`."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The client has opened all that it owes: output and status may be sent. Comes once, and first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Bytes for the command's standard input, never empty."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InputEnded:
    """The client has closed standard input, and still waits for output. Comes once at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """The client's terminal has this size, in characters: 1 to 65535 each."""

    width: int
    height: int


CommandEvent = Ready | Input | InputEnded | Resized | Left


class Command:
    """One command's connection, from the first byte after the 101 response.

    `start` comes first. After it, every `receive` and every `send_…`, what `take` gives is to be written to the socket.
    """

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        raise NotImplementedError

    def start(self) -> list[CommandEvent]:
        """What happens before the client has said anything: over a WebSocket, where nothing is opened, `Ready`."""
        raise NotImplementedError

    def receive(self, data: bytes) -> list[CommandEvent]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        raise NotImplementedError

    def send_output(self, stream: Stream, data: bytes) -> None:
        """Output of the command; for a stream that the client does not want, it is dropped.

        Raises:
            LocalError: Before `Ready`, or after the status was sent.
        """
        raise NotImplementedError

    def send_status(self, status: Ended) -> None:
        """How the command ended; after it every stream is closed, and the connection is over once `take` is written.

        Input that is still under way would make closing the socket a reset, which costs the client the end of what it
        was sent: end the sending side first (shutdown), and read until the peer ends its own, with a deadline.

        Raises:
            LocalError: Before `Ready`, or a second time.
        """
        raise NotImplementedError

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        raise NotImplementedError
