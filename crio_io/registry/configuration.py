"""The files by which registries are reached. They are small and read anew for each pull, so that they always count."""

import logging
from pathlib import Path

from crio_core.errors import Code, OperationError, invalid
from crio_core.image.lookaside import Lookasides, parse_lookasides
from crio_core.image.policy import ACCEPT_ANYTHING, Policy, parse_policy
from crio_core.image.registries import RegistriesConfig, parse_registries
from crio_core.values import dataclass

CONF_BYTES_MAX = 1024 * 1024
CONF_FILES_MAX = 256
DEFAULT_POLICY = Path("/etc/containers/policy.json")

log = logging.getLogger(__name__)
_warned: set[Path] = set()
"""Policies that are not there, of which the log has been told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How registries are reached: the files of containers-registries.conf(5), credentials, certificates.

    Args:
        conf: The main file; it need not exist. An empty path means none.
        conf_dir: Its drop-ins, likewise.
        search: Registries for short names, in place of what the files say; empty leaves it to them.
        insecure: Hosts and address ranges that may be spoken to without TLS.
        auth_file: Credentials for pulls that bring none; empty for none.
        certs_dirs: Directories with a directory of certificates for each host.
        policy: The signature policy; empty for `DEFAULT_POLICY`, without which every image is accepted.
        policy_dir: Policies of namespaces, in place of that one: NAMESPACE.json.
        lookaside_dir: Where signatures are, containers-registries.d(5).
        progress_window_s: Over how long a transfer must come at the minimum rate.
    """

    conf: Path = Path("/etc/containers/registries.conf")
    conf_dir: Path = Path("/etc/containers/registries.conf.d")
    search: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    auth_file: str = ""
    certs_dirs: tuple[Path, ...] = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
    policy: str = ""
    policy_dir: str = "/etc/crio/policies"
    lookaside_dir: Path = Path("/etc/containers/registries.d")
    progress_window_s: float = 30.0


def read_policy(options: RegistryOptions, namespace: str) -> Policy:
    """The signature policy of a namespace, or else of the node; blocking."""
    if namespace:
        if "/" in namespace or "\0" in namespace or namespace in (".", ".."):
            raise invalid("sandbox_config.metadata.namespace", namespace[:200], "a name without '/'")
        own = Path(options.policy_dir) / f"{namespace}.json"
        if own.exists():
            return parse_policy(str(own), read_bounded(own))
    path = Path(options.policy) if options.policy else DEFAULT_POLICY
    if not options.policy and not path.exists():
        if path not in _warned:
            log.warning("there is no signature policy %s: every image is accepted", path)
            _warned.add(path)
        return ACCEPT_ANYTHING
    return parse_policy(str(path), read_bounded(path))


def read_registries(options: RegistryOptions) -> RegistriesConfig:
    """registries.conf with its drop-ins; blocking."""
    files = []
    if options.conf.name and options.conf.exists():
        files.append((str(options.conf), read_bounded(options.conf)))
    if options.conf_dir.name and options.conf_dir.is_dir():
        drop_ins = sorted(options.conf_dir.glob("*.conf"))[:CONF_FILES_MAX]
        files += [(str(path), read_bounded(path)) for path in drop_ins]
    if options.search:
        listed = ", ".join(f'"{host}"' for host in options.search)
        files.append(("crio.conf", f"unqualified-search-registries = [{listed}]".encode()))
    return parse_registries(files, options.insecure)


def read_lookasides(options: RegistryOptions) -> Lookasides:
    """containers-registries.d(5); blocking."""
    import yaml  # only for images that have to be signed

    documents: list[tuple[str, object]] = []
    if options.lookaside_dir.is_dir():
        for path in sorted(options.lookaside_dir.glob("*.yaml"))[:CONF_FILES_MAX]:
            try:
                documents.append((str(path), yaml.safe_load(read_bounded(path))))
            except (yaml.YAMLError, RecursionError) as error:
                message = f"{path}: {error}"[:300]
                raise OperationError(Code.FAILED_PRECONDITION, "REGISTRIES_D_INVALID", message) from error
    return parse_lookasides(documents)


def read_bounded(path: Path) -> bytes:
    """A small file.

    Raises:
        OperationError: FILE_UNREADABLE or FILE_TOO_LARGE.
    """
    try:
        with path.open("rb") as file:
            content = file.read(CONF_BYTES_MAX + 1)
    except OSError as error:
        raise OperationError(Code.FAILED_PRECONDITION, "FILE_UNREADABLE", f"{path}: {error.strerror}") from error
    if len(content) > CONF_BYTES_MAX:
        raise OperationError(
            Code.FAILED_PRECONDITION, "FILE_TOO_LARGE", f"{path}: expected at most {CONF_BYTES_MAX} bytes"
        )
    return content
