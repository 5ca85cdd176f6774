"""Where signatures of images are kept: containers-registries.d(5).

The files are read by others; here their sections are merged, and the one for an image chosen: the most precise scope
alone counts. A section may name a place beside the registry (`lookaside`) and say whether the registry itself holds
sigstore signatures, as tags of the same repository.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from crio_core.errors import Code, OperationError
from crio_core.image.digest import Digest
from crio_core.image.policy import scopes_of
from crio_core.image.reference import Reference
from crio_core.values import dataclass

SECTIONS_MAX = 10_000
SIGNATURES_MAX = 128
DEFAULT_LOOKASIDE = "file:///var/lib/containers/sigstore"
_SCHEMES = ("file", "http", "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What is configured for one scope; an empty `lookaside` means that there is none."""

    lookaside: str = ""
    attachments: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookasides:
    """All sections, by scope; `default` for references that no scope fits."""

    sections: Mapping[str, Section]
    default: Section = Section(lookaside=DEFAULT_LOOKASIDE)

    def section(self, reference: Reference) -> Section:
        """The section for a fully qualified reference."""
        for scope in scopes_of(reference):
            if scope and not scope.startswith("*.") and scope in self.sections:
                return self.sections[scope]
        return self.default


def parse_lookasides(files: Iterable[tuple[str, object]]) -> Lookasides:
    """Merge the documents of registries.d.

    Args:
        files: Path and parsed content of each, in any order.

    Raises:
        OperationError: FAILED_PRECONDITION, reason REGISTRIES_D_INVALID.
    """
    sections: dict[str, Section] = {}
    default: Section | None = None
    for name, document in files:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise _bad(name, "the file", "a mapping")
        if "default-docker" in document:
            if default is not None:
                raise _bad(name, "default-docker", "only one among all files")
            default = _section(name, "default-docker", document["default-docker"])
        scopes = {} if document.get("docker") is None else document["docker"]
        if not isinstance(scopes, dict) or len(sections) + len(scopes) > SECTIONS_MAX:
            raise _bad(name, "docker", f"a mapping; at most {SECTIONS_MAX} sections in all")
        for scope, value in scopes.items():
            if not isinstance(scope, str) or scope in sections:
                raise _bad(name, f"docker.{scope}", "a scope that no other section has")
            sections[scope] = _section(name, f"docker.{scope}", value)
    return Lookasides(sections=sections, default=default or Section(lookaside=DEFAULT_LOOKASIDE))


def signature_url(lookaside: str, repository: str, digest: Digest, number: int) -> str:
    """The place of an image's signature by its number, from 1.

    Args:
        lookaside: The section's URL.
        repository: The path of the image's name, without host.
        digest: Of the manifest.
        number: 1 to SIGNATURES_MAX.
    """
    return f"{lookaside.rstrip('/')}/{repository}@{digest.algorithm}={digest.hex}/signature-{number}"


def attachment_tag(digest: Digest) -> str:
    """The tag under which a registry holds the sigstore signatures of a manifest."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def _bad(name: str, member: str, expected: str) -> OperationError:
    message = f"{name}: {member}: expected {expected}"
    return OperationError(Code.FAILED_PRECONDITION, "REGISTRIES_D_INVALID", message)


def _section(name: str, where: str, value: object) -> Section:
    if value is None:
        return Section()
    if not isinstance(value, dict):
        raise _bad(name, where, "a mapping")
    # `sigstore` is what `lookaside` was called before sigstore signatures existed.
    place = value.get("lookaside", value.get("sigstore", ""))
    if not isinstance(place, str):
        raise _bad(name, f"{where}.lookaside", "a URL")
    if place:
        parts = urlsplit(place)
        if parts.scheme not in _SCHEMES or (parts.scheme != "file" and not parts.hostname):
            raise _bad(name, f"{where}.lookaside", f"a URL of {', '.join(_SCHEMES)}")
        if parts.scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
            raise _bad(name, f"{where}.lookaside", "file:///ABSOLUTE/PATH")
    attachments = value.get("use-sigstore-attachments", False)
    if not isinstance(attachments, bool):
        raise _bad(name, f"{where}.use-sigstore-attachments", "true or false")
    return Section(lookaside=place, attachments=attachments)
