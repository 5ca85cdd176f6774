"""Directories that only root enters, and names and contents that last."""

import os
from pathlib import Path

from crio_io.libc import checked, libc

DIRECTORY_MODE = 0o700


def make_directory(path: Path) -> None:
    """Make a directory that only root can enter, with its parents; one that exists is made so."""
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    path.chmod(DIRECTORY_MODE)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: Path) -> None:
    """syncfs(2): everything that was written to the filesystem of `path` until now is durable afterwards."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        checked("syncfs", libc.syncfs(fd), str(path))
    finally:
        os.close(fd)
