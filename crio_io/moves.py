"""Gets the kernel ready for processes that will be moved between control groups.

The first move after a pause waits until every processor has passed a quiescent state (an RCU grace period), 6 to 14 ms
on a small machine; moves soon after it do not wait. A runtime makes its first move some milliseconds after it was
started, so a wait that begins together with it is over, or nearly, when it gets there.
"""

import os
import threading
from contextlib import suppress

from crio_io.cgroups import Cgroups


class Moves:
    """Announces moves.

    Args:
        cgroups: The hierarchies of this machine; one is enough, as the kernel's wait is for all of them.
    """

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._busy = threading.Lock()

    def expect(self) -> None:
        """Begin to wait in a thread, unless one does already. Whether it works is only a matter of time: no failure."""
        if self._busy.acquire(blocking=False):
            threading.Thread(target=self._wait, name="crio-moves", daemon=True).start()

    def _wait(self) -> None:
        """Move this process to where it is, which changes nothing and makes the kernel wait like any move."""
        try:
            path = self._cgroups.memory_path(os.getpid())
            for hierarchy in self._cgroups.hierarchies:
                if path is not None and ".." not in path and "memory" in hierarchy.controllers:
                    with suppress(OSError):
                        procs = hierarchy.mountpoint / path.lstrip("/") / "cgroup.procs"
                        procs.write_bytes(b"0")  # cgroups(7): 0 is the process that writes
                    break
        finally:
            self._busy.release()
