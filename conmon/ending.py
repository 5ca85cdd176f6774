"""What is done when a container has ended: files say how, and the exit command is run."""

from __future__ import annotations

import os
import time

from conmon import linux
from conmon.low import Suppress
from conmon.signals import forget_signals
from conmon.sync import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from conmon.diagnostics import Diagnostics
    from conmon.monitor import RecordExit
    from conmon.options import Options


def write_exit(options: Options, exit: RecordExit, pid: int, dropped_bytes: int, say: Diagnostics) -> None:
    """Write the files that say how a container ended; the one that servers watch for comes last.

    Args:
        options: Where they go.
        exit: What they say.
        pid: Of the process that ended.
        dropped_bytes: How much of its output is in no log.
        say: Where to say what cannot be written.
    """
    plain = b"%d" % exit.code
    if exit.oom_killed:
        say.write_file(f"{options.bundle or '.'}/oom", b"")
    if options.persist_dir:
        if exit.oom_killed:
            say.write_file(f"{options.persist_dir}/oom", b"")
        record = exit_record(
            code=exit.code,
            reason=exit.reason,
            finished_at_ns=time.time_ns(),
            oom_killed=exit.oom_killed,
            pid=pid,
            dropped_bytes=dropped_bytes,
        )
        say.write_file(f"{options.persist_dir}/exit.json", record)
        say.write_file(f"{options.persist_dir}/exit", plain)
    if options.exit_dir:
        say.write_file(f"{options.exit_dir}/{options.cid}", plain)


def exit_record(
    *, code: int, reason: str, finished_at_ns: int, oom_killed: bool, pid: int, dropped_bytes: int
) -> bytes:
    """The record beside the exit file: what a plain number cannot say. Times are nanoseconds since the epoch."""
    return (
        f'{{"version": 1, "exit_code": {code}, "reason": {quote(reason)}, "finished_at_ns": {finished_at_ns}, '
        f'"oom_killed": {"true" if oom_killed else "false"}, "pid": {pid}, "log_dropped_bytes": {dropped_bytes}}}\n'
    ).encode()


def run_exit_command(options: Options, environment: dict[str, str]) -> None:
    """Run the exit command, if there is one, and wait for it and for what the runtime may have left to reap.

    It also runs when there never was a container: an engine has begun something and cleans up with it. Its own code
    is nobody's.
    """
    if not options.exit_command:
        return
    forget_signals()
    linux.set_subreaper(False)
    if os.fork() == 0:
        try:
            time.sleep(options.exit_delay)
            os.execve(options.exit_command, [options.exit_command, *options.exit_command_arg], environment)
        finally:
            os._exit(1)
    with Suppress(ChildProcessError):
        while True:
            os.wait()
