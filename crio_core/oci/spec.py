"""The runtime-spec's `config.json` of a container, built from a plan (OCI runtime-spec 1.0.2).

Every call builds every object anew: two specs share nothing that can be changed (CVE-2021-21334).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crio_core.cri import (
    Capability,
    ContainerConfig,
    ContainerMetadata,
    LinuxContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    ProfileType,
)
from crio_core.errors import LocalError, invalid
from crio_core.oci.annotations import annotations
from crio_core.oci.capabilities import capability_sets
from crio_core.oci.cdi import edit
from crio_core.oci.cgroups import cgroups_path
from crio_core.oci.mounts import masked_paths, mounts, readonly_paths, rootfs_propagation
from crio_core.oci.namespaces import id_mappings, namespaces, shares_node_name
from crio_core.oci.paths import clean_path
from crio_core.oci.plan import ContainerPlan, InfraPlan
from crio_core.oci.process import arguments, check_strings, environment, rlimits, working_directory
from crio_core.oci.resolv import check_hostname
from crio_core.oci.resources import device_nodes, device_rules, oom_score_adj, resources
from crio_core.oci.seccomp import default_profile, resolve_profile
from crio_core.oci.security import apparmor_profile, selinux_labels
from crio_core.oci.sysctls import sandbox_sysctls
from crio_core.oci.users import resolve_user

SPEC_VERSION = "1.0.2"
INFRA_OOM_SCORE_ADJ = -998  # what kubelets give their own pod processes
INFRA_CPU_SHARES = 2

Json = dict[str, Any]


def container_spec(plan: ContainerPlan) -> Json:
    """The spec of one container of a pod.

    Raises:
        OperationError: INVALID_ARGUMENT naming the field and value at fault, or FAILED_PRECONDITION naming what the
            node lacks.
        LocalError: the plan has no path of a namespace that the container is to join.
    """
    process_label, mount_label = selinux_labels(plan)
    process = _process(plan)
    if process_label:
        process["selinuxLabel"] = process_label
    readonly = plan.config.linux.security_context.readonly_rootfs or plan.defaults.read_only
    spec: Json = {
        "ociVersion": SPEC_VERSION,
        "process": process,
        "root": {"path": clean_path("path of the root filesystem", plan.rootfs_path), "readonly": readonly},
        "mounts": mounts(plan),
        "annotations": annotations(plan),
        "linux": _linux(plan, frozenset(process["capabilities"]["bounding"]), mount_label),
    }
    if plan.hostname and not shares_node_name(plan):
        spec["hostname"] = check_hostname(plan.hostname)
    edit(spec, plan.edits, everything=plan.all_devices)
    return spec


def _process(plan: ContainerPlan) -> Json:
    config, context = plan.config, plan.config.linux.security_context
    user = resolve_user(context, plan.image.user, plan.rootfs)
    variables = environment(
        (plan.defaults.default_env, plan.image.env),
        config.envs,
        hostname=plan.hostname,
        home=user.home,
        terminal=config.tty,
    )
    process: Json = {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": arguments(config, plan.image),
        "env": variables,
        "cwd": working_directory(config, plan.image),
        "capabilities": capability_sets(
            context.capabilities,
            privileged=context.privileged,
            defaults=plan.defaults.default_capabilities,
            available=plan.host.capabilities,
        ),
        "noNewPrivileges": context.no_new_privs,
        "oomScoreAdj": oom_score_adj(config.linux.resources.oom_score_adj, plan.host),
    }
    if limits := rlimits(plan.defaults.default_ulimits, plan.host):
        process["rlimits"] = limits
    if profile := apparmor_profile(plan):
        process["apparmorProfile"] = profile
    return process


def _linux(plan: ContainerPlan, bounding: frozenset[str], mount_label: str) -> Json:
    given = plan.config.linux
    nodes = device_nodes((*plan.host_devices, *plan.devices) if plan.all_devices else plan.devices)
    linux: Json = {
        "namespaces": namespaces(plan),
        **id_mappings(plan),
        "cgroupsPath": cgroups_path(plan.sandbox.linux.cgroup_parent, plan.host.cgroup_driver, plan.container_id),
        "resources": resources(
            given.resources,
            plan.host,
            pids_limit=plan.defaults.pids_limit,
            devices=device_rules(plan.devices, everything=plan.all_devices),
        ),
        "maskedPaths": masked_paths(plan),
        "readonlyPaths": readonly_paths(plan),
    }
    if nodes:
        linux["devices"] = nodes
    if propagation := rootfs_propagation(plan):
        linux["rootfsPropagation"] = propagation
    if mount_label:
        linux["mountLabel"] = mount_label
    if (filters := _seccomp(plan, bounding)) is not None:
        linux["seccomp"] = filters
    return linux


def _seccomp(plan: ContainerPlan, bounding: frozenset[str]) -> Json | None:
    profile = plan.config.linux.security_context.seccomp
    if plan.privileged or not plan.host.seccomp or profile.profile_type is ProfileType.UNCONFINED:
        return None
    if profile.profile_type is ProfileType.LOCALHOST:
        if plan.seccomp_profile is None:
            field = "linux.security_context.seccomp.localhost_ref"
            raise invalid(field, profile.localhost_ref, "the path of a profile that can be read")
        return resolve_profile(plan.seccomp_profile, plan.host.architecture, bounding)
    if plan.defaults.seccomp_profile is not None:
        return resolve_profile(plan.defaults.seccomp_profile, plan.host.architecture, bounding)
    return default_profile(plan.host.architecture, bounding)


def infra_spec(plan: InfraPlan) -> Json:
    """The spec of a pod's infra container, which holds the pod's PID namespace or stands for it in a virtual machine.

    It has no capabilities, no new privileges and nothing mounted that it does not need, and it is the last of its pod
    to be killed when memory runs out.

    Raises:
        OperationError, LocalError: as `container_spec` does.
    """
    context = plan.sandbox.linux.security_context
    config = ContainerConfig(
        metadata=ContainerMetadata(name="infra"),
        command=plan.command,
        linux=LinuxContainerConfig(
            resources=LinuxContainerResources(cpu_shares=INFRA_CPU_SHARES, oom_score_adj=INFRA_OOM_SCORE_ADJ),
            security_context=LinuxContainerSecurityContext(
                capabilities=Capability(drop_capabilities=("ALL",)),
                namespace_options=context.namespace_options,
                selinux_options=context.selinux_options,
                run_as_user=context.run_as_user,
                run_as_group=context.run_as_group if context.run_as_user is not None else None,
                readonly_rootfs=True,
                supplemental_groups=context.supplemental_groups,
                supplemental_groups_policy=context.supplemental_groups_policy,
                no_new_privs=True,
                seccomp=context.seccomp,
                apparmor=context.apparmor,
            ),
        ),
    )
    spec = container_spec(
        ContainerPlan(
            container_id=plan.container_id or plan.sandbox_id,
            sandbox_id=plan.sandbox_id,
            sandbox=plan.sandbox,
            config=config,
            rootfs_path=plan.rootfs_path,
            image=plan.image,
            rootfs=plan.rootfs,
            host=plan.host,
            defaults=plan.defaults,
            namespaces=plan.namespaces,
            shm_path=plan.shm_path,
            seccomp_profile=plan.seccomp_profile,
            image_name=plan.image_name,
            is_sandbox=True,
        )
    )
    if sysctls := sandbox_sysctls(plan.sandbox, plan.defaults.default_sysctls):
        spec["linux"]["sysctl"] = sysctls
    return spec


# What an exec keeps of the first process; whatever else a spec may gain does not slip into execs by itself.
_KEPT = ("cwd", "noNewPrivileges", "oomScoreAdj", "apparmorProfile", "selinuxLabel")


def exec_process(init: Mapping[str, Any], command: Sequence[str], *, terminal: bool = False) -> Json:
    """The `process` object of a further process in a container: its user, environment and capabilities, no more.

    Args:
        init: The `process` object of the container's own spec.
        command: What to run; the first word is the program.

    Raises:
        OperationError: an empty command, or words that cannot be passed to a program.
        LocalError: `init` is not a `process` object of ours.
    """
    if not command or not command[0]:
        raise invalid("cmd", list(command), "a command")
    try:
        process: Json = {
            "terminal": terminal,
            "user": {**init["user"], "additionalGids": list(init["user"]["additionalGids"])},
            "args": check_strings("cmd", command),
            "env": list(init["env"]),
            "capabilities": {name: list(held) for name, held in init["capabilities"].items()},
        }
        process |= {name: init[name] for name in _KEPT if name in init}
    except (KeyError, TypeError, AttributeError) as error:
        raise LocalError(f"not a process object of a spec: {error!r}") from error
    if terminal and not any(entry.startswith("TERM=") for entry in process["env"]):
        process["env"].append("TERM=xterm")
    if "rlimits" in init:
        process["rlimits"] = [dict(limit) for limit in init["rlimits"]]
    return process
