"""The process that stays with a container while nothing happens.

Every object that a process looks at is written to, because its references are counted, and each page written to is a
page of its own. So this one runs the few lines of `watch` and then sleeps. A child that shares its descriptors
(clone(2), `CLONE_FILES`) does everything that has to be done until the container runs, and leaves a `Handover` in
a memory file. With the first event the watcher reads that and becomes a `Loop`.

The C library is called with the interpreter's lock held, as there is only one thread; and processes are made by the
system call itself, since fork(3) prepares locks that nobody else holds.
"""

import ctypes
import os
import select

from conmon.create import catch_signals
from conmon.handover import BYTES_MAX, Handover
from conmon.linux import PR_SET_CHILD_SUBREAPER
from conmon.loop import Loop
from conmon.low import SIGCHLD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_FS, CLONE_FILES = 0x200, 0x400
WAIT_ALL = 0x40000000  # __WALL of waitpid(2): our child tells nobody of its end
PIPE_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
MEMORY_FILE_FLAGS = 1  # MFD_CLOEXEC
# Numbers of clone(2). Its first argument is the flags on each of these.
CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "ppc64le": 120, "i686": 120}

_library = ctypes.PyDLL(None)
_syscall, _setsid, _prctl, _pipe2 = _library.syscall, _library.setsid, _library.prctl, _library.pipe2
_memfd_create, _epoll_create1 = _library.memfd_create, _library.epoll_create1
_epoll_wait, _waitpid = _library.epoll_wait, _library.waitpid
_clone = CLONE_NUMBERS.get(os.uname().machine, 0)
_pair = (ctypes.c_int * 2)()
_status = (ctypes.c_int * 1)()
_events = ctypes.create_string_buffer(16)  # one struct epoll_event


def check() -> None:
    """Raises OSError: processes cannot be made in this way on this kind of machine."""
    if not _clone:
        raise OSError(f"crio-conmon --zygote does not know how to call clone(2) on {os.uname().machine}")


def fork() -> int:
    """A copy of this process, whose end its parent is told of; 0 in the copy."""
    return int(_syscall(_clone, SIGCHLD, 0, 0, 0, 0))


def watch(create: "Callable[[int, int, tuple[int, int], int, int], int]", connection_fd: int) -> int:
    """Stay with the container that the client of a connection asks for; the code to exit with.

    Args:
        create: Called in the child with our pid, the connection, the wake-up pipe, the memory file for the `Handover`
            and the epoll set in which whatever may happen is to be registered; returns the child's exit code.
    """
    _setsid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _pipe2(_pair, PIPE_FLAGS)
    reader, writer = _pair
    catch_signals(writer)
    state_fd = _memfd_create(b"container", MEMORY_FILE_FLAGS)
    poll_fd = _epoll_create1(os.O_CLOEXEC)
    mine = os.getpid()
    child = _syscall(_clone, CLONE_FILES | CLONE_FS, 0, 0, 0, 0)
    if child == 0:
        return create(mine, connection_fd, (reader, writer), state_fd, poll_fd)
    while _waitpid(child, _status, WAIT_ALL) != child:
        pass
    if _status[0]:
        return 1
    _epoll_wait(poll_fd, _events, 1, -1)  # a signal, which ends it with -1, is a reason to look as well
    os.close(poll_fd)
    return Loop(take(state_fd)).run() & 0xFF


def leave(given: Handover, state_fd: int, poll_fd: int) -> None:
    """In the child: give the watcher what it watches."""
    poll = select.epoll.fromfd(os.dup(poll_fd))  # what is made from a number closes it
    for fd, events in given.causes().items():
        poll.register(fd, events)
    packed = given.pack()
    if len(packed) > BYTES_MAX:
        raise ValueError(f"{len(packed)} bytes to hand over")
    while packed:
        packed = packed[os.write(state_fd, packed) :]


def take(state_fd: int) -> Handover:
    """In the watcher: what the child left."""
    packed = os.pread(state_fd, os.fstat(state_fd).st_size, 0)
    os.close(state_fd)
    return Handover.unpack(packed)
