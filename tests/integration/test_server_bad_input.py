"""Wrong requests and a wrong node: the right gRPC code, a message that names field, value and remedy, no residue."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, Site

pytestmark = pytest.mark.integration

UNKNOWN = "f" * 64


@pytest.fixture
def pod(crio: Crio) -> Iterator[str]:
    """A ready pod."""
    with crio.pod() as pod_id:
        yield pod_id


def host_mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


# --- requests without what they need ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.RunPodSandboxRequest(), "config.metadata.name"),
        (pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="x"))), "namespace"),
        (pb.StopPodSandboxRequest(), "pod_sandbox_id"),
        (pb.RemovePodSandboxRequest(), "pod_sandbox_id"),
        (pb.PodSandboxStatusRequest(), "pod_sandbox_id"),
        (pb.CreateContainerRequest(), "config.metadata.name"),
        (pb.CreateContainerRequest(config=pb.ContainerConfig(metadata=pb.ContainerMetadata(name="x"))), "image"),
        (pb.StartContainerRequest(), "container_id"),
        (pb.StopContainerRequest(), "container_id"),
        (pb.RemoveContainerRequest(), "container_id"),
        (pb.ContainerStatusRequest(), "container_id"),
        (pb.ReopenContainerLogRequest(), "container_id"),
        (pb.UpdateContainerResourcesRequest(), "container_id"),
        (pb.UpdatePodSandboxResourcesRequest(), "pod_sandbox_id"),
        (pb.ExecSyncRequest(), "container_id"),
        (pb.ImageStatusRequest(), "image"),
        (pb.PullImageRequest(), "image"),
        (pb.RemoveImageRequest(), "image"),
    ],
    ids=lambda value: value.DESCRIPTOR.name if isinstance(value, Message) else value,
)
def test_empty_request_is_refused_and_names_the_field(crio: Crio, request_: Message, field: str) -> None:
    """An empty message must not mean `everything` or `the first one`."""
    refused = crio.client.refusal(request_)
    assert refused.code is StatusCode.INVALID_ARGUMENT, refused
    assert field in refused.message
    assert "expected" in refused.message


@pytest.mark.parametrize(
    "make",
    [
        lambda one: pb.PodSandboxStatusRequest(pod_sandbox_id=one),
        lambda one: pb.ContainerStatusRequest(container_id=one),
        lambda one: pb.StartContainerRequest(container_id=one),
        lambda one: pb.ExecSyncRequest(container_id=one, cmd=["true"]),
        lambda one: pb.ReopenContainerLogRequest(container_id=one),
        lambda one: pb.UpdateContainerResourcesRequest(container_id=one),
        lambda one: pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=one),
    ],
)
def test_unknown_id_is_not_found_and_is_repeated(crio: Crio, make: Callable[[str], Message]) -> None:
    """A person must see which id was meant."""
    for unknown in (UNKNOWN, "nothing", "../../etc", "x" * 5000):
        refused = crio.client.refusal(make(unknown))
        assert refused.code is StatusCode.NOT_FOUND, refused
        assert unknown[:64] in refused.message


def test_unknown_ids_are_as_stopped_and_removed_as_can_be(crio: Crio) -> None:
    """CRI: these calls are idempotent and succeed for what is gone."""
    crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=UNKNOWN))
    crio.client(pb.RemovePodSandboxRequest(pod_sandbox_id=UNKNOWN))
    crio.client(pb.RemoveContainerRequest(container_id=UNKNOWN))
    crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image="sha256:" + UNKNOWN)))


def test_container_in_an_unknown_pod_is_refused(crio: Crio) -> None:
    """Nothing is made for it."""
    refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=UNKNOWN, config=crio.container_config()))
    assert refused.code is StatusCode.NOT_FOUND
    assert UNKNOWN in refused.message


def test_ambiguous_prefix_is_refused_and_shows_candidates(crio: Crio) -> None:
    """A prefix that fits two pods must not stop one of them: seventeen ids share at least one first digit."""
    pods = [crio.run_pod() for _ in range(17)]
    first = next(one[0] for one in pods if sum(other[0] == one[0] for other in pods) > 1)
    refused = crio.client.refusal(pb.StopPodSandboxRequest(pod_sandbox_id=first))
    assert refused.code is StatusCode.INVALID_ARGUMENT
    alike = [one for one in pods if one[0] == first]
    assert f"not of {len(alike)}: " in refused.message
    assert any(one[:12] in refused.message for one in alike)
    ready = [one.state for one in crio.client(pb.ListPodSandboxRequest()).items]
    assert set(ready) == {pb.SANDBOX_READY}
    crio.remove(*pods)


# --- pods ---------------------------------------------------------------------------------------------------------

HOSTILE_NAMES = ("../../x", "a/b", "/abs", "..", "a\nb", "a b", "-x", "x" * 300, "x;reboot", "a\x00b", "é")


@pytest.mark.parametrize("field", ["name", "namespace", "uid", "hostname"])
def test_hostile_names_of_pods_are_refused(crio: Crio, field: str) -> None:
    """CVE-2025-0750: what becomes part of a path, an argument or a comment is held to a plain alphabet."""
    before = crio.left()
    for number, name in enumerate(HOSTILE_NAMES):
        if field == "uid" and name in ("..", "-x"):
            continue  # Not part of any path, and harmless as it is.
        config = crio.pod_config(f"host{number}")
        if field == "hostname":
            config.hostname = name
        else:
            setattr(config.metadata, field, name)
        refused = crio.client.refusal(pb.RunPodSandboxRequest(config=config))
        assert refused.code is StatusCode.INVALID_ARGUMENT, (name, refused)
        assert field in refused.message
    assert crio.left() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"log_directory": "relative"}, "log_directory"),
        ({"log_directory": "/var/log/../../etc"}, "log_directory"),
        ({"port_mappings": [pb.PortMapping(container_port=0, host_port=80)]}, "port_mappings[0].container_port"),
        ({"port_mappings": [pb.PortMapping(container_port=80, host_port=70000)]}, "port_mappings[0].host_port"),
        ({"port_mappings": [pb.PortMapping(container_port=80, host_port=1, host_ip="nowhere")]}, "host_ip"),
        ({"dns_config": pb.DNSConfig(servers=["1.1.1.1\nnameserver 6.6.6.6"])}, "dns_config"),
        ({"dns_config": pb.DNSConfig(searches=["a\noptions x"])}, "dns_config"),
        ({"linux": pb.LinuxPodSandboxConfig(cgroup_parent="../../escape")}, "cgroup_parent"),
        ({"linux": pb.LinuxPodSandboxConfig(cgroup_parent="kubepods.slice")}, "cgroup_parent"),
        ({"linux": pb.LinuxPodSandboxConfig(cgroup_parent="/a/../../b")}, "cgroup_parent"),
    ],
    ids=str,
)
def test_bad_pod_options_are_refused_and_named(crio: Crio, change: dict[str, Any], said: str) -> None:
    """Each refusal says which field, which value, and what was expected; nothing is left."""
    config = crio.pod_config(**change)
    refused = crio.client.refusal(pb.RunPodSandboxRequest(config=config))
    assert refused.code is StatusCode.INVALID_ARGUMENT, refused
    assert said in refused.message
    assert "expected" in refused.message


def test_runtime_handler_that_is_not_configured_is_not_found(crio: Crio) -> None:
    """The kubelet shows this to the user of a RuntimeClass."""
    refused = crio.client.refusal(pb.RunPodSandboxRequest(config=crio.pod_config(), runtime_handler="kata"))
    assert refused.code is StatusCode.NOT_FOUND
    assert "kata" in refused.message
    assert "runc" in refused.message


# --- containers ---------------------------------------------------------------------------------------------------


def kinds_of_bad_containers() -> list[Any]:
    def case(said: str, code: StatusCode = StatusCode.INVALID_ARGUMENT, **fields: Any) -> Any:
        return pytest.param(said, code, fields, id=f"{said} {len(str(fields))}")

    def mount(container_path: str, host_path: str = "/tmp", **fields: Any) -> dict[str, Any]:
        return {"mounts": [pb.Mount(container_path=container_path, host_path=host_path, **fields)]}

    def security(**fields: Any) -> pb.LinuxContainerConfig:
        return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))

    missing = StatusCode.NOT_FOUND
    return [
        case("no/such/image", missing, image="127.0.0.1:1/no/such/image:tag"),
        case("image", missing, image="UPPER case is no reference"),
        case("mounts[0].container_path", **mount("relative")),
        case("mounts[0].container_path", **mount("/a/../../etc")),
        case("mounts[0].container_path", **mount("/proc/self")),
        case("mounts[0].container_path", **mount("/")),
        case("mounts[0].host_path", **mount("/data", "relative")),
        case("mounts[0].host_path", **mount("/data", "/tmp/../etc/shadow")),
        case("mounts[0].host_path", **mount("/data", "/" + "x" * 70000)),
        case("mounts[0].mount_options", **mount("/data", "/tmp", mount_options=["suid"])),
        case("log_path", log_path="../../../etc/cron.d/x"),
        case("log_path", log_path="/etc/cron.d/x"),
        case("working_dir", working_dir="relative/dir"),
        case("working_dir", working_dir="/proc/self/fd/7"),
        case("envs", envs=[pb.KeyValue(key="A=B", value=b"x")]),
        case("envs", envs=[pb.KeyValue(key="", value=b"x")]),
        case("capabilities", linux=security(capabilities=pb.Capability(add_capabilities=["NO_SUCH"]))),
        case("run_as_group", linux=security(run_as_group=pb.Int64Value(value=5))),
        case("run_as_user", linux=security(run_as_user=pb.Int64Value(value=2**32))),
        case("run_as_user", linux=security(run_as_user=pb.Int64Value(value=-1))),
        case("run_as_username", linux=security(run_as_username="nobody-knows-me")),
        case("devices[0]", devices=[pb.Device(container_path="/dev/x", host_path="/dev/null", permissions="rx")]),
        case("stop_signal", stop_signal=pb.Signal.ValueType(9999)),
        case("security_context.privileged", linux=security(privileged=True)),
        case(
            "options.network", linux=security(namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER))
        ),
        case("options.pid", linux=security(namespace_options=pb.NamespaceOption(pid=pb.NODE))),
        case("options.ipc", linux=security(namespace_options=pb.NamespaceOption(ipc=pb.NODE, pid=pb.CONTAINER))),
        case("pid", linux=security(namespace_options=pb.NamespaceOption(pid=pb.POD))),
        case("target_id", linux=security(namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="x"))),
    ]


@pytest.mark.parametrize(("said", "code", "fields"), kinds_of_bad_containers())
def test_bad_container_is_refused_named_and_leaves_nothing(
    crio: Crio, pod: str, said: str, code: StatusCode, fields: dict[str, Any]
) -> None:
    """Each is refused with its field; afterwards the same name can be used, so nothing of it was kept."""
    crio.run(pod, "true", "first")  # With its first container the pod's parent cgroup comes, and stays.
    before, mounted = crio.left(), host_mounts()
    refused = crio.client.refusal(
        pb.CreateContainerRequest(pod_sandbox_id=pod, config=crio.container_config(["true"], **fields))
    )
    assert refused.code is code, refused
    assert said in refused.message
    assert crio.client(pb.ListContainersRequest()).containers == []
    assert crio.left() == before
    assert [point for point in host_mounts() if point not in mounted and str(crio.site.directory) in point] == []
    assert crio.run(pod, "echo fine") == (0, "fine\n")


def test_missing_program_is_said_when_the_container_is_made_or_started(crio: Crio, pod: str) -> None:
    """The user's most frequent mistake: the answer has the program's name, and there is no half container."""
    config = crio.container_config(["/no/such/program"])
    made = crio.client.attempt(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
    if isinstance(made, pb.CreateContainerResponse):
        refused = crio.client.refusal(pb.StartContainerRequest(container_id=made.container_id))
        assert crio.ended(made.container_id).exit_code != 0
        crio.client(pb.RemoveContainerRequest(container_id=made.container_id))
    else:
        refused = made
    assert "/no/such/program" in refused.message


def test_home_with_a_newline_does_not_reach_any_file(crio: Crio, pod: str) -> None:
    """CVE-2022-4318, CVE-2026-15809: environment of the request is never written into /etc/passwd."""
    hostile = "/root\nevil:x:0:0::/:/bin/sh"
    config = crio.container_config(["cat", "/etc/passwd"], envs=[pb.KeyValue(key="HOME", value=hostile.encode())])
    config.linux.security_context.run_as_user.value = 4242
    made = crio.client.attempt(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
    if isinstance(made, pb.CreateContainerResponse):
        crio.client(pb.StartContainerRequest(container_id=made.container_id))
        crio.ended(made.container_id)
        assert "evil" not in Path(crio.status(made.container_id).log_path).read_text()
    else:
        assert made.code is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("reference", "codes"),
    [
        ("127.0.0.1:1/nobody/listens:here", {StatusCode.UNAVAILABLE}),
        ("{registry}/busybox:no-such-tag", {StatusCode.NOT_FOUND}),
        ("{registry}/no/such/repository:x", {StatusCode.NOT_FOUND}),
        ("{registry}/busybox@sha256:" + "0" * 64, {StatusCode.NOT_FOUND}),
        ("{registry}/busybox@sha256:short", {StatusCode.INVALID_ARGUMENT}),
        ("{registry}/busybox@sha256:../../../../etc/passwd", {StatusCode.INVALID_ARGUMENT}),
        ("HTTP://not a reference", {StatusCode.INVALID_ARGUMENT}),
        ("sha256:" + "1" * 64, {StatusCode.INVALID_ARGUMENT}),
    ],
)
def test_image_that_cannot_be_pulled_says_why(crio: Crio, reference: str, codes: set[StatusCode]) -> None:
    """The kubelet's back-off and its message to the user depend on the code; nothing half stays in the store."""
    name = reference.format(registry=crio.images.registry.host)
    refused = crio.client.refusal(pb.PullImageRequest(image=pb.ImageSpec(image=name)))
    assert refused.code in codes, refused
    if refused.code is StatusCode.INVALID_ARGUMENT:
        assert "image.image" in refused.message
    else:
        assert name.rpartition("/")[2].split("@")[0].split(":")[0] in refused.message


# --- a node that is set up wrong ----------------------------------------------------------------------------------


def broken_networks() -> list[Any]:
    plugin = {"type": "no-such-plugin"}
    return [
        pytest.param("not json at all", id="text"),
        pytest.param({"cniVersion": "0.4.0", "plugins": []}, id="nameless"),
        pytest.param({"cniVersion": "0.4.0", "name": "x", "plugins": []}, id="no plugins"),
        pytest.param({"cniVersion": "0.4.0", "name": "x", "plugins": [plugin]}, id="missing plugin"),
        pytest.param({"cniVersion": "0.4.0", "name": "x", "plugins": [{"type": "../../bin/sh"}]}, id="path"),
        pytest.param({"cniVersion": "9.9.9", "name": "x", "plugins": [{"type": "bridge"}]}, id="version"),
    ]


@pytest.mark.parametrize("document", broken_networks())
def test_pod_on_a_bad_network_is_refused_and_the_next_good_one_works(crio: Crio, document: object) -> None:
    """CVE-2021-20206, R43: a file that names no usable network makes the node not ready, until it is repaired."""
    crio.site.write_network(document)
    try:
        refused = crio.client.refusal(pb.RunPodSandboxRequest(config=crio.pod_config()))
        assert refused.code in (StatusCode.UNAVAILABLE, StatusCode.FAILED_PRECONDITION), refused
        assert "network" in refused.message.lower() or "CNI" in refused.message
        crio.assert_clean()
        host = pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER))
        crio.remove(crio.run_pod(linux=pb.LinuxPodSandboxConfig(security_context=host), hostname=""))
    finally:
        crio.site.write_network()
    crio.remove(crio.run_pod())


def test_plugin_that_fails_is_quoted_and_undone(crio: Crio) -> None:
    """R3, R4: the reason is the plugin's own words, and the address that it had given is free again."""
    document = crio.site.network()
    document["plugins"].append({"type": "tuning", "sysctl": {"net.no.such": "1"}})
    crio.site.write_network(document)
    try:
        refused = crio.client.refusal(pb.RunPodSandboxRequest(config=crio.pod_config("doomed")))
        assert "tuning" in refused.message
        crio.assert_clean()
    finally:
        crio.site.write_network()
    crio.remove(crio.run_pod(crio.pod_config("doomed")))


@pytest.mark.parametrize("flag", ["--conmon", "--runtimes"])
def test_missing_program_of_the_node_stops_the_start(site: Site, flag: str) -> None:
    """A node without its runtime or monitor must say so at once, not with the first pod."""
    value = "/no/such/conmon" if flag == "--conmon" else f"runc:/no/such/runc:{site.marks.runtime_root}"
    crio = Crio(site, flag, value)
    with pytest.raises(AssertionError, match="the server ended"):
        crio.start()
    assert "/no/such" in crio.tail()
    assert "Traceback" not in crio.tail()
