"""Labels of the two security modules, where the kernel has them (runtime-spec, process)."""

import re

from crio_core.cri import NamespaceMode, ProfileType, SecurityProfile, SELinuxOption
from crio_core.errors import Code, OperationError, invalid
from crio_core.oci.facts import HostFacts, SpecDefaults
from crio_core.oci.plan import ContainerPlan

DEFAULT_APPARMOR_PROFILE = "crio-default"
"""The profile that this project brings itself; it stands for the runtime's default unless another is configured."""

_PROFILE = re.compile(r"[A-Za-z0-9_.:/+@-][A-Za-z0-9_.:/+@ -]{0,254}")
_PART = re.compile(r"[A-Za-z0-9_.]{1,128}")
_LEVEL = re.compile(r"[A-Za-z0-9_.,:-]{1,256}")


def wanted_apparmor_profile(
    profile: SecurityProfile, host: HostFacts, defaults: SpecDefaults, *, privileged: bool
) -> str:
    """The name of the profile that a request means; empty for none."""
    if privileged or not host.apparmor or profile.profile_type is ProfileType.UNCONFINED:
        return ""
    if profile.profile_type is ProfileType.LOCALHOST:
        return profile.localhost_ref.removeprefix("localhost/")
    return defaults.apparmor_profile


def apparmor_profile(plan: ContainerPlan) -> str:
    """The profile to run under; empty for none.

    Raises:
        OperationError: a Localhost profile without a usable name, or on a kernel without AppArmor.
    """
    field = "linux.security_context.apparmor"
    profile = plan.config.linux.security_context.apparmor
    if profile.profile_type is ProfileType.LOCALHOST:
        name = profile.localhost_ref.removeprefix("localhost/")
        if not _PROFILE.fullmatch(name):
            raise invalid(f"{field}.localhost_ref", profile.localhost_ref[:256], "the name of a loaded profile")
        if not plan.privileged and not plan.host.apparmor:
            message = f"{field}: profile {name!r} was asked for, but AppArmor is not enabled on this node"
            raise OperationError(Code.FAILED_PRECONDITION, "APPARMOR_NOT_AVAILABLE", message)
    return wanted_apparmor_profile(profile, plan.host, plan.defaults, privileged=plan.privileged)


def selinux_labels(plan: ContainerPlan) -> tuple[str, str]:
    """The labels of the process and of its mounts; both empty where SELinux is off or not wanted for this container."""
    context = plan.config.linux.security_context
    options = context.selinux_options
    _check(options)
    if not plan.host.selinux:
        return "", ""
    if context.namespace_options.network is NamespaceMode.NODE and plan.defaults.hostnetwork_disable_selinux:
        return "", ""
    user, role = options.user or "system_u", options.role or "system_r"
    level = options.level or "s0"
    if plan.privileged:
        return f"{user}:{role}:{options.type or 'spc_t'}:{level}", ""
    return f"{user}:{role}:{options.type or 'container_t'}:{level}", f"{user}:object_r:container_file_t:{level}"


def _check(options: SELinuxOption) -> None:
    parts = (("user", options.user, _PART), ("role", options.role, _PART), ("type", options.type, _PART))
    for name, value, pattern in (*parts, ("level", options.level, _LEVEL)):
        if value and not pattern.fullmatch(value):
            raise invalid(f"linux.security_context.selinux_options.{name}", value[:64], "part of an SELinux label")
