"""What the command of a simulated container does: how long it runs, how it ends and what it prints."""

import shlex
from collections.abc import Mapping
from typing import Any

from crio_core.sim.profiles import MS, S
from crio_core.sim.world import NEVER_NS, Life

SIGKILL_CODE = 137
SIGTERM_CODE = 143
CRASH_CODE = 139
SHORT_NS = 3 * MS

LIFE_ANNOTATION = "simulate.crio/life"
"""An annotation of a container that stands for its command, where a handler lets it through: `exit 3`."""


def life_of(args: tuple[str, ...]) -> Life:
    """What a command does on a simulated node.

    `sleep SECONDS|inf`, `exit CODE`, `true`, `false`, `echo WORDS`, `crash`, `deaf` (ignores its stop signal), `slow
    SECONDS` (takes that long to stop), `stuck SECONDS|inf` (survives SIGKILL that long); anything else runs until it is
    stopped.
    """
    word, value = (args[0].rpartition("/")[2], args[1] if len(args) > 1 else "") if args else ("", "")
    amount = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
    time_ns = NEVER_NS if amount is None else amount * S
    match word:
        case "sleep":
            return Life(ends_after_ns=time_ns)
        case "echo" | "true":
            return Life(ends_after_ns=SHORT_NS)
        case "false":
            return Life(ends_after_ns=SHORT_NS, code=1)
        case "exit":
            return Life(ends_after_ns=SHORT_NS, code=(amount or 0) & 255)
        case "crash":
            return Life(ends_after_ns=SHORT_NS, code=CRASH_CODE)
        case "deaf":
            return Life(deaf=True)
        case "slow":
            return Life(term_ns=time_ns)
        case "stuck":
            return Life(stuck_ns=time_ns)
        case _:
            return Life()


def words_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """What a container does: what its annotation says, else its command; of a shell script the last command."""
    told = spec.get("annotations", {}).get(LIFE_ANNOTATION)
    return unwrapped(_split(told) if told else tuple(spec["process"]["args"]))


def unwrapped(words: tuple[str, ...]) -> tuple[str, ...]:
    """The last command of what a shell is told to run; other commands are as they are."""
    if len(words) == 3 and words[0].rpartition("/")[2] in ("sh", "bash", "ash") and words[1] == "-c":
        words = _split(words[2].replace("&&", ";").rstrip("; \n").rpartition(";")[2]) or words
    return words


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError:  # A quote that is not closed.
        return tuple(text.split())


def said_by(words: tuple[str, ...]) -> bytes:
    """What a command on a simulated node prints: `echo WORDS` prints them, everything else nothing."""
    if not words or words[0].rpartition("/")[2] != "echo":
        return b""
    return " ".join(words[1:]).encode("utf-8", "replace") + b"\n"
