"""The numbered channels of `channel.k8s.io`: the first byte of each message of a WebSocket says whose the rest is.

In `base64.channel.k8s.io` that byte is a character and the rest is in base64. Since v5 a message on channel 255 says
which channel its sender has ended.

Source: kubernetes, apimachinery/pkg/util/httpstream/wsstream.
"""

import base64
import binascii

from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.streaming.websocket import WebSocket
from crio_core.values import dataclass

CHANNELS_MAX = 255
CLOSE_CHANNEL = 255  # since v5
_ZERO = 0x30  # in base64 a channel is the character that comes so many after the digit 0
_BASE64_CHANNELS_MAX = 0x80 - _ZERO  # what is sent as text stays ASCII


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelData:
    """A stretch of a message on one channel; it is empty where a message is, or ends."""

    channel: int
    data: bytes
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelEnded:
    """The peer will send nothing more on one channel."""

    channel: int


ChannelEvent = ChannelData | ChannelEnded | Left


class Channels:
    """One side of a connection with numbered channels."""

    def __init__(self, *, client: bool, protocol: str) -> None:
        """Begin after the upgrade; `protocol` is the name of the chosen subprotocol, such as `v5.channel.k8s.io`."""
        self._socket = WebSocket(client=client)
        self._base64 = "base64" in protocol
        self.can_end = protocol.startswith("v5.")
        self._channel: int | None = None  # of the message that is being read, when its first byte has come
        self._undecoded = b""  # of it: up to three characters of base64, or the number of a channel that is ended

    def send(self, channel: int, data: bytes) -> None:
        """Send a message on a channel."""
        if self._base64:
            self._socket.send(b"%c%b" % (_ZERO + channel, base64.b64encode(data)), text=True)
        else:
            self._socket.send(b"%c%b" % (channel, data))

    def end(self, channel: int) -> None:
        """Say that nothing more will be sent on a channel, where the protocol has words for it."""
        if self.can_end:
            self._socket.send(bytes((CLOSE_CHANNEL, channel)))

    def close(self, reason: str = "") -> None:
        """Say that the connection is over."""
        self._socket.close(reason)

    @property
    def was_closed(self) -> bool:
        """Whether the peer has said that the connection is over, and was not merely lost."""
        return self._socket.was_closed

    def take(self) -> bytes:
        """What is to be written to the socket now."""
        return self._socket.take()

    def receive(self, data: bytes) -> list[ChannelEvent]:
        """What bytes of the socket mean; `b""` when the peer has ended its side.

        Raises:
            ProtocolError: The peer broke the protocol.
        """
        events: list[ChannelEvent] = []
        for piece in self._socket.receive(data):
            if isinstance(piece, Left):
                events.append(piece)
            else:
                self._take(piece.data, piece.ends, events)
        return events

    def _take(self, data: bytes, ends: bool, events: list[ChannelEvent]) -> None:
        if self._channel is None:
            if not data:
                return  # a message without even a channel says nothing
            self._channel = self._number(data[0])
            data = data[1:]
        channel = self._channel
        if ends:
            self._channel = None
        if channel == CLOSE_CHANNEL and self.can_end:
            self._take_end(data, ends, events)
            return
        if self._base64:
            data = self._decoded(data, ends)
        if data or ends:
            events.append(ChannelData(channel=channel, data=data, ends=ends))

    def _take_end(self, data: bytes, ends: bool, events: list[ChannelEvent]) -> None:
        self._undecoded += data[:2]
        if len(self._undecoded) > 1:
            raise ProtocolError("a message that ends a channel names more than one")
        if ends:
            if not self._undecoded:
                raise ProtocolError("a message that ends a channel names none")
            events.append(ChannelEnded(channel=self._undecoded[0]))
            self._undecoded = b""

    def _number(self, first: int) -> int:
        if not self._base64:
            return first
        if not 0 <= first - _ZERO < _BASE64_CHANNELS_MAX:
            raise ProtocolError(f"a message begins with {bytes((first,))!r}: expected the digit of a channel")
        return first - _ZERO

    def _decoded(self, data: bytes, ends: bool) -> bytes:
        whole = self._undecoded + data
        usable = len(whole) - len(whole) % 4
        self._undecoded = whole[usable:]
        if ends and self._undecoded:
            raise ProtocolError("a message in base64 ends inside a group of four characters")
        try:
            return base64.b64decode(whole[:usable], validate=True)
        except binascii.Error as error:
            raise ProtocolError(f"a message is not in base64: {error}") from error
