"""Between CRI messages and the core's words. It translates, it never decides.

Requests go through one generic reader: the classes of `crio_core.cri` have the messages' own field names, so a reader
is compiled once for each class from its annotations. Answers are written by hand, one function a message.
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any, TypeVar

import orjson
from google.protobuf.message import Message

from crio_core import cri
from crio_core import requests as rq
from crio_core.errors import invalid
from crio_core.image.config import parse_image_config
from crio_core.oci.signals import cri_signal
from crio_core.records import ContainerRecord, ImageRecord, SandboxRecord, SandboxState, decode_request
from crio_core.replies import CONTAINER_STATES
from crio_io.feed import Happening, Kind
from crio_server.cri.v1 import api_pb2 as pb

T = TypeVar("T")
Reader = Callable[[Any, str], Any]

HISTORY_SHOWN_MAX = 256
TEXT_CHARS_MAX = 4096
"""Of each text that an image's author wrote about it: an answer has a size limit."""

_STATES = {"created": pb.CONTAINER_CREATED, "running": pb.CONTAINER_RUNNING, "exited": pb.CONTAINER_EXITED}
_EVENTS = {
    Kind.CREATED: pb.CONTAINER_CREATED_EVENT,
    Kind.STARTED: pb.CONTAINER_STARTED_EVENT,
    Kind.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    Kind.DELETED: pb.CONTAINER_DELETED_EVENT,
}
STATE_WORDS: Mapping[int, str] = {number: word for word, number in _STATES.items()}


def streams(request: pb.ExecRequest | pb.AttachRequest) -> rq.Streams:
    """Which streams a client wants."""
    return rq.Streams(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, tty=request.tty)


def read(cls: type[T], message: Message, path: str = "") -> T:
    """The value of class `cls` that a message of the same name says.

    Raises:
        OperationError: INVALID_ARGUMENT, naming the field whose value the core's words cannot hold.
    """
    kind: Any = cls
    value: T = _reader(kind)(message, path)
    return value


def take_old_profiles(context: pb.LinuxContainerSecurityContext | pb.LinuxSandboxSecurityContext, path: str) -> None:
    """Put what an older client says in `apparmor_profile` and `seccomp_profile_path` where the core looks for it.

    Where a client sets the fields that have replaced them (CRI, SecurityProfile), those count.

    Raises:
        OperationError: INVALID_ARGUMENT, of a word that these fields never had.
    """
    for new, old in (("apparmor", "apparmor_profile"), ("seccomp", "seccomp_profile_path")):
        word = getattr(context, old, "")  # A sandbox has one of them only.
        if word and not context.HasField(new):
            getattr(context, new).CopyFrom(_old_profile(f"{path}.{old}", word))


def _old_profile(field: str, word: str) -> pb.SecurityProfile:
    kind, _, reference = word.partition("/")
    if kind == "localhost" and reference:
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=reference)
    if word in ("runtime/default", "docker/default"):
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    if word == "unconfined":
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
    raise invalid(field, word[:200], "runtime/default, unconfined, or localhost/ and a profile")


@cache
def _reader(cls: Any) -> Reader:
    hints = typing.get_type_hints(cls)
    readers = tuple((field.name, _field_reader(field.name, hints[field.name])) for field in fields(cls))

    def read_message(message: Any, path: str) -> Any:
        values = {}
        for name, reader in readers:
            try:
                values[name] = reader(message, f"{path}.{name}" if path else name)
            except UnicodeDecodeError as error:
                raise invalid(f"{path}.{name}", getattr(message, name)[:64], "UTF-8 text") from error
        return cls(**values)

    return read_message


def _field_reader(name: str, hint: Any) -> Reader:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # Int64Value: absent and zero differ
        return lambda message, path: getattr(message, name).value if message.HasField(name) else None
    if origin is tuple:
        item = _item_reader(arguments[0])
        return lambda message, path: tuple(
            item(one, f"{path}[{index}]") for index, one in enumerate(getattr(message, name))
        )
    if origin is not None:  # a map, whose order on the wire is chance: the same request reads the same
        return lambda message, path: dict(sorted(getattr(message, name).items()))
    item = _item_reader(hint)
    return lambda message, path: item(getattr(message, name), path)


def _item_reader(hint: Any) -> Reader:
    if is_dataclass(hint):
        inner: Reader | None = None

        def read_inner(message: Any, path: str) -> Any:
            nonlocal inner
            inner = inner or _reader(typing.cast(type, hint))
            return inner(message, path)

        return read_inner
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return _enum_reader(hint)
    if hint is str:
        return lambda value, path: value.decode() if isinstance(value, bytes) else value
    return lambda value, path: value


def _enum_reader(enum: type[IntEnum]) -> Reader:
    def read_enum(value: int, path: str) -> IntEnum:
        try:
            return enum(value)
        except ValueError:
            raise invalid(path, value, f"one of {', '.join(f'{one.value} ({one.name})' for one in enum)}") from None

    return read_enum


# --- answers ------------------------------------------------------------------------------------------------------


def sandbox(record: SandboxRecord) -> pb.PodSandbox:
    """A sandbox as lists show it."""
    return pb.PodSandbox(
        id=record.id,
        metadata=_sandbox_metadata(record),
        state=_sandbox_state(record),
        created_at=record.created_at_ns,
        labels=record.labels,
        annotations=record.annotations,
        runtime_handler=record.runtime_handler,
    )


def sandbox_status(record: SandboxRecord) -> pb.PodSandboxStatus:
    """A sandbox as its status shows it."""
    config = decode_request(cri.PodSandboxConfig, record.request)
    options = config.linux.security_context.namespace_options
    network = pb.PodSandboxNetworkStatus()
    if record.ips:
        network.ip = record.ips[0]
        network.additional_ips.extend(pb.PodIP(ip=ip) for ip in record.ips[1:])
    return pb.PodSandboxStatus(
        id=record.id,
        metadata=_sandbox_metadata(record),
        state=_sandbox_state(record),
        created_at=record.created_at_ns,
        network=network,
        linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=_namespace_options(options))),
        labels=record.labels,
        annotations=record.annotations,
        runtime_handler=record.runtime_handler,
    )


def _sandbox_metadata(record: SandboxRecord) -> pb.PodSandboxMetadata:
    meta = record.metadata
    return pb.PodSandboxMetadata(name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=meta.attempt)


def _sandbox_state(record: SandboxRecord) -> pb.PodSandboxState:
    return pb.SANDBOX_READY if record.state is SandboxState.READY else pb.SANDBOX_NOTREADY


def _namespace_options(options: cri.NamespaceOption) -> pb.NamespaceOption:
    users = options.userns_options
    return pb.NamespaceOption(
        network=_number(pb.NamespaceMode, options.network),
        pid=_number(pb.NamespaceMode, options.pid),
        ipc=_number(pb.NamespaceMode, options.ipc),
        target_id=options.target_id,
        userns_options=pb.UserNamespace(
            mode=_number(pb.NamespaceMode, users.mode),
            uids=[_id_mapping(one) for one in users.uids],
            gids=[_id_mapping(one) for one in users.gids],
        ),
    )


def _number(enum: Any, value: int) -> Any:
    """The stubs give each enum a type of its own; on the wire they are the core's numbers."""
    return enum.ValueType(value) if hasattr(enum, "ValueType") else int(value)


def _id_mapping(mapping: cri.IDMapping) -> pb.IDMapping:
    return pb.IDMapping(host_id=mapping.host_id, container_id=mapping.container_id, length=mapping.length)


def container(record: ContainerRecord) -> pb.Container:
    """A container as lists show it."""
    return pb.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=pb.ContainerMetadata(name=record.metadata.name, attempt=record.metadata.attempt),
        image=pb.ImageSpec(image=record.image),
        image_ref=record.image_ref,
        state=_container_state(record),
        created_at=record.created_at_ns,
        labels=record.labels,
        annotations=record.annotations,
        image_id=record.image_id,
    )


def _container_state(record: ContainerRecord) -> pb.ContainerState:
    return _STATES[CONTAINER_STATES[record.state]]


def container_status(record: ContainerRecord) -> pb.ContainerStatus:
    """A container as its status shows it."""
    config = decode_request(cri.ContainerConfig, record.request)
    resources = config.linux.resources
    return pb.ContainerStatus(
        id=record.id,
        metadata=pb.ContainerMetadata(name=record.metadata.name, attempt=record.metadata.attempt),
        state=_container_state(record),
        created_at=record.created_at_ns,
        started_at=record.started_at_ns,
        finished_at=record.finished_at_ns,
        exit_code=record.exit_code,
        image=pb.ImageSpec(image=record.image),
        image_ref=record.image_ref,
        reason=record.reason,
        message=record.message,
        labels=record.labels,
        annotations=record.annotations,
        mounts=[_mount(one) for one in config.mounts],
        log_path=record.log_path,
        resources=pb.ContainerResources(
            linux=pb.LinuxContainerResources(
                cpu_period=resources.cpu_period,
                cpu_quota=resources.cpu_quota,
                cpu_shares=resources.cpu_shares,
                memory_limit_in_bytes=resources.memory_limit_in_bytes,
                oom_score_adj=resources.oom_score_adj,
                cpuset_cpus=resources.cpuset_cpus,
                cpuset_mems=resources.cpuset_mems,
                hugepage_limits=[
                    pb.HugepageLimit(page_size=one.page_size, limit=one.limit) for one in resources.hugepage_limits
                ],
                unified=resources.unified,
                memory_swap_limit_in_bytes=resources.memory_swap_limit_in_bytes,
            )
        ),
        image_id=record.image_id,
        user=pb.ContainerUser(linux=_container_user(record)),
        stop_signal=_number(pb.Signal, cri_signal(int(record.stop_signal))),
    )


def _container_user(record: ContainerRecord) -> pb.LinuxContainerUser:
    user = orjson.loads(record.process).get("user", {}) if record.process else {}
    return pb.LinuxContainerUser(
        uid=user.get("uid", 0), gid=user.get("gid", 0), supplemental_groups=user.get("additionalGids", ())
    )


def _mount(mount: cri.Mount) -> pb.Mount:
    return pb.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        selinux_relabel=mount.selinux_relabel,
        propagation=_number(pb.MountPropagation, mount.propagation),
        uidMappings=[_id_mapping(one) for one in mount.uidMappings],
        gidMappings=[_id_mapping(one) for one in mount.gidMappings],
        recursive_read_only=mount.recursive_read_only,
        image=pb.ImageSpec(image=mount.image.image) if mount.image.image else None,
        image_sub_path=mount.image_sub_path,
        mount_options=mount.mount_options,
    )


def happening(told: Happening) -> pb.ContainerEventResponse:
    """What has happened to a container or a pod."""
    return pb.ContainerEventResponse(
        container_id=told.id,
        container_event_type=_EVENTS[told.kind],
        created_at=told.wall_ns,
        pod_sandbox_status=sandbox_status(told.sandbox) if told.sandbox is not None else None,
        containers_statuses=[container_status(one) for one in told.containers],
    )


def image(record: ImageRecord) -> pb.Image:
    """An image. Its user is a number or a name, never both (CRI, Image.uid)."""
    user = record.user.partition(":")[0]
    uid = pb.Int64Value(value=int(user)) if user.isascii() and user.isdigit() and len(user) <= 10 else None
    return pb.Image(
        id=record.id,
        repo_tags=record.tags,
        repo_digests=record.digests,
        size=record.size_bytes,
        uid=uid,
        username="" if uid is not None else user,
        spec=pb.ImageSpec(image=record.id, annotations={}),
        pinned=record.pinned,
    )


def image_info(record: ImageRecord) -> dict[str, Any]:
    """What verbose image status adds: configuration, history, layers. Of a long history the latest steps."""
    config = parse_image_config(record.config.encode())
    return {
        "created": config.created[:TEXT_CHARS_MAX],
        "author": config.author[:TEXT_CHARS_MAX],
        "architecture": config.architecture,
        "variant": config.variant,
        "os": config.os,
        "history": [
            {
                "created": step.created[:TEXT_CHARS_MAX],
                "createdBy": step.created_by[:TEXT_CHARS_MAX],
                "comment": step.comment[:TEXT_CHARS_MAX],
                "emptyLayer": step.empty_layer,
            }
            for step in config.history[-HISTORY_SHOWN_MAX:]
        ],
        "chainLayers": list(record.layers),
        "blobs": list(record.blobs),
        "imageConfig": {
            "user": config.user,
            "env": list(config.env),
            "entrypoint": list(config.entrypoint),
            "cmd": list(config.cmd),
            "workingDir": config.working_dir,
            "volumes": list(config.volumes),
            "stopSignal": config.stop_signal,
            "labels": dict(config.labels),
            "exposedPorts": list(config.exposed_ports),
        },
        "sizeBytes": record.size_bytes,
    }
