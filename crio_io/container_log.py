"""Reads what a container wrote, out of the log file that its monitor keeps in the CRI's format."""

import os
from pathlib import Path

from crio_core.errors import Code, OperationError
from crio_core.logformat import LogParser, Piece
from crio_core.values import dataclass

READ_BYTES_MAX = 16 * 1024 * 1024
"""As much of the end of a log file is read at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerLog:
    """What a container wrote. `cut` is true when the file holds more than was read: then its beginning is missing."""

    stdout: bytes
    stderr: bytes
    cut: bool = False


def read_log(path: Path) -> ContainerLog:
    """The end of a log file, at most `READ_BYTES_MAX` of it. Blocks.

    Raises:
        OperationError: There is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            cut = size_bytes > READ_BYTES_MAX
            if cut:
                file.seek(size_bytes - READ_BYTES_MAX)
                file.readline()  # the rest of a record that began before
            data = file.read(READ_BYTES_MAX)
    except FileNotFoundError as error:
        raise OperationError(Code.NOT_FOUND, "NO_LOG", f"there is no log at {str(path)!r}") from error
    except OSError as error:
        raise OperationError(Code.INTERNAL, "LOG_UNREADABLE", f"log {str(path)!r}: {error.strerror}") from error
    written: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    for piece in LogParser().feed(data):
        if isinstance(piece, Piece):
            written[piece.stream].append(piece.data + (b"\n" if piece.ends_line else b""))
    return ContainerLog(stdout=b"".join(written["stdout"]), stderr=b"".join(written["stderr"]), cut=cut)
