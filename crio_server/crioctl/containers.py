"""Commands that change containers: create, start, stop, remove, and execsync."""

import sys
from pathlib import Path

import click

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import configfile
from crio_server.crioctl.client import CALL_DEADLINE_S, Client
from crio_server.crioctl.common import each, gathered, ids_arguments, label_option, parse_labels, start, warn
from crio_server.crioctl.errors import Refused
from crio_server.crioctl.pods import config_of
from crio_server.crioctl.resolve import container_id, pod_id

STOP_GRACE_S = 10


@click.command("create")
@click.argument("words", nargs=-1, metavar="[POD CONTAINER-FILE [POD-FILE]]")
@click.option("--pod", "pod", help="Id of the pod, or a prefix.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="The container's configuration.")
@click.option("--pod-config", "pod_file", type=click.Path(path_type=Path), help="The pod's configuration.")
@click.option("--name", help="Use this name instead of the file's.")
@label_option("Add a label.")
def create_container(
    words: tuple[str, ...],
    pod: str | None,
    config_file: Path | None,
    pod_file: Path | None,
    name: str | None,
    labels: tuple[str, ...],
) -> None:
    """Create a container in a pod; print its id.

    Either with --pod and --config, or as crictl has it: POD CONTAINER-FILE POD-FILE. Without the pod's file, the pod's
    configuration is asked from the server.
    """
    left = list(words)
    pod = pod or (left.pop(0) if left else None)
    config_file = config_file or (Path(left.pop(0)) if left else None)
    pod_file = pod_file or (Path(left.pop(0)) if left else None)
    if pod is None or config_file is None or left:
        raise click.UsageError("expected a pod, a container file and perhaps a pod file", click.get_current_context())
    config = configfile.load_container(config_file, warn)
    config.metadata.name = name or config.metadata.name
    config.labels.update(parse_labels(labels))
    given_pod_config = configfile.load_pod(pod_file, warn) if pod_file else None

    async def work(client: Client) -> None:
        found = await pod_id(client, pod)
        pod_config = given_pod_config or await config_of(client, found)
        request = pb.CreateContainerRequest(pod_sandbox_id=found, config=config, sandbox_config=pod_config)
        reply = await client.call(client.runtime.CreateContainer, request)
        click.echo(reply.container_id)

    start(work)


@click.command("start")
@ids_arguments("container")
def start_container(ids: tuple[str, ...], named_ids: tuple[str, ...]) -> None:
    """Start containers; print their ids."""
    wanted = gathered(ids, named_ids)

    async def work(client: Client) -> None:
        async def start_one(given: str) -> None:
            found = await container_id(client, given)
            await client.call(client.runtime.StartContainer, pb.StartContainerRequest(container_id=found))
            click.echo(found)

        await each(wanted, start_one)

    start(work)


@click.command("stop")
@ids_arguments("container")
@click.option("--timeout", "-t", "grace_s", type=click.IntRange(min=0), default=STOP_GRACE_S, show_default=True,
              help="Seconds to wait before it is killed.")  # fmt: skip
@click.option("--all", "-a", "every", is_flag=True, help="Stop every running container.")
def stop_container(ids: tuple[str, ...], named_ids: tuple[str, ...], grace_s: int, every: bool) -> None:
    """Stop containers; print their ids."""
    wanted = gathered(ids, named_ids, needed=not every)
    if every and wanted:
        raise click.UsageError("--all goes without ids", click.get_current_context())

    async def work(client: Client) -> None:
        async def stop(given: str) -> None:
            found = await container_id(client, given)
            await _stop(client, found, grace_s)
            click.echo(found)

        await each(wanted or await _all(client, running=True), stop)

    start(work)


@click.command("remove")
@ids_arguments("container")
@click.option("--force", "-f", is_flag=True, help="Kill the container first.")
@click.option("--all", "-a", "every", is_flag=True, help="Remove every container.")
def remove_container(ids: tuple[str, ...], named_ids: tuple[str, ...], force: bool, every: bool) -> None:
    """Remove containers; print their ids."""
    wanted = gathered(ids, named_ids, needed=not every)
    if every and wanted:
        raise click.UsageError("--all goes without ids", click.get_current_context())

    async def work(client: Client) -> None:
        async def remove(given: str) -> None:
            found = await container_id(client, given)
            if force:
                await _stop(client, found, 0)
            await client.call(client.runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=found))
            click.echo(found)

        await each(wanted or await _all(client, running=False), remove)

    start(work)


@click.command("update")
@ids_arguments("container")
@click.option("--cpu-period", type=int, default=0, help="Microseconds over which the quota counts.")
@click.option("--cpu-quota", type=int, default=0, help="Microseconds of processor time in each period.")
@click.option("--cpu-share", type=int, default=0, help="Weight against others when processors are short.")
@click.option("--memory", type=int, default=0, help="Bytes.")
@click.option("--cpuset-cpus", default="", help="Processors to run on, such as 0-3,7.")
@click.option("--cpuset-mems", default="", help="Memory nodes to use.")
def update_container(
    ids: tuple[str, ...],
    named_ids: tuple[str, ...],
    cpu_period: int,
    cpu_quota: int,
    cpu_share: int,
    memory: int,
    cpuset_cpus: str,
    cpuset_mems: str,
) -> None:
    """Change limits of containers that run; print their ids. What is not named stays as it is."""
    wanted = gathered(ids, named_ids)
    limits = pb.LinuxContainerResources(
        cpu_period=cpu_period,
        cpu_quota=cpu_quota,
        cpu_shares=cpu_share,
        memory_limit_in_bytes=memory,
        cpuset_cpus=cpuset_cpus,
        cpuset_mems=cpuset_mems,
    )
    if limits == pb.LinuxContainerResources():
        raise click.UsageError("expected a limit to change", click.get_current_context())

    async def work(client: Client) -> None:
        async def update(given: str) -> None:
            found = await container_id(client, given)
            request = pb.UpdateContainerResourcesRequest(container_id=found, linux=limits)
            await client.call(client.runtime.UpdateContainerResources, request)
            click.echo(found)

        await each(wanted, update)

    start(work)


async def _stop(client: Client, identifier: str, grace_s: int) -> None:
    request = pb.StopContainerRequest(container_id=identifier, timeout=grace_s)
    await client.call(client.runtime.StopContainer, request, deadline_s=grace_s + CALL_DEADLINE_S)


async def _all(client: Client, *, running: bool) -> tuple[str, ...]:
    selector = pb.ContainerFilter()
    if running:
        selector.state.state = pb.CONTAINER_RUNNING
    listed = await client.call(client.runtime.ListContainers, pb.ListContainersRequest(filter=selector))
    return tuple(container.id for container in listed.containers)


COMMAND_FOLLOWS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.command("execsync", context_settings=COMMAND_FOLLOWS)
@click.option("--id", "named_id", metavar="ID", help="Id of the container, or a prefix.")
@click.option("--timeout", "timeout_s", type=click.IntRange(min=0), default=0, help="Seconds; 0 waits for ever.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ID] COMMAND [ARG]...")
def execsync(named_id: str | None, timeout_s: int, words: tuple[str, ...]) -> None:
    """Run a command in a container; print its output and exit with its exit code."""
    run_command(named_id, timeout_s, words)


def container_and_command(named_id: str | None, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """What the words of a command line are: the container, unless it was named, and the command."""
    identifier, command = (named_id, words) if named_id else ("".join(words[:1]), words[1:])
    if not identifier or not command:
        raise click.UsageError("expected the id of a container and a command", click.get_current_context())
    return identifier, command


def run_command(named_id: str | None, timeout_s: int, words: tuple[str, ...]) -> None:
    """Run a command without streams, print what it wrote, and exit as it did."""
    identifier, command = container_and_command(named_id, words)

    async def work(client: Client) -> int:
        found = await container_id(client, identifier)
        request = pb.ExecSyncRequest(container_id=found, cmd=command, timeout=timeout_s)
        deadline_s = timeout_s + CALL_DEADLINE_S if timeout_s else None
        reply = await client.call(client.runtime.ExecSync, request, deadline_s=deadline_s)
        sys.stdout.buffer.write(reply.stdout)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(reply.stderr)
        sys.stderr.buffer.flush()
        return reply.exit_code

    code = start(work)
    if not 0 <= code <= 255:
        raise Refused(f"the command ended with exit code {code}, which no process can pass on")
    raise click.exceptions.Exit(code)
