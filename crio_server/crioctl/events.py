"""The command `events`: what happens to pods and containers, as it happens."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import click

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import output
from crio_server.crioctl.client import Client
from crio_server.crioctl.common import output_option, start
from crio_server.crioctl.resolve import pod_id
from crio_server.crioctl.text import short_id

_WORDS = {
    pb.CONTAINER_CREATED_EVENT: "created",
    pb.CONTAINER_STARTED_EVENT: "started",
    pb.CONTAINER_STOPPED_EVENT: "stopped",
    pb.CONTAINER_DELETED_EVENT: "deleted",
}


@click.command("events")
@click.option("--pod", "-p", help="Only of this pod and its containers (an id or a prefix).")
@output_option("table")
def events(pod: str | None, output: str) -> None:
    """Show what happens to pods and containers, until it is interrupted; -o json prints one object a line."""
    start(lambda client: _show(client, pod, _FORMS[output]))


async def _show(client: Client, pod: str | None, show: Callable[[pb.ContainerEventResponse], None]) -> None:
    wanted = await pod_id(client, pod) if pod else None
    async for event in client.stream(client.runtime.GetContainerEvents, pb.GetEventsRequest()):
        if wanted in (None, event.pod_sandbox_status.id, event.container_id):
            show(event)


def _show_line(event: pb.ContainerEventResponse) -> None:
    output.print_lines([event_line(event)])


def event_line(event: pb.ContainerEventResponse) -> str:
    """An event for people: when, what, and whom it happened to; of an end also how it ended."""
    pod = event.pod_sandbox_status
    when = datetime.fromtimestamp(event.created_at // 1_000_000_000, UTC)
    stamp = f"{when:%Y-%m-%dT%H:%M:%S}.{event.created_at // 1_000_000 % 1000:03d}Z"
    word = _WORDS.get(event.container_event_type, str(event.container_event_type))
    of_pod = f"{pod.metadata.namespace}/{pod.metadata.name}" if pod.id else "(not told)"
    if event.container_id == pod.id:
        return f"{stamp}  {word}  pod        {short_id(event.container_id)}  {of_pod}"
    found = next((one for one in event.containers_statuses if one.id == event.container_id), None)
    name = f"{of_pod}/{found.metadata.name}" if found is not None else of_pod
    stopped = found is not None and event.container_event_type == pb.CONTAINER_STOPPED_EVENT
    end = f"  exit code {found.exit_code}, {found.reason}" if found is not None and stopped else ""
    return f"{stamp}  {word}  container  {short_id(event.container_id)}  {name}{end}"


def _show_json(event: pb.ContainerEventResponse) -> None:
    click.echo(json.dumps(output.as_dict(event)))


def _show_yaml(event: pb.ContainerEventResponse) -> None:
    click.echo("---")
    output.print_data(output.as_dict(event), "yaml")


_FORMS = {"table": _show_line, "json": _show_json, "yaml": _show_yaml}
