"""The way to a stream: asking a CRI server for its address, and upgrading a connection to it."""

import os
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import SplitResult, urlsplit

import anyio
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from crio_core.streaming.client import agreed, upgrade_headers
from crio_core.streaming.protocol import Endpoint, Protocol, ProtocolError, Wire
from crio_server.crioctl.errors import Refused, Unreachable

READ_BYTES = 256 << 10
ANSWER_BYTES_MAX = 64 << 10
NONCE_BYTES = 16
UPGRADE_DEADLINE_S = 30.0

_PORTS = {"http": 80, "https": 443}
_OTHER_WIRE = frozenset({400, 403, 404, 405, 426, 501})  # answers of a server that may speak the other wire
_PASSING = frozenset({100, 102, 103})  # answers before the one that counts
_WIRES = {Endpoint.COMMAND: (Wire.SPDY, Wire.WEBSOCKET), Endpoint.FORWARDING: (Wire.SPDY, Wire.TUNNEL)}


class Stream:
    """A connection that was upgraded, and what the server sent right behind its answer."""

    def __init__(self, connection: ByteStream, protocol: Protocol, early: bytes) -> None:
        self.protocol = protocol
        self._connection = connection
        self._early = early

    async def receive(self) -> bytes:
        """What comes next; `b""` at the end, however it comes."""
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            return await self._connection.receive(READ_BYTES)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return b""

    async def send(self, data: bytes) -> None:
        """Send all of it; to a server that has gone, nothing: `receive` tells that it has."""
        try:
            await self._connection.send(data)
        except anyio.BrokenResourceError:
            return

    async def close(self) -> None:
        """End the connection."""
        await anyio.aclose_forcefully(self._connection)


class _NotThisWire(Exception):
    """The server does not upgrade to what was asked for."""


async def open_stream(ask: Callable[[], Awaitable[str]], endpoint: Endpoint) -> Stream:
    """Open a stream over the first wire that the server takes.

    Args:
        ask: Gets an address from the server; each is good for one attempt.

    Raises:
        Refused: The server upgrades to none, or answers with an error.
        Unreachable: Nobody listens at the address.
    """
    answers: list[str] = []
    for wire in _WIRES[endpoint]:
        url = await ask()
        try:
            with anyio.fail_after(UPGRADE_DEADLINE_S):
                return await _upgrade(url, endpoint, wire)
        except _NotThisWire as error:
            answers.append(str(error))
        except TimeoutError as error:
            raise Refused(f"{url}: no stream within {UPGRADE_DEADLINE_S:g} s") from error
    raise Refused("\n".join(answers))


async def _upgrade(url: str, endpoint: Endpoint, wire: Wire) -> Stream:
    address = urlsplit(url)
    if address.scheme not in _PORTS or not address.hostname:
        raise Refused(f"the server streams at {url!r}: expected an address that begins with http:// or https://")
    nonce = os.urandom(NONCE_BYTES)
    connection = await _connect(address)
    try:
        machine = h11.Connection(h11.CLIENT)
        target = (address.path or "/") + (f"?{address.query}" if address.query else "")
        headers = [(b"host", address.netloc.encode()), *upgrade_headers(wire, endpoint, nonce)]
        request = h11.Request(method=b"POST" if wire is Wire.SPDY else b"GET", target=target, headers=headers)
        await connection.send((machine.send(request) or b"") + (machine.send(h11.EndOfMessage()) or b""))
        answer = await _answer(connection, machine)
        if answer.status_code == 101:
            protocol = agreed(wire, endpoint, nonce, list(answer.headers))
            return Stream(connection, protocol, machine.trailing_data[0])
        text = await _text(connection, machine) or "the server gave no reason"
        problem = f"{url}: {answer.status_code} {answer.reason.decode('latin-1')}: {text}"
        raise _NotThisWire(problem) if answer.status_code in _OTHER_WIRE else Refused(problem)
    except BaseException as error:
        await anyio.aclose_forcefully(connection)
        if isinstance(error, h11.RemoteProtocolError | ProtocolError | anyio.EndOfStream | anyio.BrokenResourceError):
            raise Refused(f"{url}: no stream was opened: {str(error) or 'the connection ended'}") from error
        raise


async def _connect(address: SplitResult) -> ByteStream:
    assert address.hostname is not None
    try:
        connection = await anyio.connect_tcp(address.hostname, address.port or _PORTS[address.scheme])
        if address.scheme == "http":
            return connection
        return await TLSStream.wrap(
            connection, hostname=address.hostname, ssl_context=_unverified(), standard_compatible=False
        )
    except (OSError, ValueError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
        text = f"cannot connect to the server's streams at {address.geturl()}: {str(error) or 'the connection ended'}"
        raise Unreachable(f"{text}; they may be for its own machine alone (stream_address)") from error


def _unverified() -> ssl.SSLContext:
    """TLS with whoever the server named: its certificate is seldom signed, and the address came over its own socket."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _answer(connection: ByteStream, machine: h11.Connection) -> h11.InformationalResponse | h11.Response:
    """The first answer that is final, or that switches."""
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            machine.receive_data(await connection.receive(READ_BYTES))
        elif isinstance(event, h11.Response | h11.InformationalResponse) and event.status_code not in _PASSING:
            return event


async def _text(connection: ByteStream, machine: h11.Connection) -> str:
    """The body of an answer, up to a bound."""
    text = b""
    while len(text) < ANSWER_BYTES_MAX:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            try:
                machine.receive_data(await connection.receive(READ_BYTES))
            except anyio.EndOfStream:
                machine.receive_data(b"")
        elif isinstance(event, h11.Data):
            text += event.data
        else:
            break
    return text[:ANSWER_BYTES_MAX].decode(errors="replace").strip()
