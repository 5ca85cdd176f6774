"""Carries out the core's orders on a simulated node.

Each order is a generator that yields between its steps: whoever runs it may stop there, and what was done so far stays
done. So an order can fail half-way, and a server can die half-way, without a line about it in the order itself.
"""

from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType

import orjson

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.errors import Code, LocalError, OperationError
from crio_core.oci import cdi
from crio_core.oci.annotations import SANDBOX_ANNOTATION
from crio_core.oci.facts import RootfsFacts
from crio_core.records import Pin, encode
from crio_core.sim.chance import Chance
from crio_core.sim.lives import SIGKILL_CODE, SIGTERM_CODE, life_of, said_by, unwrapped, words_of
from crio_core.sim.processes import Host, Processes
from crio_core.sim.world import NEVER_NS, Process, World

LAYER_BYTES = 1_000_000

_YIELDS: Mapping[type, int] = MappingProxyType(
    {
        fx.SaveRecord: 1,
        fx.DeleteRecord: 1,
        fx.PrepareSandbox: 5,
        fx.AttachNetwork: 3,
        fx.DetachNetwork: 3,
        fx.ReleaseNamespaces: 4,
        fx.RemoveSandboxFiles: 2,
        fx.ObserveSandbox: 1,
        fx.MountRootfs: 2,
        fx.CreateContainer: 4,
        fx.StartContainer: 2,
        fx.SignalContainer: 2,
        fx.ObserveContainer: 1,
        fx.DeleteContainer: 5,
        fx.ReleaseRootfs: 2,
        fx.ReopenLog: 1,
        fx.UpdateContainer: 3,
        fx.ExecInContainer: 1,
        fx.ServeExec: 2,
        fx.ServeAttach: 1,
        fx.ServePorts: 1,
        fx.EndStream: 1,
        fx.ResolveImage: 1,
        fx.FetchLayer: 3,
        fx.ApplyLayer: 2,
        fx.ProveLayer: 2,
        fx.RemoveLayer: 1,
        fx.SweepStorage: 2,
    }
)
"""How often an order yields, at most; a sweep yields for each thing that it removes."""


def steps_of(order: type) -> int:
    """After so many steps an order of this type has done all its work; after 0 it has done nothing."""
    return _YIELDS[order] + 1


Steps = Generator[None, None, ev.Outcome]


def _failure(code: Code, reason: str, message: str) -> OperationError:
    return OperationError(code, reason, message)


class Hands:
    """Does orders to a world.

    Args:
        world: What is changed.
        host: The simulation around it.
        chance: Decides what is left open: how processes behave.
    """

    def __init__(self, world: World, host: Host, chance: Chance) -> None:
        self._world = world
        self._host = host
        self._chance = chance
        self.processes = Processes(world, host, chance)
        self.network_broken = False
        """No plugin works: attaching and detaching fail."""
        self.disk_full = False
        self._orders: dict[type, Callable[..., Steps]] = {
            fx.SaveRecord: self._save,
            fx.DeleteRecord: self._delete_record,
            fx.PrepareSandbox: self._prepare,
            fx.AttachNetwork: self._attach,
            fx.DetachNetwork: self._detach,
            fx.ReleaseNamespaces: self._release_namespaces,
            fx.RemoveSandboxFiles: self._remove_files,
            fx.ObserveSandbox: self._observe_sandbox,
            fx.MountRootfs: self._mount,
            fx.CreateContainer: self._create,
            fx.StartContainer: self._start,
            fx.SignalContainer: self._signal,
            fx.ObserveContainer: self._observe_container,
            fx.DeleteContainer: self._delete_container,
            fx.ReleaseRootfs: self._release_rootfs,
            fx.ReopenLog: self._reopen,
            fx.UpdateContainer: self._update,
            fx.ExecInContainer: self._exec,
            fx.ServeExec: self._serve_exec,
            fx.ServeAttach: self._serve_attach,
            fx.ServePorts: self._serve_ports,
            fx.EndStream: self._end_stream,
            fx.ResolveImage: self._resolve,
            fx.FetchLayer: self._fetch,
            fx.ApplyLayer: self._apply,
            fx.ProveLayer: self._prove,
            fx.RemoveLayer: self._remove_layer,
            fx.SweepStorage: self._sweep,
        }

    def steps(self, order: fx.Order) -> Steps:
        """The steps of one order; nothing is done until they are run.

        Raises:
            LocalError: The order is the simulation's own work, or waiting.
        """
        make = self._orders.get(type(order))
        if make is None:
            raise LocalError(f"{type(order).__name__} is not carried out in steps")
        return make(order)

    # --- journal ----------------------------------------------------------------------------------------------

    def _need_space(self, what: str) -> None:
        if self.disk_full:
            raise _failure(Code.RESOURCE_EXHAUSTED, "DISK_FULL", f"{what}: no space left on device")

    def _save(self, order: fx.SaveRecord) -> Steps:
        record = order.record
        self._need_space("journal")
        yield
        self._world.write(self._world.rows, (record.KIND, record.id), encode(record))
        return ev.RecordSaved()

    def _delete_record(self, order: fx.DeleteRecord) -> Steps:
        yield
        self._world.erase(self._world.rows, (order.kind, order.record_id))
        return ev.RecordDeleted()

    # --- sandboxes --------------------------------------------------------------------------------------------

    def _prepare(self, order: fx.PrepareSandbox) -> Steps:
        world = self._world
        yield
        world.files.setdefault(order.sandbox_id, False)
        yield
        self._need_space("sandbox files")
        if order.shm_bytes:
            world.files[order.sandbox_id] = True
        for kind in order.namespaces:
            yield
            world.pins.setdefault(order.sandbox_id, {}).setdefault(kind, world.next_inode())
        pins = world.pins.get(order.sandbox_id, {})
        world.sync_journal()
        return ev.SandboxPrepared(
            pins=tuple(
                Pin(kind=kind, path=f"/run/crio/ns/{order.sandbox_id}/{kind}", inode=inode)
                for kind, inode in pins.items()
            )
        )

    def _attach(self, order: fx.AttachNetwork) -> Steps:
        world = self._world
        sandbox_id = order.sandbox_id
        inode = world.pins.get(sandbox_id, {}).get("net")
        if inode is None or order.netns_path != f"/run/crio/ns/{sandbox_id}/net":
            world.violations.append(f"network of sandbox {sandbox_id} asked for without its namespace")
        yield
        world.write(world.network_owed, sandbox_id, world.network_owed.get(sandbox_id, 0) + 1)
        if self.network_broken:
            raise _failure(Code.UNAVAILABLE, "CNI_PLUGIN_MISSING", "plugin bridge is not there")
        yield
        if sandbox_id not in world.addresses:
            world.write(world.addresses, sandbox_id, self._free_address())
        yield
        world.links[sandbox_id] = inode or 0
        return ev.NetworkAttached(attachment=f'{{"attached":"{sandbox_id}"}}', ips=(world.addresses[sandbox_id],))

    def _free_address(self) -> str:
        """One that nobody had before: host-local goes round, too, and here no round ends."""
        self._world.addresses_given += 1
        number = self._world.addresses_given
        return f"10.{88 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"

    def _detach(self, order: fx.DetachNetwork) -> Steps:
        world = self._world
        sandbox_id = order.sandbox_id
        yield
        if self.network_broken:
            raise _failure(Code.UNAVAILABLE, "CNI_PLUGIN_MISSING", "plugin bridge is not there")
        inode = world.pins.get(sandbox_id, {}).get("net")
        if order.netns is not None and inode == order.netns.inode:
            world.links.pop(sandbox_id, None)
        yield
        world.erase(world.addresses, sandbox_id)
        yield
        world.erase(world.network_owed, sandbox_id)
        world.sync_journal()
        return ev.Released()

    def _release_namespaces(self, order: fx.ReleaseNamespaces) -> Steps:
        world = self._world
        pins = world.pins.get(order.sandbox_id, {})
        if order.sandbox_id in world.network_owed:
            world.violations.append(f"namespaces of sandbox {order.sandbox_id} released before its network")
        for kind in tuple(pins):
            yield
            pins.pop(kind, None)
            if kind == "net":
                world.links.pop(order.sandbox_id, None)  # The other end goes with its namespace.
        yield
        world.pins.pop(order.sandbox_id, None)
        return ev.Released()

    def _remove_files(self, order: fx.RemoveSandboxFiles) -> Steps:
        world = self._world
        yield
        if order.sandbox_id in world.files:
            world.files[order.sandbox_id] = False
        yield
        world.files.pop(order.sandbox_id, None)
        return ev.Released()

    def _observe_sandbox(self, order: fx.ObserveSandbox) -> Steps:
        yield
        pins = self._world.pins.get(order.sandbox_id, {})
        return ev.SandboxObserved(intact=all(pins.get(pin.kind) == pin.inode for pin in order.pins))

    # --- containers -------------------------------------------------------------------------------------------

    def _mount(self, order: fx.MountRootfs) -> Steps:
        world = self._world
        yield
        cdi.resolve(order.cdi_devices, ())  # A simulated node has none.
        self._need_space("writable layer")
        layers = (*order.layers, *(layer for volume in order.volumes for layer in volume.layers))
        missing = [layer for layer in layers if layer not in world.layers]
        if missing:
            raise _failure(Code.INTERNAL, "LAYER_MISSING", f"layer {missing[0]} is not in the store")
        world.write(world.writable, order.container_id, True)
        yield
        world.mounts[order.container_id] = layers
        bundle = f"/run/crio/containers/{order.container_id}"
        return ev.RootfsMounted(
            path=f"{bundle}/rootfs",
            facts=RootfsFacts(),
            image_mounts=tuple((one.target, f"{bundle}/images/{at}") for at, one in enumerate(order.volumes)),
        )

    def _create(self, order: fx.CreateContainer) -> Steps:
        world = self._world
        key = order.container_id
        if key not in world.mounts:
            world.violations.append(f"container {key} created without its root filesystem")
        yield
        self._need_space("bundle")
        spec = orjson.loads(order.spec)
        world.bundles[key] = spec["annotations"][SANDBOX_ANNOTATION]
        yield
        monitor = world.monitors[key] = world.next_pid()
        yield
        world.cgroups[key] = {}
        world.runtime[key] = True
        yield
        life = life_of(words_of(spec))
        process = Process(key, world.next_pid(), self._host.at_ns, self.processes.fated(life))
        world.processes[key] = process
        return ev.ContainerCreated(pid=process.pid, pid_start_ticks=process.start_ticks, monitor_pid=monitor)

    def _start(self, order: fx.StartContainer) -> Steps:
        process = self._world.processes.get(order.container_id)
        yield
        if process is None or not process.alive:
            raise _failure(Code.INTERNAL, "RUNTIME_FAILED", f"container {order.container_id} has no process to start")
        if not process.running:
            process.running = True
            if process.life.ends_after_ns < NEVER_NS:
                self._host.later(process.life.ends_after_ns, lambda: self.processes.live_out(process))
        yield
        return ev.ContainerStarted(wall_ns=self._host.wall_ns)

    def _signal(self, order: fx.SignalContainer) -> Steps:
        yield
        process = self._world.processes.get(order.container_id)
        if process is not None and process.alive:
            if order.signal == "SIGKILL":
                self.processes.kill(process)
            elif process.running and not process.life.deaf:
                process.leaving = True
                self._host.later(process.life.term_ns, lambda: self.processes.end(process, SIGTERM_CODE))
        yield
        return ev.SignalSent()

    def _observe_container(self, order: fx.ObserveContainer) -> Steps:
        yield
        process = self._world.processes.get(order.container_id)
        if process is None or order.container_id not in self._world.runtime:
            return ev.ContainerObserved(status="absent")
        if not process.alive:
            return ev.ContainerObserved(status="stopped")
        return ev.ContainerObserved(status="running" if process.running else "created")

    def _delete_container(self, order: fx.DeleteContainer) -> Steps:
        world = self._world
        key = order.container_id
        yield
        process = world.processes.get(key)
        if process is not None and process.alive:
            self.processes.kill(process)
            if process.alive:
                raise _failure(Code.INTERNAL, "RUNTIME_FAILED", f"container {key}: process {process.pid} does not die")
        yield
        world.runtime.pop(key, None)
        world.cgroups.pop(key, None)
        world.orphans.pop(key, None)
        world.processes.pop(key, None)
        yield
        world.monitors.pop(key, None)
        self._host.noticed(key)
        yield
        world.erase(world.exits, key)
        yield
        world.bundles.pop(key, None)
        return ev.Released()

    def _release_rootfs(self, order: fx.ReleaseRootfs) -> Steps:
        world = self._world
        yield
        if world.alive(order.container_id):
            world.violations.append(f"root filesystem of container {order.container_id} released under its process")
        world.mounts.pop(order.container_id, None)
        yield
        world.erase(world.writable, order.container_id)
        return ev.Released()

    def _reopen(self, order: fx.ReopenLog) -> Steps:
        yield
        if order.container_id not in self._world.monitors:
            raise _failure(Code.FAILED_PRECONDITION, "MONITOR_GONE", f"container {order.container_id} has no monitor")
        return ev.LogReopened()

    def _update(self, order: fx.UpdateContainer) -> Steps:
        """Each of the limits is a file of its own."""
        key = order.container_id
        yield
        if not self._world.alive(key):
            raise _failure(Code.FAILED_PRECONDITION, "CONTAINER_NOT_RUNNING", f"container {key} has ended")
        group = self._world.cgroups[key]
        for controller, limits in orjson.loads(order.resources).items():
            group[controller] = limits
            yield
        return ev.ContainerUpdated()

    def _exec(self, order: fx.ExecInContainer) -> Steps:
        yield
        self._need_process(order.container_id)
        words = unwrapped(tuple(orjson.loads(order.process)["args"]))
        if words[0].startswith("hang"):
            return ev.ExecFinished(stdout=b"", stderr=b"", exit_code=SIGKILL_CODE, timed_out=order.timeout_ns > 0)
        return ev.ExecFinished(stdout=said_by(words), stderr=b"", exit_code=life_of(words).code, timed_out=False)

    def _serve_exec(self, order: fx.ServeExec) -> Steps:
        yield
        self._need_process(order.container_id)
        self._world.execs[order.session_id] = order.container_id
        yield
        del self._world.execs[order.session_id]
        return ev.StreamEnded(exit_code=life_of(unwrapped(tuple(orjson.loads(order.process)["args"]))).code)

    def _serve_attach(self, order: fx.ServeAttach) -> Steps:
        yield
        self._need_process(order.container_id)
        return ev.StreamEnded()

    def _serve_ports(self, order: fx.ServePorts) -> Steps:
        yield
        if order.netns is not None and self._world.pins.get(order.sandbox_id, {}).get("net") != order.netns.inode:
            raise _failure(Code.FAILED_PRECONDITION, "SANDBOX_NOT_READY", f"sandbox {order.sandbox_id} has no network")
        return ev.StreamEnded()

    def _end_stream(self, order: fx.EndStream) -> Steps:
        yield
        self._host.stream_ends(order.session_id)
        return ev.StreamTold()

    def _need_process(self, container_id: str) -> None:
        process = self._world.processes.get(container_id)
        if process is None or not process.alive or not process.running:
            raise _failure(Code.FAILED_PRECONDITION, "CONTAINER_NOT_RUNNING", f"container {container_id} has ended")

    # --- images -----------------------------------------------------------------------------------------------

    def _resolve(self, order: fx.ResolveImage) -> Steps:
        yield
        found = self._world.images.get(order.reference)
        if found is None:
            raise _failure(Code.NOT_FOUND, "IMAGE_UNKNOWN", f"{order.reference}: manifest unknown")
        return found

    def _fetch(self, order: fx.FetchLayer) -> Steps:
        world = self._world
        if not order.digest:
            world.violations.append(f"layer {order.diff_id} asked for without a digest")
        if not self._stored(order):
            yield
            self._need_space("download")
            world.downloads.setdefault(order.digest, False)
            yield
            world.downloads[order.digest] = True
            if self._chance.happens(self._host.faults.blob_rots):
                world.rotten[order.digest] = True
        yield
        return ev.LayerFetched()

    def _stored(self, order: fx.FetchLayer | fx.ApplyLayer) -> bool:
        stored = self._world.layers.get(order.diff_id)
        return stored is not None and stored.blob == order.digest

    def _apply(self, order: fx.ApplyLayer) -> Steps:
        world = self._world
        yield
        if not self._stored(order):
            self._need_space("layer")
            if not world.downloads.get(order.digest):
                raise _failure(Code.DATA_LOSS, "BLOB_MISSING", f"layer {order.diff_id} has not been downloaded")
            if world.rotten.pop(order.digest, False):
                del world.downloads[order.digest]
                raise _failure(Code.DATA_LOSS, "DIGEST_MISMATCH", f"layer {order.diff_id} is not what its digest says")
            stored = ev.StoredLayer(diff_id=order.diff_id, size_bytes=LAYER_BYTES, blob=order.digest)
            world.write(world.layers, order.diff_id, stored)
            world.sync_files()
            world.proven[(order.digest, order.diff_id)] = True
        yield
        world.downloads.pop(order.digest, None)
        return ev.LayerApplied(size_bytes=world.layers[order.diff_id].size_bytes)

    def _prove(self, order: fx.ProveLayer) -> Steps:
        world = self._world
        yield
        self._need_space("download")
        if order.diff_id not in world.layers:
            world.violations.append(f"layer {order.diff_id} is to be proven and is not in the store")
        yield
        world.proven[(order.digest, order.diff_id)] = True
        return ev.LayerProved()

    def _remove_layer(self, order: fx.RemoveLayer) -> Steps:
        world = self._world
        yield
        users = [key for key, layers in world.mounts.items() if order.diff_id in layers]
        if users and order.diff_id not in world.damaged:
            world.violations.append(f"layer {order.diff_id} removed under the root filesystem of container {users[0]}")
        world.erase(world.layers, order.diff_id)
        return ev.Released()

    def _sweep(self, order: fx.SweepStorage) -> Steps:
        world = self._world
        removed = []
        for key in world.old_containers:
            if key not in order.containers:
                yield
                world.erase(world.writable, key)
                world.erase(world.exits, key)
                removed.append(key)
        yield
        return ev.StorageSwept(removed=tuple(removed))
