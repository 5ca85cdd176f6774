"""Network configurations: anything may be in those files, and one network or a reason comes out."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cni import ConfFile, Network, choose, load, parse_network, stored_network
from crio_core.cni.config import CAPABILITIES_MAX, CONF_MAX_BYTES, PLUGINS_MAX
from crio_core.cni.document import DEPTH_MAX
from crio_core.cni.version import SUPPORTED
from crio_core.errors import OperationError

SEED_CONF = b"""{
    "cniVersion": "0.2.0", "name": "mynet", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
    "ipam": {"type": "host-local", "subnet": "10.88.0.0/16", "routes": [{ "dst": "0.0.0.0/0"  }]}
}"""
SEED_LOOPBACK = b'{"cniVersion": "0.2.0", "type": "loopback"}'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
known_keys = st.sampled_from(
    [
        "name",
        "type",
        "cniVersion",
        "cniVersions",
        "plugins",
        "ipam",
        "capabilities",
        "disableCheck",
        "loadOnlyInlinedPlugins",
    ]
)
plugin_names = st.from_regex(r"[a-z][a-z0-9\-]{0,8}", fullmatch=True)
plugins = st.fixed_dictionaries(
    {"type": plugin_names},
    optional={
        "ipam": st.fixed_dictionaries({}, optional={"type": plugin_names}),
        "capabilities": st.dictionaries(plugin_names, st.booleans(), max_size=3),
        "mtu": st.integers(0, 9000),
    },
)
networks = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,8}", fullmatch=True),
        "plugins": st.lists(plugins, min_size=1, max_size=4),
    },
    optional={
        "cniVersion": st.sampled_from(SUPPORTED),
        "disableCheck": st.booleans() | st.sampled_from(["true", "False"]),
    },
)


def conf(document: Any, name: str = "10-net.conflist") -> ConfFile:
    """A configuration file with a JSON document."""
    return ConfFile(name=name, content=json.dumps(document).encode())


def conflist(**fields: Any) -> ConfFile:
    """A valid list, with some fields set otherwise."""
    return conf({"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]} | fields)


def attempt(file: ConfFile) -> Network | OperationError:
    """What comes of a file."""
    try:
        return parse_network(file)
    except OperationError as error:
        return error


def refusal(file: ConfFile) -> str:
    """The message with which a file is refused."""
    with pytest.raises(OperationError) as caught:
        parse_network(file)
    assert caught.value.reason == "CNI_CONFIG_INVALID"
    assert caught.value.message.startswith(f"{file.name}: ")
    return caught.value.message


@given(content=st.binary(max_size=64) | json_values.map(lambda value: json.dumps(value).encode()))
def test_load_of_any_bytes_never_fails_and_reports_the_file(content: bytes) -> None:
    """One bad file must not stop the server or hide the others."""
    loaded = load([ConfFile(name="10-a.conf", content=content), conf({"name": "z", "type": "ptp"}, "20-z.conf")])
    assert loaded.networks[-1].name == "z"
    assert len(loaded.networks) + len(loaded.faults) == 2


@given(document=networks, key=known_keys, value=json_values, inner=st.booleans())
def test_parse_with_any_field_of_any_type_gives_a_network_or_an_operation_error(
    document: dict[str, Any], key: str, value: Any, inner: bool
) -> None:
    """Every known field is checked by type before it is used."""
    (document["plugins"][0] if inner else document)[key] = value
    answer = attempt(conf(document))
    if isinstance(answer, OperationError):
        assert answer.reason == "CNI_CONFIG_INVALID"
    else:
        assert answer.plugins


@given(document=networks)
def test_stored_network_is_the_network_it_was_made_from(document: dict[str, Any]) -> None:
    """A DEL must run with the settings of its ADD, long after the file has changed."""
    network = parse_network(conf(document))
    stored = stored_network(network.conf)
    assert stored == dataclasses.replace(network, file_name=stored.file_name)


@given(order=st.permutations(range(5)))
def test_choose_takes_the_first_valid_file_by_name_whatever_the_listing_order(order: list[int]) -> None:
    """Directory listings have no order, and the network of a node must not depend on it."""
    files = [
        ConfFile(name="00-loopback.conf", content=SEED_LOOPBACK),
        ConfFile(name="05-broken.conf", content=b"{"),
        conf({"name": "ten", "type": "bridge"}, "10-ten.conf"),
        conf({"name": "twenty", "plugins": [{"type": "ptp"}]}, "20-twenty.conflist"),
        ConfFile(name="00-readme.txt", content=b"not counted"),
    ]
    loaded = load(files[index] for index in order)
    assert choose(loaded, "", "/etc/cni/net.d").name == "ten"
    assert choose(loaded, "twenty", "/etc/cni/net.d").name == "twenty"
    assert len(loaded.faults) == 1 and loaded.faults[0].startswith("05-broken.conf: document: ")


def test_choose_of_an_absent_default_network_says_what_is_there() -> None:
    """A typing error in the default network must not be a riddle."""
    with pytest.raises(OperationError, match="no CNI network named 'nett' in /d; found 'net' in 10-net") as caught:
        choose(load([conflist()]), "nett", "/d")
    assert caught.value.reason == "CNI_NOT_CONFIGURED"


def test_seed_configuration_gives_its_bridge_and_not_the_loopback() -> None:
    """The two files of CRI-O's own tutorial, the second one without a name."""
    loaded = load(
        [ConfFile(name="99-loopback.conf", content=SEED_LOOPBACK), ConfFile(name="10-mynet.conf", content=SEED_CONF)]
    )
    network = choose(loaded, "", "/etc/cni/net.d")
    assert (network.name, network.cni_version, network.executables()) == ("mynet", "0.2.0", ("bridge", "host-local"))
    assert loaded.faults == ()


def test_choose_among_loopback_alone_is_not_configured() -> None:
    """Pods with nothing but lo would look ready and reach nobody."""
    with pytest.raises(OperationError) as caught:
        choose(load([ConfFile(name="99-loopback.conf", content=SEED_LOOPBACK)]), "", "/etc/cni/net.d")
    assert caught.value.reason == "CNI_NOT_CONFIGURED"


@pytest.mark.parametrize("name", ["../bin/sh", "/bin/sh", "a/b", ".", "..", "a.b", "", "a b", "a\n", "-rf", 7])
@pytest.mark.parametrize("where", ["type", "ipam"])
def test_parse_of_a_plugin_name_that_is_a_path_is_refused(name: Any, where: str) -> None:
    """CVE-2021-20206: the name of a plugin is joined to a directory and run as root."""
    plugin = {"type": name} if where == "type" else {"type": "bridge", "ipam": {"type": name}}
    if where == "ipam" and name == "":
        assert parse_network(conflist(plugins=[plugin])).plugins[0].ipam_type == ""
    else:
        assert f"plugins[0].{'ipam.' if where == 'ipam' else ''}type: {name!r}" in refusal(conflist(plugins=[plugin]))


def test_parse_of_two_files_with_one_network_name_keeps_the_first_and_reports_the_other() -> None:
    """Which of two definitions counts must be said."""
    loaded = load([conf({"name": "n", "type": "a"}, "1.conf"), conf({"name": "n", "type": "b"}, "2.json")])
    assert [network.plugins[0].type for network in loaded.networks] == ["a"]
    assert loaded.faults == ("2.json: ignored: network 'n' is already defined by 1.conf",)


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"cniVersion": ""}, "0.1.0"),
        ({"cniVersion": "1.1.0"}, "1.1.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0", "9.0.0"]}, "1.0.0"),
        ({"cniVersion": "2.0.0", "cniVersions": ["0.4.0"]}, "0.4.0"),
    ],
)
def test_parse_chooses_the_highest_version_that_both_speak(fields: dict[str, Any], version: str) -> None:
    """`cniVersions` lets one file serve old and new runtimes (CNI SPEC 1.1.0)."""
    assert parse_network(conflist(**fields)).cni_version == version


@pytest.mark.parametrize("fields", [{"cniVersion": "2.0.0"}, {"cniVersions": ["2.0.0"], "cniVersion": "3.0.0"}])
def test_parse_of_versions_that_are_not_ours_is_refused(fields: dict[str, Any]) -> None:
    """A version that we do not speak must not be spoken by guess."""
    assert "expected one of 0.1.0, " in refusal(conflist(**fields))


def test_load_adds_plugins_from_the_directory_of_the_network_unless_told_not_to() -> None:
    """CNI SPEC 1.1.0: other programs may add plugins to a network by files of their own."""
    added = [
        conf({"type": "two"}, "net/20-b.conf"),
        conf({"type": "one"}, "net/10-a.conf"),
        conf({"type": "no"}, "other/1.conf"),
    ]
    assert load([conflist(), *added]).networks[0].executables() == ("bridge", "one", "two")
    inlined = load([conflist(loadOnlyInlinedPlugins=True), *added]).networks[0]
    assert inlined.executables() == ("bridge",)


def test_load_with_a_broken_added_plugin_names_its_file() -> None:
    """The person who looks for the mistake must look into the right file."""
    loaded = load([conflist(), conf({"type": "x/y"}, "net/10-a.conf")])
    assert loaded.networks == () and "net/10-a.conf: type: 'x/y'" in loaded.faults[0]


def test_parse_beyond_each_bound_is_refused() -> None:
    """Size, nesting, plugins and capabilities of a file are bounded, each with its name."""
    assert "at most" in refusal(ConfFile(name="a.conf", content=b" " * (CONF_MAX_BYTES + 1)))
    assert "at most" in refusal(conflist(plugins=[{"type": "a"}] * (PLUGINS_MAX + 1)))
    assert "1 to" in refusal(conflist(plugins=[]))
    many = {str(index): True for index in range(CAPABILITIES_MAX + 1)}
    assert "at most" in refusal(conflist(plugins=[{"type": "a", "capabilities": many}]))
    nested: Any = 0
    for _ in range(DEPTH_MAX + 1):
        nested = [nested]
    assert "levels" in refusal(conflist(x=nested))
    assert "JSON" in refusal(ConfFile(name="a.conf", content=b"[" * 100_000))
