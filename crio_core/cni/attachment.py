"""What must be remembered of a pod's attachment to a network, so that it can be undone as it was done.

The configuration directory may change while a pod runs, and a DEL with other settings than its ADD leaves things
behind. So an `Attachment` carries everything that the plugins were told. It is made before the first plugin runs
(`plan`) and can be stored then: a DEL is owed from that moment on, whether ADD returns or not.
"""

from dataclasses import replace

from crio_core.cni.config import Network, stored_network
from crio_core.cni.document import FieldError, JsonObject, read_object, text_of, write
from crio_core.cni.errors import CNI_CONFIG_INVALID
from crio_core.cni.pod import PodNetwork, capability_args, check_identity, cni_args
from crio_core.cni.result import Result, parse, pod_ips
from crio_core.cni.version import IMPLIED
from crio_core.errors import Code, OperationError
from crio_core.values import dataclass

STORED_MAX_BYTES = 8 << 20
_FIELDS = ("network", "conf", "sandbox_id", "ifname", "args", "capabilities", "result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One interface of one pod on one network. Every field is text, so that it can be stored as it is."""

    network: str
    conf: str
    """`Network.conf` of the time of the ADD."""
    sandbox_id: str
    ifname: str
    args: str
    """CNI_ARGS."""
    capabilities: str
    """What the pod said to capabilities, a JSON object."""
    result: str = ""
    """The result of the ADD, JSON in the version of the configuration; empty until there is one."""

    def ips(self) -> tuple[str, ...]:
        """The pod's addresses, the primary one first; empty until there is a result."""
        if not self.result:
            return ()
        return pod_ips(self.parsed_result(), self.ifname)

    def parsed_result(self) -> Result:
        """The result of the ADD as a value.

        Raises:
            OperationError: CNI_CONFIG_INVALID, if what was stored is no result.
        """
        try:
            return parse(self.result, IMPLIED)  # It says its version itself.
        except FieldError as error:
            raise _unreadable(str(error)) from error

    def capability_args(self) -> JsonObject:
        """What the pod said to capabilities.

        Raises:
            OperationError: CNI_CONFIG_INVALID.
        """
        try:
            return read_object(self.capabilities)
        except FieldError as error:
            raise _unreadable(str(error)) from error

    def read_network(self) -> Network:
        """The network as it was at the time of the ADD.

        Raises:
            OperationError: CNI_CONFIG_INVALID.
        """
        return stored_network(self.conf)

    def to_json(self) -> str:
        """Itself as one JSON object."""
        return write({field: getattr(self, field) for field in _FIELDS})

    @classmethod
    def from_json(cls, text: str) -> "Attachment":
        """Read what `to_json` wrote.

        Raises:
            OperationError: CNI_CONFIG_INVALID.
        """
        try:
            source = read_object(text, max_bytes=STORED_MAX_BYTES)
            return cls(**{field: text_of(source, field) for field in _FIELDS})
        except FieldError as error:
            raise _unreadable(str(error)) from error

    def with_result(self, text: str) -> "Attachment":
        """The same, with the result of its ADD."""
        return replace(self, result=text)


def plan(network: Network, pod: PodNetwork) -> Attachment:
    """What an ADD of this pod to this network will be, before anything is run.

    Raises:
        OperationError: INVALID_FIELD, if something of the pod may not be told to a plugin.
    """
    check_identity(pod)
    return Attachment(
        network=network.name,
        conf=network.conf,
        sandbox_id=pod.sandbox_id,
        ifname=pod.ifname,
        args=cni_args(pod),
        capabilities=write(capability_args(pod)),
    )


def _unreadable(detail: str) -> OperationError:
    return OperationError(Code.FAILED_PRECONDITION, CNI_CONFIG_INVALID, f"stored attachment: {detail}")
