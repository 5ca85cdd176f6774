"""Recordings of a node: what it was told, line by line, and a fingerprint of each effect that came out.

A recording is a list of segments. Each begins with a line that has the settings and the state of the node at that
moment, so that a bounded ring and a rotated file can be replayed from wherever they begin. Replaying tells a new node
the same and compares the fingerprints: the core is deterministic, so a difference means another version of the core, or
a bug.

Questions (lists, statuses) change nothing and are only counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

from crio_core import effects as fx
from crio_core import events as ev
from crio_core.codec import dump_line, from_values, load_line, to_values
from crio_core.errors import Code, LocalError, OperationError
from crio_core.node import QUESTIONS, Node, Settings, explain
from crio_core.node.checkpoint import Checkpoint, restore, skip_answers
from crio_core.redact import Mask, no_value
from crio_core.values import dataclass

FORMAT = 2
DIFFERENCES_MAX = 20
"""Steps that differ until a replay ends: after the first, the rest usually follows."""
FINGERPRINT_BYTES = 8

Fingerprint = tuple[int, str, str, str]
"""An effect: its id, its lane, its kind, and a digest of all that is no secret in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A step whose replay ordered something else than the record says."""

    number: int
    event: str
    recorded: tuple[Fingerprint, ...]
    replayed: tuple[Fingerprint, ...]

    def __str__(self) -> str:
        lines = [f"event {self.number} ({self.event}):"]
        lines += [f"  only recorded: {_shown(one)}" for one in self.recorded if one not in self.replayed]
        lines += [f"  only replayed: {_shown(one)}" for one in self.replayed if one not in self.recorded]
        return "\n".join(lines if len(lines) > 1 else [*lines, "  the same effects in another order"])


def _shown(one: Fingerprint) -> str:
    return f"effect {one[0]} {one[2]} in lane {one[1] or '(none)'} ({one[3]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How a replay went; `node` is as it was after the last event, `version` that of the program that recorded."""

    node: Node
    version: str
    events: int
    last: int
    differences: tuple[Difference, ...]


def is_question(event: ev.Event) -> bool:
    """Whether an event asks and changes nothing."""
    return isinstance(event, ev.CallArrived) and type(event.request) in QUESTIONS


def fingerprints(effects: Iterable[fx.Effect]) -> tuple[Fingerprint, ...]:
    """What is compared of effects: no value of an environment variable has a part in it."""
    return tuple(_fingerprint(one) for one in effects)


def _fingerprint(effect: fx.Effect) -> Fingerprint:
    line = dump_line(to_values(effect.order, no_value))
    digest = blake2b(line, digest_size=FINGERPRINT_BYTES).hexdigest()
    return (effect.id, effect.lane, type(effect.order).__name__, digest)


# --- writing ------------------------------------------------------------------------------------------------------


def segment_line(version: str, settings: Settings, checkpoint: Checkpoint, mask: Mask) -> bytes:
    """The line that begins a segment; `version` is that of the program."""
    state = {
        "scalars": to_values(checkpoint.scalars, mask),
        "tables": to_values(checkpoint.tables, mask),
        "history": to_values(checkpoint.history, mask),
    }
    return dump_line({"format": FORMAT, "version": version, "settings": to_values(settings, mask), "state": state})


def settings_line(settings: Settings, mask: Mask) -> bytes:
    """The line that says that the node decides by other settings from here on."""
    return dump_line({"reloaded": to_values(settings, mask)})


def step_line(number: int, asked: int, event: ev.Event, effects: tuple[fx.Effect, ...], mask: Mask) -> bytes:
    """The line of one step.

    Args:
        number: Counts the events since the recording began.
        asked: How many questions were answered since the line before.
    """
    line = {"n": number, "event": to_values(event, mask), "effects": fingerprints(effects)}
    return dump_line({**line, "asked": asked} if asked else line)


# --- reading ------------------------------------------------------------------------------------------------------


def replay(lines: Iterable[bytes], *, until: int | None = None) -> Replayed:
    """Run a recording through the core.

    Args:
        until: The number of the last event to replay; None for all.

    Raises:
        OperationError: It is no recording, or one that this version cannot read.
    """
    node: Node | None = None
    version = ""
    events = last = 0
    differences: list[Difference] = []
    for line_number, values in enumerate(_parsed(lines), 1):
        try:
            if "format" in values:
                node, version = _begin(values), str(values["version"])
            elif node is None:
                raise LocalError("it does not begin with a segment line")
            elif "reloaded" in values:
                node.reload(from_values(values["reloaded"]))
            else:
                if until is not None and values["n"] > until:
                    break
                difference = _replay_step(node, values)
                events, last = events + 1, values["n"]
                if difference is not None:
                    differences.append(difference)
        except (LocalError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise _unreadable(f"line {line_number}: {error}") from error
        if len(differences) >= DIFFERENCES_MAX:
            break
    if node is None:
        raise _unreadable("it is empty")
    return Replayed(node=node, version=version, events=events, last=last, differences=tuple(differences))


def _unreadable(why: str) -> OperationError:
    return OperationError(Code.INVALID_ARGUMENT, "RECORDING_UNREADABLE", f"not a recording that can be replayed: {why}")


def _parsed(lines: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    """Each line's values. A last line that was cut off, as by a crash, is left out."""
    previous: bytes | None = None
    for line in lines:
        if previous is not None:
            yield _values(previous)
        previous = line
    if previous is not None and previous.endswith(b"\n"):
        yield _values(previous)


def _values(line: bytes) -> Mapping[str, Any]:
    try:
        values = load_line(line)
    except LocalError as error:
        raise _unreadable(str(error)) from error
    if not isinstance(values, dict):
        raise _unreadable("a line is no object")
    return values


def _begin(values: Mapping[str, Any]) -> Node:
    if values["format"] != FORMAT:
        raise LocalError(f"format {values['format']!r}, this version reads {FORMAT}")
    state = values["state"]
    checkpoint = Checkpoint(
        scalars=from_values(state["scalars"]),
        tables=from_values(state["tables"]),
        history=from_values(state["history"]),
    )
    return restore(from_values(values["settings"]), checkpoint)


def _replay_step(node: Node, values: Mapping[str, Any]) -> Difference | None:
    skip_answers(node, values.get("asked", 0))
    event = from_values(values["event"])
    recorded = tuple((one[0], one[1], one[2], one[3]) for one in values["effects"])
    try:
        replayed = fingerprints(node.step(event))
    except LocalError as error:
        replayed = ((0, "", f"refused: {error}", ""),)
    if replayed == recorded:
        return None
    return Difference(number=values["n"], event=_event_name(event), recorded=recorded, replayed=replayed)


def _event_name(event: ev.Event) -> str:
    match event:
        case ev.CallArrived():
            return type(event.request).__name__
        case ev.EffectEnded():
            return f"outcome {type(event.outcome).__name__} of effect {event.effect_id}"
        case ev.TimerFired():
            return f"timer {event.timer_id}"
        case _:
            return type(event).__name__


def explanations(node: Node, wanted: str) -> tuple[Mapping[str, Any], ...]:
    """What a node has to say of everything that has this id, start of an id, or name; all that is not listed for ''."""
    about = explain.every(node._state)
    if not wanted:
        return about
    named = [one for one in about if wanted in (one["name"], one["id"], one["name"].partition("/")[2])]
    started = [one for one in about if one["id"] and one["id"].removeprefix("sha256:").startswith(wanted)]
    return tuple(named or started)
