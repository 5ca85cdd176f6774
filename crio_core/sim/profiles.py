"""How long things take on a simulated node, and how often they go wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from crio_core import effects as fx

US = 1_000
MS = 1_000_000
S = 1_000_000_000

FLOOR_NS: Mapping[type, int] = MappingProxyType(
    {
        fx.SaveRecord: 150 * US,
        fx.DeleteRecord: 150 * US,
        fx.PrepareSandbox: 2 * MS,
        fx.AttachNetwork: 14 * MS,
        fx.DetachNetwork: 75 * MS,
        fx.ReleaseNamespaces: 1 * MS,
        fx.RemoveSandboxFiles: 1 * MS,
        fx.ObserveSandbox: 200 * US,
        fx.MountRootfs: 2 * MS,
        fx.CreateContainer: 25 * MS,
        fx.StartContainer: 4 * MS,
        fx.SignalContainer: 3 * MS,
        fx.ObserveContainer: 3 * MS,
        fx.DeleteContainer: 6 * MS,
        fx.ReleaseRootfs: 3 * MS,
        fx.ReopenLog: 1 * MS,
        fx.UpdateContainer: 5 * MS,
        fx.ExecInContainer: 9 * MS,
        fx.ServeExec: 9 * MS,
        fx.ServeAttach: 20 * S,
        fx.ServePorts: 20 * S,
        fx.EndStream: 1 * MS,
        fx.ResolveImage: 120 * MS,
        fx.FetchLayer: 900 * MS,
        fx.ApplyLayer: 600 * MS,
        fx.ProveLayer: 900 * MS,
        fx.RemoveLayer: 20 * MS,
        fx.SweepStorage: 30 * MS,
    }
)
"""What the work itself costs on an ordinary node, measured with no server at all; the journal's times are estimates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Times of effects: `floor_ns` each, up to `spread` times as long, and now and then `tail` times as long."""

    floor_ns: Mapping[type, int] = field(default_factory=lambda: FLOOR_NS)
    spread: float = 2.0
    tail: float = 40.0
    tail_probability: float = 0.02
    halves: float = 0.25
    """How often others get to see the world while an effect is half done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities, each for one effect or one exit; the last three for one spell of weather."""

    fail: float = 0.0
    """An effect fails: before, amid or after its work."""
    hang: float = 0.0
    """An effect does not end until the faults are over: a dead network file system, a plugin that waits."""
    exit_unheard: float = 0.0
    """Nobody hears of an exit; the next regular look finds it."""
    watch_fails: float = 0.0
    """Waiting for an exit fails."""
    timer_late: float = 0.0
    """A timer that is cancelled had just fired."""
    exit_late: float = 0.0
    """The monitor takes seconds to write the exit file."""
    exit_twice: float = 0.0
    """Word of an exit comes a second time, a while later."""
    monitor_hangs: float = 0.0
    """A monitor outlives its container's process and never writes the exit file."""
    blob_rots: float = 0.0
    """A blob is not what its digest says when it comes to be unpacked."""
    monitor_dies: float = 0.0
    """A monitor ends with its container's process, without having written the exit file."""
    deaf: float = 0.0
    """A process ignores its stop signal."""
    stuck: float = 0.0
    """A process survives SIGKILL for a while, or until the faults are over."""
    disk_fills: float = 0.0
    """The disk is full."""
    plugins_break: float = 0.0
    """No network plugin works."""
    network_goes: float = 0.0
    """The directory of network configurations is empty."""


STEADY = Latency(spread=1.0, tail_probability=0.0, halves=0.0)
"""Every effect takes its floor: for comparing two runs."""
ORDINARY = Latency()
INSTANT = Latency(floor_ns=MappingProxyType({}), spread=1.0, tail_probability=0.0, halves=0.0)

NO_FAULTS = Faults()
FEW_FAULTS = Faults(
    fail=0.02,
    hang=0.001,
    watch_fails=0.05,
    timer_late=0.3,
    exit_unheard=0.05,
    exit_late=0.05,
    exit_twice=0.05,
    monitor_hangs=0.01,
    blob_rots=0.02,
    monitor_dies=0.01,
    deaf=0.05,
    stuck=0.02,
    disk_fills=0.05,
    plugins_break=0.05,
    network_goes=0.03,
)
MANY_FAULTS = Faults(
    fail=0.2,
    hang=0.01,
    watch_fails=0.2,
    timer_late=0.3,
    exit_unheard=0.3,
    exit_late=0.3,
    exit_twice=0.3,
    monitor_hangs=0.05,
    blob_rots=0.1,
    monitor_dies=0.1,
    deaf=0.3,
    stuck=0.15,
    disk_fills=0.2,
    plugins_break=0.2,
    network_goes=0.1,
)
LATENCIES: Mapping[str, Latency] = MappingProxyType({"steady": STEADY, "ordinary": ORDINARY, "instant": INSTANT})
FAULTS: Mapping[str, Faults] = MappingProxyType({"none": NO_FAULTS, "few": FEW_FAULTS, "many": MANY_FAULTS})
