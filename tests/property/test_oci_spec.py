"""Whatever a request asks for, a spec that comes out keeps these promises, and what is refused is refused by name."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crio_core.cri import (
    Capability,
    ContainerConfig,
    IDMapping,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    Mount,
    MountPropagation,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
    ProfileType,
    SecurityProfile,
    SELinuxOption,
    UserNamespace,
)
from crio_core.errors import Code, LocalError, OperationError
from crio_core.image.config import ImageConfig
from crio_core.oci.capabilities import ALL_CAPABILITIES
from crio_core.oci.facts import CgroupDriver, CgroupMode, HostDevice, HostFacts, RootfsFacts, SpecDefaults
from crio_core.oci.mounts import MASKED_PATHS, READONLY_PATHS
from crio_core.oci.plan import ContainerPlan, InfraPlan
from crio_core.oci.spec import container_spec, exec_process, infra_spec

PINS = {kind: f"/run/crio/ns/{kind}" for kind in ("network", "ipc", "uts", "pid")}
POD = PodSandboxConfig(metadata=PodSandboxMetadata(name="web", namespace="default", uid="1"), hostname="web")
PLAN = ContainerPlan(
    container_id="c1",
    sandbox_id="s1",
    sandbox=POD,
    config=ContainerConfig(command=("/bin/true",)),
    rootfs_path="/run/crio/containers/c1/rootfs",
    namespaces=PINS,
    resolv_conf_path="/run/crio/s1/resolv.conf",
    hostname_path="/run/crio/s1/hostname",
    shm_path="/run/crio/s1/shm",
)


def with_context(plan: ContainerPlan = PLAN, **members: Any) -> ContainerPlan:
    """The plan with other members of the security context."""
    linux = plan.config.linux
    context = replace(linux.security_context, **members)
    return replace(plan, config=replace(plan.config, linux=replace(linux, security_context=context)))


def with_config(plan: ContainerPlan = PLAN, **members: Any) -> ContainerPlan:
    return replace(plan, config=replace(plan.config, **members))


def refusal(plan: ContainerPlan) -> OperationError:
    with pytest.raises(OperationError) as raised:
        container_spec(plan)
    return raised.value


def mount_at(plan: ContainerPlan, target: str) -> dict[str, Any]:
    return next(mount for mount in container_spec(plan)["mounts"] if mount["destination"] == target)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
PATHS = st.lists(
    st.sampled_from(["data", "dev", "shm", "etc", "proc", "sys", "a", ".", "..", "hosts"]), max_size=4
).map(lambda parts: "/" + "/".join(parts))
CAPABILITIES = st.lists(st.sampled_from([*ALL_CAPABILITIES, "all", "net_admin", "ALL"]), max_size=4).map(tuple)
CONTEXTS = st.builds(
    LinuxContainerSecurityContext,
    capabilities=st.builds(
        Capability,
        add_capabilities=CAPABILITIES,
        drop_capabilities=CAPABILITIES,
        add_ambient_capabilities=st.one_of(st.just(()), CAPABILITIES),
    ),
    privileged=st.booleans(),
    namespace_options=st.builds(
        NamespaceOption,
        network=st.sampled_from([NamespaceMode.POD, NamespaceMode.NODE]),
        pid=st.sampled_from(NamespaceMode),
        ipc=st.sampled_from([NamespaceMode.POD, NamespaceMode.NODE]),
        target_id=st.sampled_from(["", "t"]),
        userns_options=st.sampled_from(
            [
                UserNamespace(),
                UserNamespace(
                    uids=(IDMapping(host_id=65536, container_id=0, length=65536),),
                    gids=(IDMapping(host_id=65536, container_id=0, length=65536),),
                ),
            ]
        ),
    ),
    run_as_user=st.one_of(st.none(), st.integers(-2, 2**32 + 1)),
    run_as_group=st.one_of(st.none(), st.integers(0, 2**31)),
    readonly_rootfs=st.booleans(),
    no_new_privs=st.booleans(),
    masked_paths=st.lists(PATHS, max_size=2).map(tuple),
    seccomp=st.builds(SecurityProfile, profile_type=st.sampled_from([ProfileType(0), ProfileType(1)])),
)
MOUNTS = st.lists(
    st.builds(
        Mount,
        container_path=PATHS,
        host_path=PATHS,
        readonly=st.booleans(),
        recursive_read_only=st.booleans(),
        propagation=st.sampled_from(MountPropagation),
    ),
    max_size=4,
).map(tuple)
CONFIGS = st.builds(
    ContainerConfig,
    command=st.lists(WORDS, max_size=2).map(tuple),
    args=st.lists(WORDS, max_size=2).map(tuple),
    working_dir=st.one_of(st.just(""), PATHS),
    envs=st.lists(st.builds(KeyValue, key=WORDS, value=WORDS), max_size=4).map(tuple),
    mounts=st.one_of(st.just(()), MOUNTS),
    annotations=st.dictionaries(WORDS, WORDS, max_size=2),
    tty=st.booleans(),
    linux=st.builds(
        LinuxContainerConfig,
        security_context=CONTEXTS,
        resources=st.builds(
            LinuxContainerResources,
            oom_score_adj=st.integers(-1001, 1001),
            memory_limit_in_bytes=st.sampled_from([0, -1, 2**20]),
            cpu_quota=st.sampled_from([0, -1, 50000]),
        ),
    ),
)
IMAGES = st.builds(
    ImageConfig,
    user=st.sampled_from(["", "0", "app", "app:app", "1000:1000", "nobody-here", "4294967296"]),
    env=st.lists(st.sampled_from(["PATH=/bin", "A=1", "A=2", "broken", "=x", "HOME=/h"]), max_size=4).map(tuple),
    entrypoint=st.sampled_from([(), ("/entry",)]),
    cmd=st.sampled_from([(), ("arg",)]),
)
PLANS = st.builds(
    ContainerPlan,
    container_id=st.just("c1"),
    sandbox_id=st.just("s1"),
    sandbox=st.just(POD),
    config=CONFIGS,
    rootfs_path=st.just("/run/root"),
    image=IMAGES,
    rootfs=st.just(RootfsFacts(passwd=b"app:x:1000:1000::/app:/bin/sh\n", group=b"app:x:1000:\nmore:x:7:app\n")),
    host=st.builds(
        HostFacts,
        cgroup_mode=st.sampled_from(CgroupMode),
        capabilities=st.sampled_from([ALL_CAPABILITIES, tuple(c for c in ALL_CAPABILITIES if "RESOURCE" not in c)]),
        oom_score_adj_min=st.sampled_from([-1000, 0, 500]),
    ),
    namespaces=st.just(PINS),
    shm_path=st.sampled_from(["", "/run/shm"]),
    resolv_conf_path=st.sampled_from(["", "/run/resolv.conf"]),
)


@given(PLANS)
@settings(max_examples=400, deadline=None)
def test_any_request_gives_a_sound_spec_or_a_named_refusal(plan: ContainerPlan) -> None:
    """The invariants of section 2a and 2c that a spec alone can hold, over everything that a request can say."""
    outcome = spec_or_refusal(plan)
    if isinstance(outcome, OperationError):
        assert outcome.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION) and outcome.message
        return
    spec = outcome
    json.loads(json.dumps(spec, ensure_ascii=False).encode())
    check_namespaces(plan, spec)
    check_mounts(plan, spec)
    check_process(plan, spec["process"])
    check_exec(spec["process"])
    linux = spec["linux"]
    assert linux["cgroupsPath"] == "/crio/crio-c1"
    context = plan.config.linux.security_context
    if plan.privileged:
        assert linux["maskedPaths"] == [] and "seccomp" not in linux
    else:
        if plan.userns and not (context.masked_paths or context.readonly_paths):
            assert linux["maskedPaths"] == linux["readonlyPaths"] == []
        else:
            assert {"/sys/devices/virtual/powercap", "/sys/firmware"} <= set(linux["maskedPaths"])
            assert linux["readonlyPaths"]
        assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
        unconfined = plan.config.linux.security_context.seccomp.profile_type is ProfileType.UNCONFINED
        assert ("seccomp" in linux) is not unconfined


def spec_or_refusal(plan: ContainerPlan) -> dict[str, Any] | OperationError:
    try:
        return container_spec(plan)
    except OperationError as error:
        return error


def check_namespaces(plan: ContainerPlan, spec: dict[str, Any]) -> None:
    kinds = [entry["type"] for entry in spec["linux"]["namespaces"]]
    options = plan.config.linux.security_context.namespace_options
    assert len(kinds) == len(set(kinds)) and "mount" in kinds
    assert ("network" in kinds) is (options.network is not NamespaceMode.NODE)
    assert ("ipc" in kinds) is (options.ipc is not NamespaceMode.NODE)
    assert ("pid" in kinds) is (options.pid is not NamespaceMode.NODE)
    assert ("user" in kinds) is ("uidMappings" in spec["linux"]) is plan.userns
    assert "uts" in kinds or "hostname" not in spec


def check_mounts(plan: ContainerPlan, spec: dict[str, Any]) -> None:
    mounts = spec["mounts"]
    targets = [mount["destination"] for mount in mounts]
    for index, target in enumerate(targets):
        assert target.startswith("/") and ".." not in target.split("/")
        later = targets[index + 1 :]
        assert not any(target.startswith(other + "/") for other in later), "a parent after what lies below it"
        assert not any(target.startswith("/proc/") for target in targets) or target.count("/") == 2
    devices = [mount for mount in mounts if mount["destination"] == "/dev"]
    true_dev = [mount for mount in plan.config.mounts if mount.host_path.startswith("/dev")]
    assert devices[0]["type"] == "tmpfs" and (len(devices) == 1 or plan.privileged or true_dev)
    assert next(mount for mount in mounts if mount["destination"] == "/proc")["type"] == "proc"
    if not plan.privileged:
        sys = [mount for mount in mounts if mount["destination"] == "/sys"]
        assert len(sys) == 1
        if sys[0]["type"] == "sysfs":
            assert "ro" in sys[0]["options"] and "rw" not in sys[0]["options"]
        else:
            assert sys[0]["source"] == "/sys" or sys[0]["source"].startswith("/sys/")


def check_process(plan: ContainerPlan, process: dict[str, Any]) -> None:
    sets = {name: set(process["capabilities"].get(name, ())) for name in ("inheritable", "ambient")}
    held = process["capabilities"]
    assert held["bounding"] == held["effective"] == held["permitted"]
    assert set(held["bounding"]) <= set(plan.host.capabilities)
    assert sets["ambient"] == sets["inheritable"] <= set(held["permitted"])
    asked = plan.config.linux.security_context.capabilities.add_ambient_capabilities
    assert not sets["ambient"] or (asked and not plan.privileged)
    names = [entry.split("=", 1)[0] for entry in process["env"]]
    assert len(names) == len(set(names)) and "" not in names
    last = {pair.key: pair.value for pair in plan.config.envs}
    assert {name: value for name, value in (e.split("=", 1) for e in process["env"]) if name in last} == last
    user = process["user"]
    assert all(0 <= number < 2**31 for number in (user["uid"], user["gid"], *user["additionalGids"]))
    assert user["gid"] in user["additionalGids"]
    assert process["args"] and process["args"][0] and process["cwd"].startswith("/")
    assert process["oomScoreAdj"] >= (plan.host.oom_score_adj_min if not plan.host.can_raise_limits else -1000)


def check_exec(init: dict[str, Any]) -> None:
    process = exec_process(init, ["/bin/probe"])
    assert process["capabilities"] == init["capabilities"]
    assert all(process[name] == init[name] for name in ("user", "cwd", "noNewPrivileges", "env"))


def mutable_ids(value: object) -> Iterator[int]:
    """Identities of every dict and list in a value."""
    if isinstance(value, dict):
        yield id(value)
        for item in value.values():
            yield from mutable_ids(item)
    elif isinstance(value, list):
        yield id(value)
        for item in value:
            yield from mutable_ids(item)


def test_two_specs_of_one_image_share_nothing_cve_2021_21334() -> None:
    """CVE-2021-21334: environment storage shared between containers of an image let one see another's."""
    image = ImageConfig(env=("A=image",))
    plans = [
        with_config(replace(PLAN, image=image), envs=(KeyValue(key="N", value=str(number)),)) for number in range(100)
    ]
    specs = [container_spec(plan) for plan in plans]
    identities = [identity for spec in specs for identity in mutable_ids(spec)]
    assert len(identities) == len(set(identities))
    for number, spec in enumerate(specs):
        assert f"N={number}" in spec["process"]["env"] and "A=image" in spec["process"]["env"]
    specs[0]["linux"]["maskedPaths"].clear()
    specs[0]["linux"]["seccomp"]["syscalls"][0]["names"].clear()
    assert container_spec(PLAN) == container_spec(PLAN) != specs[0]
    assert container_spec(plans[1]) == specs[1]


def test_exec_shares_nothing_with_the_first_process() -> None:
    """An exec's process object may be changed without touching the container's."""
    init = container_spec(PLAN)["process"]
    identities = set(mutable_ids(init))
    assert identities.isdisjoint(mutable_ids(exec_process(init, ["/bin/true"], terminal=True)))


@given(st.lists(WORDS, max_size=3), st.booleans())
def test_exec_takes_any_words_or_refuses_them(words: list[str], terminal: bool) -> None:
    """Words of a client are passed on as they are; an empty command is refused."""
    init = container_spec(PLAN)["process"]
    if words and words[0]:
        process = exec_process(init, words, terminal=terminal)
        assert process["args"] == words and process["terminal"] is terminal
        assert any(entry.startswith("TERM=") for entry in process["env"]) is terminal
    else:
        with pytest.raises(OperationError):
            exec_process(init, words)


def test_exec_from_something_else_is_our_own_fault() -> None:
    """A record that holds no process object is a bug, not a bad request."""
    with pytest.raises(LocalError):
        exec_process({"args": []}, ["x"])


def test_namespace_without_a_pin_is_our_own_fault() -> None:
    """A plan that forgot a pod namespace must not silently give the node's."""
    with pytest.raises(LocalError, match="network"):
        container_spec(replace(PLAN, namespaces={"pid": "/p"}))


@pytest.mark.parametrize(
    "directory", ["/proc/self/fd/7", "/proc/1/cwd", "/dev/fd/3", "/./proc//self/fd/9", "rel", "/a/.."]
)
def test_working_directory_that_leads_out_is_refused_cve_2024_21626(directory: str) -> None:
    """CVE-2024-21626: a working directory under an inherited descriptor is the host's file system."""
    assert refusal(with_config(working_dir=directory)).code is Code.INVALID_ARGUMENT
    if directory.startswith("/"):
        assert refusal(replace(PLAN, image=ImageConfig(working_dir=directory))).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "target",
    ["/proc", "/proc/", "/proc/self/attr", "/proc/sys", "/sys", "/sys/kernel/security", "/dev", "/", "x", "/a/../proc"],
)
def test_mount_over_the_kernels_file_systems_is_refused_cve_2019_16884(target: str) -> None:
    """CVE-2019-16884, CVE-2023-28642, CVE-2023-27561: such a volume switches the security modules off."""
    mount = Mount(container_path=target, host_path="/x")
    assert "container_path" in refusal(with_config(mounts=(mount,))).message


def test_mounts_that_agents_need_are_allowed() -> None:
    """lxcfs and network agents work without being privileged."""
    for target in ("/proc/meminfo", "/sys/fs/bpf", "/sys/fs/cgroup", "/dev/shm", "/dev/termination-log"):
        spec = container_spec(with_config(mounts=(Mount(container_path=target, host_path="/x"),)))
        assert [m["source"] for m in spec["mounts"] if m["destination"] == target] == ["/x"]


@pytest.mark.parametrize("privileged", [False, True])
def test_the_nodes_own_sys_and_dev_may_be_seen(privileged: bool) -> None:
    """cAdvisor reads the node's /sys where it is, device plugins parts of it; the node's groups are in it, not ours."""
    plan = with_context(privileged=privileged)
    mounts = tuple(Mount(container_path=path, host_path=path) for path in ("/sys", "/dev"))
    found = container_spec(with_config(plan, mounts=mounts))["mounts"]
    assert [m["type"] for m in found if m["destination"] == "/dev"] == ["tmpfs", "bind"]
    assert [m["type"] for m in found if m["destination"] == "/sys"] == ["bind"]
    assert not [m for m in found if m["destination"] == "/sys/fs/cgroup"]
    part = Mount(container_path="/sys/class/drm", host_path="/sys/class/drm", readonly=True)
    found = container_spec(with_config(plan, mounts=(part,)))["mounts"]
    assert [m["source"] for m in found if m["destination"].startswith("/sys")][-2:] == ["cgroup", "/sys/class/drm"]


@pytest.mark.parametrize("source", ["/" + "a" * 4095, "/" + "a/" * 40000, "relative", "/a\0b", "/a/../etc", ""])
def test_mount_with_a_bad_source_is_refused_cve_2021_43784(source: str) -> None:
    """CVE-2021-43784: 64 KiB of source wrapped a length in the runtime; NUL and `..` mean another place."""
    message = refusal(with_config(mounts=(Mount(container_path="/data", host_path=source),))).message
    assert "mounts[0].host_path" in message and len(message) < 1000


def test_mount_with_rro_needs_readonly_and_private() -> None:
    """CRI Mount.recursive_read_only: refused in any other company."""
    good = Mount(container_path="/d", host_path="/d", readonly=True, recursive_read_only=True)
    assert {"rro", "ro", "rprivate"} <= set(mount_at(with_config(mounts=(good,)), "/d")["options"])
    for bad in (replace(good, readonly=False), replace(good, propagation=MountPropagation.PROPAGATION_BIDIRECTIONAL)):
        assert "recursive_read_only" in refusal(with_config(mounts=(bad,))).message


def test_mount_with_mapped_ids_comes_from_where_they_are_mapped_or_not_at_all() -> None:
    """Files under the wrong owner are readable for a stranger, or for nobody: only the ids of the pod are mapped."""
    runs = (IDMapping(host_id=1000, container_id=0, length=10),)
    wanted = Mount(container_path="/d", host_path="/d", uidMappings=runs, gidMappings=runs)
    plan = replace(with_config(mounts=(wanted,)), mapped_mounts={"/d": "/run/mapped"})
    assert refusal(plan).reason == "IDMAP_NOT_AVAILABLE", "the pod has no user namespace"
    users = UserNamespace(uids=runs, gids=runs)
    context = replace(plan.config.linux.security_context, namespace_options=NamespaceOption(userns_options=users))
    config = replace(plan.config, linux=replace(plan.config.linux, security_context=context))
    plan = replace(plan, config=config, namespaces={**plan.namespaces, "user": "/run/ns/user"})
    mount = mount_at(plan, "/d")
    assert mount["source"] == "/run/mapped" and "uidMappings" not in mount
    other = replace(wanted, gidMappings=(replace(runs[0], length=9),))
    assert refusal(replace(plan, config=replace(config, mounts=(other,)))).reason == "IDMAP_NOT_AVAILABLE"


def test_mount_of_an_image_is_readonly_and_known() -> None:
    """An image mount comes from where the image was mounted, never from a path beside it."""
    image = Mount(container_path="/m", image=replace(PLAN.config.image, image="i"))
    plan = with_config(mounts=(image,))
    assert "image" in refusal(plan).message
    mount = mount_at(replace(plan, image_mounts={"/m": "/run/images/i"}), "/m")
    assert mount["source"] == "/run/images/i" and "ro" in mount["options"]


def test_mounts_of_the_request_win_over_the_pods_files() -> None:
    """A kubelet brings its own /etc/hosts and what else it likes; the defaults yield to it, scratch space too."""
    paths = ("/etc/resolv.conf", "/dev/shm", "/run")
    mounts = tuple(Mount(container_path=path, host_path="/mine") for path in paths)
    plan = replace(PLAN, defaults=replace(PLAN.defaults, read_only=True))
    found = container_spec(with_config(plan, mounts=mounts))["mounts"]
    for path in paths:
        assert [mount["source"] for mount in found if mount["destination"] == path] == ["/mine"]


def test_files_of_the_pod_are_readonly_unless_privileged_cve_2020_8557() -> None:
    """CVE-2020-8557: what the runtime keeps for a pod cannot be used to fill the node."""
    for privileged in (False, True):
        found = container_spec(with_context(privileged=privileged))["mounts"]
        options = next(mount["options"] for mount in found if mount["destination"] == "/etc/resolv.conf")
        assert ("rw" in options) is privileged and ("ro" in options) is not privileged


def test_masked_paths_without_a_request_hide_power_counters_ghsa_7ww5() -> None:
    """GHSA-7ww5-4wqc-m92c: also when the caller brings a list that does not know of them."""
    assert container_spec(PLAN)["linux"]["maskedPaths"] == list(MASKED_PATHS)
    assert container_spec(PLAN)["linux"]["readonlyPaths"] == list(READONLY_PATHS)
    masked = container_spec(with_context(masked_paths=("/proc/kcore",)))["linux"]["maskedPaths"]
    assert masked == ["/proc/kcore", "/sys/devices/virtual/powercap", "/sys/firmware"]


def test_proc_mount_unmasked_is_for_pods_with_user_ids_of_their_own() -> None:
    """Kubernetes' procMount: a kubelet sends empty lists, and other clients that have no wish do so as well."""
    runs = (IDMapping(host_id=65536, container_id=0, length=65536),)
    plan = with_context(namespace_options=NamespaceOption(userns_options=UserNamespace(uids=runs, gids=runs)))
    linux = container_spec(plan)["linux"]
    assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    linux = container_spec(with_context(plan, masked_paths=("/proc/kcore",)))["linux"]
    assert "/proc/kcore" in linux["maskedPaths"] and linux["readonlyPaths"] == list(READONLY_PATHS)


def test_userns_pod_stays_below_its_pods_cgroup_cve_2025_47291() -> None:
    """CVE-2025-47291: with a user namespace the cgroup path is the same as without."""
    runs = (IDMapping(host_id=65536, container_id=0, length=65536),)
    options = NamespaceOption(userns_options=UserNamespace(uids=runs, gids=runs))
    sandbox = replace(POD, linux=LinuxPodSandboxConfig(cgroup_parent="/kubepods/burstable/pod1"))
    plan = replace(PLAN, sandbox=sandbox)
    spec = container_spec(with_context(plan, namespace_options=options))
    assert spec["linux"]["cgroupsPath"] == container_spec(plan)["linux"]["cgroupsPath"]
    assert spec["linux"]["cgroupsPath"] == "/kubepods/burstable/pod1/crio-c1"
    assert spec["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 65536, "size": 65536}]


@pytest.mark.parametrize(
    "runs",
    [
        (),
        (IDMapping(host_id=0, container_id=0, length=0),),
        (IDMapping(host_id=2**32 - 2, container_id=0, length=2),),
        (IDMapping(host_id=5, container_id=0, length=10), IDMapping(host_id=14, container_id=10, length=1)),
        (IDMapping(host_id=5, container_id=0, length=10), IDMapping(host_id=50, container_id=9, length=1)),
        tuple(IDMapping(host_id=number, container_id=number, length=1) for number in range(341)),
    ],
)
def test_user_namespace_with_bad_mappings_is_refused(runs: tuple[IDMapping, ...]) -> None:
    """Overlapping or overflowing runs make two users one."""
    good = (IDMapping(host_id=65536, container_id=0, length=65536),)
    options = NamespaceOption(userns_options=UserNamespace(uids=runs, gids=good))
    assert "userns_options.uids" in refusal(with_context(namespace_options=options)).message


def test_label_of_an_image_never_enters_a_spec_cve_2026_53488() -> None:
    """CVE-2026-53488: labels of the image are no control data, whatever they are called."""
    labels = dict.fromkeys((*container_spec(PLAN)["annotations"], "org.systemd.property.ExecStart"), "taint")
    image = ImageConfig(labels=labels)
    assert "taint" not in json.dumps(container_spec(replace(PLAN, image=image)))
    assert "taint" not in json.dumps(container_spec(with_config(labels=labels)))


@pytest.mark.parametrize(
    "key", ["org.systemd.property.ExecStopPost", "io.kubernetes.cri-o.SandboxID", "io.kubernetes.cri.x"]
)
def test_annotation_that_is_reserved_never_passes_cve_2024_3154(key: str) -> None:
    """CVE-2024-3154: not by default, and not through an allow-list either."""
    defaults = SpecDefaults(allowed_annotations=(key, "org.", "io.", "io.kubernetes.cri*"))
    plan = with_config(replace(PLAN, defaults=defaults), annotations={key: "taint"})
    plan = replace(plan, sandbox=replace(POD, annotations={key: "taint"}))
    assert "taint" not in json.dumps(container_spec(plan))


def test_annotation_like_a_gated_key_does_not_pass_cve_2023_6476() -> None:
    """CVE-2023-6476: a gated key with a suffix is another key; only an entry written as a prefix is one."""
    defaults = SpecDefaults(allowed_annotations=("dev.gvisor.spec.gated", "io.katacontainers."))
    given = {
        "dev.gvisor.spec.gated": "1",
        "dev.gvisor.spec.gated/web": "2",
        "io.katacontainers.config.x": "3",
        "q": "4",
    }
    found = container_spec(with_config(replace(PLAN, defaults=defaults), annotations=given))["annotations"]
    assert {key for key in found if key in given} == {"dev.gvisor.spec.gated", "io.katacontainers.config.x"}


def test_annotations_tell_sandbox_and_container_apart() -> None:
    """runsc and kata start a second virtual machine when these are missing or wrong."""
    found = container_spec(replace(PLAN, image_name="i"))["annotations"]
    assert found["io.kubernetes.cri-o.ContainerType"] == found["io.kubernetes.cri.container-type"] == "container"
    assert found["io.kubernetes.cri-o.SandboxID"] == found["io.kubernetes.cri.sandbox-id"] == "s1"
    infra = infra_spec(INFRA)["annotations"]
    assert infra["io.kubernetes.cri-o.ContainerType"] == infra["io.kubernetes.cri.container-type"] == "sandbox"


INFRA = InfraPlan(sandbox_id="s1", sandbox=POD, rootfs_path="/run/pause", command=("/pause",), namespaces=PINS)


def test_infra_has_no_capabilities_and_a_pid_namespace_of_its_own() -> None:
    """What holds a pod's PID namespace needs no rights to do so."""
    spec = infra_spec(INFRA)
    assert not any(spec["process"]["capabilities"].values())
    assert {"type": "pid"} in spec["linux"]["namespaces"] and spec["root"]["readonly"]
    assert spec["process"]["noNewPrivileges"] and spec["process"]["oomScoreAdj"] == -998


def test_infra_with_an_id_of_its_own_has_its_own_cgroup() -> None:
    """The cgroup is named after what the runtime calls the container."""
    assert infra_spec(INFRA)["linux"]["cgroupsPath"] == "/crio/crio-s1"
    assert infra_spec(replace(INFRA, container_id="i1"))["linux"]["cgroupsPath"] == "/crio/crio-i1"


def test_infra_carries_the_sysctls_of_its_pod() -> None:
    """A virtual machine has no pinned namespaces: its runtime must be told."""
    sandbox = replace(POD, linux=LinuxPodSandboxConfig(sysctls={"net.core.somaxconn": "512"}))
    assert infra_spec(replace(INFRA, sandbox=sandbox))["linux"]["sysctl"] == {"net.core.somaxconn": "512"}


def test_infra_of_a_pod_on_the_node_joins_nothing_of_the_node() -> None:
    """Leaving a kind out is how the runtime-spec says: the node's."""
    options = NamespaceOption(network=NamespaceMode.NODE, ipc=NamespaceMode.NODE, pid=NamespaceMode.NODE)
    linux = LinuxPodSandboxConfig(security_context=LinuxSandboxSecurityContext(namespace_options=options))
    spec = infra_spec(replace(INFRA, sandbox=replace(POD, linux=linux), namespaces={}))
    assert {entry["type"] for entry in spec["linux"]["namespaces"]} <= {"mount", "cgroup"}
    assert "hostname" not in spec


def test_privileged_has_every_device_and_no_filter() -> None:
    """CRI: privileged means all devices, all capabilities, nothing masked, nothing filtered."""
    disk = HostDevice(path="/dev/sda", kind="b", major=8, minor=0, mode=0o660)
    plan = replace(with_context(privileged=True), host_devices=(disk,))
    linux = container_spec(plan)["linux"]
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert [node["path"] for node in linux["devices"]] == ["/dev/sda"]
    assert "devices" not in container_spec(replace(PLAN, host_devices=(disk,)))["linux"]
    without = container_spec(replace(plan, host_devices=(), without_host_devices=True))["linux"]
    assert without["resources"]["devices"][0] == {"allow": False, "access": "rwm"} and "devices" not in without


@pytest.mark.parametrize("path", ["/proc/kcore", "/sys/x", "/dev", "/", "dev/x", "/dev/../etc"])
def test_device_at_a_bad_path_is_refused(path: str) -> None:
    """A device node is made by the runtime as root: its place is checked like a mount's."""
    device = HostDevice(path=path, kind="c", major=1, minor=3)
    assert "devices[0]" in refusal(replace(PLAN, devices=(device,))).message


def test_device_that_was_asked_for_is_listed_and_allowed() -> None:
    """The cgroup rule has the asked permissions, and comes after the denial."""
    device = HostDevice(path="/dev/fuse", kind="c", major=10, minor=229, permissions="rw")
    linux = container_spec(replace(PLAN, devices=(device,)))["linux"]
    rules = linux["resources"]["devices"]
    assert rules[0]["allow"] is False
    assert rules[-1] == {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    assert linux["devices"][0]["path"] == "/dev/fuse"
    assert "permissions" in refusal(replace(PLAN, devices=(replace(device, permissions="rx"),))).message


def test_apparmor_follows_the_kernel() -> None:
    """The default profile where AppArmor is; a profile by name is refused, not forgotten, where it is not."""
    with_module = replace(PLAN, host=HostFacts(apparmor=True))
    assert container_spec(with_module)["process"]["apparmorProfile"] == "crio-default"
    assert "apparmorProfile" not in container_spec(PLAN)["process"]
    profile = SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="localhost/mine")
    assert container_spec(with_context(with_module, apparmor=profile))["process"]["apparmorProfile"] == "mine"
    assert refusal(with_context(apparmor=profile)).reason == "APPARMOR_NOT_AVAILABLE"
    unconfined = SecurityProfile(profile_type=ProfileType.UNCONFINED)
    assert "apparmorProfile" not in container_spec(with_context(with_module, apparmor=unconfined))["process"]


def test_selinux_labels_follow_the_kernel_and_the_request() -> None:
    """Checked on the spec, as few test machines have the module."""
    plan = replace(PLAN, host=HostFacts(selinux=True))
    spec = container_spec(plan)
    assert spec["process"]["selinuxLabel"] == "system_u:system_r:container_t:s0"
    assert spec["linux"]["mountLabel"] == "system_u:object_r:container_file_t:s0"
    assert "spc_t" in container_spec(with_context(plan, privileged=True))["process"]["selinuxLabel"]
    node = NamespaceOption(network=NamespaceMode.NODE)
    assert "selinuxLabel" not in container_spec(with_context(plan, namespace_options=node))["process"]
    assert "selinux_options.type" in refusal(with_context(selinux_options=SELinuxOption(type="a:b"))).message


def test_localhost_seccomp_without_its_file_is_refused() -> None:
    """A profile that could not be read must not become no profile."""
    profile = SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="p.json")
    plan = with_context(seccomp=profile)
    assert "localhost_ref" in refusal(plan).message
    loaded: Mapping[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}
    assert container_spec(replace(plan, seccomp_profile=loaded))["linux"]["seccomp"]["syscalls"] == []


def test_systemd_driver_names_slice_and_scope() -> None:
    """runc's form for the systemd driver: slice, prefix and name."""
    sandbox = replace(POD, linux=LinuxPodSandboxConfig(cgroup_parent="/kubepods.slice/kubepods-pod1.slice"))
    plan = replace(PLAN, sandbox=sandbox, host=HostFacts(cgroup_driver=CgroupDriver.SYSTEMD))
    assert container_spec(plan)["linux"]["cgroupsPath"] == "kubepods-pod1.slice:crio:c1"


def test_building_a_spec_is_a_small_part_of_a_create() -> None:
    """Printed, never asserted as a time: the budget is well under a millisecond."""
    runs = 200
    start = time.perf_counter()
    for _ in range(runs):
        container_spec(PLAN)
    print(f"container_spec: {(time.perf_counter() - start) / runs * 1e6:.0f} us")
