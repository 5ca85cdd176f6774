"""What a pull asks of registries: what a reference means, and the bytes of its layers.

Candidates are asked in order. One that does not have an image, or does not answer, is passed over for the next; the
error is that of the first that refused for a reason, or else of the last.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import anyio

from crio_core.errors import OperationError, not_found
from crio_core.image.auth import Auth
from crio_core.image.config import parse_image_config
from crio_core.image.digest import Digest, digest_of, parse_digest, verify
from crio_core.image.manifest import (
    ACCEPTED_TYPES,
    MANIFEST_BYTES_MAX,
    Descriptor,
    Index,
    Manifest,
    parse_document,
    refuse,
)
from crio_core.image.platform import Platform, choose
from crio_core.image.resolved import Candidate, LayerDescriptor, ResolvedImage, match_layers
from crio_io.registry.blob import Fetcher, Progress, Rates
from crio_io.registry.retry import ATTEMPTS_MAX, MIRROR_ATTEMPTS_MAX, RegistryError, retrying
from crio_io.registry.slots import Slots
from crio_io.registry.transport import Transport, read_bounded, to_operation_error
from crio_io.storage.store import Store

DOCUMENT_S = 60.0
INDEX_DEPTH_MAX = 2
ANONYMOUS_AUTH = Auth()

Result = TypeVar("Result")
__all__ = ["Progress", "Rates", "RegistryClient"]


class RegistryClient:
    """Pulls from registries. One serves a whole node; `aclose` ends it.

    Args:
        certs_dirs: `certs.d` directories, first wins.
        rates: How slow a transfer may be.
        slots: How many layers are fetched at the same time.
    """

    def __init__(
        self, *, certs_dirs: tuple[Path, ...] = (), rates: Rates | None = None, slots: Slots | None = None
    ) -> None:
        self._rates = rates or Rates()
        self._transport = Transport(certs_dirs, read_timeout_s=self._rates.window_s)
        self._slots = slots or Slots()

    def reload(self, certs_dirs: tuple[Path, ...], rates: Rates) -> None:
        """Look for certificates in other directories, and be as patient as this, from now on."""
        self._rates = rates
        self._transport.certs_dirs, self._transport.read_timeout_s = certs_dirs, rates.window_s

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def resolve(
        self, candidates: Sequence[Candidate], platform: Platform, auth: Auth = ANONYMOUS_AUTH
    ) -> ResolvedImage:
        """Ask what a reference means, and read the image's documents.

        Args:
            candidates: Where to look, in order, from `crio_core.image.registries.candidates`.
            platform: What this machine runs.
            auth: What may be shown to which host.

        Raises:
            OperationError: IMAGE_NOT_FOUND, REGISTRY_*, MANIFEST_*, PLATFORM_MISMATCH and others.
        """
        return await self._first(candidates, lambda candidate: self._resolve(candidate, candidates, platform, auth))

    async def fetch_blob(
        self,
        sources: Sequence[Candidate],
        layer: LayerDescriptor,
        store: Store,
        progress: Callable[[Progress], None],
        auth: Auth = ANONYMOUS_AUTH,
    ) -> None:
        """Fetch a layer's blob into the store, and have it unpacked as it comes; `Store.apply_layer` finishes that.

        A partial blob is gone on with. A source that fails, lies or is too slow is left for the next one.

        Raises:
            OperationError: DIGEST_MISMATCH, SIZE_MISMATCH, TRANSFER_TOO_SLOW, REGISTRY_* and others.
        """
        first = sources[0]
        async with self._slots.take(first.host, str(first.reference), f"layer {layer.diff_id}") as slot:
            fetcher = Fetcher(self._transport, layer, store, progress, self._rates, slot)
            try:
                await fetcher.prepare()
                await self._first(sources, lambda source: fetcher.fetch(source, auth.for_candidate(source)))
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await store.stop_unpacking(layer.diff_id)
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    await fetcher.close()

    async def _first(self, candidates: Sequence[Candidate], ask: Callable[[Candidate], Awaitable[Result]]) -> Result:
        """The first answer that is one; else the error of the first candidate that knew why, or of the last."""
        failure: OperationError | None = None
        for candidate in candidates:
            what = str(candidate.reference)
            try:
                return await ask(candidate)
            except RegistryError as error:
                found = to_operation_error(error, what)
            except OperationError as error:
                found = error
            if failure is None or failure.reason in ("IMAGE_NOT_FOUND", "REGISTRY_UNREACHABLE", "REGISTRY_TIMEOUT"):
                failure = found
        if failure is None:
            raise not_found("image", "without a place to look for it")
        raise failure

    async def _resolve(
        self, candidate: Candidate, candidates: Sequence[Candidate], platform: Platform, auth: Auth
    ) -> ResolvedImage:
        reference = candidate.reference
        wanted = str(reference.digest) if reference.digest else reference.tag
        body, document, digest = await self._manifest(candidate, wanted, reference.digest, auth)
        repo_digest, index, index_digest = digest, b"", None
        for _ in range(INDEX_DEPTH_MAX):
            if isinstance(document, Manifest):
                break
            index, index_digest = body, digest
            entry = _choose(document, platform, candidate)
            body, document, digest = await self._manifest(candidate, str(entry.digest), entry.digest, auth)
            if len(body) != entry.size_bytes:
                raise refuse("SIZE_MISMATCH", f"manifest {entry.digest} has {len(body)} bytes, not {entry.size_bytes}")
        if not isinstance(document, Manifest):
            raise refuse("MANIFEST_INVALID", f"indexes are nested more than {INDEX_DEPTH_MAX} deep")
        config = await self.document(candidate, f"blobs/{document.config.digest}", document.config.size_bytes, auth)
        verify(config[0], document.config.digest, f"{reference}: configuration")
        image_config = parse_image_config(config[0])
        layers = match_layers(document, image_config, platform)
        others = tuple(other for other in candidates if other != candidate and other.reference.name == reference.name)
        return ResolvedImage(
            reference=reference,
            repo_digest=repo_digest,
            manifest_digest=digest,
            manifest_media_type=document.media_type,
            config_digest=document.config.digest,
            config=config[0],
            image_config=image_config,
            manifest=body,
            index=index,
            index_digest=index_digest,
            layers=layers,
            sources=(candidate, *others),
        )

    async def _manifest(
        self, candidate: Candidate, wanted: str, expected: Digest | None, auth: Auth
    ) -> tuple[bytes, Manifest | Index, Digest]:
        accept = {"accept": ", ".join(ACCEPTED_TYPES)}
        body, headers = await self.document(candidate, f"manifests/{wanted}", MANIFEST_BYTES_MAX, auth, accept)
        if expected is not None:
            verify(body, expected, f"{candidate.reference}: manifest")
        elif stated := headers.get("docker-content-digest"):
            expected = parse_digest(stated, f"{candidate.host}: Docker-Content-Digest")
            verify(body, expected, f"{candidate.reference}: manifest")
        return body, parse_document(body, headers.get("content-type", "")), expected or digest_of(body)

    async def document(
        self, candidate: Candidate, path: str, bytes_max: int, auth: Auth, headers: dict[str, str] | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """A small document of a candidate's repository, not verified, and the headers that it came with.

        Raises:
            RegistryError: It could not be had.
        """
        credentials = auth.for_candidate(candidate)

        async def once() -> tuple[bytes, dict[str, str]]:
            try:
                with anyio.fail_after(DOCUMENT_S):
                    async with self._transport.get(candidate, credentials, path, headers or {}) as response:
                        body = await read_bounded(response, bytes_max, f"{candidate.host}: {path}")
                        return body, dict(response.headers)
            except TimeoutError as error:
                message = f"{candidate.host}: {path} took more than {DOCUMENT_S:g} s"
                raise RegistryError(reason="REGISTRY_TIMEOUT", message=message) from error

        return await retrying(once, MIRROR_ATTEMPTS_MAX if candidate.is_mirror else ATTEMPTS_MAX)


def _choose(index: Index, platform: Platform, candidate: Candidate) -> Descriptor:
    entry = choose(index.entries, platform)
    if entry is None:
        offered = ", ".join(sorted({str(found.platform) for found in index.entries if found.platform}))[:500]
        message = f"{candidate.reference}: nothing for {platform}; it is offered for {offered or 'no platform'}"
        raise refuse("PLATFORM_MISMATCH", message)
    return entry
