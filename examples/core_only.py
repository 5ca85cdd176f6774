"""The core alone: events go in, effects come out, and nothing in the world is touched. python examples/core_only.py"""

from pathlib import PurePosixPath

from crio_core import Layout, Node, Settings
from crio_core import effects as fx
from crio_core import events as ev
from crio_core.cri import (
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
)
from crio_core.oci.facts import HostFacts, SpecDefaults
from crio_core.records import Pin
from crio_core.replies import Created
from crio_core.requests import RemovePodSandbox, Request, RunPodSandbox

SECOND_NS = 1_000_000_000
LAYOUT = Layout(root=PurePosixPath("/var/lib/crio"), runroot=PurePosixPath("/run/crio"))
NEW_ID = "5e" * 32  # chance comes from outside, like time
LINUX = LinuxPodSandboxConfig(
    security_context=LinuxSandboxSecurityContext(namespace_options=NamespaceOption(pid=NamespaceMode.CONTAINER))
)


def pretend(order: fx.Order) -> ev.Outcome:
    """What a host on which everything works would answer."""
    match order:
        case fx.SaveRecord():
            return ev.RecordSaved()
        case fx.DeleteRecord():
            return ev.RecordDeleted()
        case fx.PrepareSandbox():
            path = str(LAYOUT.namespaces(order.sandbox_id))
            return ev.SandboxPrepared(pins=tuple(Pin(kind=kind, path=path, inode=1) for kind in order.namespaces))
        case fx.AttachNetwork():
            return ev.NetworkAttached(attachment="{}", ips=("10.88.0.2",))
        case _:
            return ev.Released()


def play(node: Node, event: ev.Event, now_ns: int) -> Created | None:
    """Feed an event and the outcome of everything that it leads to; returns the answer if something was made."""
    made = None
    print(f"{type(event).__name__}")
    waiting = list(node.step(event))
    while waiting:
        effect = waiting.pop(0)
        print(f"  {effect.id:>2} {effect.lane[:6]:6} {type(effect.order).__name__}")
        if isinstance(effect.order, fx.Reply):
            made = effect.order.result if isinstance(effect.order.result, Created) else made
            print(f"            {effect.order.result}")
        if isinstance(effect.order, fx.Reply | fx.ArmTimer | fx.CancelTimer):
            continue  # these have no outcome
        ended = ev.EffectEnded(effect_id=effect.id, outcome=pretend(effect.order), at_ns=now_ns, wall_ns=now_ns)
        waiting.extend(node.step(ended))
    return made


def main() -> None:
    """A pod comes and goes."""
    node = Node(Settings(layout=LAYOUT, host=HostFacts(), defaults=SpecDefaults()))
    node.step(ev.NetworkChanged(network='{"name": "mynet", "plugins": [{"type": "bridge"}]}'))
    config = PodSandboxConfig(metadata=PodSandboxMetadata(name="web", namespace="default", uid="1"), linux=LINUX)

    def call(number: int, request: Request) -> ev.CallArrived:
        return ev.CallArrived(
            call_id=number, request=request, at_ns=number * SECOND_NS, wall_ns=number * SECOND_NS, new_id=NEW_ID
        )

    pod = play(node, call(1, RunPodSandbox(config=config)), SECOND_NS)
    assert pod is not None
    play(node, call(2, RunPodSandbox(config=config)), 2 * SECOND_NS)  # a retry gets the same answer
    play(node, call(3, RemovePodSandbox(sandbox_id=pod.id)), 3 * SECOND_NS)


if __name__ == "__main__":
    main()
