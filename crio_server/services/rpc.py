"""What the two services share: one wrapper around every handler, and answers that are serialized already.

A service is a class with a coroutine for each method that it has: request message in, reply message out. An
asynchronous generator is a method that streams its replies. A plain function is a method that only asks, and has the
reply at once; what it cannot say at once it gives back as an awaitable. It may be called twice for one call. Methods
that a service does not have answer UNIMPLEMENTED and name themselves.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler
from grpclib.encoding.proto import ProtoCodec
from grpclib.server import Stream

from crio_core.values import dataclass
from crio_server.answers import send_answer
from crio_server.errors import REASON_KEY, is_departure, status_of
from crio_server.tally import Tallies, Tally

Reply = Message | bytes
Method = Callable[[Any], Reply | Awaitable[Reply] | AsyncIterator[Reply]]


class CachedCodec(ProtoCodec):
    """Protobuf, except that a reply may be given as its bytes."""

    def encode(self, message: Any, message_type: Any) -> bytes:
        if isinstance(message, bytes):
            return message
        return super().encode(message, message_type)


def serialized(reply: Reply) -> bytes:
    """A reply as its bytes."""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


@dataclass(frozen=True, slots=True, kw_only=True)
class AtOnce:
    """A method that has its reply at once, unless it gives back an awaitable."""

    request_type: type[Message]
    method: Callable[[Any], Reply | Awaitable[Reply]]
    tally: Tally


class _Methods:
    """Stands in for `self` where the generated base lists the methods: gives a wrapped handler for every name."""

    def __init__(self, service: object, counted: Tallies) -> None:
        self._service = service
        self._counted = counted

    def __getattr__(self, name: str) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        method: Method | None = getattr(self._service, name, None)
        if method is None:
            method = _unimplemented(name)
        return _wrapped(method, self._counted[name])


class Servable:
    """A service as grpclib wants it.

    Args:
        base: The generated base class, which knows every method's path and types.
        service: The object with the methods.
        counted: Where calls are counted, by the names of their methods.
    """

    def __init__(self, base: Any, service: object, counted: Tallies) -> None:
        self._mapping: Mapping[str, Handler] = base.__mapping__(_Methods(service, counted))
        self.at_once: Mapping[str, AtOnce] = {
            path: AtOnce(request_type=one.request_type, method=method, tally=counted[name])
            for path, one in self._mapping.items()
            for name in (path.rpartition("/")[2],)
            if one.cardinality is Cardinality.UNARY_UNARY
            and (method := getattr(service, name, None)) is not None
            and not (iscoroutinefunction(method) or isasyncgenfunction(method))
        }
        """By the path of their calls."""

    def __mapping__(self) -> Mapping[str, Handler]:
        return self._mapping


def _unimplemented(name: str) -> Method:
    async def refuse(request: object) -> Message:
        raise NotImplementedError(f"{name} is not implemented by this version of crio")

    return refuse


def _wrapped(method: Method, tally: Tally) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
    async def handle(stream: Stream[Any, Any]) -> None:
        began_s, failed = time.monotonic(), True
        try:
            request = await stream.recv_message()
            answer = method(request)
            if isinstance(answer, AsyncIterator):
                await stream.send_initial_metadata()  # The first message may be long in coming.
                async for part in answer:
                    await stream.send_message(part)
            else:
                reply = answer if isinstance(answer, bytes | Message) else await answer
                if not send_answer(stream, serialized(reply)):
                    await stream.send_message(reply)
            failed = False
        except BaseException as error:
            if is_departure(error) or not isinstance(error, Exception):
                raise
            status, message, reason = status_of(error)
            metadata = {REASON_KEY: reason} if reason else None
            await stream.send_trailing_metadata(status=status, status_message=message, metadata=metadata)
        finally:
            tally.observe(time.monotonic() - began_s, failed=failed)

    return handle
