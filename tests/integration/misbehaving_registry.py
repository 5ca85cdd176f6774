"""A registry that misbehaves on purpose, and notes what it was asked."""

import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.registry_fixture import OCI_CONFIG, OCI_MANIFEST, Layer, digest

Answer = Callable[["Handler"], bool]
"""Answers a request itself and gives True, or gives False to leave it to the honest registry behind."""


class Handler(BaseHTTPRequestHandler):
    """One request; `server.registry` is whose."""

    protocol_version = "HTTP/1.1"
    timeout = 20

    @property
    def registry(self) -> "MisbehavingRegistry":
        return self.server.registry  # type: ignore[attr-defined,no-any-return]

    def handle(self) -> None:
        if self.registry.mute_to_tls and self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
            self.rfile.read()  # Until the client gives up.
        else:
            super().handle()

    def do_GET(self) -> None:
        registry = self.registry
        registry.requests.append((self.path, dict(self.headers.items())))
        for answer in registry.answers:
            if answer(self):
                return
        self.honest()

    do_POST = do_GET

    def honest(self) -> None:
        """Answer as a registry should, with ranges."""
        found = self.registry.content.get(self.path)
        if found is None:
            self.reply(404, b"{}")
            return
        body, media_type = found
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if ranged and 0 < int(ranged[1]) < len(body):
            start = int(ranged[1])
            headers = {"content-range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            self.reply(206, body[start:], headers)
        else:
            self.reply(200, body, {"content-type": media_type})

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, length: int = -1) -> None:
        """Send an answer, which may lie about its length."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(length if length >= 0 else len(body)))
        self.end_headers()
        self.send(body)

    def send(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
            self.registry.sent_bytes += len(body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests look at `requests`."""


class MisbehavingRegistry:
    """An HTTP server on loopback with the content of one image; use it as a context manager.

    With `mute_to_tls` it says nothing to a client that begins with TLS.
    """

    def __init__(self, *answers: Answer, tls: tuple[Path, Path] | None = None, mute_to_tls: bool = False) -> None:
        self.answers = answers
        self.mute_to_tls = mute_to_tls
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.content: dict[str, tuple[bytes, str]] = {}
        self.sent_bytes = 0
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.registry = self  # type: ignore[attr-defined]
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # The handshake is the handler's, so that a client that refuses the certificate holds up nobody.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(self, name: str, *layers: Layer, tag: str = "latest", diff_ids: tuple[str, ...] = ()) -> str:
        """Have an image of these layers; gives its reference. Other `diff_ids` than theirs are a lie."""
        stated = list(diff_ids) or [layer.diff_id for layer in layers]
        config = json.dumps(
            {"os": "linux", "rootfs": {"type": "layers", "diff_ids": stated}, "config": {}, "author": name}
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": digest(config), "size": len(config)},
                "layers": [
                    {"mediaType": layer.media_type, "digest": layer.digest, "size": len(layer.blob)} for layer in layers
                ],
            }
        ).encode()
        for body in (config, *(layer.blob for layer in layers)):
            self.content[f"/v2/{name}/blobs/{digest(body)}"] = (body, "application/octet-stream")
        for word in (tag, digest(manifest)):
            self.content[f"/v2/{name}/manifests/{word}"] = (manifest, OCI_MANIFEST)
        return f"{self.host}/{name}:{tag}"
