"""The plugin chain: which plugin runs next, with which environment and input, and what its end means.

The machine runs nothing. A driver asks `next()` for an order, runs it, and reports the end with `exited` or `not_run`,
until `next()` returns an `Outcome`. What each verb does with its plugins (CNI SPEC 1.1.0 section 3):

| verb | order | a plugin fails | input besides the configuration |
|---|---|---|---|
| ADD | first to last | DEL for every plugin, last to first, whatever each of them answers | the result so far |
| DEL | last to first | stop: what is left is owed | the result of ADD, from 0.4.0 on |
| CHECK | first to last | stop | the result of ADD; skipped before 0.4.0 and with `disableCheck` |
| STATUS | first to last | stop | nothing; skipped before 1.1.0 |

GC is not among them (docs/decisions/0030-network-plugins-are-asked-and-collect-nothing.md).

DEL stops where the undoing after a failed ADD goes on, on purpose. Where a pod has run, a later plugin's rules point at
the address that an earlier one gives back: the address must not be free while the rule still stands. After a failed ADD
the plugins behind the failure never ran, and one that is missing must not keep an address from being given back.
"""

from collections.abc import Sequence
from enum import Enum
from typing import assert_never

from crio_core.cni import result, version
from crio_core.cni.attachment import Attachment
from crio_core.cni.config import Network, Plugin
from crio_core.cni.document import FieldError, JsonObject, number_of, read_object, text_of, write
from crio_core.cni.errors import plugin_failed, printable
from crio_core.errors import LocalError, OperationError
from crio_core.values import dataclass


class Verb(Enum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlugin:
    """An order: run this plugin with these variables and this input."""

    plugin: str
    index: int
    verb: Verb
    env: tuple[tuple[str, str], ...]
    stdin: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a chain: it succeeded if there are no failures, and the first failure is the cause."""

    failures: tuple[OperationError, ...] = ()
    attachment: Attachment | None = None
    """After an ADD that succeeded: the attachment with its result."""


class Chain:
    """One verb on one network, plugin by plugin."""

    def __init__(
        self,
        verb: Verb,
        network: Network,
        *,
        plugin_dirs: Sequence[str],
        attachment: Attachment | None = None,
        netns: str = "",
    ) -> None:
        """Make a chain that has run nothing yet.

        Args:
            verb: What to do.
            network: Whose plugins run; for an attachment that exists, the network as it was then.
            plugin_dirs: Where plugins look for the ones that they delegate to.
            attachment: For ADD (from `plan`), DEL and CHECK.
            netns: Path of the network namespace; empty for a DEL after it is gone.
        """
        if attachment is None and verb in (Verb.ADD, Verb.DEL, Verb.CHECK):
            raise LocalError(f"{verb.value} needs an attachment")
        self._verb = verb
        self._network = network
        self._path = ":".join(plugin_dirs)
        self._attachment = attachment
        self._netns = netns
        self._capabilities = attachment.capability_args() if attachment else {}
        self._result = _readable(attachment.result) if attachment and verb is not Verb.ADD else None
        if verb is Verb.CHECK and self._result is None:
            raise LocalError("CHECK needs the result of an ADD")
        self._failures: list[OperationError] = []
        self._undoing = False
        indexes = list(range(len(network.plugins))) if _applies(verb, network) else []
        self._todo = indexes[::-1] if verb is Verb.DEL else indexes
        self._running: int | None = None

    def next(self) -> RunPlugin | Outcome:
        """The next order, or the end. Asked again before an answer, the same order."""
        if self._running is None:
            if not self._todo:
                return self._outcome()
            self._running = self._todo.pop(0)
        plugin = self._network.plugins[self._running]
        return RunPlugin(
            plugin=plugin.type,
            index=self._running,
            verb=self._verb_now(),
            env=self._env(),
            stdin=self._input(plugin).encode(),
        )

    def exited(self, *, returncode: int, stdout: bytes, stderr: bytes) -> OperationError | None:
        """The plugin of the last order ran to its end. Returns its failure, if it failed."""
        name = self._network.plugins[self._take_running()].type
        verb = self._verb_now()
        if returncode != 0:
            return self._fail(_refusal(name, verb, self._network.name, returncode, stdout, stderr))
        if verb is Verb.ADD:
            try:
                self._result = _in_version(stdout, self._network.cni_version)
            except FieldError as error:
                detail = f"its result is not one of CNI {self._network.cni_version}: {error}"
                return self._fail(plugin_failed(name, verb.value, self._network.name, detail, stderr=stderr))
        return None

    def not_run(self, error: OperationError) -> None:
        """The plugin of the last order was not found, could not be started, or did not end in time."""
        self._take_running()
        self._fail(error)

    def _verb_now(self) -> Verb:
        return Verb.DEL if self._undoing else self._verb

    def _take_running(self) -> int:
        if self._running is None:
            raise LocalError("no plugin was ordered to run")
        running, self._running = self._running, None
        return running

    def _fail(self, error: OperationError) -> OperationError:
        self._failures.append(error)
        if self._undoing:
            return error
        if self._verb is Verb.ADD:
            self._undoing = True
            self._todo = list(reversed(range(len(self._network.plugins))))
        else:
            self._todo.clear()
        return error

    def _outcome(self) -> Outcome:
        attachment = None
        if self._verb is Verb.ADD and not self._failures and self._attachment and self._result is not None:
            attachment = self._attachment.with_result(write(self._result))
        return Outcome(failures=tuple(self._failures), attachment=attachment)

    def _env(self) -> tuple[tuple[str, str], ...]:
        """CNI SPEC section 2, "Parameters"."""
        common = (("CNI_COMMAND", self._verb_now().value), ("CNI_PATH", self._path))
        if self._attachment is None:
            return common
        return (
            *common,
            ("CNI_CONTAINERID", self._attachment.sandbox_id),
            ("CNI_NETNS", self._netns),
            ("CNI_IFNAME", self._attachment.ifname),
            ("CNI_ARGS", self._attachment.args),
        )

    def _input(self, plugin: Plugin) -> str:
        """CNI SPEC section 3, "Deriving execution configuration from plugin configuration"."""
        document = read_object(plugin.conf)
        document["name"] = self._network.name
        document["cniVersion"] = self._network.cni_version
        asked = {key: self._capabilities[key] for key in plugin.capabilities if key in self._capabilities}
        if asked:
            document["runtimeConfig"] = asked
        if self._result is not None and (
            self._verb_now() is not Verb.DEL or version.number(self._network.cni_version) >= version.CHECK_SINCE
        ):
            document["prevResult"] = self._result
        return write(document)


def _applies(verb: Verb, network: Network) -> bool:
    """Whether a verb exists for a network at all."""
    speaks = version.number(network.cni_version)
    match verb:
        case Verb.CHECK:
            return speaks >= version.CHECK_SINCE and not network.disable_check
        case Verb.STATUS:
            return speaks >= version.STATUS_SINCE
        case Verb.ADD | Verb.DEL:
            return True
        case _:
            assert_never(verb)


def _readable(text: str) -> JsonObject | None:
    """A stored result, if it is one: a DEL without it does what it can, and no DEL at all would do nothing."""
    try:
        return read_object(text) if text else None
    except FieldError:
        return None


def _in_version(stdout: bytes, cni_version: str) -> JsonObject:
    """What an ADD printed, as a result of the configuration's version.

    A result that has the version already goes on as it is, with fields that we do not know; another one is converted.
    """
    parsed = result.parse(stdout, cni_version)
    if parsed.cni_version == cni_version:
        return read_object(stdout) | {"cniVersion": cni_version}
    return read_object(result.render(result.convert(parsed, cni_version)))


def _refusal(plugin: str, verb: Verb, network: str, returncode: int, stdout: bytes, stderr: bytes) -> OperationError:
    """The error object that a plugin printed (CNI SPEC section 5, "Error"), or what can be said without one."""
    end = f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    try:
        source = read_object(stdout, max_bytes=result.RESULT_MAX_BYTES)
        plugin_code, msg, details = number_of(source, "code"), text_of(source, "msg"), text_of(source, "details")
    except FieldError:
        plugin_code, msg, details = None, printable(stdout), ""
    parts = [printable(part.encode()) for part in (msg, details) if part]
    said = ": ".join(parts) or "it gave no reason"
    detail = f"{end}: {said}" if plugin_code is None else f"code {plugin_code}: {said}"
    return plugin_failed(plugin, verb.value, network, detail, plugin_code=plugin_code, stderr=stderr)
