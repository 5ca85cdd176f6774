"""What is refused before anything is reserved: image mounts that cannot be, and user namespaces."""

from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from crio_core.cri import (
    ContainerConfig,
    ContainerMetadata,
    IDMapping,
    ImageSpec,
    LinuxContainerConfig,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    Mount,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
    UserNamespace,
)
from crio_core.errors import Code, OperationError
from crio_core.layout import Layout
from crio_core.node import checks
from crio_core.node.settings import Settings
from crio_core.oci.facts import HostFacts, SpecDefaults

IMAGE = ImageSpec(image="busybox")
SETTINGS = Settings(
    layout=Layout(root=PurePosixPath("/r"), runroot=PurePosixPath("/v")), host=HostFacts(), defaults=SpecDefaults()
)
RUNS = (IDMapping(host_id=200_000, container_id=0, length=65_536),)


def config(*mounts: Mount, options: NamespaceOption | None = None) -> ContainerConfig:
    context = LinuxContainerSecurityContext(namespace_options=options or NamespaceOption())
    return ContainerConfig(
        metadata=ContainerMetadata(name="c"),
        image=IMAGE,
        mounts=mounts,
        linux=LinuxContainerConfig(security_context=context),
    )


@pytest.mark.parametrize("path", ["", "a", "a/b.c", "./a", ".hidden"])
def test_image_mount_with_a_relative_sub_path_is_accepted(path: str) -> None:
    """CRI, Mount.image_sub_path."""
    checks.container(config(Mount(container_path="/m", image=IMAGE, image_sub_path=path)))


@pytest.mark.parametrize("path", ["/etc", "..", "a/../../b", "a\0b", "x" * 5000])
def test_image_mount_with_a_sub_path_that_leads_out_is_refused(path: str) -> None:
    """The path is of the image, and a request is a stranger's word."""
    with pytest.raises(OperationError, match="image_sub_path"):
        checks.container(config(Mount(container_path="/m", image=IMAGE, image_sub_path=path)))


def test_image_mounts_are_bounded() -> None:
    """Each is a mount of the node."""
    mount = Mount(container_path="/m", image=IMAGE)
    checks.container(config(*[mount] * checks.IMAGE_MOUNTS_MAX))
    with pytest.raises(OperationError, match="mounts of images"):
        checks.container(config(*[mount] * (checks.IMAGE_MOUNTS_MAX + 1)))


def pod(users: UserNamespace) -> PodSandboxConfig:
    context = LinuxSandboxSecurityContext(namespace_options=NamespaceOption(userns_options=users))
    return PodSandboxConfig(
        metadata=PodSandboxMetadata(name="p", uid="u", namespace="n"),
        linux=LinuxPodSandboxConfig(security_context=context),
    )


def test_user_namespace_is_refused_with_the_reason_where_the_node_has_none_to_give() -> None:
    """F24: a clear error where it cannot be, instead of files that belong to nobody."""
    mapped = UserNamespace(uids=RUNS, gids=RUNS)
    checks.sandbox(pod(mapped), "", SETTINGS)
    old = replace(SETTINGS, host=replace(SETTINGS.host, userns_lack="the kernel is too old"))
    with pytest.raises(OperationError, match="the kernel is too old") as caught:
        checks.sandbox(pod(mapped), "", old)
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "USER_NAMESPACE_UNAVAILABLE")
    for none in (UserNamespace(mode=NamespaceMode.NODE), UserNamespace()):
        checks.sandbox(pod(none), "", old)
    machines = replace(SETTINGS, handlers={"runc": replace(SETTINGS.handlers["runc"], vm=True)})
    with pytest.raises(OperationError, match="virtual machines"):
        checks.sandbox(pod(mapped), "", machines)


def test_container_may_leave_out_the_user_namespace_of_its_pod_and_not_change_it() -> None:
    """Clients that know of no user namespaces say nothing of them; one that names other ids would get wrong ones."""
    mapped = UserNamespace(uids=RUNS, gids=RUNS)
    for same in (mapped, UserNamespace(), UserNamespace(mode=NamespaceMode.NODE)):
        checks.same_users(config(options=NamespaceOption(userns_options=same)), pod(mapped))
    for given in (UserNamespace(), UserNamespace(uids=(replace(RUNS[0], host_id=1),), gids=RUNS)):
        with pytest.raises(OperationError, match="userns_options"):
            checks.same_users(config(options=NamespaceOption(userns_options=mapped)), pod(given))
