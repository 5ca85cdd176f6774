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
        shown = [f"  {one.id}  {clean(one.label)}" for one in fitting[:CANDIDATES_SHOWN_MAX]]
        if len(fitting) > CANDIDATES_SHOWN_MAX:
            shown.append(f"  and {len(fitting) - CANDIDATES_SHOWN_MAX} more")
        raise BadInput("\n".join([f"{kind} {given!r} is ambiguous: {len(fitting)} ids start so", *shown]))
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
