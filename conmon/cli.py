"""`crio-conmon`: the command line of conmon 2.1 for one container or exec, and the zygote for many."""

import os
import sys

from conmon import linux
from conmon.create import Creation, Inherited, Means
from conmon.diagnostics import Diagnostics
from conmon.ending import run_exit_command
from conmon.log_set import open_logs
from conmon.loop import Loop
from conmon.low import Suppress
from conmon.options import Options, UsageError, check, help_text, parse
from conmon.runtime import read_oom_score, stdio_null, write_oom_score
from conmon.sync import write_file

VERSION = "2.1.6"  # the version of the command line; callers compare it
START_BYTES_MAX = 8192


def _pipe_from(environment: dict[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None:
        return -1
    if not text.isdigit():
        raise UsageError(f"unable to parse {name}")
    fd = int(text)
    os.set_inheritable(fd, False)
    return fd


def _held_fds(known: tuple[int, ...]) -> tuple[int, ...]:
    """Descriptors above stdio that the caller left open on purpose."""
    names = os.listdir("/proc/self/fd")
    fds = sorted(int(name) for name in names)
    held = []
    for fd in fds:
        try:
            if fd > 2 and fd not in known and os.get_inheritable(fd):
                held.append(fd)
        except OSError:
            continue  # the descriptor of the listing itself
    return tuple(held)


def prepare(words: list[str], cwd: str) -> Options:
    """Parse and check a command line for one monitor.

    Raises:
        UsageError: It is wrong.
    """
    options = parse(words)
    check(options, cwd)
    if not os.access(options.runtime, os.X_OK):
        raise UsageError(f"Runtime path {options.runtime} is not valid")
    return options


def main() -> int:
    """Run what the command line says; the code to exit with."""
    words = sys.argv[1:]
    if words[:1] == ["--zygote"]:
        from conmon import zygote

        return zygote.main(words[1:])
    try:
        first = parse(words)
        if first.version or first.help:
            text = help_text() if first.help else f"conmon version {VERSION}\ncommit: crio-conmon\n"
            os.write(1, text.encode())
            return 0
        options = prepare(words, os.getcwd())
        return _start(options)
    except (UsageError, OSError) as error:
        Diagnostics("", level="warn", syslog=False).error(str(error))
        return 1


def _start(options: Options) -> int:
    environment = dict(os.environ)
    start_fd = _pipe_from(environment, "_OCI_STARTPIPE")
    sync_fd = _pipe_from(environment, "_OCI_SYNCPIPE")
    attach_fd = _pipe_from(environment, "_OCI_ATTACHPIPE") if options.exec_attach else -1
    if options.exec_attach and attach_fd < 0:
        raise UsageError("--exec-attach specified but _OCI_ATTACHPIPE was not")
    held_fds = _held_fds((start_fd, sync_fd, attach_fd))
    logs, passthrough = open_logs(options)
    if start_fd >= 0:
        # The caller moves this process to its cgroup before anything is started from it.
        os.read(start_fd, START_BYTES_MAX)
        if not options.exec_attach:
            os.close(start_fd)
            start_fd = -1
    if not options.sync:
        child = os.fork()
        if child:
            if options.conmon_pidfile:
                write_file(options.conmon_pidfile, b"%d" % child)
            os._exit(0)
    inherited = Inherited(sync_fd=sync_fd, start_fd=start_fd, attach_fd=attach_fd, held_fds=held_fds)
    oom_score = read_oom_score()
    write_oom_score(b"-1000")
    creation = Creation(options, inherited, Means(), environment, logs, passthrough=passthrough, oom_score=oom_score)
    if not passthrough:
        null = stdio_null()
        for target in range(3):
            os.dup2(null, target)
        os.close(null)
    with Suppress(PermissionError):  # already the leader of a session
        os.setsid()
    linux.set_subreaper(True)
    with Complaining(options):
        creation.begin()
        given = creation.run()
        if given is not None:
            return Loop(given).run() & 0xFF
        run_exit_command(options, environment)
        return creation.code


class Complaining:
    """Says why a monitor ends that should not: nobody reads its traceback."""

    __slots__ = ("_options",)

    def __init__(self, options: Options) -> None:
        self._options = options

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: "BaseException | None", trace: object) -> None:
        if error is not None:
            options = self._options
            say = Diagnostics(options.cid, level=options.log_level, syslog=options.syslog)
            say.error(f"{type(error).__name__}: {error}")
