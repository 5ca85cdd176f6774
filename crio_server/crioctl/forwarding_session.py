"""Port forwarding as it runs: a listener for each local port, and a connection to the pod for each that comes."""

import contextlib
import functools
import sys
from collections.abc import Sequence

import anyio
import click
from anyio.abc import SocketAttribute, SocketStream

from crio_core.streaming.client import Broken, ForwardingClient, ForwardingClientEvent, Opened
from crio_core.streaming.portforward import Data, DataEnded, Dropped
from crio_core.streaming.protocol import Left, ProtocolError
from crio_server.crioctl.errors import BadInput, Refused
from crio_server.crioctl.streaming import Stream
from crio_server.crioctl.text import clean

READ_BYTES = 64 << 10
REASON_S = 1.0
"""How long the reason for the end of a connection may come after its data."""
PIECES_MAX = 16
"""Of one connection, that have come and are not written: then all of them wait, as one socket carries them."""


async def forward(stream: Stream, addresses: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
    """Forward until this program is interrupted.

    Raises:
        BadInput: A local port cannot be listened on.
        Refused: The connection was lost, or the server broke the protocol.
    """
    try:
        await _Forwarder(stream, tuple(remote for _, remote in pairs)).run(addresses, pairs)
    except ExceptionGroup as group:
        # One task failed, and the others were ended for it.
        raise group.exceptions[0] from group
    finally:
        await stream.close()


class _Carried:
    """One connection."""

    def __init__(self) -> None:
        self.incoming, self.events = anyio.create_memory_object_stream[ForwardingClientEvent](PIECES_MAX)
        self._ours_ended = self._theirs_ended = False
        self._over = anyio.Event()

    def end(self, *, ours: bool) -> None:
        """One side has ended; after both no data is left to wait for."""
        self._ours_ended |= ours
        self._theirs_ended |= not ours
        if self._ours_ended and self._theirs_ended:
            self._over.set()

    async def close_when_over(self) -> None:
        """Wait for the end of both sides, then for a reason, which may come last; a server that has none is silent."""
        await self._over.wait()
        await anyio.sleep(REASON_S)
        self.incoming.close()


class _Forwarder:
    def __init__(self, stream: Stream, ports: tuple[int, ...]) -> None:
        self._stream = stream
        self._machine = ForwardingClient(stream.protocol, ports)
        self._sending = anyio.Lock()
        self._tasks = anyio.create_task_group()
        self._carried: dict[int, _Carried] = {}

    async def run(self, addresses: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
        async with self._tasks:
            for local, remote in pairs:
                for address in addresses:
                    await self._listen(address, local, remote)
            while True:
                try:
                    events = self._machine.receive(await self._stream.receive())
                except ProtocolError as error:
                    raise Refused(f"the server broke the protocol of streams: {error}") from error
                for event in events:
                    await self._pass_on(event)
                # What the machine answers does not wait for data that is on its way: the server may be busy, too.
                self._tasks.start_soon(self._flush)

    async def _pass_on(self, event: ForwardingClientEvent) -> None:
        if isinstance(event, Left):
            raise Refused("the connection to the server was lost")
        carried = self._carried.get(event.id)
        if carried is not None:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it has just ended
                await carried.incoming.send(event)

    async def _listen(self, address: str, local: int, remote: int) -> None:
        names = ("127.0.0.1", "::1") if address == "localhost" else (address,)
        problems = []
        for name in names:
            try:
                listener = await anyio.create_tcp_listener(local_host=name, local_port=local)
            except (OSError, ValueError) as error:
                problems.append(f"{name}: {error}")
                continue
            local = listener.extra(SocketAttribute.local_port)  # when the system chose, the same for both addresses
            shown = f"[{name}]" if ":" in name else name
            _say(f"Forwarding from {shown}:{local} -> {remote}")
            self._tasks.start_soon(listener.serve, functools.partial(self._serve, local, remote))
        if len(problems) == len(names):
            raise BadInput(f"cannot listen on port {local}: {'; '.join(problems)}")

    async def _serve(self, local: int, remote: int, connection: SocketStream) -> None:
        """One connection, from its first byte to its last in both directions."""
        _say(f"Handling connection for {local}")
        id = self._machine.connect(remote)
        carried = self._carried[id] = _Carried()
        async with connection:
            try:
                await self._flush()
                await self._carry(id, connection, carried, f"{local} -> {remote}")
            finally:
                del self._carried[id]
                carried.incoming.close()
                carried.events.close()
                self._machine.drop(id)
                self._tasks.start_soon(self._flush)

    async def _carry(self, id: int, connection: SocketStream, carried: _Carried, name: str) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(carried.close_when_over)
            async for event in carried.events:
                match event:
                    case Opened():
                        tasks.start_soon(self._send, id, connection, carried)
                    case Data(data=data):
                        try:
                            await connection.send(data)
                        except anyio.BrokenResourceError:
                            break
                    case DataEnded():
                        await connection.send_eof()
                        carried.end(ours=False)
                    case Dropped():
                        break
                    case Broken(text=text):
                        click.echo(f"crioctl: port {name}: {clean(text)}", err=True)
                        break
            tasks.cancel_scope.cancel()

    async def _send(self, id: int, connection: SocketStream, carried: _Carried) -> None:
        try:
            while True:
                self._machine.send(id, await connection.receive(READ_BYTES))
                await self._flush()
        except anyio.EndOfStream:
            self._machine.end(id)
            await self._flush()
            carried.end(ours=True)
        except anyio.BrokenResourceError:
            carried.incoming.close()

    async def _flush(self) -> None:
        async with self._sending:
            data = self._machine.take()
            if data:
                await self._stream.send(data)


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()
