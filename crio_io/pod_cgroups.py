"""Parents of containers' cgroups that exist only because a pod named them: removed again when their last pod is.

A kubelet makes and removes the cgroups of its pods itself. Other clients name a parent and expect it to come and go,
so a parent that was absent when its first pod came is remembered by marker files, one for each pod in it, and removed
once the last pod is gone and it is empty. A pod that is made again after a failure is another pod: the old one may
still be on its way out.
"""

from hashlib import sha256
from pathlib import Path
from threading import Lock

from crio_core.oci.cgroups import parent_directory
from crio_core.oci.facts import CgroupDriver
from crio_io.cgroups import Cgroups


class PodCgroups:
    """Looks after parent cgroups of the cgroupfs driver; systemd looks after its slices itself.

    Args:
        cgroups: The host's hierarchies.
        driver: Who makes cgroups.
        markers: A directory of ours for marker files, gone after a reboot as cgroups are.
    """

    def __init__(self, cgroups: Cgroups, driver: CgroupDriver, markers: Path) -> None:
        self._cgroups = cgroups
        self._driver = driver
        self._markers = markers
        # A parent that is being removed is not one to come into: a last pod's end and the next one's begin take turns.
        self._turn = Lock()

    def remember(self, sandbox_id: str, given: str) -> None:
        """Note that a pod comes into a parent that does not exist yet, or only for other pods.

        Blocks on files, and while a parent is being removed.
        """
        if self._driver is not CgroupDriver.CGROUPFS:
            return
        path = "/" + parent_directory(given, self._driver)
        with self._turn:
            if path != "/" and (not self._cgroups.exists(path) or self._markers_of(path)):
                self._markers.mkdir(mode=0o700, parents=True, exist_ok=True)
                (self._markers / f"{_name(path)}.{sandbox_id}").write_text(path)

    def forget(self, sandbox_id: str, given: str) -> None:
        """Remove a parent with its last pod, and the directories above it that are empty then; one in use stays."""
        if self._driver is not CgroupDriver.CGROUPFS:
            return
        path = "/" + parent_directory(given, self._driver)
        own = self._markers / f"{_name(path)}.{sandbox_id}"
        with self._turn:
            if not own.exists():
                return
            if self._markers_of(path) == [own]:
                self._remove(path)
            # Only now: after a crash in between, the parent is still known to be ours.
            own.unlink(missing_ok=True)

    def _remove(self, path: str) -> None:
        for hierarchy in self._cgroups.hierarchies:
            directory = hierarchy.mountpoint / path.lstrip("/")
            while directory != hierarchy.mountpoint:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    break  # Somebody else's cgroups are inside: theirs to remove.
                directory = directory.parent

    def _markers_of(self, path: str) -> list[Path]:
        return list(self._markers.glob(f"{_name(path)}.*"))


def _name(path: str) -> str:
    return sha256(path.encode()).hexdigest()[:32]
