"""What a person sees while an image is pulled: on a terminal one line that moves, elsewhere a line now and then.

CRI's PullImage says nothing until it is done, so elapsed time is what every server can show. A server that tells more
does so through a `Detail`: a coroutine function that is asked for a few words at every refresh.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TextIO, TypeVar

from crio_server.crioctl.text import clean, size

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
REFRESH_S = 0.1
PLAIN_EVERY_S = 5.0
BAR_CHARS = 24
_STEPS = {"fetching": "downloading", "applying": "unpacking", "applied": "done"}

Detail = Callable[[], Awaitable[str]]
Result = TypeVar("Result")


def of_layers(text: str) -> str:
    """One line about a pull's layers, with a bar: what came of what there is, the rate, and how many are at which step.

    Args:
        text: What the server says under `pulls`, JSON: a list of pulls, of which the first is shown.
    """
    try:
        layers = json.loads(text)[0]["layers"]
        total = sum(int(one["totalBytes"]) for one in layers)
        received = sum(int(one["receivedBytes"]) for one in layers)
        rate = sum(int(one.get("bytesPerS", 0)) for one in layers)
        steps = Counter(_STEPS.get(one["state"], "waiting") for one in layers)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    if not layers:
        return ""
    filled = BAR_CHARS * min(received, total) // total if total else BAR_CHARS
    counts = ", ".join(f"{count} {step}" for step, count in sorted(steps.items()))
    speed = f"  {size(rate)}/s" if rate else ""
    return f"[{'#' * filled}{'.' * (BAR_CHARS - filled)}] {size(received)} of {size(total)}{speed}  layers: {counts}"


async def _no_detail() -> str:
    return ""


async def shown(work: Awaitable[Result], label: str, detail: Detail = _no_detail, out: TextIO | None = None) -> Result:
    """Wait for `work` and show that it goes on; nothing is printed on standard output.

    Args:
        label: What is being done, such as `Pulling redis:alpine`.
        detail: Asked for what is known besides the time.
        out: Where to show it; standard error when not given.
    """
    stream = out or sys.stderr
    live = stream.isatty()
    started_s = time.monotonic()
    said_s = started_s
    task = asyncio.ensure_future(work)
    frame = 0
    if not live:
        print(clean(label), file=stream, flush=True)
    try:
        while not (await asyncio.wait((task,), timeout=REFRESH_S))[0]:
            now_s = time.monotonic()
            if live:
                words = f"{FRAMES[frame % len(FRAMES)]} {label}  {now_s - started_s:.1f} s  {await detail()}"
                print(f"\r{clean(words)}\x1b[K", end="", file=stream, flush=True)
                frame += 1
            elif now_s - said_s >= PLAIN_EVERY_S:
                said_s = now_s
                print(clean(f"{label}: {now_s - started_s:.0f} s  {await detail()}".rstrip()), file=stream, flush=True)
        return task.result()
    finally:
        if live:
            print("\r\x1b[K", end="", file=stream, flush=True)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
