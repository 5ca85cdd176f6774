"""The reference page of the configuration, docs/configuration.md: `python -m crio_server.config.reference > FILE`."""

import sys

from crio_server.config.elsewhere import MISSING, MISSING_HANDLER_KEYS
from crio_server.config.handler import HANDLER_OPTIONS, RUNTIMES_TABLE, RuntimeHandler
from crio_server.config.layers import HANDLER_FLAG_FORM, INHERIT
from crio_server.config.load import CONFIG_DIR, CONFIG_FILE, FILE_BYTES_MAX, UNTRUSTED
from crio_server.config.option import Option
from crio_server.config.options import Config
from crio_server.config.render import LIVE, TABLE_DOCS, by_table, describe

INTRODUCTION = f"""\
# Configuration

*Generated from `crio_server/config/` by `python -m crio_server.config.reference`; a test compares the two.*

`crio` reads, each overriding the ones before it:

1. its defaults;
2. `{CONFIG_FILE}` (another file: `-c`, `--config`, `$CONTAINER_CONFIG`; an empty name reads none);
3. `{CONFIG_DIR}/*.conf` in the order of their names (another directory: `-d`, `--config-dir`, `$CONTAINER_CONFIG_DIR`);
4. environment variables;
5. flags.

Files are TOML, with the tables and keys of CRI-O, at most {FILE_BYTES_MAX // 1024} KiB each. A list replaces the
list of an earlier source, and a runtime handler's table replaces the earlier table of the same name. In flags and
variables, the items of a list are separated by commas, and the flag of a list may be repeated. A switch is `--x` or
`--x=true`, `--no-x` or `--x=false`.

- `crio config` prints what counts in the end, as TOML that can be read again; `crio config --default` prints the
  defaults with comments.
- A key that nobody knows is not read, and a warning names the file and the key. A key that only CRI-O knows is not
  read either, with a warning that it has no effect here.
- A value of the wrong type, or out of range, stops the server with the file, the key, the value and what was expected;
  everything that is wrong is named at once.
- SIGHUP reads all sources again. If anything in them is wrong, the server keeps what it has and says why. Otherwise it
  logs every difference: options marked *live* take the new value, the others are named and keep the old one until a
  restart.
"""
OPTION_COLUMNS = "| key | default | flag, variable | meaning |\n|---|---|---|---|\n"
HANDLER_COLUMNS = "| key | default | meaning |\n|---|---|---|\n"
HANDLER_TEXT = f"""
## [{RUNTIMES_TABLE}.NAME]

One OCI runtime, under the name by which a pod asks for it (its RuntimeClass). {LIVE}
On the command line: `--runtimes {HANDLER_FLAG_FORM}`, in the environment
`$CONTAINER_RUNTIMES`.

"""
_LEGACY_ROWS = (
    (
        "`crio.runtime.runtime`, `--runtime PATH`",
        "a handler named after the program, which becomes `default_runtime` unless that is given as well",
    ),
    ("`crio.runtime.runtime_untrusted_workload`", f"the handler `{UNTRUSTED}` with that program, type `vm`"),
    ('`crio.runtime.default_workload_trust = "untrusted"`', f'`default_runtime = "{UNTRUSTED}"`'),
    ("`crio.network.plugin_dir`", "one more entry of `plugin_dirs`"),
    ("`--debug`", "`--log-level debug`"),
    (
        f"`{RUNTIMES_TABLE}.NAME.{INHERIT} = true`",
        "`runtime_path`, `runtime_type` and `runtime_root` of the default runtime",
    ),
)


def reference() -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION]
    default = Config()
    for table, rows in by_table().items():
        parts.append(f"\n## [{table}]\n\n{TABLE_DOCS[table]}\n\n{OPTION_COLUMNS}")
        parts.extend(_row(row, getattr(default, row.name)) for row in rows)
    parts.append(HANDLER_TEXT + HANDLER_COLUMNS)
    unnamed = RuntimeHandler(name="NAME")
    parts.extend(
        f"| `{row.key}` | {_value(row, getattr(unnamed, row.name))} | {_cell(row.doc)} |\n" for row in HANDLER_OPTIONS
    )
    parts.append("\n## Keys and flags of old files\n\n| key | read as |\n|---|---|\n")
    parts.extend(f"| {key} | {meaning} |\n" for key, meaning in _LEGACY_ROWS)
    parts.append("\n## Known to CRI-O, without effect here\n\n")
    for table in dict.fromkeys(row.table for row in MISSING):
        keys = ", ".join(f"`{row.key or row.flag}`" for row in MISSING if row.table == table)
        parts.append(f"- {f'[{table}]' if table else 'flags'}: {keys}\n")
    parts.append(f"- [{RUNTIMES_TABLE}.NAME]: {', '.join(f'`{key}`' for key in sorted(MISSING_HANDLER_KEYS))}\n")
    return "".join(parts)


def _row(row: Option, value: object) -> str:
    spellings = [f"`{flag}`" for flag in row.flags] + ([f"`${row.env}`"] if row.env else [])
    meaning = f"{describe(row)} Takes {row.kind.expected}.".replace(LIVE, "*Live.*")
    return f"| `{row.key}` | {_value(row, value)} | {' '.join(spellings)} | {_cell(meaning)} |\n"


def _value(row: Option, value: object) -> str:
    written = row.kind.write(value)
    if isinstance(written, list):
        return " ".join(f"`{_cell(item)}`" for item in written)
    text = str(written).lower() if isinstance(written, bool) else str(written)
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
