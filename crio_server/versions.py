"""Which version ran last, and whether the machine was booted since.

Two files say it: one below the run directory, which a reboot removes, and one below the root, which outlives it. The
server writes both when it starts.
"""

from pathlib import Path

from crio_core.values import dataclass
from crio_server.commands.version import VERSION

PERSISTENT_NAME = "version"
"""The file below the root. CRI-O lets its place be chosen; here it is where the records are."""
VERSION_BYTES_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be removed, and why."""

    pods: bool
    images: bool
    why: str


def decide(version_file: str, persistent_file: str, version: str) -> Decision:
    """What the two files say.

    Args:
        version_file: The content of the one that a reboot removes; empty when it is not there.
        persistent_file: The content of the other; empty when it is not there.
        version: Of this program.
    """
    if version_file and _release(version_file) == _release(version):
        return Decision(pods=False, images=False, why="the version is the same and the machine was not rebooted")
    images = not persistent_file or _release(persistent_file) != _release(version)
    if not version_file:
        why = "the machine was rebooted, or no server has run yet"
    else:
        why = f"version {version_file} was running before, and this is {version}"
    return Decision(pods=True, images=images, why=why)


def _release(version: str) -> tuple[str, ...]:
    """The first two numbers: what is compatible has both of them."""
    return tuple(version.strip().strip('"').split(".")[:2])


def persistent_path(root: str) -> Path:
    """The file that outlives a reboot."""
    return Path(root) / PERSISTENT_NAME


def read_version(path: Path) -> str:
    """What a version file says; empty when there is none, or none that can be read."""
    try:
        with path.open("rb") as file:
            return file.read(VERSION_BYTES_MAX).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def write_versions(version_file: str, root: str) -> None:
    """Say that this version runs.

    Raises:
        OSError: As the kernel said.
    """
    for path in (Path(version_file), persistent_path(root)):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(f'"{VERSION}"\n')
        new.replace(path)
