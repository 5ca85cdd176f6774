"""AppArmor profiles on this node: which are loaded, and the one that stands for the runtime's default.

A container whose spec names a profile that is not loaded does not start, so each name is looked up before. Our own
default profile is in no package: it is loaded when the first container needs it, and again when somebody unloaded it.
"""

import logging
import shutil
from pathlib import Path

import anyio

from crio_core.errors import Code, OperationError
from crio_core.oci.security import DEFAULT_APPARMOR_PROFILE
from crio_io import mounts, spawn

log = logging.getLogger(__name__)

SECURITYFS = Path("/sys/kernel/security/apparmor")
PARSER = "apparmor_parser"
PARSER_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
LOAD_S = 60.0
"""How long the parser may take: it compiles, which a busy node does slowly."""

# The language is that of apparmor.d(5). A denial wins over what is allowed, so the order says nothing. What is not
# named is refused: processes under other profiles get neither signals nor a tracer from here.
PROFILE = f"""\
profile {DEFAULT_APPARMOR_PROFILE} flags=(attach_disconnected, mediate_deleted) {{
  capability,
  network,
  # What seccomp refuses of sockets a 32-bit call can ask for out of its sight (crio_core/oci/seccomp.py).
  deny network alg,
  deny network vsock,
  file,
  umount,

  # Whether an outsider may signal or trace is for the outsider's profile to say.
  signal (receive),
  signal (send) peer={DEFAULT_APPARMOR_PROFILE},
  ptrace (readby, tracedby),
  ptrace (read, trace) peer={DEFAULT_APPARMOR_PROFILE},

  deny mount,

  # The node's own knobs. The directories of processes are deeper, and control groups stay as they are mounted.
  deny /proc/* wkl,
  deny /proc/{{acpi,bus,fs,irq,sys,sysvipc,tty}}/** wkl,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /sys/* wkl,
  deny /sys/[^f]*/** wkl,
  deny /sys/f[^s]*/** wkl,
  deny /sys/fs/[^c]*/** wkl,
  deny /sys/{{firmware,kernel/security}}/** rwklx,
}}
"""


class AppArmor:
    """The profiles of this node's kernel.

    Args:
        directory: Where the kernel shows them.
        path: Directories in which the parser is looked for, as in $PATH.
    """

    def __init__(self, directory: Path = SECURITYFS, path: str = PARSER_PATH) -> None:
        self._directory = directory
        self._path = path
        self._loading = anyio.Lock()
        self._unconfined = ""
        """Why our own profile cannot be had, once that is known."""

    async def usable(self, name: str) -> bool:
        """Whether a container can run under this profile; False for our own default where it cannot be loaded.

        Raises:
            OperationError: APPARMOR_PROFILE_NOT_LOADED, the profile is somebody else's and not there.
        """
        if name == "unconfined" or await self._is_loaded(name):
            return True
        if name != DEFAULT_APPARMOR_PROFILE:
            message = f"linux.security_context.apparmor: profile {name!r} is not loaded on this node"
            raise OperationError(Code.FAILED_PRECONDITION, "APPARMOR_PROFILE_NOT_LOADED", message)
        async with self._loading:
            if not self._unconfined and not await self._is_loaded(name):
                self._unconfined = await self._load()
                if self._unconfined:
                    log.warning("containers without an AppArmor profile of their own run without: %s", self._unconfined)
        return not self._unconfined

    async def _is_loaded(self, name: str) -> bool:
        """Whether the kernel lists the profile; where it lists nothing to us, the runtime has the last word."""
        loaded = await mounts.in_thread("list AppArmor profiles", _profiles, self._directory / "profiles")
        return name in loaded if loaded is not None else name != DEFAULT_APPARMOR_PROFILE

    async def _load(self) -> str:
        """Load our own profile; returns why it did not work, or nothing."""
        parser = await mounts.in_thread("look for the AppArmor parser", _which, self._path)
        if parser is None:
            return f"{PARSER} is not installed, and profile {DEFAULT_APPARMOR_PROFILE} not loaded"
        try:
            # -r replaces what may be there; -K leaves no cache behind.
            done = await spawn.run((parser, "-Kr"), stdin=PROFILE.encode(), timeout_s=LOAD_S)
        except OperationError as error:
            return error.message
        if done.returncode:
            return f"{parser} could not load profile {DEFAULT_APPARMOR_PROFILE}: {done.stderr_text()}"
        log.info("loaded AppArmor profile %s", DEFAULT_APPARMOR_PROFILE)
        return ""


def _profiles(path: Path) -> frozenset[str] | None:
    """The names in the kernel's list, whose lines are `name (mode)`; None where it cannot be read."""
    try:
        return frozenset(line.rpartition(" (")[0] for line in path.read_text().splitlines())
    except OSError:
        return None


def _which(path: str) -> str | None:
    return shutil.which(PARSER, path=path)
