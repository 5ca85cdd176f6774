"""What a new configuration changes on a running server.

SIGHUP reads all sources again. A bad one raises in `load`, and the server keeps what it has. A good one is compared
here: changes of live options are applied together, the others are named and wait for a restart.
"""

from dataclasses import replace

from crio_core.values import dataclass
from crio_server.config.handler import RUNTIMES_TABLE
from crio_server.config.options import OPTIONS, Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One option that differs.

    Args:
        name: Field of `Config`.
        key: Key with its table, as in a file.
        old: The value in use.
        new: The value read.
    """

    name: str
    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


def reload(old: Config, new: Config) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """What differs: first what a running server takes over, then what it refuses until it is restarted."""
    changes: list[Change] = []
    refused: list[Change] = []
    for row in OPTIONS:
        before, after = getattr(old, row.name), getattr(new, row.name)
        if before != after:
            live = row.live and (row.name != "default_runtime" or _handlers_are_live(old, new))
            change = Change(name=row.name, key=f"{row.table}.{row.key}", old=before, new=after)
            (changes if live else refused).append(change)
    (changes if _handlers_are_live(old, new) else refused).extend(_handler_changes(old, new))
    return tuple(changes), tuple(refused)


def apply_changes(old: Config, new: Config) -> Config:
    """The configuration of a running server after a reload: the new one where that is live, the old one elsewhere."""
    live = {row.name: getattr(new, row.name) for row in OPTIONS if row.live}
    if _handlers_are_live(old, new):
        return replace(old, **live, runtimes=new.runtimes)
    return replace(old, **live | {"default_runtime": old.default_runtime})


def _handlers_are_live(old: Config, new: Config) -> bool:
    """Monitor cgroups of handlers were checked against the new cgroup manager, which only a restart brings."""
    return old.cgroup_manager == new.cgroup_manager


def _handler_changes(old: Config, new: Config) -> tuple[Change, ...]:
    before = {handler.name: handler for handler in old.runtimes}
    after = {handler.name: handler for handler in new.runtimes}
    return tuple(
        Change(name="runtimes", key=f"{RUNTIMES_TABLE}.{name}", old=before.get(name), new=after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    )
