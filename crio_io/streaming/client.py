"""A command's client: what it says as calls of whoever has the command, and what it is told."""

from typing import Protocol

import anyio

from crio_core.errors import Code, OperationError
from crio_core.requests import Streams
from crio_core.streaming.protocol import Left, ProtocolError
from crio_core.streaming.remotecommand import Command, CommandEvent, Input, InputEnded, Ready, Resized, Stream, Wants
from crio_core.streaming.status import Ended, Failed
from crio_io.streaming.streams import ANSWERS_BYTES_MAX, Connection

CREATION_S = 30.0
"""How long a client may take to open the streams that it owes; as in a kubelet."""
HUNG_UP_WRITE_S = 1.0
"""How long input that a client has sent before it hung up may wait for the command to read it."""


class Sink(Protocol):
    """What a client's input and terminal size are for."""

    async def write(self, data: bytes) -> None:
        """Pass input on, all of it; what nobody will read is dropped."""
        ...

    def end_input(self) -> None:
        """There is no more input."""
        ...

    def resize(self, width: int, height: int) -> None:
        """The client's terminal has this size, in characters."""
        ...


class CommandClient:
    """The client of one command.

    Args:
        connection: Where it is.
        streams: What it wants.
    """

    def __init__(self, connection: Connection, streams: Streams) -> None:
        wants = Wants(stdin=streams.stdin, stdout=streams.stdout, stderr=streams.stderr, tty=streams.tty)
        self._connection = connection
        self._command = Command(connection.protocol, wants)
        self._events: list[CommandEvent] = self._command.start()
        self._sending = anyio.Lock()
        self._writing: anyio.CancelScope | None = None
        self._flushing: anyio.CancelScope | None = None
        self._hung_up = False
        self._answered_bytes = 0
        """Of what the client has said lately that is only to be answered, while what was sent before is not taken."""
        self.gone = False
        """Nothing that is sent arrives any more."""

    async def ready(self) -> None:
        """Wait until the client has opened its streams.

        Raises:
            OperationError: STREAM_NOT_TAKEN, it did not, or it does not speak its protocol.
        """
        with anyio.move_on_after(CREATION_S):
            while not self._events:
                self._events = await self._receive()
        if not self._events or not isinstance(self._events[0], Ready):
            raise OperationError(Code.CANCELLED, "STREAM_NOT_TAKEN", "the client did not open its streams")
        del self._events[0]

    async def _receive(self) -> list[CommandEvent]:
        """The next events, of which there may be none; `Left` also for a client that breaks the protocol."""
        data = await self._connection.receive()
        try:
            events = self._command.receive(data)
        except ProtocolError:
            return [Left()]
        # Whoever is sending sends an answer too, and may have to wait for the client; one that has very many answers
        # made, and takes none, is not read any more.
        self._answered_bytes = self._answered_bytes + len(data) if self._sending.locked() and not events else 0
        if not self._sending.locked() or self._answered_bytes > ANSWERS_BYTES_MAX:
            await self._flush()
        return events if data or events else [Left()]

    async def listen(self, sink: Sink) -> None:
        """Pass on what the client says until it leaves."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._notice_hang_up)
            while await self._pass_on(sink):
                self._events = await self._receive()
            tasks.cancel_scope.cancel()

    async def _pass_on(self, sink: Sink) -> bool:
        """Pass on events; False when the client has left."""
        events, self._events = self._events, []
        for event in events:
            match event:
                case Input(data=data):
                    with anyio.CancelScope() as self._writing:
                        if self._hung_up:
                            self._writing.deadline = anyio.current_time() + HUNG_UP_WRITE_S
                        await sink.write(data)
                    if self._writing.cancelled_caught:
                        return False
                    self._writing = None
                case InputEnded():
                    sink.end_input()
                case Resized(width=width, height=height):
                    sink.resize(width, height)
                case Left():
                    return False
        return True

    async def _notice_hang_up(self) -> None:
        """A command that never reads its input must not keep a client that is gone."""
        await self._connection.hung_up()
        self._hung_up = True
        if self._writing is not None:
            self._writing.deadline = anyio.current_time() + HUNG_UP_WRITE_S

    async def send(self, stream: Stream, data: bytes) -> None:
        """Send output, however long the client takes."""
        self._command.send_output(stream, data)
        await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
            while not self.gone and (data := self._command.take()):
                sent = False
                try:
                    with anyio.CancelScope() as self._flushing:
                        sent = await self._connection.send(data)
                finally:
                    # After one that was cut off, whatever came next would be taken for the rest of it.
                    self.gone = not sent

    def leave(self) -> None:
        """The client has left: nothing is sent to it any more, and nobody waits until it takes what is."""
        self.gone = True
        if self._flushing is not None:
            self._flushing.cancel()

    async def finish(self, status: Ended) -> None:
        """Tell the client how its command ended, and hang up when it has got that."""
        if self.gone:
            return
        self._command.send_status(status)
        await self._flush()
        if not self.gone:
            await self._connection.end()

    async def fail(self, error: OperationError) -> None:
        """Tell the client why there is no command, and hang up."""
        await self.finish(Failed(message=error.message))
