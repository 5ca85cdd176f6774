"""Where everything of one node lies on disk: the one place that knows, for the core and for the executors.

`root` survives a reboot (images, writable layers); `runroot` does not (bundles, namespaces, sockets).
"""

from pathlib import PurePosixPath

from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Directories and files of a node; every directory is mode 0700.

    Args:
        namespaces_dir: Where namespaces are pinned; empty for a directory of `runroot`.
        exits_dir: Where monitors leave exit codes; empty for a directory of `root`, so that they outlive a reboot.
        attach_dir: Where monitors listen for attach; empty for a directory of `runroot`.
    """

    root: PurePosixPath
    runroot: PurePosixPath
    namespaces_dir: str = ""
    exits_dir: str = ""
    attach_dir: str = ""

    @property
    def directories(self) -> tuple[PurePosixPath, ...]:
        """What has to exist before anything else can."""
        pins = self.namespaces("any").parent
        durable = (self.root, self.images, self.exits)
        return (*durable, self.runroot, self.sandboxes, self.containers, self.scratch, pins, self.attach)

    @property
    def journal(self) -> PurePosixPath:
        return self.root / "state.db"

    @property
    def journal_copy(self) -> PurePosixPath:
        """On another file system, where /run is one: what destroys or fills the disk leaves it."""
        return self.runroot / "state.db"

    @property
    def recordings(self) -> PurePosixPath:
        return self.root / "recordings"

    @property
    def storage(self) -> PurePosixPath:
        return self.root / "storage"

    @property
    def images(self) -> PurePosixPath:
        """Where copies of the images' records are; their layers are in the storage."""
        return self.root / "images"

    @property
    def sandboxes(self) -> PurePosixPath:
        return self.runroot / "sandboxes"

    @property
    def containers(self) -> PurePosixPath:
        return self.runroot / "containers"

    @property
    def scratch(self) -> PurePosixPath:
        return self.runroot / "scratch"

    @property
    def zygote(self) -> PurePosixPath:
        return self.runroot / "zygote.sock"

    @property
    def exits(self) -> PurePosixPath:
        return PurePosixPath(self.exits_dir) if self.exits_dir else self.root / "exits"

    @property
    def attach(self) -> PurePosixPath:
        return PurePosixPath(self.attach_dir) if self.attach_dir else self.runroot / "attach"

    def sandbox(self, sandbox_id: str) -> PurePosixPath:
        return self.runroot.joinpath("sandboxes", sandbox_id)

    def resolv_conf(self, sandbox_id: str) -> PurePosixPath:
        return self.runroot.joinpath("sandboxes", sandbox_id, "resolv.conf")

    def hostname(self, sandbox_id: str) -> PurePosixPath:
        return self.runroot.joinpath("sandboxes", sandbox_id, "hostname")

    def shm(self, sandbox_id: str) -> PurePosixPath:
        return self.runroot.joinpath("sandboxes", sandbox_id, "shm")

    def namespaces(self, sandbox_id: str) -> PurePosixPath:
        if self.namespaces_dir:
            return PurePosixPath(self.namespaces_dir, sandbox_id)
        return self.runroot.joinpath("ns", sandbox_id)

    def bundle(self, container_id: str) -> PurePosixPath:
        return self.runroot.joinpath("containers", container_id)

    def rootfs(self, container_id: str) -> PurePosixPath:
        return self.runroot.joinpath("containers", container_id, "rootfs")

    def image_volumes(self, container_id: str) -> PurePosixPath:
        """The directory in which the images are mounted that a container mounts."""
        return self.runroot.joinpath("containers", container_id, "images")
