"""Fetching one blob: streamed to the store's file, hashed on the way, resumed where it stopped.

What came so far is kept through every failure but a wrong digest, also when the server is killed: the next fetch hashes
the partial file again and asks for the rest (R12). Each piece is reported to the unpacking process as it is written.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from crio_core.errors import Code, OperationError
from crio_core.image.auth import Credentials
from crio_core.image.digest import Digest
from crio_core.image.resolved import Candidate, LayerDescriptor
from crio_core.values import dataclass
from crio_io.mounts import in_thread
from crio_io.registry.retry import ATTEMPTS_MAX, MIRROR_ATTEMPTS_MAX, RegistryError, backoff_s
from crio_io.registry.slots import Slot
from crio_io.registry.transport import Transport, body_of
from crio_io.storage.store import Store, disk_failed
from crio_io.storage.unpack import Unpacking

if TYPE_CHECKING:
    import httpx

BATCH_BYTES = 1024 * 1024
RESUMES_MAX = 64
MIN_BYTES_PER_S = 8 * 1024
"""Of one layer: what a bad line still gives to each of several."""
RATE_WINDOW_S = 30.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How slow a transfer may be: fewer than `min_bytes_per_s` over `window_s` is a failure (R13)."""

    min_bytes_per_s: int = MIN_BYTES_PER_S
    window_s: float = RATE_WINDOW_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a layer's blob has come."""

    digest: Digest
    received_bytes: int
    total_bytes: int
    host: str
    bytes_per_s: float
    """Since this transfer began."""


class Fetcher:
    """One blob on its way. `prepare`, then `fetch` from one source after another until one succeeds, then `close`."""

    def __init__(
        self,
        transport: Transport,
        layer: LayerDescriptor,
        store: Store,
        progress: Callable[[Progress], None],
        rates: Rates,
        slot: Slot,
    ) -> None:
        self._transport = transport
        self._layer = layer
        self._store = store
        self._progress = progress
        self._rates = rates
        self._slot = slot
        self._hash = hashlib.new(layer.digest.algorithm)
        self._fd = -1
        self._written_bytes = 0
        self._inherited = False
        self._began_s, self._began_bytes = time.monotonic(), 0
        self._unpacking: Unpacking | None = None

    async def prepare(self) -> None:
        """Open the blob's file, hash what an earlier fetch left in it, and start to unpack."""
        try:
            await in_thread(f"open blob {self._layer.digest}", self._open)
        except OSError as error:
            raise disk_failed(f"blob {self._layer.digest}", error) from error
        await self._start_unpacking()

    async def close(self) -> None:
        """Let go of the file; the bytes stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def fetch(self, source: Candidate, credentials: Credentials) -> None:
        """Get the rest from one source.

        Raises:
            RegistryError: The source did not give it.
            OperationError: DIGEST_MISMATCH: the source gave something else. NO_SPACE: the disk is full.
        """
        attempts_max = MIRROR_ATTEMPTS_MAX if source.is_mirror else ATTEMPTS_MAX
        failures = 0
        self._inherited = self._written_bytes > 0
        for _ in range(RESUMES_MAX):
            before_bytes = self._written_bytes
            try:
                if self._written_bytes < self._layer.size_bytes:
                    await self._transfer(source, credentials)
                if await self._is_right(source):
                    return
                continue
            except RegistryError as error:
                if error.status == 416:
                    await self._restart()
                elif not error.retryable:
                    raise
                failures = failures + 1 if self._written_bytes <= before_bytes else 0
                if failures >= attempts_max:
                    raise
                if failures:
                    await anyio.sleep(backoff_s(failures, error.retry_after_s))
        message = f"{source.host}: {self._layer.digest} was interrupted more than {RESUMES_MAX} times"
        raise RegistryError(reason="REGISTRY_UNRELIABLE", message=message)

    async def _transfer(self, source: Candidate, credentials: Credentials) -> None:
        import httpx

        headers = {"range": f"bytes={self._written_bytes}-"} if self._written_bytes else {}
        path = f"blobs/{self._layer.digest}"
        async with self._transport.get(source, credentials, path, headers) as response:
            await self._check_headers(response, source)
            self._began_s, self._began_bytes = time.monotonic(), self._written_bytes
            try:
                await self._receive(response, source)
            except httpx.ReadTimeout as error:
                raise self._too_slow(source, 0.0) from error
        if self._written_bytes < self._layer.size_bytes:
            message = f"{source.host}: {path} ended after {self._written_bytes} of {self._layer.size_bytes} bytes"
            raise RegistryError(reason="TRANSFER_INTERRUPTED", message=message, retryable=True)

    async def _check_headers(self, response: "httpx.Response", source: Candidate) -> None:
        """Know where the body begins, and refuse one that says beforehand that its size is wrong."""
        if response.status_code == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            total = str(self._layer.size_bytes)
            if not found or int(found[1]) != self._written_bytes or found[3] not in ("*", total):
                stated = response.headers.get("content-range", "")[:100]
                raise self._wrong(source, f"answered with the range {stated!r}, not from {self._written_bytes}")
        elif self._written_bytes:
            await self._restart()
        length = response.headers.get("content-length", "")
        expected = self._layer.size_bytes - self._written_bytes
        if length.isascii() and length.isdigit() and int(length) != expected:
            raise self._wrong(source, f"sends {int(length)} bytes, {expected} are expected")

    async def _receive(self, response: "httpx.Response", source: Candidate) -> None:
        pending: list[bytes] = []
        pending_bytes = 0
        window_start_s, window_bytes = time.monotonic(), 0
        try:
            async with body_of(response) as pieces:
                async for part in pieces:
                    pending.append(part)
                    pending_bytes += len(part)
                    window_bytes += len(part)
                    self._slot.received_bytes += len(part)
                    if self._written_bytes + pending_bytes > self._layer.size_bytes:
                        pending.clear()
                        raise self._wrong(source, f"sends more than the {self._layer.size_bytes} bytes of the blob")
                    if pending_bytes >= BATCH_BYTES:
                        flush_start_s = time.monotonic()
                        batch, pending, pending_bytes = pending, [], 0
                        await self._write(batch, source)
                        window_start_s += time.monotonic() - flush_start_s  # the disk's time is not the network's
                    elapsed_s = time.monotonic() - window_start_s
                    if elapsed_s >= self._rates.window_s:
                        if window_bytes < self._rates.min_bytes_per_s * elapsed_s:
                            raise self._too_slow(source, window_bytes / elapsed_s)
                        window_start_s, window_bytes = time.monotonic(), 0
        finally:
            with anyio.CancelScope(shield=True):
                await self._write(pending, source)

    async def _write(self, parts: list[bytes], source: Candidate) -> None:
        if not parts:
            return
        data = b"".join(parts)
        try:
            await in_thread(f"write blob {self._layer.digest}", self._append, data)
        except OSError as error:
            raise disk_failed(f"blob {self._layer.digest}", error) from error
        if self._unpacking is not None and self._written_bytes < self._layer.size_bytes:
            self._unpacking.available(self._written_bytes)
        self._progress(
            Progress(
                digest=self._layer.digest,
                received_bytes=self._written_bytes,
                total_bytes=self._layer.size_bytes,
                host=source.host,
                bytes_per_s=(self._written_bytes - self._began_bytes) / max(time.monotonic() - self._began_s, 0.001),
            )
        )

    async def _is_right(self, source: Candidate) -> bool:
        """Check the digest of the whole blob; one that another source began may be begun anew."""
        found = self._hash.hexdigest()
        if found == self._layer.digest.hex:
            if self._unpacking is not None:
                self._unpacking.available(self._layer.size_bytes)
            return True
        inherited = self._inherited
        await self._restart()
        if inherited:
            return False
        message = f"{source.host}: blob {self._layer.digest}: what was sent has {self._layer.digest.algorithm}:{found}"
        raise OperationError(Code.DATA_LOSS, "DIGEST_MISMATCH", message)

    async def _restart(self) -> None:
        self._written_bytes = 0
        self._inherited = False
        self._hash = hashlib.new(self._layer.digest.algorithm)
        await self._store.stop_unpacking(self._layer.diff_id)
        await in_thread(f"truncate blob {self._layer.digest}", os.ftruncate, self._fd, 0)
        await self._start_unpacking()

    async def _start_unpacking(self) -> None:
        self._unpacking = await self._store.start_unpacking(self._layer)
        if self._unpacking is not None and self._written_bytes:
            self._unpacking.available(min(self._written_bytes, self._layer.size_bytes - 1))

    def _open(self) -> None:
        path = self._store.blob_path(self._layer)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes > self._layer.size_bytes:
            os.ftruncate(self._fd, 0)
            size_bytes = 0
        while self._written_bytes < size_bytes:
            data = os.pread(self._fd, BATCH_BYTES, self._written_bytes)
            if not data:
                break
            self._hash.update(data)
            self._written_bytes += len(data)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, self._written_bytes)
            self._hash.update(view[:count])  # Only what is written: the disk may be full after half of it.
            self._written_bytes += count
            view = view[count:]

    def _wrong(self, source: Candidate, what: str) -> RegistryError:
        return RegistryError(reason="SIZE_MISMATCH", message=f"{source.host}: blob {self._layer.digest}: {what}")

    def _too_slow(self, source: Candidate, bytes_per_s: float) -> RegistryError:
        return RegistryError(
            reason="TRANSFER_TOO_SLOW",
            message=f"{source.host}: blob {self._layer.digest}: {bytes_per_s:.0f} bytes/s over "
            f"{self._rates.window_s:g} s, at least {self._rates.min_bytes_per_s} are needed",
        )
