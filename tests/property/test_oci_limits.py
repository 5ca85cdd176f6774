"""What a container may use and do: sysctls, cgroups, resources, system calls, signals, arguments."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cri import (
    ContainerConfig,
    HugepageLimit,
    KeyValue,
    LinuxContainerResources,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    Signal,
)
from crio_core.errors import OperationError
from crio_core.image.config import ImageConfig
from crio_core.oci.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from crio_core.oci.cgroups import cgroups_path, container_directory, expand_slice, parent_directory
from crio_core.oci.facts import CgroupDriver, CgroupMode, HostFacts, Rlimit
from crio_core.oci.mounts import image_volumes
from crio_core.oci.process import STRING_BYTES_MAX, arguments, environment, rlimits, working_directory
from crio_core.oci.resources import oom_score_adj, resources
from crio_core.oci.seccomp import default_profile, resolve_profile
from crio_core.oci.signals import cri_signal, parse_signal, stop_signal
from crio_core.oci.sysctls import sandbox_sysctls

HOST = HostFacts()
WEAK = HostFacts(
    capabilities=DEFAULT_CAPABILITIES, oom_score_adj_min=100, rlimits=(Rlimit(name="NOFILE", soft=1024, hard=4096),)
)


def pod(sysctls: dict[str, str], **modes: Any) -> PodSandboxConfig:
    context = LinuxSandboxSecurityContext(namespace_options=NamespaceOption(**modes))
    return PodSandboxConfig(linux=LinuxPodSandboxConfig(sysctls=sysctls, security_context=context))


@given(st.text(max_size=20), st.sampled_from([*"+=,\n/\0; ", ".."]), st.text(max_size=10))
def test_sysctl_with_a_separator_is_refused_cve_2022_0811(before: str, trick: str, after: str) -> None:
    """CVE-2022-0811: what a helper reads as the start of another setting, in names and in values."""
    for name, value in ((f"net.{before}{trick}{after}", "1"), ("kernel.shmmax", f"1{trick}{after}+{before}")):
        with pytest.raises(OperationError):
            sandbox_sysctls(pod({name: value}), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
        ("kernel.core_pattern", "x"),
        ("kernel.hostname", "x"),
        ("vm.overcommit_memory", "1"),
        ("fs.file-max", "1"),
        ("net", "1"),
        ("net.", "1"),
        ("net..ipv4", "1"),
        ("kernel.shm_rmid_forced.x", "1"),
        ("fs.mqueue", "1"),
        ("net.core.somaxconn", ""),
        ("net.ipv4.ip_local_reserved_ports", "1,,2"),
    ],
)
def test_sysctl_of_the_whole_node_or_of_no_sense_is_refused(name: str, value: str) -> None:
    """Only what a namespace owns; neither the node's own settings nor names that look like prefixes."""
    with pytest.raises(OperationError):
        sandbox_sysctls(pod({name: value}), {})


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "kernel.domainname"])
def test_sysctl_of_a_shared_network_is_refused_cve_2022_0532(name: str) -> None:
    """CVE-2022-0532, GHSA-w2j5-3rcx-vx7x: it would change the node; a default for it is left out."""
    config = pod({name: "1"}, network=NamespaceMode.NODE)
    with pytest.raises(OperationError, match="shares the node's namespace"):
        sandbox_sysctls(config, {})
    assert sandbox_sysctls(pod({}, network=NamespaceMode.NODE), {name: "1", "kernel.shmmax": "1"}) == {
        "kernel.shmmax": "1"
    }


@pytest.mark.parametrize("name", ["kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max"])
def test_sysctl_of_a_shared_ipc_is_refused_cve_2022_0532(name: str) -> None:
    """CVE-2022-0532 for the other namespace."""
    with pytest.raises(OperationError, match="shares the node's namespace"):
        sandbox_sysctls(pod({name: "1"}, ipc=NamespaceMode.NODE), {})


def test_sysctls_of_the_pod_win_over_the_defaults() -> None:
    """Values of several words, and the one list with commas, are taken."""
    given_ = {"net.ipv4.tcp_rmem": "4096 87380\t6291456", "net.ipv4.ip_local_reserved_ports": "80,90-100"}
    found = sandbox_sysctls(pod(given_), {"net.ipv4.tcp_rmem": "1", "net.ipv4.ping_group_range": "0 0"})
    assert found == {**given_, "net.ipv4.ping_group_range": "0 0"}


def test_cgroup_paths_of_both_drivers() -> None:
    """What runc takes, and where it then appears."""
    systemd, cgroupfs = CgroupDriver.SYSTEMD, CgroupDriver.CGROUPFS
    assert cgroups_path("", cgroupfs, "i") == "/crio/crio-i"
    assert cgroups_path("/kubepods//pod1/", cgroupfs, "i") == "/kubepods/pod1/crio-i"
    assert cgroups_path("/", cgroupfs, "i") == "/crio-i"
    assert cgroups_path("/a.slice/a-b.slice", systemd, "i") == "a-b.slice:crio:i"
    assert cgroups_path("", systemd, "i") == "system.slice:crio:i"
    assert parent_directory("a-b-c.slice", systemd) == "a.slice/a-b.slice/a-b-c.slice" == expand_slice("a-b-c.slice")
    assert container_directory("-.slice", systemd, "i") == "crio-i.scope"
    assert container_directory("/a", cgroupfs, "i") == "a/crio-i"


@pytest.mark.parametrize(
    ("parent", "driver"),
    [
        ("relative", CgroupDriver.CGROUPFS),
        ("/a/../b", CgroupDriver.CGROUPFS),
        ("/a.slice", CgroupDriver.CGROUPFS),
        ("/a\0", CgroupDriver.CGROUPFS),
        ("/kubepods", CgroupDriver.SYSTEMD),
        ("a--b.slice", CgroupDriver.SYSTEMD),
        ("-a.slice", CgroupDriver.SYSTEMD),
        (".slice", CgroupDriver.SYSTEMD),
        ("a b.slice", CgroupDriver.SYSTEMD),
        ("a.slice\n", CgroupDriver.SYSTEMD),
        ("a" * 300 + ".slice", CgroupDriver.SYSTEMD),
    ],
)
def test_cgroup_parent_of_the_wrong_kind_is_refused(parent: str, driver: CgroupDriver) -> None:
    """A parent that the driver reads otherwise puts the pod's limits elsewhere."""
    with pytest.raises(OperationError, match="cgroup_parent"):
        cgroups_path(parent, driver, "i")


def limits(host: HostFacts = HOST, **members: Any) -> dict[str, Any]:
    return resources(LinuxContainerResources(**members), host, pids_limit=0, devices=[])


def test_resources_that_were_not_asked_for_are_absent() -> None:
    """0 means not asked for: a limit of 0 would kill."""
    assert limits() == {"devices": []}


def test_memory_without_swap_means_no_swap_where_swap_is_counted() -> None:
    """A memory limit that swap got round would be none."""
    assert limits(memory_limit_in_bytes=1000)["memory"] == {"limit": 1000, "swap": 1000}
    assert limits(memory_limit_in_bytes=1000, memory_swap_limit_in_bytes=-1)["memory"]["swap"] == -1
    uncounted = replace(HOST, swap_limits=False)
    assert limits(uncounted, memory_limit_in_bytes=1000)["memory"] == {"limit": 1000}


@pytest.mark.parametrize(
    "members",
    [
        {"memory_limit_in_bytes": -2},
        {"memory_limit_in_bytes": 10, "memory_swap_limit_in_bytes": 9},
        {"memory_swap_limit_in_bytes": 9},
        {"cpu_shares": 1},
        {"cpu_quota": -2},
        {"cpu_period": -1},
        {"cpuset_cpus": "0-"},
        {"cpuset_mems": "0\n"},
        {"cpuset_cpus": "1," * 4096 + "1"},
        {"hugepage_limits": (HugepageLimit(page_size="2 MB", limit=1),)},
        {"hugepage_limits": (HugepageLimit(page_size="2MB", limit=2**64),)},
        {"unified": {"../memory.max": "1"}},
        {"unified": {"cgroup.procs": "1"}},
        {"unified": {"memory.high/..": "1"}},
        {"unified": {"memory.high": "1\0"}},
    ],
)
def test_resources_out_of_range_are_refused(members: dict[str, Any]) -> None:
    """Each by name, before a runtime says it less well, or writes it where it does not belong."""
    with pytest.raises(OperationError, match=r"linux\.resources"):
        limits(**members)


def test_unified_needs_cgroup_v2() -> None:
    """A limit that cannot be set is refused, not forgotten."""
    assert limits(unified={"memory.high": "max"})["unified"] == {"memory.high": "max"}
    with pytest.raises(OperationError) as refusal:
        limits(replace(HOST, cgroup_mode=CgroupMode.HYBRID), unified={"memory.high": "max"})
    assert refusal.value.reason == "CGROUP_NOT_AVAILABLE"


def test_hugepages_without_a_controller_matter_only_with_a_limit() -> None:
    """A kubelet names every page size with 0, also on nodes that have no such controller."""
    without = replace(HOST, controllers=frozenset({"memory"}))
    assert "hugepageLimits" not in limits(without, hugepage_limits=(HugepageLimit(page_size="2MB", limit=0),))
    with pytest.raises(OperationError):
        limits(without, hugepage_limits=(HugepageLimit(page_size="2MB", limit=2**21),))


def test_pids_limit_of_the_configuration() -> None:
    """0 and less mean none."""
    given_ = LinuxContainerResources()
    assert resources(given_, HOST, pids_limit=64, devices=[])["pids"] == {"limit": 64}
    assert "pids" not in resources(given_, HOST, pids_limit=-1, devices=[])


def test_scores_and_limits_are_clamped_only_without_the_capability() -> None:
    """Without CAP_SYS_RESOURCE the kernel refuses what is lower or higher; with it nothing is changed."""
    assert [oom_score_adj(wanted, WEAK) for wanted in (-998, 100, 1000)] == [100, 100, 1000]
    assert oom_score_adj(-998, HOST) == -998
    asked = (Rlimit(name="nofile", soft=2048, hard=-1), Rlimit(name="RLIMIT_CORE", soft=-1, hard=-1))
    assert rlimits(asked, WEAK)[0] == {"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 2048}
    assert rlimits(asked, HOST)[0] == {"type": "RLIMIT_NOFILE", "hard": 2**64 - 1, "soft": 2048}
    assert rlimits(asked, HOST)[1] == {"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 2**64 - 1}
    with pytest.raises(OperationError):
        rlimits((Rlimit(name="NOPE", soft=1, hard=1),), HOST)


def allowed(profile: dict[str, Any]) -> set[str]:
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }


DANGEROUS_WORDS = (
    "add_key bpf clone3 create_module delete_module finit_module fsopen init_module io_uring_setup ioperm iopl kcmp "
    "kexec_file_load kexec_load keyctl mount move_mount nfsservctl open_by_handle_at perf_event_open personality "
    "pivot_root reboot request_key setns settimeofday socket swapon swapoff sysfs syslog umount2 unshare "
    "uselib userfaultfd ustat vm86 vm86old"
)
DANGEROUS = frozenset(DANGEROUS_WORDS.split())


def test_default_profile_allows_no_dangerous_call() -> None:
    """By default none of them; with every capability still no keys, no kexec, no io_uring, no userfaultfd."""
    assert not allowed(default_profile("x86_64", frozenset(DEFAULT_CAPABILITIES))) & DANGEROUS
    mighty = allowed(default_profile("x86_64", frozenset(ALL_CAPABILITIES)))
    assert not mighty & {"keyctl", "add_key", "request_key", "kexec_load", "io_uring_setup", "userfaultfd"}
    assert {"mount", "setns", "clone", "clone3", "bpf"} <= mighty


@given(st.sets(st.sampled_from(ALL_CAPABILITIES)), st.sets(st.sampled_from(ALL_CAPABILITIES)))
def test_default_profile_grows_with_capabilities(few: set[str], more: set[str]) -> None:
    """A capability never takes a call away, and no call is listed twice in a rule."""
    small, large = default_profile("x86_64", frozenset(few)), default_profile("x86_64", frozenset(few | more))
    assert allowed(small) <= allowed(large)
    names = large["syscalls"][0]["names"]
    assert len(names) == len(set(names))


def test_default_profile_has_conditions_for_clone_personality_and_socket() -> None:
    """clone without new namespaces, known personalities, no kernel-cipher or virtual-machine sockets."""
    rules = default_profile("x86_64", frozenset())["syscalls"]
    clone = next(rule for rule in rules if rule["names"] == ["clone"])
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    assert next(rule for rule in rules if rule["names"] == ["clone3"])["errnoRet"] == 38
    assert {rule["args"][0]["value"] for rule in rules if rule["names"] == ["personality"]} >= {0, 0xFFFFFFFF}
    sockets = [rule["args"][0] for rule in rules if rule["names"] == ["socket"]]
    assert [(a["value"], a["op"]) for a in sockets] == [(38, "SCMP_CMP_LT"), (44, "SCMP_CMP_EQ")]
    swapped = next(rule for rule in default_profile("s390x", frozenset())["syscalls"] if rule["names"] == ["clone"])
    assert swapped["args"][0]["index"] == 1


PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}, "excludes": {}},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["s390_only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
        {"names": ["not_here"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
    ],
}


def test_profile_of_a_file_is_decided_for_this_container() -> None:
    """The wider format of Docker and Podman becomes the runtime-spec's."""
    plain = resolve_profile(PROFILE, "x86_64", frozenset())
    assert [rule["names"] for rule in plain["syscalls"]] == [["read"], ["clone"]]
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert set(plain["syscalls"][0]) == {"names", "action"}
    admin = resolve_profile(PROFILE, "x86_64", frozenset({"CAP_SYS_ADMIN"}))
    assert [rule["names"] for rule in admin["syscalls"]] == [["read"], ["mount"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["SCMP_ACT_ALLOW", "read"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["defaultAction", "syscalls", "names", "action", "args", "archMap", "includes", "caps", "op"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["defaultAction", "syscalls", "archMap", "architectures", "flags"]), JSON, max_size=5
    )
)
def test_any_profile_is_resolved_or_refused(document: dict[str, Any]) -> None:
    """A file of a node may be anything; what comes out is a profile or a named refusal."""
    found = profile_or_none({"defaultAction": "SCMP_ACT_ERRNO", **document})
    if found is None:
        return
    assert found["defaultAction"].startswith("SCMP_ACT_") and isinstance(found["syscalls"], list)


def profile_or_none(document: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return resolve_profile(document, "x86_64", frozenset())
    except OperationError:
        return None


@pytest.mark.parametrize(
    "document",
    [
        [],
        None,
        {},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {**PROFILE, "archMap": 5},
        {**PROFILE, "syscalls": {"names": []}},
        {**PROFILE, "syscalls": [5]},
        {**PROFILE, "syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]},
        {**PROFILE, "syscalls": [{"names": ["a"], "action": "ALLOW"}]},
        {**PROFILE, "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"op": "EQ"}]}]},
        {**PROFILE, "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": 5}]},
    ],
)
def test_profile_of_the_wrong_shape_is_refused(document: object) -> None:
    """Named in the refusal, instead of an error of the runtime about a file that it was never given."""
    with pytest.raises(OperationError, match="seccomp profile"):
        resolve_profile(document, "x86_64", frozenset())


def test_profile_with_a_listener_is_refused() -> None:
    """A listener would decide calls outside, on a socket that the profile names."""
    with pytest.raises(OperationError, match="listener"):
        resolve_profile({**PROFILE, "listenerPath": "/run/x.sock"}, "x86_64", frozenset())


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("TERM", 15), ("15", 15), ("sigint", 2), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGPOLL", 29)],
)
def test_stop_signal_of_an_image_is_understood(text: str, number: int) -> None:
    """image-spec, StopSignal: names with and without SIG, and numbers."""
    assert parse_signal("f", text) == number == stop_signal(ContainerConfig(), ImageConfig(stop_signal=text))


@pytest.mark.parametrize("text", ["0", "65", "SIGNOPE", "RTMIN+31", "-9", "٣", "9; reboot", "SIGRTMIN-1"])
def test_stop_signal_that_is_none_is_refused(text: str) -> None:
    """At create, where it can be told; not at stop, where it is too late."""
    with pytest.raises(OperationError):
        stop_signal(ContainerConfig(), ImageConfig(stop_signal=text))


def test_every_cri_signal_has_a_number_and_comes_back() -> None:
    """ContainerStatus shows what was asked, but for two names of one number."""
    aliases = {Signal.SIGNAL_SIGCLD, Signal.SIGNAL_SIGIOT, Signal.SIGNAL_SIGPOLL}
    for signal in Signal:
        number = stop_signal(ContainerConfig(stop_signal=signal), ImageConfig(stop_signal="SIGQUIT"))
        if signal is Signal.SIGNAL_RUNTIME_DEFAULT:
            assert number == 3
        elif signal not in aliases:
            assert cri_signal(number) is signal
    assert stop_signal(ContainerConfig(), ImageConfig()) == 15
    assert cri_signal(33) is Signal.SIGNAL_RUNTIME_DEFAULT


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ["entry", "cmd"]),
        (("c",), (), ["c"]),
        ((), ("a",), ["entry", "a"]),
        (("c",), ("a",), ["c", "a"]),
    ],
)
def test_arguments_follow_kubernetes_table(
    command: tuple[str, ...], args: tuple[str, ...], expected: list[str]
) -> None:
    """A command replaces the entrypoint and silences the cmd; args replace the cmd."""
    image = ImageConfig(entrypoint=("entry",), cmd=("cmd",))
    assert arguments(ContainerConfig(command=command, args=args), image) == expected


@pytest.mark.parametrize("command", [(), ("",), ("a\0b",), ("x" * (STRING_BYTES_MAX + 1),), ("é" * STRING_BYTES_MAX,)])
def test_arguments_that_cannot_be_run_are_refused(command: tuple[str, ...]) -> None:
    """Nothing to run, NUL, and more than execve(2) takes."""
    with pytest.raises(OperationError, match="command"):
        arguments(ContainerConfig(command=command), ImageConfig())


def test_environment_merges_in_order() -> None:
    """Defaults, image, request: the last one wins, and what names nothing is dropped."""
    found = environment(
        [("A=default", "B=default"), ("A=image", "PATH=/bin", "broken", "=x")],
        (KeyValue(key="A", value="1"), KeyValue(key="A", value="2=3")),
        hostname="h",
        home="/root",
        terminal=True,
    )
    assert dict(entry.split("=", 1) for entry in found) == {
        "PATH": "/bin",
        "TERM": "xterm",
        "HOSTNAME": "h",
        "HOME": "/root",
        "A": "2=3",
        "B": "default",
    }


@pytest.mark.parametrize(
    "pair", [KeyValue(key=""), KeyValue(key="a=b"), KeyValue(key="a", value="\0"), KeyValue(key="\0")]
)
def test_environment_with_a_bad_name_is_refused(pair: KeyValue) -> None:
    """What execve(2) or a shell would read otherwise."""
    with pytest.raises(OperationError, match="envs"):
        environment((), (pair,), hostname="", home="/", terminal=False)


def test_working_directory_of_request_image_or_root() -> None:
    """The request's, else the image's, which may be relative to the root."""
    assert working_directory(ContainerConfig(working_dir="/a//b/."), ImageConfig(working_dir="/c")) == "/a/b"
    assert working_directory(ContainerConfig(), ImageConfig(working_dir="c")) == "/c"
    assert working_directory(ContainerConfig(), ImageConfig()) == "/"


@pytest.mark.parametrize(
    "path", ["/../../etc", "/proc/self/root/..", "/proc/self/root", "relative", "/", "/sys", "/a\n"]
)
def test_image_volume_that_leads_out_is_refused_cve_2022_23648(path: str) -> None:
    """CVE-2022-23648: a declared volume is a directory inside, or the image is refused."""
    with pytest.raises(OperationError):
        image_volumes(ImageConfig(volumes=("/ok", path)))
    assert image_volumes(ImageConfig(volumes=("/var//lib/data/",))) == ("/var/lib/data",)
