"""The client's side of a command over a WebSocket. Pure."""

from crio_core.streaming.channels import ChannelData, Channels
from crio_core.streaming.client import CommandClientEvent, Output
from crio_core.streaming.client_command import StatusReader
from crio_core.streaming.command_websocket import ERROR, RESIZE, STDERR, STDIN, STDOUT
from crio_core.streaming.protocol import Left, Protocol
from crio_core.streaming.remotecommand import Ready, Stream, Wants
from crio_core.streaming.status import has_json
from crio_core.streaming.terminal import encode_size

_OUTPUTS = {STDOUT: Stream.STDOUT, STDERR: Stream.STDERR}


class WebSocketCommandClient:
    """What `CommandClient` is over a WebSocket."""

    def __init__(self, protocol: Protocol, wants: Wants) -> None:
        self._channels = Channels(client=True, protocol=protocol.name)
        self._has_json = has_json(protocol)
        self._has_resize = wants.tty
        self._status = StatusReader(protocol)
        self._is_told = False  # how the command ended

    def start(self) -> list[CommandClientEvent]:
        return [Ready()]

    def receive(self, data: bytes) -> list[CommandClientEvent]:
        events: list[CommandClientEvent] = []
        for event in self._channels.receive(data):
            match event:
                case ChannelData():
                    self._take(event, events)
                case Left():
                    # Before v4 a success is told by nothing but a proper close.
                    if not self._is_told and not self._has_json and self._channels.was_closed:
                        events.append(self._status.end())
                    self._is_told = True
                    events.append(event)
                case _:  # the server has ended one channel, and the others go on
                    pass
        return events

    def send_input(self, data: bytes) -> None:
        if data:
            self._channels.send(STDIN, data)

    def end_input(self) -> None:
        self._channels.end(STDIN)

    def resize(self, width: int, height: int) -> None:
        if self._has_resize:
            self._channels.send(RESIZE, encode_size(width, height))

    def take(self) -> bytes:
        return self._channels.take()

    def _take(self, event: ChannelData, events: list[CommandClientEvent]) -> None:
        if event.channel == ERROR:
            self._status.feed(event.data)
            if event.ends and not self._status.is_empty and not self._is_told:
                self._is_told = True
                events.append(self._status.end())
        elif event.data and event.channel in _OUTPUTS:
            events.append(Output(stream=_OUTPUTS[event.channel], data=event.data))
