"""What the containers of a simulated node use: figures that follow from an id and from the time, and from nothing else.

So a client sees counters that only grow, figures that differ between containers, and the same ones in two runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from crio_core.records import ContainerRecord
from crio_core.sim.simulation import Simulation
from crio_core.stats import Interface, LayerUsage, Usage

PAGE_BYTES = 4096
PACKET_BYTES = 1024


def _of(record_id: str, what: str, least: int, most: int) -> int:
    drawn = int.from_bytes(sha256(f"{record_id} {what}".encode()).digest()[:8], "big")
    return least + drawn % (most - least + 1)


def usage(sim: Simulation, records: Iterable[ContainerRecord]) -> Mapping[str, Usage]:
    """What containers use now, by id; one that has no process is left out."""
    found = {}
    for record in records:
        process = sim.world.processes.get(record.id)
        if process is None or not process.alive:
            continue
        nano_cores = _of(record.id, "cores", 100_000, 50_000_000)
        pages = _of(record.id, "pages", 256, 16_384)
        found[record.id] = Usage(
            at_ns=sim.at_ns,
            wall_ns=sim.wall_ns,
            cpu_ns=(sim.at_ns - process.start_ticks) * nano_cores // 1_000_000_000,
            nano_cores=nano_cores,
            memory_bytes=pages * PAGE_BYTES * 5 // 4,
            working_set_bytes=pages * PAGE_BYTES,
            rss_bytes=pages * PAGE_BYTES,
            page_faults=pages,
            major_page_faults=0,
            swap_bytes=0,
            processes=1,
        )
    return found


def layers(sim: Simulation, records: Iterable[ContainerRecord]) -> Mapping[str, LayerUsage]:
    """What containers have written, by id."""
    return {
        record.id: LayerUsage(
            wall_ns=sim.wall_ns,
            used_bytes=_of(record.id, "blocks", 1, 1000) * PAGE_BYTES,
            inodes=_of(record.id, "inodes", 1, 100),
        )
        for record in records
        if record.id in sim.world.writable
    }


def interfaces(sim: Simulation, records: Sequence[ContainerRecord]) -> tuple[Interface, ...]:
    """Network counters of the pod of these containers; none when none of them has a process."""
    running = [process for one in records if (process := sim.world.processes.get(one.id)) is not None and process.alive]
    if not running or records[0].sandbox_id not in sim.world.links:
        return ()
    for_ms = (sim.at_ns - min(process.start_ticks for process in running)) // 1_000_000
    rate = _of(records[0].sandbox_id, "network", 1, 1000)
    received, sent = for_ms * rate, for_ms * rate // 4
    return (
        Interface(
            name="eth0",
            rx_bytes=received,
            rx_packets=received // PACKET_BYTES,
            rx_errors=0,
            rx_dropped=0,
            tx_bytes=sent,
            tx_packets=sent // PACKET_BYTES,
            tx_errors=0,
            tx_dropped=0,
        ),
    )
