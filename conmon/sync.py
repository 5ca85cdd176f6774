"""What a monitor tells its caller: messages on the sync pipe, and files.

The sync pipe carries lines of JSON with one number and an optional message. The key depends on the API version and the
mode, as conmon 2.1 has it: `data` from version 1 on, else `pid` for a container and `exit_code` for an exec. Files are
written beside their place and renamed, so that a reader sees the whole or nothing.
"""

import os

MESSAGE_BYTES_MAX = 8191  # of the runtime's stderr in a failure report


def quote(text: str) -> str:
    """A JSON string; ASCII only, so that any reader's encoding will do (RFC 8259, section 7)."""
    out = ['"']
    for character in text:
        code = ord(character)
        if character in '"\\':
            out.append("\\" + character)
        elif 0x20 <= code < 0x7F:
            out.append(character)
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            code -= 0x10000
            out.append(f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}")
    out.append('"')
    return "".join(out)


def sync_message(key: str, number: int, message: str = "") -> bytes:
    """One line for the sync pipe."""
    tail = f', "message": {quote(message)}' if message else ""
    return f'{{"{key}": {number}{tail}}}\n'.encode()


def result_key(api_version: int, is_exec: bool) -> str:
    """The key that a caller of this API version reads."""
    if api_version >= 1:
        return "data"
    return "exit_code" if is_exec else "pid"


def write_all(fd: int, data: bytes) -> None:
    """Write every byte to a blocking descriptor.

    Raises:
        OSError: The reader is gone, or the disk is full.
    """
    while data:
        data = data[os.write(fd, data) :]


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step.

    Raises:
        OSError: The directory is missing, full or read-only; the old file is as it was.
    """
    fresh = f"{path}.{os.getpid()}.tmp"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
        os.rename(fresh, path)
    except OSError:
        os.unlink(fresh)
        raise
    finally:
        os.close(fd)
