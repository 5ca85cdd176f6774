"""Whether an HTTP/1.1 request becomes a stream, and which protocol it then speaks.

Sources: kubernetes, apimachinery/pkg/util/httpstream (SPDY) and wsstream (WebSocket); RFC 6455, section 4.2.
"""

from collections.abc import Iterable

from crio_core.streaming.protocol import Endpoint, Protocol
from crio_core.values import dataclass

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Answer 101 with these headers; what follows on the connection is of this protocol."""

    protocol: Protocol
    headers: Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Answer with this status and text, and close the connection."""

    status: int
    text: str
    headers: Headers = ()


def decide(method: bytes, headers: Iterable[tuple[bytes, bytes]], endpoint: Endpoint) -> Accepted | Refused:
    """What to answer to a request for a stream.

    Args:
        method: As h11 gives it, such as `b"POST"`.
        headers: As h11 gives them: names in lower case.
        endpoint: What the address of the request is for.
    """
    raise NotImplementedError
