"""Where an image is looked for: `containers-registries.conf(5)`, version 2.

The main file and its drop-ins come as bytes in the order in which they apply. A drop-in replaces what it names: a
registry with the same prefix, the search list, an alias (an empty alias removes one).
"""

import ipaddress
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Any, Literal

from crio_core.errors import Code, OperationError, invalid
from crio_core.image.reference import DEFAULT_DOMAIN, Reference, host_name, is_domain, parse_reference
from crio_core.image.resolved import Candidate
from crio_core.values import dataclass

CONFIG_FILE_BYTES_MAX = 1024 * 1024
REGISTRIES_MAX = 1000
MIRRORS_MAX = 32
CANDIDATES_MAX = 64
DOCKER_HOST = "registry-1.docker.io"
PullFrom = Literal["all", "digest-only", "tag-only"]
_NO_ALIASES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A copy of a registry; `pull_from` says for which references it may be asked."""

    location: str
    insecure: bool = False
    pull_from: PullFrom = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Rules for every reference under `prefix`, which may begin with `*.`; an empty location means no rewrite."""

    prefix: str
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistriesConfig:
    """The merged configuration. With no search list, a short name without alias is refused."""

    unqualified_search: tuple[str, ...] = ()
    registries: tuple[Registry, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=lambda: _NO_ALIASES)
    insecure: tuple[str, ...] = ()
    credential_helpers: tuple[str, ...] = ()


def parse_registries(files: Sequence[tuple[str, bytes]], insecure: tuple[str, ...] = ()) -> RegistriesConfig:
    """Merge `registries.conf` and its drop-ins.

    Args:
        files: Name (for messages) and content, in order of precedence, later wins.
        insecure: `insecure_registries` of crio.conf: hosts, or address ranges in CIDR form.

    Raises:
        OperationError: INVALID_ARGUMENT naming file and key.
    """
    search: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    registries: dict[str, Registry] = {}
    aliases: dict[str, str] = {}
    for name, content in files:
        document = _load(name, content)
        if "registries" in document and isinstance(document["registries"], dict):
            raise invalid(f"{name}: registries", "a table", "version 2 of the format: [[registry]] tables")
        if (found := _strings(name, document, "unqualified-search-registries")) is not None:
            search = found
        if (found := _strings(name, document, "credential-helpers")) is not None:
            helpers = found
        for table in _tables(name, document, "registry"):
            registry = _registry(name, table)
            registries[registry.prefix] = registry
        for short, full in _table(name, document, "aliases").items():
            if not isinstance(full, str):
                raise invalid(f"{name}: aliases.{short}", full, "a string")
            aliases[short] = full
    if len(registries) > REGISTRIES_MAX:
        raise invalid("registry", len(registries), f"at most {REGISTRIES_MAX} registries")
    for host in search:
        if not is_domain(host):
            raise invalid("unqualified-search-registries", host, "host names")
    return RegistriesConfig(
        unqualified_search=search,
        registries=tuple(registries.values()),
        aliases=MappingProxyType({short: full for short, full in aliases.items() if full}),
        insecure=insecure,
        credential_helpers=helpers,
    )


def resolve_short(config: RegistriesConfig, reference: Reference) -> tuple[Reference, ...]:
    """What a reference may mean, in the order to try; one that names its domain means itself.

    Raises:
        OperationError: NOT_FOUND, reason SHORT_NAME_UNRESOLVED, when nothing says what a short name means.
    """
    if not reference.is_short:
        return (reference.tagged(),)
    if alias := config.aliases.get(reference.path):
        target = parse_reference(alias, f"aliases.{reference.path}")
        if target.is_short or target.tag or target.digest:
            raise invalid(f"aliases.{reference.path}", alias, "a domain and path, without tag and digest")
        full = Reference(domain=target.domain, path=target.path, tag=reference.tag, digest=reference.digest)
        return (full.tagged(),)
    if not config.unqualified_search:
        raise OperationError(
            Code.NOT_FOUND,
            "SHORT_NAME_UNRESOLVED",
            f"short name {reference} has no alias and no unqualified-search-registries are configured",
        )
    return tuple(reference.qualified(domain).tagged() for domain in config.unqualified_search)


def candidates(config: RegistriesConfig, reference: Reference) -> tuple[Candidate, ...]:
    """Every place to look for a reference, in order: for each meaning its mirrors, then its own location.

    Raises:
        OperationError: PERMISSION_DENIED, reason REGISTRY_BLOCKED; NOT_FOUND, reason SHORT_NAME_UNRESOLVED.
    """
    found: list[Candidate] = []
    blocked: Reference | None = None
    for meaning in resolve_short(config, reference):
        registry, matched = _registry_of(config, meaning.name)
        if registry is not None and registry.blocked:
            blocked = meaning
            continue
        for mirror in registry.mirrors if registry else ():
            if (mirror.pull_from == "digest-only" and not meaning.digest) or (
                mirror.pull_from == "tag-only" and meaning.digest
            ):
                continue
            found.append(_candidate(config, meaning, mirror.location, matched, mirror.insecure, is_mirror=True))
        location = registry.location if registry else ""
        insecure = registry.insecure if registry else False
        found.append(_candidate(config, meaning, location, matched, insecure, is_mirror=False))
    if not found:
        raise OperationError(Code.PERMISSION_DENIED, "REGISTRY_BLOCKED", f"registry of {blocked} is blocked")
    return tuple(found[:CANDIDATES_MAX])


def is_insecure_host(host: str, patterns: Sequence[str]) -> bool:
    """Whether plain HTTP is allowed: loopback, a listed host, or an address in a listed range."""
    name = host_name(host)
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    if address is not None and address.is_loopback:
        return True
    for pattern in patterns:
        if pattern.lower() in (host.lower(), name):
            return True
        if address is not None and "/" in pattern:
            try:
                if address in ipaddress.ip_network(pattern, strict=False):
                    return True
            except ValueError:
                continue  # a host with a path: not an address range
    return False


def _candidate(
    config: RegistriesConfig, meaning: Reference, location: str, matched: int, insecure: bool, *, is_mirror: bool
) -> Candidate:
    name = location + meaning.name[matched:] if location else meaning.name
    host, _, repository = name.partition("/")
    if not is_domain(host) or not repository:
        raise invalid("registry.location", name, "host[:port]/path")
    if host == DEFAULT_DOMAIN:
        host = DOCKER_HOST
    return Candidate(
        reference=meaning,
        host=host,
        repository=parse_reference(name, "registry.location").path,
        insecure=insecure or is_insecure_host(host, config.insecure),
        is_mirror=is_mirror,
    )


def _registry_of(config: RegistriesConfig, name: str) -> tuple[Registry | None, int]:
    """The registry with the longest matching prefix, and how many characters of `name` it matched."""
    best: Registry | None = None
    best_length = 0
    for registry in config.registries:
        length = _match(registry.prefix, name)
        if length > best_length:
            best, best_length = registry, length
    return best, best_length


def _match(prefix: str, name: str) -> int:
    if prefix.startswith("*."):
        host = name.partition("/")[0]
        return len(host) if host.partition(":")[0].endswith(prefix[1:]) or host.endswith(prefix[1:]) else 0
    if name.startswith(prefix) and (len(name) == len(prefix) or name[len(prefix)] in "/:@"):
        return len(prefix)
    return 0


def _registry(name: str, table: Mapping[str, Any]) -> Registry:
    location = _location(name, table, "location")
    prefix = _location(name, table, "prefix") or location
    if not prefix:
        raise invalid(f"{name}: registry", dict(table), "a prefix or a location")
    if not location and not prefix.startswith("*."):
        raise invalid(f"{name}: registry {prefix}: location", "", "a location")
    digest_only = _flag(name, table, "mirror-by-digest-only")
    mirrors = tuple(_mirror(name, mirror, digest_only) for mirror in _tables(name, table, "mirror"))
    if len(mirrors) > MIRRORS_MAX:
        raise invalid(f"{name}: registry {prefix}: mirror", len(mirrors), f"at most {MIRRORS_MAX} mirrors")
    return Registry(
        prefix=prefix,
        location="" if location == prefix else location,
        insecure=_flag(name, table, "insecure"),
        blocked=_flag(name, table, "blocked"),
        mirrors=mirrors,
    )


def _mirror(name: str, table: Mapping[str, Any], digest_only: bool) -> Mirror:
    location = _location(name, table, "location")
    if not location or location.startswith("*"):
        raise invalid(f"{name}: registry.mirror.location", location, "a location without wildcard")
    pull_from = table.get("pull-from-mirror", "digest-only" if digest_only else "all")
    if pull_from not in ("all", "digest-only", "tag-only"):
        raise invalid(f"{name}: registry.mirror.pull-from-mirror", pull_from, "all, digest-only or tag-only")
    return Mirror(location=location, insecure=_flag(name, table, "insecure"), pull_from=pull_from)


def _location(name: str, table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or "://" in value:
        raise invalid(f"{name}: {key}", value, "host[:port][/path], without a scheme")
    value = value.rstrip("/")
    host = value.removeprefix("*.").partition("/")[0]
    if value and not is_domain(host):
        raise invalid(f"{name}: {key}", value, "host[:port][/path]")
    return value


def _load(name: str, content: bytes) -> dict[str, Any]:
    if len(content) > CONFIG_FILE_BYTES_MAX:
        raise invalid(name, len(content), f"at most {CONFIG_FILE_BYTES_MAX} bytes")
    try:
        return tomllib.loads(content.decode())
    except ValueError as error:
        raise invalid(name, str(error)[:200], "TOML") from error


def _flag(name: str, table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise invalid(f"{name}: {key}", value, "true or false")
    return value


def _table(name: str, document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise invalid(f"{name}: {key}", value, "a table")
    return value


def _tables(name: str, document: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    value = document.get(key, [])
    if not isinstance(value, list) or any(not isinstance(item, dict) for item in value):
        raise invalid(f"{name}: {key}", value, "an array of tables")
    return value


def _strings(name: str, document: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        raise invalid(f"{name}: {key}", value, "an array of strings")
    return tuple(value)
