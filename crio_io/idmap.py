"""Idmapped mounts: trees that are seen under the ids of a user namespace, without a file being changed.

open_tree(2), mount_setattr(2) and move_mount(2), which the C library of a supported system may not have yet.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crio_core.cri import IDMapping
from crio_core.errors import Code, OperationError
from crio_io import mounts, user_namespace
from crio_io.libc import checked, libc

KERNEL_MIN = (5, 19)
"""The first kernel whose overlayfs takes idmapped layers."""
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # The same on every architecture.
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
_NO_SUPPORT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


@contextmanager
def tree(path: str, *, recursive: bool = False) -> Iterator[int]:
    """A copy of the mount at a path that is attached nowhere, as a descriptor.

    Raises:
        OSError: As the kernel said.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    result = libc.syscall(ctypes.c_long(_OPEN_TREE), _AT_FDCWD, os.fsencode(path), flags)
    fd = checked("open_tree", result, path)
    try:
        yield fd
    finally:
        os.close(fd)


def attach(fd: int, target: str) -> None:
    """Mount what `tree` gave.

    Raises:
        OSError: As the kernel said.
    """
    place = os.fsencode(target)
    result = libc.syscall(ctypes.c_long(_MOVE_MOUNT), fd, b"", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH)
    checked("move_mount", result, target)


def set_ids(fd: int, users: int, path: str, *, recursive: bool = False) -> None:
    """Have what `tree` gave of a path seen under the ids of a user namespace, given by a descriptor.

    Raises:
        OperationError: IDMAP_NOT_AVAILABLE, the file system cannot.
    """
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_IDMAP, 0, 0, users)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    number = ctypes.c_long(_MOUNT_SETATTR)
    try:
        result = libc.syscall(number, fd, b"", flags, attributes, ctypes.c_size_t(ctypes.sizeof(attributes)))
        checked("mount_setattr", result, path)
    except OSError as error:
        if error.errno not in _NO_SUPPORT:
            raise
        message = f"{path}: its ids cannot be mapped: the file system or the kernel has no idmapped mounts"
        raise OperationError(Code.FAILED_PRECONDITION, "IDMAP_NOT_AVAILABLE", message) from error


def mount_mapped(source: str, target: str, users: str) -> None:
    """Mount what is at `source`, with all that is mounted below it, under the ids of a user namespace; blocking.

    Args:
        source: A directory or a file.
        target: The mount point, which is made; mounted already is success.
        users: Path of the user namespace.

    Raises:
        OperationError: IDMAP_NOT_AVAILABLE or MOUNT_FAILED.
    """
    try:
        if mounts.is_mounted(target):
            return
        if os.path.isdir(source):
            os.makedirs(target, 0o700, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        with tree(source, recursive=True) as fd, opened(users) as namespace:
            set_ids(fd, namespace, source, recursive=True)
            attach(fd, target)
    except OSError as error:
        message = f"mount of {source} on {target}: {error.strerror}"
        raise OperationError(Code.FAILED_PRECONDITION, "MOUNT_FAILED", message) from error


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A namespace by its path, as a descriptor."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def why_not(directory: Path, kernel: tuple[int, int]) -> str:
    """Why layers in this directory cannot be root filesystems of pods with user namespaces; empty when they can.

    Blocking; it is tried out, and leaves nothing.
    """
    if kernel < KERNEL_MIN:
        return (
            f"kernel {kernel[0]}.{kernel[1]}: overlayfs takes idmapped layers from {KERNEL_MIN[0]}.{KERNEL_MIN[1]} on"
        )
    run = (IDMapping(host_id=1, container_id=0, length=1),)
    try:
        with (
            user_namespace.holder(0, run, run) as pid,
            opened(f"/proc/{pid}/ns/user") as users,
            tree(str(directory)) as fd,
        ):
            set_ids(fd, users, str(directory))
    except OperationError as error:
        return error.message
    except OSError as error:
        return f"user namespaces: {error.strerror}"
    return ""
