"""Pins a sandbox's namespaces without any process: a thread unshares, sets them up, bind-mounts them, and ends.

Namespaces that a user namespace is to own are made with it (`user_namespace.py`), and the thread then enters them.

The pins are made last. So a directory that holds all of them holds finished namespaces, and a creation that is repeated
after a crash can tell whether to keep or to begin anew.
"""

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from crio_core.cri import UserNamespace
from crio_core.errors import Code, LocalError, OperationError, invalid
from crio_core.oci.sysctls import Owner, check
from crio_core.values import dataclass
from crio_io import mounts, user_namespace
from crio_io.libc import checked, libc
from crio_io.own_thread import in_own_thread

CLONE_FLAGS: Mapping[str, int] = MappingProxyType({"net": 0x40000000, "uts": 0x04000000, "ipc": 0x08000000})
"""The kinds of namespaces that a thread can take without a new process, with their unshare(2) flags."""
KINDS = (*CLONE_FLAGS, "user")
NO_USERS = UserNamespace()
HOSTNAME_MAX_BYTES = 64

_KINDS: Mapping[Owner, str] = MappingProxyType({Owner.NETWORK: "net", Owner.IPC: "ipc", Owner.UTS: "uts"})
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_IFREQ = struct.Struct("16sH22x")
_SYS_SETRESUID = 117 if platform.machine() == "x86_64" else 147  # 147 in the list that newer architectures share.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The namespaces of one sandbox; `settings` are paths below /proc/sys with their values."""

    kinds: tuple[str, ...]
    hostname: str
    settings: Mapping[str, str]
    users: UserNamespace


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePin:
    """A namespace held by a bind mount; the inode tells it from any other for as long as it is held."""

    path: str
    inode: int


def create(
    directory: Path,
    kinds: tuple[str, ...],
    *,
    hostname: str,
    sysctls: Mapping[str, str],
    users: UserNamespace = NO_USERS,
) -> Mapping[str, NamespacePin]:
    """Make and pin namespaces; when every kind is pinned there already, they are kept as they are. Blocks.

    Args:
        directory: Where the pins go, one file a kind; made with mode 0700 if absent.
        kinds: Any of `net`, `uts`, `ipc` and `user`, which then owns the others.
        hostname: The name in a new `uts`.
        sysctls: Settings, each of which must belong to a namespace of `kinds` (CVE-2022-0532).
        users: The mappings of a new `user`; they must map the id 0 inside.

    Returns:
        A pin for each kind.

    Raises:
        OperationError: INVALID_FIELD, SYSCTL_FAILED or NAMESPACE_FAILED; nothing is left behind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise LocalError(f"no namespace of kind {unknown[0]!r} can be pinned")
    if len(os.fsencode(hostname)) > HOSTNAME_MAX_BYTES or "\0" in hostname:
        raise invalid("hostname", hostname, f"up to {HOSTNAME_MAX_BYTES} bytes")
    wanted = _Wanted(kinds=kinds, hostname=hostname, settings=_settings(sysctls, kinds), users=users)
    present = observe(directory)
    if kinds and all(kind in present for kind in kinds):
        return {kind: NamespacePin(path=str(directory / kind), inode=present[kind]) for kind in kinds}
    made_directory = not directory.exists()
    if not made_directory:
        _release_pins(directory)
    pinned: list[str] = []
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        if "user" in kinds:
            return _clone_and_pin(directory, wanted, pinned)
        return in_own_thread(lambda: _unshare_and_pin(directory, wanted, pinned))
    except BaseException as error:
        for path in pinned:
            mounts.unmount(path)
            Path(path).unlink(missing_ok=True)
        if made_directory:
            with suppress(OSError):
                directory.rmdir()
        if isinstance(error, OSError):
            message = f"namespaces {', '.join(kinds)} in {directory}: {error}"
            raise OperationError(Code.INTERNAL, "NAMESPACE_FAILED", message) from error
        raise


def release(directory: Path) -> None:
    """Let go of every namespace pinned in a directory, and remove it; absent is success. Blocks.

    Raises:
        OperationError: UNMOUNT_FAILED or NAMESPACE_FAILED.
    """
    try:
        _release_pins(directory)
        with suppress(FileNotFoundError):
            directory.rmdir()
    except OSError as error:
        message = f"unpinning namespaces in {directory}: {error}"
        raise OperationError(Code.INTERNAL, "NAMESPACE_FAILED", message) from error


def observe(directory: Path) -> Mapping[str, int]:
    """The inode of each namespace that is truly pinned in a directory, by kind; a plain file is not a pin (R6).

    Some looks at files in memory: fit for the event loop.
    """
    found: dict[str, int] = {}
    nsfs = os.stat("/proc/self/ns/net").st_dev
    for kind in KINDS:
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(directory / kind)
            if status.st_dev == nsfs:
                found[kind] = status.st_ino
    return found


def _settings(sysctls: Mapping[str, str], kinds: tuple[str, ...]) -> Mapping[str, str]:
    """Settings by their path below /proc/sys: the core has checked them, and here they become paths."""
    paths = {}
    for name, value in sysctls.items():
        kind = _KINDS[check("sysctls", name, value)]
        if kind not in kinds:
            raise invalid("sysctls", name, f"no {kind} settings, since the pod does not have its own {kind} namespace")
        paths[name.replace(".", "/")] = value
    return paths


def _flags(kinds: tuple[str, ...]) -> int:
    flags = 0
    for kind in kinds:
        flags |= CLONE_FLAGS.get(kind, 0)
    return flags


def _unshare_and_pin(directory: Path, wanted: _Wanted, pinned: list[str]) -> Mapping[str, NamespacePin]:
    flags = _flags(wanted.kinds)
    if flags:
        checked("unshare", libc.unshare(flags))
    _set_up(wanted)
    return _pin(directory, wanted.kinds, "/proc/thread-self/ns", pinned)


def _clone_and_pin(directory: Path, wanted: _Wanted, pinned: list[str]) -> Mapping[str, NamespacePin]:
    users = wanted.users
    with user_namespace.holder(_flags(wanted.kinds), users.uids, users.gids) as pid:
        in_own_thread(lambda: _enter_and_set_up(pid, wanted))
        return _pin(directory, wanted.kinds, f"/proc/{pid}/ns", pinned)


def _enter_and_set_up(pid: int, wanted: _Wanted) -> None:
    """Be in what the user namespace owns, as the node's root: which may do in there what the pod's may."""
    for kind in wanted.kinds:
        if kind in CLONE_FLAGS:
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                checked("setns", libc.setns(fd, CLONE_FLAGS[kind]))
            finally:
                os.close(fd)
    _set_up(wanted)


def _set_up(wanted: _Wanted) -> None:
    if "uts" in wanted.kinds and wanted.hostname:
        socket.sethostname(wanted.hostname)
    if "net" in wanted.kinds:
        _bring_loopback_up()
        _refuse_router_advertisements()
    for path, value in wanted.settings.items():
        _write_sysctl(path, value, wanted.users.root[0])


def _pin(directory: Path, kinds: tuple[str, ...], source: str, pinned: list[str]) -> Mapping[str, NamespacePin]:
    pins: dict[str, NamespacePin] = {}
    for kind in kinds:
        pin = str(directory / kind)
        os.close(os.open(pin, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        pinned.append(pin)
        mounts.mount(f"{source}/{kind}", pin, None, mounts.MS_BIND)
        pins[kind] = NamespacePin(path=pin, inode=Path(pin).stat().st_ino)
    return pins


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def _refuse_router_advertisements() -> None:
    """A pod's neighbour must not become its router (CVE-2020-10749); a kernel without IPv6 has nothing to refuse."""
    for interface in ("all", "default"):
        with suppress(FileNotFoundError):
            _write_proc_sys(f"net/ipv6/conf/{interface}/accept_ra", "0")


def _write_sysctl(path: str, value: str, owner: int) -> None:
    try:
        try:
            _write_proc_sys(path, value)
        except PermissionError:
            if owner == 0:
                raise
            _write_as(owner, path, value)
    except OSError as error:
        message = f"sysctl {path.replace('/', '.')} = {value!r}: {error.strerror}"
        raise OperationError(Code.INVALID_ARGUMENT, "SYSCTL_FAILED", message) from error


def _write_as(uid: int, path: str, value: str) -> None:
    """Write as the pod's root: the settings of an IPC namespace belong to that user alone."""
    _set_thread_user(uid)
    try:
        _write_proc_sys(path, value)
    finally:
        _set_thread_user(0)


def _set_thread_user(uid: int) -> None:
    """Change the effective user of this thread only, as the system call does and the C library's function does not."""
    checked("setresuid", libc.syscall(ctypes.c_long(_SYS_SETRESUID), -1, ctypes.c_uint(uid), -1))


def _write_proc_sys(path: str, value: str) -> None:
    fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _release_pins(directory: Path) -> None:
    for kind in KINDS:
        pin = directory / kind
        mounts.unmount(str(pin))
        pin.unlink(missing_ok=True)
