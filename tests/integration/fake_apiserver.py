"""As much of a Kubernetes API server as kubectl needs to exec, attach and port-forward: it passes bytes on to a URL.

What a real one and a kubelet do with such a request is no more: ask the runtime for an address, connect there with the
client's own upgrade headers, and copy in both directions.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import h11

READ_BYTES = 65536
CALL_S = 60.0
UPGRADE = (b"connection", b"upgrade", b"x-stream-protocol-version", b"sec-websocket-", b"origin")
Offer = Callable[[str, str, Mapping[str, list[str]]], str]
"""Gives the address of a stream, for the name of a pod, `exec` and the like, and the parameters of the request."""


class FakeApiServer:
    """Serves one namespace with pods at a loopback port.

    Args:
        pods: Each pod by its name, with the `spec.containers` that it is to have.
        offer: Asked for the address of each stream.
    """

    def __init__(self, pods: Mapping[str, list[dict[str, Any]]], offer: Offer) -> None:
        self._pods = pods
        self._offer = offer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.upgrades: list[str] = []
        """What clients have upgraded to, and the first of the protocols that they offered."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for one in self._connections:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self._connections.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                while self._serve_one(client):
                    pass
        except OSError:
            return

    def _serve_one(self, client: socket.socket) -> bool:
        """Serve one request; False when the connection is over."""
        http = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(client.recv(READ_BYTES))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                return False
        assert request is not None
        parts = urlsplit(request.target.decode())
        words = parts.path.strip("/").split("/")
        if len(words) == 7 and words[6] in ("exec", "attach", "portforward"):
            self._pass_on(client, request, self._offer(words[5], words[6], parse_qs(parts.query)))
            return False
        status, answer = self._answer(parts.path, words)
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        return True

    def _answer(self, path: str, words: list[str]) -> tuple[int, dict[str, Any]]:
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
        if path == "/api/v1":
            pods = {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get"]}
            return 200, {"kind": "APIResourceList", "groupVersion": "v1", "resources": [pods]}
        if len(words) == 6 and words[4] == "pods" and words[5] in self._pods:
            return 200, {
                "kind": "Pod",
                "apiVersion": "v1",
                "metadata": {"name": words[5], "namespace": words[3], "uid": words[5]},
                "spec": {"containers": self._pods[words[5]]},
                "status": {"phase": "Running"},
            }
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}

    def _pass_on(self, client: socket.socket, request: h11.Request, url: str) -> None:
        kept = [(name, value) for name, value in request.headers if name.startswith(UPGRADE)]
        self.upgrades.append(_upgrade(kept))
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        with socket.create_connection((parts.hostname, parts.port), timeout=CALL_S) as server:
            head = b"%s %s HTTP/1.1\r\nhost: x\r\n" % (request.method, parts.path.encode())
            server.sendall(head + b"".join(b"%s: %s\r\n" % pair for pair in kept) + b"\r\n")
            server.settimeout(None)
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _upgrade(headers: Iterable[tuple[bytes, bytes]]) -> str:
    found = dict(headers)
    offered = found.get(b"x-stream-protocol-version", found.get(b"sec-websocket-protocol", b""))
    return f"{found.get(b'upgrade', b'').decode()} {offered.decode().partition(',')[0]}"


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(READ_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
