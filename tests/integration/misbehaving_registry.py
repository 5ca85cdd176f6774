"""A registry that misbehaves on purpose, and notes what it was asked."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

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
    """An HTTP server on loopback with the content of one image; use it as a context manager."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.content: dict[str, tuple[bytes, str]] = {}
        self.sent_bytes = 0
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.registry = self  # type: ignore[attr-defined]
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> "MisbehavingRegistry":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(self, name: str, layer: Layer, tag: str = "latest") -> str:
        """Have an image of one layer; gives its reference."""
        config = json.dumps(
            {"os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}, "config": {}}
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": digest(config), "size": len(config)},
                "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": len(layer.blob)}],
            }
        ).encode()
        for body in (config, layer.blob):
            self.content[f"/v2/{name}/blobs/{digest(body)}"] = (body, "application/octet-stream")
        for word in (tag, digest(manifest)):
            self.content[f"/v2/{name}/manifests/{word}"] = (manifest, OCI_MANIFEST)
        return f"{self.host}/{name}:{tag}"
