"""Real CNI plugins in real namespaces: pods get addresses and ports, and nothing stays behind."""

import http.client
import http.server
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from crio_core.cni import Attachment, ConfFile, Network, PodNetwork, parse_network
from crio_core.cri import PortMapping
from crio_core.errors import OperationError
from crio_io.cni import CniRunner, Deadlines
from tests.integration.leftovers import MINE
from tests.integration.waiting import wait_meanwhile

PLUGIN_DIR = "/usr/lib/cni"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces and bridges: needs root"),
    pytest.mark.skipif(not Path(PLUGIN_DIR, "bridge").exists(), reason=f"needs the CNI plugins in {PLUGIN_DIR}"),
]


def ip(*args: str) -> str:
    """Run ip(8)."""
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=30).stdout


def firewall() -> str:
    """All rules of the node, IPv4 and IPv6."""
    tools = ("iptables-save", "ip6tables-save")
    return "".join(subprocess.run([tool], capture_output=True, text=True, timeout=30).stdout for tool in tools)


def remove_rules(tag: str) -> None:
    """Remove what a failed test left in the NAT tables: rules with its tag, and the chains that they led to."""
    for tool in ("iptables", "ip6tables"):
        nat = [tool, "-w", "-t", "nat"]
        rules = subprocess.run([*nat, "-S"], capture_output=True, text=True, timeout=30).stdout.splitlines()
        chains = set()
        for rule in (shlex.split(line) for line in rules if tag in line):
            subprocess.run([*nat, "-D", *rule[1:]], check=True, capture_output=True, timeout=30)
            if rule[1].startswith("CNI-") and not rule[1].startswith("CNI-HOSTPORT"):
                chains.add(rule[1])
        for chain in sorted(chains):
            subprocess.run([*nat, "-X", chain], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A bridge network and a network namespace of a test's own."""

    tag: str
    bridge: str
    subnet: str
    data_dir: Path
    netns: str
    pod: PodNetwork

    def conf(self, version: str = "1.0.0", *more: dict[str, Any], masquerade: bool = True) -> Network:
        """The bridge network with further plugins behind."""
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": self.subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.data_dir),
        }
        bridge = {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipMasq": masquerade, "ipam": ipam}
        document = {"cniVersion": version, "name": self.tag, "plugins": [bridge, *more]}
        return parse_network(ConfFile(name="10-test.conflist", content=json.dumps(document).encode()))

    def residue(self) -> list[str]:
        """What of this pod is left on the node."""
        reserved = [path.name for path in self.data_dir.glob("*/*") if path.name[0].isdigit()]
        ports = [line for line in ip("-o", "link").splitlines() if f"master {self.bridge} " in line]
        own = (self.tag, self.subnet.removesuffix("0/24"))
        rules = [line for line in firewall().splitlines() if any(mark in line for mark in own)]
        inside = ip("netns", "exec", self.netns, "ip", "-o", "link").splitlines() if self.exists() else []
        return reserved + ports + rules + [line for line in inside if ": eth" in line]

    def exists(self) -> bool:
        """Whether the network namespace is there."""
        return Path(self.pod.netns).exists()


@pytest.fixture
def site(tmp_path: Path, went_well: Callable[[], bool]) -> Iterator[Site]:
    """A namespace, and a bridge that appears with the first ADD; both are removed whatever happens, after a look."""
    second, third = divmod(os.getpid() % 8192, 256)
    tag = f"{MINE}n"
    site = Site(
        tag=tag,
        bridge=f"{tag}b"[:15],
        subnet=f"10.{208 + second}.{third}.0/24",
        data_dir=tmp_path / "ipam",
        netns=tag,
        pod=PodNetwork(sandbox_id=f"{tag}c", namespace="default", name="web", uid="u", netns=f"/run/netns/{tag}"),
    )
    ip("netns", "add", tag)
    with ExitStack() as stack:
        stack.callback(remove_rules, tag)
        stack.callback(subprocess.run, ["ip", "link", "delete", site.bridge], capture_output=True, timeout=30)
        stack.callback(subprocess.run, ["ip", "netns", "delete", tag], capture_output=True, timeout=30)
        yield site
        assert not went_well() or site.residue() == []


def script(directory: Path, name: str, body: str) -> str:
    """A plugin of our own; returns its directory."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(directory)


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


async def test_add_then_check_then_delete_gives_an_address_and_leaves_nothing(site: Site) -> None:
    """The whole life of a pod's network on the plugins that most nodes have."""
    runner = CniRunner([PLUGIN_DIR])
    network = site.conf(
        "1.0.0", {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.accept_redirects": "0"}}, {"type": "firewall"}
    )
    attachment = await runner.add(network, site.pod)
    assert attachment.ips() == (site.subnet.removesuffix("0/24") + "2",)
    assert f"inet {attachment.ips()[0]}/24" in ip("netns", "exec", site.netns, "ip", "addr", "show", "eth0")
    assert site.residue() != []
    await runner.check(attachment, site.pod)
    await runner.delete(attachment, site.pod)
    assert site.residue() == []
    await runner.delete(attachment, site.pod)
    series = {(item.plugin, item.verb): item for item in runner.stats.series()}
    assert series["bridge", "ADD"].runs == 1 and series["bridge", "DEL"].runs == 2
    assert all(item.failures == 0 for item in series.values())


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
async def test_add_and_delete_in_every_version_that_the_plugins_speak(site: Site, version: str) -> None:
    """Configurations of any age work, the tutorial's 0.2.0 among them."""
    runner = CniRunner([PLUGIN_DIR])
    attachment = await runner.add(site.conf(version, PORTMAP), site.pod)
    assert attachment.ips() == (site.subnet.removesuffix("0/24") + "2",)
    await runner.delete(Attachment.from_json(attachment.to_json()), site.pod)
    assert site.residue() == []


async def test_add_with_a_single_plugin_file_of_0_2_0_works_as_in_the_tutorial(site: Site) -> None:
    """The first configuration that anybody tries: one `.conf` file."""
    document = {
        "cniVersion": "0.2.0",
        "name": site.tag,
        "type": "bridge",
        "bridge": site.bridge,
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "subnet": site.subnet,
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(site.data_dir),
        },
    }
    network = parse_network(ConfFile(name="10-mynet.conf", content=json.dumps(document).encode()))
    runner = CniRunner([PLUGIN_DIR])
    attachment = await runner.add(network, site.pod)
    assert len(attachment.ips()) == 1
    await runner.delete(attachment, site.pod)
    assert site.residue() == []


async def test_port_mapping_reaches_the_pod_and_ends_with_the_attachment(site: Site) -> None:
    """R44: a port of the node leads to the pod as long as the pod is attached, and not longer."""
    runner = CniRunner([PLUGIN_DIR])
    host_port = 20000 + os.getpid() % 10000
    pod = replace(site.pod, port_mappings=(PortMapping(container_port=8000, host_port=host_port),))
    attachment = await runner.add(site.conf("1.0.0", PORTMAP), pod)
    command = ["ip", "netns", "exec", site.netns, "python3", "-m", "http.server", "8000"]
    with subprocess.Popen(command, cwd=site.data_dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            await wait_meanwhile("the server in the pod to answer", lambda: reach(attachment.ips()[0], 8000))
            assert await anyio.to_thread.run_sync(reach, "127.0.0.1", host_port)
            await runner.delete(attachment, pod)
            assert not await anyio.to_thread.run_sync(reach, "127.0.0.1", host_port)
        finally:
            server.kill()
    assert site.residue() == []


async def test_delete_with_the_namespace_gone_gives_back_address_and_rules(site: Site) -> None:
    """R5, R6: after a reboot there is no namespace, and no other one may be touched in its place.

    Without masquerading: the bridge plugin looks up the address for that rule in the namespace, and leaves the rule
    when the namespace is gone (1.1.1 and before; a reboot clears it).
    """
    runner = CniRunner([PLUGIN_DIR])
    pod = replace(site.pod, port_mappings=(PortMapping(container_port=80, host_port=30000 + os.getpid() % 10000),))
    attachment = await runner.add(site.conf("1.0.0", PORTMAP, masquerade=False), pod)
    ip("netns", "delete", site.netns)
    await runner.delete(attachment, replace(pod, netns=""))
    assert site.residue() == []


async def test_delete_by_network_undoes_an_add_that_never_returned(site: Site) -> None:
    """R4: the server may be killed between the ADD and the record of its result."""
    runner = CniRunner([PLUGIN_DIR])
    network = site.conf("1.0.0", PORTMAP)
    pod = replace(site.pod, port_mappings=(PortMapping(container_port=80, host_port=30000 + os.getpid() % 10000),))
    await runner.add(network, pod)
    await runner.delete(network, pod)
    assert site.residue() == []


async def test_add_failing_at_the_last_plugin_leaves_nothing(site: Site, tmp_path: Path) -> None:
    """R3: the address and the interface of the plugins before it are given back before the caller hears of it."""
    plugins = script(
        tmp_path / "plugins", "broken", 'echo "out of order" >&2; echo \'{"code": 11, "msg": "later"}\'; exit 1'
    )
    runner = CniRunner([PLUGIN_DIR, plugins])
    with pytest.raises(OperationError) as caught:
        await runner.add(site.conf("1.0.0", PORTMAP, {"type": "broken"}), site.pod)
    assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "CNI_PLUGIN_FAILED")
    assert f"CNI plugin 'broken' failed ADD for network '{site.tag}': code 11: later; stderr: out of order" in str(
        caught.value
    )
    assert "after that: CNI plugin 'broken' failed DEL" in str(caught.value)
    assert site.residue() == []


async def test_add_with_a_missing_plugin_names_it_and_where_it_was_looked_for(site: Site, tmp_path: Path) -> None:
    """R3: the commonest mistake of a new node; the plugins before the missing one are undone."""
    runner = CniRunner([str(tmp_path), PLUGIN_DIR])
    with pytest.raises(OperationError) as caught:
        await runner.add(site.conf("1.0.0", {"type": "absent"}), site.pod)
    assert caught.value.reason == "CNI_PLUGIN_NOT_FOUND"
    assert f"'absent' of network '{site.tag}' is not an executable file in any of: {tmp_path}, {PLUGIN_DIR}" in str(
        caught.value
    )
    assert site.residue() == []


async def test_add_with_a_hanging_plugin_ends_in_time_kills_its_group_and_is_undone(site: Site, tmp_path: Path) -> None:
    """R4: the DEL after a timeout has a deadline of its own; the plugin's children die with it."""
    pid_file = tmp_path / "pid"
    body = f'[ "$CNI_COMMAND" = DEL ] && exit 0\nsleep 600 & echo $! > {pid_file}; wait'
    runner = CniRunner([PLUGIN_DIR, script(tmp_path / "plugins", "slow", body)], deadlines=Deadlines(add_s=2.0))
    with pytest.raises(OperationError) as caught:
        await runner.add(site.conf("1.0.0", {"type": "slow"}), site.pod)
    assert (caught.value.code.name, caught.value.reason) == ("DEADLINE_EXCEEDED", "CNI_TIMEOUT")
    assert "'slow' did not finish ADD" in str(caught.value) and "after that" not in str(caught.value)
    pid = int(pid_file.read_text())
    await wait_meanwhile("the plugin to be dead", lambda: is_dead(pid))
    assert site.residue() == []


async def test_cancelled_add_kills_the_plugin_and_can_be_undone(site: Site, tmp_path: Path) -> None:
    """A server that stops must not leave plugins at work behind its back."""
    pid_file = tmp_path / "pid"
    body = f'[ "$CNI_COMMAND" = DEL ] && exit 0\necho $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600'
    runner = CniRunner([PLUGIN_DIR, script(tmp_path / "plugins", "slow", body)])
    network = site.conf("1.0.0", {"type": "slow"})
    async with anyio.create_task_group() as group:
        group.start_soon(runner.add, network, site.pod)
        await wait_meanwhile("the plugin to run", pid_file.exists)
        group.cancel_scope.cancel()
    pid = int(pid_file.read_text())
    await wait_meanwhile("the plugin to be dead", lambda: is_dead(pid))
    await runner.delete(network, site.pod)
    assert site.residue() == []


async def test_adds_at_the_same_time_give_different_addresses_and_leave_nothing(site: Site) -> None:
    """A node starts many pods at once, on one bridge and one pool of addresses."""
    runner = CniRunner([PLUGIN_DIR])
    network = site.conf()
    pods = [replace(site.pod, sandbox_id=f"{site.tag}c{index}", ifname=f"eth{index}") for index in range(5)]
    attached: dict[str, Attachment] = {}

    async def add(pod: PodNetwork) -> None:
        attached[pod.sandbox_id] = await runner.add(network, pod)

    async with anyio.create_task_group() as group:
        for pod in pods:
            group.start_soon(add, pod)
    assert len({attachment.ips() for attachment in attached.values()}) == len(pods)
    async with anyio.create_task_group() as group:
        for pod in pods:
            group.start_soon(runner.delete, attached[pod.sandbox_id], pod)
    assert site.residue() == []


async def test_environment_of_a_plugin_is_the_servers_without_its_own_cni_variables(tmp_path: Path) -> None:
    """Plugins need PATH and proxies; a CNI_ARGS of the server's own environment would be told of every pod."""
    plugins = script(tmp_path / "plugins", "tell", f"env > {tmp_path}/env; echo '{{}}'")
    runner = CniRunner(
        [plugins], env={"PATH": os.environ["PATH"], "HTTPS_PROXY": "p", "CNI_ARGS": "X=1", "CNI_OTHER": "y"}
    )
    network = parse_network(ConfFile(name="1.conf", content=b'{"cniVersion": "1.0.0", "name": "n", "type": "tell"}'))
    await runner.add(network, PodNetwork(sandbox_id="c1", name="web", netns="/n"))
    lines = (tmp_path / "env").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines if line.startswith(("CNI_", "HTTPS_")))
    assert seen == {
        "HTTPS_PROXY": "p",
        "CNI_COMMAND": "ADD",
        "CNI_PATH": plugins,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/n",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=",
    }


async def test_output_without_end_is_cut_and_is_a_failure(site: Site, tmp_path: Path) -> None:
    """R2: a plugin that floods its output must not fill the server's memory."""
    flood = "i=0; while [ $i -lt 3000 ]; do echo 01234567890123456789012345678901234567890123456789; i=$((i+1)); done"
    runner = CniRunner([script(tmp_path / "plugins", "flood", f"({flood}); ({flood}) >&2")])
    network = parse_network(ConfFile(name="1.conf", content=b'{"cniVersion": "1.0.0", "name": "n", "type": "flood"}'))
    with pytest.raises(OperationError) as caught:
        await runner.add(network, site.pod)
    assert caught.value.reason == "CNI_PLUGIN_FAILED" and len(str(caught.value)) < 10_000


async def test_status_of_1_1_reaches_the_plugin(tmp_path: Path) -> None:
    """The installed plugins end at 1.0.0, so a plugin of our own answers for 1.1.0."""
    body = f'cat > {tmp_path}/$CNI_COMMAND; echo \'{{"code": 50, "msg": "not yet"}}\'; exit 1'
    runner = CniRunner([script(tmp_path / "plugins", "modern", body)])
    network = parse_network(ConfFile(name="1.conf", content=b'{"cniVersion": "1.1.0", "name": "n", "type": "modern"}'))
    with pytest.raises(OperationError, match="code 50: not yet"):
        await runner.status(network)
    assert [(item.verb, item.failures, item.last_error != "") for item in runner.stats.series()] == [
        ("STATUS", 1, True)
    ]
    assert json.loads((tmp_path / "STATUS").read_text())["name"] == "n"


def reach(host: str, port: int) -> bool:
    """Whether an HTTP server answers."""
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def is_dead(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
