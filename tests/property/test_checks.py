"""Each check of `make check` catches the fault it is there for.

A checker that passes everything looks exactly like a tree without faults, so every rule is shown a seeded one.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from scripts import generated, rules

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
TOOL_TIMEOUT_S = 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of this one's shape and configuration, with nothing in it yet."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("crio_core", "crio_io", "crio_server", "conmon"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(ROOT / "crio_core" / "ruff.toml", tmp_path / "crio_core")
    return tmp_path


def run_tool(tree: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    return run_tool(tree, str(SCRIPTS / "lint-imports"), "--no-cache")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os\n", "imports os:"),
        ("import os.path\n", "imports os.path:"),
        ("from time import monotonic\n", "imports time:"),
        ("def f() -> None:\n    import socket\n", "imports socket:"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import anyio\n", "imports anyio:"),
        ("import urllib.request\n", "imports urllib.request:"),
        ("from urllib import request\n", "imports urllib.request:"),
        ("from logging import handlers\n", None),  # ruff's part, shown below
        ("from urllib import parse\n", None),
        ("import numpy\n", "imports numpy:"),
        ("open('x')\n", "calls open()"),
        ("__import__('os')\n", "calls __import__()"),
        ("key = hash('x')\n", "calls hash()"),
        ("for x in {1, 2}:\n    pass\n", "takes the order of a set"),
        ("names = [x for x in set(())]\n", "takes the order of a set"),
        ("names = tuple(set(()) | {1})\n", "takes the order of a set"),
        ("names = (*frozenset(()),)\n", "takes the order of a set"),
        ("text = ','.join({'a', 'b'})\n", "takes the order of a set"),
        ("names = sorted({1, 2})\n", None),
        ("from crio_core import errors\nfrom . import errors\nimport hashlib\n", None),
    ],
)
def test_rules_on_a_core_module_find_what_import_contracts_cannot_see(source: str, said: str | None) -> None:
    """A core that can reach outside, or that depends on the process it runs in, cannot be replayed."""
    found = [str(finding) for finding in rules.check_source(source, "crio_core/x.py")]
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert said in found[0]


def test_rules_on_the_monitor_find_a_library() -> None:
    """One library import would cost every container its memory."""
    assert "imports orjson" in str(rules.check_source("import orjson\n", "conmon/x.py")[0])
    assert rules.check_source("import os, socket\nfrom crio_core import errors\n", "conmon/x.py") == ()


def test_rules_leave_executors_free_to_act() -> None:
    """The outer layers exist to touch the world."""
    assert rules.check_source("import os\nopen('x')\n", "crio_io/x.py") == ()


@pytest.mark.parametrize(("body_lines", "findings"), [(rules.FUNCTION_LINES_MAX - 1, 0), (rules.FUNCTION_LINES_MAX, 1)])
def test_rules_bound_the_length_of_a_function(body_lines: int, findings: int) -> None:
    """The bound is exact, so that nobody has to guess what passes."""
    source = "def f() -> None:\n" + "    pass\n" * body_lines
    assert len(rules.check_source(source, "crio_io/x.py")) == findings


def test_rules_do_not_count_a_complete_match_as_length() -> None:
    """A dispatch over every effect grows with the effects; splitting it would hide what the type checker proves."""
    cases = "".join(f"        case {number}:\n            pass\n" for number in range(rules.FUNCTION_LINES_MAX))
    function = f"def f(x: int) -> None:\n    match x:\n{cases}        case _:\n            "
    assert rules.check_source(function + "assert_never(x)\n", "crio_io/x.py") == ()
    assert len(rules.check_source(function + "pass\n", "crio_io/x.py")) == 1


def test_rules_skip_generated_code_and_read_everything_else(tree: Path) -> None:
    """A rule that looks into the wrong folder passes for ever."""
    generated = tree / rules.GENERATED
    generated.mkdir(parents=True)
    long_function = "def f() -> None:\n" + "    pass\n" * rules.FUNCTION_LINES_MAX
    (tree / "crio_io" / "x.py").write_text("\n(\n")
    (generated / "api_pb2.py").write_text(long_function)
    (tree / "crio_core" / "image").mkdir()
    (tree / "crio_core" / "image" / "deep.py").write_text("import os\n")
    found = [(finding.path, finding.line) for finding in rules.check_tree(tree)]
    assert found == [("crio_core/image/deep.py", 1), ("crio_io/x.py", 2)]


def test_rules_find_a_library_that_is_not_declared(tree: Path) -> None:
    """What a development environment happens to hold is missing on the machine of a user."""
    (tree / "crio_io" / "x.py").write_text("import yaml, anyio.abc\nfrom google.protobuf import message\n")
    (tree / "tests").mkdir()
    (tree / "tests" / "test_x.py").write_text("import pytest\nimport crio_io\nimport _pytest.scope\n")
    assert rules.check_tree(tree) == ()
    (tree / "crio_io" / "x.py").write_text("import pytest\n")
    (tree / "tests" / "test_x.py").write_text("\nimport nowhere_to_be_found\n")
    assert [(finding.path, finding.line) for finding in rules.check_tree(tree)] == [
        ("crio_io/x.py", 1),
        ("tests/test_x.py", 2),
    ]


def test_import_contracts_pass_on_imports_that_run_one_way(tree: Path) -> None:
    """Without this, a broken configuration would look like a caught fault in the tests below."""
    (tree / "crio_server" / "x.py").write_text("import crio_io, crio_core, grpclib\n")
    (tree / "crio_io" / "x.py").write_text("import crio_core, anyio, os\n")
    (tree / "conmon" / "x.py").write_text("import crio_core, os, socket\n")
    (tree / "crio_core" / "x.py").write_text("import enum, dataclasses, transitions\n")
    ran = lint_imports(tree)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("module", "source", "contract"),
    [
        ("crio_core/x.py", "import crio_io\n", "Imports run one way"),
        ("crio_io/x.py", "import crio_server\n", "Imports run one way"),
        ("crio_core/x.py", "import subprocess\n", "The core cannot touch the world"),
        ("crio_core/x.py", "import google.protobuf\n", "The core cannot touch the world"),
        ("crio_core/x.py", "import threading\n", "The core cannot touch the world"),
        ("conmon/x.py", "import crio_io\n", "The monitor stands on"),
        ("conmon/x.py", "import anyio\n", "The monitor stands on"),
        ("crio_io/x.py", "import conmon\n", "The monitor is a process of its own"),
        ("crio_server/x.py", "from conmon import cli\n", "The monitor is a process of its own"),
    ],
)
def test_import_contracts_catch_an_import_against_the_direction(
    tree: Path, module: str, source: str, contract: str
) -> None:
    """The house stands on one direction of imports."""
    (tree / "conmon" / "cli.py").touch()
    (tree / module).write_text(source)
    ran = lint_imports(tree)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert [line for line in ran.stdout.splitlines() if contract in line and line.endswith("BROKEN")] != [], ran.stdout


@pytest.mark.parametrize(
    ("package", "source", "code"),
    [
        ("crio_core", "import datetime\n\nNOW = datetime.datetime.now(datetime.UTC)\n", "TID251"),
        ("crio_core", "from datetime import UTC, datetime\n\nNOW = datetime.now(UTC)\n", "TID251"),
        ("crio_core", "import uuid\n\nNEW = uuid.uuid4()\n", "TID251"),
        ("crio_core", "from pathlib import Path\n\nHERE = Path()\n", "TID251"),
        ("crio_core", "from logging import handlers\n\nhandlers.SysLogHandler()\n", "TID251"),
        ("crio_io", "try:\n    import x\nexcept Exception:\n    pass\n", "S110"),
        ("crio_io", "def f(x):\n    return x\n", "ANN001"),
        ("crio_io", "# TO" + "DO: later\n", "FIX002"),
    ],
)
def test_ruff_catches_what_the_house_bans(tree: Path, package: str, source: str, code: str) -> None:
    """The nested configuration of the core must both add to the common one and keep it."""
    (tree / package / "x.py").write_text(source)
    ran = run_tool(tree, str(SCRIPTS / "ruff"), "check", "--no-cache", "--output-format=concise", package)
    assert ran.returncode == 1, ran.stdout
    assert f" {code} " in ran.stdout


def test_stubs_that_drift_from_the_proto_are_named(tree: Path) -> None:
    """A server whose stubs are not of its proto answers with yesterday's numbers."""
    shutil.copytree(ROOT / generated.PROTO.parent, tree / generated.PROTO.parent)
    generated.write_stubs(tree, tree)
    committed = generated.generated_files(tree)
    assert list(committed) == [f"crio_server/cri/v1/{name}" for name in ("api_grpc.py", "api_pb2.py", "api_pb2.pyi")]
    proto = tree / generated.PROTO
    proto.write_text(proto.read_text().replace("string runtime_name = 2;", "string runtime_name = 22;"))
    generated.write_stubs(tree, tree)
    assert generated.drifted(committed, generated.generated_files(tree)) == ("crio_server/cri/v1/api_pb2.py",)


def test_generated_files_that_are_missing_or_orphaned_are_named() -> None:
    """A page of a machine that is gone describes what nobody runs."""
    committed, fresh = {"same": b"1", "gone": b"2", "changed": b"3"}, {"same": b"1", "changed": b"4", "new": b"5"}
    assert generated.drifted(committed, fresh) == ("changed", "gone", "new")
