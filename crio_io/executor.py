"""Carries out the core's orders on a real host: one `match`, no decisions.

Each order becomes one call of the module that knows how; its failure is an `OperationError`, which the driver turns
into the outcome `Failed`.
"""

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import assert_never

import anyio

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.cni import Attachment, PodNetwork, bandwidth_from_annotations, stored_network
from crio_core.errors import LocalError
from crio_core.layout import Layout
from crio_core.oci.cdi import ContainerEdits
from crio_core.oci.facts import RootfsFacts
from crio_core.oci.resolv import hostname_text, resolv_conf
from crio_core.records import Pin, encode
from crio_core.values import dataclass
from crio_io import devices, idmap, mounts, namespaces, rootfs, sandbox_files
from crio_io.apparmor import AppArmor
from crio_io.bundle import make_host_path, make_mount_sources, remove_bundle, write_bundle
from crio_io.cdi import CdiDevices
from crio_io.cni import CniRunner
from crio_io.exits import ExitWatcher
from crio_io.images import ImageStore
from crio_io.journal import Journal
from crio_io.journal_pair import Delete, Put
from crio_io.monitor import ConmonMonitor, MonitorRequest
from crio_io.pod_cgroups import PodCgroups
from crio_io.runtime import processes
from crio_io.streaming.streams import Streams, Work
from crio_io.sweep import Sweeper

HOST_RESOLV_CONF = Path("/etc/resolv.conf")
NS_PER_S = 1_000_000_000
LOOKS_MAX = 4
GROUP_PASSABLE_MODE = 0o710


@dataclass(frozen=True, slots=True, kw_only=True)
class HostExecutor:
    """The real host.

    Args:
        layout: Where everything lies.
        journal: The records.
        monitors: By runtime handler: creates containers and knows their runtime.
        cni: Runs network plugins.
        exits: Waits for containers to end.
        images: Registries and layers.
        pod_cgroups: Looks after parent cgroups that exist for pods only.
        sweeper: Removes what no record owns.
        streams: Brings the connections of clients.
        apparmor: The profiles of the kernel.
        cdi: Devices that vendors' specifications describe.
        looks: How many pods are looked at at the same time when a server starts.
    """

    layout: Layout
    journal: Journal
    monitors: dict[str, ConmonMonitor]
    cni: CniRunner
    exits: ExitWatcher
    images: ImageStore
    pod_cgroups: PodCgroups
    sweeper: Sweeper
    streams: Streams = field(default_factory=Streams)
    apparmor: AppArmor = field(default_factory=AppArmor)
    cdi: CdiDevices = field(default_factory=CdiDevices)
    looks: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(LOOKS_MAX))

    async def run(self, order: fx.Order) -> ev.Outcome:
        """Carry out one order.

        Raises:
            OperationError: It failed.
        """
        match order:
            case fx.SaveRecord():
                put = Put(kind=order.record.KIND, id=order.record.id, data=encode(order.record))
                await self.journal.write((put,))
                return ev.RecordSaved()
            case fx.DeleteRecord():
                await self.journal.write((Delete(kind=order.kind, id=order.record_id),))
                return ev.RecordDeleted()
            case fx.PrepareSandbox():
                async with self.journal.syncing():
                    return await self._prepare_sandbox(order)
            case fx.AttachNetwork():
                return await self._attach(order)
            case fx.DetachNetwork():
                return await self._detach(order)
            case fx.ReleaseNamespaces():
                pins = Path(self.layout.namespaces(order.sandbox_id))
                await mounts.in_thread(f"unpin namespaces in {pins}", namespaces.release, pins)
                return ev.Released()
            case fx.RemoveSandboxFiles():
                await mounts.in_thread(f"remove files of sandbox {order.sandbox_id}", self._remove_sandbox, order)
                return ev.Released()
            case fx.ObserveSandbox():
                return await self._observe_sandbox(order)
            case fx.MountRootfs():
                return await self._mount_rootfs(order)
            case fx.CreateContainer():
                return await self._create(order)
            case fx.StartContainer():
                await self._monitor(order.runtime_handler).runtime.start(order.container_id)
                return ev.ContainerStarted(wall_ns=time.time_ns())
            case fx.SignalContainer():
                return await self._signal(order)
            case fx.WatchContainer():
                ended = await self.exits.wait(order.container_id, order.pid, order.pid_start_ticks, order.monitor_pid)
                return ev.ProcessExited(code=ended.code, finished_at_ns=ended.finished_at_ns, reason=ended.reason)
            case fx.ObserveContainer():
                found = await self._monitor(order.runtime_handler).runtime.state(order.container_id)
                return ev.ContainerObserved(status=found.status if found else "absent")
            case fx.DeleteContainer():
                return await self._delete(order)
            case fx.ReleaseRootfs():
                await mounts.in_thread(f"unmount container {order.container_id}", self._release_rootfs, order)
                return ev.Released()
            case fx.ReopenLog():
                bundle = Path(self.layout.bundle(order.container_id))
                await self._monitor(order.runtime_handler).reopen_log(bundle, order.log_path)
                return ev.LogReopened()
            case fx.UpdateContainer():
                await self._monitor(order.runtime_handler).runtime.update(order.container_id, order.resources)
                return ev.ContainerUpdated()
            case fx.ExecInContainer():
                return await self._exec(order)
            case fx.ServeExec() | fx.ServeAttach() | fx.ServePorts():
                return ev.StreamEnded(exit_code=await self.streams.serve(order.session_id, self._work_of(order)))
            case fx.EndStream():
                self.streams.end(order.session_id)
                return ev.StreamTold()
            case fx.ResolveImage():
                return await self.images.resolve(order)
            case fx.FetchLayer():
                return await self.images.fetch(order)
            case fx.ApplyLayer():
                return await self.images.apply(order)
            case fx.ProveLayer():
                return await self.images.prove(order)
            case fx.RemoveLayer():
                await self.images.remove(order.diff_id)
                return ev.Released()
            case fx.SweepStorage():
                return await self.sweeper.sweep(order)
            case fx.Reply() | fx.ArmTimer() | fx.CancelTimer():
                raise LocalError(f"{type(order).__name__} is the driver's own work")
            case _:
                assert_never(order)

    def _monitor(self, handler: str) -> ConmonMonitor:
        monitor = self.monitors.get(handler)
        if monitor is None:
            raise LocalError(f"runtime handler {handler!r} is not configured any more")
        return monitor

    # --- sandboxes ----------------------------------------------------------------------------------------------

    async def _prepare_sandbox(self, order: fx.PrepareSandbox) -> ev.SandboxPrepared:
        pins = await mounts.in_thread(f"prepare sandbox {order.sandbox_id}", self._make_sandbox, order)
        return ev.SandboxPrepared(
            pins=tuple(Pin(kind=kind, path=pin.path, inode=pin.inode) for kind, pin in pins.items())
        )

    def _make_sandbox(self, order: fx.PrepareSandbox) -> Mapping[str, namespaces.NamespacePin]:
        self.pod_cgroups.remember(order.sandbox_id, order.cgroup_parent)
        files = {
            "resolv.conf": resolv_conf(order.dns, _read_or_empty(HOST_RESOLV_CONF)),
            "hostname": hostname_text(order.hostname) if order.hostname else f"{os.uname().nodename}\n".encode(),
        }
        directory, pins = Path(self.layout.sandbox(order.sandbox_id)), Path(self.layout.namespaces(order.sandbox_id))
        mounts.entering(f"write sandbox files in {directory}")
        sandbox_files.create(directory, files=files, shm_bytes=order.shm_bytes, owner=order.users.root)
        mounts.entering(f"pin namespaces in {pins}")
        return namespaces.create(
            pins, order.namespaces, hostname=order.hostname, sysctls=order.sysctls, users=order.users
        )

    def _remove_sandbox(self, order: fx.RemoveSandboxFiles) -> None:
        sandbox_files.remove(Path(self.layout.sandbox(order.sandbox_id)))
        mounts.entering(f"remove cgroup of pod {order.sandbox_id}")
        self.pod_cgroups.forget(order.sandbox_id, order.cgroup_parent)

    async def _attach(self, order: fx.AttachNetwork) -> ev.NetworkAttached:
        meta = order.metadata
        pod = PodNetwork(
            sandbox_id=order.sandbox_id,
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            netns=order.netns_path,
            port_mappings=order.port_mappings,
            bandwidth=bandwidth_from_annotations(order.annotations),
            dns=order.dns,
        )
        attachment = await self.cni.add(stored_network(order.network), pod)
        return ev.NetworkAttached(attachment=attachment.to_json(), ips=attachment.ips())

    async def _detach(self, order: fx.DetachNetwork) -> ev.Released:
        if order.netns is not None:
            found = namespaces.observe(Path(order.netns.path).parent)
            netns = order.netns.path if found.get("net") == order.netns.inode else ""
        else:
            # A server that was killed may have pinned a namespace and not recorded it; the place is this sandbox's own,
            # and no pin outlives a reboot. Plugins find what they made by the addresses in there.
            directory = Path(self.layout.namespaces(order.sandbox_id))
            netns = str(directory / "net") if "net" in namespaces.observe(directory) else ""
        meta = order.metadata
        pod = PodNetwork(
            sandbox_id=order.sandbox_id,
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            netns=netns,
            port_mappings=order.port_mappings,
        )
        target = Attachment.from_json(order.attachment) if order.attachment else stored_network(order.network)
        await self.cni.delete(target, pod)
        await self.journal.sync()
        return ev.Released()

    async def _observe_sandbox(self, order: fx.ObserveSandbox) -> ev.SandboxObserved:
        # After a start there is one such look for every pod: a few at a time, so that calls come in between.
        async with self.looks:
            found = namespaces.observe(Path(self.layout.namespaces(order.sandbox_id)))
        return ev.SandboxObserved(intact=all(found.get(pin.kind) == pin.inode for pin in order.pins))

    # --- containers ---------------------------------------------------------------------------------------------

    async def _mount_rootfs(self, order: fx.MountRootfs) -> ev.RootfsMounted:
        apparmor = not order.apparmor_profile or await self.apparmor.usable(order.apparmor_profile)
        path, facts = await mounts.in_thread(f"mount container {order.container_id}", self._mounted, order)
        return ev.RootfsMounted(
            path=str(path),
            facts=facts,
            devices=await devices.requested(order.devices) if order.devices else (),
            host_devices=await devices.every() if order.all_devices else (),
            seccomp_profile=await devices.seccomp_profile(order.seccomp_path) if order.seccomp_path else "",
            image_mounts=await self.images.mount_volumes(order.container_id, order.volumes, order.users)
            if order.volumes
            else (),
            edits=await self.cdi.edits(order.cdi_devices) if order.cdi_devices else ContainerEdits(),
            apparmor=apparmor,
            node_name=os.uname().nodename,
        )

    def _mounted(self, order: fx.MountRootfs) -> tuple[Path, RootfsFacts]:
        path = self.images.mount_rootfs(order.container_id, order.layers, order.users)
        if order.users:
            self._let_in(order.container_id, order.owner[1])
        mounts.entering(f"read users in {path}")
        return path, rootfs.gather(path)

    def _let_in(self, container_id: str, gid: int) -> None:
        """Let a pod's root, which is nobody special on the node, come to its bundle; nobody may look around there."""
        for directory in (Path(self.layout.runroot), Path(self.layout.containers)):
            mode = stat.S_IMODE(directory.stat().st_mode)
            if not mode & stat.S_IXOTH:  # The rest of it is the administrator's: the option may name any directory.
                directory.chmod(mode | stat.S_IXOTH)
        bundle = Path(self.layout.bundle(container_id))
        os.chown(bundle, 0, gid)
        bundle.chmod(GROUP_PASSABLE_MODE)

    async def _create(self, order: fx.CreateContainer) -> ev.ContainerCreated:
        bundle = Path(self.layout.bundle(order.container_id))
        request = MonitorRequest(
            container_id=order.container_id,
            name=order.name,
            bundle=bundle,
            log_path=order.log_path,
            terminal=order.terminal,
            stdin=order.stdin,
            stdin_once=order.stdin_once,
        )
        created = await self._monitor(order.runtime_handler).create(request, first=partial(self._make_ready, order))
        return ev.ContainerCreated(
            pid=created.pid, pid_start_ticks=created.pid_start_ticks, monitor_pid=created.monitor_pid
        )

    def _make_ready(self, order: fx.CreateContainer) -> None:
        """What a container needs besides its root filesystem: places in it, what is mounted there, its bundle."""
        root, bundle = Path(self.layout.rootfs(order.container_id)), Path(self.layout.bundle(order.container_id))
        mounts.entering(f"prepare {root}")
        rootfs.prepare(root, directories=order.make_directories, targets=order.mount_targets, owner=order.owner)
        for source, place in order.mapped_mounts:
            mounts.entering(f"mount {source} with mapped ids")
            make_host_path(source)
            idmap.mount_mapped(source, place, order.users)
        if order.mount_targets:
            mounts.entering(f"look at the mount sources of {order.container_id}")
            make_mount_sources(order.spec, order.mount_targets)
        mounts.entering(f"write bundle {bundle}")
        write_bundle(bundle, order.spec, order.log_path)

    async def _signal(self, order: fx.SignalContainer) -> ev.SignalSent:
        runtime = self._monitor(order.runtime_handler).runtime
        if runtime.runs_on_the_host and order.pid and not order.everyone and order.signal.isdecimal():
            # What the runtime's command would do, without starting a program; a process that is gone needs no signal.
            processes.kill(order.pid, order.pid_start_ticks, int(order.signal))
        else:
            await runtime.kill(order.container_id, order.signal, everyone=order.everyone)
        return ev.SignalSent()

    async def _delete(self, order: fx.DeleteContainer) -> ev.Released:
        bundle = Path(self.layout.bundle(order.container_id))
        await self._monitor(order.runtime_handler).delete(order.container_id, bundle)
        return ev.Released()

    def _release_rootfs(self, order: fx.ReleaseRootfs) -> None:
        self.images.unmount_rootfs(order.container_id)
        bundle = Path(self.layout.bundle(order.container_id))
        mounts.entering(f"remove bundle {bundle}")
        remove_bundle(bundle)

    async def _exec(self, order: fx.ExecInContainer) -> ev.ExecFinished:
        done = await self._monitor(order.runtime_handler).runtime.exec_sync(
            order.container_id,
            order.process,
            timeout_s=order.timeout_ns / NS_PER_S,
        )
        return ev.ExecFinished(
            stdout=done.stdout, stderr=done.stderr, exit_code=done.exit_code, timed_out=done.timed_out
        )

    def _work_of(self, order: fx.ServeExec | fx.ServeAttach | fx.ServePorts) -> Work:
        """What serves a stream. The modules are loaded for the first one: most servers never have any."""
        match order:
            case fx.ServeExec():
                from crio_io.streaming.execs import serve_exec

                return partial(serve_exec, self._monitor(order.runtime_handler).runtime, order)
            case fx.ServeAttach():
                from crio_io.streaming.attaching import serve_attach

                return partial(serve_attach, Path(self.layout.bundle(order.container_id)), order)
            case fx.ServePorts():
                from crio_io.streaming.ports import serve_ports

                return partial(serve_ports, order)


def _read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
