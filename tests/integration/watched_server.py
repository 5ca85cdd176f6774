"""Runs `crio` with a guard that reports whatever blocks its event loop: `python -m tests.integration.watched_server`.

A thread looks at the main thread every few milliseconds. Waiting for events and waiting for the interpreter's lock are
no blocking, and a busy machine is none either: only a main thread that sleeps in any other system call, at the same
place at several looks in a row, is written to the file that `CRIO_TEST_BLOCKED` names.
"""

import ctypes
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path

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


def _block_once() -> None:
    """Proves that the guard sees what it is for: a blocking sleep by nanosleep(2), outside the interpreter's lock."""
    ctypes.CDLL(None).usleep(int(LOOK_S * LOOKS * 4 * 1_000_000))


if __name__ == "__main__":
    watcher = threading.Thread(
        target=_watch,
        args=(threading.get_ident(), threading.get_native_id(), Path(os.environ["CRIO_TEST_BLOCKED"])),
        daemon=True,
    )
    watcher.start()
    if os.environ.get("CRIO_TEST_BLOCK_ONCE"):
        _block_once()
    main()
