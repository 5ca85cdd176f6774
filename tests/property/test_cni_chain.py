"""The plugin chain: order, input, and what a failure leads to, for every length of chain and place of failure."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cni import (
    Attachment,
    Chain,
    ConfFile,
    Network,
    Outcome,
    PodNetwork,
    RunPlugin,
    Verb,
    parse_network,
    plan,
)
from crio_core.cni.version import CHECK_SINCE, SUPPORTED, number
from crio_core.cri import PortMapping
from crio_core.errors import LocalError, OperationError

POD = PodNetwork(
    sandbox_id="c0ffee",
    namespace="default",
    name="web",
    uid="u-1",
    netns="/run/netns/web",
    port_mappings=(PortMapping(container_port=80, host_port=8080),),
)
DIRS = ("/opt/cni/bin", "/usr/lib/cni")

versions = st.sampled_from(SUPPORTED)
lengths = st.integers(1, 6)
Answer = Callable[[RunPlugin], tuple[int, bytes]]


def network_of(length: int, version: str = "1.0.0", **fields: Any) -> Network:
    """A network of plugins p0, p1, ..."""
    plugins = [{"type": f"p{index}", "capabilities": {"portMappings": index % 2 == 0}} for index in range(length)]
    document = {"name": "net", "cniVersion": version, "plugins": plugins} | fields
    return parse_network(ConfFile(name="10-net.conflist", content=json.dumps(document).encode()))


def result_of(order: RunPlugin) -> bytes:
    """A result that tells whose it is."""
    version = json.loads(order.stdin)["cniVersion"]
    ip = f"10.0.0.{order.index + 1}/24"
    document = {"ip4": {"ip": ip}} if version < "0.3" else {"ips": [{"version": "4", "address": ip}]}
    return json.dumps({"cniVersion": version} | document).encode()


def well(order: RunPlugin) -> tuple[int, bytes]:
    """Every plugin succeeds."""
    return 0, result_of(order) if order.verb is Verb.ADD else b""


def failing(*places: tuple[Verb, int]) -> Answer:
    """Plugins fail with these verbs at these places."""

    def answer(order: RunPlugin) -> tuple[int, bytes]:
        if (order.verb, order.index) in places:
            return 1, json.dumps({"code": 100 + order.index, "msg": f"p{order.index} will not"}).encode()
        return well(order)

    return answer


def drive(chain: Chain, answer: Answer = well) -> tuple[list[RunPlugin], Outcome]:
    """Run a chain to its end, as an executor does."""
    orders: list[RunPlugin] = []
    while not isinstance(order := chain.next(), Outcome):
        assert chain.next() == order
        orders.append(order)
        code, stdout = answer(order)
        chain.exited(returncode=code, stdout=stdout, stderr=b"")
    return orders, order


def add(network: Network, answer: Answer = well) -> tuple[list[RunPlugin], Outcome]:
    """ADD the pod."""
    attachment = plan(network, POD)
    return drive(Chain(Verb.ADD, network, plugin_dirs=DIRS, attachment=attachment, netns=POD.netns), answer)


def attached(network: Network) -> Attachment:
    """The attachment after an ADD that went well."""
    attachment = add(network)[1].attachment
    assert attachment is not None
    return attachment


def places(orders: list[RunPlugin]) -> list[tuple[Verb, int]]:
    """What ran, in order."""
    return [(order.verb, order.index) for order in orders]


@given(length=lengths, version=versions)
def test_add_runs_all_plugins_in_order_each_with_the_result_before_it(length: int, version: str) -> None:
    """CNI SPEC section 3, "Adding an attachment"."""
    orders, outcome = add(network_of(length, version))
    assert places(orders) == [(Verb.ADD, index) for index in range(length)]
    for order in orders:
        stdin = json.loads(order.stdin)
        assert (stdin["name"], stdin["cniVersion"], stdin["type"]) == ("net", version, order.plugin)
        if order.index == 0:
            assert "prevResult" not in stdin
        else:
            assert stdin["prevResult"] == json.loads(result_of(orders[order.index - 1]))
    assert outcome.failures == () and outcome.attachment is not None
    assert outcome.attachment.ips() == (f"10.0.0.{length}",)


@given(length=lengths, version=versions)
def test_delete_runs_all_plugins_in_the_reverse_order_of_add_with_its_result(length: int, version: str) -> None:
    """What was built last stands on what was built first; DEL has had the result since 0.4.0."""
    attachment = attached(network_of(length, version))
    network = attachment.read_network()
    orders, outcome = drive(Chain(Verb.DEL, network, plugin_dirs=DIRS, attachment=attachment, netns=""))
    assert places(orders) == [(Verb.DEL, index) for index in reversed(range(length))]
    assert outcome.failures == ()
    for order in orders:
        stdin = json.loads(order.stdin)
        assert dict(order.env)["CNI_NETNS"] == ""
        if number(version) >= CHECK_SINCE:
            assert stdin["prevResult"] == json.loads(attachment.result)
        else:
            assert "prevResult" not in stdin


@given(data=st.data(), length=lengths, version=versions)
def test_add_failing_at_any_plugin_is_followed_by_delete_of_the_whole_chain(
    data: st.DataObject, length: int, version: str
) -> None:
    """R3, R4: whatever a failed ADD left is given back, also when some of the DELs fail."""
    index = data.draw(st.integers(0, length - 1))
    broken = data.draw(st.sets(st.integers(0, length - 1)))
    answer = failing((Verb.ADD, index), *((Verb.DEL, place) for place in broken))
    orders, outcome = add(network_of(length, version), answer)
    added = [(Verb.ADD, place) for place in range(index + 1)]
    assert places(orders) == added + [(Verb.DEL, place) for place in reversed(range(length))]
    assert outcome.attachment is None
    assert len(outcome.failures) == 1 + len(broken)
    assert f"code {100 + index}: p{index} will not" in outcome.failures[0].message


@given(data=st.data(), length=lengths)
def test_delete_failing_stops_before_the_plugins_that_the_failed_one_stands_on(
    data: st.DataObject, length: int
) -> None:
    """An address must not be free for the next pod while a port of the node still leads to it."""
    index = data.draw(st.integers(0, length - 1))
    attachment = attached(network_of(length))
    chain = Chain(Verb.DEL, attachment.read_network(), plugin_dirs=DIRS, attachment=attachment)
    orders, outcome = drive(chain, failing((Verb.DEL, index)))
    assert places(orders) == [(Verb.DEL, place) for place in range(length - 1, index - 1, -1)]
    assert len(outcome.failures) == 1


@given(length=lengths, version=versions, disabled=st.booleans())
def test_check_runs_where_it_exists_and_is_not_disabled(length: int, version: str, disabled: bool) -> None:
    """CNI SPEC: CHECK came with 0.4.0; `disableCheck` forbids it."""
    network = network_of(length, version, disableCheck=disabled)
    attachment = attached(network)
    orders, outcome = drive(Chain(Verb.CHECK, network, plugin_dirs=DIRS, attachment=attachment, netns=POD.netns))
    runs = number(version) >= CHECK_SINCE and not disabled
    assert places(orders) == [(Verb.CHECK, index) for index in range(length if runs else 0)]
    assert all(json.loads(order.stdin)["prevResult"] == json.loads(attachment.result) for order in orders)
    assert outcome.failures == ()


@pytest.mark.parametrize(("version", "ran"), [("1.0.0", 0), ("1.1.0", 2)])
def test_status_stops_at_the_first_plugin_that_is_not_ready(version: str, ran: int) -> None:
    """STATUS came with 1.1.0; its code 50 means that ADD would fail now."""

    def answer(order: RunPlugin) -> tuple[int, bytes]:
        return (1, b'{"code": 50, "msg": "no route to the controller"}') if order.index == 1 else (0, b"")

    orders, outcome = drive(Chain(Verb.STATUS, network_of(3, version), plugin_dirs=DIRS), answer)
    assert len(orders) == ran
    assert [error.code.name for error in outcome.failures] == ["UNAVAILABLE"] * bool(ran)


def test_environment_and_capabilities_of_add_are_those_of_the_specification() -> None:
    """Plugins of other vendors read exactly these names."""
    orders, _ = add(network_of(2))
    assert dict(orders[0].env) == {
        "CNI_COMMAND": "ADD",
        "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
        "CNI_CONTAINERID": "c0ffee",
        "CNI_NETNS": "/run/netns/web",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
        "K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=u-1",
    }
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    assert json.loads(orders[0].stdin)["runtimeConfig"] == {"portMappings": [mapping]}
    assert "runtimeConfig" not in json.loads(orders[1].stdin), "p1 does not declare the capability"


@given(length=lengths, version=versions)
def test_attachment_survives_being_stored(length: int, version: str) -> None:
    """The journal keeps it as text, across restarts of the server."""
    attachment = attached(network_of(length, version))
    again = Attachment.from_json(attachment.to_json())
    assert again == attachment and again.ips() == attachment.ips()


@given(text=st.text(max_size=40) | st.just('{"network": 3}') | st.just('{"capabilities": "["}'))
def test_attachment_from_any_text_raises_nothing_but_operation_errors(text: str) -> None:
    """A damaged record is reported, and only it is affected."""

    def delete() -> None:
        attachment = Attachment.from_json(text)
        drive(Chain(Verb.DEL, attachment.read_network(), plugin_dirs=DIRS, attachment=attachment))

    with pytest.raises(OperationError) as caught:
        delete()
    assert caught.value.reason == "CNI_CONFIG_INVALID"


def test_delete_with_a_damaged_result_runs_without_it() -> None:
    """A DEL that releases most is better than none for ever."""
    attachment = attached(network_of(2)).with_result("{")
    orders, _ = drive(Chain(Verb.DEL, network_of(2), plugin_dirs=DIRS, attachment=attachment))
    assert len(orders) == 2 and all("prevResult" not in json.loads(order.stdin) for order in orders)


def test_delete_after_a_failed_add_has_the_result_that_there_was() -> None:
    """Plugins that find their rules by address can only remove them if they are told it."""
    orders, _ = add(network_of(3), failing((Verb.ADD, 2)))
    assert json.loads(orders[-1].stdin)["prevResult"]["ips"][0]["address"] == "10.0.0.2/24"


@pytest.mark.parametrize("stdout", [b"", b"{", b"[]", b'{"cniVersion": "7"}', b'{"ips": [{"address": "x"}]}'])
def test_add_succeeding_without_a_result_is_a_failure_and_undone(stdout: bytes) -> None:
    """A pod without a known address cannot be served; a plugin's claim of success is not enough."""
    orders, outcome = add(network_of(2), lambda order: (0, stdout))
    assert places(orders) == [(Verb.ADD, 0), (Verb.DEL, 1), (Verb.DEL, 0)]
    assert outcome.failures[0].reason == "CNI_PLUGIN_FAILED"
    assert "its result is not one of CNI 1.0.0" in outcome.failures[0].message


def test_add_converts_a_result_of_another_version_to_that_of_the_configuration() -> None:
    """The next plugin, and the DEL, must read it."""
    _, outcome = add(
        network_of(1, "1.0.0"), lambda order: (0, b'{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.9/24"}}')
    )
    assert outcome.attachment is not None
    assert json.loads(outcome.attachment.result)["ips"] == [{"address": "10.0.0.9/24"}]


def test_add_keeps_fields_of_a_result_that_it_does_not_know() -> None:
    """Vendors put more into results than the specification names, for their own plugins further on."""
    said = b'{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.9/24"}], "vendor": {"x": 1}}'
    orders, _ = add(network_of(2), lambda order: (0, said))
    assert json.loads(orders[1].stdin)["prevResult"] == json.loads(said)


@given(stdout=st.binary(max_size=64), stderr=st.binary(max_size=64), code=st.integers(1, 255) | st.just(-9))
def test_failure_with_any_output_is_one_bounded_printable_line(stdout: bytes, stderr: bytes, code: int) -> None:
    """What a plugin prints ends in logs and in Kubernetes events."""
    chain = Chain(Verb.ADD, network_of(1), plugin_dirs=DIRS, attachment=plan(network_of(1), POD))
    chain.next()
    error = chain.exited(returncode=code, stdout=stdout * 1000, stderr=stderr * 1000)
    assert error is not None and error.reason == "CNI_PLUGIN_FAILED"
    assert error.message.isprintable() and len(error.message) < 10_000


def test_chain_refuses_answers_to_questions_it_did_not_ask() -> None:
    """An executor that answers twice would skip a plugin."""
    chain = Chain(Verb.STATUS, network_of(1, "1.1.0"), plugin_dirs=DIRS)
    with pytest.raises(LocalError):
        chain.exited(returncode=0, stdout=b"", stderr=b"")
    with pytest.raises(LocalError):
        Chain(Verb.DEL, network_of(1), plugin_dirs=DIRS)
    with pytest.raises(LocalError):
        Chain(Verb.CHECK, network_of(1), plugin_dirs=DIRS, attachment=plan(network_of(1), POD))
