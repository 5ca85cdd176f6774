"""The command line of `crio`, and the pages and constants that must agree with the table of options."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_server.commands.session import Session
from crio_server.commands.version import VERSION
from crio_server.config import OPTIONS, Config, Option, load
from crio_server.config.elsewhere import MISSING, Missing
from crio_server.config.kinds import Refused, Switch
from crio_server.config.reference import reference
from crio_server.main import main, session_of

ROOT = Path(__file__).resolve().parents[2]
FLAGGED = [row for row in OPTIONS if row.flags]
NO_FILES = ["--config", "", "--config-dir", ""]


def session(*args: str, environ: dict[str, str] | None = None) -> Session:
    with main.make_context("crio", [*NO_FILES, *args]) as context:
        return session_of(dict(context.params), environ or {})


TEXTS = (
    "pod",
    "/x",
    "8192",
    "systemd",
    "debug",
    "json",
    "ignore",
    "A=1",
    "::1",
    "nofile=1:2",
    "/dev/fuse",
    "KILL",
    "5m",
)
"""At least one of these is valid for each option, and is not its default."""


def given_text(row: Option) -> str:
    for text in TEXTS:
        try:
            value = row.kind.read_text(text)
        except Refused:
            continue
        if value != getattr(Config(), row.name):
            return text
    raise AssertionError(f"no text for {row.name}")


@pytest.mark.parametrize("row", FLAGGED, ids=lambda row: row.name)
def test_every_flag_and_its_variable_set_their_option(row: Option) -> None:
    """A flag of the table that click does not pass on would be accepted and forgotten."""
    if isinstance(row.kind, Switch):
        for text, on in (("true", True), ("false", False)):
            assert getattr(session(f"{row.flags[0]}={text}").load().config, row.name) is on
            assert getattr(session(environ={row.env: text}).load().config, row.name) is on
        assert getattr(session(row.flags[0]).load().config, row.name) is True
        assert getattr(session(row.flags[0].replace("--", "--no-")).load().config, row.name) is False
        return
    text = given_text(row)
    for flag in row.flags:
        assert session(flag, text).sources.flags == {row.name: (text,)}
    handler = ["--runtimes", f"{text}:/x"] if row.name == "default_runtime" else []
    config = session(row.flags[0], text, *handler).load().config
    assert getattr(config, row.name) == row.kind.read_text(text)
    assert session(*handler, environ={row.env: text}).load().config == config


def test_flags_and_variables_are_unique() -> None:
    """Two options under one spelling would set each other."""
    flags = [flag for row in OPTIONS for flag in row.flags] + [flag for row in MISSING for flag in row.flag.split()]
    variables = [row.env for row in OPTIONS if row.env]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize("row", MISSING, ids=lambda row: row.flag.split()[0])
def test_flag_that_only_crio_has_is_one_warning(row: Missing) -> None:
    """A unit file written for CRI-O must start this server, and say which of its flags do nothing."""
    flag = row.flag.split()[0]
    for args in [[flag, "anything"]] if row.takes_value else [[flag], [f"{flag}=false"]]:
        found = session(*args)
        assert [str(warning) for warning in found.flag_warnings] == [f"{flag}: known to CRI-O, has no effect here"]
        assert found.load().config == session().load().config


def test_repeated_list_flag_and_commas_add_up_and_the_last_plain_flag_counts() -> None:
    """As with CRI-O's flag package."""
    config = (
        session("--insecure-registry", "a:5000, b", "--insecure-registry=c", "-r", "/x", "--root", "/y").load().config
    )
    assert config.insecure_registries == ("a:5000", "b", "c")
    assert config.root == "/y"


@given(args=st.lists(st.sampled_from(["--selinux=true", "--selinux=f", "--selinux", "--no-selinux"]), min_size=1))
def test_last_of_several_spellings_of_a_switch_counts(args: list[str]) -> None:
    """--x=false after --x is off, whichever way each is written."""
    assert session(*args).load().config.selinux is (args[-1] in ("--selinux=true", "--selinux"))


def test_named_file_is_required_and_the_default_one_is_not() -> None:
    """A misspelt --config must not start a server with defaults."""
    with main.make_context("crio", ["--config", "/nowhere/crio.conf"]) as context:
        assert session_of(dict(context.params), {}).sources.config_required
    with main.make_context("crio", []) as context:
        assert not session_of(dict(context.params), {}).sources.config_required


def test_nothing_given_is_the_default() -> None:
    """Flags that were not given must not count as given, with whatever value."""
    found = session()
    assert found.sources.flags == {}
    config = load(found.sources).config
    assert config == Config(cgroup_manager=config.cgroup_manager, conmon_cgroup=config.conmon_cgroup)


def test_reference_page_is_what_the_table_says() -> None:
    """docs/configuration.md is generated: `python -m crio_server.config.reference > docs/configuration.md`."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def test_version_is_that_of_the_package() -> None:
    """The constant saves reading package metadata at run time; it must not fall behind."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_flag_overrides_variable() -> None:
    """A unit's Environment= gives a site's defaults, its ExecStart= the exception."""
    found = session("--pids-limit", "5", environ={"CONTAINER_PIDS_LIMIT": "6"})
    assert found.load().config.pids_limit == 5
