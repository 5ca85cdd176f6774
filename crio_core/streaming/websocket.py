"""Messages over a WebSocket (RFC 6455), with the frames of wsproto: fragments, pings and the closing handshake. Pure.

A message is passed on in the pieces in which it came, so one of any length needs no more memory than what was read. Of
wsproto only its frames are used: the handshake is a matter of `upgrade`, and extensions are not offered.
"""

from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode, ParseFailed

from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of one message, which may be empty where a message begins or ends."""

    data: bytes
    begins: bool
    ends: bool


class WebSocket:
    """One side of a WebSocket, after the upgrade."""

    def __init__(self, *, client: bool) -> None:
        self._frames = FrameProtocol(client=client, extensions=[])
        self._out: list[bytes | bytearray] = []
        self._inside = False  # a message that has begun and not ended
        self._closing = False  # we have sent our close frame
        self._over = False  # the peer has sent its own, or is gone: nothing after it counts
        self.was_closed = False  # the peer has sent its own, so nothing was lost

    def send(self, message: bytes, *, text: bool = False) -> None:
        """Send a whole message; after `close` none is sent."""
        if not self._closing:
            self._out.append(self._frames.send_data(message.decode() if text else message))

    def close(self, reason: str = "") -> None:
        """Begin or answer the closing handshake."""
        if not self._closing:
            self._closing = True
            self._out.append(self._frames.close(CloseReason.NORMAL_CLOSURE, reason))

    def take(self) -> bytes:
        """What is to be written to the socket now."""
        out = self._out
        if not out:
            return b""
        self._out = []
        return b"".join(out)

    def receive(self, data: bytes) -> list[Piece | Left]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        if self._over:
            return []
        if not data:
            self._over = True
            return [Left()]
        events: list[Piece | Left] = []
        self._frames.receive_bytes(data)
        try:
            for frame in self._frames.received_frames():
                self._take_frame(frame, events)
        except ParseFailed as error:
            raise ProtocolError(f"a WebSocket frame is not valid: {error}") from error
        return events

    def _take_frame(self, frame: Frame, events: list[Piece | Left]) -> None:
        if frame.opcode is Opcode.CLOSE:
            self._over = self.was_closed = True
            self.close()
            events.append(Left())
        elif frame.opcode is Opcode.PING:
            if not self._closing and isinstance(frame.payload, bytes):
                self._out.append(self._frames.pong(frame.payload))
        elif frame.opcode is not Opcode.PONG:
            payload = frame.payload.encode() if isinstance(frame.payload, str) else frame.payload
            if isinstance(payload, bytes):
                begins, self._inside = not self._inside, not frame.message_finished
                events.append(Piece(data=payload, begins=begins, ends=frame.message_finished))
