"""How long a start takes with very many records: rows written into the journal of a server that is stopped.

They are those of one real pod under other ids and names, so making them costs nothing, and ours alone can be measured.
"""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import anyio

from bench import pods
from bench.peers import CRIO, Peer
from bench.scenarios import Run
from crio_core.records import ContainerRecord, ContainerState, SandboxRecord, SandboxState, decode, encode
from crio_io.journal import Journal
from crio_io.journal_pair import Change, Delete, Put
from crio_server.cri.v1 import api_pb2 as pb

RECORDED = 1000


def starts(run: Run) -> None:
    """Start to serving with a thousand containers that have ended, and with a thousand that run.

    Those that run are one process, watched a thousand times; their pods have no namespaces, which is found out after
    the start.
    """
    ours = next((peer for peer in run.peers if peer.name == CRIO), None)
    if ours is None:
        return
    pod = run.up(ours, host_network=True)
    ours.stop()
    for running in (False, True):
        for _ in range(run.size.starts):
            made = anyio.run(add_records, *_places(ours), RECORDED, running)
            what = f"{RECORDED} running" if running else str(RECORDED)
            run.samples.add(f"start.{what}", ours.name, ours.start() * 1e3)
            found = len(ours.client.call("ListContainers", pb.ListContainersRequest()).containers)
            if found != RECORDED + 1:
                raise RuntimeError(f"{found} containers are listed, not {RECORDED} and one")
            ours.stop()
            anyio.run(drop_records, *_places(ours), made)
    ours.start()
    pods.down(pod)


def _places(peer: Peer) -> tuple[Path, Path]:
    return peer.directory / "root" / "state.db", peer.state / "crio" / "state.db"


async def add_records(path: Path, copy: Path, count: int, running: bool) -> tuple[Delete, ...]:
    """Write pods and containers like those that are recorded; returns what removes them again.

    Args:
        path: The journal of a stopped server with one pod and a running container.
        copy: Its second file.
        count: How many.
        running: Whether they run, as far as the records say; otherwise they have ended.
    """
    journal, loaded = await Journal.open(path, copy)
    records = [decode(row.kind, row.data) for row in loaded.rows]
    sandbox = next(one for one in records if isinstance(one, SandboxRecord))
    container = next(one for one in records if isinstance(one, ContainerRecord))
    if not running:
        sandbox = replace(sandbox, state=SandboxState.STOPPED, holds=())
        container = replace(container, state=ContainerState.EXITED, holds=(), exit_code=1, finished_at_ns=1)
    changes: list[Change] = []
    for number in range(count):
        sandbox_id, container_id = (sha256(f"{kind}{number}".encode()).hexdigest() for kind in ("pod", "container"))
        metadata = replace(sandbox.metadata, name=f"recorded{number}", uid=f"recorded-{number}")
        for record in (
            replace(sandbox, id=sandbox_id, metadata=metadata, ips=(), attachment="", network="", plan=()),
            replace(container, id=container_id, sandbox_id=sandbox_id),
        ):
            changes.append(Put(kind=record.KIND, id=record.id, data=encode(record)))
    await journal.write(changes)
    await journal.close()
    return tuple(Delete(kind=one.kind, id=one.id) for one in changes)


async def drop_records(path: Path, copy: Path, records: tuple[Delete, ...]) -> None:
    """Remove from the journal of a stopped server what `add_records` has written."""
    journal, _ = await Journal.open(path, copy)
    await journal.write(records)
    await journal.close()
