"""A real registry on loopback, and images made from files of this machine, for the demonstration and the tests.

`LocalRegistry` runs Debian's `docker-registry` in a directory of its own on a free port. Images are written by plain
standard-library code (`tarfile`, `gzip`, `urllib`), which shares nothing with what is tested.
"""

import gzip
import hashlib
import io
import json
import os
import re
import select
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
import urllib.response
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

START_S = 20.0
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer as it will be pushed."""

    blob: bytes
    diff_id: str
    media_type: str = OCI_LAYER + "+gzip"

    @property
    def digest(self) -> str:
        return digest(self.blob)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """An image that is in the registry."""

    reference: str
    manifest_digest: str
    config_digest: str
    layers: tuple[Layer, ...] = field(repr=False)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pack(archive: bytes, compression: str = "gzip") -> Layer:
    """A layer from a tar archive."""
    if compression == "gzip":
        return Layer(blob=gzip.compress(archive, 1, mtime=0), diff_id=digest(archive))
    if compression == "zstd":
        import zstandard

        blob = zstandard.ZstdCompressor().compress(archive)
        return Layer(blob=blob, diff_id=digest(archive), media_type=OCI_LAYER + "+zstd")
    return Layer(blob=archive, diff_id=digest(archive), media_type=OCI_LAYER)


def archive(files: Mapping[str, bytes | str], *, mode: int = 0o644) -> bytes:
    """A tar archive: bytes make a file, a string makes a symbolic link, a name that ends with `/` a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mtime = 1_700_000_000
            info.mode = mode
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def archive_of_host(programs: Iterable[str], extra: Mapping[str, bytes | str] | None = None) -> bytes:
    """A tar archive with programs of this machine, the libraries that they need, and `extra` files."""
    files: dict[str, tuple[bytes, int]] = {}
    for program in programs:
        path = shutil.which(program) or program
        for found in [path, *_libraries(path)]:
            files[found.lstrip("/")] = (Path(found).resolve().read_bytes(), 0o755)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        directories = {str(parent) for name in [*files, *(extra or {})] for parent in Path(name).parents} - {"."}
        for name in sorted(directories | {"tmp", "etc", "proc", "sys", "dev"}):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        for name, (content, mode) in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
        for name, value in (extra or {}).items():
            info = tarfile.TarInfo(name)
            if isinstance(value, str):
                info.type, info.linkname = tarfile.SYMTYPE, value
                tar.addfile(info)
            else:
                info.size, info.mode = len(value), 0o644
                tar.addfile(info, io.BytesIO(value))
    return out.getvalue()


def busybox_archive() -> bytes:
    """A root filesystem with busybox under the names that tests use."""
    names = (
        *("sh", "cat", "echo", "sleep", "true", "false", "ls", "id", "env", "mount", "ps"),
        *("wget", "nc", "kill", "touch", "mkdir", "rm", "dd", "yes", "head", "hostname", "ip"),
    )
    extra: dict[str, bytes | str] = {f"bin/{name}": "busybox" for name in names}
    extra["etc/passwd"] = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    extra["etc/group"] = b"root:x:0:\nnogroup:x:65534:\n"
    return archive_of_host(["/bin/busybox"], extra)


def registry_program() -> str:
    """Debian calls it `docker-registry`, its authors `registry`.

    Raises:
        RuntimeError: It is not installed.
    """
    found = shutil.which("docker-registry") or shutil.which("registry")
    if found is None:
        raise RuntimeError("docker-registry is not installed")
    return found


def _libraries(program: str) -> list[str]:
    found = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return re.findall(r"(/\S+)", found.stdout.decode())


class LocalRegistry:
    """A `docker-registry` process; use it as a context manager.

    Images are pushed without TLS and credentials: to one that is to have them, by another on the same directory before.

    Args:
        directory: Where it keeps everything.
        htpasswd: Lines of a password file; with them it asks for Basic.
        tls: Certificate and key.
        client_ca: Who must have signed the certificates of clients.
        token: Its `auth.token` section; with it it asks for Bearer.
    """

    def __init__(
        self,
        directory: Path,
        *,
        htpasswd: str = "",
        tls: tuple[Path, Path] | None = None,
        client_ca: Path | None = None,
        token: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.directory = directory
        self._htpasswd = htpasswd
        self._tls = tls
        self._client_ca = client_ca
        self._token = token
        self.port = port or _free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "LocalRegistry":
        self.directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "data")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": self.host},
        }
        if self._htpasswd:
            (self.directory / "htpasswd").write_text(self._htpasswd)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(self.directory / "htpasswd")}}
        if self._tls:
            tls: dict[str, object] = {"certificate": str(self._tls[0]), "key": str(self._tls[1])}
            if self._client_ca:
                tls["clientcas"] = [str(self._client_ca)]
            config["http"] = {"addr": self.host, "tls": tls}
        if self._token:
            config["auth"] = {"token": dict(self._token)}
        path = self.directory / "config.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [registry_program(), "serve", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for whoever started it
            )
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _wait(self) -> None:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                select.select([], [], [], 0.02)
        raise RuntimeError(f"docker-registry did not start: {(self.directory / 'log').read_text()[-2000:]}")

    def push(
        self,
        name: str,
        layers: Sequence[Layer],
        *,
        tag: str = "latest",
        config: Mapping[str, object] | None = None,
        architecture: str = "",
    ) -> Pushed:
        """Put an image into the registry; `config` is the `config` member of the image configuration."""
        document = {
            "architecture": architecture or {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [],
        }
        body = json.dumps(document).encode()
        for layer in layers:
            self.push_blob(name, layer.blob)
        self.push_blob(name, body)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest(body), "size": len(body)},
            "layers": [
                {"mediaType": layer.media_type, "digest": layer.digest, "size": len(layer.blob)} for layer in layers
            ],
        }
        manifest_digest = self.push_manifest(name, json.dumps(manifest).encode(), OCI_MANIFEST, tag)
        return Pushed(
            reference=f"{self.host}/{name}:{tag}",
            manifest_digest=manifest_digest,
            config_digest=digest(body),
            layers=tuple(layers),
        )

    def push_blob(self, name: str, blob: bytes) -> str:
        """Put a blob into a repository."""
        with self._open("POST", f"/v2/{name}/blobs/uploads/", b"", {}) as answer:
            location = answer.headers["location"]
        separator = "&" if "?" in location else "?"
        url = f"{location}{separator}digest={digest(blob)}"
        self._open("PUT", url, blob, {"content-type": "application/octet-stream"}).close()
        return digest(blob)

    def push_manifest(self, name: str, body: bytes, media_type: str, tag: str) -> str:
        """Put a manifest or an index under a tag (or a digest)."""
        self._open("PUT", f"/v2/{name}/manifests/{tag}", body, {"content-type": media_type}).close()
        return digest(body)

    def _open(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> "urllib.response.addinfourl":
        if url.startswith("/"):
            url = f"http://{self.host}{url}"
        request = urllib.request.Request(url, data=body, method=method, headers=dict(headers))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=60)  # type: ignore[no-any-return]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def redis_archive() -> bytes:
    """A root filesystem with this machine's redis-server."""
    return archive_of_host(["redis-server", "redis-cli"])
