"""Text of the small files that a runtime writes for its pods: resolv.conf and hostname.

Each value is checked for the bytes that would begin another line or another field, before it becomes part of a file
that other programs trust (CVE-2022-4318).
"""

import ipaddress
import re

from crio_core.cri import DNSConfig
from crio_core.errors import invalid
from crio_core.oci.facts import ROOTFS_FILE_BYTES_MAX

DNS_ENTRIES_MAX = 64
SEARCH_CHARACTERS_MAX = 2048  # Kubernetes' bound on all search domains together
HOSTNAME_BYTES_MAX = 64  # the kernel's: __NEW_UTS_LEN

_DOMAIN = re.compile(r"\.|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
_OPTION = re.compile(r"[a-z0-9][A-Za-z0-9_-]{0,63}(?::[A-Za-z0-9_.-]{1,63})?")
_HOSTNAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def resolv_conf(dns: DNSConfig, host: bytes) -> bytes:
    """A pod's /etc/resolv.conf: from its own settings, or the node's file when it has none.

    Raises:
        OperationError: a server that is no address, or a domain or option that is more than one word.
    """
    for name, entries in (("servers", dns.servers), ("searches", dns.searches), ("options", dns.options)):
        if len(entries) > DNS_ENTRIES_MAX:
            raise invalid(f"dns_config.{name}", f"{len(entries)} entries", f"at most {DNS_ENTRIES_MAX}")
    if not (dns.servers or dns.searches or dns.options):
        if len(host) > ROOTFS_FILE_BYTES_MAX:
            raise invalid("resolv.conf of the node", f"{len(host)} bytes", f"at most {ROOTFS_FILE_BYTES_MAX} bytes")
        return host
    lines = []
    if dns.searches:
        for index, domain in enumerate(dns.searches):
            _match(f"dns_config.searches[{index}]", domain, _DOMAIN, "a domain")
        joined = " ".join(dns.searches)
        if len(joined) > SEARCH_CHARACTERS_MAX:
            expected = f"at most {SEARCH_CHARACTERS_MAX} characters"
            raise invalid("dns_config.searches", f"{len(joined)} characters", expected)
        lines.append(f"search {joined}")
    lines += [f"nameserver {_address(f'dns_config.servers[{i}]', text)}" for i, text in enumerate(dns.servers)]
    if dns.options:
        for index, option in enumerate(dns.options):
            _match(f"dns_config.options[{index}]", option, _OPTION, "an option such as ndots:5")
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(line + "\n" for line in lines).encode()


def hostname_text(hostname: str) -> bytes:
    """A pod's /etc/hostname, with the name checked by `check_hostname`."""
    return check_hostname(hostname).encode() + b"\n"


def check_hostname(hostname: str) -> str:
    """A name that sethostname(2) takes and that stands in one line of a file; empty stays empty."""
    if hostname:
        _match("hostname", hostname, _HOSTNAME, f"1 to {HOSTNAME_BYTES_MAX} letters, digits, '-', '_' and '.'")
        if len(hostname) > HOSTNAME_BYTES_MAX:
            raise invalid("hostname", hostname[: HOSTNAME_BYTES_MAX + 1], f"at most {HOSTNAME_BYTES_MAX} characters")
    return hostname


def _match(field: str, text: str, pattern: re.Pattern[str], expected: str) -> None:
    if not pattern.fullmatch(text):
        raise invalid(field, text[:256], expected)


def _address(field: str, text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise invalid(field, text[:64], "an IP address") from error
    if not text.isascii() or any(character <= " " for character in text):
        raise invalid(field, text[:64], "an IP address")  # a scope id may hold anything, as the library has it
    return text
