"""Port forwarding over a WebSocket, the server's side: for each port of the request one connection, at once. Pure.

Its data is on an even channel, its error on the next; on each of both the server first sends the port, in two bytes
with the lower one first. A client has no words for the end of its side.
"""

from crio_core.errors import LocalError
from crio_core.streaming.channels import CHANNELS_MAX, ChannelData, Channels
from crio_core.streaming.portforward import Connected, Data, ForwardingEvent
from crio_core.streaming.protocol import Left, Protocol

PORTS_MAX = CHANNELS_MAX // 2


class WebSocketForwarding:
    """What `Forwarding` is over a WebSocket; connections are named by the place of their port in the request."""

    def __init__(self, protocol: Protocol, ports: tuple[int, ...]) -> None:
        if len(ports) > PORTS_MAX:
            raise LocalError(f"{len(ports)} ports cannot be forwarded over one WebSocket: at most {PORTS_MAX}")
        self._channels = Channels(client=False, protocol=protocol.name)
        self._ports = ports
        self._open = dict.fromkeys(range(len(ports)))

    def start(self) -> list[ForwardingEvent]:
        for id, port in enumerate(self._ports):
            for channel in (2 * id, 2 * id + 1):
                self._channels.send(channel, port.to_bytes(2, "little"))
        return [Connected(id=id, port=port) for id, port in enumerate(self._ports)]

    def receive(self, data: bytes) -> list[ForwardingEvent]:
        events: list[ForwardingEvent] = []
        for event in self._channels.receive(data):
            match event:
                case ChannelData(channel=channel, data=payload):
                    id, is_error = divmod(channel, 2)
                    if payload and not is_error and id in self._open:
                        events.append(Data(id=id, data=payload))
                case Left():
                    events.append(event)
                case _:  # only v5 has words for an end, and nobody asks for it here
                    pass
        return events

    def send(self, id: int, data: bytes) -> None:
        if id in self._open and data:
            self._channels.send(2 * id, data)

    def end(self, id: int) -> None:
        if id in self._open:
            del self._open[id]
            if not self._open:
                self._channels.close()

    def fail(self, id: int, text: str) -> None:
        if id in self._open:
            self._channels.send(2 * id + 1, text.encode())
            self.end(id)

    def close(self) -> None:
        self._open.clear()
        self._channels.close()

    def take(self) -> bytes:
        return self._channels.take()
