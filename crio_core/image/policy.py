"""Which images may be pulled: containers-policy.json(5).

A policy names requirements by scope; those of the most precise scope that fits a reference must all be met. What a
requirement means for an image is decided here, from bytes that others fetch: nothing in a signature is believed before
a key that the policy names has vouched for it. A member that is not known makes the whole policy invalid, since what it
was meant to restrict is not known either.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from crio_core.errors import Code, OperationError
from crio_core.image.digest import Digest, parse_digest
from crio_core.image.reference import Reference, parse_reference
from crio_core.values import dataclass

POLICY_BYTES_MAX = 4 * 1024 * 1024
PAYLOAD_BYTES_MAX = 1024 * 1024
SCOPES_MAX = 10_000
REQUIREMENTS_MAX = 64
KEYS_MAX = 64
TRANSPORT = "docker"
GPG_PAYLOAD = "atomic container signature"
SIGSTORE_PAYLOAD = "cosign container image signature"
_WILDCARD = re.compile(r"\*\.[a-zA-Z0-9.-]+", re.ASCII)


class Kind(Enum):
    """What a requirement demands."""

    ACCEPT = "insecureAcceptAnything"
    REJECT = "reject"
    GPG = "signedBy"
    SIGSTORE = "sigstoreSigned"


class Match(Enum):
    """How the reference in a signature must relate to the one that is pulled."""

    EXACT = "matchExact"
    DIGEST_OR_EXACT = "matchRepoDigestOrExact"
    REPOSITORY = "matchRepository"
    EXACT_REFERENCE = "exactReference"
    EXACT_REPOSITORY = "exactRepository"
    REMAP = "remapIdentity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which references a signature may be for; `reference`, or `prefix` and `signed_prefix`, as the match needs."""

    match: Match = Match.DIGEST_OR_EXACT
    reference: str = ""
    prefix: str = ""
    signed_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One demand. Keys are given as files or in the policy itself; any of them may have signed."""

    kind: Kind
    key_paths: tuple[str, ...] = ()
    key_data: tuple[bytes, ...] = ()
    identity: Identity = Identity()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A whole policy; `scopes` are those of the docker transport, the empty one its default."""

    default: tuple[Requirement, ...]
    scopes: Mapping[str, tuple[Requirement, ...]]

    def requirements(self, reference: Reference) -> tuple[str, tuple[Requirement, ...]]:
        """The most precise scope for a fully qualified reference, and its requirements."""
        for scope in scopes_of(reference):
            if scope in self.scopes:
                return scope, self.scopes[scope]
        return "default", self.default

    def accepts_anything(self, reference: Reference) -> bool:
        """Whether an image of this name needs no signature at all."""
        return all(one.kind is Kind.ACCEPT for one in self.requirements(reference)[1])


ACCEPT_ANYTHING = Policy(default=(Requirement(kind=Kind.ACCEPT),), scopes={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a verified signature says: this reference is the manifest with this digest."""

    reference: str
    digest: Digest


def scopes_of(reference: Reference) -> tuple[str, ...]:
    """Scopes for a reference, most precise first: itself, its repository and namespaces, its host, wildcards, all."""
    exact = str(replace(reference, tag="") if reference.digest else reference.tagged())
    parts = reference.name.split("/")
    names = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    host = reference.domain.partition(":")[0]
    labels = host.split(".")
    wildcards = [f"*.{'.'.join(labels[count:])}" for count in range(1, len(labels))]
    return (exact, *names, *wildcards, "")


# --- reading ------------------------------------------------------------------------------------------------------


def parse_policy(name: str, data: bytes) -> Policy:
    """Read a policy file.

    Args:
        name: Its path, for messages.
        data: Its content.

    Raises:
        OperationError: FAILED_PRECONDITION, reason POLICY_INVALID, naming the member.
    """
    reader = _Reader(name)
    if len(data) > POLICY_BYTES_MAX:
        raise reader.bad("the file", f"at most {POLICY_BYTES_MAX} bytes")
    try:
        document = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise reader.bad("the file", f"JSON without repeated members ({error})"[:200]) from error
    reader.members(document, "the file", {"default", "transports"})
    if "default" not in document:
        raise reader.bad("default", "a list of requirements")
    transports = document.get("transports", {})
    if not isinstance(transports, dict):
        raise reader.bad("transports", "an object")
    scopes: dict[str, tuple[Requirement, ...]] = {}
    docker = transports.get(TRANSPORT, {})
    if not isinstance(docker, dict) or len(docker) > SCOPES_MAX:
        raise reader.bad(f"transports.{TRANSPORT}", f"an object of at most {SCOPES_MAX} scopes")
    for scope, requirements in docker.items():
        if "*" in scope and not _WILDCARD.fullmatch(scope):
            raise reader.bad(f"transports.{TRANSPORT}.{scope}", "a scope, with '*.' at its beginning only")
        scopes[scope] = reader.requirements(f"transports.{TRANSPORT}.{scope}", requirements)
    return Policy(default=reader.requirements("default", document["default"]), scopes=scopes)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member appears twice")
    return found


class _Reader:
    """Reads the parts of one policy; `name` is its file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def bad(self, member: str, expected: str) -> OperationError:
        message = f"signature policy {self._name}: {member}: expected {expected}"
        return OperationError(Code.FAILED_PRECONDITION, "POLICY_INVALID", message)

    def members(self, value: object, where: str, known: set[str]) -> Mapping[str, Any]:
        """The object `value`, which has no members but the known ones."""
        if not isinstance(value, dict):
            raise self.bad(where, "an object")
        for member in value:
            if member not in known:
                raise self.bad(f"{where}: {member[:80]}", f"one of {', '.join(sorted(known))}")
        return value

    def requirements(self, where: str, value: object) -> tuple[Requirement, ...]:
        if not isinstance(value, list) or not 0 < len(value) <= REQUIREMENTS_MAX:
            raise self.bad(where, f"a list of 1 to {REQUIREMENTS_MAX} requirements")
        return tuple(self._requirement(f"{where}[{index}]", one) for index, one in enumerate(value))

    def _requirement(self, where: str, value: object) -> Requirement:
        if not isinstance(value, dict):
            raise self.bad(where, "an object")
        try:
            kind = Kind(value.get("type"))
        except ValueError:
            raise self.bad(f"{where}.type", f"one of {', '.join(one.value for one in Kind)}") from None
        if kind in (Kind.ACCEPT, Kind.REJECT):
            self.members(value, where, {"type"})
            return Requirement(kind=kind)
        known = {"type", "signedIdentity", "keyPath", "keyPaths", "keyData"}
        if kind is Kind.GPG:
            self.members(value, where, known | {"keyType"})
            if value.get("keyType") != "GPGKeys":
                raise self.bad(f"{where}.keyType", "'GPGKeys', the only kind that is implemented")
        else:
            self.members(value, where, known | {"keyDatas"})
        paths = [*self._strings(where, value, "keyPath"), *self._strings(where, value, "keyPaths")]
        data = [*self._strings(where, value, "keyData"), *self._strings(where, value, "keyDatas")]
        if sum(member in value for member in ("keyPath", "keyPaths", "keyData", "keyDatas")) != 1:
            raise self.bad(where, "exactly one of keyPath, keyPaths, keyData (and keyDatas for sigstoreSigned)")
        if any(not path.startswith("/") for path in paths):
            raise self.bad(f"{where}.keyPath", "absolute paths")
        return Requirement(
            kind=kind,
            key_paths=tuple(paths),
            key_data=tuple(self._base64(where, one) for one in data),
            identity=self._identity(f"{where}.signedIdentity", value.get("signedIdentity")),
        )

    def _strings(self, where: str, value: Mapping[str, Any], member: str) -> list[str]:
        if member not in value:
            return []
        found = value[member]
        if not member.endswith("s"):
            found = [found]
        if not isinstance(found, list) or not 0 < len(found) <= KEYS_MAX:
            raise self.bad(f"{where}.{member}", f"a list of 1 to {KEYS_MAX} strings")
        if any(not isinstance(one, str) or not one or "\0" in one for one in found):
            raise self.bad(f"{where}.{member}", "strings that are not empty")
        return found

    def _base64(self, where: str, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.bad(f"{where}.keyData", "base64") from error

    def _identity(self, where: str, value: object) -> Identity:
        if value is None:
            return Identity()
        if not isinstance(value, dict):
            raise self.bad(where, "an object")
        try:
            match = Match(value.get("type"))
        except ValueError:
            raise self.bad(f"{where}.type", f"one of {', '.join(one.value for one in Match)}") from None
        needs = {
            Match.EXACT_REFERENCE: ("dockerReference",),
            Match.EXACT_REPOSITORY: ("dockerRepository",),
            Match.REMAP: ("prefix", "signedPrefix"),
        }.get(match, ())
        self.members(value, where, {"type", *needs})
        for member in needs:
            if not isinstance(value.get(member), str) or not value[member]:
                raise self.bad(f"{where}.{member}", "a string that is not empty")
        return Identity(
            match=match,
            reference=str(value.get("dockerReference", value.get("dockerRepository", ""))),
            prefix=value.get("prefix", ""),
            signed_prefix=value.get("signedPrefix", ""),
        )


# --- deciding -----------------------------------------------------------------------------------------------------


def parse_payload(payload: bytes, kind: Kind) -> Claim:
    """Read what was signed, once it is known who signed it (containers-signature(5), the simple signing format).

    Raises:
        OperationError: SIGNATURE_INVALID.
    """
    wanted = GPG_PAYLOAD if kind is Kind.GPG else SIGSTORE_PAYLOAD
    try:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"more than {PAYLOAD_BYTES_MAX} bytes")
        document = json.loads(payload, object_pairs_hook=_unique)
        critical = document["critical"]
        reference = critical["identity"]["docker-reference"]
        if critical["type"] != wanted or not isinstance(reference, str):
            raise ValueError(f"its type is not {wanted!r}")
        known = {"type", "identity", "image"}
        if set(critical) != known or set(document) - {"critical", "optional"}:
            raise ValueError("it has members that nobody knows")
        digest = parse_digest(critical["image"]["docker-manifest-digest"], "signature: docker-manifest-digest")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"what was signed is not a statement about an image: {error}"[:300]
        raise OperationError(Code.PERMISSION_DENIED, "SIGNATURE_INVALID", message) from error
    return Claim(reference=reference, digest=digest)


def accepts(identity: Identity, intended: Reference, signed: str) -> bool:
    """Whether a signature for `signed` vouches for what was asked for as `intended`, a fully qualified reference."""
    try:
        found = parse_reference(signed, "signature: docker-reference")
    except OperationError:
        return False
    if found.is_short:
        return False
    wanted = intended.tagged()
    match identity.match:
        case Match.EXACT:
            return not wanted.digest and bool(wanted.tag) and str(found) == str(wanted)
        case Match.DIGEST_OR_EXACT:
            return _digest_or_exact(wanted, found)
        case Match.REPOSITORY:
            return found.name == wanted.name
        case Match.EXACT_REFERENCE:
            return str(found) == identity.reference
        case Match.EXACT_REPOSITORY:
            return found.name == identity.reference
        case Match.REMAP:
            mapped = _remapped(identity, wanted)
            return mapped is not None and _digest_or_exact(mapped, found)


def _digest_or_exact(wanted: Reference, found: Reference) -> bool:
    if wanted.digest:
        return found.name == wanted.name
    return str(found) == str(wanted)


def _remapped(identity: Identity, wanted: Reference) -> Reference | None:
    """The reference with `signed_prefix` in place of `prefix`; unchanged when it has another prefix (remapIdentity)."""
    text = str(wanted)
    rest = text.removeprefix(identity.prefix)
    if rest == text or (rest and rest[0] not in "/:@"):
        return wanted
    if rest[:1] in (":", "@") and "/" not in identity.prefix:
        return wanted  # a port is no tag: the prefix is not a host of this name
    try:
        return parse_reference(identity.signed_prefix + rest, "signedPrefix")
    except OperationError:
        return None


# --- sigstore attachments -----------------------------------------------------------------------------------------

ATTACHMENT_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ATTACHMENT_KEY = "dev.cosignproject.cosign/signature"
ATTACHMENTS_MAX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One sigstore signature that a registry holds: the blob that was signed, and the signature itself."""

    digest: Digest
    size_bytes: int
    signature: bytes


def parse_attachments(body: bytes) -> tuple[Attachment, ...]:
    """Read the manifest that a registry has under `attachment_tag`; entries that are no signatures are left out.

    Raises:
        OperationError: SIGNATURE_INVALID.
    """
    try:
        layers = json.loads(body, object_pairs_hook=_unique)["layers"]
        if len(layers) > ATTACHMENTS_MAX:
            raise ValueError(f"more than {ATTACHMENTS_MAX} entries")
        found = []
        for layer in layers:
            if layer["mediaType"] != ATTACHMENT_TYPE or ATTACHMENT_KEY not in layer.get("annotations", {}):
                continue
            if not isinstance(layer["size"], int) or not 0 < layer["size"] <= PAYLOAD_BYTES_MAX:
                raise ValueError("the size of an entry")
            digest = parse_digest(layer["digest"], "signature manifest: digest")
            signature = base64.b64decode(layer["annotations"][ATTACHMENT_KEY], validate=True)
            found.append(Attachment(digest=digest, size_bytes=layer["size"], signature=signature))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"the registry's manifest of signatures cannot be read: {error!r}"[:300]
        raise OperationError(Code.PERMISSION_DENIED, "SIGNATURE_INVALID", message) from error
    return tuple(found)
