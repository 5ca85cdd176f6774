"""What plugins are told about a pod: identity, arguments, and what their capabilities ask for.

Sources: CNI SPEC 1.1.0 section 2 (parameters), CNI CONVENTIONS.md (runtimeConfig, CNI_ARGS), and kubernetes.io/docs
"Network Plugins" for the two bandwidth annotations.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import field

from crio_core.cni.document import JsonObject
from crio_core.cri import DNSConfig, PortMapping
from crio_core.errors import invalid
from crio_core.values import dataclass

IFNAME_DEFAULT = "eth0"
IFNAME_MAX_CHARS = 15
PORT_MAPPINGS_MAX = 1024

INGRESS_BANDWIDTH = "kubernetes.io/ingress-bandwidth"
EGRESS_BANDWIDTH = "kubernetes.io/egress-bandwidth"
BANDWIDTH_MIN_BITS = 1_000
BANDWIDTH_MAX_BITS = 10**15
BURST_BITS = (2**31 - 1) * 8
"""As good as unlimited: Kubernetes limits rates, not bursts."""

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,254}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_QUANTITY = re.compile(r"([0-9]{1,18})(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_FACTOR = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTP", start=1)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Limits of a pod's traffic in bits a second; 0 is no limit."""

    ingress_bits: int = 0
    egress_bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNetwork:
    """A pod as its network sees it.

    `netns` is the path of its network namespace, empty when the namespace is gone. The fields after `ifname` reach only
    those plugins that declare the capability.
    """

    sandbox_id: str
    namespace: str = ""
    name: str = ""
    uid: str = ""
    netns: str = ""
    ifname: str = IFNAME_DEFAULT
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth = Bandwidth()
    mac: str = ""
    ips: tuple[str, ...] = ()
    dns: DNSConfig = field(default_factory=DNSConfig)
    cgroup_path: str = ""
    annotations: tuple[tuple[str, str], ...] = ()


def cni_args(pod: PodNetwork) -> str:
    """The value of CNI_ARGS for a pod of Kubernetes.

    Raises:
        OperationError: INVALID_FIELD, if a value would end its own field and begin another.
    """
    pairs = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.sandbox_id,
        "K8S_POD_UID": pod.uid,
    }
    for key, value in pairs.items():
        if not value.isprintable() or ";" in value or "=" in value:
            raise invalid(f"CNI_ARGS {key}", value, "printable text without ';' and '='")
    return ";".join(f"{key}={value}" for key, value in pairs.items())


def check_identity(pod: PodNetwork) -> None:
    """Refuse what may not become a parameter of a plugin.

    Raises:
        OperationError: INVALID_FIELD.
    """
    if not _CONTAINER_ID.fullmatch(pod.sandbox_id):
        raise invalid(
            "sandbox id", pod.sandbox_id, "letters, digits, '_', '.' and '-', beginning with a letter or digit"
        )
    if (
        not 0 < len(pod.ifname.encode()) <= IFNAME_MAX_CHARS
        or pod.ifname in (".", "..")
        or not pod.ifname.isprintable()
        or any(char in pod.ifname for char in "/: ")
    ):
        raise invalid("interface name", pod.ifname, f"1 to {IFNAME_MAX_CHARS} characters without '/', ':' and spaces")
    if "\0" in pod.netns:
        raise invalid("network namespace", pod.netns, "a path")


def capability_args(pod: PodNetwork) -> JsonObject:
    """What the pod has to say to each capability; a plugin gets those that it declares.

    Raises:
        OperationError: INVALID_FIELD.
    """
    args: JsonObject = {}
    if ports := _port_mappings(pod.port_mappings):
        args["portMappings"] = ports
    if limits := _bandwidth(pod.bandwidth):
        args["bandwidth"] = limits
    if pod.mac:
        if not _MAC.fullmatch(pod.mac):
            raise invalid("mac", pod.mac, "six bytes in hexadecimal, separated by ':'")
        args["mac"] = pod.mac
    if pod.ips:
        for address in pod.ips:
            _check_ip("ips", address, ipaddress.ip_interface)
        args["ips"] = list(pod.ips)
    if pod.dns != DNSConfig():
        dns = pod.dns
        args["dns"] = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    if pod.cgroup_path:
        args["cgroupPath"] = pod.cgroup_path
    if pod.annotations:
        args["io.kubernetes.cri.pod-annotations"] = dict(pod.annotations)
    return args


def bandwidth_from_annotations(annotations: Mapping[str, str]) -> Bandwidth:
    """The limits that a pod asks for by annotation, as Kubernetes quantities of bits a second.

    Raises:
        OperationError: INVALID_FIELD, for what is no quantity or not between 1k and 1P.
    """
    return Bandwidth(
        ingress_bits=_rate_bits(INGRESS_BANDWIDTH, annotations.get(INGRESS_BANDWIDTH, "")),
        egress_bits=_rate_bits(EGRESS_BANDWIDTH, annotations.get(EGRESS_BANDWIDTH, "")),
    )


def _rate_bits(annotation: str, text: str) -> int:
    if not text:
        return 0
    expected = "a quantity of bits a second between 1k and 1P, such as 10M"
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise invalid(annotation, text, expected)
    number, suffix = int(match[1]), match[2] or ""
    bits = number // 1000 if suffix == "m" else number * _FACTOR[suffix]
    if not BANDWIDTH_MIN_BITS <= bits <= BANDWIDTH_MAX_BITS:
        raise invalid(annotation, text, expected)
    return bits


def _port_mappings(mappings: tuple[PortMapping, ...]) -> list[JsonObject]:
    if len(mappings) > PORT_MAPPINGS_MAX:
        raise invalid("port_mappings", f"{len(mappings)} mappings", f"at most {PORT_MAPPINGS_MAX}")
    ports: list[JsonObject] = []
    for index, mapping in enumerate(mappings):
        where = f"port_mappings[{index}]"
        if mapping.host_port == 0:
            continue
        if not 0 < mapping.host_port <= 65535:
            raise invalid(f"{where}.host_port", mapping.host_port, "0 to 65535")
        if not 0 < mapping.container_port <= 65535:
            raise invalid(f"{where}.container_port", mapping.container_port, "1 to 65535")
        port: JsonObject = {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol.name.lower(),
        }
        if mapping.host_ip:
            _check_ip(f"{where}.host_ip", mapping.host_ip, ipaddress.ip_address)
            port["hostIP"] = mapping.host_ip
        ports.append(port)
    return ports


def _bandwidth(limits: Bandwidth) -> JsonObject:
    args: JsonObject = {}
    if limits.ingress_bits:
        args |= {"ingressRate": limits.ingress_bits, "ingressBurst": BURST_BITS}
    if limits.egress_bits:
        args |= {"egressRate": limits.egress_bits, "egressBurst": BURST_BITS}
    return args


def _check_ip(field: str, text: str, check: Callable[[str], object]) -> None:
    try:
        check(text)
    except ValueError as error:
        raise invalid(field, text, "an IP address") from error
