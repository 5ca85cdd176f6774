"""Results of plugins: three shapes, one value, nothing lost on the way up."""

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cni.document import FieldError
from crio_core.cni.result import (
    INTERFACES_MAX,
    RESULT_MAX_BYTES,
    Address,
    Dns,
    Interface,
    Result,
    Route,
    convert,
    parse,
    pod_ips,
    render,
)
from crio_core.cni.version import SUPPORTED, number

words = st.from_regex(r"[a-z0-9.]{1,8}", fullmatch=True)
numbers = st.none() | st.integers(0, 9000)
addresses4 = st.builds(lambda ip, bits: f"{ip}/{bits}", st.ip_addresses(v=4), st.integers(0, 32))
addresses6 = st.builds(lambda ip, bits: f"{ip}/{bits}", st.ip_addresses(v=6), st.integers(0, 128))
gateways = st.just("") | st.ip_addresses().map(str)
interfaces = st.builds(
    Interface,
    name=words,
    mac=st.just("") | words,
    sandbox=st.just("") | words,
    mtu=numbers,
    socket_path=words,
    pci_id=words,
)
routes = st.builds(
    Route,
    dst=addresses4 | addresses6,
    gw=gateways,
    mtu=numbers,
    advmss=numbers,
    priority=numbers,
    table=numbers,
    scope=numbers,
)
dns = st.builds(
    Dns,
    nameservers=st.lists(words, max_size=2).map(tuple),
    domain=st.just("") | words,
    search=st.lists(words, max_size=2).map(tuple),
    options=st.lists(words, max_size=2).map(tuple),
)
versions = st.sampled_from(SUPPORTED)


@st.composite
def results(draw: st.DrawFn) -> Result:
    """Any result of the newest version."""
    made = tuple(draw(st.lists(interfaces, max_size=3)))
    index = st.none() | st.integers(0, len(made) - 1) if made else st.none()
    ips = st.builds(Address, address=addresses4 | addresses6, gateway=gateways, interface=index)
    return Result(
        cni_version="1.1.0",
        interfaces=made,
        ips=tuple(draw(st.lists(ips, max_size=4))),
        routes=tuple(draw(st.lists(routes, max_size=3))),
        dns=draw(dns),
    )


def attempt(data: bytes, version: str) -> Result | FieldError:
    """What comes of a plugin's output."""
    try:
        return parse(data, version)
    except FieldError as error:
        return error


@given(result=results(), version=versions)
def test_render_then_parse_gives_the_result_again_in_every_version(result: Result, version: str) -> None:
    """What a plugin is handed as prevResult must be what the one before it said."""
    said = convert(result, version)
    assert parse(render(said), "0.1.0") == said


@given(result=results(), first=versions, second=versions)
def test_convert_is_total_and_loses_nothing_beyond_what_the_lower_version_cannot_say(
    result: Result, first: str, second: str
) -> None:
    """Down by two steps is down by the lower one, and up again adds and loses nothing."""
    low = min(first, second, key=number)
    both = convert(convert(result, first), second)
    assert convert(both, low) == convert(result, low)
    assert convert(convert(both, "1.1.0"), both.cni_version) == both


@given(result=results())
def test_convert_to_the_oldest_version_keeps_the_first_address_of_each_family(result: Result) -> None:
    """0.2.0 has room for one IPv4 and one IPv6 address."""
    old = json.loads(render(convert(result, "0.2.0")))
    for family in (4, 6):
        of_family = [item.address for item in result.ips if ipaddress.ip_interface(item.address).version == family]
        assert old.get(f"ip{family}", {}).get("ip") == (of_family[0] if of_family else None)


@given(data=st.binary(max_size=64), version=versions)
def test_parse_of_any_bytes_gives_a_field_error(data: bytes, version: str) -> None:
    """A plugin that prints rubbish has failed; it must not take the server with it."""
    assert isinstance(attempt(data, version), FieldError | Result)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
paths = st.sampled_from(
    [
        *[("ips",), ("ips", 0), ("ips", 0, "address"), ("ips", 0, "interface"), ("ips", 0, "gateway")],
        *[("interfaces",), ("interfaces", 0), ("interfaces", 0, "mtu"), ("routes",), ("routes", 0)],
        *[("routes", 0, "dst"), ("dns",), ("dns", "search"), ("cniVersion",)],
    ]
)


@given(path=paths, value=json_values, version=versions)
def test_parse_with_any_field_of_any_type_gives_a_result_or_a_field_error(
    path: tuple[Any, ...], value: Any, version: str
) -> None:
    """Every known field is checked by type before it is used."""
    document: Any = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "sandbox": "/n", "mtu": 1}],
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"search": ["a"]},
        "ip4": {"ip": "10.0.0.2/24"},
    }
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    answer = attempt(json.dumps(document).encode(), version)
    if isinstance(answer, FieldError):
        assert str(path[0]) in answer.field or answer.field == "document"
    else:
        assert convert(answer, answer.cni_version) == answer


def test_pod_ips_are_those_of_the_pods_interface_primary_first() -> None:
    """The kubelet publishes the first address; a bridge's address in its place breaks every service of the pod."""
    result = Result(
        cni_version="1.0.0",
        interfaces=(Interface(name="cni0"), Interface(name="eth0", sandbox="/n"), Interface(name="eth0")),
        ips=(
            Address(address="10.0.0.1/24", interface=0),
            Address(address="10.0.0.7/24", interface=1),
            Address(address="fd00::7/64", interface=1),
            Address(address="10.0.0.9/24", interface=2),
        ),
    )
    assert pod_ips(result, "eth0") == ("10.0.0.7", "fd00::7")


def test_parse_of_a_result_without_version_has_that_of_the_configuration() -> None:
    """Old plugins do not say their version (CNI SPEC 0.2.0)."""
    assert parse('{"ip4": {"ip": "10.0.0.2/24"}}', "0.2.0").ips == (Address(address="10.0.0.2/24"),)


def test_parse_of_an_index_of_no_interface_says_no_interface() -> None:
    """Early 0.3 plugins write -1; such an address still is the pod's."""
    result = parse('{"cniVersion": "0.3.0", "ips": [{"address": "10.0.0.2/24", "interface": -1}]}', "0.3.0")
    assert result.ips[0].interface is None and pod_ips(result, "eth0") == ("10.0.0.2",)


def test_parse_beyond_its_bounds_is_refused() -> None:
    """A plugin's output is bounded in bytes and items."""
    with pytest.raises(FieldError, match="at most"):
        parse(b" " * (RESULT_MAX_BYTES + 1), "1.0.0")
    with pytest.raises(FieldError, match="at most"):
        parse(json.dumps({"interfaces": [{}] * (INTERFACES_MAX + 1)}), "1.0.0")
