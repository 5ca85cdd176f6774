"""Registry credentials: where they come from, and which host may see them.

Sources are the CRI request's AuthConfig and `containers-auth.json(5)` or Docker's `config.json`. A credential belongs
to one host; the answer to a challenge is planned here, so that no code with a socket decides who gets a password
(distribution's token authentication specification; RFC 9110 section 11 for challenges).
"""

import base64
import binascii
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode, urlsplit

from crio_core.cri import AuthConfig
from crio_core.errors import Code, OperationError, invalid
from crio_core.image.reference import host_name
from crio_core.image.resolved import Candidate
from crio_core.values import dataclass

AUTH_FILE_BYTES_MAX = 1024 * 1024
CHALLENGE_CHARS_MAX = 8192
CHALLENGES_MAX = 8
TOKEN_CHARS_MAX = 64 * 1024
TOKEN_LIFE_DEFAULT_S = 60
TOKEN_LIFE_MAX_S = 3600
_DOCKER_KEYS = frozenset({"index.docker.io", "docker.io", "registry-1.docker.io"})
_DOCKER_HOST = "registry-1.docker.io"
_NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})
_SECOND_LEVELS = frozenset({"ac", "co", "com", "edu", "go", "gob", "gov", "gv", "mil", "ne", "net", "or", "org"})
"""Under two-letter top levels: co.uk, com.au, or.jp."""
_TENANTS = (
    *("azurecr.io", "azurecr.cn", "azurecr.us", "azure.com", "azure-api.net", "azurewebsites.net", "cloudapp.net"),
    *(
        "amazonaws.com",
        "amazonaws.com.cn",
        "on.aws",
        "gcr.io",
        "pkg.dev",
        "run.app",
        "appspot.com",
        "cloudfunctions.net",
    ),
    *("aliyuncs.com", "myhuaweicloud.com", "tencentcloudcr.com", "ocir.io", "oraclecloud.com", "icr.io", "vultrcr.com"),
    *("jfrog.io", "cloudsmith.io", "scw.cloud", "ovh.net", "digitaloceanspaces.com", "github.io", "gitlab.io"),
    *(
        "herokuapp.com",
        "fly.dev",
        "workers.dev",
        "pages.dev",
        "vercel.app",
        "netlify.app",
        "ngrok.io",
        "ngrok-free.app",
    ),
    *("nip.io", "sslip.io", "duckdns.org", "dyndns.org", "no-ip.org"),
)
"""Where a subdomain is a customer. No list of these is ever complete, which the decision record takes into account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What proves who we are to one host. Never logged: `repr` shows nothing of it."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def is_anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.username or self.password or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of an `Authorization: Basic` header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One `WWW-Authenticate` challenge; the scheme and parameter names are lower-case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=lambda: _NO_PARAMETERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A token to ask for: GET `url`, or POST `form` to it when there is one."""

    url: str
    withheld: bool = False
    """Whether there are credentials, which this server is not shown."""
    authorization: str = field(default="", repr=False)
    form: str = field(default="", repr=False)


ANONYMOUS = Credentials()
_NO_AUTHS: Mapping[str, Credentials] = MappingProxyType({})
_NOT_HELPED: Mapping[tuple[str, str], Credentials] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthFile:
    """An auth file: credentials by namespace, helpers by host, and the helper for all other hosts."""

    auths: Mapping[str, Credentials] = field(default_factory=lambda: _NO_AUTHS, repr=False)
    helpers: Mapping[str, str] = field(default_factory=lambda: _NO_PARAMETERS)
    store: str = ""
    faults: Mapping[str, OperationError] = field(default_factory=lambda: MappingProxyType({}))
    """Of the entries that cannot be read, by host: whoever pulls from there is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Everything that a pull may show: the request's AuthConfig and the entries of auth files."""

    cri: AuthConfig | None = field(default=None, repr=False)
    auths: Mapping[str, Credentials] = field(default_factory=lambda: _NO_AUTHS, repr=False)
    helped: Mapping[tuple[str, str], Credentials] = field(default_factory=lambda: _NOT_HELPED, repr=False)
    """What credential helpers said, by host and repository."""

    def for_candidate(self, candidate: Candidate) -> Credentials:
        """What to show to a candidate's host: the request's, if it is for that host, else a helper's or the files'."""
        found = self.from_request(candidate)
        if not found.is_anonymous:
            return found
        if (helped := self.helped.get((candidate.host, candidate.repository))) is not None:
            return helped
        return find_credentials(self.auths, candidate.host, candidate.repository)

    def from_request(self, candidate: Candidate) -> Credentials:
        """What the request has for a candidate's host."""
        if self.cri is None or canonical_host(candidate.host) != canonical_host(candidate.reference.domain):
            return ANONYMOUS
        return credentials_from_cri(self.cri, candidate.reference.domain)


def credentials_from_cri(auth: AuthConfig, domain: str) -> Credentials:
    """The credentials of a PullImage request, if they are meant for `domain`.

    Args:
        auth: The request's AuthConfig; without `server_address` it is for the registry of the image itself.
        domain: The domain of the reference.

    Raises:
        OperationError: INVALID_ARGUMENT when `auth` is not base64 of `user:password`.
    """
    if auth.server_address and _key_host(auth.server_address) != canonical_host(domain):
        return ANONYMOUS
    username, password = auth.username, auth.password
    if auth.auth and not (username and password):
        username, password = _decode_basic(auth.auth, "auth.auth")
    return Credentials(
        username=username,
        password=password,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )


def parse_auth_file(content: bytes) -> AuthFile:
    """Read an auth file: keys are hosts or namespaces, without scheme.

    Docker writes an empty entry for what a helper keeps: that is none, and hides no wider namespace's. An entry that
    cannot be read is left out: it is no reason to pull nothing from all other registries.

    Raises:
        OperationError: INVALID_ARGUMENT, without any of the content.
    """
    if len(content) > AUTH_FILE_BYTES_MAX:
        raise invalid("auth file", len(content), f"at most {AUTH_FILE_BYTES_MAX} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise invalid("auth file", "its content", "JSON") from error
    if not isinstance(document, dict):
        raise invalid("auth file", "its content", "an object")
    auths, helpers, store = (document.get(name) or empty for name, empty in _MEMBERS)
    if not isinstance(auths, dict) or not isinstance(helpers, dict) or not isinstance(store, str):
        raise invalid("auth file: auths, credHelpers, credsStore", "its content", "two objects and a string")
    if any(not isinstance(name, str) for name in helpers.values()):
        raise invalid("auth file: credHelpers", "its content", "string values")
    found, faults = {}, {}
    for key, entry in auths.items():
        try:
            one = _credentials(key, entry)
        except OperationError as error:
            faults[_key_host(key)] = error
            continue
        if not one.is_anonymous:
            found[_normalise_key(key)] = one
    return AuthFile(
        auths=MappingProxyType(found),
        helpers=MappingProxyType({_key_host(host): name for host, name in helpers.items()}),
        store=store,
        faults=MappingProxyType(faults),
    )


_MEMBERS: tuple[tuple[str, Any], ...] = (("auths", {}), ("credHelpers", {}), ("credsStore", ""))


def _credentials(key: str, entry: Any) -> Credentials:
    if not isinstance(entry, dict):
        raise invalid("auth file: auths", key, "an object for every key")
    encoded, token = entry.get("auth") or "", entry.get("identitytoken") or ""
    if not isinstance(encoded, str) or not isinstance(token, str):
        raise invalid("auth file: auths", key, "string values")
    username, password = _decode_basic(encoded.strip(), f"auth file: auths.{key}") if encoded else ("", "")
    return Credentials(username=username, password=password, identity_token=token)


def find_credentials(auths: Mapping[str, Credentials], host: str, repository: str) -> Credentials:
    """The entry of the longest namespace that contains the repository, down to its host; else none."""
    canonical = canonical_host(host)
    names = [canonical]
    if repository:
        for part in repository.split("/"):
            names.append(f"{names[-1]}/{part}")
    for name in reversed(names):
        if name in auths:
            return auths[name]
    return ANONYMOUS


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Read a `WWW-Authenticate` header; what does not parse ends the list, it is never guessed at."""
    text = header[:CHALLENGE_CHARS_MAX]
    found: list[Challenge] = []
    position = 0
    scheme, parameters = "", dict[str, str]()
    while position < len(text) and len(found) < CHALLENGES_MAX:
        position = _skip(text, position, " \t,")
        word, position = _word(text, position)
        if not word:
            break
        after = _skip(text, position, " \t")
        if after < len(text) and text[after] == "=":
            value, position = _value(text, _skip(text, after + 1, " \t"))
            parameters.setdefault(word.lower(), value)
            continue
        if scheme:
            found.append(Challenge(scheme=scheme, parameters=MappingProxyType(parameters)))
        scheme, parameters = word.lower(), {}
    if scheme:
        found.append(Challenge(scheme=scheme, parameters=MappingProxyType(parameters)))
    return tuple(found)


def plan_token(
    challenge: Challenge, host: str, repository: str, credentials: Credentials, *, insecure: bool
) -> TokenRequest:
    """Plan the request for a Bearer token.

    The realm is named by the registry, so it is trusted no further than that. It must be HTTPS unless it is on the
    registry's own host and that is marked insecure (CVE-2019-10214). It sees credentials only where `_is_kin` says that
    it belongs to whom the registry belongs (CVE-2020-15157); others are asked anonymously.

    Raises:
        OperationError: UNAUTHENTICATED, reason TOKEN_REALM_REFUSED.
    """
    realm = challenge.parameters.get("realm", "")
    try:
        parts = urlsplit(realm)
    except ValueError as error:
        raise _realm_refused(host, realm, "is no address") from error
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username is not None:
        raise _realm_refused(host, realm, "is not an HTTP address")
    if parts.scheme == "http" and not (insecure and parts.hostname == host_name(host)):
        raise _realm_refused(host, realm, "is not HTTPS")
    scope = f"repository:{repository}:pull"
    query = {"service": challenge.parameters["service"]} if "service" in challenge.parameters else {}
    query["scope"] = scope
    trusted = _is_kin(parts.hostname, host_name(host))
    if credentials.identity_token and trusted:
        form = {
            "grant_type": "refresh_token",
            "client_id": "crio",
            "refresh_token": credentials.identity_token,
            **query,
        }
        return TokenRequest(url=realm, form=urlencode(form))
    separator = "&" if parts.query else "?"
    authorization = credentials.basic() if trusted and credentials.username else ""
    withheld = not trusted and not credentials.is_anonymous
    return TokenRequest(url=f"{realm}{separator}{urlencode(query)}", authorization=authorization, withheld=withheld)


def parse_token(body: bytes) -> tuple[str, int]:
    """The token and its life in seconds.

    Raises:
        OperationError: UNAUTHENTICATED, reason TOKEN_INVALID.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OperationError(Code.UNAUTHENTICATED, "TOKEN_INVALID", "token server did not answer with JSON") from error
    token = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
    if not isinstance(token, str) or not 0 < len(token) <= TOKEN_CHARS_MAX or not _can_be_sent(token):
        raise OperationError(Code.UNAUTHENTICATED, "TOKEN_INVALID", "token server answered without a usable token")
    life_s = document.get("expires_in")
    if not isinstance(life_s, int) or isinstance(life_s, bool) or life_s < TOKEN_LIFE_DEFAULT_S:
        life_s = TOKEN_LIFE_DEFAULT_S
    return token, min(life_s, TOKEN_LIFE_MAX_S)


def _can_be_sent(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token


def _realm_refused(host: str, realm: str, why: str) -> OperationError:
    return OperationError(
        Code.UNAUTHENTICATED,
        "TOKEN_REALM_REFUSED",
        f"registry {host} names the token server {realm[:200]!r}, which {why}",
    )


def _is_kin(realm_host: str, registry_host: str) -> bool:
    """Whether a token server belongs to whom the registry belongs, as far as names can tell.

    It does on the same host, on the domain that the registry's host lies in (gitlab.com of registry.gitlab.com), on a
    host in the registry's, and on a sibling (auth.docker.io of registry-1.docker.io). A domain whose subdomains belong
    to many makes nobody kin, and addresses have no relatives (docs/decisions/0023-who-is-shown-a-password.md).
    """
    if realm_host == registry_host:
        return True
    if _is_address(realm_host) or _is_address(registry_host):
        return False
    _, _, parent = registry_host.partition(".")
    if realm_host.endswith(f".{registry_host}"):
        return not _is_shared(registry_host)
    return not _is_shared(parent) and (realm_host == parent or realm_host.partition(".")[2] == parent)


def _is_shared(domain: str) -> bool:
    """Whether the names in a domain are given to anybody: a top level, or one that sells or lends its subdomains."""
    labels = domain.split(".")
    if len(labels) < 2 or (len(labels) == 2 and len(labels[1]) == 2 and labels[0] in _SECOND_LEVELS):
        return True
    return any(domain == one or domain.endswith(f".{one}") for one in _TENANTS)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _decode_basic(encoded: str, what: str) -> tuple[str, str]:
    try:
        username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise invalid(what, "its value", "base64 of user:password") from error
    if not colon:
        raise invalid(what, "its value", "base64 of user:password")
    return username, password.rstrip("\0")


def canonical_host(host: str) -> str:
    """The name by which a host's credentials are known: all of Docker Hub's are one."""
    return _DOCKER_HOST if host.lower() in _DOCKER_KEYS else host.lower()


def _key_host(key: str) -> str:
    return _normalise_key(key).partition("/")[0]


def _normalise_key(key: str) -> str:
    """Old files have `https://index.docker.io/v1/`, new ones `host[:port][/namespace]`."""
    had_scheme = "://" in key
    rest = key.partition("://")[2] if had_scheme else key
    host, _, path = rest.partition("/")
    if had_scheme or path.rstrip("/") in ("v1", "v2"):
        path = ""
    return f"{canonical_host(host)}/{path.strip('/')}".rstrip("/")


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _word(text: str, position: int) -> tuple[str, int]:
    start = position
    while position < len(text) and (text[position].isalnum() or text[position] in "!#$%&'*+-.^_`|~"):
        position += 1
    return text[start:position], position


def _value(text: str, position: int) -> tuple[str, int]:
    if position >= len(text) or text[position] != '"':
        return _word(text, position)
    position += 1
    out = []
    while position < len(text) and text[position] != '"':
        if text[position] == "\\" and position + 1 < len(text):
            position += 1
        out.append(text[position])
        position += 1
    return "".join(out), position + 1
