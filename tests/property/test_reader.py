"""The compiled reader of records and requests: nothing is lost, and it agrees with dataclasses-json."""

import subprocess
import sys
from typing import Any

import orjson
import pytest
from dataclasses_json.core import _decode_dataclass
from hypothesis import given
from hypothesis import strategies as st

from crio_core import cri
from crio_core.errors import LocalError
from crio_core.reader import read
from crio_core.records import RECORD_TYPES, Record, SandboxRecord, SandboxState, decode, encode

TEXT = st.text(max_size=8)
st.register_type_strategy(str, TEXT)
st.register_type_strategy(int, st.integers(-(2**53), 2**53))

RECORDS = st.one_of([st.builds(kind, version=st.just(kind.SCHEMA)) for kind in RECORD_TYPES.values()])
REQUESTS = st.one_of(st.builds(cri.PodSandboxConfig), st.builds(cri.ContainerConfig))


@given(record=RECORDS)
def test_record_written_and_read_is_the_same(record: Record) -> None:
    """What a server knows after a restart is what it knew before."""
    assert decode(record.KIND, encode(record)) == record


@given(record=RECORDS)
def test_record_written_by_either_is_read_by_the_other(record: Record) -> None:
    """Records are stored in the form of dataclasses-json: other programs may read and write them by the library."""
    assert orjson.loads(record.to_json()) == record.to_dict(encode_json=True) == orjson.loads(encode(record))
    assert type(record).from_json(encode(record)) == record
    assert type(record).from_dict(orjson.loads(encode(record))) == record
    assert decode(record.KIND, record.to_json().encode()) == record


def test_server_imported_has_not_loaded_the_library() -> None:
    """What only other programs need costs a server neither memory nor a longer start."""
    program = (
        "import sys, crio_server.main, crio_server.serve; print({'dataclasses_json', 'marshmallow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@given(request=REQUESTS)
def test_request_read_agrees_with_dataclasses_json(request: cri.PodSandboxConfig | cri.ContainerConfig) -> None:
    """A file written for one reader can be read by the other."""
    values = orjson.loads(orjson.dumps(request))
    assert read(type(request), values) == request
    by_library: Any = _decode_dataclass
    assert by_library(type(request), values, False) == request


@given(record=RECORDS)
def test_record_with_unknown_members_is_read_without_them(record: Record) -> None:
    """A later version may add members; an earlier one still reads the rest."""
    values = orjson.loads(encode(record)) | {"member_of_another_version": [1]}
    assert decode(record.KIND, orjson.dumps(values)) == record


def test_record_without_optional_members_gets_defaults() -> None:
    """An earlier version did not write every member."""
    values = {"id": "a", "state": "ready", "metadata": {"name": "n"}, "created_at_ns": 1, "version": 1}
    expected = SandboxRecord(
        id="a", state=SandboxState.READY, metadata=cri.PodSandboxMetadata(name="n"), created_at_ns=1
    )
    assert decode("sandbox", orjson.dumps(values)) == expected


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("state", "no such state"),
        ("state", {}),
        ("created_at_ns", "1"),
        ("created_at_ns", None),
        ("doomed", 1),
        ("labels", []),
        ("holds", "files"),
        ("holds", ["no such part"]),
        ("metadata", None),
        ("metadata", []),
        ("failure", "text"),
    ],
)
def test_record_with_a_wrong_member_is_refused(member: str, value: object) -> None:
    """R9: damage is known as damage, so that the row goes into quarantine instead of into the node."""
    values = {"id": "a", "state": "ready", "metadata": {"name": "n"}, "created_at_ns": 1, "version": 1, member: value}
    with pytest.raises(LocalError):
        decode("sandbox", orjson.dumps(values))


def test_record_without_a_required_member_is_refused() -> None:
    """R9: half a record is damage too."""
    with pytest.raises(LocalError):
        decode("sandbox", orjson.dumps({"id": "a", "state": "ready", "created_at_ns": 1, "version": 1}))
