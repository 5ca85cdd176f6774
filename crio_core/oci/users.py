"""Which ids a container's process has (CRI LinuxContainerSecurityContext; OCI runtime-spec, process.user).

The image's passwd and group are bytes of a stranger. Digits are always a number and never looked up as a name, and no
number outside 0..2^31-1 is taken, whoever says it: a wrapped id is root (CVE-2024-40635, CVE-2026-46680).
"""

from collections.abc import Iterator

from crio_core.cri import LinuxContainerSecurityContext, SupplementalGroupsPolicy
from crio_core.errors import invalid
from crio_core.oci.facts import ROOTFS_FILE_BYTES_MAX, RootfsFacts
from crio_core.values import dataclass

ID_MAX = 2**31 - 1
NAME_BYTES_MAX = 256
SUPPLEMENTAL_GROUPS_MAX = 65536  # NGROUPS_MAX of the kernel
_ID_DIGITS_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A resolved user. `groups` has the primary group first, then the others without repetition."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: bytes
    uid: bytes
    gid: bytes
    home: bytes


def _lines(field: str, content: bytes, columns: int) -> Iterator[list[bytes]]:
    if len(content) > ROOTFS_FILE_BYTES_MAX:
        raise invalid(field, f"{len(content)} bytes", f"at most {ROOTFS_FILE_BYTES_MAX} bytes")
    for line in content.split(b"\n"):
        parts = line.split(b":")
        if len(parts) >= columns and not line.startswith(b"#"):
            yield parts


def _entries(passwd: bytes) -> Iterator[_Entry]:
    for parts in _lines("/etc/passwd of the image", passwd, 4):
        home = parts[5] if len(parts) > 5 else b""
        yield _Entry(name=parts[0], uid=parts[2], gid=parts[3], home=home)


def parse_id(field: str, text: bytes) -> int:
    """A user or group id in decimal.

    Raises:
        OperationError: not digits, or outside 0..2^31-1.
    """
    if not text.isdigit() or len(text) > _ID_DIGITS_MAX or int(text) > ID_MAX:
        raise invalid(field, text.decode("utf-8", "backslashreplace")[:64], f"a number from 0 to {ID_MAX}")
    return int(text)


def check_id(field: str, number: int) -> int:
    """A number that came as one, checked for its range."""
    if not 0 <= number <= ID_MAX:
        raise invalid(field, number, f"a number from 0 to {ID_MAX}")
    return number


def _named(field: str, name: bytes) -> bytes:
    if not name or len(name) > NAME_BYTES_MAX or any(byte < 0x21 or byte == 0x7F for byte in name):
        shown = name.decode("utf-8", "backslashreplace")[:64]
        raise invalid(field, shown, f"a name of 1 to {NAME_BYTES_MAX} bytes without blanks, or a number")
    return name


def _same_id(text: bytes, number: int) -> bool:
    return text.isdigit() and len(text) <= _ID_DIGITS_MAX and int(text) == number


def _find_user(field: str, user: bytes, passwd: bytes) -> tuple[int, _Entry | None]:
    if user.isdigit():
        uid = parse_id(field, user)
        return uid, next((entry for entry in _entries(passwd) if _same_id(entry.uid, uid)), None)
    name = _named(field, user)
    for entry in _entries(passwd):
        if entry.name == name:
            return parse_id(
                f"{field}: uid of {name.decode('utf-8', 'backslashreplace')} in /etc/passwd", entry.uid
            ), entry
    raise invalid(field, name.decode("utf-8", "backslashreplace"), "a user in /etc/passwd of the image")


def _find_group(field: str, group: bytes, content: bytes) -> int:
    if group.isdigit():
        return parse_id(field, group)
    name = _named(field, group)
    for parts in _lines("/etc/group of the image", content, 3):
        if parts[0] == name:
            return parse_id(f"{field}: gid of {name.decode('utf-8', 'backslashreplace')} in /etc/group", parts[2])
    raise invalid(field, name.decode("utf-8", "backslashreplace"), "a group in /etc/group of the image")


def _memberships(name: bytes, content: bytes) -> Iterator[int]:
    """Groups that list the name; an entry whose gid is no valid id gives nothing."""
    for parts in _lines("/etc/group of the image", content, 4):
        gid = parts[2]
        if name in parts[3].split(b",") and gid.isdigit() and len(gid) <= _ID_DIGITS_MAX and int(gid) <= ID_MAX:
            yield int(gid)


def resolve_user(context: LinuxContainerSecurityContext, image_user: str, facts: RootfsFacts) -> User:
    """The ids that the request, else the image asks for.

    `run_as_user` wins over `run_as_username`, and both over the image's USER, whose group then counts for nothing.
    The primary group is always among the supplementary ones: without it, a process could read what the group is denied
    by dropping it (CVE-2022-2995, CVE-2023-25173).

    Raises:
        OperationError: an id out of range, a name that the image does not have, or a group without a user.
    """
    prefix = "linux.security_context"
    group_text = b""
    if context.run_as_user is not None:
        field, user = f"{prefix}.run_as_user", str(check_id(f"{prefix}.run_as_user", context.run_as_user)).encode()
    elif context.run_as_username:
        field, user = f"{prefix}.run_as_username", context.run_as_username.encode("utf-8", "surrogatepass")
    elif context.run_as_group is not None:
        raise invalid(f"{prefix}.run_as_group", context.run_as_group, "run_as_user or run_as_username beside it")
    else:
        field = "user of the image"
        user, _, group_text = image_user.encode("utf-8", "surrogatepass").partition(b":")
    uid, entry = _find_user(field, user or b"0", facts.passwd)
    if context.run_as_group is not None:
        gid = check_id(f"{prefix}.run_as_group", context.run_as_group)
    elif group_text:
        gid = _find_group("group of the image's user", group_text, facts.group)
    elif entry is not None:
        gid = parse_id(f"{field}: its gid in /etc/passwd", entry.gid)
    else:
        gid = 0
    groups = {gid: None}  # a dict keeps the order
    if context.supplemental_groups_policy is SupplementalGroupsPolicy.MERGE and entry is not None:
        groups.update(dict.fromkeys(_memberships(entry.name, facts.group)))
    for index, number in enumerate(context.supplemental_groups):
        groups[check_id(f"{prefix}.supplemental_groups[{index}]", number)] = None
    if len(groups) > SUPPLEMENTAL_GROUPS_MAX:
        raise invalid(f"{prefix}.supplemental_groups", f"{len(groups)} groups", f"at most {SUPPLEMENTAL_GROUPS_MAX}")
    return User(uid=uid, gid=gid, groups=tuple(groups), home=_home(entry))


def _home(entry: _Entry | None) -> str:
    """The entry's home directory, or `/` when it has none that can stand in an environment."""
    home = entry.home if entry is not None else b""
    if not home.startswith(b"/") or any(byte < 0x20 or byte == 0x7F for byte in home):
        return "/"
    return home.decode("utf-8", "replace")
