"""Makes sense of what a runtime says when it fails: its JSON log, or else its standard error."""

import re
from typing import Any

import orjson

from crio_core.errors import Code, OperationError

MESSAGE_MAX_CHARS = 2048

_LOG_LINE = re.compile(r'^time="[^"]*" level=(?P<level>\w+) msg=(?P<message>"(?:[^"\\]|\\.)*"|\S+)')
_GONE = re.compile(
    r"container (?:with id \S+ )?does not exist|container not (?:found|exist)|"
    r"(?:load(?:ing)? (?:container|sandbox)|state file)[^\n]*(?:no such file or directory|does not exist|not exist)|"
    r"container [^\n]* does not exist",
    re.IGNORECASE,
)
_DEAD = re.compile(
    r"process already finished|container not running|no such process|not running|container is stopped|"
    r"cannot (?:kill|signal)[^\n]*stopped",
    re.IGNORECASE,
)
_CLASSES: tuple[tuple[re.Pattern[str], Code, str], ...] = (
    (
        re.compile(
            r"executable file not found|exec[^\n]*no such file or directory|failed to load [^\n]*: no such file"
        ),
        Code.FAILED_PRECONDITION,
        "EXECUTABLE_NOT_FOUND",
    ),
    (re.compile(r"exec[^\n]*permission denied"), Code.FAILED_PRECONDITION, "EXECUTABLE_NOT_ALLOWED"),
    (
        re.compile(r"cannot exec in a stopped|cannot start a container that has stopped|container is not running"),
        Code.FAILED_PRECONDITION,
        "CONTAINER_NOT_RUNNING",
    ),
    (re.compile(r"exec format error"), Code.FAILED_PRECONDITION, "EXECUTABLE_FORMAT"),
    (re.compile(r"already exists|already in use"), Code.ALREADY_EXISTS, "CONTAINER_EXISTS"),
)


def says_absent(text: str) -> bool:
    """Whether a runtime refused because it has no such container."""
    return _GONE.search(text) is not None


def says_dead(text: str) -> bool:
    """Whether a runtime refused because the container's process has ended."""
    return _DEAD.search(text) is not None


def errors_in_log(log: bytes) -> str:
    """The error messages of a `--log-format json` log (the text format is understood too), the last one last."""
    return _bounded("; ".join(dict.fromkeys(_entries(log))))


def readable(log: bytes, stderr: bytes) -> str:
    """The best sentence there is about a failure, without repetition, escapes or timestamps."""
    return errors_in_log(log) or errors_in_log(stderr) or _bounded(stderr.decode("utf-8", "replace").strip())


def failure(runtime: str, action: str, text: str) -> OperationError:
    """A runtime's failure as an error with the status and the reason that its words point to."""
    for pattern, code, reason in _CLASSES:
        if pattern.search(text):
            return OperationError(code, reason, f"{runtime} {action}: {text}")
    if says_absent(text):
        return OperationError(Code.NOT_FOUND, "CONTAINER_NOT_FOUND", f"{runtime} {action}: {text}")
    return OperationError(
        Code.INTERNAL, "RUNTIME_FAILED", f"{runtime} {action}: {text or 'failed and did not say why'}"
    )


def _entries(log: bytes) -> list[str]:
    found: list[str] = []
    for line in log.splitlines():
        entry = _json_entry(line) or _text_entry(line.decode("utf-8", "replace"))
        if entry is not None and entry[0] in ("error", "fatal", "panic"):
            found.append(entry[1])
    return found


def _json_entry(line: bytes) -> tuple[str, str] | None:
    try:
        fields: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    return str(fields.get("level", "")).lower(), str(fields.get("msg", ""))


def _text_entry(line: str) -> tuple[str, str] | None:
    match = _LOG_LINE.match(line)
    if match is None:
        return None
    message = match["message"]
    if message.startswith('"'):
        try:
            message = str(orjson.loads(message))
        except orjson.JSONDecodeError:
            message = message.strip('"')
    return match["level"], message


def _bounded(text: str) -> str:
    return text if len(text) <= MESSAGE_MAX_CHARS else "..." + text[-MESSAGE_MAX_CHARS:]
