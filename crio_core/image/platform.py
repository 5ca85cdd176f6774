"""Which of an index's images fits this machine (OCI image-spec, image-index.md, platform).

Variants are ordered: a machine runs its own variant and the older ones, and takes the newest that it can run.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol, TypeVar

from crio_core.values import dataclass

_MACHINES = {
    "x86_64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "arm64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_AMD64_LEVELS = (
    ("v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"),
    ("v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"),
    ("v4", "avx512bw avx512cd avx512dq avx512f avx512vl"),
)
"""The levels of x86-64 above the first, by what Linux calls the features that each adds (System V ABI, x86-64)."""
_DEFAULT_VARIANT = {"arm": "v7", "arm64": "v8", "amd64": "v1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """An operating system and a machine, in the words that Go uses."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def normalised(self) -> "Platform":
        """The same platform in Go's words, lower-case."""
        architecture, variant = _MACHINES.get(self.architecture.lower(), (self.architecture.lower(), ""))
        return replace(
            self,
            os=self.os.lower(),
            architecture=architecture,
            variant=self.variant.lower() or (variant if architecture == "arm" else ""),
        )


class HasPlatform(Protocol):
    """Anything that may say which platform it is for."""

    @property
    def platform(self) -> Platform | None:
        """None when it does not say."""


Entry = TypeVar("Entry", bound=HasPlatform)


def platform_of_machine(machine: str, features: frozenset[str] = frozenset()) -> Platform:
    """The platform of a kernel's machine name, such as `x86_64`.

    Args:
        machine: As `uname -m` says it.
        features: What the processor can, in the words of /proc/cpuinfo; only x86-64 has variants by them.
    """
    architecture, variant = _MACHINES.get(machine.lower(), (machine.lower(), ""))
    for level, needed in _AMD64_LEVELS if architecture == "amd64" and features else ():
        if not features.issuperset(needed.split()):
            break
        variant = level
    return Platform(os="linux", architecture=architecture, variant=variant)


def fitness(offered: Platform, wanted: Platform) -> int | None:
    """How well `offered` runs on `wanted`: higher is better, None is not at all."""
    if offered.os != wanted.os or offered.architecture != wanted.architecture:
        return None
    default = _DEFAULT_VARIANT.get(wanted.architecture, "")
    have, want = offered.variant or default, wanted.variant or default
    if have == want:
        return 1000
    have_level, want_level = _level(have), _level(want)
    if have_level is None or want_level is None or have_level > want_level:
        return None
    return have_level


def choose(entries: Iterable[Entry], wanted: Platform) -> Entry | None:
    """The best entry for this machine: the first of the fittest, else the only one that does not say its platform."""
    best: Entry | None = None
    best_fitness = -1
    silent: list[Entry] = []
    for entry in entries:
        if entry.platform is None:
            silent.append(entry)
            continue
        fit = fitness(entry.platform, wanted)
        if fit is not None and fit > best_fitness:
            best, best_fitness = entry, fit
    if best is None and len(silent) == 1:
        return silent[0]
    return best


def _level(variant: str) -> int | None:
    digits = variant.removeprefix("v")
    return (
        int(digits) if variant.startswith("v") and digits.isascii() and digits.isdigit() and len(digits) < 3 else None
    )
