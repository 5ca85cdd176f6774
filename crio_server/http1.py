"""HTTP/1.1 on connections of the server's socket: questions without a body, answers whole or in pieces.

h11 knows the protocol. Everything has a bound: connections, the head of a request, the time for it to come, and the
time in which a reader must take what it was sent. A reader that is slow holds up its own connection only.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from crio_server.status import Answer, Answering, failed

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 32
HEAD_BYTES_MAX = 16 * 1024
READ_BYTES = 4096
HEAD_S = 30.0
"""How long a connection may wait for a request, the next one too."""
WRITE_S = 30.0
WRITE_BUFFER_BYTES = 64 * 1024
FIELDS_MAX = 16


class HttpServer:
    """Serves connections that others accept.

    Args:
        answering: Gives the answer to a path and its query.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._tasks: set[asyncio.Task[None]] = set()

    def protocol(self) -> asyncio.Protocol:
        """The protocol of one new connection."""
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(HEAD_BYTES_MAX), self._accept)

    def close(self) -> None:
        """Cut every connection off."""
        for task in self._tasks:
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        full = len(self._tasks) >= CONNECTIONS_MAX
        task = asyncio.get_running_loop().create_task(_Connection(reader, writer, self._answering).serve(full=full))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Connection:
    """One connection, from its first request to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answering: Answering) -> None:
        self._reader = reader
        self._writer = writer
        self._answering = answering
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def serve(self, *, full: bool) -> None:
        """Answer one request after another; only that there is no room when the server is `full`."""
        try:
            if full:
                await self._send(failed(503, f"{CONNECTIONS_MAX} connections are open already"), head_only=False)
                return
            while await self._exchange():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            with suppress(h11.LocalProtocolError, TimeoutError, OSError):
                await self._send(failed(error.error_status_hint, str(error)), head_only=False)
        except (TimeoutError, OSError):
            self._writer.transport.abort()  # It left, or is too slow to be waited for, also with what is not sent yet.
        except h11.LocalProtocolError:
            log.exception("an answer over HTTP broke the protocol")
        finally:
            self._writer.close()

    async def _exchange(self) -> bool:
        """Answer one request; whether there may be another."""
        async with asyncio.timeout(HEAD_S):
            request = await self._next()
        if not isinstance(request, h11.Request):
            return False
        if request.method not in (b"GET", b"HEAD"):
            answer = failed(405, "only GET and HEAD are understood")
        else:
            answer = await self._answer(request.target.decode("ascii", "replace"))
        # A body has no meaning here and is not read: the connection ends with the answer to its request.
        bodiless = self._http.their_state is h11.SEND_BODY and isinstance(self._http.next_event(), h11.EndOfMessage)
        await self._send(answer, head_only=request.method == b"HEAD")
        return bodiless and self._http.our_state is h11.DONE

    async def _answer(self, text: str) -> Answer:
        try:
            target = urlsplit(text)
            query = dict(parse_qsl(target.query, max_num_fields=FIELDS_MAX))
        except ValueError as error:  # Brackets that hold no address, or too many fields.
            return failed(400, f"the request's target is not understood: {error}")
        return await self._answering(unquote(target.path), query)

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _send(self, answer: Answer, *, head_only: bool) -> None:
        headers = [("Content-Type", answer.content_type)]
        if isinstance(answer.body, bytes):
            headers.append(("Content-Length", str(len(answer.body))))
        else:
            headers.append(("Cache-Control", "no-store"))
        await self._write(h11.Response(status_code=answer.status, headers=headers))
        if isinstance(answer.body, bytes):
            if not head_only:
                await self._write(h11.Data(data=answer.body))
        elif not head_only:
            await self._stream(answer.body)
        await self._write(h11.EndOfMessage())

    async def _stream(self, pieces: AsyncIterator[bytes]) -> None:
        """Send pieces until there are no more, or until the client leaves: then there is nothing for it to say."""
        left = asyncio.ensure_future(self._reader.read(READ_BYTES))
        try:
            async with aclosing(pieces) as source:  # type: ignore[type-var]
                while True:
                    piece = asyncio.ensure_future(anext(source, None))
                    done, _ = await asyncio.wait((piece, left), return_when=asyncio.FIRST_COMPLETED)
                    if piece not in done:
                        piece.cancel()
                        await asyncio.wait((piece,))
                        raise ConnectionResetError("the client left")
                    if (data := piece.result()) is None:
                        return
                    await self._write(h11.Data(data=data))
        finally:
            left.cancel()
            await asyncio.wait((left,))

    async def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(WRITE_S):
                await self._writer.drain()
