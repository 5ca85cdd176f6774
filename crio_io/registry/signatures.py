"""Holds an image against a signature policy: fetches signatures and keys, and has signatures verified.

GPG signatures lie beside the registry, at the places of registries.d; `gpgv` verifies them, against a keyring of
exactly the keys that the policy names. Sigstore signatures are tags of the image's own repository; `cryptography`
verifies them. What must be signed, and by whom, is decided in `crio_core.image.policy`.
"""

import base64
import binascii
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio

from crio_core.errors import Code, OperationError
from crio_core.image import policy as rules
from crio_core.image.auth import Auth
from crio_core.image.digest import verify
from crio_core.image.lookaside import SIGNATURES_MAX, Lookasides, attachment_tag, signature_url
from crio_core.image.manifest import MANIFEST_BYTES_MAX, OCI_MANIFEST
from crio_core.image.policy import Claim, Kind, Policy, Requirement
from crio_core.image.resolved import ResolvedImage
from crio_core.values import dataclass
from crio_io.mounts import in_thread
from crio_io.registry.client import RegistryClient
from crio_io.registry.retry import RegistryError
from crio_io.registry.transport import read_bounded, to_operation_error
from crio_io.spawn import run

KEY_BYTES_MAX = 1024 * 1024
SIGNATURE_BYTES_MAX = 1024 * 1024
GPGV = "gpgv"
GPGV_S = 30.0
LOOKASIDE_S = 30.0
REASONS_MAX = 5
_STATUS = "[GNUPG:] "
_BAD_STATUSES = frozenset({"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NODATA", "UNEXPECTED"})
_ARMOR_BEGIN, _ARMOR_END = b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"-----END PGP PUBLIC KEY BLOCK-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checker:
    """Decides about pulled images.

    Args:
        client: Asks registries for attachments.
        lookasides: Where signatures are.
        auth: What may be shown to which registry.
    """

    client: RegistryClient
    lookasides: Lookasides
    auth: Auth

    async def check(self, policy: Policy, found: ResolvedImage) -> None:
        """Let an image pass, or not.

        Raises:
            OperationError: PERMISSION_DENIED, reason SIGNATURE_REJECTED, with what is missing. The message begins with
                the word by which a kubelet tells that a signature is the trouble.
        """
        scope, requirements = policy.requirements(found.reference)
        for requirement in requirements:
            reasons: list[str] = []
            match requirement.kind:
                case Kind.ACCEPT:
                    continue
                case Kind.REJECT:
                    reasons.append("the policy rejects it")
                case Kind.GPG:
                    if await self._signed_by(requirement, found, reasons):
                        continue
                case Kind.SIGSTORE:
                    if await self._sigstore_signed(requirement, found, reasons):
                        continue
            why = "; ".join(reasons[:REASONS_MAX]) or "there is no signature"
            raise OperationError(
                Code.PERMISSION_DENIED,
                "SIGNATURE_REJECTED",
                f"SignatureValidationFailed: image {found.reference} ({found.manifest_digest}) does not meet "
                f"{requirement.kind.value} of scope {scope!r}: {why}",
            )

    async def _signed_by(self, requirement: Requirement, found: ResolvedImage, reasons: list[str]) -> bool:
        keyring = b"".join(dearmored(key) for key in await _keys(requirement))
        async for signature in self._lookaside(found):
            try:
                claim = rules.parse_payload(await opened(signature, keyring), Kind.GPG)
                if _fits(claim, requirement, found, reasons):
                    return True
            except OperationError as error:
                if error.reason == "EXECUTABLE_NOT_FOUND":
                    raise
                reasons.append(error.message)
        return False

    async def _lookaside(self, found: ResolvedImage) -> AsyncIterator[bytes]:
        source = found.sources[0]
        place = self.lookasides.section(found.reference).lookaside
        for number in range(1, SIGNATURES_MAX + 1) if place else ():
            url = signature_url(place, source.reference.path, found.manifest_digest, number)
            if url.startswith("file:"):
                path = Path(unquote(urlsplit(url).path))
                signature = await in_thread(f"read signature {path}", _read_or_none, path, SIGNATURE_BYTES_MAX)
            else:
                signature = await _download(url)
            if signature is None:
                return
            yield signature

    async def _sigstore_signed(self, requirement: Requirement, found: ResolvedImage, reasons: list[str]) -> bool:
        if not self.lookasides.section(found.reference).attachments:
            reasons.append("registries.d does not say use-sigstore-attachments for it")
            return False
        keys = await _keys(requirement)
        source = found.sources[0]
        try:
            tag = attachment_tag(found.manifest_digest)
            body, _ = await self.client.document(
                source, f"manifests/{tag}", MANIFEST_BYTES_MAX, self.auth, {"accept": OCI_MANIFEST}
            )
        except RegistryError as error:
            if error.status == 404:
                return False
            raise to_operation_error(error, f"signatures of {found.reference}") from error
        for one in rules.parse_attachments(body):
            try:
                payload, _ = await self.client.document(source, f"blobs/{one.digest}", one.size_bytes, self.auth)
                verify(payload, one.digest, "signature payload")
                verify_sigstore(payload, one.signature, keys)
                claim = rules.parse_payload(payload, Kind.SIGSTORE)
                if _fits(claim, requirement, found, reasons):
                    return True
            except OperationError as error:
                reasons.append(error.message)
            except RegistryError as error:
                reasons.append(f"{error.message}")
        return False


def _fits(claim: Claim, requirement: Requirement, found: ResolvedImage, reasons: list[str]) -> bool:
    if claim.digest != found.manifest_digest:
        reasons.append(f"a signature is for {claim.digest}")
    elif not rules.accepts(requirement.identity, found.reference, claim.reference):
        reasons.append(f"a signature is for {claim.reference[:200]!r}")
    else:
        return True
    return False


# --- keys ---------------------------------------------------------------------------------------------------------


async def _keys(requirement: Requirement) -> tuple[bytes, ...]:
    keys = list(requirement.key_data)
    for name in requirement.key_paths:
        key = await in_thread(f"read key {name}", _read_or_none, Path(name), KEY_BYTES_MAX)
        if key is None:
            raise OperationError(
                Code.FAILED_PRECONDITION, "KEY_UNREADABLE", f"signature policy: key {name} is not there"
            )
        keys.append(key)
    return tuple(keys)


def _read_or_none(path: Path, bytes_max: int) -> bytes | None:
    """A file's content; None when it is not there."""
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperationError(Code.FAILED_PRECONDITION, "FILE_UNREADABLE", f"{path}: {error.strerror}") from error
    if len(content) > bytes_max:
        raise OperationError(Code.FAILED_PRECONDITION, "FILE_TOO_LARGE", f"{path}: expected at most {bytes_max} bytes")
    return content


def dearmored(key: bytes) -> bytes:
    """A GPG public key as packets: `gpgv` reads no armor (RFC 9580, section 6).

    Raises:
        OperationError: KEY_INVALID.
    """
    if key[:1] >= b"\x80":
        return key
    blocks = key.split(_ARMOR_BEGIN)[1:]
    if not blocks:
        raise OperationError(Code.FAILED_PRECONDITION, "KEY_INVALID", "signature policy: a key is no GPG public key")
    packets = []
    for block in blocks:
        text = block.partition(_ARMOR_END)[0].replace(b"\r", b"")
        lines = text.partition(b"\n\n")[2].split()
        try:
            packets.append(base64.b64decode(b"".join(line for line in lines if line[:1] != b"="), validate=True))
        except binascii.Error as error:
            raise OperationError(
                Code.FAILED_PRECONDITION, "KEY_INVALID", "signature policy: a GPG public key is damaged"
            ) from error
    return b"".join(packets)


# --- signatures ---------------------------------------------------------------------------------------------------


async def opened(signature: bytes, keyring: bytes) -> bytes:
    """What a GPG signature signs, if one of the keys made it and is good today.

    Raises:
        OperationError: SIGNATURE_INVALID; EXECUTABLE_NOT_FOUND when there is no `gpgv`.
    """
    directory = Path(await in_thread("make a directory for a signature", _scratch, signature, keyring))
    try:
        output = directory / "payload"
        done = await run(
            [
                *(GPGV, "--status-fd", "1", "--homedir", str(directory), "--keyring", str(directory / "keys")),
                *("--output", str(output), str(directory / "signature")),
            ],
            timeout_s=GPGV_S,
        )
        statuses = [
            line.removeprefix(_STATUS).split(" ")
            for line in done.stdout.decode("utf-8", "replace").splitlines()
            if line.startswith(_STATUS)
        ]
        words = [status[0] for status in statuses]
        good = done.returncode == 0 and words.count("GOODSIG") == words.count("VALIDSIG") == 1
        if not good or _BAD_STATUSES.intersection(words):
            said = ", ".join(word for word in words if word in _BAD_STATUSES) or done.stderr_text()[-200:]
            raise OperationError(
                Code.PERMISSION_DENIED, "SIGNATURE_INVALID", f"a signature is by none of the policy's keys ({said})"
            )
        payload = await in_thread("read what was signed", _read_or_none, output, rules.PAYLOAD_BYTES_MAX)
        return payload or b""
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread("remove a signature's directory", shutil.rmtree, directory, True)


def _scratch(signature: bytes, keyring: bytes) -> str:
    directory = tempfile.mkdtemp(prefix="crio-signature-")
    Path(directory, "signature").write_bytes(signature)
    Path(directory, "keys").write_bytes(keyring)
    return directory


def verify_sigstore(payload: bytes, signature: bytes, keys: Sequence[bytes]) -> None:
    """Check a sigstore signature with PEM public keys, of which one must have made it.

    Raises:
        OperationError: SIGNATURE_INVALID; KEY_INVALID for a key that is none.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    for data in keys:
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            message = "signature policy: a key is no PEM public key"
            raise OperationError(Code.FAILED_PRECONDITION, "KEY_INVALID", message) from error
        try:
            match key:
                case ec.EllipticCurvePublicKey():
                    key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
                case rsa.RSAPublicKey():
                    key.verify(signature, payload, padding.PKCS1v15(), hashes.SHA256())
                case ed25519.Ed25519PublicKey():
                    key.verify(signature, payload)
                case _:
                    continue
        except InvalidSignature:
            continue
        return
    raise OperationError(Code.PERMISSION_DENIED, "SIGNATURE_INVALID", "a signature is by none of the policy's keys")


async def _download(url: str) -> bytes | None:
    """A signature from a web server; None when it has none. Nothing of ours is shown to it."""
    import httpx

    headers: Mapping[str, str] = {"accept-encoding": "identity"}
    try:
        with anyio.fail_after(LOOKASIDE_S):
            async with httpx.AsyncClient() as client:
                response = await client.send(client.build_request("GET", url, headers=headers), stream=True)
                try:
                    if response.status_code == 404:
                        return None
                    if response.status_code != 200:
                        raise _unavailable(url, f"HTTP {response.status_code}")
                    return await read_bounded(response, SIGNATURE_BYTES_MAX, url)
                finally:
                    await response.aclose()
    except (TimeoutError, httpx.HTTPError, RegistryError) as error:
        raise _unavailable(url, str(error) or type(error).__name__) from error


def _unavailable(url: str, why: str) -> OperationError:
    return OperationError(Code.UNAVAILABLE, "SIGNATURE_UNAVAILABLE", f"signature {url}: {why}")
