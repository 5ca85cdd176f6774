"""Image references, as Docker and OCI write them: `[domain/]path[:tag][@digest]`.

A name without a domain is *short*: what it stands for is the business of `registries.py`. `parse_reference` keeps it
short, and `normalise` gives it the meaning that Docker gives it (docker.io, and `library/` before a single word). The
grammar is that of the distribution project's reference package; every part is bounded.
"""

import re
from functools import lru_cache

from crio_core.errors import invalid
from crio_core.image.digest import Digest, parse_digest
from crio_core.values import dataclass, replace

REFERENCE_CHARS_MAX = 512
NAME_CHARS_MAX = 255
DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
REFERENCES_KEPT_MAX = 256
"""References that are kept when they were read, the latest: an image is named by each container that has it."""
_OLD_DEFAULT_DOMAIN = "index.docker.io"
_IMAGE_ID_HEX = 64

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,62}[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]{{2,45}}\])(?::[0-9]{{1,5}})?", re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_IMAGE_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A parsed reference; an empty `domain` means a short name, an empty `tag` that none was given."""

    domain: str = ""
    path: str
    tag: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Domain and path, without tag and digest."""
        return f"{self.domain}/{self.path}" if self.domain else self.path

    @property
    def is_short(self) -> bool:
        """Whether the reference leaves open which registry it means."""
        return not self.domain

    def qualified(self, domain: str) -> "Reference":
        """The same image looked for under `domain`; on docker.io a single word lives in `library/`."""
        path = self.path
        if domain == DEFAULT_DOMAIN and "/" not in path:
            path = f"library/{path}"
        return replace(self, domain=domain, path=path)

    def tagged(self) -> "Reference":
        """The reference with the default tag when it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def by_digest(self, digest: Digest) -> "Reference":
        """The name with this digest alone: a repo digest."""
        return replace(self, tag="", digest=digest)


@lru_cache(REFERENCES_KEPT_MAX)
def parse_reference(text: str, field: str = "image") -> Reference:
    """Read a reference and keep short names short.

    Raises:
        OperationError: INVALID_ARGUMENT, naming the part that is wrong.
    """
    if not text or len(text) > REFERENCE_CHARS_MAX:
        raise invalid(field, text[:200], f"a reference of 1 to {REFERENCE_CHARS_MAX} characters")
    rest, at, digest_text = text.partition("@")
    digest = parse_digest(digest_text, f"{field}: digest") if at else None
    tag = ""
    if (colon := rest.rfind(":")) > rest.rfind("/"):
        rest, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise invalid(f"{field}: tag", tag[:200], "1 to 128 of letters, digits, '_', '.' and '-'")
    domain, path = _split_domain(rest)
    if domain and not _is_domain(domain):
        raise invalid(f"{field}: domain", domain[:200], "a host name or address, with an optional port")
    if domain == _OLD_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if not path or not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
        raise invalid(f"{field}: repository", path[:200], "lower-case words separated by '/', '.', '_' or '-'")
    if len(rest) > NAME_CHARS_MAX:
        raise invalid(f"{field}: repository", rest[:200], f"at most {NAME_CHARS_MAX} characters")
    if not domain and "/" not in path and len(path) == _IMAGE_ID_HEX and _IMAGE_ID.fullmatch(path):
        raise invalid(field, text[:200], "a name: 64 hex digits alone are an image id")
    reference = Reference(domain=domain, path=path, tag=tag, digest=digest)
    return reference.qualified(DEFAULT_DOMAIN) if domain == DEFAULT_DOMAIN else reference


def normalise(text: str, field: str = "image") -> Reference:
    """Read a reference as Docker does: a domain and a tag or digest are filled in."""
    reference = parse_reference(text, field).tagged()
    return reference.qualified(DEFAULT_DOMAIN) if reference.is_short else reference


def parse_image_id(text: str) -> Digest | None:
    """The image id that `text` is (`<64 hex>` or `sha256:<64 hex>`), or None when it is a name."""
    found = _IMAGE_ID.fullmatch(text)
    return Digest(algorithm="sha256", hex=found[1]) if found else None


def host_name(domain: str) -> str:
    """The host of `host[:port]`, lower-case, brackets of an IPv6 address removed."""
    if domain.startswith("["):
        return domain[1 : domain.find("]")].lower()
    return domain.partition(":")[0].lower()


def is_domain(text: str) -> bool:
    """Whether `text` is a registry's `host[:port]`."""
    return _is_domain(text)


def _is_domain(text: str) -> bool:
    if len(text) > NAME_CHARS_MAX or not _DOMAIN.fullmatch(text):
        return False
    port = text.rpartition(":")[2] if not text.endswith("]") and ":" in text else ""
    return not port or 0 < int(port) <= 65535


def _split_domain(name: str) -> tuple[str, str]:
    """Docker's rule: the first word is a domain when no repository word could look like it."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return first, rest
    return "", name
