"""From what a person types to an id: whole ids, and prefixes that fit only one thing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl.client import Client
from crio_server.crioctl.errors import BadInput, Refused
from crio_server.crioctl.text import clean

CANDIDATES_SHOWN_MAX = 10
_WHOLE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something that a prefix may mean."""

    id: str
    label: str


def pick(kind: str, given: str, candidates: Sequence[Candidate]) -> str:
    """The one id that equals or starts with `given`.

    Raises:
        BadInput: Nothing was given, or several ids start so; the message lists them.
        Refused: No id starts so.
    """
    if not given:
        raise BadInput(f"the id of the {kind} is empty")
    if any(candidate.id == given for candidate in candidates):
        return given
    fitting = [candidate for candidate in candidates if candidate.id.startswith(given)]
    if not fitting:
        raise Refused(f"{kind} {given!r} not found: no id starts so")
    if len(fitting) > 1:
        raise BadInput(_ambiguous(kind, given, fitting, "ids start so"))
    return fitting[0].id


async def pod_id(client: Client, given: str) -> str:
    """The id of the pod meant by an id or a prefix of one."""
    if _WHOLE_ID.fullmatch(given):
        return given  # the server decides, so that removing what is gone stays a success
    reply = await client.call(client.runtime.ListPodSandbox, pb.ListPodSandboxRequest())
    return pick(
        "pod", given, [Candidate(id=p.id, label=f"{p.metadata.namespace}/{p.metadata.name}") for p in reply.items]
    )


async def container_id(client: Client, given: str) -> str:
    """The id of the container meant by an id or a prefix of one."""
    if _WHOLE_ID.fullmatch(given):
        return given
    reply = await client.call(client.runtime.ListContainers, pb.ListContainersRequest())
    return pick("container", given, [Candidate(id=c.id, label=c.metadata.name) for c in reply.containers])


async def running_container(client: Client, given: str) -> str:
    """The id of the container meant by its id, or of the running one with this name or alone in this pod.

    Raises:
        BadInput: Several fit; the message lists them.
        Refused: None does.
    """
    listed = (await client.call(client.runtime.ListContainers, pb.ListContainersRequest())).containers
    by_id = [Candidate(id=one.id, label=one.metadata.name) for one in listed if given and one.id.startswith(given)]
    if by_id:
        return pick("container", given, by_id)
    pods = {pod.id for pod in await _pods(client, given)}
    running = [one for one in listed if one.state == pb.CONTAINER_RUNNING]
    fitting = [one for one in running if one.metadata.name == given or one.pod_sandbox_id in pods]
    if not fitting and pods:
        raise Refused(f"pod {given!r} has no running container")
    return _only("running container", given, [Candidate(id=one.id, label=one.metadata.name) for one in fitting])


async def ready_pod(client: Client, given: str) -> str:
    """The id of the pod meant by its id, or of the ready one with this name, which may have its namespace before it.

    Raises:
        BadInput: Several fit; the message lists them.
        Refused: None does.
    """
    pods = await _pods(client, given)
    ready = [one for one in pods if one.state == pb.SANDBOX_READY] or pods
    labels = [Candidate(id=one.id, label=f"{one.metadata.namespace}/{one.metadata.name}") for one in ready]
    return _only("pod", given, labels)


async def _pods(client: Client, given: str) -> list[pb.PodSandbox]:
    """The pods whose id starts so, or that have this name."""
    listed = (await client.call(client.runtime.ListPodSandbox, pb.ListPodSandboxRequest())).items
    names = {pod.id: (pod.metadata.name, f"{pod.metadata.namespace}/{pod.metadata.name}") for pod in listed}
    return [pod for pod in listed if given and (pod.id.startswith(given) or given in names[pod.id])]


def _only(kind: str, given: str, fitting: Sequence[Candidate]) -> str:
    if not fitting:
        raise Refused(f"{kind} {given!r} not found: none has an id that starts so, or this name")
    if len(fitting) > 1:
        raise BadInput(_ambiguous(kind, given, fitting, "fit"))
    return fitting[0].id


def _ambiguous(kind: str, given: str, fitting: Sequence[Candidate], how: str) -> str:
    shown = [f"  {one.id}  {clean(one.label)}" for one in fitting[:CANDIDATES_SHOWN_MAX]]
    if len(fitting) > CANDIDATES_SHOWN_MAX:
        shown.append(f"  and {len(fitting) - CANDIDATES_SHOWN_MAX} more")
    return "\n".join([f"{kind} {given!r} is ambiguous: {len(fitting)} {how}", *shown])


async def find_image(client: Client, given: str, *, verbose: bool = False) -> pb.ImageStatusResponse:
    """The status of the image meant by a reference, an id or a prefix of an id (with or without `sha256:`).

    Raises:
        BadInput: Nothing was given, or several images fit.
        Refused: No image fits.
    """
    if not given:
        raise BadInput("the name of the image is empty")
    reply = await _image_status(client, given, verbose)
    if reply.HasField("image"):
        return reply
    if re.fullmatch(r"(sha256:)?[0-9a-f]{1,64}", given):
        digest = given.removeprefix("sha256:")
        listed = await client.call(client.image.ListImages, pb.ListImagesRequest())
        candidates = [
            Candidate(id=image.id.removeprefix("sha256:"), label=", ".join(image.repo_tags)) for image in listed.images
        ]
        whole = pick("image", digest, candidates)
        found = next(image.id for image in listed.images if image.id.removeprefix("sha256:") == whole)
        reply = await _image_status(client, found, verbose)
        if reply.HasField("image"):
            return reply
    raise Refused(f"image {given!r} not found: it has not been pulled")


async def _image_status(client: Client, name: str, verbose: bool) -> pb.ImageStatusResponse:
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=verbose)
    return await client.call(client.image.ImageStatus, request)
