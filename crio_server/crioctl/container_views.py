"""Commands that look at containers: `ctr status|list|logs`, and inspect, ps and logs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from crio_core.rfc3339 import parse_rfc3339_ns, rfc3339
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import logs, output
from crio_server.crioctl.client import Client
from crio_server.crioctl.common import (
    View,
    gathered,
    ids_arguments,
    label_option,
    output_option,
    parse_labels,
    show_each,
    start,
    wants_blocks,
)
from crio_server.crioctl.errors import BadInput, Refused, ServerRefusal
from crio_server.crioctl.filters import newest, pattern
from crio_server.crioctl.resolve import container_id, find_image, pod_id
from crio_server.crioctl.text import age, parse_duration_s, short_id

STATES = {
    "created": pb.CONTAINER_CREATED,
    "running": pb.CONTAINER_RUNNING,
    "exited": pb.CONTAINER_EXITED,
    "stopped": pb.CONTAINER_EXITED,  # CRI-O's crioctl called it so
    "unknown": pb.CONTAINER_UNKNOWN,
}
HEADER = ("CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE")
NEVER = "0001-01-01T00:00:00Z"  # how Go, and so crictl, prints a time that is not set


def status_command(name: str, default_output: str) -> click.Command:
    """`ctr status`, which prints lines for people, or `inspect`, which prints JSON."""

    @click.command(name)
    @ids_arguments("container")
    @output_option(default_output)
    @click.option("--quiet", "-q", is_flag=True, help="Leave out the verbose information.")
    def status(ids: tuple[str, ...], named_ids: tuple[str, ...], output: str, quiet: bool) -> None:
        """Show the status of containers."""
        wanted = gathered(ids, named_ids)
        start(lambda client: _show_status(client, wanted, output, verbose=not quiet))

    return status


async def _show_status(client: Client, wanted: tuple[str, ...], form: str, *, verbose: bool) -> None:
    async def look(given: str) -> View:
        found = await container_id(client, given)
        request = pb.ContainerStatusRequest(container_id=found, verbose=verbose and form != "table")
        reply = await client.call(client.runtime.ContainerStatus, request)
        data = {"status": status_data(reply.status), **output.info_values(reply.info)}
        return View(lines=status_lines(reply.status), data=data)

    await show_each(wanted, form, look)


def status_data(status: pb.ContainerStatus) -> dict[str, Any]:
    """The status in protobuf's JSON form, with times as crictl prints them."""
    started = status.state != pb.CONTAINER_CREATED
    finished = status.state == pb.CONTAINER_EXITED or (status.state == pb.CONTAINER_UNKNOWN and status.finished_at > 0)
    return {
        **output.as_dict(status),
        "createdAt": rfc3339(status.created_at),
        "startedAt": rfc3339(status.started_at) if started else NEVER,
        "finishedAt": rfc3339(status.finished_at) if finished else NEVER,
    }


def status_lines(status: pb.ContainerStatus) -> list[str]:
    """The status as lines `Key: value`, with the keys of CRI-O's crioctl."""
    lines = [
        f"ID: {status.id}",
        f"Name: {status.metadata.name}",
        f"Attempt: {status.metadata.attempt}",
        f"Status: {pb.ContainerState.Name(status.state)}",
        f"Created: {rfc3339(status.created_at)}",
    ]
    if status.started_at > 0:
        lines.append(f"Started: {rfc3339(status.started_at)}")
    if status.finished_at > 0:
        lines.append(f"Finished: {rfc3339(status.finished_at)}")
    if status.state in (pb.CONTAINER_EXITED, pb.CONTAINER_UNKNOWN):
        lines.append(f"Exit Code: {status.exit_code}")
    for key, value in (
        ("Reason", status.reason),
        ("Message", status.message),
        ("Image", status.image.image),
        ("ImageRef", status.image_ref),
        ("Log Path", status.log_path),
    ):
        lines.extend([f"{key}: {value}"] if value else [])
    lines.extend(output.mapping_lines("Labels", status.labels))
    lines.extend(output.mapping_lines("Annotations", status.annotations))
    return lines


def list_command(name: str, *, all_by_default: bool) -> click.Command:
    """`ctr list`, which shows every container, or `ps`, which shows the running ones unless asked for more."""

    @click.command(name)
    @click.pass_context
    @click.option("--id", "given", help="Only this id, or the ids with this prefix.")
    @click.option("--name", help="Only names that fit this regular expression.")
    @click.option("--pod", "-p", help="Only of this pod (an id or a prefix).")
    @click.option("--image", help="Only of this image.")
    @click.option("--state", "-s", type=click.Choice(tuple(STATES), case_sensitive=False), help="Only this state.")
    @label_option("Only with this label.")
    @click.option("--all", "-a", "every", is_flag=True, default=all_by_default, help="Of every state.")
    @click.option("--latest", "-l", is_flag=True, help="Only the newest, of every state.")
    @click.option("--last", "-n", type=int, help="Only the newest N, of every state.")
    @click.option("--quiet", "-q", is_flag=True, help="Print ids alone.")
    @click.option("--no-trunc", is_flag=True, help="Print whole ids.")
    @output_option("table")
    def list_containers(ctx: click.Context, /, quiet: bool, no_trunc: bool, output: str, **chosen: Any) -> None:
        """List containers, newest first."""
        form = "blocks" if wants_blocks(ctx, "ctr") else output
        choose = _chooser(**chosen)

        async def work(client: Client) -> None:
            containers = await choose(client)
            if quiet:
                _print_ids(containers)
            elif form == "table":
                await _print_table(client, containers, whole_ids=no_trunc)
            else:
                _print_data(containers, form)

        start(work)

    return list_containers


Chooser = Callable[[Client], Any]


def _chooser(
    *,
    given: str | None,
    name: str | None,
    pod: str | None,
    image: str | None,
    state: str | None,
    labels: tuple[str, ...],
    every: bool,
    latest: bool,
    last: int | None,
) -> Chooser:
    """A function that asks the server for the containers that the options describe."""
    names, wanted = pattern(name, "--name"), newest(latest, last)
    selector = pb.ContainerFilter(label_selector=parse_labels(labels))
    if state:
        selector.state.state = STATES[state.lower()]
    elif not every and not latest and last is None:
        selector.state.state = pb.CONTAINER_RUNNING

    async def choose(client: Client) -> list[pb.Container]:
        if pod:
            selector.pod_sandbox_id = await pod_id(client, pod)
        reply = await client.call(client.runtime.ListContainers, pb.ListContainersRequest(filter=selector))
        fitting = [
            container
            for container in reply.containers
            if container.id.startswith(given or "") and names.search(container.metadata.name)
        ]
        if image:
            fitting = await _with_image(client, fitting, image)
        return wanted.of(fitting)

    return choose


async def _with_image(client: Client, containers: list[pb.Container], image: str) -> list[pb.Container]:
    """The containers whose image is the one meant by a reference or an id."""
    wanted = (await find_image(client, image)).image.id
    known = {wanted: wanted}
    for container in containers:
        reference = container.image_id or container.image_ref or container.image.image
        if reference not in known:
            request = pb.ImageStatusRequest(image=pb.ImageSpec(image=reference))
            known[reference] = (await client.call(client.image.ImageStatus, request)).image.id
    return [one for one in containers if known[one.image_id or one.image_ref or one.image.image] == wanted]


def _print_ids(containers: list[pb.Container]) -> None:
    output.print_lines(container.id for container in containers)


def _print_data(containers: list[pb.Container], form: str) -> None:
    if form == "blocks":
        output.print_lines(line for container in containers for line in _block(container))
    else:
        output.print_data(output.as_dict(pb.ListContainersResponse(containers=containers)), form)


async def _print_table(client: Client, containers: list[pb.Container], *, whole_ids: bool) -> None:
    pods = await client.call(client.runtime.ListPodSandbox, pb.ListPodSandboxRequest())
    owners = {pod.id: pod.metadata for pod in pods.items}
    cut: Callable[[str], str] = str if whole_ids else short_id
    now_ns = time.time_ns()
    rows = []
    for one in containers:
        owner = owners.get(one.pod_sandbox_id, pb.PodSandboxMetadata())
        image = one.image.image
        rows.append((
            cut(one.id),
            cut(image) if image.startswith("sha256:") else image,
            age(one.created_at, now_ns),
            pb.ContainerState.Name(one.state).removeprefix("CONTAINER_").capitalize(),
            one.metadata.name,
            str(one.metadata.attempt),
            cut(one.pod_sandbox_id),
            owner.name,
            owner.namespace,
        ))  # fmt: skip
    output.print_table(HEADER, rows)


def _block(container: pb.Container) -> list[str]:
    return [
        f"ID: {container.id}",
        f"Pod: {container.pod_sandbox_id}",
        f"Name: {container.metadata.name}",
        f"Attempt: {container.metadata.attempt}",
        f"Status: {pb.ContainerState.Name(container.state)}",
        f"Image: {container.image.image}",
        f"Created: {rfc3339(container.created_at)}",
        *output.mapping_lines("Labels", container.labels),
        *output.mapping_lines("Annotations", container.annotations),
        "",
    ]


@click.command("logs")
@ids_arguments("container")
@click.option("--follow", "-f", is_flag=True, help="Go on until the container has ended.")
@click.option("--tail", type=int, default=-1, help="Only the last N lines; -1 shows all.")
@click.option("--since", help="Only since this time (RFC 3339), or for this long (such as 10m).")
@click.option("--timestamps", is_flag=True, help="Begin each line with its time.")
def show_logs(
    ids: tuple[str, ...], named_ids: tuple[str, ...], follow: bool, tail: int, since: str | None, timestamps: bool
) -> None:
    """Print the log of a container, its standard error on standard error."""
    wanted = gathered(ids, named_ids)
    if len(wanted) != 1:
        raise click.UsageError("expected one id", click.get_current_context())
    if tail < -1:
        raise BadInput(f"--tail {tail}: expected a number of lines, or -1 for all")
    which = logs.Wanted(
        tail_lines=tail if tail >= 0 else None, since_ns=_since_ns(since) if since else 0, timestamps=timestamps
    )

    async def work(client: Client) -> None:
        found = await container_id(client, wanted[0])
        request = pb.ContainerStatusRequest(container_id=found)

        async def alive() -> bool:
            try:
                reply = await client.call(client.runtime.ContainerStatus, request)
            except ServerRefusal as refusal:
                if refusal.code == "NOT_FOUND":
                    return False
                raise
            return reply.status.state in (pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING)

        status = (await client.call(client.runtime.ContainerStatus, request)).status
        if not status.log_path:
            raise Refused(f"container {found} has no log: its configuration or its pod's gives no log path")
        await logs.show(Path(status.log_path), which, alive=alive if follow else None)

    start(work)


def _since_ns(text: str) -> int:
    try:
        return time.time_ns() - int(parse_duration_s(text) * 1_000_000_000)
    except ValueError:
        pass  # then it is a time
    try:
        return parse_rfc3339_ns(text)
    except ValueError as error:
        raise BadInput(
            f"--since {text!r}: expected a duration such as 10m, or a time such as 2026-01-31T12:00:00Z"
        ) from error
