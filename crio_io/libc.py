"""The C library, for what Python has no function of its own for: a call that fails raises what the kernel said."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)


def checked(what: str, result: int, path: str | None = None) -> int:
    """The result of a call that has just been made in this thread, which is negative when it failed.

    Args:
        what: The name of the call, for the message.
        result: What it returned.
        path: What it was about, if that is a file.

    Raises:
        OSError: The call failed, with its errno.
    """
    if result >= 0:
        return result
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}", path)
