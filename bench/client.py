"""One CRI client for every server: grpcio with the messages of the CRI, and a clock around each call."""

import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import message_factory

from crio_server.cri.v1 import api_pb2 as pb

CALL_S = 120.0
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
NS_PER_MS = 1_000_000


class Client:
    """Calls one CRI server.

    Args:
        path: Its unix socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, Callable[..., Any]] = {}
        self.open()

    def open(self) -> None:
        """Connect anew: after a restart the old connection would wait before it tries again."""
        self.close()
        limits = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            # Without this, two clients of one process share a connection, and threads then queue behind each other.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.insecure_channel(f"unix://{self._path}", options=limits)
        for service in pb.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if not method.server_streaming:
                    self._methods[method.name] = self._channel.unary_unary(
                        f"/{service.full_name}/{method.name}",
                        request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
                        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
                    )

    def call(self, method: str, request: Any, timeout_s: float = CALL_S) -> Any:
        """Call a method by its CRI name.

        Raises:
            grpc.RpcError: The server refused, or did not answer in time.
        """
        return self._methods[method](request, timeout=timeout_s)

    def timed(self, method: str, request: Any) -> tuple[Any, float]:
        """Call a method; returns the answer and the milliseconds that it took."""
        began_ns = time.perf_counter_ns()
        answer = self.call(method, request)
        return answer, (time.perf_counter_ns() - began_ns) / NS_PER_MS

    def has(self, method: str, request: Any) -> bool:
        """Whether the server implements a method."""
        try:
            self.call(method, request)
        except grpc.RpcError as error:
            return bool(error.code() is not grpc.StatusCode.UNIMPLEMENTED)
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
