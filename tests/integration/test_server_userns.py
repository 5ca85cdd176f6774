"""Pods with a user namespace of their own: their root is nobody on the node, and what they write goes with them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio
from tests.integration.test_check import _findings as findings

pytestmark = pytest.mark.integration
LENGTH = 65536
FIRST, SECOND = 300_000, 500_000


def users(host_id: int, length: int = LENGTH, container_id: int = 0) -> pb.UserNamespace:
    """What a kubelet asks for: one run of ids, the same for users and groups."""
    runs = [pb.IDMapping(host_id=host_id, container_id=container_id, length=length)]
    return pb.UserNamespace(mode=pb.POD, uids=runs, gids=runs)


def options(host_id: int, **fields: Any) -> pb.NamespaceOption:
    return pb.NamespaceOption(**{"pid": pb.CONTAINER, "userns_options": users(host_id), **fields})


def pod_linux(wanted: pb.NamespaceOption, **fields: Any) -> pb.LinuxPodSandboxConfig:
    context = pb.LinuxSandboxSecurityContext(namespace_options=wanted)
    return pb.LinuxPodSandboxConfig(security_context=context, **fields)


def linux(wanted: pb.NamespaceOption, **fields: Any) -> pb.LinuxContainerConfig:
    context = pb.LinuxContainerSecurityContext(namespace_options=wanted, **fields)
    return pb.LinuxContainerConfig(security_context=context)


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    return ("busybox", "pause")


@pytest.fixture(scope="module")
def site_mode() -> int:
    """Others may pass through, as through /run and /var/lib."""
    return 0o711


def pid_of(crio: Crio, container_id: str) -> int:
    info = crio.client(pb.ContainerStatusRequest(container_id=container_id, verbose=True)).info
    return int(json.loads(info["info"])["pid"])


def owner(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid


def test_root_of_a_pod_is_nobody_on_the_node_and_sees_its_image_as_its_own(crio: Crio) -> None:
    """Issue 5: a container that breaks out has the rights of no user of the node; inside, nothing looks different."""
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST)))
    container_id = crio.begin(pod_id, ["sleep", "1000"], linux=linux(options(FIRST)))
    pid = pid_of(crio, container_id)
    assert Path(f"/proc/{pid}").stat().st_uid == FIRST
    for name in ("uid_map", "gid_map"):
        assert Path(f"/proc/{pid}/{name}").read_text().split() == ["0", str(FIRST), str(LENGTH)]
    code, out, _ = execute(
        crio,
        container_id,
        "id -u; stat -c %u:%g / /bin /bin/busybox /dev/shm; echo new > /new; mkdir /etc/own; chown 7:8 /new;"
        " stat -c %u:%g /new; echo shared > /dev/shm/x; ip addr show lo | grep -c UP",
    )
    lines = out.splitlines()
    assert (code, lines) == (0, ["0", "0:0", "0:0", "0:0", "0:0", "7:8", "1"]), out
    upper = crio.site.marks.root / "storage" / "containers" / container_id / "upper"
    assert owner(upper) == (FIRST, FIRST)
    assert owner(upper / "new") == (FIRST + 7, FIRST + 8)
    assert owner(upper / "etc" / "own") == (FIRST, FIRST)
    crio.remove_all()
    assert not upper.exists()


def execute(crio: Crio, container_id: str, script: str) -> tuple[int, str, str]:
    answer = crio.client(pb.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", script], timeout=20))
    return answer.exit_code, answer.stdout.decode(), answer.stderr.decode()


def test_two_pods_with_other_ids_share_one_image_and_each_sees_it_as_its_own(crio: Crio) -> None:
    """The layers are unpacked once, as the node's root: no pod pays for a copy, and none can read another's files."""
    seen = []
    for host_id in (FIRST, SECOND):
        pod_id = crio.run_pod(linux=pod_linux(options(host_id)))
        container_id = crio.begin(pod_id, ["sleep", "1000"], linux=linux(options(host_id)))
        seen.append((pid_of(crio, container_id), execute(crio, container_id, "stat -c %u /bin/busybox")[1]))
    plain_id = crio.run_pod()
    plain = crio.begin(plain_id, ["sleep", "1000"])
    assert [text for _, text in seen] == ["0\n", "0\n"]
    assert [Path(f"/proc/{pid}/root/bin/busybox").stat().st_uid for pid, _ in seen] == [FIRST, SECOND]
    assert Path(f"/proc/{pid_of(crio, plain)}/root/bin/busybox").stat().st_uid == 0
    crio.remove_all()


def test_pods_namespaces_belong_to_its_user_namespace(crio: Crio) -> None:
    """Root in the pod may set up its network, its host name and its settings; CNI works on that network too."""
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST), sysctls=sysctls))
    status = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status
    assert status.network.ip.startswith(crio.site.marks.subnet)
    assert status.linux.namespaces.options.userns_options == users(FIRST)
    capabilities = pb.Capability(add_capabilities=["NET_ADMIN", "SYS_ADMIN"])
    code, out = crio.run(
        pod_id,
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced;"
        " ip link set lo down && ip link set lo up && hostname other && hostname;"
        " mkdir /m && mount -t tmpfs x /m && echo done",
        linux=linux(options(FIRST), capabilities=capabilities),
    )
    assert (code, out.split()) == (0, ["0", "1", "other", "done"]), out
    crio.remove_all()


def test_volumes_with_mapped_ids_keep_their_owners_on_the_node(crio: Crio, tmp_path: Path) -> None:
    """A kubelet asks this of every volume of such a pod: files belong to the same number on both sides."""
    volume, file = tmp_path / "volume", tmp_path / "file"
    volume.mkdir()
    os.chown(volume, 1000, 1000)
    file.write_text("a file\n")
    runs = users(FIRST).uids
    mounts = [
        pb.Mount(container_path=path, host_path=str(source), uidMappings=runs, gidMappings=runs)
        for path, source in (("/volume", volume), ("/etc/file", file), ("/made", tmp_path / "made"))
    ]
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST)))
    code, out = crio.run(
        pod_id,
        "stat -c %u:%g /volume /etc/file; touch /volume/x /made/y; chown 5:6 /volume/x; cat /etc/file",
        mounts=mounts,
        linux=linux(options(FIRST)),
    )
    assert (code, out.split("\n")[:3]) == (0, ["1000:1000", "0:0", "a file"]), out
    assert owner(volume / "x") == (5, 6)
    assert owner(tmp_path / "made" / "y") == (0, 0)
    other = users(SECOND).uids
    wrong = pb.Mount(container_path="/v", host_path=str(volume), uidMappings=other, gidMappings=other)
    crio.begin(pod_id, ["sleep", "1000"], "beside", mounts=mounts, linux=linux(options(FIRST)))
    assert findings(crio) == [], "crio check knows whose the mounts and pins are"
    config = crio.container_config(["true"], "wrong", mounts=[wrong], linux=linux(options(FIRST)))
    refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config))
    assert (refused.code, "mounts[0]" in refused.message) == (StatusCode.FAILED_PRECONDITION, True)
    crio.remove_all()
    assert volume.is_dir() and (volume / "x").exists(), "what was mounted is never removed"


def test_host_path_that_cannot_be_made_is_refused_alike_with_and_without_mapped_ids(crio: Crio, tmp_path: Path) -> None:
    """One mistake in a pod has one message, whatever its namespaces are."""
    (tmp_path / "file").touch()
    source, runs = str(tmp_path / "file" / "below"), users(FIRST).uids
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST)))
    refusals = set()
    for mount in (
        pb.Mount(container_path="/v", host_path=source, uidMappings=runs, gidMappings=runs),
        pb.Mount(container_path="/v", host_path=source),
    ):
        config = crio.container_config(["true"], mounts=[mount], linux=linux(options(FIRST)))
        refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config))
        refusals.add((refused.code, refused.message))
    [(code, message)] = refusals
    assert code is StatusCode.FAILED_PRECONDITION
    assert source in message and "Not a directory" in message
    crio.remove_all()


def test_volume_that_cannot_be_mapped_is_refused_by_its_path(crio: Crio) -> None:
    """Not every file system can: whoever wrote the pod must learn which volume it is."""
    runs = users(FIRST).uids
    mount = pb.Mount(container_path="/v", host_path="/proc/sys", uidMappings=runs, gidMappings=runs)
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST)))
    config = crio.container_config(["true"], mounts=[mount], linux=linux(options(FIRST)))
    refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config))
    assert (refused.code, "/proc/sys" in refused.message) == (StatusCode.FAILED_PRECONDITION, True), refused
    crio.remove_all()


def test_pod_with_a_shared_pid_namespace_has_it_in_its_user_namespace(crio: Crio) -> None:
    """The infra container, which holds that namespace, is in the user namespace too."""
    wanted = options(FIRST, pid=pb.POD)
    pod_id = crio.run_pod(linux=pod_linux(wanted))
    container_id = crio.begin(pod_id, ["sleep", "1000"], linux=linux(wanted))
    assert "catatonit" in execute(crio, container_id, "ps -o args")[1]
    crio.remove_all()


def test_image_mounted_into_the_pod_is_its_roots(crio: Crio) -> None:
    """An image as a volume follows the same ids as the root filesystem."""
    mount = pb.Mount(container_path="/other", image=pb.ImageSpec(image=crio.images.busybox))
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST)))
    code, out = crio.run(pod_id, "stat -c %u /other/bin/busybox", mounts=[mount], linux=linux(options(FIRST)))
    assert (code, out) == (0, "0\n")
    crio.remove_all()


def test_killed_server_finds_such_a_pod_again(own_crio: Crio) -> None:
    """A pin is a pin: what runs goes on running, can be entered, and is taken away whole."""
    pod_id = own_crio.run_pod(linux=pod_linux(options(FIRST)))
    container_id = own_crio.begin(pod_id, ["sleep", "1000"], linux=linux(options(FIRST)))
    pid = pid_of(own_crio, container_id)
    own_crio.restart(9)
    assert pid_of(own_crio, container_id) == pid
    state = own_crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status.state
    assert state == pb.SANDBOX_READY
    assert execute(own_crio, container_id, "id -u")[:2] == (0, "0\n")
    second = own_crio.begin(pod_id, ["sleep", "1000"], "second", linux=linux(options(FIRST)))
    assert os.readlink(f"/proc/{pid_of(own_crio, second)}/ns/user") == os.readlink(f"/proc/{pid}/ns/user")


def test_way_to_a_root_filesystem_is_open_to_its_pod_alone(crio: Crio) -> None:
    """CVE-2021-41103: a user of the node must not come to set-id programs in the root filesystems of pods.

    The directory of all is the administrator's, who may have let a group read it: that stays so.
    """
    runroot = crio.site.marks.runroot
    runroot.chmod(0o750)
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST)))
    container_id = crio.begin(pod_id, ["sleep", "1000"], linux=linux(options(FIRST)))
    bundle = runroot / "containers" / container_id
    assert (bundle.stat().st_mode & 0o7777, owner(bundle)) == (0o710, (0, FIRST))
    assert (bundle / "config.json").stat().st_mode & 0o077 == 0
    assert (runroot.stat().st_mode & 0o7777, bundle.parent.stat().st_mode & 0o7777) == (0o751, 0o701)
    crio.remove_all()


REFUSED = {
    "the node's network": (options(FIRST, network=pb.NODE), "namespace_options.network"),
    "the node's processes": (options(FIRST, pid=pb.NODE), "namespace_options.pid"),
    "the node's IPC": (options(FIRST, ipc=pb.NODE), "namespace_options.ipc"),
    "no ids": (options(0, userns_options=users(FIRST, length=0)), "userns_options.uids[0]"),
    "ids beyond the last": (options(0, userns_options=users(2**32 - 10)), "userns_options.uids[0]"),
    "no root": (options(0, userns_options=users(FIRST, container_id=1)), "userns_options.uids"),
    "no groups": (
        options(0, userns_options=pb.UserNamespace(mode=pb.POD, uids=users(FIRST).uids)),
        "userns_options.gids",
    ),
    "overlapping runs": (
        options(
            0,
            userns_options=pb.UserNamespace(
                mode=pb.POD, uids=[*users(FIRST).uids, *users(FIRST).uids], gids=users(FIRST).gids
            ),
        ),
        "userns_options.uids",
    ),
    "another mode": (options(0, userns_options=pb.UserNamespace(mode=pb.CONTAINER)), "userns_options.mode"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_with_the_name_of_the_field(crio: Crio, what: str) -> None:
    """Nothing is reserved for a pod that would fail later, in the runtime, with words about something else."""
    wanted, field = REFUSED[what]
    config = crio.pod_config(linux=pod_linux(wanted))
    refused = crio.client.refusal(pb.RunPodSandboxRequest(config=config))
    assert (refused.code, field in refused.message) == (StatusCode.INVALID_ARGUMENT, True), refused


def test_container_with_other_ids_than_its_pod_is_refused(crio: Crio) -> None:
    """One pod, one user namespace: the first process would not be who the request says."""
    pod_id = crio.run_pod(linux=pod_linux(options(FIRST)))
    config = crio.container_config(["true"], linux=linux(options(SECOND)))
    refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config))
    assert (refused.code, "userns_options" in refused.message) == (StatusCode.INVALID_ARGUMENT, True)
    crio.remove_all()


def test_kubelet_is_told_which_handlers_can(crio: Crio) -> None:
    """A kubelet refuses such pods by itself where no handler says that it can."""
    handlers = crio.client(pb.StatusRequest()).runtime_handlers
    assert {one.name: one.features.user_namespaces for one in handlers} == {"": True, "runc": True}
