"""The `journald` driver: a datagram per line in systemd's native protocol, without systemd's library.

A datagram holds fields, each `NAME=value` and a newline; a value with a newline in it would be sent with its length
(systemd, `docs/JOURNAL_NATIVE_PROTOCOL.md`), which a single line never needs. A journal that does not take a line at
once does not stop the container: the line is dropped and its bytes are counted.
"""

from conmon.logs import LINE_BYTES_MAX, STDOUT
from conmon.low import AF_UNIX, SOCK_DGRAM, socket

JOURNAL_SOCKET = "/run/systemd/journal/socket"
SHORT_ID_LETTERS = 12


class JournalLog:
    """Sends both streams of a container to the journal.

    Args:
        cuuid: The full id; its first letters are the short one.
        name: The container's name, or empty.
        tag: What to call the messages' source instead of the name, or empty.
        path: The journal's socket.
    """

    def __init__(self, *, cuuid: str, name: str, tag: str, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket = socket(AF_UNIX, SOCK_DGRAM, 0)
        self._socket.setblocking(False)
        self._parts: dict[int, bytes] = {}
        self.deadline_ns = 0
        self.dropped_bytes = 0
        fields = [("CONTAINER_ID_FULL", cuuid), ("CONTAINER_ID", cuuid[:SHORT_ID_LETTERS])]
        if tag:
            fields.append(("CONTAINER_TAG", tag))
        if name:
            fields.append(("CONTAINER_NAME", name))
        fields.append(("SYSLOG_IDENTIFIER", tag or name or cuuid[:SHORT_ID_LETTERS]))
        self._fields = "".join(f"{key}={value.replace(chr(10), ' ')}\n" for key, value in fields).encode()

    def write(self, stream: int, data: bytes) -> None:
        *lines, rest = (self._parts.get(stream, b"") + data).split(b"\n")
        for line in lines:
            for part in self._cut(line)[:-1]:
                self._send(stream, part, partial=True)
            self._send(stream, self._cut(line)[-1], partial=False)
        *full, rest = self._cut(rest)
        for part in full:
            self._send(stream, part, partial=True)
        self._parts[stream] = rest

    def _cut(self, line: bytes) -> list[bytes]:
        return [line[at : at + LINE_BYTES_MAX] for at in range(0, len(line), LINE_BYTES_MAX)] or [b""]

    def _send(self, stream: int, message: bytes, *, partial: bool) -> None:
        priority = b"PRIORITY=6\n" if stream == STDOUT else b"PRIORITY=3\n"
        mark = b"CONTAINER_PARTIAL_MESSAGE=true\n" if partial else b""
        try:
            self._socket.sendto(b"MESSAGE=" + message + b"\n" + priority + mark + self._fields, self._path)
        except OSError:
            self.dropped_bytes += len(message)

    def expire(self) -> None:
        """Held parts wait for their newline, as the journal shows whole messages."""

    @property
    def resting(self) -> bool:
        """No part of a line is held."""
        return not any(self._parts.values())

    def reopen(self) -> None:
        """Nothing to open: the journal keeps its own files."""

    def finish(self) -> None:
        """Send what is left of the last lines."""
        for stream, rest in self._parts.items():
            if rest:
                self._send(stream, rest, partial=True)
        self._parts.clear()

    def close(self, *, sync: bool = False) -> None:
        """Close the socket as it is; `sync` is the journal's own business."""
        self._socket.close()
