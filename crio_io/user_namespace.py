"""Makes user namespaces, with the namespaces that they own, from a process of many threads.

A thread cannot take a user namespace, nor can Python be forked from a process of many threads. So clone(2) makes a
child that runs nothing but the C library's `sleep`: no code of ours, no lock. It holds the namespaces until they are
pinned, and should the server die meanwhile, it ends by itself.

It has none of the server's descriptors, though it never executes a program: a listening socket that it kept would look
like a live server to the next start. The thread that clones gives up its own view of them first.
"""

import ctypes
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from crio_core.cri import IDMapping
from crio_io.libc import checked, libc
from crio_io.own_thread import in_own_thread

CLONE_NEWUSER = 0x10000000
SLEEP_S = 10
STACK_BYTES = 64 * 1024
_STACK_ALIGNMENT = 16
_SYS_CLOSE_RANGE = 436  # The same on every architecture.
_CLOSE_RANGE_UNSHARE = 2
_DESCRIPTOR_MAX = 0xFFFFFFFF

libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


@contextmanager
def holder(flags: int, uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> Iterator[int]:
    """A process in a new user namespace with these mappings, for the length of the block; blocking.

    Args:
        flags: Of clone(2): further namespaces, which the user namespace then owns.

    Raises:
        OSError: As the kernel said: EPERM or ENOSPC where user namespaces are forbidden or used up, EINVAL for mappings
            that it does not take.
    """
    pid = in_own_thread(lambda: _clone_without_descriptors(CLONE_NEWUSER | flags | signal.SIGCHLD))
    try:
        for name, runs in (("uid_map", uids), ("gid_map", gids)):
            _write_map(f"/proc/{pid}/{name}", runs)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _clone_without_descriptors(flags: int) -> int:
    """Start the child; this thread has no descriptors from then on, and the rest of the process keeps its own."""
    stack = ctypes.create_string_buffer(STACK_BYTES)
    top = (ctypes.addressof(stack) + STACK_BYTES) // _STACK_ALIGNMENT * _STACK_ALIGNMENT
    sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
    every = (ctypes.c_uint(0), ctypes.c_uint(_DESCRIPTOR_MAX), ctypes.c_uint(_CLOSE_RANGE_UNSHARE))
    checked("close_range", libc.syscall(ctypes.c_long(_SYS_CLOSE_RANGE), *every))
    return checked("making a user namespace", libc.clone(sleep, top, flags, SLEEP_S))


def _write_map(path: str, runs: Sequence[IDMapping]) -> None:
    """Write a map at one go, as the kernel wants it."""
    text = "".join(f"{run.container_id} {run.host_id} {run.length}\n" for run in runs)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
