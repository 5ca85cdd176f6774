"""The sockets that a server listens on, bound before anything else is done: who cannot have them does not start."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from crio_core.errors import Code, OperationError

SOCKET_MODE = 0o660
BACKLOG = 128


def bound_socket(path: str) -> socket.socket:
    """A listening unix socket of mode 0660 at `path`; a stale one is replaced, a live one is not.

    Raises:
        OperationError: Another server answers there, or something that is no socket is in the way.
    """
    Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OperationError(Code.FAILED_PRECONDITION, "SOCKET_TAKEN", f"listen: {path!r} exists and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                Path(path).unlink(missing_ok=True)
            else:
                raise OperationError(
                    Code.FAILED_PRECONDITION, "SOCKET_TAKEN", f"listen: another server is serving at {path!r}"
                )
    listening = socket.socket(socket.AF_UNIX)
    # The mode is set before anybody can connect, whatever the umask is.
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listening.bind(path)
    finally:
        os.umask(before)
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


def bound_port(host: str, port: int) -> socket.socket:
    """A listening TCP socket for metrics; an empty `host` is every address of the node.

    Raises:
        OperationError: The address cannot be listened at.
    """
    try:
        if not host:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        where = f"crio.metrics.metrics_host and metrics_port: {host}:{port}"
        raise OperationError(Code.FAILED_PRECONDITION, "METRICS_ADDRESS", f"{where}: {error.strerror}") from error
