"""How a command ended: `metav1.Status` in JSON on the error stream since protocol v4, text before that.

Source: kubernetes, apimachinery/pkg/apis/meta/v1 (Status), apimachinery/pkg/util/remotecommand and
kubelet/pkg/cri/streaming/remotecommand/exec.go.
"""

from typing import Any

import orjson

from crio_core.streaming.protocol import Protocol
from crio_core.values import dataclass

STATUS_BYTES_MAX = 256 << 10  # what a client takes as a status
_NON_ZERO = "NonZeroExitCode"
_EXIT_CODE = "ExitCode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The command ran and ended."""

    code: int
    """0 to 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The command was not run to its end, or nobody knows how it ended."""

    message: str


Ended = Exited | Failed


def has_json(protocol: Protocol) -> bool:
    """Whether the error stream of this protocol carries JSON, and so an exit code."""
    return protocol.name.startswith(("v4.", "v5."))


def encode(status: Ended, protocol: Protocol) -> bytes:
    """What is written on the error stream; nothing for a command that succeeded, before v4."""
    match status:
        case Exited(code=0):
            return orjson.dumps({"metadata": {}, "status": "Success"}) if has_json(protocol) else b""
        case Exited(code=code):
            message = f"command terminated with non-zero exit code: {code}"
            more: dict[str, Any] = {
                "reason": _NON_ZERO,
                "details": {"causes": [{"reason": _EXIT_CODE, "message": str(code)}]},
            }
        case Failed(message=message):
            more = {"reason": "InternalError", "details": {"causes": [{"message": message}]}, "code": 500}
    if not has_json(protocol):
        return message.encode()
    return orjson.dumps({"metadata": {}, "status": "Failure", "message": message, **more})


def decode(data: bytes, protocol: Protocol) -> Ended:
    """What was written on the error stream until its end."""
    text = data.decode(errors="replace")
    if not has_json(protocol):
        return Failed(message=text) if text else Exited(code=0)
    try:
        status = orjson.loads(data)
    except orjson.JSONDecodeError:
        return Failed(message=f"the server's status is not JSON: {text[:1000]!r}")
    if not isinstance(status, dict):
        return Failed(message=f"the server's status is not an object: {text[:1000]!r}")
    if status.get("status") == "Success":
        return Exited(code=0)
    code = _exit_code(status) if status.get("reason") == _NON_ZERO else None
    message = status.get("message")
    if code is not None:
        return Exited(code=code)
    return Failed(message=message if isinstance(message, str) and message else f"the server's status is {text[:1000]}")


def _exit_code(status: dict[str, Any]) -> int | None:
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else ():
        if isinstance(cause, dict) and cause.get("reason") == _EXIT_CODE:
            text = cause.get("message")
            if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255:
                return int(text)
    return None
