"""The failures of the network, each with a stable reason, and what a plugin says about its own failure.

Everything in a plugin's output is data of another program: it is bounded, made printable, and only quoted.
"""

from collections.abc import Sequence

from crio_core.cni.document import shown
from crio_core.errors import Code, OperationError

CNI_CONFIG_INVALID = "CNI_CONFIG_INVALID"
CNI_NOT_CONFIGURED = "CNI_NOT_CONFIGURED"
CNI_PLUGIN_NOT_FOUND = "CNI_PLUGIN_NOT_FOUND"
CNI_PLUGIN_FAILED = "CNI_PLUGIN_FAILED"
CNI_TIMEOUT = "CNI_TIMEOUT"

PLUGIN_TEXT_MAX_CHARS = 2048
"""How much of what a plugin wrote goes into an error message."""

# Well-known codes of CNI SPEC section 2, "Errors"; all others mean a plain failure.
_STATUS_OF_CODE = {
    1: Code.FAILED_PRECONDITION,  # CNI version not supported by the plugin
    2: Code.FAILED_PRECONDITION,  # field of the configuration not supported
    3: Code.NOT_FOUND,  # container or namespace unknown
    6: Code.FAILED_PRECONDITION,  # configuration cannot be decoded
    7: Code.FAILED_PRECONDITION,  # configuration refused
    11: Code.UNAVAILABLE,  # try again later
    50: Code.UNAVAILABLE,  # STATUS: cannot serve ADD now
    51: Code.UNAVAILABLE,  # STATUS: as 50, and running pods may be cut off
}


def config_invalid(file_name: str, field: str, value: object, expected: str) -> OperationError:
    """A network configuration that cannot be used, with the place in it."""
    message = f"{file_name}: {field}: {shown(value)} is not valid: expected {expected}"
    return OperationError(Code.FAILED_PRECONDITION, CNI_CONFIG_INVALID, message)


def not_configured(message: str) -> OperationError:
    """There is no network that pods could be attached to."""
    return OperationError(Code.UNAVAILABLE, CNI_NOT_CONFIGURED, message)


def plugin_not_found(plugin: str, network: str, plugin_dirs: Sequence[str]) -> OperationError:
    """A plugin that a network names is in none of the directories."""
    dirs = ", ".join(plugin_dirs) or "no directories"
    message = f"CNI plugin {plugin!r} of network {network!r} is not an executable file in any of: {dirs}"
    return OperationError(Code.FAILED_PRECONDITION, CNI_PLUGIN_NOT_FOUND, message)


def timed_out(plugin: str, verb: str, network: str, budget_s: float) -> OperationError:
    """A plugin was still running, or had not begun, when the verb's time was over."""
    message = (
        f"CNI plugin {plugin!r} did not finish {verb} for network {network!r}: {budget_s:g} s for the verb are over"
    )
    return OperationError(Code.DEADLINE_EXCEEDED, CNI_TIMEOUT, message)


def plugin_failed(
    plugin: str, verb: str, network: str, detail: str, *, plugin_code: int | None = None, stderr: bytes = b""
) -> OperationError:
    """A plugin ran and failed, or returned what it may not."""
    message = f"CNI plugin {plugin!r} failed {verb} for network {network!r}: {detail}"
    if tail := printable(stderr):
        message = f"{message}; stderr: {tail}"
    code = Code.INTERNAL if plugin_code is None else _STATUS_OF_CODE.get(plugin_code, Code.INTERNAL)
    return OperationError(code, CNI_PLUGIN_FAILED, message)


def printable(data: bytes) -> str:
    """The end of a program's output as one printable line, bounded."""
    tail = data[-4 * PLUGIN_TEXT_MAX_CHARS :].decode("utf-8", "replace").strip()[-PLUGIN_TEXT_MAX_CHARS:]
    return "".join(char if char.isprintable() else " " for char in tail)
