"""Certificates of registries: `certs.d/HOST[:PORT]/` with *.crt (authorities), *.cert and *.key (our own)."""

import ssl
from pathlib import Path

from crio_core.values import dataclass
from crio_io.registry.retry import RegistryError

_SUFFIXES = frozenset({".crt", ".cert", ".key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Files of a host's `certs.d` directory, with what tells one version of them from another."""

    files: tuple[tuple[Path, int, int], ...] = ()
    """Path, time of the last change in nanoseconds, inode."""


def certificates_of(certs_dirs: tuple[Path, ...], host: str) -> Certificates:
    """The files of the first directory that this host has; blocking."""
    for certs_dir in certs_dirs if "/" not in host else ():
        place = certs_dir / host
        if not place.is_dir():
            continue
        try:
            found = [(path, path.stat()) for path in sorted(place.iterdir()) if path.suffix in _SUFFIXES]
        except OSError as error:
            raise RegistryError(reason="REGISTRY_CERTIFICATES_INVALID", message=f"{place}: {error}") from error
        return Certificates(files=tuple((path, stat.st_mtime_ns, stat.st_ino) for path, stat in found))
    return Certificates()


def authorities_stamp() -> int:
    """What tells one version of the system's file of authorities from another; a directory of them is read as it is."""
    path = ssl.get_default_verify_paths().cafile
    return Path(path).stat().st_mtime_ns if path else 0


def tls_context(certificates: Certificates, insecure: bool) -> ssl.SSLContext:
    """How to speak TLS with a host that has these certificates; blocking.

    Raises:
        RegistryError: REGISTRY_CERTIFICATES_INVALID.
    """
    context = ssl.create_default_context() if not insecure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path, _, _ in certificates.files:
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(cafile=path)
            elif path.suffix == ".cert":
                context.load_cert_chain(path, path.with_suffix(".key"))
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(reason="REGISTRY_CERTIFICATES_INVALID", message=f"{path}: {error}") from error
    return context
