"""A connected socket as a byte stream, on any event loop: what was sent, the kernel has; nothing is queued here."""

import fcntl
import select
import socket
import sys
import termios
from collections.abc import Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream


class SocketStream(ByteStream):
    """One connection; its owner closes it.

    Args:
        sock: A connected stream socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._hang_up: select.epoll | None = None

    @property
    def extra_attributes(self) -> Mapping[Any, Any]:
        return {}

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes.

        Raises:
            EndOfStream: The peer has ended its side.
            BrokenResourceError: The connection is lost.
        """
        while True:
            try:
                data = self._sock.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._sock)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        """Send all of it.

        Raises:
            BrokenResourceError: The connection is lost.
        """
        view = memoryview(item)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._sock)
            except OSError as error:
                raise anyio.BrokenResourceError from error
        # Whoever sends faster than a peer that never makes it wait must not keep the others from their turns.
        await anyio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """End our side; the peer may go on sending."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    def unsent_bytes(self) -> int:
        """What the peer's kernel has not taken yet."""
        found = bytearray(4)
        fcntl.ioctl(self._sock, termios.TIOCOUTQ, found)
        return int.from_bytes(found, sys.byteorder)

    async def hung_up(self) -> None:
        """Wait until the peer has ended its side or is lost, also while nobody reads what it sent before."""
        if self._hang_up is None:
            self._hang_up = select.epoll()
            self._hang_up.register(self._sock, select.EPOLLRDHUP)
        await anyio.wait_readable(self._hang_up.fileno())

    async def aclose(self) -> None:
        """Close the connection. What has not been read yet makes that a reset."""
        if self._hang_up is not None:
            self._hang_up.close()
            self._hang_up = None
        self._sock.close()
