"""What a pod asks for is really so, seen from inside its containers and from the host."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, read_log
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """The images of this module."""
    return ("busybox", "told", "pause")


@pytest.fixture
def pod(crio: Crio) -> Iterator[str]:
    """A ready pod."""
    with crio.pod() as pod_id:
        yield pod_id


def of_pod(**options: Any) -> pb.LinuxPodSandboxConfig:
    """A pod with these namespaces."""
    options = {"pid": pb.CONTAINER, **options}
    context = pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(**options))
    return pb.LinuxPodSandboxConfig(security_context=context)


def of_container(resources: pb.LinuxContainerResources | None = None, **context: Any) -> pb.LinuxContainerConfig:
    """A container with this security context."""
    return pb.LinuxContainerConfig(resources=resources, security_context=pb.LinuxContainerSecurityContext(**context))


def number(value: int) -> pb.Int64Value:
    return pb.Int64Value(value=value)


def fields(status: str) -> dict[str, str]:
    """The lines of a /proc/PID/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}


def namespace(kind: str, pid: int | str = "self") -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


# --- the pod ------------------------------------------------------------------------------------------------------


def test_dns_config_is_the_containers_resolv_conf(crio: Crio) -> None:
    """Names must be looked up where the cluster says, and nowhere else."""
    dns = pb.DNSConfig(servers=["10.9.8.7", "fd00::53"], searches=["a.example", "b.example"], options=["ndots:5"])
    with crio.pod(dns_config=dns) as pod:
        code, text = crio.run(pod, "cat /etc/resolv.conf; echo nameserver 1.1.1.1 >> /etc/resolv.conf")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert "nameserver 10.9.8.7" in lines
    assert [line for line in lines if line.startswith("nameserver")] == ["nameserver 10.9.8.7", "nameserver fd00::53"]
    assert "search a.example b.example" in lines
    assert "options ndots:5" in lines
    assert code != 0, "the file that the node keeps must not be writable"


def test_without_dns_config_the_hosts_resolv_conf_is_given(crio: Crio, pod: str) -> None:
    """CRI: without a configuration the container has the host's DNS."""
    host = [line for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")]
    text = crio.run(pod, "cat /etc/resolv.conf")[1]
    assert [line for line in text.splitlines() if line.startswith("nameserver")] == host


def test_hostname_is_set_and_in_its_file(crio: Crio) -> None:
    """Programs ask the kernel or read the file: both must agree."""
    with crio.pod(hostname="web-0") as pod:
        assert crio.run(pod, "hostname; cat /etc/hostname; echo $HOSTNAME") == (0, "web-0\nweb-0\nweb-0\n")


def test_dev_shm_is_the_pods_and_64_mib_large(crio: Crio, pod: str) -> None:
    """Containers of a pod share memory through it; without a bound it could fill the node's."""
    first = crio.begin(pod, ["sleep", "600"], "a")
    second = crio.begin(pod, ["sleep", "600"], "b")
    mounted = next(line for line in crio.output(first, "cat", "/proc/mounts").splitlines() if " /dev/shm " in line)
    assert "size=65536k" in mounted
    crio.output(first, "sh", "-c", "echo shared > /dev/shm/x")
    assert crio.output(second, "cat", "/dev/shm/x") == "shared\n"
    assert crio.info(first)["pid"] != crio.info(second)["pid"]


def test_namespaced_sysctls_are_set_in_the_pod_only(crio: Crio) -> None:
    """A pod tunes its own network and IPC; the node's settings stay what they were."""
    wanted = {"net.core.somaxconn": "777", "kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "5000 6000"}
    paths = {name: Path("/proc/sys", *name.split(".")) for name in wanted}
    before = {name: path.read_text() for name, path in paths.items()}
    with crio.pod(linux=pb.LinuxPodSandboxConfig(sysctls=wanted)) as pod:
        text = crio.run(pod, " && ".join(f"cat {path}" for path in paths.values()))[1]
    assert text.replace("\t", " ").splitlines() == list(wanted.values())
    assert {name: path.read_text() for name, path in paths.items()} == before


@pytest.mark.parametrize(
    ("name", "value", "shared"),
    [
        ("kernel.panic", "9", {}),
        ("vm.swappiness", "9", {}),
        ("net.core.somaxconn", "777", {"network": pb.NODE}),
        ("kernel.shm_rmid_forced", "1", {"ipc": pb.NODE}),
        ("net.core.somaxconn", "777+kernel.core_pattern=|/bin/x", {}),
        ("net.core.somaxconn+kernel.core_pattern", "1", {}),
        ("net/../kernel/core_pattern", "x", {}),
        ("net.core.somaxconn", "1\n2", {}),
    ],
)
def test_sysctls_of_the_node_are_refused_and_unchanged(
    crio: Crio, name: str, value: str, shared: dict[str, pb.NamespaceMode]
) -> None:
    """CVE-2022-0532, CVE-2022-0811: neither a shared namespace nor a clever separator lets a pod tune the node."""
    watched = [
        Path("/proc/sys/kernel/core_pattern"),
        Path("/proc/sys/net/core/somaxconn"),
        Path("/proc/sys/kernel/panic"),
    ]
    before = [path.read_text() for path in watched]
    linux = of_pod(**shared)
    linux.sysctls[name] = value
    refused = crio.client.refusal(pb.RunPodSandboxRequest(config=crio.pod_config(linux=linux)))
    assert refused.code is StatusCode.INVALID_ARGUMENT
    assert name in refused.message or repr(name) in refused.message
    assert [path.read_text() for path in watched] == before


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def test_port_mapping_leads_from_the_host_to_the_pod_and_goes_with_it(crio: Crio) -> None:
    """R44: the rules exist exactly as long as the pod does."""
    port = free_port()
    mapping = pb.PortMapping(container_port=80, host_port=port)
    gateway = f"{crio.site.marks.subnet}1"

    def answer() -> bytes:
        try:
            with socket.create_connection((gateway, port), timeout=2) as connection:
                return connection.recv(100)
        except OSError:
            return b""

    with crio.pod(port_mappings=[mapping]) as pod:
        crio.begin(pod, ["nc", "-ll", "-p", "80", "-e", "echo", "from the pod"])
        assert wait_for("an answer through the mapping", answer) == b"from the pod\n"
    assert answer() == b""


def test_host_network_pod_has_the_nodes_network_and_name_and_no_address(crio: Crio) -> None:
    """CRI: a pod in the host's network has no address of its own."""
    with crio.pod(linux=of_pod(network=pb.NODE), hostname="") as pod:
        container = crio.begin(
            pod,
            ["sleep", "600"],
            linux=of_container(namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)),
        )
        pid = crio.info(container)["pid"]
        assert namespace("net", pid) == namespace("net")
        assert namespace("ipc", pid) != namespace("ipc")
        name = socket.gethostname()
        for command in (("hostname",), ("cat", "/etc/hostname"), ("sh", "-c", "echo $HOSTNAME")):
            assert crio.output(container, *command).strip() == name
        status = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
        assert status.network.ip == ""
        assert status.linux.namespaces.options.network == pb.NODE


def test_pod_network_and_ipc_are_shared_by_its_containers_and_nobody_else(crio: Crio, pod: str) -> None:
    """What makes a pod: its containers reach one another by loopback; the PID namespace is each one's own."""
    pids = [crio.info(crio.begin(pod, ["sleep", "600"], name))["pid"] for name in ("a", "b")]
    for kind in ("net", "ipc", "uts"):
        assert namespace(kind, pids[0]) == namespace(kind, pids[1]) != namespace(kind)
    for kind in ("pid", "mnt"):
        assert len({namespace(kind, pid) for pid in (*pids, "self")}) == 3


def test_shared_pid_namespace_is_the_infra_containers(crio: Crio) -> None:
    """Containers see one another's processes; the pod's own process reaps them and is in no list."""
    shared = pb.NamespaceOption(pid=pb.POD)
    with crio.pod(linux=of_pod(pid=pb.POD)) as pod:
        first = crio.begin(pod, ["sleep", "601"], "a", linux=of_container(namespace_options=shared))
        second = crio.begin(pod, ["sleep", "602"], "b", linux=of_container(namespace_options=shared))
        alone = crio.begin(pod, ["sleep", "603"], "c")
        seen = crio.output(second, "ps", "-o", "pid,args")
        assert "sleep 601" in seen
        assert "sleep 603" not in seen
        assert "catatonit" in next(line for line in seen.splitlines() if line.split()[0] == "1")
        assert "sleep 601" not in crio.output(alone, "ps", "-o", "pid,args")
        listed = {found.id for found in crio.client(pb.ListContainersRequest()).containers}
        assert listed == {first, second, alone}


def test_death_of_the_infra_container_makes_the_pod_not_ready(crio: Crio) -> None:
    """Without its process a shared PID namespace takes no more containers: the kubelet has to make the pod anew."""
    with crio.pod(linux=of_pod(pid=pb.POD)) as pod:
        shared = of_container(namespace_options=pb.NamespaceOption(pid=pb.POD))
        container = crio.begin(pod, ["sleep", "600"], linux=shared)
        infra = int(crio.output(container, "sh", "-c", "echo $PPID") or 0)
        assert infra == 0  # The exec's parent is outside; pid 1 of the namespace is looked up on the host.
        inside = os.stat(f"/proc/{crio.info(container)['pid']}/ns/pid").st_ino
        first = next(
            int(entry)
            for entry in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int)
            if _is_first_of(int(entry), inside)
        )
        os.kill(first, 9)
        ready = pb.PodSandboxStatusRequest(pod_sandbox_id=pod)
        wait_for("NOTREADY", lambda: crio.client(ready).status.state == pb.SANDBOX_NOTREADY)
        assert crio.ended(container).exit_code == 137


def _is_first_of(pid: int, inode: int) -> bool:
    try:
        numbers = fields(Path(f"/proc/{pid}/status").read_text())["NSpid"].split()
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == inode and numbers[-1] == "1"
    except OSError:
        return False


def test_node_pid_and_ipc_are_the_hosts(crio: Crio) -> None:
    """What an agent of the node asks for."""
    with crio.pod(linux=of_pod(pid=pb.NODE, ipc=pb.NODE)) as pod:
        options = pb.NamespaceOption(pid=pb.NODE, ipc=pb.NODE)
        container = crio.begin(pod, ["sleep", "600"], linux=of_container(namespace_options=options))
        pid = crio.info(container)["pid"]
        assert namespace("pid", pid) == namespace("pid")
        assert namespace("ipc", pid) == namespace("ipc")
        crio.stop(container)


def test_a_container_that_shares_with_its_pod_has_the_nodes_where_its_pod_has(crio: Crio) -> None:
    """Files of crictl's users say nothing of namespaces for a container, which means its pod's."""
    with crio.pod(linux=of_pod(network=pb.NODE, pid=pb.NODE, ipc=pb.NODE), hostname="") as pod:
        shared = pb.NamespaceOption(network=pb.POD, pid=pb.POD, ipc=pb.POD)
        container = crio.begin(pod, ["sleep", "600"], linux=of_container(namespace_options=shared))
        pid = crio.info(container)["pid"]
        assert [namespace(kind, pid) == namespace(kind) for kind in ("net", "pid", "ipc")] == [True] * 3
        crio.stop(container)


def test_containers_are_below_the_pods_cgroup_parent(crio: Crio, pod: str) -> None:
    """The kubelet limits pods by their parent: whoever is not below it escapes the limit."""
    container = crio.begin(pod, ["sleep", "600"])
    parent = crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.metadata.name
    lines = Path(f"/proc/{crio.info(container)['pid']}/cgroup").read_text().splitlines()
    paths = {line.split(":", 2)[2] for line in lines if line.split(":")[1] != "name=systemd"}
    below = {path for path in paths if path.startswith(f"/{crio.site.marks.name}/{parent}/")}
    assert below
    assert {path for path in paths - below if path != "/"} == set()


# --- the process --------------------------------------------------------------------------------------------------


def test_image_says_what_the_request_does_not(crio: Crio, pod: str) -> None:
    """Entrypoint, command, environment, directory, user and stop signal of the image are in force."""
    container = crio.begin(pod, [], image=crio.images.told)
    crio.ended(container)
    text = "".join(one.text for one in read_log(Path(crio.status(container).log_path)))
    said = "uid=1234(web) gid=2345(web) groups=2345(web),3456(extra)"
    assert text.splitlines() == ["entry from-image ", "/srv", "of-the-image", said]


def test_command_args_directory_and_environment_of_the_request_win(crio: Crio, pod: str) -> None:
    """CRI: command is the entrypoint, args the command; a command drops the image's args as well."""
    envs = [pb.KeyValue(key="MARK", value=b"of the request"), pb.KeyValue(key="EMPTY", value=b"")]
    main = crio.container_config([], "a", image=crio.images.told, args=["x", "y"], envs=envs, working_dir="/tmp")
    container = crio.create(pod, main)
    crio.client(pb.StartContainerRequest(container_id=container))
    crio.ended(container)
    lines = [one.text.rstrip("\n") for one in read_log(Path(crio.status(container).log_path))]
    assert lines[:3] == ["entry x y", "/tmp", "of the request"]
    other = crio.begin(pod, ["sh", "-c", "echo $0 $#; env"], "b", image=crio.images.told, envs=envs)
    crio.ended(other)
    lines = [one.text.rstrip("\n") for one in read_log(Path(crio.status(other).log_path))]
    assert lines[0] == "sh 0"
    assert "EMPTY=" in lines
    assert "MARK=of the request" in lines


def test_working_directory_that_is_missing_is_made(crio: Crio, pod: str) -> None:
    """Docker makes it, so images and manifests rely on it."""
    assert crio.run(pod, "pwd", working_dir="/not/there/yet") == (0, "/not/there/yet\n")


def test_users_and_groups_are_those_asked_for(crio: Crio, pod: str) -> None:
    """CVE-2022-2995: supplementary groups are the request's and, under Merge, the image's; the primary one stays."""
    ids: dict[str, Any] = {
        "run_as_user": number(1000),
        "run_as_group": number(1001),
        "supplemental_groups": [1002, 1003],
    }
    text = crio.run(pod, "id", "a", linux=of_container(**ids))[1]
    assert text == "uid=1000 gid=1001 groups=1001,1002,1003\n"
    image: dict[str, Any] = {"image": crio.images.told}
    by_name = of_container(run_as_username="web", supplemental_groups=[77])
    assert "groups=77,2345(web),3456(extra)" in crio.run(pod, "id", "b", linux=by_name, **image)[1]
    strict = of_container(run_as_user=number(1234), supplemental_groups=[77], supplemental_groups_policy=pb.Strict)
    assert crio.run(pod, "id", "c", linux=strict, **image)[1].strip().endswith("groups=77,2345(web)")


def test_process_has_no_inheritable_nor_ambient_capability_and_the_default_filter(crio: Crio, pod: str) -> None:
    """CVE-2022-27652 and its kin stay fixed; the seccomp filter is on unless somebody asks for none."""
    for name, linux in {"root": of_container(), "user": of_container(run_as_user=number(1000))}.items():
        status = fields(crio.run(pod, "cat /proc/self/status", name, linux=linux)[1])
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["Seccomp"] == "2"
        if name == "user":
            assert int(status["CapEff"], 16) == 0
    container = crio.begin(pod, ["sleep", "600"], "exec")
    status = fields(crio.output(container, "cat", "/proc/self/status"))
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["Seccomp"] == "2"
    unconfined = of_container(seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined))
    assert fields(crio.run(pod, "cat /proc/self/status", "free", linux=unconfined)[1])["Seccomp"] == "0"


def test_seccomp_profile_of_a_file_is_in_force(crio: Crio, pod: str) -> None:
    """A Localhost profile that cannot be read must not silently become none."""
    profile = crio.site.directory / "profile.json"
    profile.write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}'
    )
    named = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(profile))
    code, text = crio.run(pod, "mkdir /tmp/x", "a", linux=of_container(seccomp=named))
    assert (code, "Operation not permitted" in text) == (1, True)
    named.localhost_ref += ".missing"
    main = crio.container_config(["true"], "b", linux=of_container(seccomp=named))
    refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=pod, config=main))
    assert "profile.json.missing" in refused.message


def test_capabilities_are_added_and_dropped(crio: Crio, pod: str) -> None:
    """What is dropped is out of the bounding set too: no program may win it back."""
    change = pb.Capability(drop_capabilities=["ALL"], add_capabilities=["NET_RAW", "CHOWN"])
    status = fields(crio.run(pod, "cat /proc/self/status", linux=of_container(capabilities=change))[1])
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == (1 << 13) | (1 << 0)


def test_read_only_root_refuses_writes_but_not_to_mounts(crio: Crio, pod: str) -> None:
    """The image cannot be changed, /dev/shm and volumes can."""
    script = "exec 2>&1; touch /x; touch /etc/x; touch /dev/shm/ok && echo shm"  # two pipes have no common order
    _, text = crio.run(pod, script, linux=of_container(readonly_rootfs=True))
    assert text.count("Read-only file system") == 2
    assert text.endswith("shm\n")


def test_privileged_container_can_mount_and_has_no_filter(crio: Crio) -> None:
    """What agents of the node need; only in a pod that allows it."""
    linux = of_pod()
    linux.security_context.privileged = True
    script = (
        "mkdir /tmp/m && mount -t tmpfs x /tmp/m && echo mounted; ls /dev/kmsg /dev/loop-control; cat /proc/self/status"
    )
    with crio.pod(linux=linux) as pod:
        text = crio.run(pod, script, "a", linux=of_container(privileged=True))[1]
        assert text.startswith("mounted\n/dev/kmsg\n")
        assert fields(text)["Seccomp"] == "0"
        assert "denied" in crio.run(pod, "mount -t tmpfs x /tmp 2>&1; echo", "b")[1]


def test_kernel_files_are_hidden_or_read_only(crio: Crio, pod: str) -> None:
    """GHSA-7ww5-4wqc-m92c and older: power counters, kernel memory and switches are no container's business."""
    own = "$(busybox dirname $(busybox find /sys/fs/cgroup -name cgroup.procs | head -n 1))"
    script = f"ls /sys/firmware; head -c 1 /proc/kcore; echo 1 > /proc/sys/kernel/panic; mkdir {own}/x"
    lines = crio.run(pod, script)[1].splitlines()
    assert len(lines) == 2 + ("kcore" in lines[0]), lines  # A kernel may be without it.
    assert all(line.endswith(": Read-only file system") for line in lines[-2:])


# --- mounts -------------------------------------------------------------------------------------------------------


@contextmanager
def shared_directory(path: Path) -> Iterator[Path]:
    """A directory whose mounts propagate."""
    path.mkdir()
    subprocess.run(["mount", "--bind", path, path], check=True, timeout=10)
    try:
        subprocess.run(["mount", "--make-rshared", path], check=True, timeout=10)
        yield path
    finally:
        subprocess.run(["umount", "-R", path], check=True, timeout=10)


def test_mounts_are_read_only_or_writable_as_asked(crio: Crio, pod: str) -> None:
    """Directories and files, over what the image has and where it has nothing."""
    source = crio.site.directory / "data"
    source.mkdir()
    (source / "file").write_text("from the host\n")
    mounts = [
        pb.Mount(container_path="/data/rw", host_path=str(source)),
        pb.Mount(container_path="/data/ro", host_path=str(source), readonly=True),
        pb.Mount(container_path="/etc/passwd", host_path=str(source / "file"), readonly=True),
    ]
    script = "cat /etc/passwd; echo back > /data/rw/new; cat /data/ro/new; touch /data/ro/x; touch /etc/passwd"
    _, text = crio.run(pod, script, mounts=mounts)
    assert text.splitlines()[:2] == ["from the host", "back"]
    assert text.count("Read-only file system") == 2
    assert (source / "new").read_text() == "back\n"


def test_read_only_reaches_what_is_mounted_below_when_that_is_asked(crio: Crio, pod: str) -> None:
    """CRI, Mount.recursive_read_only: else a file system below stays writable. A kubelet asks only who says so."""
    wait_for(
        "the runtime to say what it knows",
        lambda: (
            {
                one.name: one.features.recursive_read_only_mounts
                for one in crio.client(pb.StatusRequest()).runtime_handlers
            }
            == {"": True, "runc": True}
        ),
    )
    with shared_directory(crio.site.directory / "tree") as tree:
        (tree / "below").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "criotest", tree / "below"], check=True, timeout=10)
        mounts = [
            pb.Mount(container_path="/top", host_path=str(tree), readonly=True),
            pb.Mount(container_path="/all", host_path=str(tree), readonly=True, recursive_read_only=True),
        ]
        script = "touch /top/x; touch /top/below/x && echo written; touch /all/below/y"
        _, text = crio.run(pod, script, mounts=mounts)
    assert sorted(line.split()[0] for line in text.splitlines()) == ["touch:", "touch:", "written"]
    assert text.count("Read-only file system") == 2


def test_an_agent_sees_the_nodes_own_sys_and_control_groups(crio: Crio, pod: str) -> None:
    """cAdvisor's mount of /sys at /sys, in an ordinary container, which else sees its own groups only."""
    crio.begin(pod, ["sleep", "1000"], "watched")
    group = next(path for path in Path("/sys/fs/cgroup").rglob(crio.site.marks.name) if path.is_dir())
    look = f"test -d {group} && test -d /sys/devices/system"
    assert crio.run(pod, look)[0] != 0
    assert crio.run(pod, look, mounts=[pb.Mount(container_path="/sys", host_path="/sys", readonly=True)])[0] == 0
    part = pb.Mount(container_path="/sys/devices", host_path="/sys/devices", readonly=True)
    assert crio.run(pod, "touch /sys/devices/x", mounts=[part]) == (1, "touch: /sys/devices/x: Read-only file system\n")


def test_mount_source_that_is_missing_is_made(crio: Crio, pod: str) -> None:
    """CRI, Mount.host_path: a missing one is made as a directory."""
    source = crio.site.directory / "made" / "here"
    mount = pb.Mount(container_path="/data", host_path=str(source))
    assert crio.run(pod, "echo x > /data/x", mounts=[mount])[0] == 0
    assert (source / "x").read_text() == "x\n"


def test_mounts_propagate_as_asked(crio: Crio) -> None:
    """A later mount on the host is seen with HOST_TO_CONTAINER, one in the container outside with BIDIRECTIONAL."""
    ways = (pb.PROPAGATION_PRIVATE, pb.PROPAGATION_HOST_TO_CONTAINER, pb.PROPAGATION_BIDIRECTIONAL)
    allowed = of_pod()
    allowed.security_context.privileged = True
    with shared_directory(crio.site.directory / "shared") as shared, crio.pod(linux=allowed) as pod:
        for name in ("in", "out"):
            (shared / name).mkdir()
        ids = {}
        for way in ways:
            mount = pb.Mount(container_path="/shared", host_path=str(shared), propagation=way)
            linux = of_container(privileged=way == pb.PROPAGATION_BIDIRECTIONAL)
            ids[way] = crio.begin(pod, ["sleep", "600"], f"c{way}", mounts=[mount], linux=linux)
        subprocess.run(["mount", "-t", "tmpfs", "criotest", shared / "in"], check=True, timeout=10)
        seen = {way: "/shared/in " in crio.output(container, "cat", "/proc/mounts") for way, container in ids.items()}
        assert list(seen.values()) == [False, True, True]
        crio.output(ids[pb.PROPAGATION_BIDIRECTIONAL], "mount", "-t", "tmpfs", "criotest", "/shared/out")
        assert f"{shared}/out " in Path("/proc/self/mountinfo").read_text()
        for container in ids.values():
            crio.stop(container)
        subprocess.run(["umount", shared / "in", shared / "out"], check=True, timeout=10)


def test_device_of_the_host_appears_under_its_new_name(crio: Crio, pod: str) -> None:
    """Devices are made in the fresh /dev and allowed in the device cgroup."""
    device = pb.Device(container_path="/dev/mine", host_path="/dev/fuse", permissions="r")
    code, text = crio.run(pod, ": < /dev/mine && echo read; : > /dev/mine && echo written", devices=[device])
    assert code != 0
    assert text.startswith("read\n")
    assert "not permitted" in text


# --- terminals, resources, stops ----------------------------------------------------------------------------------


def test_tty_container_has_a_terminal(crio: Crio, pod: str) -> None:
    """Its output is the terminal's: one stream, with carriage returns."""
    container = crio.begin(pod, ["sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo terminal"], tty=True)
    assert crio.ended(container).exit_code == 0
    entries = read_log(Path(crio.status(container).log_path))
    assert [(one.stream, one.text) for one in entries] == [("stdout", "terminal\r\n")]


def test_resources_are_in_the_cgroup_and_oom_score_in_proc(crio: Crio, pod: str) -> None:
    """Limits that are not in the kernel are words."""
    limits = pb.LinuxContainerResources(
        cpu_shares=512, cpu_quota=20000, cpu_period=100000, memory_limit_in_bytes=64 * 1024 * 1024, oom_score_adj=500
    )
    container = crio.begin(pod, ["sleep", "600"], linux=of_container(limits))
    pid = crio.info(container)["pid"]
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for top in ("unified", controllers.removeprefix("name="), controllers.replace(",", "_"), ""):
            for name in ("cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes", "cpu.max", "memory.max"):
                file = Path("/sys/fs/cgroup", top, path[1:], name)
                if path != "/" and file.exists():
                    found[name] = file.read_text().strip()
    if "cpu.max" in found:
        assert (found["cpu.max"], found["memory.max"]) == ("20000 100000", str(64 * 1024 * 1024))
    else:
        wanted = {"cpu.shares": "512", "cpu.cfs_quota_us": "20000", "memory.limit_in_bytes": str(64 * 1024 * 1024)}
        assert found == wanted
    status = crio.status(container)
    assert status.resources.linux.memory_limit_in_bytes == 64 * 1024 * 1024


def test_container_over_its_memory_limit_is_reported_as_oom_killed(crio: Crio, pod: str) -> None:
    """R20: users must learn that it was memory, not a crash."""
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=16 * 1024 * 1024)
    container = crio.begin(
        pod, ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=9"], linux=of_container(limits)
    )
    status = crio.ended(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    ordinary = crio.begin(pod, ["sleep", "600"], "b", linux=of_container(limits))
    crio.stop(ordinary)
    status = crio.status(ordinary)
    assert (status.exit_code, status.reason) == (137, "Error")


TRAP = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def ready(crio: Crio, container: str) -> str:
    """Wait until a container's script has set its traps."""
    path = Path(crio.status(container).log_path)
    wait_for("its first line", lambda: path.exists() and b"ready" in path.read_bytes())
    return container


def test_stop_lets_the_process_end_by_itself(crio: Crio, pod: str) -> None:
    """The signal comes first, and its handler's exit code is the container's."""
    container = ready(crio, crio.begin(pod, ["sh", "-c", TRAP]))
    begun_s = time.monotonic()
    crio.stop(container, 30)
    assert time.monotonic() - begun_s < 10
    assert crio.status(container).exit_code == 7


def test_stop_kills_what_ignores_the_signal_when_its_time_is_over(crio: Crio, pod: str) -> None:
    """Never before: the process was promised its grace time."""
    container = ready(crio, crio.begin(pod, ["sh", "-c", DEAF]))
    begun_s = time.monotonic()
    crio.stop(container, 1)
    assert 1 <= time.monotonic() - begun_s < 5
    assert crio.status(container).exit_code == 137


def test_stop_without_grace_kills_at_once_while_a_long_stop_waits(crio: Crio, pod: str) -> None:
    """R22: the earliest deadline of all callers counts."""
    container = ready(crio, crio.begin(pod, ["sh", "-c", DEAF]))
    long = crio.client.begin(pb.StopContainerRequest(container_id=container, timeout=60))
    wait_for("the stop to be under way", lambda: crio.info(container)["state"] == "stopping")
    begun_s = time.monotonic()
    crio.stop(container, 0)
    long.result()
    assert time.monotonic() - begun_s < 5
    assert crio.status(container).exit_code == 137


def test_shorter_stop_shortens_a_longer_one(crio: Crio, pod: str) -> None:
    """R22 again, with a grace time left."""
    container = ready(crio, crio.begin(pod, ["sh", "-c", DEAF]))
    long = crio.client.begin(pb.StopContainerRequest(container_id=container, timeout=60))
    begun_s = time.monotonic()
    crio.stop(container, 1)
    long.result()
    assert 1 <= time.monotonic() - begun_s < 6


def test_stop_signal_is_the_images_or_the_requests(crio: Crio, pod: str) -> None:
    """Programs that end on another signal say so in their image."""
    script = "trap 'exit 3' USR1; trap 'exit 4' INT; echo ready; while :; do sleep 0.05; done"
    by_image = ready(crio, crio.begin(pod, ["sh", "-c", script], "a", image=crio.images.told))
    crio.stop(by_image, 20)
    assert crio.status(by_image).exit_code == 3
    by_request = ready(
        crio, crio.begin(pod, ["sh", "-c", script], "b", image=crio.images.told, stop_signal=pb.SIGNAL_SIGINT)
    )
    crio.stop(by_request, 20)
    assert crio.status(by_request).exit_code == 4


def test_created_container_stops_without_having_run(crio: Crio, pod: str) -> None:
    """A kubelet stops whatever a pod has, started or not."""
    container = crio.create(pod, crio.container_config(["sleep", "600"]))
    crio.stop(container, 10)
    assert crio.status(container).state == pb.CONTAINER_EXITED
    assert crio.status(container).exit_code != 0
