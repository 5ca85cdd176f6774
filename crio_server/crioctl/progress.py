"""What a person sees while an image is pulled: on a terminal a bar for each layer, elsewhere a line now and then.

CRI's PullImage says nothing until it is done, so elapsed time is what every server can show. A server that tells more
does so through a `Detail`: a coroutine function that is asked for news of the layers at every refresh.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO, TypeVar

from crio_server.crioctl.text import clean, size

if TYPE_CHECKING:
    from rich.progress import Progress

REFRESH_S = 0.1
PLAIN_EVERY_S = 5.0
BAR_CHARS = 32
LAYERS_MAX = 256
"""Layers of one pull that are shown."""
NAME_CHARS = 12
STEPS = ("waiting", "fetching", "applying", "done")
_LINES_APART = 3
"""Lines of a terminal that are no bars: the label, and room for the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """How far a layer has come; `step` is one of `STEPS`."""

    name: str
    step: str
    received_bytes: int
    total_bytes: int
    bytes_per_s: int = 0

    def __str__(self) -> str:
        if self.step != "fetching":
            return f"{self.step}, {size(self.total_bytes)}"
        rate = f", {size(self.bytes_per_s)}/s" if self.bytes_per_s else ""
        return f"{self.step}, {size(self.received_bytes)} of {size(self.total_bytes)}{rate}"


Detail = Callable[[], Awaitable[tuple[Layer, ...]]]
Result = TypeVar("Result")


def layers_of(text: str) -> tuple[Layer, ...]:
    """The layers of a pull, in the manifest's order; none when the words are not those of a server that tells.

    Args:
        text: What the server says under `pulls`, JSON: a list of pulls, of which the first is shown.
    """
    try:
        return tuple(
            Layer(
                name=str(one["digest"]).rpartition(":")[2][:NAME_CHARS],
                step=STEPS[STEPS.index(one["step"])],
                received_bytes=int(one["receivedBytes"]),
                total_bytes=int(one["totalBytes"]),
                bytes_per_s=int(one.get("bytesPerS", 0)),
            )
            for one in json.loads(text)[0]["layers"][:LAYERS_MAX]
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return ()


async def _no_detail() -> tuple[Layer, ...]:
    return ()


async def shown(work: Awaitable[Result], label: str, detail: Detail = _no_detail, out: TextIO | None = None) -> Result:
    """Wait for `work` and show that it goes on; nothing is printed on standard output.

    Args:
        label: What is being done, such as `Pulling redis:alpine`.
        detail: Asked for news; an empty answer is none.
        out: Where to show it; standard error when not given.
    """
    stream = out or sys.stderr
    task = asyncio.ensure_future(work)
    view: _View = _Bars(clean(label), stream) if stream.isatty() else _Lines(clean(label), stream)
    try:
        while not (await asyncio.wait((task,), timeout=REFRESH_S))[0]:
            view.show(await detail())
        return task.result()
    finally:
        view.end()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


class _View(Protocol):
    def show(self, layers: tuple[Layer, ...]) -> None:
        """Show the time and, unless it is empty, the news."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


class _Lines:
    """For a file or a pipe: a line when a layer comes to another step, and of what is under way every few seconds."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label = label
        self._stream = stream
        self._began_s = self._said_s = time.monotonic()
        self._steps: dict[str, str] = {}
        self._say(label)

    def show(self, layers: tuple[Layer, ...]) -> None:
        now_s = time.monotonic()
        due = now_s - self._said_s >= PLAIN_EVERY_S
        if due:
            self._said_s = now_s
            self._say(f"{self._label}: {now_s - self._began_s:.0f} s")
        for layer in layers:
            before = self._steps.get(layer.name, "waiting")
            self._steps[layer.name] = layer.step
            if layer.step != before or (due and layer.step == "fetching"):
                self._say(f"{layer.name}: {layer}")

    def end(self) -> None:
        pass

    def _say(self, text: str) -> None:
        print(clean(text), file=self._stream, flush=True)


class _Bars:
    """For a terminal. What is shown goes away at the end: the command then prints what came of it."""

    def __init__(self, label: str, stream: TextIO) -> None:
        # Only here: it takes longer to load than most commands take.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(file=stream)
        self._head = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            BarColumn(BAR_CHARS),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            transient=True,
            auto_refresh=False,
        )
        self._label = self._head.add_task(label, total=None, words="")
        self._bars: dict[str, int] = {}
        self._head.start()

    def show(self, layers: tuple[Layer, ...]) -> None:
        progress: Progress = self._head
        for layer in layers:
            if layer.name not in self._bars:
                self._bars[layer.name] = progress.add_task(clean(layer.name), total=1, words="", visible=False)
            progress.update(
                self._bars[layer.name],  # type: ignore[arg-type]
                completed=layer.received_bytes,
                total=max(layer.total_bytes, 1),
                words=str(layer),
            )
        if layers:
            self._fit(layers)
        progress.refresh()

    def _fit(self, layers: tuple[Layer, ...]) -> None:
        """Leave out what is done and what waits where the terminal has not enough lines."""
        room = max(self._console.height - _LINES_APART, 1)
        order = ("applying", "fetching", "waiting", "done")
        first = sorted(layers, key=lambda one: order.index(one.step))[:room]
        seen = {one.name for one in first}
        for name, bar in self._bars.items():
            self._head.update(bar, visible=name in seen)  # type: ignore[arg-type]
        received, total = sum(one.received_bytes for one in layers), sum(one.total_bytes for one in layers)
        self._head.update(
            self._label, completed=received, total=max(total, 1), words=f"{size(received)} of {size(total)}"
        )

    def end(self) -> None:
        self._head.stop()
