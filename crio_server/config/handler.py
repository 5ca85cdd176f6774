"""A runtime handler: one OCI runtime and how to run it."""

from typing import TypeVar

from crio_core.values import dataclass
from crio_server.config.kinds import Choice, FilePath, Kind, ListOf, Switch, Text
from crio_server.config.option import Option, option, rows

T = TypeVar("T")

RUNTIMES_TABLE = "crio.runtime.runtimes"
HANDLER_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
"""A runtime handler: for Kubernetes a DNS label; dots, underscores and capitals are taken as well."""
MONITOR_CGROUP = Text(
    pattern=r"pod|[A-Za-z0-9_:.@-]+\.slice|(?:/[A-Za-z0-9_:@-][A-Za-z0-9_:.@-]*)+",
    form="pod, NAME.slice or an absolute path",
)
ENVIRONMENT = ListOf(Text(pattern=r"[^=\s][^=]*=.*", form="NAME=value", may_be_empty=False))
NAMES = ListOf(Text(may_be_empty=False))


def _option(default: T, kind: Kind, doc: str) -> T:
    return option(default, RUNTIMES_TABLE, kind, doc, flags="", env="", live=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeHandler:
    """An OCI runtime, under the name by which a pod asks for it (CRI: `runtime_handler`)."""

    name: str
    runtime_path: str = _option(
        "",
        FilePath(may_be_empty=True),
        "Absolute path of the runtime. Empty: the handler's name is looked up in $PATH.",
    )
    runtime_type: str = _option(
        "oci",
        Choice(("oci", "vm")),
        "oci: an OCI command-line runtime that shares the host's kernel. vm: an OCI command-line runtime that keeps a "
        "whole pod in one sandbox or virtual machine (runsc, cc-runtime, kata-runtime); its pods get an infra "
        "container.",
    )
    runtime_root: str = _option(
        "",
        FilePath(may_be_empty=True),
        "Where the runtime keeps the state of its containers. Empty: /run/NAME.",
    )
    privileged_without_host_devices: bool = _option(
        False, Switch(), "Do not pass the host's devices to privileged containers."
    )
    allowed_annotations: tuple[str, ...] = _option(
        (), NAMES, "Annotations of this project and of the runtime that pods of this handler may use."
    )
    no_sync_log: bool = _option(
        True,
        Switch(),
        "Leave it to the kernel when the log of a container that has ended gets to the disk. When false its monitor "
        "waits for the disk before it ends, and so does the removal of the container.",
    )
    monitor_path: str = _option(
        "", FilePath(may_be_empty=True), "Monitor program for containers of this handler. Empty: as `conmon` says."
    )
    monitor_cgroup: str = _option(
        "",
        MONITOR_CGROUP,
        "Cgroup of the monitors of this handler. Empty: as `conmon_cgroup` says.",
    )
    monitor_env: tuple[str, ...] = _option(
        (), ENVIRONMENT, "Environment of the monitor and the runtime. Empty: as `conmon_env` says."
    )

    def __post_init__(self) -> None:
        if not self.runtime_root:
            object.__setattr__(self, "runtime_root", f"/run/{self.name}")

    @property
    def command(self) -> str:
        """What to execute: a path, or a name for $PATH."""
        return self.runtime_path or self.name


HANDLER_OPTIONS: tuple[Option, ...] = rows(RuntimeHandler)
"""Every key of a runtime handler's own table."""
