"""Commands about the server: runtimeversion and version, info, tree, stats."""

import asyncio
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import output
from crio_server.crioctl.client import Client
from crio_server.crioctl.common import gathered, ids_arguments, label_option, output_option, parse_labels, start
from crio_server.crioctl.errors import BadInput
from crio_server.crioctl.resolve import container_id, pod_id
from crio_server.crioctl.text import short_id, size

STATS_HEADER = ("CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES")
INFO_LINE_CHARS_MAX = 2000
UNREAD = ("owned",)
"""Verbose information that is for programs: the ids of all that a server owns."""


@click.command("version")
@output_option("table")
def version(output: str) -> None:
    """Show which runtime answers, and its version."""
    start(lambda client: _show_version(client, output))


async def _show_version(client: Client, form: str) -> None:
    reply = await client.call(client.runtime.Version, pb.VersionRequest())
    if form != "table":
        output.print_data(output.as_dict(reply), form)
        return
    output.print_lines(
        (
            f"Version:  {reply.version}",
            f"RuntimeName:  {reply.runtime_name}",
            f"RuntimeVersion:  {reply.runtime_version}",
            f"RuntimeApiVersion:  {reply.runtime_api_version}",
        )
    )


@click.command("info")
@output_option("table")
@click.option("--quiet", "-q", is_flag=True, help="Leave out the verbose information.")
def info(output: str, quiet: bool) -> None:
    """Show the condition of the server, and what it says about itself."""
    start(lambda client: _show_info(client, output, verbose=not quiet))


async def _show_info(client: Client, form: str, *, verbose: bool) -> None:
    reply = await client.call(client.runtime.Status, pb.StatusRequest(verbose=verbose))
    values = output.info_values(reply.info)
    if form != "table":
        data = output.as_dict(reply)
        output.print_data({**{key: data[key] for key in data if key != "info"}, **values}, form)
        return
    version_reply = await client.call(client.runtime.Version, pb.VersionRequest())
    lines = [
        f"{version_reply.runtime_name} {version_reply.runtime_version} at unix://{client.settings.runtime_socket}",
        "",
        "Conditions:",
    ]
    for condition in reply.status.conditions:
        why = ": ".join(part for part in (condition.reason, condition.message) if part)
        lines.append(f"  {condition.type}: {'yes' if condition.status else 'NO'}{f' ({why})' if why else ''}")
    if reply.runtime_handlers:
        lines.extend(("", "Runtime handlers:"))
        lines.extend(f"  {_handler(handler)}" for handler in reply.runtime_handlers)
    for key, value in values.items():
        if key in UNREAD:
            continue
        lines.extend(("", f"{key}:"))
        lines.extend(_outline(value, "  "))
    output.print_lines(lines)


def _handler(handler: pb.RuntimeHandler) -> str:
    features = [field.name for field, value in handler.features.ListFields() if value]
    return (handler.name or "(default)") + (f": {', '.join(features)}" if features else "")


def _outline(value: Any, indent: str) -> list[str]:
    """A nested value as indented lines; what is empty is left out, as it says nothing to a person."""
    if isinstance(value, Mapping):
        lines: list[str] = []
        for key, inner in value.items():
            if isinstance(inner, Mapping | list) and inner:
                lines.extend((f"{indent}{key}:", *_outline(inner, indent + "  ")))
            elif inner not in (None, "", [], {}):
                lines.append(f"{indent}{key}: {_scalar(inner)}")
        return lines
    if isinstance(value, list):
        if all(not isinstance(item, Mapping | list) for item in value):
            return [f"{indent}{', '.join(_scalar(item) for item in value)}"]
        return [line for item in value for line in (f"{indent}-", *_outline(item, indent + "  "))]
    return [indent + line for line in _scalar(value).splitlines()]


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:INFO_LINE_CHARS_MAX]


@click.command("tree")
@click.argument("pod", required=False)
@output_option("table")
def tree(pod: str | None, output: str) -> None:
    """Show pods, containers, their monitors and their processes; all, or those of POD."""
    start(lambda client: _show_tree(client, pod, output))


async def _show_tree(client: Client, pod: str | None, form: str) -> None:
    from crio_server.crioctl import tree as picture  # only here: it brings the reading of /proc

    root = await picture.build(client, await pod_id(client, pod) if pod else None)
    if form == "table":
        lines = picture.as_lines(root)
        if sys.stdout.isatty():  # one process, one line: what is cut can be had through a pipe
            width = shutil.get_terminal_size().columns
            lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
        output.print_lines(lines)
    else:
        output.print_data(picture.as_data(root), form)


@click.command("stats")
@ids_arguments("container")
@click.option("--pod", "-p", help="Only of this pod (an id or a prefix).")
@label_option("Only with this label.")
@click.option("--seconds", "-s", type=click.FloatRange(min=0.1, max=60), default=1.0, show_default=True,
              help="How long to watch the CPU, where the server does not tell its usage.")  # fmt: skip
@output_option("table")
def stats(
    ids: tuple[str, ...],
    named_ids: tuple[str, ...],
    pod: str | None,
    labels: tuple[str, ...],
    seconds: float,
    output: str,
) -> None:
    """Show what containers use."""
    wanted = gathered(ids, named_ids, needed=False)
    if len(wanted) > 1:
        raise BadInput("stats takes one id, or none for all containers")
    selector = pb.ContainerStatsFilter(label_selector=parse_labels(labels))

    async def work(client: Client) -> None:
        if wanted:
            selector.id = await container_id(client, wanted[0])
        if pod:
            selector.pod_sandbox_id = await pod_id(client, pod)
        first = await _sample(client, selector)
        if output != "table":
            _print_stats_data(first, output)
            return
        untold = [one for one in first if one.HasField("cpu") and not one.cpu.HasField("usage_nano_cores")]
        if untold:
            await asyncio.sleep(seconds)
        second = await _sample(client, selector) if untold else first
        _print_stats(first, second)

    start(work)


async def _sample(client: Client, selector: pb.ContainerStatsFilter) -> Sequence[pb.ContainerStats]:
    request = pb.ListContainerStatsRequest(filter=selector)
    return (await client.call(client.runtime.ListContainerStats, request)).stats


def _print_stats_data(stats: Sequence[pb.ContainerStats], form: str) -> None:
    output.print_data(output.as_dict(pb.ListContainerStatsResponse(stats=stats)), form)


def _print_stats(first: Sequence[pb.ContainerStats], second: Sequence[pb.ContainerStats]) -> None:
    before = {one.attributes.id: one for one in first}
    rows = [
        (
            short_id(one.attributes.id),
            one.attributes.metadata.name,
            f"{cpu_percent(before.get(one.attributes.id, one), one):.2f}",
            size(one.memory.working_set_bytes.value),
            size(one.writable_layer.used_bytes.value),
            str(one.writable_layer.inodes_used.value),
        )
        for one in sorted(second, key=lambda one: one.attributes.id)
    ]
    output.print_table(STATS_HEADER, rows)


def cpu_percent(before: pb.ContainerStats, after: pb.ContainerStats) -> float:
    """CPU in percent of one core: what the server tells, or the use between two samples."""
    if after.cpu.HasField("usage_nano_cores"):
        return float(after.cpu.usage_nano_cores.value) / 1e7
    elapsed_ns = after.cpu.timestamp - before.cpu.timestamp
    used_ns = after.cpu.usage_core_nano_seconds.value - before.cpu.usage_core_nano_seconds.value
    return float(100 * used_ns / elapsed_ns) if elapsed_ns > 0 and used_ns >= 0 else 0.0
