"""Which requests become streams: what each side of an upgrade asks for and gets."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.streaming.client import agreed, upgrade_headers
from crio_core.streaming.protocol import Endpoint, Protocol, ProtocolError, Wire
from crio_core.streaming.upgrade import Accepted, Headers, Refused, decide, websocket_accept

KEY = base64.b64encode(bytes(16))
WEBSOCKET: Headers = (
    (b"connection", b"keep-alive, Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", KEY),
)
SPDY: Headers = ((b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1"))


V5 = Protocol(wire=Wire.WEBSOCKET, name="v5.channel.k8s.io")


def chosen(answer: Accepted | Refused) -> Protocol:
    assert isinstance(answer, Accepted), answer
    return answer.protocol


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("wire", Wire)
def test_client_and_server_agree(wire: Wire, endpoint: Endpoint) -> None:
    """What our client offers is taken by our server, and both then speak the same."""
    if (wire, endpoint) == (Wire.TUNNEL, Endpoint.COMMAND):
        return
    nonce = bytes(range(16))
    answer = decide(b"POST", upgrade_headers(wire, endpoint, nonce), endpoint)
    assert isinstance(answer, Accepted)
    assert agreed(wire, endpoint, nonce, answer.headers) == answer.protocol
    assert answer.protocol.wire is wire


def test_websocket_key_is_answered_as_in_the_specification() -> None:
    """RFC 6455, section 1.3, has this example."""
    assert websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("asked", "endpoint", "name"),
    [
        ([b"v4.channel.k8s.io", b"v3.channel.k8s.io"], Endpoint.COMMAND, "v4.channel.k8s.io"),
        ([b"v9.channel.k8s.io,v3.channel.k8s.io", b"v4.channel.k8s.io"], Endpoint.COMMAND, "v3.channel.k8s.io"),
        ([b" channel.k8s.io "], Endpoint.COMMAND, "channel.k8s.io"),
        ([b"portforward.k8s.io"], Endpoint.FORWARDING, "portforward.k8s.io"),
    ],
)
def test_first_known_protocol_of_the_client_is_chosen(asked: list[bytes], endpoint: Endpoint, name: str) -> None:
    """A client names them in its order, in one header or in several."""
    headers = (*SPDY, *((b"x-stream-protocol-version", one) for one in asked))
    answer = decide(b"POST", headers, endpoint)
    assert chosen(answer) == Protocol(wire=Wire.SPDY, name=name)
    assert isinstance(answer, Accepted)
    assert dict(answer.headers)[b"x-stream-protocol-version"] == name.encode()


@pytest.mark.parametrize(
    ("asked", "endpoint", "protocol"),
    [
        (
            b"v5.channel.k8s.io, v4.channel.k8s.io",
            Endpoint.COMMAND,
            Protocol(wire=Wire.WEBSOCKET, name="v5.channel.k8s.io"),
        ),
        (b"base64.channel.k8s.io", Endpoint.COMMAND, Protocol(wire=Wire.WEBSOCKET, name="base64.channel.k8s.io")),
        (b"", Endpoint.COMMAND, Protocol(wire=Wire.WEBSOCKET, name="")),
        (
            b"SPDY/3.1+portforward.k8s.io",
            Endpoint.FORWARDING,
            Protocol(wire=Wire.TUNNEL, name="SPDY/3.1+portforward.k8s.io"),
        ),
    ],
)
def test_protocol_of_a_websocket_is_chosen(asked: bytes, endpoint: Endpoint, protocol: Protocol) -> None:
    """A client that names none gets none, which means the oldest."""
    answer = decide(b"GET", (*WEBSOCKET, (b"sec-websocket-protocol", asked)), endpoint)
    assert chosen(answer) == protocol
    assert isinstance(answer, Accepted)
    assert dict(answer.headers).get(b"sec-websocket-protocol") == (protocol.name.encode() or None)


def without(headers: Headers, name: bytes) -> Headers:
    return tuple(one for one in headers if one[0] != name)


@pytest.mark.parametrize(
    ("method", "headers", "status", "text"),
    [
        (b"DELETE", SPDY, 405, "'DELETE' opens no stream"),
        (b"GET", (), 426, "Upgrade: SPDY/3.1"),
        (b"GET", without(SPDY, b"connection"), 426, "Connection: Upgrade"),
        (b"GET", ((b"connection", b"upgrade"), (b"upgrade", b"h2c")), 426, "'h2c'"),
        (b"POST", SPDY, 400, "X-Stream-Protocol-Version is missing"),
        (b"POST", (*SPDY, (b"x-stream-protocol-version", b"v9")), 403, "'v9' has no protocol that is known"),
        (b"GET", without(WEBSOCKET, b"sec-websocket-version"), 426, "expected 13"),
        (b"GET", without(WEBSOCKET, b"sec-websocket-key"), 400, "16 bytes"),
        (b"GET", (*WEBSOCKET, (b"sec-websocket-protocol", b"chat")), 403, "'chat' has no protocol that is known"),
    ],
)
def test_request_that_opens_no_stream_is_told_what_was_expected(
    method: bytes, headers: Headers, status: int, text: str
) -> None:
    """Somebody has to find out from this line alone."""
    answer = decide(method, headers, Endpoint.COMMAND)
    assert isinstance(answer, Refused)
    assert (answer.status, text in answer.text) == (status, True), answer


names = st.sampled_from(
    (
        b"connection",
        b"upgrade",
        b"x-stream-protocol-version",
        *(name for name, _ in WEBSOCKET),
        b"sec-websocket-protocol",
    )
)


@given(st.lists(st.tuples(names, st.binary(max_size=40)), max_size=8), st.sampled_from(Endpoint))
def test_any_headers_are_answered(headers: list[tuple[bytes, bytes]], endpoint: Endpoint) -> None:
    """A header can hold any bytes."""
    for base in (SPDY, WEBSOCKET):
        answer = decide(b"GET", (*base, *headers), endpoint)
        assert isinstance(answer, Accepted) or len(answer.text) < 2000


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"upgrade", b"SPDY/3.1"),),
        ((b"upgrade", b"SPDY/3.1"), (b"x-stream-protocol-version", b"v1")),
        ((b"upgrade", b"websocket"), (b"x-stream-protocol-version", b"v4.channel.k8s.io")),
    ],
)
def test_answer_to_something_else_is_refused_by_the_client(headers: Headers) -> None:
    """A proxy or another program may answer."""
    with pytest.raises(ProtocolError, match="expected"):
        agreed(Wire.SPDY, Endpoint.COMMAND, bytes(16), headers)


def test_answer_to_another_key_is_refused_by_the_client() -> None:
    """The proof shows that a WebSocket was meant."""
    headers = ((b"upgrade", b"websocket"), (b"sec-websocket-accept", websocket_accept(KEY)))
    with pytest.raises(ProtocolError, match="does not belong"):
        agreed(Wire.WEBSOCKET, Endpoint.COMMAND, b"\1" * 16, headers)
