"""The files of a sandbox that the runtime bind-mounts into its containers, and its shared memory."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from crio_core.errors import Code, LocalError, OperationError
from crio_io import mounts

SHM = "shm"
FILE_MAX_BYTES = 1024 * 1024


def create(directory: Path, *, files: Mapping[str, bytes], shm_bytes: int, owner: tuple[int, int] = (0, 0)) -> None:
    """Make a sandbox's directory with its files and its /dev/shm; what is there already is brought to the same state.

    Blocks.

    Args:
        directory: The sandbox's own directory, mode 0700.
        files: Contents by file name, such as `resolv.conf` and `hostname`; mode 0644, since any user reads them.
        shm_bytes: The size of the tmpfs at `shm`; 0 for none.
        owner: User and group of that tmpfs: the pod's root.

    Raises:
        OperationError: SANDBOX_FILES_FAILED or MOUNT_FAILED.
    """
    for name, content in files.items():
        if "/" in name or name in ("", ".", "..", SHM) or len(content) > FILE_MAX_BYTES:
            raise LocalError(f"{name!r} of {len(content)} bytes is not a file of a sandbox")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            _write(directory / name, content)
        if shm_bytes:
            (directory / SHM).mkdir(mode=0o700, exist_ok=True)
            mounts.mount_tmpfs(str(directory / SHM), shm_bytes, owner=owner)
    except OSError as error:
        raise _failed(f"writing the files of sandbox directory {directory}", error) from error


def remove(directory: Path) -> None:
    """Unmount the shared memory and remove the directory with all its files; absent is success. Blocks.

    Raises:
        OperationError: SANDBOX_FILES_FAILED or UNMOUNT_FAILED.
    """
    mounts.unmount_or_report(str(directory / SHM))
    try:
        with suppress(FileNotFoundError):
            (directory / SHM).rmdir()
        with suppress(FileNotFoundError):
            for entry in tuple(directory.iterdir()):
                entry.unlink()
            directory.rmdir()
    except OSError as error:
        raise _failed(f"removing sandbox directory {directory}", error) from error


def _write(path: Path, content: bytes) -> None:
    """Write in place, never by rename: a container that has the file mounted must see the change."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o644)  # Whatever the umask is.
        file.write(content)


def _failed(what: str, error: OSError) -> OperationError:
    return OperationError(Code.INTERNAL, "SANDBOX_FILES_FAILED", f"{what}: {error}")
