"""`crio config` and `crio version` as processes: files on disk, exit codes, and what goes to which stream."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from crio_server.config.load import DROP_INS_MAX, FILE_BYTES_MAX

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_S = 30


def crio(*args: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command with no CONTAINER_* of the tester's own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONTAINER_")}
    argv = [sys.executable, "-m", "crio_server.main", *map(str, args)]
    return subprocess.run(
        argv, cwd=ROOT, env=clean | environ, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """An empty crio.conf beside an empty drop-in directory."""
    (tmp_path / "crio.conf.d").mkdir()
    path = tmp_path / "crio.conf"
    path.touch()
    return path


def on(conf: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return crio("-c", conf, "-d", conf.with_name("crio.conf.d"), *args, **environ)


def effective(conf: Path, *args: str, **environ: str) -> dict[str, Any]:
    result = on(conf, *args, "config", **environ)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = tomllib.loads(result.stdout)["crio"]
    return found


def drop_in(conf: Path, name: str, text: str) -> Path:
    path = conf.with_name("crio.conf.d") / name
    path.write_text(text)
    return path


def test_sources_override_each_other_in_order(conf: Path) -> None:
    """Default, file, drop-ins by name, environment, flags: the order that CRI-O documents."""
    conf.write_text("[crio.runtime]\npids_limit = 1\nlog_level = 'warn'\nlog_size_max = 8192\ndefault_env = ['A=1']\n")
    drop_in(conf, "20-b.conf", "[crio.runtime]\npids_limit = 20\nlog_size_max = 16384\n")
    drop_in(conf, "10-a.conf", "[crio.runtime]\npids_limit = 10\n")
    runtime = effective(conf, "--log-level", "debug", CONTAINER_LOG_LEVEL="error", CONTAINER_LOG_SIZE_MAX="32768")[
        "runtime"
    ]
    assert (runtime["pids_limit"], runtime["log_size_max"], runtime["log_level"]) == (20, 32768, "debug")
    assert (runtime["default_env"], runtime["drop_infra_ctr"]) == (["A=1"], True)


def test_effective_configuration_read_again_is_the_same(conf: Path, tmp_path: Path) -> None:
    """`crio config` is how people move a set-up to another node."""
    first = on(conf, "--root", "/srv/crio", "--runtimes", "runsc:/usr/bin/runsc:/run/x:vm", "config")
    again = tmp_path / "again.conf"
    again.write_text(first.stdout)
    second = crio("-c", again, "-d", "", "config")
    assert (second.returncode, second.stderr, second.stdout) == (0, "", first.stdout)


def test_commented_default_is_printed_even_when_the_files_are_broken(conf: Path) -> None:
    """It is what one reaches for to mend them."""
    conf.write_text("not toml")
    result = on(conf, "config", "--default")
    assert (result.returncode, result.stderr) == (0, "")
    assert tomllib.loads(result.stdout)["crio"] == {
        "api": {},
        "runtime": {},
        "image": {},
        "network": {},
        "metrics": {},
    }


def test_unknown_key_warns_on_standard_error_with_file_and_key(conf: Path) -> None:
    """Standard output stays TOML, so that it can be piped."""
    conf.write_text("[crio.runtime]\npid_limit = 5\nhooks_dir = ['/x']\ncgroup_manager = 'cgroupfs'\n")
    result = on(conf, "config")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        f"crio: {conf}: crio.runtime.pid_limit: unknown key, not read; did you mean pids_limit?",
        f"crio: {conf}: crio.runtime.hooks_dir: known to CRI-O, has no effect here",
    ]
    assert "pid_limit" not in tomllib.loads(result.stdout)["crio"]["runtime"]


@pytest.mark.parametrize("command", [["config"], []], ids=["config", "serve"])
def test_wrong_type_stops_with_file_key_value_and_expected(conf: Path, command: list[str]) -> None:
    """The server must not come up with something else than what was written; nor may `crio config` pretend."""
    drop = drop_in(conf, "50-x.conf", "[crio.runtime]\npids_limit = 'many'\n")
    result = on(conf, *command)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"crio: {drop}: crio.runtime.pids_limit: 'many' is not valid: "
        "expected a whole number of at least 1, or 0, or -1\n"
    )


def test_named_file_that_is_missing_stops(tmp_path: Path) -> None:
    """A misspelt --config must not mean defaults; the variable counts as naming it, too."""
    path = tmp_path / "none.conf"
    for result in (crio("-c", path, "config"), crio("config", CONTAINER_CONFIG=str(path))):
        assert (result.returncode, result.stderr) == (1, f"crio: {path}: cannot be read: No such file or directory\n")


def test_missing_drop_in_directory_is_empty(conf: Path) -> None:
    """A node without drop-ins has no directory for them."""
    conf.with_name("crio.conf.d").rmdir()
    assert effective(conf)["root"] == "/var/lib/crio"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[crio\nroot=1", "not valid TOML: "),
        (b"[crio]\nroot = '\xff'", "not valid TOML: "),
        (b"x = " + b"[" * 100_000, "not valid TOML: "),
        (b"#" * (FILE_BYTES_MAX + 1), f"larger than {FILE_BYTES_MAX} bytes"),
    ],
    ids=["syntax", "not utf-8", "nested", "too large"],
)
def test_unreadable_file_is_refused_by_name(conf: Path, data: bytes, said: str) -> None:
    """Whatever the file holds, the answer is one line that names it."""
    conf.write_bytes(data)
    result = on(conf, "config")
    assert result.returncode == 1
    assert result.stderr.startswith(f"crio: {conf}: {said}")
    assert "Traceback" not in result.stderr


def test_fifo_as_file_is_refused_instead_of_waited_for(conf: Path) -> None:
    """Opening a FIFO would block the start for ever."""
    conf.unlink()
    os.mkfifo(conf)
    result = on(conf, "config")
    assert (result.returncode, result.stderr) == (1, f"crio: {conf}: not a regular file\n")


def test_other_files_in_the_drop_in_directory_are_named_and_not_read(conf: Path) -> None:
    """An editor's backup must not count, and a drop-in without .conf must not be missed in silence."""
    left = drop_in(conf, "10-a.conf~", "[crio]\nroot = 5\n")
    toml = drop_in(conf, "11.toml", "[crio]\nroot = 5\n")
    result = on(conf, "--cgroup-manager", "cgroupfs", "config")
    assert result.returncode == 0
    said = "not read: only files whose name ends in .conf are"
    assert result.stderr.splitlines() == [f"crio: {left}: {said}", f"crio: {toml}: {said}"]


def test_too_many_drop_ins_are_refused(conf: Path) -> None:
    """A bound, so that a wrong --config-dir (such as /) does not read a whole tree."""
    for number in range(DROP_INS_MAX + 1):
        drop_in(conf, f"{number:04}.conf", "")
    result = on(conf, "config")
    assert result.returncode == 1
    assert f"expected at most {DROP_INS_MAX}" in result.stderr


def test_unknown_flag_is_a_wrong_command_line() -> None:
    """Exit code 2, as for any program, and nothing is started."""
    result = crio("--no-such-flag", "config")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--no-such-flag" in result.stderr


def test_version_is_printed_for_people_and_for_programs() -> None:
    """`crio version -j` is what scripts read."""
    facts = json.loads(crio("version", "-j").stdout)
    assert facts["criVersion"] == "v1"
    assert f"Version:  {facts['version']}" in crio("version").stdout
    assert crio("--version").stdout == f"crio, version {facts['version']}\n"


def test_subcommands_import_nothing_that_serves() -> None:
    """Memory and start-up time of the server begin with what its command line drags in."""
    code = (
        "import sys, crio_server.main; "
        "print(sorted(m for m in ('asyncio', 'anyio', 'grpclib', 'google.protobuf', 'httpx', 'rich', 'sqlite3', 'ssl',"
        " 'tomli_w', 'difflib', 'importlib.metadata', 'crio_io', 'crio_server.serve') if m in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=True
    )
    assert result.stdout == "[]\n"
