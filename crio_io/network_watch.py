"""Looks after the network that pods get: reads its configuration again and again, and asks its plugins whether they are
ready. The node is told when either changes."""

import logging
from collections.abc import Callable

import anyio

from crio_core.cni import Attachment, Network, PodNetwork
from crio_core.cni.stats import PluginStats
from crio_core.errors import OperationError
from crio_core.events import Event, NetworkChanged
from crio_core.records import SandboxRecord, SandboxState
from crio_io.cni import CniRunner
from crio_io.cni_watch import NetworkConfigs

log = logging.getLogger(__name__)

NETWORK_LOOK_S = 2.0
READY_ASKED_S = 5.0
"""How often network plugins that are ready are asked whether they still are: as often as a kubelet asks."""
UNREADY_ASKED_S = 0.5
"""How often those are asked that are not: pods wait for them."""
CHECK_S = 5.0
"""How long a status waits for what network plugins say."""


class NetworkWatch:
    """The node's network.

    Args:
        cni: Runs its plugins, from where `configure` says.
        tell: Gets each change.
    """

    def __init__(self, cni: CniRunner, tell: Callable[[Event], None]) -> None:
        self._cni = cni
        self._tell = tell
        self._configs = NetworkConfigs("", ())
        self._told = ("", "")
        self._network: Network | None = None
        self._refusal: tuple[Network, str] | None = None
        """A network whose plugins have said that they are not ready, and why."""
        self._looks = 0
        self._looking = anyio.Lock()

    @property
    def plugins(self) -> PluginStats:
        """How long network plugins take, and what went wrong with them last."""
        return self._cni.stats

    def configure(self, directory: str, plugin_dirs: tuple[str, ...], default_network: str) -> None:
        """Look there from now on."""
        self._cni.plugin_dirs = plugin_dirs
        self._configs = NetworkConfigs(directory, plugin_dirs, default_network)

    async def watch(self) -> None:
        """Look at the configuration again and again; runs until it is cancelled."""
        while True:
            await self.refresh()
            await anyio.sleep(NETWORK_LOOK_S)

    async def watch_plugins(self) -> None:
        """Ask the plugins again and again whether they could attach a pod now; runs until it is cancelled.

        They are asked beside everything else, since no status and no pod may wait for a plugin that hangs. Plugins that
        cannot say so (before CNI 1.1.0) are taken for ready.
        """
        while True:
            if (network := self._network) is not None:
                refusal = None
                try:
                    await self._cni.status(network)
                except OperationError as error:
                    refusal = network, error.message
                if refusal != self._refusal:
                    self._refusal = refusal
                    log.warning("network %s: %s", network.name, refusal[1] if refusal else "its plugins are ready")
                    await self.refresh()
            await anyio.sleep(UNREADY_ASKED_S if self._refusal else READY_ASKED_S)

    async def refresh(self) -> None:
        """Look at the configuration now, and tell the node which network pods get.

        Who asks while somebody looks shares the next look with all others who do.
        """
        looks = self._looks
        async with self._looking:
            if self._looks > looks:
                return
            self._looks += 1
            await self._look()

    async def _look(self) -> None:
        state = await self._configs.state()
        self._cni.known = state.plugins
        self._network = state.network
        network = state.network.conf if state.network else ""
        reason = state.error.message if state.error else ""
        if self._refusal is not None and self._refusal[0] == state.network:
            network, reason = "", self._refusal[1]
        if (network, reason) != self._told:
            self._told = (network, reason)
            self._tell(NetworkChanged(network=network, reason=reason))
            for fault in state.faults:
                log.warning("CNI configuration: %s", fault)

    async def check(self, sandbox: SandboxRecord) -> str:
        """Have the plugins compare a pod's network with what was reported of it; what is wrong, or nothing."""
        netns = next((pin.path for pin in sandbox.pins if pin.kind == "net"), "")
        if not (sandbox.attachment and netns and sandbox.state is SandboxState.READY):
            return ""
        meta = sandbox.metadata
        pod = PodNetwork(sandbox_id=sandbox.id, namespace=meta.namespace, name=meta.name, uid=meta.uid, netns=netns)
        try:
            with anyio.fail_after(CHECK_S):
                await self._cni.check(Attachment.from_json(sandbox.attachment), pod)
        except OperationError as error:
            return error.message
        except TimeoutError:
            return f"the network plugins did not answer a CHECK within {CHECK_S:g} s"
        return ""
