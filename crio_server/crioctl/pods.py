"""Commands about pods: the seed's `pod run|status|stop|remove|list`, and runp, inspectp, stopp, rmp and pods."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from crio_core.rfc3339 import rfc3339
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import configfile, output
from crio_server.crioctl.client import Client
from crio_server.crioctl.common import (
    View,
    each,
    gathered,
    ids_arguments,
    label_option,
    output_option,
    parse_labels,
    show_each,
    start,
    wants_blocks,
    warn,
)
from crio_server.crioctl.filters import newest, pattern
from crio_server.crioctl.resolve import pod_id
from crio_server.crioctl.text import age, short_id

STATES = {"ready": pb.SANDBOX_READY, "notready": pb.SANDBOX_NOTREADY}
HEADER = ("POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME")


@click.command("run")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="The pod's configuration, JSON or YAML.")
@click.option("--name", help="Use this name instead of the file's.")
@label_option("Add a label.")
@click.option("--runtime", "-r", default="", help="The runtime handler.")
def run_pod(
    file: Path | None, config_file: Path | None, name: str | None, labels: tuple[str, ...], runtime: str
) -> None:
    """Run a pod; print its id."""
    path = config_file or file
    if path is None or (config_file and file):
        raise click.UsageError("expected one configuration file, as FILE or with --config", click.get_current_context())
    config = configfile.load_pod(path, warn)
    config.metadata.name = name or config.metadata.name
    config.labels.update(parse_labels(labels))

    async def work(client: Client) -> None:
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=runtime)
        reply = await client.call(client.runtime.RunPodSandbox, request)
        click.echo(reply.pod_sandbox_id)

    start(work)


@click.command("stop")
@ids_arguments("pod")
def stop_pod(ids: tuple[str, ...], named_ids: tuple[str, ...]) -> None:
    """Stop pods and all that runs in them; print their ids."""
    wanted = gathered(ids, named_ids)

    async def work(client: Client) -> None:
        async def stop(given: str) -> None:
            found = await pod_id(client, given)
            await client.call(client.runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=found))
            click.echo(found)

        await each(wanted, stop)

    start(work)


@click.command("remove")
@ids_arguments("pod")
@click.option("--force", "-f", is_flag=True, help="Stop the pod first.")
@click.option("--all", "-a", "every", is_flag=True, help="Remove every pod.")
def remove_pod(ids: tuple[str, ...], named_ids: tuple[str, ...], force: bool, every: bool) -> None:
    """Remove pods and their containers; print their ids."""
    wanted = gathered(ids, named_ids, needed=not every)
    if every and wanted:
        raise click.UsageError("--all goes without ids", click.get_current_context())

    async def work(client: Client) -> None:
        async def remove(given: str) -> None:
            found = await pod_id(client, given)
            if force:
                await client.call(client.runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=found))
            await client.call(client.runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=found))
            click.echo(found)

        everything: tuple[str, ...] = ()
        if every:
            listed = await client.call(client.runtime.ListPodSandbox, pb.ListPodSandboxRequest())
            everything = tuple(pod.id for pod in listed.items)
        await each(wanted or everything, remove)

    start(work)


def status_command(name: str, default_output: str) -> click.Command:
    """`pod status`, which prints lines for people, or `inspectp`, which prints JSON."""

    @click.command(name)
    @ids_arguments("pod")
    @output_option(default_output)
    @click.option("--quiet", "-q", is_flag=True, help="Leave out the verbose information.")
    def status(ids: tuple[str, ...], named_ids: tuple[str, ...], output: str, quiet: bool) -> None:
        """Show the status of pods."""
        wanted = gathered(ids, named_ids)
        start(lambda client: _show_status(client, wanted, output, verbose=not quiet))

    return status


async def _show_status(client: Client, wanted: tuple[str, ...], form: str, *, verbose: bool) -> None:
    async def look(given: str) -> View:
        found = await pod_id(client, given)
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=found, verbose=verbose and form != "table")
        reply = await client.call(client.runtime.PodSandboxStatus, request)
        status = {**output.as_dict(reply.status), "createdAt": rfc3339(reply.status.created_at)}
        return View(lines=status_lines(reply.status), data={"status": status, **output.info_values(reply.info)})

    await show_each(wanted, form, look)


def status_lines(status: pb.PodSandboxStatus) -> list[str]:
    """The status as lines `Key: value`, with the keys of CRI-O's crioctl."""
    addresses = (status.network.ip, *(extra.ip for extra in status.network.additional_ips))
    return [
        *_identity_lines(status.id, status.metadata),
        f"Status: {pb.PodSandboxState.Name(status.state)}",
        f"Created: {rfc3339(status.created_at)}",
        f"IP Address: {', '.join(address for address in addresses if address)}",
        *([f"Runtime: {status.runtime_handler}"] if status.runtime_handler else []),
        *output.mapping_lines("Labels", status.labels),
        *output.mapping_lines("Annotations", status.annotations),
    ]


def _identity_lines(identifier: str, metadata: pb.PodSandboxMetadata) -> Iterable[str]:
    return (
        f"ID: {identifier}",
        f"Name: {metadata.name}",
        f"UID: {metadata.uid}",
        f"Namespace: {metadata.namespace}",
        f"Attempt: {metadata.attempt}",
    )


@click.command("list")
@click.pass_context
@click.option("--id", "given", help="Only this id, or the ids with this prefix.")
@click.option("--name", help="Only names that fit this regular expression.")
@click.option("--namespace", help="Only namespaces that fit this regular expression.")
@click.option("--state", "-s", type=click.Choice(tuple(STATES), case_sensitive=False), help="Only this state.")
@label_option("Only with this label.")
@click.option("--latest", "-l", is_flag=True, help="Only the newest.")
@click.option("--last", "-n", type=int, help="Only the newest N.")
@click.option("--quiet", "-q", is_flag=True, help="Print ids alone.")
@click.option("--no-trunc", is_flag=True, help="Print whole ids.")
@output_option("table")
def list_pods(
    ctx: click.Context,
    given: str | None,
    name: str | None,
    namespace: str | None,
    state: str | None,
    labels: tuple[str, ...],
    latest: bool,
    last: int | None,
    quiet: bool,
    no_trunc: bool,
    output: str,
) -> None:
    """List pods, newest first."""
    as_blocks = wants_blocks(ctx, "pod")
    selector = pb.PodSandboxFilter(label_selector=parse_labels(labels))
    if state:
        selector.state.state = STATES[state.lower()]
    names, namespaces, wanted = pattern(name, "--name"), pattern(namespace, "--namespace"), newest(latest, last)

    async def work(client: Client) -> None:
        reply = await client.call(client.runtime.ListPodSandbox, pb.ListPodSandboxRequest(filter=selector))
        fitting = [
            pod
            for pod in reply.items
            if pod.id.startswith(given or "")
            and names.search(pod.metadata.name)
            and namespaces.search(pod.metadata.namespace)
        ]
        _print_list(wanted.of(fitting), quiet=quiet, whole_ids=no_trunc, form="blocks" if as_blocks else output)

    start(work)


def _print_list(pods: list[pb.PodSandbox], *, quiet: bool, whole_ids: bool, form: str) -> None:
    if quiet:
        output.print_lines(pod.id for pod in pods)
    elif form == "blocks":
        output.print_lines(line for pod in pods for line in _block(pod))
    elif form != "table":
        output.print_data(output.as_dict(pb.ListPodSandboxResponse(items=pods)), form)
    else:
        now_ns = time.time_ns()
        rows = [
            (
                pod.id if whole_ids else short_id(pod.id),
                age(pod.created_at, now_ns),
                "Ready" if pod.state == pb.SANDBOX_READY else "NotReady",
                pod.metadata.name,
                pod.metadata.namespace,
                str(pod.metadata.attempt),
                pod.runtime_handler or "(default)",
            )
            for pod in pods
        ]
        output.print_table(HEADER, rows)


def _block(pod: pb.PodSandbox) -> list[str]:
    return [
        *_identity_lines(pod.id, pod.metadata),
        f"Status: {pb.PodSandboxState.Name(pod.state)}",
        f"Created: {rfc3339(pod.created_at)}",
        *output.mapping_lines("Labels", pod.labels),
        *output.mapping_lines("Annotations", pod.annotations),
        "",
    ]


async def config_of(client: Client, identifier: str) -> pb.PodSandboxConfig:
    """The configuration that a pod was run with, as far as the server tells it.

    CRI wants it again with every container, and `ctr create` is not given it. Runtimes keep it in the verbose
    information; where one does not, its metadata, labels and annotations are what the status has.
    """
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=identifier, verbose=True)
    reply = await client.call(client.runtime.PodSandboxStatus, request)
    status = reply.status
    config = _told_config(output.info_values(reply.info))
    config.metadata.CopyFrom(status.metadata)
    config.labels.update(status.labels)
    config.annotations.update(status.annotations)
    return config


def _told_config(info: Mapping[str, object]) -> pb.PodSandboxConfig:
    from google.protobuf.json_format import ParseDict, ParseError

    inner = info.get("info")
    told = inner.get("config") if isinstance(inner, dict) else info.get("config")
    if not isinstance(told, dict):
        return pb.PodSandboxConfig()
    try:
        return ParseDict(told, pb.PodSandboxConfig(), ignore_unknown_fields=True)
    except (ParseError, AttributeError, TypeError, ValueError):
        return pb.PodSandboxConfig()  # another runtime's own form: the status has what is needed most
