"""Runs CNI plugins: the executor of `crio_core.cni`.

How it works:

- Which plugin runs next, and with what, is decided by `Chain`. Here it is found, started, watched and timed.
- A verb has one deadline for all its plugins. Undoing a failed ADD has a deadline of its own: the usual reason for the
  failure is that the first one is over.
- A plugin runs in a process group of its own, which is killed when the time is over or the caller is cancelled. A
  cancelled ADD is not undone here: whoever planned the attachment knows that its DEL is owed.
- The plugins of a server that was killed run on. Before a DEL for an ADD that never returned, what still runs of that
  ADD is killed: it would go on making what the DEL has just looked for.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from crio_core.cni import Attachment, Chain, Network, Outcome, PodNetwork, RunPlugin, Verb, plan
from crio_core.cni.errors import plugin_failed, plugin_not_found, timed_out
from crio_core.cni.result import RESULT_MAX_BYTES
from crio_core.cni.stats import PluginStats
from crio_core.errors import Code, OperationError
from crio_core.values import dataclass
from crio_io import mounts, spawn
from crio_io.runtime import processes

OUTPUT_MAX_BYTES = RESULT_MAX_BYTES
"""How much of a plugin's stdout, and of its stderr, is kept."""
MESSAGE_FAILURES_MAX = 4
ORPHAN_ROUNDS_MAX = 8
"""How often orphans are looked for, against plugins that start further ones while they are being killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each verb may take, all plugins together, in seconds."""

    add_s: float = 60.0
    delete_s: float = 60.0
    check_s: float = 30.0
    status_s: float = 5.0

    def of(self, verb: Verb) -> float:
        """The time of one verb."""
        return {
            Verb.ADD: self.add_s,
            Verb.DEL: self.delete_s,
            Verb.CHECK: self.check_s,
            Verb.STATUS: self.status_s,
        }[verb]


class CniRunner:
    """Attaches pods to networks and detaches them.

    Args:
        plugin_dirs: Where plugins are looked for, in this order.
        deadlines: How long each verb may take.
        env: What plugins find in their environment besides the parameters of CNI; None passes on our own, as other
            runtimes do: plugins look there for `PATH` and proxies.
    """

    def __init__(
        self,
        plugin_dirs: Sequence[str],
        *,
        deadlines: Deadlines | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.plugin_dirs = tuple(plugin_dirs)
        self.deadlines = deadlines or Deadlines()
        self.stats = PluginStats()
        self.known: Mapping[str, str] = {}
        """Paths of plugins, by name, from a look of just now; others are looked for when they are needed."""
        source = os.environ if env is None else env
        self._env = {key: value for key, value in source.items() if not key.startswith("CNI_")}

    async def add(self, network: Network, pod: PodNetwork) -> Attachment:
        """Attach a pod to a network; what a failed attempt made is undone before it is reported.

        Raises:
            OperationError: CNI_PLUGIN_NOT_FOUND, CNI_PLUGIN_FAILED or CNI_TIMEOUT of the plugin that failed, with what
                the undoing left; INVALID_FIELD for a pod that plugins cannot be told of.
        """
        attachment = plan(network, pod)
        chain = self._chain(Verb.ADD, network, attachment=attachment, netns=pod.netns)
        outcome = await self._drive(chain, network, Verb.ADD)
        _raise_first(outcome)
        assert outcome.attachment is not None, "an ADD without failures has an attachment"
        return outcome.attachment

    async def delete(self, target: Attachment | Network, pod: PodNetwork) -> None:
        """Detach a pod; detaching what is not attached succeeds, and a failure can be tried again.

        Args:
            target: The attachment that ADD returned, or the network whose ADD was begun and never returned.
            pod: With an attachment only its `netns` counts: empty if the namespace is gone or no longer the pod's.

        Raises:
            OperationError: As for `add`.
        """
        if isinstance(target, Network):
            await mounts.in_thread(f"end orphaned plugins of {pod.sandbox_id}", _end_orphans, pod.sandbox_id)
        attachment = plan(target, pod) if isinstance(target, Network) else target
        network = target if isinstance(target, Network) else target.read_network()
        chain = self._chain(Verb.DEL, network, attachment=attachment, netns=pod.netns)
        _raise_first(await self._drive(chain, network, Verb.DEL))

    async def check(self, attachment: Attachment, pod: PodNetwork) -> None:
        """Ask the plugins whether the pod's network is as ADD left it; succeeds where CHECK does not exist.

        Raises:
            OperationError: As for `add`.
        """
        network = attachment.read_network()
        chain = self._chain(Verb.CHECK, network, attachment=attachment, netns=pod.netns)
        _raise_first(await self._drive(chain, network, Verb.CHECK))

    async def status(self, network: Network) -> None:
        """Ask the plugins whether they could serve an ADD now; succeeds where STATUS does not exist.

        Raises:
            OperationError: As for `add`.
        """
        _raise_first(await self._drive(self._chain(Verb.STATUS, network), network, Verb.STATUS))

    def _chain(
        self,
        verb: Verb,
        network: Network,
        *,
        attachment: Attachment | None = None,
        netns: str = "",
    ) -> Chain:
        return Chain(verb, network, plugin_dirs=self.plugin_dirs, attachment=attachment, netns=netns)

    async def _drive(self, chain: Chain, network: Network, verb: Verb) -> Outcome:
        budget_s = self.deadlines.of(verb)
        deadline = anyio.current_time() + budget_s
        names = tuple(plugin.type for plugin in network.plugins)
        paths: Mapping[str, str] = self.known
        if not all(name in paths for name in names):
            paths = await to_thread.run_sync(find_plugins, names, self.plugin_dirs)
        undoing = False
        while not isinstance(order := chain.next(), Outcome):
            if order.verb is not verb and not undoing:
                undoing = True
                budget_s = self.deadlines.of(order.verb)
                deadline = anyio.current_time() + budget_s
            await self._run(chain, order, network, paths, deadline, budget_s)
        return order

    async def _run(
        self,
        chain: Chain,
        order: RunPlugin,
        network: Network,
        paths: Mapping[str, str],
        deadline: float,
        budget_s: float,
    ) -> None:
        began = anyio.current_time()
        try:
            completed = await self._spawn(order, network, paths, deadline - began, budget_s)
        except OperationError as error:
            chain.not_run(error)
            message = error.message
        else:
            failure = chain.exited(returncode=completed.returncode, stdout=completed.stdout, stderr=completed.stderr)
            message = failure.message if failure else ""
        self.stats.add(order.plugin, order.verb.value, anyio.current_time() - began, message)

    async def _spawn(
        self, order: RunPlugin, network: Network, paths: Mapping[str, str], timeout_s: float, budget_s: float
    ) -> spawn.Completed:
        plugin, verb = order.plugin, order.verb.value
        if plugin not in paths:
            raise plugin_not_found(plugin, network.name, self.plugin_dirs)
        if timeout_s <= 0:
            raise timed_out(plugin, verb, network.name, budget_s)
        try:
            return await spawn.run(
                [paths[plugin]],
                stdin=order.stdin,
                env=self._env | dict(order.env),
                timeout_s=timeout_s,
                output_max_bytes=OUTPUT_MAX_BYTES,
            )
        except OperationError as error:
            if error.code is Code.DEADLINE_EXCEEDED:
                raise timed_out(plugin, verb, network.name, budget_s) from error
            if error.reason == "EXECUTABLE_NOT_FOUND":
                raise plugin_not_found(plugin, network.name, self.plugin_dirs) from error
            raise plugin_failed(plugin, verb, network.name, error.message) from error


def find_plugins(names: Sequence[str], plugin_dirs: Sequence[str]) -> dict[str, str]:
    """Paths of the plugins that are there, by name. Looks at files: not for the event loop."""
    paths: dict[str, str] = {}
    for name in names:
        for directory in plugin_dirs:
            path = Path(directory, name)
            if _is_executable(path):
                paths[name] = str(path)
                break
    return paths


def _end_orphans(sandbox_id: str) -> None:
    """Kill every process that runs as part of an ADD for a sandbox: plugins pass their environment on."""
    marks = {f"CNI_CONTAINERID={sandbox_id}".encode(), f"CNI_COMMAND={Verb.ADD.value}".encode()}
    for _ in range(ORPHAN_ROUNDS_MAX):
        found = False
        for entry in Path("/proc").iterdir():
            # Its start time is read first: if the number is taken by another process meanwhile, that one is spared.
            facts = processes.look(int(entry.name)) if entry.name.isdecimal() else None
            if facts is None or not processes.is_alive(facts):
                continue
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # Ended meanwhile.
            if marks.issubset(environment):
                found = True
                processes.kill(int(entry.name), facts.start_ticks)
        if not found:
            return


def _is_executable(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _raise_first(outcome: Outcome) -> None:
    """Raise the first failure, which is the cause; later ones are told of in its message."""
    if not outcome.failures:
        return
    first, *others = outcome.failures
    if not others:
        raise first
    said = "; ".join(error.message for error in others[:MESSAGE_FAILURES_MAX])
    raise OperationError(first.code, first.reason, f"{first.message}; after that: {said}") from first
