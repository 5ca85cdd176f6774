"""Relays readiness from a container to systemd on the host: only `READY=1` and `WATCHDOG=1` pass (sd_notify(3))."""

import os

from conmon.attach import listen
from conmon.low import AF_UNIX, SOCK_DGRAM, socket

MESSAGE_BYTES_MAX = 32768
PASSED = (b"READY=1", b"WATCHDOG=1")


class NotifyRelay:
    """The socket `notify/notify.sock` of a bundle, and the host's socket behind it.

    Args:
        fd: What `listen_notify` returned.
        host_socket: The path of systemd's socket; `@` begins an abstract name.
    """

    def __init__(self, fd: int, host_socket: str) -> None:
        self._host = "\0" + host_socket[1:] if host_socket.startswith("@") else host_socket
        self.fd = fd
        self._outside = socket(AF_UNIX, SOCK_DGRAM, 0)
        self._outside.setblocking(False)

    def leave(self) -> None:
        """Close what another relay with the same descriptor makes for itself."""
        self._outside.close()

    def close(self) -> None:
        """Close the descriptors and leave the name."""
        os.close(self.fd)
        self.leave()

    def relay(self, fd: int) -> None:
        """Pass on one message, or drop it."""
        try:
            message = os.read(fd, MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        for word in PASSED:
            if word in message:
                try:
                    self._outside.sendto(word, self._host)
                except OSError:
                    return  # the host's socket is gone or full; readiness is told again by whoever cares
                return


def listen_notify(bundle: str) -> int:
    """The container's end.

    Raises:
        OSError: The bundle has no place for the socket.
    """
    return listen(f"{bundle}/notify", "notify.sock", SOCK_DGRAM, 0o777).detach()
