"""The process that stays with a container while nothing happens.

Every object that a process looks at is written to, because its references are counted, and each page written to is a
page of its own. So this one runs the few lines of `watch` and then sleeps. A child that shares its descriptors
(clone(2), `CLONE_FILES`) does everything that has to be done until the container runs, and leaves a `Handover` in
a memory file. With an event another such child is made: it takes the `Handover`, is the `Loop`, and leaves the next
`Handover` when nothing has happened for a while. What only a parent can do, reaping, the watcher does, and tells it.

The C library is called with the interpreter's lock held, as there is only one thread; and processes are made by the
system call itself, since fork(3) prepares locks that nobody else holds.
"""

import ctypes
import os
import select
from _signal import set_wakeup_fd, signal  # type: ignore[import-not-found]  # typeshed has no stub for it

from conmon import linux
from conmon.handover import BYTES_MAX, Handover
from conmon.loop import Loop
from conmon.low import SIGCHLD, SIGKILL, Suppress
from conmon.signals import heard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    # Our pid, what the caller gave, the wake-up pipe, the pipe of exits, the memory file for the `Handover`, and the
    # epoll set in which whatever may happen is to be registered.
    Create = Callable[[int, tuple[int, int], tuple[int, int], tuple[int, int], int, int], int]

# Numbers of clone(2). Its first argument is the flags on each of these.
CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "ppc64le": 120, "i686": 120}

_library = ctypes.PyDLL(None)
_syscall = _library.syscall
_clone = CLONE_NUMBERS.get(os.uname().machine, 0)
_ended = (ctypes.c_int * 2)()  # pid and status of a child
_calls: "tuple[Any, ...]" = (
    *(_library.setsid, _library.prctl, _library.pipe2, _library.memfd_create, _library.epoll_create1),
    *(_library.syscall, _library.waitpid, _library.epoll_wait, _library.write, _library.usleep),
    *(set_wakeup_fd, signal, os.getpid),
    *((ctypes.c_int * 2)(), ctypes.create_string_buffer(16)),
    *(_ended, ctypes.byref(_ended, 4)),
)


def check() -> None:
    """Raises OSError: processes cannot be made in this way on this kind of machine."""
    if not _clone:
        raise OSError(f"crio-conmon --zygote does not know how to call clone(2) on {os.uname().machine}")


def fork() -> int:
    """A copy of this process, whose end its parent is told of; 0 in the copy."""
    return int(_syscall(_clone, SIGCHLD, 0, 0, 0, 0))


def watch(
    create: "Create",
    given: tuple[int, int],
    calls: "tuple[Any, ...]" = _calls,
    clone: int = _clone,
    heard: "Callable[[int, object], None]" = heard,
) -> int:
    """Stay with one container; the code to exit with.

    Everything that it needs comes with one argument, and every number is a constant of its code: what a module or a
    function in Python adds are more objects in more pages. That is why the numbers are written out.

    Args:
        create: Called in the child; returns the child's exit code, 0 when there is something to watch.
        given: Passed to `create`.
    """
    setsid, prctl, pipe2, memfd_create, epoll_create1, syscall, waitpid, epoll_wait, write, usleep, *rest = calls
    set_wakeup_fd, signal, getpid, pair, events, ended, status = rest
    setsid()
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    pipe2(pair, 0x80800)  # O_CLOEXEC, O_NONBLOCK
    exits = tuple(pair)
    pipe2(pair, 0x80800)
    reader, writer = pair
    set_wakeup_fd(writer)
    signal(17, heard)  # SIGCHLD
    signal(15, heard)  # SIGTERM
    signal(10, heard)  # SIGUSR1
    signal(3, heard)  # SIGQUIT
    signal(2, heard)  # SIGINT
    state_fd = memfd_create(b"container", 1)  # MFD_CLOEXEC
    poll_fd = epoll_create1(0x80000)  # EPOLL_CLOEXEC
    mine = getpid()
    child = syscall(clone, 0x600, 0, 0, 0, 0)  # CLONE_FILES, CLONE_FS
    if child == 0:
        return create(mine, given, (reader, writer), exits, state_fd, poll_fd)
    while waitpid(child, status, 0x40000000) != child:  # __WALL: it tells nobody of its end
        pass
    if ended[1]:
        linux.kill_children()  # a runtime that nobody waits for
        return 1
    writer = exits[1]
    while True:
        while epoll_wait(poll_fd, events, 1, -1) < 1:  # stopped and continued: a signal for us is in the wake-up pipe
            pass
        child = syscall(clone, 0x600, 0, 0, 0, 0)
        if child == 0:
            return work(mine, state_fd, poll_fd)
        if child < 0:  # the host, or our cgroup, has no room for a process now
            usleep(100_000)
            continue
        ended[0] = 0
        while ended[0] != child:
            ended[0] = waitpid(-1, status, 0x40000000)
            if ended[0] > 0 and ended[0] != child:
                write(writer, ended, 8)
        if ended[1] & 0xFF00:  # one that was killed is replaced, with what the one before it has left
            return 0


def work(watcher_pid: int, state_fd: int, poll_fd: int) -> int:
    """In a child: do what there is to do; 0 when there will be more, 1 when the container has ended."""
    linux.prctl(linux.PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != watcher_pid:
        return 1
    given = take(state_fd)
    before = given.causes()
    loop = Loop(given)
    loop.run()
    if not loop.resting:
        return 1
    leave(loop.hand_over(), state_fd, poll_fd, before)
    return 0


def leave(given: Handover, state_fd: int, poll_fd: int, before: "Iterable[int]" = ()) -> None:
    """In the child: give the watcher what it watches, in place of what it watched before."""
    poll = select.epoll.fromfd(os.dup(poll_fd))  # what is made from a number closes it
    causes = given.causes()
    for fd in before:
        if fd not in causes:
            with Suppress(OSError):  # closed: the kernel has taken it out already
                poll.unregister(fd)
    for fd, events in causes.items():
        if fd not in before:
            poll.register(fd, events)
    packed = given.pack()
    if len(packed) > BYTES_MAX:
        raise ValueError(f"{len(packed)} bytes to hand over")
    at = 0
    while at < len(packed):
        at += os.pwrite(state_fd, packed[at:], at)
    os.ftruncate(state_fd, at)


def take(state_fd: int) -> Handover:
    """In a later child: what the one before it left."""
    return Handover.unpack(os.pread(state_fd, os.fstat(state_fd).st_size, 0))
