"""SPDY inside a WebSocket: its binary messages, put together, are the bytes of a SPDY connection. Pure.

Source: kubernetes, client-go/tools/portforward/tunneling_connection.go (KEP-4006).
"""

from crio_core.streaming.protocol import Left
from crio_core.streaming.spdy import Connection, SpdyEvent
from crio_core.streaming.websocket import WebSocket


class Tunnel(Connection):
    """One side of a SPDY connection whose bytes travel in the messages of a WebSocket."""

    def __init__(self, *, client: bool, streams_max: int) -> None:
        super().__init__(client=client, streams_max=streams_max)
        self._socket = WebSocket(client=client)

    def go_away(self) -> None:
        """Say that no further stream will be taken, and close the WebSocket."""
        super().go_away()
        self._socket.send(super().take())
        self._socket.close()

    def take(self) -> bytes:
        """What is to be written to the socket now."""
        inner = super().take()
        if inner:
            self._socket.send(inner)
        return self._socket.take()

    def receive(self, data: bytes) -> list[SpdyEvent]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke either protocol.
        """
        events: list[SpdyEvent] = []
        for piece in self._socket.receive(data):
            if isinstance(piece, Left):
                events.append(piece)
            elif piece.data:
                events += super().receive(piece.data)
        return events
