"""Results of plugins, in the three shapes that the specification has had, as one value.

| versions | shape |
|---|---|
| 0.1, 0.2 | `ip4` and `ip6`, each with its routes; no interfaces |
| 0.3, 0.4 | `interfaces`, `ips` that say their `version`, `routes` |
| 1.0, 1.1 | the same without `version`; 1.1 added fields to interfaces and routes |

Conversion is total: what a version cannot say is left out. Up is lossless; down and up again is too, for what the lower
version can say. Source: CNI SPEC section 5 of 1.1.0, and the sections "Result" of 0.2.0 and 0.4.0.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from crio_core.cni import version
from crio_core.cni.document import (
    FieldError,
    JsonObject,
    number_of,
    object_of,
    objects_of,
    read_object,
    text_of,
    texts_of,
    write,
)
from crio_core.values import dataclass

RESULT_MAX_BYTES = 64 * 1024
INTERFACES_MAX = 256
IPS_MAX = 256
ROUTES_MAX = 1024
DNS_ITEMS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface that a plugin made; `sandbox` is empty for one on the node."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int | None = None
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address with its prefix length; `interface` is an index into the interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route; the numbers came with 1.1."""

    dst: str
    gw: str = ""
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """Name resolution as a network gives it."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an ADD made."""

    cni_version: str
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


def parse(data: bytes | str, implied_version: str) -> Result:
    """Read a result of any version.

    Args:
        data: What the plugin printed.
        implied_version: The version it has when it does not say; that of the configuration.

    Raises:
        FieldError: It is not a result of a version that we speak.
    """
    source = read_object(data, max_bytes=RESULT_MAX_BYTES)
    cni_version = version.supported(text_of(source, "cniVersion") or implied_version)
    dns = object_of(source, "dns")
    common = Result(
        cni_version=cni_version,
        dns=Dns(
            nameservers=texts_of(dns, "nameservers", "dns.", max_items=DNS_ITEMS_MAX),
            domain=text_of(dns, "domain", "dns."),
            search=texts_of(dns, "search", "dns.", max_items=DNS_ITEMS_MAX),
            options=texts_of(dns, "options", "dns.", max_items=DNS_ITEMS_MAX),
        ),
    )
    if version.number(cni_version) < version.INTERFACES_SINCE:
        return _by_family(source, common)
    interfaces = tuple(
        _interface(item, f"interfaces[{index}].")
        for index, item in enumerate(objects_of(source, "interfaces", max_items=INTERFACES_MAX))
    )
    ips = tuple(
        _address(item, "address", f"ips[{index}].", len(interfaces))
        for index, item in enumerate(objects_of(source, "ips", max_items=IPS_MAX))
    )
    routes = tuple(
        _route(item, f"routes[{index}].")
        for index, item in enumerate(objects_of(source, "routes", max_items=ROUTES_MAX))
    )
    return convert(replace(common, interfaces=interfaces, ips=ips, routes=routes), cni_version)


def convert(result: Result, cni_version: str) -> Result:
    """The same result as a version can say it; `cni_version` is one of `version.SUPPORTED`."""
    target = version.number(cni_version)
    if target >= version.STATUS_SINCE:
        return replace(result, cni_version=cni_version)
    routes = tuple(Route(dst=route.dst, gw=route.gw) for route in result.routes)
    if target >= version.INTERFACES_SINCE:
        interfaces = tuple(Interface(name=item.name, mac=item.mac, sandbox=item.sandbox) for item in result.interfaces)
        return replace(result, cni_version=cni_version, interfaces=interfaces, routes=routes)
    # One address of each family, IPv4 first, and only routes that have an address of their family to go with.
    firsts = {_family(item.address): item for item in reversed(result.ips)}
    families = sorted(firsts)
    return replace(
        result,
        cni_version=cni_version,
        interfaces=(),
        ips=tuple(Address(address=firsts[family].address, gateway=firsts[family].gateway) for family in families),
        routes=tuple(route for family in families for route in routes if _family(route.dst) == family),
    )


def render(result: Result) -> str:
    """A result as JSON in the shape of its version."""
    result = convert(result, result.cni_version)
    target = version.number(result.cni_version)
    document: JsonObject = {"cniVersion": result.cni_version}
    if target < version.INTERFACES_SINCE:
        for item in result.ips:
            family = _family(item.address)
            routes = [_route_json(route) for route in result.routes if _family(route.dst) == family]
            document[f"ip{family}"] = _present(ip=item.address, gateway=item.gateway, routes=routes)
    else:
        with_version = target < version.NO_IP_VERSION_SINCE
        document["interfaces"] = [_interface_json(item) for item in result.interfaces]
        document["ips"] = [
            _present(
                version=str(_family(item.address)) if with_version else "",
                address=item.address,
                gateway=item.gateway,
                interface=item.interface,
            )
            for item in result.ips
        ]
        document["routes"] = [_route_json(route) for route in result.routes]
    dns = result.dns
    document["dns"] = _present(
        nameservers=list(dns.nameservers), domain=dns.domain, search=list(dns.search), options=list(dns.options)
    )
    return write(_present(**document))


def pod_ips(result: Result, ifname: str) -> tuple[str, ...]:
    """The addresses of the pod, without prefix, the primary one first.

    An address of another interface (a bridge's, a second one's) is not the pod's. An address of no stated interface is.
    """
    own = [item.address for item in result.ips if item.interface is None or _is_pods(result, item.interface, ifname)]
    every = own or [item.address for item in result.ips]
    return tuple(dict.fromkeys(str(ipaddress.ip_interface(address).ip) for address in every))


def _is_pods(result: Result, index: int, ifname: str) -> bool:
    interface = result.interfaces[index]
    return interface.name == ifname and bool(interface.sandbox)


def _by_family(source: JsonObject, common: Result) -> Result:
    """The shape of 0.1 and 0.2."""
    ips: list[Address] = []
    routes: list[Route] = []
    for family in (4, 6):
        key = f"ip{family}"
        part = object_of(source, key)
        if not part:
            continue
        address = _address(part, "ip", f"{key}.", 0)
        if _family(address.address) != family:
            raise FieldError(f"{key}.ip", address.address, f"an IPv{family} address")
        ips.append(address)
        items = objects_of(part, "routes", f"{key}.", max_items=ROUTES_MAX)
        routes.extend(_route(item, f"{key}.routes[{index}].") for index, item in enumerate(items))
    return convert(replace(common, ips=tuple(ips), routes=tuple(routes)), common.cni_version)


def _interface(source: JsonObject, where: str) -> Interface:
    return Interface(
        name=text_of(source, "name", where),
        mac=text_of(source, "mac", where),
        sandbox=text_of(source, "sandbox", where),
        mtu=number_of(source, "mtu", where),
        socket_path=text_of(source, "socketPath", where),
        pci_id=text_of(source, "pciID", where),
    )


def _address(source: JsonObject, key: str, where: str, interfaces: int) -> Address:
    address = _checked(source, key, where, ipaddress.ip_interface, "an IP address with prefix length")
    if "/" not in address:
        raise FieldError(f"{where}{key}", address, "an IP address with prefix length")
    interface = number_of(source, "interface", where)
    # Early 0.3 plugins write -1 for "not known"; an index of nothing says no more than that.
    known = interface is not None and 0 <= interface < interfaces
    return Address(
        address=address,
        gateway=_checked(source, "gateway", where, ipaddress.ip_address, "an IP address", optional=True),
        interface=interface if known else None,
    )


def _route(source: JsonObject, where: str) -> Route:
    return Route(
        dst=_checked(source, "dst", where, ipaddress.ip_interface, "a network"),
        gw=_checked(source, "gw", where, ipaddress.ip_address, "an IP address", optional=True),
        mtu=number_of(source, "mtu", where),
        advmss=number_of(source, "advmss", where),
        priority=number_of(source, "priority", where),
        table=number_of(source, "table", where),
        scope=number_of(source, "scope", where),
    )


def _checked(
    source: JsonObject, key: str, where: str, check: Callable[[str], object], expected: str, *, optional: bool = False
) -> str:
    text = text_of(source, key, where)
    if text or not optional:
        try:
            check(text)
        except ValueError as error:
            raise FieldError(f"{where}{key}", text, expected) from error
    return text


def _family(address: str) -> int:
    return ipaddress.ip_interface(address).version


def _interface_json(item: Interface) -> JsonObject:
    return _present(
        name=item.name,
        mac=item.mac,
        sandbox=item.sandbox,
        mtu=item.mtu,
        socketPath=item.socket_path,
        pciID=item.pci_id,
    )


def _route_json(route: Route) -> JsonObject:
    return _present(
        dst=route.dst,
        gw=route.gw,
        mtu=route.mtu,
        advmss=route.advmss,
        priority=route.priority,
        table=route.table,
        scope=route.scope,
    )


def _present(**fields: Any) -> JsonObject:
    """Fields that say something; zero does, an empty text or list does not."""
    return {key: value for key, value in fields.items() if value is not None and value not in ("", [], {})}
