"""The one place where errors become gRPC statuses.

Every handler runs inside `Servable` (`services/rpc.py`), which asks here: expected failures keep their status, their
sentence and, in the trailing metadata `crio-reason`, their stable word; what was not expected is logged with its
traceback and answered as INTERNAL, never as a bare "Internal Server Error".
"""

import asyncio
import logging

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from crio_core.errors import CrioError, OperationError

log = logging.getLogger(__name__)

REASON_KEY = "crio-reason"
MESSAGE_CHARS_MAX = 4096
"""A status message travels in an HTTP/2 header: keep it far below a client's header limit."""


def unwrap(error: BaseException) -> BaseException:
    """The one error inside exception groups that a task group has put around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def status_of(error: BaseException) -> tuple[Status, str, str]:
    """Status, message and reason for an error; what has no better status is INTERNAL and is logged."""
    error = unwrap(error)
    match error:
        case OperationError():
            return Status(error.code.value), error.message[:MESSAGE_CHARS_MAX], error.reason
        case GRPCError():
            return error.status, error.message or "", ""
        case TimeoutError():
            return Status.DEADLINE_EXCEEDED, str(error) or "the call's deadline has passed", "TIMEOUT"
        case NotImplementedError():
            return Status.UNIMPLEMENTED, str(error), "UNIMPLEMENTED"
        case CrioError():
            log.error("a call failed by a bug", exc_info=error)
            return Status.INTERNAL, str(error)[:MESSAGE_CHARS_MAX], "BUG"
        case _:
            log.error("a call failed unexpectedly", exc_info=error)
            return Status.INTERNAL, f"{type(error).__name__}: {error}"[:MESSAGE_CHARS_MAX], "UNEXPECTED"


def is_departure(error: BaseException) -> bool:
    """Whether the error only says that the client has gone: there is nobody to tell."""
    return isinstance(unwrap(error), asyncio.CancelledError | StreamTerminatedError)
