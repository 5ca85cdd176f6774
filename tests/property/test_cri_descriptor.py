"""The compiled CRI descriptor says what the published facts of the API say, both ways.

A wrong number here is a runtime that misunderstands every kubelet, without any error: the wire carries numbers,
not names.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from crio_server.cri.v1 import api_grpc, api_pb2

FACTS = Path(__file__).resolve().parents[3] / "shared" / "facts" / "cri-v1.tsv"
ROW_FIELDS = 7
KIND_NAMES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def package_facts() -> tuple[str, frozenset[tuple[str, ...]]]:
    """The package and the rows of the fact table: kind, scope, name, number, label, type, note."""
    if not FACTS.exists():
        pytest.skip(f"the fact table is not at hand: {FACTS}")
    first, *rest = FACTS.read_text().splitlines()
    rows = []
    for line in rest:
        row = tuple(line.split("\t"))
        assert len(row) == ROW_FIELDS, f"a row of {len(row)} fields: {line!r}"
        rows.append(row)
    assert len(set(rows)) == len(rows), "the fact table says something twice"
    return first.removeprefix("# package "), frozenset(rows)


def scoped_name(full_name: str, package: str) -> str:
    return full_name.removeprefix(package + ".")


def field_type(field: FieldDescriptor, package: str) -> str:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = (field_type(entry.fields_by_name[name], package) for name in ("key", "value"))
        return f"map<{key},{value}>"
    if entry is not None:
        return scoped_name(entry.full_name, package)
    if field.enum_type is not None:
        # The table writes a type as its message's scope sees it: an enum of the message's own by its bare name.
        owner = field.containing_type
        own_scope = f"{owner.full_name}." if owner is not None else ""
        return scoped_name(field.enum_type.full_name.removeprefix(own_scope), package)
    return KIND_NAMES[field.type]


def field_label(field: FieldDescriptor) -> str:
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    return "repeated" if field.is_repeated and not is_map else ""


def enum_rows(enum: EnumDescriptor, package: str) -> Iterator[tuple[str, ...]]:
    for value in enum.values:
        yield ("enum", scoped_name(enum.full_name, package), value.name, str(value.number), "", "", "")


def message_rows(message: Descriptor, package: str) -> Iterator[tuple[str, ...]]:
    name = scoped_name(message.full_name, package)
    if not message.fields:
        yield ("message", name, "", "", "", "", "")
    for field in message.fields:
        note = "deprecated" if field.GetOptions().deprecated else ""
        yield (
            "field",
            name,
            field.name,
            str(field.number),
            field_label(field),
            field_type(field, package),
            note,
        )
    for enum in message.enum_types:
        yield from enum_rows(enum, package)
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from message_rows(nested, package)


def descriptor_rows(file: FileDescriptor) -> Iterator[tuple[str, ...]]:
    """Everything that the compiled proto declares, as rows of the fact table."""
    for service in file.services_by_name.values():
        for method in service.methods:
            kind = f"{method.input_type.name} -> {method.output_type.name}"
            yield ("rpc", service.name, method.name, "", "stream" if method.server_streaming else "", kind, "")
    for enum in file.enum_types_by_name.values():
        yield from enum_rows(enum, file.package)
    for message in file.message_types_by_name.values():
        yield from message_rows(message, file.package)


def test_every_fact_is_in_the_descriptor() -> None:
    """Nothing of the API is missing or has another number, type or label."""
    package, facts = package_facts()
    assert api_pb2.DESCRIPTOR.package == package
    assert sorted(facts - set(descriptor_rows(api_pb2.DESCRIPTOR))) == []


def test_nothing_in_the_descriptor_is_beyond_the_facts() -> None:
    """An invented field would collide with the number that the API gives out next."""
    _, facts = package_facts()
    assert sorted(set(descriptor_rows(api_pb2.DESCRIPTOR)) - facts) == []


def test_no_method_streams_from_the_client() -> None:
    """The fact table's one `stream` column speaks of answers; no request of CRI is a stream."""
    methods = [m for service in api_pb2.DESCRIPTOR.services_by_name.values() for m in service.methods]
    assert [m.full_name for m in methods if m.client_streaming] == []


def test_every_method_has_a_handler_to_fill() -> None:
    """The grpclib stubs and the messages come from one proto: a method in one is in the other."""
    for service in api_pb2.DESCRIPTOR.services_by_name.values():
        base = getattr(api_grpc, f"{service.name}Base")
        assert base.__abstractmethods__ == {method.name for method in service.methods}


def test_every_message_enum_and_method_of_the_proto_has_a_comment() -> None:
    """The proto is the contract that people read: what has no sentence of its own has to be looked up elsewhere."""
    proto = Path(__file__).resolve().parents[2] / "spec" / "cri" / "v1" / "api.proto"
    lines = [line.strip() for line in proto.read_text().splitlines()]
    declared = re.compile(r"(message|enum|service|rpc) ")
    above = ["", *lines]
    assert [
        line
        for previous, line in zip(above, lines, strict=False)
        if declared.match(line) and not previous.startswith("//")
    ] == []
