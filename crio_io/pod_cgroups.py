"""Parents of containers' cgroups that exist only because a pod named them: removed again when their last pod is.

A kubelet makes and removes the cgroups of its pods itself. Other clients name a parent and expect it to come and go,
so a parent that was absent when its first pod came is remembered by a marker file, and removed once it is empty.
"""

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

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

    def remember(self, given: str) -> None:
        """Note a parent that does not exist yet, before anything makes it. Blocks on files only."""
        if self._driver is not CgroupDriver.CGROUPFS:
            return
        path = "/" + parent_directory(given, self._driver)
        if path != "/" and not self._cgroups.exists(path):
            self._markers.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._marker(path).write_text(path)

    def forget(self, given: str) -> None:
        """Remove a parent that was noted, and the directories above it that are empty then; one in use stays."""
        if self._driver is not CgroupDriver.CGROUPFS:
            return
        path = "/" + parent_directory(given, self._driver)
        marker = self._marker(path)
        if not marker.exists():
            return
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
        if not self._cgroups.exists(path):
            with suppress(FileNotFoundError):
                os.unlink(marker)

    def _marker(self, path: str) -> Path:
        return self._markers / sha256(path.encode()).hexdigest()[:32]
