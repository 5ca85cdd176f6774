"""From records to what the runtime is told: specs, log paths, stop signals, the processes of execs."""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import PurePosixPath

import orjson

from crio_core import effects as fx
from crio_core.cri import ContainerConfig, NamespaceMode, PodSandboxConfig, ProfileType, UserNamespace
from crio_core.errors import Code, OperationError, invalid
from crio_core.events import RootfsMounted
from crio_core.image.config import ImageConfig, parse_image_config
from crio_core.lifecycle.container import SpecBuilt
from crio_core.lifecycle.sandbox import HOSTNAME_CHARS, sandbox_request
from crio_core.node.settings import Handler, Settings
from crio_core.node.state import State
from crio_core.oci import cdi, signals
from crio_core.oci.facts import SpecDefaults
from crio_core.oci.mounts import image_volumes
from crio_core.oci.plan import ContainerPlan, InfraPlan
from crio_core.oci.security import wanted_apparmor_profile
from crio_core.oci.spec import container_spec, infra_spec
from crio_core.oci.spec import exec_process as build_exec_process
from crio_core.records import ContainerRecord, ContainerState, ImageRecord, Part, SandboxRecord, decode_request
from crio_core.values import replace

CONFIGS_KEPT_MAX = 16
"""Configurations that are kept, the latest: creating a container asks three times, and most have few images."""
_OCI_KINDS = {"net": "network", "ipc": "ipc", "uts": "uts", "user": "user"}


def infra_id(sandbox_id: str) -> str:
    """The id of a sandbox's infra container: follows from the sandbox's, so that recovery can find it."""
    return sha256(f"infra/{sandbox_id}".encode()).hexdigest()


def needs_infra(config: PodSandboxConfig, handler: Handler, settings: Settings) -> bool:
    """Whether a pod needs a process of its own: for a shared PID namespace, as a VM, or because it is configured."""
    shared_pid = config.linux.security_context.namespace_options.pid is NamespaceMode.POD
    return shared_pid or handler.vm or not settings.drop_infra


def log_path(sandbox: SandboxRecord, config: ContainerConfig, settings: Settings) -> str:
    """The container's log file; empty when neither the request nor the configuration says where."""
    directory = sandbox_request(sandbox).log_directory
    if not directory and settings.log_directory:
        directory = str(PurePosixPath(settings.log_directory) / sandbox.id)
    if not directory or not config.log_path:
        return ""
    return str(PurePosixPath(directory) / config.log_path)


def image_config(image: ImageRecord) -> ImageConfig:
    """What the image says about processes."""
    return _image_config(image.config)


@lru_cache(CONFIGS_KEPT_MAX)
def _image_config(text: str) -> ImageConfig:
    return parse_image_config(text.encode())


def stop_signal(config: ContainerConfig, image: ImageRecord) -> str:
    """The number of the signal that asks the container to end: the request's, else the image's, else SIGTERM's."""
    return str(signals.stop_signal(config, image_config(image)))


def _handler(state: State, container: ContainerRecord) -> Handler:
    """The container's runtime handler; one that a reload has taken away gives it nothing special any more."""
    return state.settings.handlers.get(container.runtime_handler) or Handler(name=container.runtime_handler)


def mount_rootfs(state: State, container: ContainerRecord) -> fx.MountRootfs:
    """The order that mounts a container's root filesystem and looks up what its spec needs."""
    config = decode_request(ContainerConfig, container.request)
    context = config.linux.security_context
    handler = _handler(state, container)
    seccomp, apparmor = context.seccomp, context.apparmor
    if container.infra:
        of_pod = sandbox_request(state.sandboxes[container.sandbox_id]).linux.security_context
        seccomp, apparmor = of_pod.seccomp, of_pod.apparmor
    host, defaults = state.settings.host, state.settings.defaults
    sandbox = state.sandboxes.get(container.sandbox_id)
    localhost = seccomp.profile_type is ProfileType.LOCALHOST
    return fx.MountRootfs(
        container_id=container.id,
        layers=container.layers,
        volumes=container.volumes,
        devices=(*state.settings.additional_devices, *config.devices),
        cdi_devices=cdi.asked(config),
        all_devices=context.privileged and not handler.privileged_without_host_devices,
        seccomp_path=seccomp.localhost_ref.removeprefix("localhost/") if localhost else "",
        apparmor_profile=wanted_apparmor_profile(apparmor, host, defaults, privileged=context.privileged),
        users=_users_path(sandbox) if sandbox else "",
        owner=_users(sandbox_request(sandbox)).root if sandbox else (0, 0),
    )


def _users(request: PodSandboxConfig) -> UserNamespace:
    return request.linux.security_context.namespace_options.userns_options


def _users_path(sandbox: SandboxRecord) -> str:
    """Where the pod's user namespace is pinned; empty when it has the node's."""
    return next((pin.path for pin in sandbox.pins if pin.kind == "user"), "")


def _mapped_mounts(state: State, container: ContainerRecord, config: ContainerConfig) -> Mapping[str, str]:
    """Where the mounts are that are to have mapped ids, by their container path: beside the image volumes."""
    directory = state.settings.layout.image_volumes(container.id)
    return {
        mount.container_path: str(directory / f"mapped-{index}")
        for index, mount in enumerate(config.mounts)
        if not mount.image.image and (mount.uidMappings or mount.gidMappings)
    }


def build(state: State, container: ContainerRecord, mounted: RootfsMounted) -> SpecBuilt:
    """The order that creates a container whose root filesystem is mounted.

    Raises:
        OperationError: The request, or the image, asks for what cannot be.
    """
    sandbox = state.sandboxes.get(container.sandbox_id)
    image = state.images.get(container.image_id)
    if sandbox is None or image is None:
        raise OperationError(Code.ABORTED, "CONTAINER_ABANDONED", f"container {container.id}: its pod or image is gone")
    request = sandbox_request(sandbox)
    config = decode_request(ContainerConfig, container.request)
    if container.infra:
        spec = infra_spec(_infra_plan(state, sandbox, request, config, image, mounted))
    else:
        spec = container_spec(_plan(state, container, sandbox, request, config, image, mounted))
    process = spec["process"]
    places = _mapped_mounts(state, container, config)
    create = fx.CreateContainer(
        container_id=container.id,
        sandbox_id=sandbox.id,
        runtime_handler=container.runtime_handler,
        spec=orjson.dumps(spec),
        make_directories=(
            process["cwd"],
            *(image_volumes(image_config(image)) if state.settings.image_volumes else ()),
        ),
        mount_targets=(
            *(mount.container_path for mount in config.mounts),
            *(mount.containerPath for mount in mounted.edits.mounts),
        ),
        log_path=container.log_path,
        terminal=config.tty,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        name=_title(sandbox, container),
        users=_users_path(sandbox),
        mapped_mounts=tuple(
            (mount.host_path, places[mount.container_path])
            for mount in config.mounts
            if mount.container_path in places and not mount.image.image
        ),
        owner=_users(request).root,
    )
    return SpecBuilt(create=create, process=orjson.dumps(process).decode())


def _title(sandbox: SandboxRecord, container: ContainerRecord) -> str:
    meta = sandbox.metadata
    return f"k8s_{container.metadata.name}_{meta.name}_{meta.namespace}_{meta.uid}_{container.metadata.attempt}"


def _namespaces(state: State, sandbox: SandboxRecord, request: PodSandboxConfig) -> Mapping[str, str]:
    paths = {_OCI_KINDS[pin.kind]: pin.path for pin in sandbox.pins}
    infra = state.containers.get(infra_id(sandbox.id))
    if infra is not None and request.linux.security_context.namespace_options.pid is NamespaceMode.POD and infra.pid:
        paths["pid"] = f"/proc/{infra.pid}/ns/pid"
    return paths


def within_pod(config: ContainerConfig, pod: PodSandboxConfig) -> ContainerConfig:
    """A container's configuration with what it shares with its pod: the node's, where the pod has the node's."""
    context, wanted = config.linux.security_context, config.linux.security_context.namespace_options
    given = pod.linux.security_context.namespace_options

    def shared(mode: NamespaceMode, of_pod: NamespaceMode) -> NamespaceMode:
        return of_pod if (mode, of_pod) == (NamespaceMode.POD, NamespaceMode.NODE) else mode

    options = replace(
        wanted,
        network=shared(wanted.network, given.network),
        pid=shared(wanted.pid, given.pid),
        ipc=shared(wanted.ipc, given.ipc),
        userns_options=given.userns_options,
    )
    if options == wanted:
        return config
    return replace(config, linux=replace(config.linux, security_context=replace(context, namespace_options=options)))


def _target_namespace(state: State, sandbox: SandboxRecord, config: ContainerConfig) -> str:
    """The PID namespace of the container that a debugging container wants to look into (CRI, NamespaceMode.TARGET)."""
    target_id = config.linux.security_context.namespace_options.target_id
    target = state.containers.get(target_id)
    if target is None or target.sandbox_id != sandbox.id or target.state is not ContainerState.RUNNING:
        raise invalid(
            "config.linux.security_context.namespace_options.target_id", target_id, "a running container of the sandbox"
        )
    return f"/proc/{target.pid}/ns/pid"


def _defaults(state: State, mounted: RootfsMounted) -> SpecDefaults:
    """What the configuration says about every container, as far as this node can give it."""
    defaults = state.settings.defaults
    return defaults if mounted.apparmor else replace(defaults, apparmor_profile="")


def _hostname(sandbox: SandboxRecord, request: PodSandboxConfig, mounted: RootfsMounted) -> str:
    """What the pod is called: as it says, else by its id, or as the node where it shares the node's network."""
    on_node = request.linux.security_context.namespace_options.network is NamespaceMode.NODE
    return request.hostname or (mounted.node_name if on_node else sandbox.id[:HOSTNAME_CHARS])


def _plan(
    state: State,
    container: ContainerRecord,
    sandbox: SandboxRecord,
    request: PodSandboxConfig,
    config: ContainerConfig,
    image: ImageRecord,
    mounted: RootfsMounted,
) -> ContainerPlan:
    layout = state.settings.layout
    config = within_pod(config, request)
    namespaces = dict(_namespaces(state, sandbox, request))
    pid_mode = config.linux.security_context.namespace_options.pid
    if pid_mode is NamespaceMode.TARGET:
        namespaces["pid"] = _target_namespace(state, sandbox, config)
    elif pid_mode is not NamespaceMode.POD:
        namespaces.pop("pid", None)
    return ContainerPlan(
        container_id=container.id,
        # A VM runtime knows the pod by the container that started it.
        sandbox_id=infra_id(sandbox.id) if Part.INFRA in sandbox.plan else sandbox.id,
        sandbox=replace(request, hostname=_hostname(sandbox, request, mounted)),
        config=config,
        rootfs_path=mounted.path,
        image=image_config(image),
        rootfs=mounted.facts,
        host=state.settings.host,
        defaults=replace(_defaults(state, mounted), allowed_annotations=_handler(state, container).allowed_annotations),
        namespaces=namespaces,
        resolv_conf_path=str(layout.resolv_conf(sandbox.id)),
        hostname_path=str(layout.hostname(sandbox.id)),
        shm_path=str(layout.shm(sandbox.id)) if "ipc" in namespaces else "/dev/shm",
        image_mounts=dict(mounted.image_mounts),
        mapped_mounts=_mapped_mounts(state, container, config),
        devices=mounted.devices,
        host_devices=mounted.host_devices,
        edits=mounted.edits,
        without_host_devices=_handler(state, container).privileged_without_host_devices,
        seccomp_profile=orjson.loads(mounted.seccomp_profile) if mounted.seccomp_profile else None,
        image_name=container.image,
    )


def _infra_plan(
    state: State,
    sandbox: SandboxRecord,
    request: PodSandboxConfig,
    config: ContainerConfig,
    image: ImageRecord,
    mounted: RootfsMounted,
) -> InfraPlan:
    return InfraPlan(
        container_id=infra_id(sandbox.id),
        sandbox_id=infra_id(sandbox.id),
        sandbox=request,
        rootfs_path=mounted.path,
        image=image_config(image),
        command=config.command,
        rootfs=mounted.facts,
        host=state.settings.host,
        defaults=_defaults(state, mounted),
        namespaces=_namespaces(state, sandbox, request),
        shm_path=str(state.settings.layout.shm(sandbox.id)),
        seccomp_profile=orjson.loads(mounted.seccomp_profile) if mounted.seccomp_profile else None,
        image_name=container_image_name(config),
    )


def container_image_name(config: ContainerConfig) -> str:
    """The image as a person named it."""
    return config.image.user_specified_image or config.image.image


def exec_process(container: ContainerRecord, command: tuple[str, ...], *, terminal: bool = False) -> bytes:
    """The OCI process of a command in a container: the first process's, with other arguments and never more rights.

    Raises:
        OperationError: The command is empty or cannot be told to a process.
    """
    return orjson.dumps(build_exec_process(orjson.loads(container.process), command, terminal=terminal))
