"""One source of configuration, read into a layer: what it sets, and what is wrong with it.

Nothing here decides which source wins; `load` does.
"""

from collections.abc import Mapping
from dataclasses import field
from pathlib import PurePosixPath

from crio_core.values import dataclass
from crio_server.config.elsewhere import MISSING_HANDLER_KEYS, MISSING_KEYS
from crio_server.config.handler import HANDLER_NAME, HANDLER_OPTIONS, RUNTIMES_TABLE
from crio_server.config.kinds import Choice, FilePath, Kind, ListOf, Refused, Switch, Text
from crio_server.config.option import Option
from crio_server.config.options import OPTIONS

VALUE_SHOWN_CHARS_MAX = 120
HANDLERS_MAX = 64
WARNINGS_MAX = 200
INHERIT = "inherit_default_runtime"
"""Handler key that is resolved when all layers are known: take path, type and root from the default runtime."""

BY_KEY: Mapping[tuple[str, str], Option] = {(row.table, row.key): row for row in OPTIONS}
BY_NAME: Mapping[str, Option] = {row.name: row for row in OPTIONS}
HANDLER_BY_KEY: Mapping[str, Option] = {row.key: row for row in HANDLER_OPTIONS}
TABLES = frozenset({row.table for row in OPTIONS} | {table for table, _ in MISSING_KEYS})

_COMMAND = Text(pattern=r"[^\s/]+|/.*", form="an absolute path, or a name in $PATH")
LEGACY: Mapping[tuple[str, str], Kind] = {
    ("crio.runtime", "runtime"): _COMMAND,
    ("crio.runtime", "runtime_untrusted_workload"): _COMMAND,
    ("crio.runtime", "default_workload_trust"): Choice(("", "trusted", "untrusted")),
    ("crio.network", "plugin_dir"): FilePath(may_be_empty=True),
}
"""Keys of CRI-O before 1.14, still understood; `load` says in which of today's options they end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigWarning:
    """Something that does not stop the server, and that its owner should know.

    Args:
        source: The file, flag or environment variable.
        key: The key with its table, or empty when it is about the source itself.
        message: What is the matter.
    """

    source: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.message) if part)


@dataclass(slots=True, kw_only=True)
class Layer:
    """What one source sets; filled while it is read.

    Args:
        source: The file, or `flags`, or `environment`.
        values: By field of `Config`.
        handlers: By handler name, each its values by field of `RuntimeHandler`.
        legacy: By key of `LEGACY`.
        origins: Where each value came from, in words, by field or by `RUNTIMES_TABLE.NAME` or legacy key.
        warnings: What should be said.
        problems: What stops the server, as sentences.
    """

    source: str
    values: dict[str, object] = field(default_factory=dict)
    handlers: dict[str, dict[str, object]] = field(default_factory=dict)
    legacy: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    warnings: list[ConfigWarning] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def warn(self, key: str, message: str) -> None:
        if len(self.warnings) == WARNINGS_MAX:
            key, message = "", f"more than {WARNINGS_MAX} warnings; the rest is not shown"
        if len(self.warnings) <= WARNINGS_MAX:
            self.warnings.append(ConfigWarning(source=self.source, key=key, message=message))

    def refuse(self, where: str, value: object, expected: str) -> None:
        self.problems.append(problem(where, value, expected))


def problem(where: str, value: object, expected: str) -> str:
    """The one sentence in which every bad value is reported."""
    shown = repr(value)
    if len(shown) > VALUE_SHOWN_CHARS_MAX:
        shown = shown[:VALUE_SHOWN_CHARS_MAX] + "..."
    return f"{where}: {shown} is not valid: expected {expected}"


def layer_from_toml(source: str, document: Mapping[str, object]) -> Layer:
    """The layer of one parsed file."""
    layer = Layer(source=source)
    for key, value in document.items():
        if key == "crio" and isinstance(value, dict):
            _read_table(layer, "crio", value)
        elif key == "crio":
            layer.refuse(f"{source}: crio", value, "a table")
        else:
            layer.warn(key, "unknown key, not read: every key is under [crio]")
    return layer


def _read_table(layer: Layer, table: str, entries: Mapping[str, object]) -> None:
    for key, value in entries.items():
        path = f"{table}.{key}"
        where = f"{layer.source}: {path}"
        if (row := BY_KEY.get((table, key))) is not None:
            _read_value(layer, row.name, where, row.kind, value)
        elif path == RUNTIMES_TABLE or path in TABLES:
            if not isinstance(value, dict):
                layer.refuse(where, value, "a table")
            elif path == RUNTIMES_TABLE:
                _read_handlers(layer, value)
            else:
                _read_table(layer, path, value)
        elif (table, key) in LEGACY:
            _read_legacy(layer, key, where, LEGACY[table, key], value)
        elif (table, key) in MISSING_KEYS:
            layer.warn(path, "known to CRI-O, has no effect here")
        else:
            layer.warn(path, "unknown key, not read" + _guess(key, [row.key for row in OPTIONS if row.table == table]))


def _guess(key: str, known: list[str]) -> str:
    import difflib  # only a mistake pays for it

    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def _read_value(layer: Layer, name: str, where: str, kind: Kind, value: object) -> None:
    try:
        layer.values[name] = kind.read(value)
        layer.origins[name] = where
    except Refused as refused:
        layer.refuse(where, value if refused.value is None else refused.value, refused.expected)


def _read_legacy(layer: Layer, key: str, where: str, kind: Kind, value: object) -> None:
    try:
        text = str(kind.read(value))
    except Refused as refused:
        layer.refuse(where, value, refused.expected)
        return
    # The handler that it makes is named after the program.
    if text and (key != "runtime" or check_handler_name(layer, where, PurePosixPath(text).name)):
        layer.legacy[key] = text
        layer.origins[key] = where


def _read_handlers(layer: Layer, table: Mapping[str, object]) -> None:
    if len(table) > HANDLERS_MAX:
        layer.refuse(f"{layer.source}: {RUNTIMES_TABLE}", f"{len(table)} handlers", f"at most {HANDLERS_MAX}")
        return
    for name, entries in table.items():
        where = f"{layer.source}: {RUNTIMES_TABLE}.{name}"
        if not isinstance(entries, dict):
            layer.refuse(where, entries, "a table")
        elif check_handler_name(layer, where, name):
            layer.handlers[name] = _read_handler(layer, name, entries)
            layer.origins[f"{RUNTIMES_TABLE}.{name}"] = where


def check_handler_name(layer: Layer, where: str, name: str) -> bool:
    """Whether a handler may have this name; a problem is noted when it may not."""
    try:
        Text(pattern=HANDLER_NAME, form="letters, digits, dots, dashes and underscores", may_be_empty=False).read(name)
    except Refused as refused:
        layer.refuse(where, name, f"the name of a runtime handler ({refused.expected})")
        return False
    return True


def _read_handler(layer: Layer, name: str, entries: Mapping[str, object]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in entries.items():
        path = f"{RUNTIMES_TABLE}.{name}.{key}"
        kind: Kind | None = Switch() if key == INHERIT else None
        if key in HANDLER_BY_KEY:
            kind = HANDLER_BY_KEY[key].kind
        if kind is not None:
            try:
                values[key] = kind.read(value)
            except Refused as refused:
                at_fault = value if refused.value is None else refused.value
                layer.refuse(f"{layer.source}: {path}", at_fault, refused.expected)
        elif key in MISSING_HANDLER_KEYS:
            layer.warn(path, "known to CRI-O, has no effect here")
        else:
            layer.warn(path, "unknown key, not read" + _guess(key, list(HANDLER_BY_KEY)))
    return values


def layer_from_environment(environ: Mapping[str, str]) -> Layer:
    """The layer of the environment variables that belong to options (CRI-O: CONTAINER_*)."""
    layer = Layer(source="environment")
    for row in OPTIONS:
        if row.env and row.env in environ:
            _read_texts(layer, row, f"${row.env}", (environ[row.env],))
    if "CONTAINER_RUNTIMES" in environ:
        _read_handler_flags(layer, "$CONTAINER_RUNTIMES", (environ["CONTAINER_RUNTIMES"],))
    return layer


def layer_from_flags(flags: Mapping[str, tuple[str, ...]]) -> Layer:
    """The layer of the command line.

    Args:
        flags: Texts given, by field of `Config`; also `runtimes` and the legacy `runtime` and `debug`.
    """
    layer = Layer(source="command line")
    if flags.get("debug") == ("true",):
        layer.values["log_level"] = "debug"
        layer.origins["log_level"] = "--debug"
    for name, texts in flags.items():
        if (row := BY_NAME.get(name)) is not None:
            _read_texts(layer, row, row.flags[0], texts)
    if "runtimes" in flags:
        _read_handler_flags(layer, "--runtimes", flags["runtimes"])
    if "runtime" in flags:
        _read_legacy(layer, "runtime", "--runtime", _COMMAND, flags["runtime"][-1])
    return layer


def _read_texts(layer: Layer, row: Option, where: str, texts: tuple[str, ...]) -> None:
    try:
        layer.values[row.name] = row.kind.read_texts(texts)
        layer.origins[row.name] = where
    except Refused as refused:
        at_fault = ",".join(texts) if isinstance(row.kind, ListOf) else texts[-1]
        layer.refuse(where, at_fault if refused.value is None else refused.value, refused.expected)


HANDLER_FLAG_FORM = "NAME:PATH[:ROOT[:TYPE[:PRIVILEGED_WITHOUT_HOST_DEVICES]]]"


def _read_handler_flags(layer: Layer, where: str, texts: tuple[str, ...]) -> None:
    """Handlers in one line each; the two last parts that CRI-O takes (config path, least memory) have no effect."""
    for text in (part.strip() for part in ",".join(texts).split(",") if part.strip()):
        name, *parts = text.split(":")
        if not 1 <= len(parts) <= 6:
            layer.refuse(where, text, HANDLER_FLAG_FORM)
            continue
        if any(parts[4:]):
            layer.warn(where, f"config path and least memory, of {name}: known to CRI-O, have no effect here")
        if not check_handler_name(layer, where, name):
            continue
        values: dict[str, object] = {}
        keys = ("runtime_path", "runtime_root", "runtime_type", "privileged_without_host_devices")
        for key, part in zip(keys, parts, strict=False):
            try:
                if part:
                    values[key] = HANDLER_BY_KEY[key].kind.read_text(part)
            except Refused as refused:
                layer.refuse(f"{where}: {key} of {name}", part, refused.expected)
        layer.handlers[name] = values
        layer.origins[f"{RUNTIMES_TABLE}.{name}"] = where
