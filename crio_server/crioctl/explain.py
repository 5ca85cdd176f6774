"""The command `explain`: why a pod, a container or an image is as it is, and what it waits for.

The server explains in the verbose information of its statuses: the key `explain` of one record, and the keys
`creating`, `owing` and `departed` of Status for what no list shows. A server without them is told apart from one that
has nothing to say.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from crio_core.rfc3339 import rfc3339
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl.client import Client
from crio_server.crioctl.common import output_option, start
from crio_server.crioctl.errors import BadInput, Problem, Refused
from crio_server.crioctl.output import print_data, print_lines
from crio_server.crioctl.resolve import find_image
from crio_server.crioctl.text import size

KINDS = ("pod", "container", "image")
SHOWN_MAX = 16
ID_PREFIX_CHARS_MIN = 3
UNLISTED = ("creating", "owing", "departed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something that a name may mean."""

    kind: str
    id: str
    names: tuple[str, ...]


@click.command("explain")
@click.argument("wanted", metavar="POD|CONTAINER|IMAGE")
@click.option("--kind", "-k", type=click.Choice(KINDS), help="What the name is of, if several things have it.")
@output_option("table")
def explain(wanted: str, kind: str | None, output: str) -> None:
    """Say why something is as it is: its path so far, what it waits for, what is owed, and what failed.

    The thing is named by an id, a prefix of one, `namespace/name` or the name of a pod, the name of a container, or a
    reference of an image; also while it is being made, and for a while after it is gone.
    """
    start(lambda client: _show(client, wanted, kind, output))


async def _show(client: Client, wanted: str, kind: str | None, form: str) -> None:
    if not wanted:
        raise BadInput("the name is empty")
    status = await client.call(client.runtime.Status, pb.StatusRequest(verbose=True))
    unlisted = [one for key in UNLISTED for one in _decoded(status.info.get(key, "[]")) if isinstance(one, dict)]
    found = [await _explanation(client, one) for one in await _listed(client, wanted, kind)]
    known = {one["id"] for one in found}
    found += [one for one in unlisted if _fits(wanted, kind, one) and (not one["id"] or one["id"] not in known)]
    if not found:
        explains = any(key in status.info for key in UNLISTED)
        hint = "" if explains else " (this server does not explain what is not in its lists)"
        raise Refused(f"{wanted!r} not found: no {kind or 'pod, container or image'} has this id or name{hint}")
    if form == "table":
        lines: list[str] = []
        for one in found[:SHOWN_MAX]:
            lines += [*([""] if lines else []), *lines_of(one, time.time_ns())]
        if len(found) > SHOWN_MAX:
            lines.append(f"... and {len(found) - SHOWN_MAX} more")
        print_lines(lines)
    else:
        print_data(found[0] if len(found) == 1 else found, form)


def _decoded(text: str) -> Sequence[Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return value if isinstance(value, list) else ()


def _is_prefix(wanted: str, identifier: str) -> bool:
    return len(wanted) >= ID_PREFIX_CHARS_MIN and identifier.removeprefix("sha256:").startswith(
        wanted.removeprefix("sha256:")
    )


def _fits(wanted: str, kind: str | None, about: Mapping[str, Any]) -> bool:
    about_kind = "image" if about.get("kind") == "pull" else about.get("kind")
    if kind is not None and about_kind != kind:
        return False
    name, identifier = str(about.get("name", "")), str(about.get("id", ""))
    return wanted in _names(about_kind, name) or (bool(identifier) and _is_prefix(wanted, identifier))


def _names(kind: str | None, name: str) -> tuple[str, ...]:
    """What a person may call a thing with this name: pods also without namespace, images without what is usual."""
    if kind == "pod":
        return (name, name.partition("/")[2])
    if kind == "image":
        short = name.removeprefix("docker.io/").removeprefix("library/")
        return (name, name.removeprefix("docker.io/"), short, short.removesuffix(":latest"), f"{name}:latest")
    return (name,)


async def _listed(client: Client, wanted: str, kind: str | None) -> list[Found]:
    """The things in the server's lists that are meant; names before prefixes of ids."""
    candidates: list[Found] = []
    if kind in (None, "pod"):
        pods = await client.call(client.runtime.ListPodSandbox, pb.ListPodSandboxRequest())
        for pod in pods.items:
            names = _names("pod", f"{pod.metadata.namespace}/{pod.metadata.name}")
            candidates.append(Found(kind="pod", id=pod.id, names=names))
    if kind in (None, "container"):
        containers = await client.call(client.runtime.ListContainers, pb.ListContainersRequest())
        candidates += [Found(kind="container", id=one.id, names=(one.metadata.name,)) for one in containers.containers]
    if kind in (None, "image"):
        try:
            reply = await find_image(client, wanted)
            candidates.append(Found(kind="image", id=reply.image.id, names=(wanted,)))
        except Problem:
            pass  # No image has this name; something else may, and the caller says so when nothing does.
    named = [one for one in candidates if wanted in one.names or wanted == one.id]
    return named or [one for one in candidates if _is_prefix(wanted, one.id)]


async def _explanation(client: Client, found: Found) -> Mapping[str, Any]:
    if found.kind == "pod":
        pod = pb.PodSandboxStatusRequest(pod_sandbox_id=found.id, verbose=True)
        info = (await client.call(client.runtime.PodSandboxStatus, pod)).info
    elif found.kind == "container":
        container = pb.ContainerStatusRequest(container_id=found.id, verbose=True)
        info = (await client.call(client.runtime.ContainerStatus, container)).info
    else:
        info = (await find_image(client, found.id, verbose=True)).info
    if "explain" not in info:
        raise Refused(f"this server does not explain: no 'explain' in the status of {found.kind} {found.id}")
    try:
        about = json.loads(info["explain"])
    except (ValueError, RecursionError) as error:
        raise Refused(f"the server's explanation of {found.kind} {found.id} cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise Refused(f"the server's explanation of {found.kind} {found.id} is no object")
    return {**about, **_witnessed(info.get("info", "{}"))}


def _witnessed(text: str) -> dict[str, Any]:
    """Of a container's verbose status, what is wrong with its monitor and its log."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {key: facts[key] for key in ("unwatched", "logDroppedBytes") if isinstance(facts, dict) and facts.get(key)}


# --- for people ---------------------------------------------------------------------------------------------------


def lines_of(about: Mapping[str, Any], now_ns: int) -> list[str]:
    """An explanation as lines."""
    identifier = about.get("id") or ""
    lines = [f"{about.get('kind')} {about.get('name')}" + (f"  {identifier}" if identifier else "")]
    since = f" since {_moment(about['sinceNs'], now_ns)}" if about.get("sinceNs") else ""
    lines.append(f"  state: {about.get('state')}{since}{'' if about.get('listed') else ' (in no list)'}")
    if about.get("exit"):
        ended = about["exit"]
        lines.append(f"  exited: {ended.get('code')} {ended.get('reason')} {ended.get('message')}".rstrip())
    if about.get("unwatched"):
        lines.append("  its monitor has ended: nobody writes its log or will see its exit code")
    if about.get("logDroppedBytes"):
        lines.append(f"  its log did not take {about['logDroppedBytes']} bytes")
    for operation, count in (about.get("callers") or {}).items():
        lines.append(f"  {count} {'caller waits' if count == 1 else 'callers wait'} for: {operation}")
    if about.get("waitsFor"):
        lines.append("  waits for:")
        lines += _waits(about["waitsFor"], "    ", now_ns)
    elif about.get("listed"):
        lines.append("  waits for: nothing")
    if about.get("kind") == "pull":
        lines += [f"    {_layer(one)}" for one in (about.get("layers") or ())[:SHOWN_MAX]]
    if about.get("owes"):
        lines += _owes(about["owes"], now_ns)
    for name, due_ns in (about.get("timers") or {}).items():
        lines.append(f"  timer {name}: in {max(due_ns - now_ns, 0) / 1e9:.1f} s")
    if about.get("path"):
        lines.append("  path:")
        for step in about["path"]:
            lines.append(f"    {rfc3339(step['atNs'])}  {step['to']:<10} {step['because']}")
    if about.get("errors"):
        lines.append("  errors:")
        for one in about["errors"]:
            lines.append(f"    {rfc3339(one['atNs'])}  {one['what']}: {one['reason']}: {one['message']}")
    return lines


def _moment(wall_ns: int, now_ns: int) -> str:
    return f"{rfc3339(wall_ns)} ({max(now_ns - wall_ns, 0) / 1e9:.1f} s)"


def _waits(waits: Sequence[Mapping[str, Any]], indent: str, now_ns: int) -> list[str]:
    lines = []
    for wait in waits:
        text = f"{wait.get('what')}: {wait.get('about')}"
        if wait.get("behind"):
            text += f", queued behind {wait['behind']}"
        elif "forS" in wait:
            budget = f" of {wait['budgetS']:g} s" if "budgetS" in wait else " s"
            text += f", for {wait['forS']:.1f}{budget}"
            if "budgetS" in wait and wait["forS"] > wait["budgetS"]:
                text += " (over its budget)"
        lines.append(indent + text)
        for step in wait.get("steps") or ():
            pid = f" (pid {step['pid']})" if "pid" in step else ""
            lines.append(f"{indent}  {step['what']}{pid}, for {step['forS']:.1f} s")
        lines += _waits(wait.get("waitsFor") or (), indent + "  ", now_ns)
    return lines


def _layer(layer: Mapping[str, Any]) -> str:
    """A layer of a pull: how far it is, and how fast it comes."""
    rate = f", {size(layer['bytesPerS'])}/s from {layer.get('host')}" if layer.get("bytesPerS") else ""
    received = f"{size(layer.get('receivedBytes', 0))} of {size(layer.get('totalBytes', 0))}"
    return f"layer {str(layer.get('digest'))[:19]}: {layer.get('step')}, {received}{rate}"


def _owes(owes: Mapping[str, Any], now_ns: int) -> list[str]:
    due_ns = owes.get("nextRetryNs") or 0
    when = f"tried again in {max(due_ns - now_ns, 0) / 1e9:.1f} s" if due_ns else "being tried now"
    lines = [
        f"  owes: {', '.join(owes.get('parts') or ()) or 'nothing more'}; failed {owes.get('retries')} times, {when}"
    ]
    if owes.get("reason"):
        lines.append(f"    {owes['reason']}: {owes['message']}")
    return lines
