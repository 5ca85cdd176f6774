"""Whether an HTTP/1.1 request becomes a stream, and which protocol it then speaks.

A client names the protocols that it knows, in its order of preference; the first of them that is known here is chosen.

Sources: kubernetes, apimachinery/pkg/util/httpstream (SPDY) and wsstream (WebSocket); RFC 6455, section 4.2.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping

from crio_core.streaming.protocol import Endpoint, Protocol, Wire
from crio_core.values import dataclass

Headers = tuple[tuple[bytes, bytes], ...]

PROTOCOL_VERSION = b"x-stream-protocol-version"
SPDY = b"SPDY/3.1"
TUNNEL = "SPDY/3.1+portforward.k8s.io"

SPDY_PROTOCOLS: Mapping[Endpoint, tuple[str, ...]] = {
    Endpoint.COMMAND: (*(f"v{version}.channel.k8s.io" for version in (5, 4, 3, 2)), "channel.k8s.io"),
    Endpoint.FORWARDING: ("portforward.k8s.io",),
}
WEBSOCKET_PROTOCOLS: Mapping[Endpoint, tuple[str, ...]] = {
    Endpoint.COMMAND: (
        *("v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"),
        *("channel.k8s.io", "base64.channel.k8s.io"),
    ),
    Endpoint.FORWARDING: (TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"),
}

_METHODS = (b"GET", b"POST")
_KEY_BYTES = 16
_WEBSOCKET_ID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OFFERED: Headers = ((b"upgrade", SPDY + b", websocket"), (b"connection", b"Upgrade"))


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
    if method not in _METHODS:
        text = f"{_shown(method)} opens no stream: expected GET or POST"
        return Refused(status=405, text=text, headers=((b"allow", b"GET, POST"),))
    listed: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        listed.setdefault(name, []).extend(part.strip() for part in value.split(b",") if part.strip())
    wires = [one.lower() for one in listed.get(b"upgrade", ())]
    if b"upgrade" not in (one.lower() for one in listed.get(b"connection", ())) or not wires:
        text = "a stream is opened with the headers `Connection: Upgrade` and `Upgrade: SPDY/3.1` or `websocket`"
        return Refused(status=426, text=text, headers=_OFFERED)
    if b"websocket" in wires:
        return _websocket(listed, endpoint)
    if SPDY.lower() in wires:
        return _spdy(listed, endpoint)
    text = f"cannot upgrade to {_shown(b', '.join(listed[b'upgrade']))}: expected SPDY/3.1 or websocket"
    return Refused(status=426, text=text, headers=_OFFERED)


def websocket_accept(key: bytes) -> bytes:
    """What `Sec-WebSocket-Accept` answers to a `Sec-WebSocket-Key`."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_ID, usedforsecurity=False).digest())


def _spdy(listed: Mapping[bytes, list[bytes]], endpoint: Endpoint) -> Accepted | Refused:
    asked, known = listed.get(PROTOCOL_VERSION, []), SPDY_PROTOCOLS[endpoint]
    if not asked:
        text = f"the header X-Stream-Protocol-Version is missing: expected one or more of {', '.join(known)}"
        return Refused(status=400, text=text)
    name = _first_known(asked, known)
    if name is None:
        accepted = tuple((b"x-accepted-stream-protocol-versions", one.encode()) for one in known)
        return Refused(status=403, text=_none_known("X-Stream-Protocol-Version", asked, known), headers=accepted)
    headers = ((b"connection", b"Upgrade"), (b"upgrade", SPDY), (PROTOCOL_VERSION, name.encode()))
    return Accepted(protocol=Protocol(wire=Wire.SPDY, name=name), headers=headers)


def _websocket(listed: Mapping[bytes, list[bytes]], endpoint: Endpoint) -> Accepted | Refused:
    version = b",".join(listed.get(b"sec-websocket-version", ()))
    if version != b"13":
        text = f"Sec-WebSocket-Version: {_shown(version)} is not known: expected 13"
        return Refused(status=426, text=text, headers=((b"sec-websocket-version", b"13"), *_OFFERED))
    key = b",".join(listed.get(b"sec-websocket-key", ()))
    if not _is_key(key):
        return Refused(status=400, text=f"Sec-WebSocket-Key: {_shown(key)} is not valid: expected 16 bytes in base64")
    asked, known = listed.get(b"sec-websocket-protocol", []), WEBSOCKET_PROTOCOLS[endpoint]
    name = _first_known(asked, known) if asked else ""
    if name is None:
        return Refused(status=403, text=_none_known("Sec-WebSocket-Protocol", asked, known))
    answer: Headers = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    answer = (*answer, (b"sec-websocket-accept", websocket_accept(key)))
    if name:
        answer = (*answer, (b"sec-websocket-protocol", name.encode()))
    wire = Wire.TUNNEL if name == TUNNEL else Wire.WEBSOCKET
    return Accepted(protocol=Protocol(wire=wire, name=name), headers=answer)


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except binascii.Error:
        return False


def _first_known(asked: list[bytes], known: tuple[str, ...]) -> str | None:
    return next((one for one in (_text(part) for part in asked) if one in known), None)


def _none_known(header: str, asked: list[bytes], known: tuple[str, ...]) -> str:
    return f"{header}: {_shown(b', '.join(asked))} has no protocol that is known: expected one of {', '.join(known)}"


def _shown(value: bytes) -> str:
    """A value of a stranger, cut to what a line of an answer can hold."""
    return repr(_text(value[:200]))


def _text(value: bytes) -> str:
    return value.decode("latin-1")
