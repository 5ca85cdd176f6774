"""The answer of a unary call in one piece: headers, message and trailers, as bytes that hardly differ.

h2 and grpclib own every connection, and send what is unusual: errors, streams of messages, answers beyond what the peer
takes now. But they build three frames and two header blocks for each answer, and nearly all answers are the same OK.
Here these are constants. Their fields are literals that no side puts into its table (RFC 7541, 6.2.2), so what h2 has
in its encoder stays right.

What is kept in h2's books, as it would do itself: both windows for sending, and the stream, which is over.

This relies on what is private in h2 and grpclib; `tests/property/test_unary.py` compares each with the libraries alone.
"""

import struct
from typing import Any

from grpclib.server import Stream
from h2.connection import ConnectionState, H2Connection
from h2.stream import StreamInputs, StreamState

from crio_server.gathering import GatheringTransport

FRAME_HEAD = struct.Struct(">HBBBL")
"""Length (16 and 8 bits), type, flags, stream (RFC 9113, 4.1)."""
DATA, HEADERS, WINDOW_UPDATE = 0x0, 0x1, 0x8
END_STREAM, END_HEADERS = 0x1, 0x4
MESSAGE_HEAD_BYTES = 5
"""Of gRPC: whether the message is compressed, and its length."""
_MESSAGE_HEAD = struct.Struct(">BL")


def _literal(name: bytes, value: bytes) -> bytes:
    """A field that is put into no table; both are shorter than 127 bytes."""
    return b"\x00%c%b%c%b" % (len(name), name, len(value), value)


def frame_head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The first nine bytes of a frame."""
    return FRAME_HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


_OK_200 = b"\x88"
"""`:status: 200`, in the static table."""
_HEADERS = _OK_200 + _literal(b"content-type", b"application/grpc+proto")
_TRAILERS = _literal(b"grpc-status", b"0")


def answer_frames(stream_id: int, body: bytes, frame_bytes_max: int) -> bytes:
    """The frames of a whole OK answer.

    Args:
        stream_id: The call's.
        body: The serialized message.
        frame_bytes_max: The longest payload that the peer takes.
    """
    message = _MESSAGE_HEAD.pack(0, len(body)) + body
    parts = [frame_head(len(_HEADERS), HEADERS, END_HEADERS, stream_id), _HEADERS]
    for start in range(0, len(message), frame_bytes_max):
        part = message[start : start + frame_bytes_max]
        parts += (frame_head(len(part), DATA, 0, stream_id), part)
    parts += (frame_head(len(_TRAILERS), HEADERS, END_HEADERS | END_STREAM, stream_id), _TRAILERS)
    return b"".join(parts)


def send_answer(stream: Stream[Any, Any], body: bytes) -> bool:
    """Send the whole OK answer of a call whose request has ended; False if the library has to, and nothing was done.

    Args:
        stream: Nothing was sent on it.
        body: The serialized message.
    """
    call = stream._stream
    connection, h2, writer = call.connection, call._h2_connection, call._transport
    if not isinstance(writer, GatheringTransport) or writer.is_closing() or call.id is None:
        return False
    h2_stream = h2.streams.get(call.id)
    size = MESSAGE_HEAD_BYTES + len(body)
    if (
        h2_stream is None
        or h2_stream.state_machine.state is not StreamState.HALF_CLOSED_REMOTE
        or h2_stream.state_machine.headers_sent
        or size > h2_stream.outbound_flow_control_window
        or not may_send(h2, size)
        or not connection.write_ready.is_set()
    ):
        return False
    h2.outbound_flow_control_window -= size
    h2_stream.outbound_flow_control_window -= size
    h2_stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
    writer.write_now(answer_frames(call.id, body, h2.max_outbound_frame_size))
    connection.data_send_process()
    # So that grpclib, when the handler returns, sends no trailers of its own.
    stream._send_initial_metadata_done = stream._send_message_done = stream._send_trailing_metadata_done = True
    return True


def may_send(h2: H2Connection, size: int) -> bool:
    """Whether the connection lets us send `size` bytes of data now, and no header block has to come from h2 first."""
    return (
        size <= h2.outbound_flow_control_window
        and h2.state_machine.state is ConnectionState.SERVER_OPEN
        and not h2.encoder.table_size_changes  # The peer wants to be told in the next block (RFC 7541, 4.2).
    )
