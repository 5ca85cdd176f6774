"""Printing: tables for people, JSON and YAML for machines, in the forms that crictl prints."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from crio_server.crioctl.text import clean

FORMATS = ("table", "json", "yaml")
COLUMN_GAP = "   "


def as_dict(message: Message) -> dict[str, Any]:
    """The JSON form of protobuf with camelCase names, and with empty fields present, as crictl prints it."""
    values: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return values


def info_values(info: Mapping[str, str]) -> dict[str, Any]:
    """The verbose information of a status; values that are JSON objects or lists are opened up."""
    return {key: _opened(info[key]) for key in sorted(info)}


def _opened(text: str) -> Any:
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text  # a server may put anything here
    return text.strip('"')


def print_data(data: Any, form: str) -> None:
    """Print a value as `json` or `yaml`."""
    click.echo(data_text(data, form))


def data_text(data: Any, form: str) -> str:
    """A value as `json` or `yaml`; what is no printable character is escaped in the form's own way."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    printable = text.replace("\n", "").isprintable()
    if form == "yaml":
        import yaml  # only for this output

        return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=printable)).rstrip("\n")
    return text if printable else json.dumps(data, indent=2)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines whose parts may come from pods: control characters are made visible, tabs stay."""
    text = "".join("\t".join(clean(part) for part in line.split("\t")) + "\n" for line in lines)
    click.echo(text, nl=False)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: coloured and fitted on a terminal, plain columns everywhere else."""
    cleaned = [tuple(clean(cell) for cell in row) for row in rows]
    if not sys.stdout.isatty():
        print_lines(plain_table(header, cleaned))
        return
    from rich.console import Console  # only for a terminal: it takes longer to load than a list takes to fetch
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=name.endswith("ID") or name in ("CONTAINER", "STATE"))
    for row in cleaned:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)


_STYLES = {"Running": "green", "Ready": "green", "Exited": "yellow", "NotReady": "yellow", "Unknown": "red"}


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The lines of a table with aligned columns."""
    table = [tuple(header), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        yield COLUMN_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def mapping_lines(title: str, values: Mapping[str, str]) -> list[str]:
    """The lines `Labels:` and `<tab>key -> value`, as CRI-O's crioctl printed them; nothing when empty."""
    return [f"{title}:", *(f"\t{key} -> {values[key]}" for key in sorted(values))] if values else []
