"""What a container runs: arguments, environment, working directory (OCI runtime-spec, process)."""

from collections.abc import Iterable, Sequence

from crio_core.cri import ContainerConfig, KeyValue
from crio_core.errors import invalid
from crio_core.image.config import ImageConfig
from crio_core.oci.facts import HostFacts, Rlimit
from crio_core.oci.paths import clean_path, is_within, utf8

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

STRING_BYTES_MAX = 128 * 1024 - 1  # MAX_ARG_STRLEN of the kernel, for each argument and each variable
STRINGS_MAX = 65536
TOTAL_BYTES_MAX = 6 * 1024 * 1024  # what execve(2) takes at most, whatever the stack's limit

_RLIMIT_NAMES = "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
_RLIMITS = frozenset(_RLIMIT_NAMES.split())


def check_strings(field: str, strings: Sequence[str]) -> list[str]:
    """Strings that execve(2) can take, as a list of their own. What is wrong is quoted up to the first `=`: the value
    of a variable may be a secret, and messages are logged.
    """
    if len(strings) > STRINGS_MAX:
        raise invalid(field, f"{len(strings)} strings", f"at most {STRINGS_MAX}")
    total = 0
    for index, text in enumerate(strings):
        if "\0" in text:
            raise invalid(f"{field}[{index}]", _shown(text), "a string without NUL")
        size = len(text) if text.isascii() else len(utf8(f"{field}[{index}]", text))
        if size > STRING_BYTES_MAX:
            raise invalid(f"{field}[{index}]", _shown(text) + "...", f"at most {STRING_BYTES_MAX} bytes")
        total += size + 1
    if total > TOTAL_BYTES_MAX:
        raise invalid(field, f"{total} bytes", f"at most {TOTAL_BYTES_MAX} bytes")
    return list(strings)


def _shown(text: str) -> str:
    return text.partition("=")[0][:64]


def arguments(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """The command line: `command` stands for the image's entrypoint, and `args` for its cmd.

    A `command` also silences the image's cmd, which was written for another entrypoint (Kubernetes' rule).
    """
    words = config.command + config.args if config.command else image.entrypoint + (config.args or image.cmd)
    if not words or not words[0]:
        raise invalid("command", list(words), "a command, as neither the request nor the image names one")
    return check_strings("command", words)


def environment(
    layers: Iterable[Sequence[str]], envs: Sequence[KeyValue], *, hostname: str, home: str, terminal: bool
) -> list[str]:
    """The environment: defaults, then each layer of `NAME=value`, then the request's own; the last one wins.

    Args:
        layers: The configuration's and the image's variables. Entries that name nothing are dropped.
    """
    merged = {"PATH": DEFAULT_PATH}
    if terminal:
        merged["TERM"] = "xterm"
    if hostname:
        merged["HOSTNAME"] = hostname
    merged["HOME"] = home
    for layer in layers:
        for entry in layer:
            name, equals, value = entry.partition("=")
            if name and equals:
                merged[name] = value
    for index, pair in enumerate(envs):
        if not pair.key or "=" in pair.key:
            raise invalid(f"envs[{index}].key", pair.key, "a name without '='")
        merged[pair.key] = pair.value
    return check_strings("envs", [f"{name}={value}" for name, value in merged.items()])


def working_directory(config: ContainerConfig, image: ImageConfig) -> str:
    """The directory to start in, never one that leads out through an open descriptor (CVE-2024-21626)."""
    if config.working_dir:
        field, path = "working_dir", config.working_dir
    else:
        field, path = "working directory of the image", image.working_dir or "/"
        if not path.startswith("/"):
            path = "/" + path
    path = clean_path(field, path)
    if path != "/proc" and (is_within(path, "/proc") or is_within(path, "/dev/fd")):
        raise invalid(field, path, "a directory that is not below /proc or /dev/fd")
    return path


def rlimits(defaults: Sequence[Rlimit], host: HostFacts) -> list[dict[str, object]]:
    """The configured limits; no hard limit rises over the node's own where the node may not raise it."""
    ceilings = {} if host.can_raise_limits else {limit.name: limit.hard for limit in host.rlimits}
    found: dict[str, dict[str, object]] = {}
    for limit in defaults:
        name = limit.name.upper().removeprefix("RLIMIT_")
        if name not in _RLIMITS:
            raise invalid("default_ulimits", limit.name, "a limit of setrlimit(2), such as NOFILE")
        ceiling = ceilings.get(name, -1)
        hard = _least(limit.hard, ceiling)
        soft = _least(limit.soft, hard)
        found[name] = {"type": f"RLIMIT_{name}", "hard": _unsigned(hard), "soft": _unsigned(soft)}
    return list(found.values())


def _least(first: int, second: int) -> int:
    if first < 0 or second < 0:
        return max(first, second)
    return min(first, second)


def _unsigned(value: int) -> int:
    """The kernel's RLIM_INFINITY, all bits set, for -1."""
    return value if value >= 0 else 2**64 - 1
