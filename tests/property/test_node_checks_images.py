"""What is refused before anything is reserved: image mounts that cannot be, and user namespaces."""

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
from crio_core.errors import OperationError
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


def test_user_namespace_is_refused_by_name_and_the_nodes_own_is_not() -> None:
    """F24: a clear error where it cannot be, instead of files that belong to nobody."""
    mapped = NamespaceOption(userns_options=UserNamespace(mode=NamespaceMode.POD, uids=RUNS, gids=RUNS))
    own = NamespaceOption(userns_options=UserNamespace(mode=NamespaceMode.NODE))
    checks.container(config(options=own))
    with pytest.raises(OperationError) as caught:
        checks.container(config(options=mapped))
    assert caught.value.reason == "USER_NAMESPACE_UNIMPLEMENTED"
    pod = PodSandboxConfig(
        metadata=PodSandboxMetadata(name="p", uid="u", namespace="n"),
        linux=LinuxPodSandboxConfig(security_context=LinuxSandboxSecurityContext(namespace_options=mapped)),
    )
    with pytest.raises(OperationError) as caught:
        checks.sandbox(pod, "", SETTINGS)
    assert caught.value.reason == "USER_NAMESPACE_UNIMPLEMENTED"
