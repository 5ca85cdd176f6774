"""The server's side of one command (exec or attach) over one upgraded connection, whichever protocol it speaks.

Sources: kubernetes, kubelet/pkg/cri/streaming/remotecommand.
"""

import typing
from enum import Enum

from crio_core.errors import LocalError
from crio_core.streaming.protocol import Left, Protocol, Wire
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


class CommandWire(typing.Protocol):
    """What one wire does for `Command`, which keeps to the order of calls."""

    ready: bool

    def start(self) -> list[CommandEvent]: ...
    def receive(self, data: bytes) -> list[CommandEvent]: ...
    def send_output(self, stream: Stream, data: bytes) -> None: ...
    def send_status(self, status: Ended) -> None: ...
    def take(self) -> bytes: ...


class Command:
    """One command's connection, from the first byte after the 101 response.

    `start` comes first. After it, every `receive` and every `send_…`, what `take` gives is to be written to the socket.
    """

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        self._wire = _wire_of(protocol, wants)
        self._over = False

    def start(self) -> list[CommandEvent]:
        """What happens before the client has said anything: over a WebSocket, where nothing is opened, `Ready`."""
        return self._wire.start()

    def receive(self, data: bytes) -> list[CommandEvent]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        return self._wire.receive(data)

    def send_output(self, stream: Stream, data: bytes) -> None:
        """Output of the command; for a stream that the client does not want, it is dropped.

        Raises:
            LocalError: Before `Ready`, or after the status was sent.
        """
        self._check_open()
        self._wire.send_output(stream, data)

    def send_status(self, status: Ended) -> None:
        """How the command ended; after it every stream is closed, and the connection is over once `take` is written.

        Then read until the peer ends its side, with a deadline, before closing the socket: input that is still under
        way would make the closing a reset, and clients in Go may lose the end of the output of a socket that is closed.

        Raises:
            LocalError: Before `Ready`, or a second time.
        """
        self._check_open()
        self._over = True
        self._wire.send_status(status)

    def take(self) -> bytes:
        """What is to be written to the socket now; empty when there is nothing."""
        return self._wire.take()

    def _check_open(self) -> None:
        if not self._wire.ready:
            raise LocalError("the client's streams are not all there yet: wait for Ready")
        if self._over:
            raise LocalError("the status was sent: nothing can follow it")


def _wire_of(protocol: Protocol, wants: Wants) -> CommandWire:
    """The wire of a protocol, loaded when it is used: where clients speak SPDY, no WebSocket takes memory."""
    match protocol.wire:
        case Wire.SPDY:
            from crio_core.streaming.command_spdy import SpdyCommand

            return SpdyCommand(protocol, wants)
        case Wire.WEBSOCKET:
            from crio_core.streaming.command_websocket import WebSocketCommand

            return WebSocketCommand(protocol, wants)
        case Wire.TUNNEL:
            raise LocalError("commands do not travel through a tunnel")
