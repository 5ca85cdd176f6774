"""The configuration as TOML: the effective one, and the commented default.

Both can be read again: the first gives the same configuration, the second too once its `#` before a key is removed.
"""

import textwrap
from collections.abc import Iterable

import tomli_w

from crio_server.config.handler import HANDLER_OPTIONS, RUNTIMES_TABLE, RuntimeHandler
from crio_server.config.option import Option
from crio_server.config.options import OPTIONS, Config

TEXT_COLUMNS = 100
TABLE_DOCS = {
    "crio": "Where things are kept.",
    "crio.api": "How clients reach the server.",
    "crio.runtime": "How containers are run.",
    "crio.image": "Where images come from.",
    "crio.network": "How pods are connected.",
    "crio.metrics": "What the server tells about itself.",
}
LIVE = "Read again at SIGHUP."
HEADER = """\
# Configuration of crio. Every line that is commented out shows the default.
#
# Files in the drop-in directory (crio.conf.d/*.conf, in the order of their names) override this file, environment
# variables override files, and flags override everything. `crio config` prints what counts in the end.
"""


def to_toml(config: Config) -> str:
    """A whole configuration, every key written out."""
    parts = []
    for table, rows in by_table().items():
        entries = "".join(_entry(row, getattr(config, row.name)) for row in rows)
        parts.append(f"[{table}]\n{entries}")
    parts.extend(f"[{_handler_table(handler)}]\n{_handler_entries(handler)}" for handler in config.runtimes)
    return "\n".join(parts)


def default_toml() -> str:
    """The commented default, for /etc/crio/crio.conf."""
    default = Config()
    parts = [HEADER]
    for table, rows in by_table().items():
        parts.append(f"{_comment(TABLE_DOCS[table])}[{table}]\n")
        parts.extend(_comment(describe(row)) + _commented_out(_entry(row, getattr(default, row.name))) for row in rows)
    keys = "\n".join(f"{row.key}: {row.doc}" for row in HANDLER_OPTIONS)
    about = f"OCI runtimes, by the name under which a pod asks for them. Each has a table of its own:\n{keys}\n{LIVE}"
    entries = f"[{_handler_table(default.runtimes[0])}]\n{_handler_entries(default.runtimes[0])}"
    parts.append(_comment(about) + _commented_out(entries))
    return "\n".join(parts)


def by_table() -> dict[str, list[Option]]:
    """The options by TOML table, both in the order of the source."""
    tables: dict[str, list[Option]] = {}
    for row in OPTIONS:
        tables.setdefault(row.table, []).append(row)
    return tables


def describe(row: Option) -> str:
    """What an option does, and whether a running server takes a change over."""
    sentences = [row.doc]
    if row.follows:
        source, suffix = row.follows
        sentences.append(f"Default: {{{source}}}{suffix}.")
    if row.live:
        sentences.append(LIVE)
    return " ".join(sentences)


def _entry(row: Option, value: object) -> str:
    return tomli_w.dumps({row.key: row.kind.write(value)})


def _handler_table(handler: RuntimeHandler) -> str:
    """The name of the handler's table, the name quoted where TOML asks for it."""
    key = tomli_w.dumps({handler.name: 0}).partition(" = ")[0]
    return f"{RUNTIMES_TABLE}.{key}"


def _handler_entries(handler: RuntimeHandler) -> str:
    return "".join(_entry(row, getattr(handler, row.name)) for row in HANDLER_OPTIONS)


def _comment(text: str) -> str:
    lines: Iterable[str] = (line for block in text.splitlines() for line in textwrap.wrap(block, TEXT_COLUMNS))
    return "".join(f"# {line}\n" for line in lines)


def _commented_out(toml: str) -> str:
    return "".join(f"#{line}\n" for line in toml.splitlines())
