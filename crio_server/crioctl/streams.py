"""Commands with streams: exec, attach and port-forward. What they need is loaded when they run."""

import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import click

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl.client import CALL_DEADLINE_S, Client
from crio_server.crioctl.common import start
from crio_server.crioctl.containers import COMMAND_FOLLOWS, container_and_command, run_command
from crio_server.crioctl.detach import DEFAULT_KEYS, parse_keys
from crio_server.crioctl.errors import BadInput, Refused, ServerRefusal
from crio_server.crioctl.resolve import ready_pod, running_container

PORT_MAX = 65535


@click.command("exec", context_settings=COMMAND_FOLLOWS)
@click.option("--interactive", "-i", is_flag=True, help="Pass on standard input.")
@click.option("--tty", "-t", is_flag=True, help="Give the command a terminal.")
@click.option("--sync", "-s", is_flag=True, help="Run it without streams, and print what it wrote when it ends.")
@click.option("--id", "named_id", metavar="ID", help="Id of the container or its pod, or a prefix.")
@click.option("--timeout", "timeout_s", type=click.IntRange(min=0), default=0,
              help="Seconds, with -s; 0 waits for ever.")  # fmt: skip
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ID] COMMAND [ARG]...")
def execute(
    interactive: bool, tty: bool, sync: bool, named_id: str | None, timeout_s: int, words: tuple[str, ...]
) -> None:
    """Run a command in a container; exits with its exit code.

    The container may be named by its pod, where only one runs in it.
    """
    context = click.get_current_context()
    if sync and (interactive or tty):
        raise click.UsageError("-s runs without streams: it goes without -i and -t", context)
    if timeout_s and not sync:
        raise click.UsageError("--timeout goes with -s: what has streams ends with its client", context)
    if sync:
        run_command(named_id, timeout_s, words)
        return
    given, command = container_and_command(named_id, words)

    async def work(client: Client) -> int:
        found = await running_container(client, given)

        async def ask() -> str:
            request = pb.ExecRequest(
                container_id=found, cmd=command, tty=tty, stdin=interactive, stdout=True, stderr=not tty
            )
            return (await client.call(client.runtime.Exec, request, deadline_s=CALL_DEADLINE_S)).url

        instead = "`crioctl exec -s` runs a command without streams" if not (interactive or tty) else ""
        return await _follow(ask, instead, stdin=interactive, tty=tty, keys=b"")

    raise click.exceptions.Exit(start(work))


@click.command("attach")
@click.option("--interactive", "-i", is_flag=True, help="Pass on standard input.")
@click.option("--tty", "-t", is_flag=True, help="The container has a terminal.")
@click.option("--detach-keys", default=DEFAULT_KEYS, show_default=True, metavar="KEYS",
              help="Typed at a terminal, they leave the container running; empty: none do.")  # fmt: skip
@click.argument("given", metavar="ID")
def attach(interactive: bool, tty: bool, detach_keys: str, given: str) -> None:
    """Join the streams of a running container.

    It may be named by its pod, where only one runs in it. -i and -t have to be as the container was made: with `stdin`,
    and with `tty`.
    """
    keys = parse_keys(detach_keys)

    async def work(client: Client) -> int:
        found = await running_container(client, given)

        async def ask() -> str:
            request = pb.AttachRequest(container_id=found, tty=tty, stdin=interactive, stdout=True, stderr=not tty)
            return (await client.call(client.runtime.Attach, request, deadline_s=CALL_DEADLINE_S)).url

        return await _follow(ask, "`crioctl logs -f` shows its output", stdin=interactive, tty=tty, keys=keys)

    raise click.exceptions.Exit(start(work))


async def _follow(ask: Callable[[], Awaitable[str]], instead: str, *, stdin: bool, tty: bool, keys: bytes) -> int:
    """Follow a command to its end; the exit code of this program."""
    from crio_core.streaming.protocol import Endpoint
    from crio_core.streaming.remotecommand import Wants
    from crio_core.streaming.status import Exited, Failed
    from crio_server.crioctl.command_session import Detached, follow
    from crio_server.crioctl.streaming import open_stream

    with hinted(instead):
        stream = await open_stream(ask, Endpoint.COMMAND)
    result = await follow(stream, Wants(stdin=stdin, stdout=True, stderr=not tty, tty=tty), keys)
    match result:
        case Exited(code=code):
            return code
        case Failed(message=message):
            raise Refused(message)
        case Detached():
            click.echo("\r\ndetached: the container goes on", err=True)
            return 0
        case signal.Signals():
            return 128 + result


@contextmanager
def hinted(instead: str) -> Iterator[None]:
    """Say what to do on a server that has no streams."""
    try:
        yield
    except ServerRefusal as refusal:
        if refusal.code != "UNIMPLEMENTED" or not instead:
            raise
        raise Refused(f"{refusal.message}; {instead}") from refusal


@click.command("port-forward")
@click.option("--address", "addresses", multiple=True, default=("localhost",), show_default=True, metavar="ADDRESS",
              help="Where to listen; localhost is 127.0.0.1 and, where there is one, ::1.")  # fmt: skip
@click.argument("given", metavar="POD")
@click.argument("ports", nargs=-1, required=True, metavar="[LOCAL:]REMOTE...")
def port_forward(addresses: tuple[str, ...], given: str, ports: tuple[str, ...]) -> None:
    """Listen on local ports, and forward what connects to ports of a pod, until interrupted.

    8080:80 listens on 8080 and connects to 80, 80 does so for 80, and :80 listens on a port that is free.
    """
    pairs = [_parse_ports(text) for text in ports]

    async def work(client: Client) -> None:
        from crio_core.streaming.protocol import Endpoint
        from crio_server.crioctl.forwarding_session import forward
        from crio_server.crioctl.streaming import open_stream

        found = await ready_pod(client, given)

        async def ask() -> str:
            request = pb.PortForwardRequest(pod_sandbox_id=found, port=[remote for _, remote in pairs])
            return (await client.call(client.runtime.PortForward, request, deadline_s=CALL_DEADLINE_S)).url

        with hinted("the pod's own address, in `crioctl inspectp`, may be reachable from this machine"):
            stream = await open_stream(ask, Endpoint.FORWARDING)
        await forward(stream, addresses, pairs)

    start(work)


def _parse_ports(text: str) -> tuple[int, int]:
    """The local and the remote port; 0 for a local one that the system chooses."""
    local, colon, remote = text.rpartition(":")
    given = (local or "0", remote) if colon else (remote, remote)
    local_port, remote_port = (int(one) if one.isascii() and one.isdigit() else -1 for one in given)
    if not (0 <= local_port <= PORT_MAX and 1 <= remote_port <= PORT_MAX):
        raise BadInput(f"{text!r}: expected [LOCAL:]REMOTE with ports from 1 to {PORT_MAX}")
    return local_port, remote_port
