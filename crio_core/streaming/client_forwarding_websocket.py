"""The client's side of port forwarding over a WebSocket: one connection for each port of the request. Pure."""

from crio_core.errors import LocalError
from crio_core.streaming.channels import ChannelData, Channels
from crio_core.streaming.client import Broken, ForwardingClientEvent, Opened
from crio_core.streaming.portforward import Data
from crio_core.streaming.protocol import Left, Protocol, ProtocolError

_PREFIX_BYTES = 2  # each channel begins with its port


class WebSocketForwardingClient:
    """What `ForwardingClient` is over a WebSocket."""

    def __init__(self, protocol: Protocol, ports: tuple[int, ...]) -> None:
        self._channels = Channels(client=True, protocol=protocol.name)
        self._unused = dict(enumerate(ports))
        self._ports = ports
        self._prefixes = dict.fromkeys(range(2 * len(ports)), b"")  # what has come of those that are not complete
        self._open: dict[int, None] = {}

    def connect(self, port: int) -> int:
        id = next((one for one, unused in self._unused.items() if unused == port), None)
        if id is None or 2 * id not in self._prefixes:
            raise LocalError(f"over a WebSocket port {port} is connected to once for each time it was asked for")
        del self._unused[id]
        self._open[id] = None
        return id

    def receive(self, data: bytes) -> list[ForwardingClientEvent]:
        events: list[ForwardingClientEvent] = []
        for event in self._channels.receive(data):
            match event:
                case ChannelData(channel=channel, data=payload):
                    if payload:
                        self._take(channel, payload, events)
                case Left():
                    events.append(event)
                case _:  # the server has ended one channel
                    pass
        return events

    def send(self, id: int, data: bytes) -> None:
        if id in self._open and data:
            self._channels.send(2 * id, data)

    def end(self, id: int) -> None:
        """There are no words for it: the server learns it when the connection ends."""

    def drop(self, id: int) -> None:
        self._open.pop(id, None)

    def take(self) -> bytes:
        return self._channels.take()

    def _take(self, channel: int, data: bytes, events: list[ForwardingClientEvent]) -> None:
        id, is_error = divmod(channel, 2)
        if id >= len(self._ports):
            raise ProtocolError(f"the server sends on channel {channel}: expected 0 to {2 * len(self._ports) - 1}")
        if channel in self._prefixes:
            prefix = self._prefixes[channel] + data
            self._prefixes[channel], data = prefix[:_PREFIX_BYTES], prefix[_PREFIX_BYTES:]
            if len(prefix) < _PREFIX_BYTES:
                return
            port = int.from_bytes(self._prefixes.pop(channel), "little")
            if port != self._ports[id]:
                raise ProtocolError(f"channel {channel} is for port {port}: expected {self._ports[id]}")
            if not is_error and id in self._open:
                events.append(Opened(id=id))
        if data and id in self._open:
            if is_error:
                del self._open[id]
                events.append(Broken(id=id, text=data.decode(errors="replace")))
            else:
                events.append(Data(id=id, data=data))
