"""A command over a WebSocket, the server's side: channels with the numbers of file descriptors, and two more. Pure."""

from crio_core.streaming.channels import ChannelData, ChannelEnded, Channels
from crio_core.streaming.protocol import Protocol
from crio_core.streaming.remotecommand import CommandEvent, Input, InputEnded, Ready, Stream, Wants
from crio_core.streaming.status import Ended, encode
from crio_core.streaming.terminal import SizeReader

STDIN, STDOUT, STDERR, ERROR, RESIZE = 0, 1, 2, 3, 4


class WebSocketCommand:
    """What `Command` is over a WebSocket."""

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        self.ready = False
        self._protocol = protocol
        self._channels = Channels(client=False, protocol=protocol.name)
        self._outputs = {
            stream: channel
            for stream, channel, is_wanted in (
                (Stream.STDOUT, STDOUT, wants.stdout),
                (Stream.STDERR, STDERR, wants.stderr and not wants.tty),
            )
            if is_wanted
        }
        self._wants = wants
        self._sizes = SizeReader()
        self._input_ended = not wants.stdin

    def start(self) -> list[CommandEvent]:
        # An empty message says that the connection is there: clients wait for one.
        self._channels.send(min(self._outputs.values(), default=ERROR), b"")
        self.ready = True
        return [Ready()]

    def receive(self, data: bytes) -> list[CommandEvent]:
        events: list[CommandEvent] = []
        for event in self._channels.receive(data):
            match event:
                case ChannelData(channel=channel, data=payload):
                    self._take(channel, payload, events)
                case ChannelEnded(channel=channel):
                    if channel == STDIN and not self._input_ended:
                        self._input_ended = True
                        events.append(InputEnded())
                case left:
                    events.append(left)
        return events

    def send_output(self, stream: Stream, data: bytes) -> None:
        channel = self._outputs.get(stream)
        if channel is not None and data:
            self._channels.send(channel, data)

    def send_status(self, status: Ended) -> None:
        text = encode(status, self._protocol)
        if text:
            self._channels.send(ERROR, text)
        self._channels.close()

    def take(self) -> bytes:
        return self._channels.take()

    def _take(self, channel: int, data: bytes, events: list[CommandEvent]) -> None:
        """Take what came on one channel; Kubernetes passes over channels that are not known, or not asked for."""
        if channel == STDIN and data and not self._input_ended:
            events.append(Input(data=data))
        elif channel == RESIZE and self._wants.tty:
            events += self._sizes.feed(data)
