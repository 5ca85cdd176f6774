"""`crio wipe`: removes pods and images of before a reboot or an upgrade, as CRI-O has it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crio_core.errors import OperationError
from crio_server.commands.live import is_live
from crio_server.commands.session import EXIT_FAILED, Session
from crio_server.commands.version import VERSION
from crio_server.versions import decide, persistent_path, read_version

if TYPE_CHECKING:
    from crio_io.engine import Engine

CALL_S = 120.0
"""How long the removal of one pod may take."""


@click.command("wipe")
@click.option("--force", "-f", is_flag=True, help="Remove all pods and images, whatever the version files say.")
@click.pass_obj
def wipe_command(session: Session, force: bool) -> None:
    """Remove the pods of before a reboot, and after an upgrade the images too. The server must be stopped.

    With internal_wipe on, which is the default, only --force removes anything. Networks are released by their plugins.
    Exit codes: 0 it is done or was not needed, 1 it could not be done, or a server is running.
    """
    import anyio

    config = session.load_or_exit().config
    decision = decide(read_version(Path(config.version_file)), read_version(persistent_path(config.root)), VERSION)
    if force:
        decision = replace(decision, pods=True, images=True, why="--force was given")
    if is_live(config.listen):
        raise _failed([f"a server is running at {config.listen}: stop it first"])
    if not decision.pods:
        click.echo(f"nothing to wipe: {decision.why}")
        return
    if config.internal_wipe and not force:
        click.echo("nothing to wipe: internal_wipe is on, so that what is left of before is the server's business")
        return
    click.echo(f"wiping pods{' and images' if decision.images else ''}: {decision.why}")
    try:
        failures = anyio.run(_wipe, config, decision.images)
    except OperationError as error:
        raise _failed([error.message]) from error
    except PermissionError as error:
        raise _failed([f"{error}: wipe needs root"]) from error
    if failures:
        raise _failed(failures)


async def _wipe(config: Any, images: bool) -> list[str]:
    """Remove everything the way a client would, with an engine that serves nobody. Returns what failed."""
    from crio_core import requests as rq
    from crio_core.cri import ImageSpec
    from crio_core.replies import Images, Sandboxes
    from crio_io.engine import open_engine
    from crio_server.options import engine_options

    failures: list[str] = []
    async with open_engine(engine_options(config)) as engine:
        pods = await engine.driver.call(rq.ListPodSandbox())
        assert isinstance(pods, Sandboxes)
        for pod in pods.items:
            meta = pod.metadata
            done = rq.RemovePodSandbox(sandbox_id=pod.id)
            await _remove(engine, done, f"pod {meta.namespace}/{meta.name} {pod.id}", failures)
        if images:
            found = await engine.driver.call(rq.ListImages())
            assert isinstance(found, Images)
            for image in found.items:
                name = (*image.tags, *image.digests, image.id)[0]
                await _remove(engine, rq.RemoveImage(image=ImageSpec(image=image.id)), f"image {name}", failures)
        await engine.driver.drained()
        failures += await _owed(engine)
    return failures


async def _remove(engine: "Engine", request: Any, what: str, failures: list[str]) -> None:
    import anyio

    try:
        with anyio.fail_after(CALL_S):
            await engine.driver.call(request)
    except TimeoutError:
        failures.append(f"{what}: not removed within {CALL_S:g} s")
    except OperationError as error:
        failures.append(f"{what}: {error.message}")
    else:
        click.echo(f"removed {what}")


async def _owed(engine: "Engine") -> Sequence[str]:
    from crio_core import requests as rq
    from crio_core.replies import NodeStatus

    status = await engine.driver.call(rq.Status())
    assert isinstance(status, NodeStatus)
    return [f"{one}: something of it could not be released; the server tries again" for one in status.owing]


def _failed(lines: Sequence[str]) -> SystemExit:
    for line in lines:
        click.echo(f"crio: {line}", err=True)
    return SystemExit(EXIT_FAILED)
