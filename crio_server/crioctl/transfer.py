"""Commands that move images in and out of files: `image load|save|import`."""

import hashlib
import json
import os
import platform
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from google.protobuf.struct_pb2 import Struct
from grpclib.client import UnaryUnaryMethod

from crio_core.image.platform import platform_of_machine
from crio_server.crioctl import output, progress
from crio_server.crioctl.client import PULL_DEADLINE_S, Client
from crio_server.crioctl.common import start
from crio_server.crioctl.errors import BadInput
from crio_server.services.transfer import LOAD, SAVE, members_of, packed

FORMATS = ("oci-dir", "oci-archive", "docker-archive")
COPY_BYTES = 1024 * 1024
NS_PER_S = 1_000_000_000


async def _transfer(client: Client, method: str, label: str, **words: str) -> Mapping[str, Any]:
    call = UnaryUnaryMethod(client.images_channel, method, Struct, Struct)
    work = client.call(call, packed({key: word for key, word in words.items() if word}), deadline_s=PULL_DEADLINE_S)
    return members_of(await progress.shown(work, label))


@click.command("load")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", metavar="REFERENCE", default="", help="The image's name, if the file has none or another.")
def load_image(path: Path, name: str) -> None:
    """Take up the images in an OCI layout directory, an OCI archive or a Docker archive; print their names."""

    async def work(client: Client) -> None:
        found = await _transfer(client, LOAD, f"Loading {path}", path=str(path.resolve()), name=name)
        output.print_lines(f"Loaded: {one}" for one in found.get("references", ()))

    start(work)


@click.command("save")
@click.argument("image")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "-f", "form", type=click.Choice(FORMATS), default="oci-archive", show_default=True)
def save_image(image: str, path: Path, form: str) -> None:
    """Write IMAGE, given by name or id, to PATH, which does not exist yet; its id and layers stay what they are."""

    async def work(client: Client) -> None:
        words = {"image": image, "path": str(path.absolute()), "format": form}
        found = await _transfer(client, SAVE, f"Saving {image}", **words)
        output.print_lines([f"Saved: {found.get('id', '')}"])

    start(work)


@click.command("import")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("name")
@click.option("--cmd", "-c", multiple=True, metavar="WORD", help="A word of the command; may be repeated.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="A variable of the environment.")
def import_image(source: Path, name: str, cmd: tuple[str, ...], env: tuple[str, ...]) -> None:
    """Make an image NAME of one layer: a root filesystem tree, or an uncompressed tar archive of one."""
    scratch = Path(tempfile.mkdtemp(prefix="crioctl-import-"))
    try:
        archive = _docker_archive(scratch, source, name, {"Cmd": list(cmd), "Env": list(env)})

        async def work(client: Client) -> None:
            found = await _transfer(client, LOAD, f"Importing {source}", path=str(archive), name=name)
            output.print_lines(f"Loaded: {one}" for one in found.get("references", ()))

        start(work)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _docker_archive(scratch: Path, source: Path, name: str, config: Mapping[str, Any]) -> Path:
    layer = scratch / "layer.tar"
    try:
        if source.is_dir():
            _pack_tree(source, layer)
        else:
            shutil.copyfile(source, layer)
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{source}: {error}") from error
    document = {
        "architecture": platform_of_machine(platform.machine()).architecture,
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
        "history": [{"created_by": "crioctl image import"}],
    }
    (scratch / "config.json").write_text(json.dumps(document))
    listed = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    (scratch / "manifest.json").write_text(json.dumps(listed))
    archive = scratch / "image.tar"
    with tarfile.open(archive, "w:") as tar:
        for part in ("manifest.json", "config.json", "layer.tar"):
            tar.add(scratch / part, arcname=part)
    layer.unlink()
    return archive


def _pack_tree(root: Path, layer: Path) -> None:
    """Everything below a root, with owners, modes, times, links, devices and extended attributes, in a fixed order."""
    with tarfile.open(layer, "w:", format=tarfile.PAX_FORMAT) as tar:
        for path in [root, *sorted(root.rglob("*"))]:
            found = path.lstat()
            if stat.S_ISSOCK(found.st_mode):
                continue  # no archive can hold one
            member = tar.gettarinfo(path, arcname=str(path.relative_to(root)) if path != root else "./")
            member.uname = member.gname = ""
            member.mtime = found.st_mtime_ns // NS_PER_S
            headers = {"mtime": f"{member.mtime}.{found.st_mtime_ns % NS_PER_S:09d}"}  # a float would lose some of it
            for attribute in os.listxattr(path, follow_symlinks=False):
                value = os.getxattr(path, attribute, follow_symlinks=False)
                headers[f"SCHILY.xattr.{attribute}"] = value.decode("utf-8", "surrogateescape")
            member.pax_headers = headers
            if member.isreg():
                with path.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(COPY_BYTES):
            digest.update(data)
    return digest.hexdigest()
