"""Writes `spec/lifecycles/`: one diagram and one table for each machine, from the tables that the code executes.

python -m scripts.lifecycles [DIRECTORY]
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import crio_core.lifecycle
from crio_core.lifecycle.engine import Lifecycle


def discover() -> tuple[Lifecycle, ...]:  # type: ignore[type-arg]
    """Every machine of the core, by name: whatever a module of `crio_core.lifecycle` defines."""
    found: dict[str, Lifecycle] = {}  # type: ignore[type-arg]
    for info in pkgutil.iter_modules(crio_core.lifecycle.__path__):
        module = importlib.import_module(f"crio_core.lifecycle.{info.name}")
        for value in vars(module).values():
            if isinstance(value, Lifecycle):
                found[value.name] = value
    return tuple(found[name] for name in sorted(found))


def render(machine: "Lifecycle") -> str:  # type: ignore[type-arg]
    """A Mermaid state diagram and the same as a table, in the order of the states' enumeration."""
    order = {state: index for index, state in enumerate(machine.states)}
    rows = sorted(machine.table.items(), key=lambda row: (order[row[0][0]], row[0][1].__name__))
    lines = [f"# {machine.name}", "", (sys.modules[_module(machine)].__doc__ or "").strip(), ""]
    lines += ["```mermaid", "stateDiagram-v2", f"    [*] --> {machine.initial.value}"]
    labels: dict[tuple[str, str], list[str]] = {}
    for (state, event), to in rows:
        if state is not to:
            labels.setdefault((state.value, to.value), []).append(event.__name__)
    lines += [f"    {source} --> {to}: {' | '.join(events)}" for (source, to), events in labels.items()]
    lines += [f"    {state.value} --> [*]" for state in machine.states if state in machine.final]
    lines += ["```", "", "| state | event | next state |", "|---|---|---|"]
    lines += [f"| {state.value} | {event.__name__} | {to.value} |" for (state, event), to in rows]
    return "\n".join(lines) + "\n"


def _module(machine: "Lifecycle") -> str:  # type: ignore[type-arg]
    return next(
        name
        for name, module in sorted(sys.modules.items())
        if name.startswith("crio_core.lifecycle.") and machine in vars(module).values()
    )


def main() -> None:
    """Write every page; a page whose machine is gone goes too."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "spec/lifecycles")
    directory.mkdir(parents=True, exist_ok=True)
    pages = {f"{machine.name}.md": render(machine) for machine in discover()}
    for stale in {path.name for path in directory.glob("*.md")} - set(pages):
        (directory / stale).unlink()
    for name, text in pages.items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main()
