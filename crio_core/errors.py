"""Errors, sorted by who must act on them.

`LocalError` and `RemoteError` are bugs: ours, or of the program at the other end. `OperationError` is an expected
outcome, such as a missing image or a plugin that failed: it carries the gRPC status that a caller should see, a
stable word that a program can compare, and a sentence for a person.
"""

from crio_core.values import Word


class Code(Word):
    """Status codes of gRPC, by number (grpc/doc/statuscodes.md)."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CrioError(Exception):
    """Base of every error that this project raises on purpose."""


class LocalError(CrioError):
    """Our own caller broke the contract of a function: a bug on this side."""


class RemoteError(CrioError):
    """A runtime, monitor, plugin or client sent what its protocol forbids."""


class OperationError(CrioError):
    """An operation did not succeed, for a reason that its caller should be told.

    Args:
        code: The gRPC status.
        reason: A stable word in UPPER_SNAKE_CASE, such as `IMAGE_NOT_FOUND`.
        message: What went wrong, with the names, values and paths that matter.
    """

    def __init__(self, code: Code, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    def __repr__(self) -> str:
        return f"OperationError({self.code.name}, {self.reason}: {self.message})"


def invalid(field: str, value: object, expected: str) -> OperationError:
    """A refusal of one field of a request, in the one form that every refusal has."""
    return OperationError(
        Code.INVALID_ARGUMENT, "INVALID_FIELD", f"{field}: {value!r} is not valid: expected {expected}"
    )


def not_found(kind: str, name: str) -> OperationError:
    """A refusal of a name or id that nothing has; `kind` is a noun such as `container`."""
    return OperationError(Code.NOT_FOUND, f"{kind.upper().replace(' ', '_')}_NOT_FOUND", f"{kind} {name!r} not found")
