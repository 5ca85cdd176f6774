"""A transport whose writes of one turn of the event loop leave together.

An answer of gRPC is written in three parts: headers, message, trailers. Each by itself is a system call, and wakes the
client up to read a part of an answer.
"""

import asyncio
from typing import Any

AT_ONCE_BYTES = 64 * 1024
"""What is not held back until the turn is over, so that the transport can say in time that its reader is slow."""


class GatheringTransport(asyncio.Transport):
    """Stands before another transport, which its owner goes on using for everything but writing.

    Args:
        transport: The one that writes.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[Any] = []
        self._bytes = 0

    def write(self, data: Any) -> None:
        """Write with what else is written in this turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes >= AT_ONCE_BYTES:
            self._flush()

    def write_now(self, data: bytes) -> None:
        """Write what is whole already, after what was held back."""
        if self._parts:
            self._parts.append(data)
            self._flush()
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._bytes = 0
            self._transport.write(data)

    def close(self) -> None:
        """Write what there is, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._parts.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
