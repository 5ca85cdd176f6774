"""One small process that forks monitors: everything is imported, tried out and frozen before the first fork.

    crio-conmon --zygote SOCKET

The zygote leaves its caller's session, holds a lock on `SOCKET.lock` and listens on SOCKET (mode 0600, clients of its
own user only). It outlives the server; a second zygote for the same socket ends at once with code 0, so a server that
finds nobody listening just starts one. Monitors are its children and their own sessions: they do not notice when it
dies.

Protocol: a connection of SOCK_SEQPACKET carries one request and one reply. A request is one packet of fields with NUL
between them, and descriptors as SCM_RIGHTS:

    ping                                        -> pong <pid>
    quit                                        -> bye              (monitors live on)
    spawn  <cwd>  <pipes>  <n>  <n environment entries>  <command line of crio-conmon, without its name>
                                                -> spawned <pid>    with a pidfd of the monitor
    anything else                               -> refused <reason>

`pipes` names the descriptors in order, separated by commas: `sync`, `start` and `attach` are the pipes that conmon
takes from `_OCI_SYNCPIPE`, `_OCI_STARTPIPE` and `_OCI_ATTACHPIPE`; `hold` is kept open until the container has ended.
A command line that is wrong, or a log or folder that cannot be opened, is refused with the reason; from then on
results are told on the sync pipe, as conmon does. The pidfd becomes readable when the monitor is gone, however it
ended.
"""

import fcntl
import gc
import marshal
import os
import select
import sys

from conmon import linux, watcher
from conmon.cli import START_BYTES_MAX, Complaining, prepare
from conmon.create import Creation, Inherited, Means
from conmon.ending import run_exit_command
from conmon.handover import Handover
from conmon.log_set import open_logs
from conmon.logs import STDOUT, FileLog
from conmon.loop import Loop
from conmon.low import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_PEEK,
    MSG_TRUNC,
    SCM_RIGHTS,
    SIGCHLD,
    SIGKILL,
    SIGTERM,
    SO_PEERCRED,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    Suppress,
    accept,
    ignore_signal,
    pause,
    socket,
    socketpair,
)
from conmon.options import Options, UsageError
from conmon.request import PIPES, Refused, Request, descriptors, parse_request
from conmon.runtime import read_oom_score, stdio_null, write_oom_score
from conmon.signals import wake_pipe
from conmon.sync import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

REQUEST_BYTES_MAX = 128 * 1024
DESCRIPTORS_MAX = 16
CLIENT_WAIT_S = 2.0
TURN_MS = 20  # a creation comes to its runtime in less; one that hangs has the next monitor made beside it
BACKLOG = 128
REHEARSALS = 24  # the interpreter settles the form of a function in its first dozens of calls


class Parent:
    """What a request needs of the watcher, opened before there is one: its pid, a pidfd, and its memory, or -1."""

    __slots__ = ("memory_fd", "pid", "pidfd")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.memory_fd = linux.open_memory(pid)

    def release(self) -> None:
        """Close the descriptors."""
        for fd in (self.pidfd, self.memory_fd):
            if fd >= 0:
                os.close(fd)


class Zygote:
    """The listening process.

    Args:
        path: Where the socket is.

    Raises:
        BlockingIOError: Another zygote holds the lock.
        OSError: The folder does not take a socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._pid = os.getpid()
        self._area = linux.argument_area()
        self._touched: tuple[linux.Areas, linux.Areas] = ((), ())
        self._oom_score = read_oom_score()
        write_oom_score(b"-1000")
        self._lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with Suppress(FileNotFoundError):
            os.unlink(path)
        self._server = socket(AF_UNIX, SOCK_SEQPACKET, 0)
        mask = os.umask(0o177)
        try:
            self._server.bind(path)
        finally:
            os.umask(mask)
        self._server.listen(BACKLOG)
        self._byte = bytearray(1)
        self._life = os.pipe()  # hangs up when this process ends

    def serve(self) -> "NoReturn":
        """Keep one monitor ready for the next request, and do nothing else.

        What this process wrote to between two forks would be shared by nobody, and what it waited for would keep every
        other container waiting. The monitor that is ready accepts a connection by itself. It has the only writer of a
        pipe: it writes once it has a client, and closes it when its runtime starts, or dies. Then, or `TURN_MS` after
        it got the client, it is time for the next.
        """
        linux.set_title(self._area, f"crio-conmon zygote {self._path}".encode())
        self._touched = self._learn()
        fork, watch, create = watcher.fork, watcher.watch, self._create
        used = select.poll()
        while True:
            reader, writer = os.pipe()
            if fork() == 0:
                code = 1
                try:
                    code = watch(create, (reader, writer))
                finally:
                    os._exit(code)
            os.close(writer)
            os.read(reader, 1)
            used.register(reader, 0)
            used.poll(TURN_MS)
            used.unregister(reader)
            os.close(reader)

    def rehearse(self, wake: tuple[int, int] | None = None) -> None:
        """Do the whole work of a monitor for a child that ends at once, so that the forked ones find every page as it
        will be.

        Args:
            wake: The wake-up pipe of the parent of this process, which then stands for the watcher.
        """
        folder = f"/tmp/crio-conmon-{os.urandom(8).hex()}"
        os.mkdir(folder, 0o700)
        try:
            child = os.fork()
            if child == 0:
                pause()
                os._exit(0)
            write_file(f"{folder}/pid", b"%d" % child)
            words = ["-c", "rehearsal", "-u", "rehearsal", "-n", "rehearsal", "-r", "/bin/true", "-b", folder]
            words += ["-p", f"{folder}/pid", "--full-attach", "-l", f"{folder}/log", "--no-sync-log"]
            words += ["--exit-dir", folder, "--persist-dir", folder]
            packet = "\0".join(["spawn", folder, "sync", "1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *words])
            reader, writer = os.pipe()
            near, far = socketpair(AF_UNIX, SOCK_SEQPACKET)
            rights = writer.to_bytes(4, sys.byteorder)
            far.sendmsg([packet.encode()], [(SOL_SOCKET, SCM_RIGHTS, rights)])
            os.close(writer)
            request = self._receive(near)
            assert request is not None, "the rehearsal is a request"
            creation, _ = self._open(near, request, wake, os.dup(reader), Parent(os.getpid()), Means())
            given = creation.run()
            assert given is not None, "the rehearsal failed"
            far.close()
            Loop(Handover.unpack(given.pack())).rehearse()
            os.close(reader)
            log = FileLog(f"{folder}/log")
            log.write(STDOUT, b"a line\n")
            log.finish()
            log.close()
        finally:
            os.chdir("/")
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)

    def _learn(self) -> tuple[linux.Areas, linux.Areas]:
        """What of its memory a forked monitor writes to, and what it reads, as one finds that has just rehearsed."""
        written, read = linux.private_areas()
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                self.rehearse(wake_pipe())
                found = (
                    linux.touched_areas(written, linux.PAGE_OWN),
                    linux.touched_areas(read, linux.PAGE_PRESENT),
                )
                os.write(writer, marshal.dumps(found))
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as answer:
            learnt: tuple[linux.Areas, linux.Areas] = marshal.load(answer)
        return learnt

    def _create(
        self,
        watcher_pid: int,
        turn: tuple[int, int],
        wake: tuple[int, int],
        exits: tuple[int, int],
        state_fd: int,
        poll_fd: int,
    ) -> int:
        """In the watcher's child, which shares its descriptors: answer one request; 0 when there is one to watch."""
        linux.prctl(linux.PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != watcher_pid:
            return 1
        for fd in (self._lock_fd, self._life[1], turn[0]):
            os.close(fd)
        linux.allow_page_merging(False)
        write_oom_score(self._oom_score)
        parent, means = Parent(watcher_pid), Means()
        linux.populate(*self._touched)
        connection_fd = self._accept()
        os.close(self._life[0])
        if connection_fd < 0:
            return 1
        with Suppress(BrokenPipeError):  # the zygote has just died: this client is served all the same
            os.write(turn[1], b"a")
        connection = socket(AF_UNIX, SOCK_SEQPACKET, 0, connection_fd)
        connection.settimeout(CLIENT_WAIT_S)
        try:
            request = self._receive(connection)
            if request is None:
                return 1
            creation, options = self._open(connection, request, wake, turn[1], parent, means)
        except Refused as refusal:
            connection.send(f"refused {refusal}".encode(errors="replace"))
            return 1
        with Complaining(options):
            given = creation.run()
            if given is None:
                run_exit_command(options, request.environment)
                return 1
            given.exits = exits
            watcher.leave(given, state_fd, poll_fd)
        return 0

    def _receive(self, connection: socket) -> Request | None:
        """A request for a monitor; None when it was something else and is answered.

        Raises:
            Refused: It is not for us to carry out.
            OSError: The client left or sent nothing in time.
        """
        credentials = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
        # A buffer for the longest request would be mapped and unmapped each time.
        size = connection.recv_into(self._byte, 1, MSG_PEEK | MSG_TRUNC)
        packet, control, flags, _ = connection.recvmsg(min(size, REQUEST_BYTES_MAX), CMSG_SPACE(4 * DESCRIPTORS_MAX))
        fds = descriptors(control)
        if int.from_bytes(credentials[4:8], sys.byteorder) not in (0, os.getuid()):
            raise Refused("this zygote serves its own user")
        if flags:
            raise Refused(f"the request is longer than {REQUEST_BYTES_MAX} bytes or has too many descriptors")
        if packet == b"ping":
            connection.send(b"pong %d" % self._pid)
        elif packet == b"quit":
            if linux.parent_of(os.getppid()) == self._pid:
                os.kill(self._pid, SIGTERM)
            connection.send(b"bye")
        else:
            return parse_request(packet, fds)
        return None

    def _accept(self) -> int:
        """The next connection, or -1 when the zygote has died: another one serves those to come."""
        poll = select.poll()
        poll.register(self._life[0], 0)
        poll.register(self._server.fileno(), select.POLLIN)
        try:
            ready = dict(poll.poll())
            return -1 if self._life[0] in ready else accept(self._server)
        finally:
            self._server.close()

    def _open(
        self,
        connection: socket,
        request: Request,
        wake: tuple[int, int] | None,
        turn_fd: int,
        parent: Parent,
        means: Means,
    ) -> tuple[Creation, Options]:
        """Open what a request needs, have the runtime begin as soon as the client lets us, and tell the client.

        The next monitor is made while this one waits: for its client, or for the runtime. The titles come first, so
        that whoever gives up a creation that hangs finds the processes to kill.
        """
        try:
            os.chdir(request.cwd)
            options = prepare(request.words, request.cwd)
            title = f"conmon -c {options.cid} -n {options.name}".encode(errors="replace")
            linux.set_title(self._area, title)
            linux.set_title_in(parent.memory_fd, self._area, title)
            creation, start_fd = make_creation(request, options, means, wake)
        except (UsageError, OSError) as error:
            raise Refused(str(error)) from error
        if start_fd < 0:
            creation.close_once_started(turn_fd)
            creation.begin()
        rights = parent.pidfd.to_bytes(4, sys.byteorder)
        with Suppress(OSError):  # the client has left, and finds the container by looking
            connection.sendmsg([b"spawned %d" % parent.pid], [(SOL_SOCKET, SCM_RIGHTS, rights)])
        parent.release()
        connection.close()
        if start_fd >= 0:
            os.close(turn_fd)
            os.read(start_fd, START_BYTES_MAX)
            if not options.exec_attach:
                os.close(start_fd)
            creation.begin()
        return creation, options


def make_creation(
    request: Request, options: Options, means: Means, wake: tuple[int, int] | None
) -> tuple[Creation, int]:
    """What a request asks for, and the pipe that has to be waited on before it begins, or -1.

    Args:
        options: The request's own, from `prepare`.
        wake: The wake-up pipe of the watcher, when that is another process.

    Raises:
        UsageError: There is no such log driver here.
        OSError: A file, folder or socket that the monitor needs cannot be had.
    """
    sync_fd, start_fd, attach_fd = (request.pipes.get(name, -1) for name in PIPES)
    logs, passthrough = open_logs(options)
    if passthrough:
        raise UsageError("the passthrough driver needs a monitor that its caller started")
    inherited = Inherited(
        sync_fd=sync_fd,
        start_fd=start_fd if options.exec_attach else -1,
        attach_fd=attach_fd,
        held_fds=request.held_fds,
    )
    creation = Creation(
        options, inherited, means, request.environment, logs, passthrough=False, oom_score=b"", watcher_wake=wake
    )
    return creation, start_fd


def main(words: list[str]) -> int:
    """Become the zygote for a socket; the code to exit with."""
    if not words:
        os.write(2, b"crio-conmon: --zygote needs the path of a socket\n")
        return 1
    if os.fork():
        return 0
    os.setsid()
    try:
        watcher.check()
        zygote = Zygote(words[0])
        linux.set_task_name(b"conmon")
        linux.allow_page_merging(True)
        for _ in range(REHEARSALS):
            zygote.rehearse()
    except BlockingIOError:
        return 0
    except OSError as error:
        os.write(2, f"crio-conmon: {error}\n".encode(errors="replace"))
        return 1
    # Last of all: who started us reads from our stderr why we do not come up, until it ends.
    null = stdio_null()
    for target in range(3):
        os.dup2(null, target)
    os.close(null)
    ignore_signal(SIGCHLD)
    gc.collect()
    gc.disable()
    gc.freeze()
    zygote.serve()
