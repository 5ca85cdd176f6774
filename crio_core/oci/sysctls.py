"""Kernel settings of a pod: only those that belong to a namespace, and only when the namespace is the pod's own.

Names and values are held to a narrow alphabet: what a helper or a file might read as a separator is refused before
anything runs (CVE-2022-0811), and a setting whose namespace is the node's would change the node (CVE-2022-0532).
"""

import re
from collections.abc import Mapping
from enum import Enum

from crio_core.cri import NamespaceMode, PodSandboxConfig
from crio_core.errors import invalid

SYSCTLS_MAX = 256
NAME_BYTES_MAX = 253
VALUE_BYTES_MAX = 1024

_FIELD = "config.linux.sysctls"

_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9_-]*)?(?:\.[A-Za-z0-9_-]+)+")
_VALUE = re.compile(r"[A-Za-z0-9_.:\-]+(?:[ \t]+[A-Za-z0-9_.:\-]+)*")
_PORTS = re.compile(r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*")
# The one list that the kernel writes with commas (ip-sysctl, ip_local_reserved_ports).
_PORT_LISTS = frozenset({"net.ipv4.ip_local_reserved_ports"})


class Owner(Enum):
    """The kind of namespace that a setting belongs to."""

    IPC = "ipc"
    NETWORK = "network"
    UTS = "uts"


_EXACT: Mapping[str, Owner] = {
    "kernel.shmall": Owner.IPC,
    "kernel.shmmax": Owner.IPC,
    "kernel.shmmni": Owner.IPC,
    "kernel.shm_rmid_forced": Owner.IPC,
    "kernel.msgmax": Owner.IPC,
    "kernel.msgmnb": Owner.IPC,
    "kernel.msgmni": Owner.IPC,
    "kernel.sem": Owner.IPC,
    "kernel.domainname": Owner.UTS,
}


def owner(field: str, name: str) -> Owner:
    """The namespace that a setting belongs to.

    Raises:
        OperationError: a name out of the alphabet, or a setting of the whole node.
    """
    if len(name) > NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise invalid(field, name[: NAME_BYTES_MAX + 1], "the name of a sysctl, such as net.core.somaxconn")
    if name.startswith("net."):
        return Owner.NETWORK
    if name.startswith("fs.mqueue."):
        return Owner.IPC
    found = _EXACT.get(name)
    if found is None:
        raise invalid(field, name, "a sysctl of a network, IPC or UTS namespace")
    return found


def check(field: str, name: str, value: str) -> Owner:
    """The namespace that a setting belongs to, once name and value are proven to be harmless.

    Raises:
        OperationError: naming the setting.
    """
    found = owner(field, name)
    _check_value(field, name, value)
    return found


def _check_value(field: str, name: str, value: str) -> None:
    pattern = _PORTS if name in _PORT_LISTS else _VALUE
    empty_list = name in _PORT_LISTS and value == ""
    if len(value) > VALUE_BYTES_MAX or not (empty_list or pattern.fullmatch(value)):
        raise invalid(f"{field}[{name}]", value[:64], "words of letters, digits, '_', '.', ':' and '-'")


def sandbox_sysctls(config: PodSandboxConfig, defaults: Mapping[str, str]) -> dict[str, str]:
    """The settings to make in a pod's own namespaces: the configured defaults, then the pod's.

    Defaults for a namespace that the pod shares with the node are left out; the pod's own such settings are refused.

    Raises:
        OperationError: naming the setting.
    """
    options = config.linux.security_context.namespace_options
    shared = set()
    if options.network is NamespaceMode.NODE:
        shared = {Owner.NETWORK, Owner.UTS}
    if options.ipc is NamespaceMode.NODE:
        shared.add(Owner.IPC)
    if len(config.linux.sysctls) > SYSCTLS_MAX:
        raise invalid(_FIELD, f"{len(config.linux.sysctls)} settings", f"at most {SYSCTLS_MAX}")
    found = {}
    for name, value in defaults.items():
        if check("default_sysctls", name, value) not in shared:
            found[name] = value
    for name, value in config.linux.sysctls.items():
        kind = check(_FIELD, name, value)
        if kind in shared:
            raise invalid(_FIELD, name, f"no {kind.value} setting, as the pod shares the node's namespace")
        found[name] = value
    return found
