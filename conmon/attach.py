"""The attach socket: many clients read a container's output and may write its input.

Each client is a connection of a SOCK_SEQPACKET unix socket named `attach`. A packet to a client is one byte, the stream
(2 stdout, 3 stderr), and output; a packet from a client is input (conmon 2.1). Nothing here waits for a client: what it
does not take is owed to it, and `conmon.clients` says for how long.
"""

import os
import select
import time
from errno import EAGAIN, ECONNABORTED

from conmon.clients import Clients
from conmon.low import AF_UNIX, SOCK_SEQPACKET, Suppress, accept, socket

INPUT_BYTES = 32768
CLIENTS_MAX = 64
BACKLOG = 10
DEAF_NS = 1_000_000_000  # without descriptors a client that waits would poll as ready for ever


def listen(folder: str, name: str, kind: int, mode: int) -> socket:
    """A bound, nonblocking unix socket in a folder whose path may be longer than a socket address.

    Raises:
        OSError: The folder is missing, or the name is taken by what cannot be removed.
    """
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Suppress(FileNotFoundError):  # nothing is left of an earlier monitor: the usual case
            os.unlink(name, dir_fd=folder_fd)
        server = socket(AF_UNIX, kind, 0)
        server.setblocking(False)
        server.bind(f"/proc/self/fd/{folder_fd}/{name}")
        os.chmod(name, mode, dir_fd=folder_fd)
    finally:
        os.close(folder_fd)
    if kind == SOCK_SEQPACKET:
        server.listen(BACKLOG)
    return server


class Client:
    """One connection: whether it is still used in each direction, and input that the container has not taken."""

    __slots__ = ("fd", "input", "parked", "readable", "writable")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.input = b""
        self.readable = True
        self.writable = True
        self.parked = False


class Attach:
    """All clients of one container.

    Args:
        poll: Where descriptors are registered.
        server: The listening socket.
        leave_stdin_open: A client that leaves does not end the container's input.
        patient: Nothing else keeps the output.
    """

    def __init__(self, poll: select.epoll, server: socket, *, leave_stdin_open: bool, patient: bool) -> None:
        self._poll = poll
        self._server = server
        self._leave_stdin_open = leave_stdin_open
        self._owed = Clients(patient=patient)
        self._deaf_until_ns = 0
        self._stdin_fd = -1
        self._stdin_over = False
        self._stdin_polled = False
        self.clients: dict[int, Client] = {}
        poll.register(server.fileno(), select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self._server.fileno()

    @property
    def stdin_fd(self) -> int:
        return self._stdin_fd

    def set_stdin(self, fd: int) -> None:
        """The container's input, nonblocking; clients may have written already."""
        self._stdin_fd = fd
        self.feed_stdin()

    def accept(self) -> bool:
        """Take a new client; above `CLIENTS_MAX` it is turned away. False when nobody waits."""
        try:
            fd = accept(self._server)
        except OSError as error:
            if error.errno not in (EAGAIN, ECONNABORTED):
                self._poll.modify(self._server.fileno(), 0)
                self._deaf_until_ns = time.monotonic_ns() + DEAF_NS
            return False
        if len(self.clients) >= CLIENTS_MAX:
            os.close(fd)
            return True
        os.set_blocking(fd, False)
        self.clients[fd] = Client(fd)
        self._owed.join(fd, time.monotonic_ns())
        self._poll.register(fd, select.EPOLLIN)
        return True

    def accept_waiting(self) -> None:
        """Take every client that has connected already: what is written now is meant for it, too."""
        for _ in range(BACKLOG + 1):
            if not self.accept():
                return

    def broadcast(self, stream: int, data: bytes) -> None:
        """Give output to every client; this never waits."""
        waiting = [fd for fd, debt in self._owed.debts.items() if debt.packets]
        self._owed.give(stream, data, time.monotonic_ns())
        for fd in tuple(self._owed.debts):
            if fd not in waiting:
                self._send(self.clients[fd])

    def _send(self, client: Client) -> None:
        sent = 0
        try:
            for packet in self._owed.debts[client.fd].packets:
                os.write(client.fd, packet)
                sent += 1
        except OSError as error:
            if error.errno != EAGAIN:
                self._stop_writing(client)
                return
        self._owed.took(client.fd, sent, time.monotonic_ns())
        self._rearm(client)

    def _stop_writing(self, client: Client) -> None:
        """The client takes no more output; what it wrote before it left is still to be read."""
        client.writable = False
        self._owed.leave(client.fd, time.monotonic_ns())
        if client.readable:
            self._rearm(client)
        else:
            self._drop(client)

    def _rearm(self, client: Client) -> None:
        debt = self._owed.debts.get(client.fd)
        wanted = select.EPOLLOUT if debt is not None and debt.packets else 0
        if client.readable and not client.input:
            wanted |= select.EPOLLIN
        if not client.parked:
            self._poll.modify(client.fd, wanted)
        elif not client.input:
            client.parked = False
            self._poll.register(client.fd, wanted)

    def handle(self, fd: int, events: int) -> None:
        """React to a client's descriptor."""
        client = self.clients.get(fd)
        if client is None:
            return
        if events & select.EPOLLIN and client.readable and not client.input:
            self._read(client)
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            if client.input:
                # It wrote and left, and the container has not taken all of it: until then a hang-up polls as ready.
                client.parked = True
                client.writable = False
                self._owed.leave_input(fd, time.monotonic_ns())
                self._poll.unregister(fd)
            else:
                self._drop(client)
            return
        if events & select.EPOLLOUT and fd in self._owed.debts:
            self._send(client)

    def _read(self, client: Client) -> None:
        try:
            data = os.read(client.fd, INPUT_BYTES)
        except OSError as error:
            if error.errno != EAGAIN:
                self._drop(client)
            return
        if not data:
            client.readable = False
            self._end_input()
            if client.writable:
                self._rearm(client)
            else:
                self._drop(client)
            return
        if self._stdin_over:
            return
        client.input = data
        self.feed_stdin()
        self._rearm(client)

    def feed_stdin(self) -> None:
        """Pass on waiting input, as much as the container takes now."""
        waiting = False
        for client in tuple(self.clients.values()):
            if not client.input:
                continue
            if self._stdin_fd >= 0:
                try:
                    client.input = client.input[os.write(self._stdin_fd, client.input) :]
                except OSError as error:
                    if error.errno != EAGAIN:
                        self.close_stdin()
                        return
            waiting = waiting or bool(client.input)
            if not client.input:
                self._rearm(client)
        self._poll_stdin(waiting and self._stdin_fd >= 0)

    def _poll_stdin(self, wanted: bool) -> None:
        if wanted != self._stdin_polled:
            if wanted:
                self._poll.register(self._stdin_fd, select.EPOLLOUT)
            else:
                self._poll.unregister(self._stdin_fd)
            self._stdin_polled = wanted

    def _end_input(self) -> None:
        if not self._leave_stdin_open:
            self.close_stdin()

    def close_stdin(self) -> None:
        """End the container's input; what clients still send is read and forgotten."""
        self._stdin_over = True
        if self._stdin_fd >= 0:
            self._poll_stdin(False)
            os.close(self._stdin_fd)
            self._stdin_fd = -1
        for client in self.clients.values():
            if client.input:
                client.input = b""
                self._rearm(client)

    def _drop(self, client: Client) -> None:
        if not client.parked:
            self._poll.unregister(client.fd)
        os.close(client.fd)
        del self.clients[client.fd]
        self._owed.leave(client.fd, time.monotonic_ns())
        if client.readable:
            client.readable = False
            self._end_input()

    @property
    def holding(self) -> bool:
        """The container's output is to wait for a client."""
        return self._owed.holding

    @property
    def owing(self) -> bool:
        """Some client has not got everything yet."""
        return self._owed.owing

    def end(self) -> None:
        """The container has ended, and all of its output is given."""
        self._owed.end(time.monotonic_ns())

    def deadline_ns(self) -> int:
        """When `expire` has to be called next (monotonic), or 0."""
        limit_ns = self._owed.deadline_ns()
        return (
            min(limit_ns, self._deaf_until_ns) if limit_ns and self._deaf_until_ns else limit_ns or self._deaf_until_ns
        )

    def expire(self, now_ns: int) -> None:
        """Let go of the clients that had their time, and listen again."""
        for fd in self._owed.overdue(now_ns):
            self._drop(self.clients[fd])
        if 0 < self._deaf_until_ns <= now_ns:
            self._deaf_until_ns = 0
            self._poll.modify(self._server.fileno(), select.EPOLLIN)

    @property
    def resting(self) -> bool:
        """Nobody is attached or waits to be."""
        return not self.clients and not self._deaf_until_ns

    def leave(self) -> None:
        """Keep the listening socket open for another process that has the same descriptor."""
        self._server.detach()

    def close(self) -> None:
        """Hang up on every client and stop listening."""
        for client in tuple(self.clients.values()):
            client.readable = False
            self._drop(client)
        self.close_stdin()
        self._server.close()
