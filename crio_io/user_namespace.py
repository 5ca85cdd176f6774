"""Makes user namespaces, with the namespaces that they own, from a process of many threads.

A thread cannot take a user namespace, nor can Python be forked from a process of many threads. So clone(2) makes a
child that runs nothing but the C library's `sleep`: no code of ours, no lock. It holds the namespaces until they are
pinned, and should the server die meanwhile, it ends by itself.
"""

import ctypes
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from crio_core.cri import IDMapping

CLONE_NEWUSER = 0x10000000
SLEEP_S = 10
STACK_BYTES = 64 * 1024
_STACK_ALIGNMENT = 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


@contextmanager
def holder(flags: int, uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> Iterator[int]:
    """A process in a new user namespace with these mappings, for the length of the block; blocking.

    Args:
        flags: Of clone(2): further namespaces, which the user namespace then owns.

    Raises:
        OSError: As the kernel said: EPERM or ENOSPC where user namespaces are forbidden or used up, EINVAL for mappings
            that it does not take.
    """
    stack = ctypes.create_string_buffer(STACK_BYTES)
    top = (ctypes.addressof(stack) + STACK_BYTES) // _STACK_ALIGNMENT * _STACK_ALIGNMENT
    sleep = ctypes.cast(_libc.sleep, ctypes.c_void_p)
    pid = _libc.clone(sleep, top, CLONE_NEWUSER | flags | signal.SIGCHLD, SLEEP_S)
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"making a user namespace: {os.strerror(number)}")
    try:
        for name, runs in (("uid_map", uids), ("gid_map", gids)):
            _write_map(f"/proc/{pid}/{name}", runs)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _write_map(path: str, runs: Sequence[IDMapping]) -> None:
    """Write a map at one go, as the kernel wants it."""
    text = "".join(f"{run.container_id} {run.host_id} {run.length}\n" for run in runs)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
