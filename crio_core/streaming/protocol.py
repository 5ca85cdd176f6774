"""What every module here speaks of: the two wires, the protocol chosen on one, and its violation."""

from enum import Enum

from crio_core.errors import RemoteError
from crio_core.values import dataclass

PORT_MAX = 0xFFFF


class ProtocolError(RemoteError):
    """The peer sent what its protocol forbids: the connection is of no more use, and should be closed."""


class Wire(Enum):
    """How several streams share one connection."""

    SPDY = "SPDY/3.1"
    WEBSOCKET = "websocket"
    TUNNEL = "SPDY/3.1 in websocket"  # messages of a WebSocket carry the bytes of a SPDY connection


class Endpoint(Enum):
    """What a stream is for."""

    COMMAND = "command"  # exec and attach
    FORWARDING = "forwarding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What both sides agreed to speak after an upgrade."""

    wire: Wire
    name: str
    """Such as `v4.channel.k8s.io`; empty when a client of a WebSocket named none, which means `channel.k8s.io`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The peer has gone, in whatever way: nothing more comes, and nothing that is sent would arrive."""
