"""CNI without the world: configurations, results, the plugin chain, and what is remembered of an attachment."""

from crio_core.cni.attachment import Attachment, plan
from crio_core.cni.chain import Chain, Outcome, RunPlugin, Verb
from crio_core.cni.config import ConfFile, Loaded, Network, Plugin, choose, load, parse_network, stored_network
from crio_core.cni.pod import Bandwidth, PodNetwork, bandwidth_from_annotations

__all__ = [
    "Attachment",
    "Bandwidth",
    "Chain",
    "ConfFile",
    "Loaded",
    "Network",
    "Outcome",
    "Plugin",
    "PodNetwork",
    "RunPlugin",
    "Verb",
    "bandwidth_from_annotations",
    "choose",
    "load",
    "parse_network",
    "plan",
    "stored_network",
]
