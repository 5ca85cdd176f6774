"""What one row of the table of options says, and how a dataclass field carries it."""

from dataclasses import field, fields, replace
from typing import Any, TypeVar

from crio_core.values import dataclass
from crio_server.config.kinds import Kind

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row of the table.

    Args:
        table: TOML table; empty for a key of a runtime handler.
        key: TOML key.
        kind: What values it takes.
        doc: What it does, in plain sentences.
        flags: Command-line spellings; none for options that only files have.
        env: Environment variable, or empty.
        live: Whether SIGHUP applies a change without a restart.
        follows: For a default that follows another option: that option and what is appended to it.
        name: The field of `Config`; filled in from the dataclass.
    """

    table: str
    key: str
    kind: Kind
    doc: str
    flags: tuple[str, ...] = ()
    env: str = ""
    live: bool = False
    follows: tuple[str, str] | None = None
    name: str = ""


def option(
    default: T,
    table: str,
    kind: Kind,
    doc: str,
    *,
    key: str = "",
    flags: str | None = None,
    env: str | None = None,
    live: bool = False,
    follows: tuple[str, str] | None = None,
) -> T:
    """A dataclass field that is an option; flag and variable default to the key in CRI-O's spelling.

    Args:
        flags: Spellings, the long one first; empty for an option that has none.
        env: Variable; empty for an option that has none.
    """
    row = Option(
        table=table,
        key=key,
        kind=kind,
        doc=doc,
        flags=() if flags is None else tuple(flags.split()),
        env="" if env is None else env,
        live=live,
        follows=follows,
    )
    return field(
        default=default, metadata={"option": row, "flags_given": flags is not None, "env_given": env is not None}
    )


def rows(owner: type[Any]) -> tuple[Option, ...]:
    """The rows of a dataclass whose fields were made by `option`, in their order."""
    found = []
    for column in fields(owner):
        row: Option | None = column.metadata.get("option")
        if row is None:
            continue
        key = row.key or column.name
        row = replace(row, key=key, name=column.name)
        if row.table and not column.metadata["flags_given"]:
            row = replace(row, flags=("--" + key.replace("_", "-"),))
        if row.table and not column.metadata["env_given"]:
            row = replace(row, env="CONTAINER_" + key.upper())
        found.append(row)
    return tuple(found)
