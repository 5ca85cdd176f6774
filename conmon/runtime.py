"""Calling the OCI runtime: its arguments, its descriptors, and the terminal that it hands over.

The command line is that of runc and of every runtime made after it: `create --bundle B --pid-file P ... ID`, or
`exec --pid-file P --process SPEC --detach ID`, with `--console-socket` for a terminal (runc, `docs/terminals.md`).
"""

import os
import termios
from fcntl import ioctl
from sys import byteorder

from conmon import linux
from conmon.low import (
    AF_UNIX,
    CMSG_SPACE,
    SCM_RIGHTS,
    SIGKILL,
    SIGPIPE,
    SIGXFSZ,
    SOCK_STREAM,
    SOL_SOCKET,
    Suppress,
    accept,
    default_signal,
    set_wakeup_fd,
    socket,
)
from conmon.options import Options

RUNTIME_MISSING_CODE = 127
CONSOLE_NAME_BYTES_MAX = 4096
START_BYTES_MAX = 8192
TIOCGPTPEER = 0x5441  # ioctl_tty(2): the other end of a pseudoterminal, without its path
OOM_SCORE_FILE = "/proc/self/oom_score_adj"


def arguments(options: Options, console_path: str) -> list[str]:
    """The runtime's command line."""
    words = [options.runtime]
    if options.systemd_cgroup and not options.exec:
        words.append("--systemd-cgroup")
    words += options.runtime_arg
    if options.exec:
        words += ("exec", "--pid-file", options.container_pidfile, "--process", options.exec_process_spec, "--detach")
    else:
        words += ("restore" if options.restore else "create", "--bundle", options.bundle)
        words += ("--pid-file", options.container_pidfile)
        if options.no_pivot:
            words.append("--no-pivot")
        if options.no_new_keyring:
            words.append("--no-new-keyring")
        if options.restore:
            words += ("--detach", "--image-path", options.restore, "--work-path", options.bundle)
    words += options.runtime_opt
    if console_path:
        words += ("--console-socket", console_path)
    words.append(options.cid)
    return words


def stdio_null() -> int:
    """A descriptor of /dev/null."""
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def read_oom_score() -> bytes:
    """The OOM score adjustment of this process; empty when it cannot be read."""
    try:
        with open(OOM_SCORE_FILE, "rb", buffering=0) as file:
            return file.read(16).strip()
    except OSError:
        return b""


def write_oom_score(score: bytes) -> None:
    """Set the OOM score adjustment, where the kernel allows it: a host without CAP_SYS_RESOURCE keeps its own."""
    try:
        with open(OOM_SCORE_FILE, "wb", buffering=0) as file:
            file.write(score)
    except OSError:
        return


class Child:
    """What the runtime's process is given.

    Args:
        argv: Its command line.
        environment: Its environment.
        stdio: Descriptors for 0, 1 and 2; -1 leaves the monitor's own in place.
        oom_score: The OOM score adjustment to give back.
        start_fd: A pipe to wait on before the runtime runs, or -1.
        replace_listen_pid: Set LISTEN_PID to the runtime's pid whatever it names (sd_listen_fds(3)).
    """

    def __init__(
        self,
        argv: list[str],
        environment: dict[str, str],
        stdio: tuple[int, int, int],
        *,
        oom_score: bytes,
        start_fd: int,
        replace_listen_pid: bool,
    ) -> None:
        self.argv = argv
        self.environment = environment
        self.stdio = stdio
        self.oom_score = oom_score
        self.start_fd = start_fd
        self.replace_listen_pid = replace_listen_pid

    def spawn(self) -> int:
        """Fork and run it; the pid. The runtime dies with the monitor, so that nothing unwatched is made."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            self._become(parent)
        finally:
            os._exit(RUNTIME_MISSING_CODE)

    def start(self) -> int:
        """Run it without a copy of this process, which takes longer than all else (posix_spawn(3)); the pid.

        The kernel does not let it die with this process: the creation and its watcher see to that. Where only a
        process of ours can do what is asked, or say what is wrong, this is `spawn`. It has our OOM score.
        """
        if self.start_fd >= 0 or "LISTEN_PID" in self.environment:
            return self.spawn()
        stdio = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(self.stdio) if fd >= 0]
        defaults = (SIGPIPE, SIGXFSZ)
        try:
            return os.posix_spawn(self.argv[0], self.argv, self.environment, file_actions=stdio, setsigdef=defaults)
        except OSError:
            return self.spawn()

    def _become(self, parent: int) -> None:
        set_wakeup_fd(-1)
        linux.prctl(linux.PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != parent:
            os._exit(RUNTIME_MISSING_CODE)
        for target, fd in enumerate(self.stdio):
            if fd >= 0:
                os.dup2(fd, target)
        listen_pid = self.environment.get("LISTEN_PID", "")
        if listen_pid and (self.replace_listen_pid or listen_pid == str(parent)):
            self.environment["LISTEN_PID"] = str(os.getpid())
        if self.start_fd >= 0:
            os.read(self.start_fd, START_BYTES_MAX)
            os.close(self.start_fd)
        if self.oom_score:
            write_oom_score(self.oom_score)
        for number in (SIGPIPE, SIGXFSZ):
            default_signal(number)
        try:
            os.execve(self.argv[0], self.argv, self.environment)
        except OSError as error:
            os.write(2, f"{self.argv[0]}: {error.strerror}\n".encode())


class ConsoleSocket:
    """The socket on which the runtime hands over the terminal's other end."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/conmon-term.{os.getpid()}.{os.urandom(6).hex()}"
        self._server = socket(AF_UNIX, SOCK_STREAM, 0)
        self._server.bind(self.path)
        os.chmod(self.path, 0o700)
        self._server.listen(1)

    @property
    def fd(self) -> int:
        return self._server.fileno()

    def set_nonblocking(self) -> None:
        """Do not wait for a runtime that never came."""
        self._server.setblocking(False)

    def accept(self) -> int:
        """The terminal's master; nothing more is accepted afterwards.

        Raises:
            OSError: The runtime hung up without sending a descriptor.
        """
        connection = socket(AF_UNIX, SOCK_STREAM, 0, accept(self._server))
        self.close()
        try:
            _, control, _, _ = connection.recvmsg(CONSOLE_NAME_BYTES_MAX, CMSG_SPACE(4))
        finally:
            connection.close()
        for level, kind, data in control:
            if level == SOL_SOCKET and kind == SCM_RIGHTS and len(data) >= 4:
                master = int.from_bytes(data[:4], byteorder)
                os.set_inheritable(master, False)
                return master
        raise OSError("the runtime sent no terminal")

    def close(self) -> None:
        """Stop listening and take the name away."""
        if self._server.fileno() >= 0:
            self._server.close()
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                return


def prepare_terminal(master: int) -> int:
    """Set the output mode that Kubernetes expects, and keep the other end open.

    While a descriptor of the other end exists the master never reports a hang-up, so a container that closes its
    terminal for a while does not make the monitor poll.

    Returns:
        The descriptor to keep, or -1 when the kernel gives none.
    """
    with Suppress(termios.error):  # the terminal of a VM runtime may refuse; its own mode stays
        mode = termios.tcgetattr(master)
        mode[1] |= termios.ONLCR
        termios.tcsetattr(master, termios.TCSANOW, mode)
    try:
        peer = ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1
    return int(peer)


def resize(master: int, rows: int, columns: int) -> None:
    """Set the window size of a terminal; one that has gone is left alone."""
    size = b"".join(number.to_bytes(2, byteorder) for number in (rows, columns, 0, 0))
    try:
        ioctl(master, termios.TIOCSWINSZ, size)
    except OSError:
        return
