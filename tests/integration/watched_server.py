"""Runs `crio` with two guards of its event loop: `python -m tests.integration.watched_server`.

The first one reports what does block. A thread looks at the main thread every few milliseconds. Waiting for events and
waiting for the interpreter's lock are no blocking, and a busy machine is none either: only a main thread that sleeps in
any other system call, at the same place at several looks in a row, is written to the file that `CRIO_TEST_BLOCKED`
names.

The second one reports what could block, into the same file: every look at a file system and every start of a program
by the main thread while the server serves, but for what `_harmless` gives a reason for. A disk is quick on a test
machine; on a node it may be a file server that is gone.
"""

import ctypes
import logging
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from crio_server.main import main

LOOK_S = 0.005
LOOKS = 10
"""How many looks in a row must find the same: a twentieth of a second."""
WAITING = {
    "x86_64": {"232", "281", "441", "202"},  # epoll_wait, epoll_pwait, epoll_pwait2, futex
    "aarch64": {"22", "441", "98"},  # epoll_pwait, epoll_pwait2, futex
}


def _watch(main_id: int, native_id: int, report: Path) -> None:
    waiting = WAITING[platform.machine()]
    syscall = Path(f"/proc/self/task/{native_id}/syscall")
    last, looks = "", 0
    while True:
        time.sleep(LOOK_S)
        number = syscall.read_text().split()[0]
        frame = sys._current_frames().get(main_id)
        if number in (*waiting, "running", "-1") or frame is None:
            looks = 0
            continue
        place = f"{number} {frame.f_code.co_filename}:{frame.f_lineno}"
        looks = looks + 1 if place == last else 1
        last = place
        if looks == LOOKS:
            with report.open("a") as file:
                file.write(f"system call {number}:\n{''.join(traceback.format_stack(frame))}\n")


FILE_EVENTS = frozenset(
    {
        *(
            "open",
            "os.listdir",
            "os.scandir",
            "os.mkdir",
            "os.rmdir",
            "os.remove",
            "os.rename",
            "os.link",
            "os.symlink",
        ),
        *("os.chmod", "os.chown", "os.truncate", "os.utime", "os.stat", "os.lstat", "subprocess.Popen"),
    }
)
"""Audit events of the interpreter, and two of our own, since it has none for stat(2)."""


class _Serving(logging.Handler):
    """Knows from the server's log whether it serves."""

    now = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if " serves at " in text:
            self.now = True
        elif text.startswith("stopping: "):
            self.now = False


def _harmless(event: str, path: str, functions: set[str], root: str, runroot: str) -> bool:
    """Whether the main thread may do this: what is in memory does not block, and some things only the loop can do."""
    if path.startswith((f"{runroot}/", "/proc/", "/dev/")) or path == runroot:
        return True  # tmpfs and the kernel's own
    if event == "subprocess.Popen" or "_execute_child" in functions:
        return True  # vfork(2): the child's exec is waited for, of programs that lie on the system's own disk
    if "_find_and_load" in functions:
        return True  # a module that is first needed now, once in the life of a server
    if event == "open" and functions & {"updatecache", "checkcache"}:
        return True  # the source of a line in a traceback, of our own bug
    # Small files that monitors have renamed into place, on the disk that the journal is on.
    return path.startswith(f"{root}/exits/")


def _callers(frame: FrameType | None) -> Iterator[str]:
    """Names of the functions that are being executed, the innermost first."""
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


def _audit(main_id: int, serving: _Serving, root: str, runroot: str, report: Path) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not serving.now or event not in FILE_EVENTS or threading.get_ident() != main_id or not arguments:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        frame = sys._getframe(1)
        if not path or _harmless(event, path, set(_callers(frame)), root, runroot):
            return
        serving.now = False  # What is written here is no business of the server's.
        with report.open("a") as file:
            file.write(f"{event} {path}:\n{''.join(traceback.format_stack(frame))}\n")
        serving.now = True

    sys.addaudithook(hook)
    for name in ("stat", "lstat"):
        _tell(name)


def _tell(name: str) -> None:
    """Have stat(2), which the interpreter does not audit, be audited."""
    inner = getattr(os, name)

    def told(path: object, *arguments: object, **options: object) -> object:
        sys.audit(f"os.{name}", path)
        return inner(path, *arguments, **options)

    setattr(os, name, told)


def _block_once() -> None:
    """Proves that the guard sees what it is for: a blocking sleep by nanosleep(2), outside the interpreter's lock."""
    ctypes.CDLL(None).usleep(int(LOOK_S * LOOKS * 4 * 1_000_000))


if __name__ == "__main__":
    serving = _Serving()
    logging.getLogger("crio").addHandler(serving)
    root, runroot = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--root", "--runroot"))
    _audit(threading.get_ident(), serving, root, runroot, Path(os.environ["CRIO_TEST_BLOCKED"]))
    watcher = threading.Thread(
        target=_watch,
        args=(threading.get_ident(), threading.get_native_id(), Path(os.environ["CRIO_TEST_BLOCKED"])),
        daemon=True,
    )
    watcher.start()
    if os.environ.get("CRIO_TEST_BLOCK_ONCE"):
        _block_once()
    main()
