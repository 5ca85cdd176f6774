"""Commands about images: `image pull|list|status|remove`, and pull, images, inspecti and rmi."""

import base64
import binascii
import time
from collections.abc import Sequence
from contextlib import suppress

import click

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import output, progress
from crio_server.crioctl.client import PULL_DEADLINE_S, Client
from crio_server.crioctl.common import (
    View,
    each,
    gathered,
    ids_arguments,
    output_option,
    show_each,
    start,
    wants_blocks,
)
from crio_server.crioctl.errors import BadInput, Problem
from crio_server.crioctl.resolve import find_image
from crio_server.crioctl.text import short_id, size

HEADER = ("IMAGE", "TAG", "IMAGE ID", "SIZE")
NONE = "<none>"
ASK_EVERY_S = 0.3


@click.command("pull")
@click.argument("name")
@click.option("--creds", metavar="USER[:PASSWORD]", help="Credentials for the registry.")
@click.option("--auth", metavar="BASE64", help="The same, base64 of USER[:PASSWORD], as in Docker's files.")
def pull_image(name: str, creds: str | None, auth: str | None) -> None:
    """Pull an image; progress goes to standard error, the image's reference to standard output."""
    credentials = _credentials(creds, auth)

    async def work(client: Client) -> None:
        began_s = time.monotonic()
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name), auth=credentials)
        call = client.call(client.image.PullImage, request, deadline_s=PULL_DEADLINE_S)
        reply = await progress.shown(call, f"Pulling {name}", _layers_of(client, name))
        took_s = time.monotonic() - began_s
        found = await find_image(client, reply.image_ref or name)
        output.print_lines([f"Image is up to date for {reply.image_ref}"])
        click.echo(f"{size(found.image.size)} in {took_s:.1f} s", err=True)

    start(work)


def _layers_of(client: Client, name: str) -> progress.Detail:
    """What the server tells of a pull's layers while it runs; nothing from a server that does not tell."""
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=True)
    asked_s = 0.0

    async def detail() -> tuple[progress.Layer, ...]:
        nonlocal asked_s
        if time.monotonic() - asked_s < ASK_EVERY_S:
            return ()
        asked_s = time.monotonic()
        with suppress(Problem):
            reply = await client.call(client.image.ImageStatus, request)
            return progress.layers_of(reply.info.get("pulls", "[]"))
        return ()

    return detail


def _credentials(creds: str | None, auth: str | None) -> pb.AuthConfig | None:
    if creds and auth:
        raise click.UsageError("--creds and --auth exclude each other", click.get_current_context())
    if auth:
        try:
            creds = base64.b64decode(auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise BadInput("--auth: expected base64 of USER[:PASSWORD]") from error
    if not creds:
        return None
    username, _, password = creds.partition(":")
    return pb.AuthConfig(username=username, password=password)


@click.command("list")
@click.pass_context
@click.argument("name", default="")
@click.option("--quiet", "-q", is_flag=True, help="Print ids alone.")
@click.option("--digests", is_flag=True, help="Print digests instead of tags.")
@click.option("--no-trunc", is_flag=True, help="Print whole ids.")
@output_option("table")
def list_images(ctx: click.Context, name: str, quiet: bool, digests: bool, no_trunc: bool, output: str) -> None:
    """List images, or the one named NAME."""
    form = "blocks" if wants_blocks(ctx, "image") else output

    async def work(client: Client) -> None:
        selector = pb.ImageFilter(image=pb.ImageSpec(image=name)) if name else None
        reply = await client.call(client.image.ListImages, pb.ListImagesRequest(filter=selector))
        images = sorted(reply.images, key=lambda image: (sorted(image.repo_tags), image.id))
        _print_list(images, quiet=quiet, digests=digests, whole_ids=no_trunc, form=form)

    start(work)


def _print_list(images: Sequence[pb.Image], *, quiet: bool, digests: bool, whole_ids: bool, form: str) -> None:
    if quiet:
        output.print_lines(image.id for image in images)
    elif form == "blocks":
        output.print_lines(line for image in images for line in status_lines(image))
    elif form != "table":
        output.print_data(output.as_dict(pb.ListImagesResponse(images=images)), form)
    else:
        header = ("IMAGE", "DIGEST", "IMAGE ID", "SIZE") if digests else HEADER
        rows = [
            (repository, version, image.id if whole_ids else short_id(image.id), size(image.size))
            for image in images
            for repository, version in (_digests(image, whole_ids) if digests else _tags(image))
        ]
        output.print_table(header, rows)


def _tags(image: pb.Image) -> list[tuple[str, str]]:
    if not image.repo_tags:
        return [(_digests(image, True)[0][0], NONE)]
    pairs = (tag.rpartition(":") for tag in image.repo_tags)
    return [(repository, tag) for repository, _, tag in pairs]


def _digests(image: pb.Image, whole: bool) -> list[tuple[str, str]]:
    pairs = (digest.partition("@") for digest in image.repo_digests)
    return [(repository, digest if whole else short_id(digest)) for repository, _, digest in pairs] or [(NONE, NONE)]


def status_command(name: str, default_output: str) -> click.Command:
    """`image status`, which prints lines for people, or `inspecti`, which prints JSON."""

    @click.command(name)
    @ids_arguments("image")
    @output_option(default_output)
    @click.option("--quiet", "-q", is_flag=True, help="Leave out the verbose information.")
    def status(ids: tuple[str, ...], named_ids: tuple[str, ...], output: str, quiet: bool) -> None:
        """Show the status of images, given by name, id or a prefix of an id."""
        wanted = gathered(ids, named_ids)
        start(lambda client: _show_status(client, wanted, output, verbose=not quiet))

    return status


async def _show_status(client: Client, wanted: tuple[str, ...], form: str, *, verbose: bool) -> None:
    async def look(given: str) -> View:
        reply = await find_image(client, given, verbose=verbose and form != "table")
        data = {"status": output.as_dict(reply.image), **output.info_values(reply.info)}
        return View(lines=status_lines(reply.image), data=data)

    await show_each(wanted, form, look)


def status_lines(image: pb.Image) -> list[str]:
    """The image as lines `Key: value`, with the keys of CRI-O's crioctl."""
    return [
        f"ID: {image.id}",
        *(f"Tag: {tag}" for tag in image.repo_tags),
        *(f"Digest: {digest}" for digest in image.repo_digests),
        f"Size: {image.size}",
    ]


@click.command("remove")
@ids_arguments("image")
@click.option("--all", "-a", "every", is_flag=True, help="Remove every image.")
def remove_image(ids: tuple[str, ...], named_ids: tuple[str, ...], every: bool) -> None:
    """Remove images, given by name, id or a prefix of an id; print what was removed."""
    wanted = gathered(ids, named_ids, needed=not every)
    if every and wanted:
        raise click.UsageError("--all goes without names", click.get_current_context())

    async def work(client: Client) -> None:
        async def remove(given: str) -> None:
            image = (await find_image(client, given)).image
            # A name goes to the server as it is: one that keeps an image's other names then takes away only this one.
            by_id = image.id.removeprefix("sha256:").startswith(given.removeprefix("sha256:"))
            named = image.id if by_id else given
            await client.call(client.image.RemoveImage, pb.RemoveImageRequest(image=pb.ImageSpec(image=named)))
            output.print_lines([f"Deleted: {named}"])

        everything: tuple[str, ...] = ()
        if every:
            listed = await client.call(client.image.ListImages, pb.ListImagesRequest())
            everything = tuple(image.id for image in listed.images)
        await each(wanted or everything, remove)

    start(work)
