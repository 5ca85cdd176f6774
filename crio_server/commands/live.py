"""Whether a server is running, and what it says that it owns."""

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from crio_core.errors import Code, OperationError

if TYPE_CHECKING:
    from crio_io.check import Owned

PROBE_S = 2.0


def is_live(path: str) -> bool:
    """Whether anybody answers at a unix socket."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        probe.connect(path)
        return True
    return False


async def ask_owned(path: str, root: str) -> "Owned":
    """What the server at a socket owns, as `crio_io.check.Owned`.

    Raises:
        OperationError: It is no server of this project, or one with another root directory, or it does not answer.
    """
    import json

    import click

    from crio_io.check import Owned
    from crio_server.cri.v1 import api_pb2 as pb
    from crio_server.crioctl.client import connect
    from crio_server.crioctl.endpoint import Settings

    settings = Settings(runtime_socket=path, image_socket=path, connect_timeout_s=PROBE_S, chosen_by="listen")
    try:
        async with connect(settings) as client:
            status = await client.call(client.runtime.Status, pb.StatusRequest(verbose=True))
    except click.ClickException as error:
        raise _unusable(path, error.format_message()) from error
    try:
        config, owned = json.loads(status.info["config"]), json.loads(status.info["owned"])
        quarantined = json.loads(status.info["node"])["quarantined"]
    except (KeyError, ValueError) as error:
        raise _unusable(path, "it does not say what it owns") from error
    if config["root"] != root:
        raise _unusable(path, f"its root directory is {config['root']}, not {root}")
    return Owned(
        sandboxes=owned["sandboxes"],
        containers=owned["containers"],
        pins=owned["pins"],
        images={key: tuple(layers) for key, layers in owned["images"].items()},
        layers=frozenset(owned["layers"]),
        quarantined=quarantined,
    )


def _unusable(path: str, why: str) -> OperationError:
    message = f"a server is running at {path}, which cannot be asked what it owns: {why}"
    return OperationError(Code.FAILED_PRECONDITION, "SERVER_UNUSABLE", message)
