"""Explanations as clients get them: what the core knows, with what the host is doing for it right now."""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from crio_core import requests as rq
from crio_core.replies import Explained
from crio_io.driver import BUDGET_S, Caller
from crio_io.mounts import running_steps
from crio_io.spawn import running_programs

STEPS_MAX = 16
"""Steps and programs that are named with one effect."""
WORDS_CHARS_MAX = 300
_RECORDS = ("creating", "owing")


async def explanation(driver: Caller, kind: str, record_id: str) -> dict[str, str]:
    """The verbose information of one record: a map with the key `explain`."""
    answer = await driver.call(rq.Explain(kind=kind, id=record_id))
    assert isinstance(answer, Explained)
    return {"explain": orjson.dumps(_with_host(answer.about, record_id)).decode()}


async def pulls(driver: Caller, reference: str) -> dict[str, str]:
    """The verbose information of an image that is being pulled: a map with the key `pulls`, and none if it is not."""
    under_way = await pulls_of(driver, reference)
    return {"pulls": orjson.dumps(under_way).decode()} if under_way else {}


async def pulls_of(driver: Caller, reference: str = "") -> list[Any]:
    """Explanations of the pulls of a reference that are under way, or of all of them."""
    answer = await driver.call(rq.Explain(kind="pulls", id=reference))
    assert isinstance(answer, Explained)
    under_way = answer.about["pulls"]
    assert isinstance(under_way, list)
    return under_way


async def node_explanation(driver: Caller) -> Mapping[str, Any]:
    """What no list shows, by name: `creating`, `owing`, `departed`, `unsaved`, `owned`."""
    answer = await driver.call(rq.Explain(kind="node"))
    assert isinstance(answer, Explained)
    return {
        key: [_with_host(one, one["id"]) for one in value] if key in ("creating", "owing") else value
        for key, value in answer.about.items()
        if isinstance(value, list | dict)
    }


def _with_host(about: Mapping[str, Any], record_id: str) -> dict[str, Any]:
    return {**about, "waitsFor": [_wait(one, record_id) for one in about.get("waitsFor", ())]}


def _wait(wait: Mapping[str, Any], record_id: str) -> dict[str, Any]:
    """One thing that is waited for; the effect that runs has its budget, and the steps and programs that it is in."""
    found = dict(wait)
    if "waitsFor" in wait:
        owner = str(wait["about"]).partition(" ")[0]
        found["waitsFor"] = [_wait(one, owner) for one in wait["waitsFor"]]
    if wait.get("behind") == 0:
        found["budgetS"] = BUDGET_S
        found["steps"] = _steps(record_id)
    return found


def _steps(record_id: str) -> list[dict[str, Any]]:
    now_s = time.monotonic()
    steps: list[dict[str, Any]] = [
        {"what": one.name, "forS": now_s - one.started_s} for one in running_steps() if record_id in one.name
    ]
    steps += [
        {"what": " ".join(filter(None, one.words))[:WORDS_CHARS_MAX], "pid": one.pid, "forS": now_s - one.started_s}
        for one in running_programs()
        if any(record_id in word for word in one.words)
    ]
    return steps[:STEPS_MAX]
