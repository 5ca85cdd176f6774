"""Paths inside containers and on the host, as text: cleaned by rule, never by looking.

A path with `..` is refused, not resolved: what it means depends on symbolic links that only the kernel knows.
"""

from crio_core.errors import invalid

PATH_BYTES_MAX = 4095  # PATH_MAX less the NUL. Longer sources once overflowed runc's messages (CVE-2021-43784).


def clean_path(field: str, path: str) -> str:
    """An absolute path without empty, `.` or trailing parts.

    Raises:
        OperationError: the path is relative, too long, holds NUL or a control character, or has a `..` part.
    """
    if not path.startswith("/"):
        raise invalid(field, path, "an absolute path")
    if len(path) > PATH_BYTES_MAX or (not path.isascii() and len(utf8(field, path)) > PATH_BYTES_MAX):
        raise invalid(field, path[:64] + "...", f"a path of at most {PATH_BYTES_MAX} bytes")
    if not path.isprintable() and any(character < " " or character == "\x7f" for character in path):
        raise invalid(field, path, "a path without control characters")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise invalid(field, path, "a path without '..' parts")
    return "/" + "/".join(parts)


def utf8(field: str, text: str) -> bytes:
    """The text in UTF-8, which is all that JSON can carry."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise invalid(field, text[:64], "valid UTF-8") from error


def depth(path: str) -> int:
    """How many parts a clean path has; `/` has none."""
    return 0 if path == "/" else path.count("/")


def is_within(path: str, parent: str) -> bool:
    """Whether a clean path is `parent` or below it."""
    return path == parent or parent == "/" or path.startswith(parent + "/")
