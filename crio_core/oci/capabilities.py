"""Linux capabilities: which of the five sets of a process holds what (capabilities(7), CRI Capability).

Inheritable and ambient are empty unless the request asks for ambient ones: a non-empty inheritable set lets an ordinary
user inside gain capabilities through file capabilities (CVE-2022-27652), and an ambient one gives them to every user.
"""

from collections.abc import Sequence

from crio_core.cri import Capability
from crio_core.errors import Code, OperationError, invalid

# In the kernel's order: a capability's number is its place here (linux/capability.h).
_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
ALL_CAPABILITIES: tuple[str, ...] = tuple("CAP_" + name for name in _NAMES.split())
_KNOWN = frozenset(ALL_CAPABILITIES)

DEFAULT_CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_KILL",
)

REQUESTED_MAX = 128


def capability_name(field: str, text: str) -> str:
    """The full name of a capability written with or without CAP_, in any case; `ALL` stays `ALL`."""
    name = text.upper() if text.isascii() else text
    if name == "ALL":
        return name
    name = name if name.startswith("CAP_") else "CAP_" + name
    if name not in _KNOWN:
        raise invalid(field, text, "ALL or a Linux capability such as CAP_NET_ADMIN")
    return name


def from_mask(mask: int) -> tuple[str, ...]:
    """Names of the bits of a capability mask, as in the `CapBnd` line of /proc/self/status."""
    return tuple(name for number, name in enumerate(ALL_CAPABILITIES) if mask >> number & 1)


def _names(field: str, given: Sequence[str]) -> list[str]:
    if len(given) > REQUESTED_MAX:
        raise invalid(field, f"{len(given)} names", f"at most {REQUESTED_MAX}")
    return [capability_name(field, text) for text in given]


def _require_available(field: str, names: Sequence[str], available: frozenset[str]) -> None:
    for name in names:
        if name != "ALL" and name not in available:
            message = f"{field}: {name} is not in the bounding set of this node's runtime, so it cannot be given"
            raise OperationError(Code.FAILED_PRECONDITION, "CAPABILITY_NOT_AVAILABLE", message)


def capability_sets(
    requested: Capability, *, privileged: bool, defaults: tuple[str, ...], available: tuple[str, ...]
) -> dict[str, list[str]]:
    """The `process.capabilities` object.

    `ALL` is applied before single names: `drop: [ALL], add: [X]` leaves X, and `add: [ALL], drop: [X]` all but X. Of
    both at once the drop is the stronger.

    Args:
        defaults: What a container has that asks for nothing.
        available: The bounding set of the runtime's own process.

    Raises:
        OperationError: an unknown name, or a capability asked for by name that the node cannot give.
    """
    field = "linux.security_context.capabilities"
    add = _names(f"{field}.add_capabilities", requested.add_capabilities)
    drop = _names(f"{field}.drop_capabilities", requested.drop_capabilities)
    ambient = _names(f"{field}.add_ambient_capabilities", requested.add_ambient_capabilities)
    given = frozenset(available)
    if privileged:
        names = [name for name in ALL_CAPABILITIES if name in given]
        return {"bounding": names, "effective": list(names), "permitted": list(names)}
    _require_available(f"{field}.add_capabilities", add, given)
    _require_available(f"{field}.add_ambient_capabilities", ambient, given)
    everything: frozenset[str] = frozenset() if "ALL" in drop else given
    held = set(everything if "ALL" in add else everything.intersection(defaults))
    held.update(name for name in add if name != "ALL")
    held.difference_update(drop)
    raised = {name for name in ambient if name != "ALL"}
    if "ALL" in ambient:
        raised |= everything
    raised.difference_update(drop)
    held |= raised
    names = [name for name in ALL_CAPABILITIES if name in held]
    sets = {"bounding": names, "effective": list(names), "permitted": list(names)}
    if raised:
        # The kernel lets a capability be ambient only while it is also inheritable (capabilities(7)).
        lifted = [name for name in ALL_CAPABILITIES if name in raised]
        sets["inheritable"] = lifted
        sets["ambient"] = list(lifted)
    return sets
