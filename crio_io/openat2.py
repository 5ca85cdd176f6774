"""openat2(2): opening what lies below a directory, with a limit to where links, `..` and mounts may lead."""

import ctypes
import errno
import os
import stat

NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10
"""Which ways a path may not take, RESOLVE_ of the manual page."""
_NUMBER = 437  # the same on every architecture
_AGAIN_MAX = 16  # it answers EAGAIN when a rename passed by

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open a path relative to a directory's descriptor; never through the links of /proc.

    Raises:
        OSError: As the kernel said: ELOOP, EXDEV or ENOENT for a way that may not be taken.
    """
    how = _How(flags | os.O_CLOEXEC, 0, resolve | NO_MAGICLINKS)
    name = os.fsencode(path)
    number = errno.EAGAIN
    for _ in range(_AGAIN_MAX):
        descriptor = int(_libc.syscall(_NUMBER, directory, name, ctypes.byref(how), ctypes.sizeof(how)))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


def open_regular(directory: int, path: str, resolve: int) -> int:
    """Open a regular file for reading; anything else is not even opened: a FIFO would wait, and a device could act.

    Raises:
        OSError: As the kernel said; EINVAL for what is no regular file.
    """
    found = openat2(directory, path, os.O_PATH, resolve)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
