"""The command line: global options, the groups of CRI-O's crioctl, and the flat names of crictl."""

import os
import sys
from pathlib import Path

import click

from crio_server.commands.version import VERSION
from crio_server.crioctl import container_views, containers, events, explain, images, pods, runtime, streams, transfer
from crio_server.crioctl.endpoint import Settings, settle

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
EXIT_INTERRUPTED = 130


class _Root(click.Group):
    """The group of everything; it knows that a reader who has seen enough, as with `| head`, is no failure."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What is still buffered goes nowhere, or the interpreter would fail on the same pipe when it ends.
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None


@click.group(cls=_Root, context_settings=CONTEXT)
@click.option("--runtime-endpoint", "-r", envvar="CONTAINER_RUNTIME_ENDPOINT", metavar="ENDPOINT",
              help="Socket of the server, such as unix:///run/crio/crio.sock.")  # fmt: skip
@click.option("--image-endpoint", "-i", envvar="IMAGE_SERVICE_ENDPOINT", metavar="ENDPOINT",
              help="Socket of the image service, when it is another.")  # fmt: skip
@click.option("--connect", metavar="SOCKET", help="The same as -r, by the name that CRI-O's crioctl had.")
@click.option("--timeout", "-t", metavar="DURATION", help="How long to wait for the server to answer at all, 10s.")
@click.option("--config", "-c", "client_file", envvar="CRI_CONFIG_FILE", type=click.Path(path_type=Path),
              help="crictl's configuration file; /etc/crictl.yaml when it exists.")  # fmt: skip
@click.version_option(VERSION, prog_name="crioctl")
@click.pass_context
def cli(
    ctx: click.Context,
    runtime_endpoint: str | None,
    image_endpoint: str | None,
    connect: str | None,
    timeout: str | None,
    client_file: Path | None,
) -> None:
    """Talk to a container runtime over CRI v1.

    Exit codes: 0 it worked, 1 the server said no, 2 wrong usage or file, 3 the server cannot be reached; `exec` and
    `ctr execsync` exit as the command did.
    """
    ctx.obj = settle(
        runtime_endpoint=connect or runtime_endpoint,
        image_endpoint=image_endpoint,
        timeout=timeout,
        client_file=client_file,
    )
    assert isinstance(ctx.obj, Settings)


def _group(name: str, text: str, *commands: click.Command) -> click.Group:
    return click.Group(name, help=text, commands=list(commands))


GROUPS = (
    _group(
        "pod",
        "Pods, as CRI-O's crioctl had them.",
        pods.run_pod,
        pods.status_command("status", "table"),
        pods.stop_pod,
        pods.remove_pod,
        pods.list_pods,
    ),
    _group(
        "image",
        "Images, as CRI-O's crioctl had them.",
        images.pull_image,
        images.list_images,
        images.status_command("status", "table"),
        images.remove_image,
        transfer.load_image,
        transfer.save_image,
        transfer.import_image,
    ),
    _group(
        "ctr",
        "Containers, as CRI-O's crioctl had them.",
        containers.create_container,
        containers.start_container,
        container_views.status_command("status", "table"),
        containers.stop_container,
        containers.remove_container,
        containers.update_container,
        container_views.list_command("list", all_by_default=True),
        containers.execsync,
        container_views.show_logs,
    ),
)

FLAT = {
    "runp": pods.run_pod,
    "inspectp": pods.status_command("inspectp", "json"),
    "stopp": pods.stop_pod,
    "rmp": pods.remove_pod,
    "pods": pods.list_pods,
    "pull": images.pull_image,
    "images": images.list_images,
    "inspecti": images.status_command("inspecti", "json"),
    "rmi": images.remove_image,
    "create": containers.create_container,
    "start": containers.start_container,
    "inspect": container_views.status_command("inspect", "json"),
    "stop": containers.stop_container,
    "rm": containers.remove_container,
    "update": containers.update_container,
    "ps": container_views.list_command("ps", all_by_default=False),
    "exec": streams.execute,
    "attach": streams.attach,
    "port-forward": streams.port_forward,
    "logs": container_views.show_logs,
    "stats": runtime.stats,
    "version": runtime.version,
    "runtimeversion": runtime.version,
    "info": runtime.info,
    "tree": runtime.tree,
    "events": events.events,
    "explain": explain.explain,
}

for _one in GROUPS:
    cli.add_command(_one)
for _name, _command in FLAT.items():
    cli.add_command(_command, _name)


def main() -> None:
    """Run the command that the process was started with, and exit with its code."""
    try:
        code = cli.main(prog_name="crioctl", standalone_mode=False)
    except click.Abort:
        click.echo("crioctl: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
