"""Words, times, tables, ids and endpoints: the pure parts of crioctl."""

import json
import re
from pathlib import Path

import click
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crio_core.rfc3339 import parse_rfc3339_ns, rfc3339
from crio_server.crioctl import endpoint, filters, output, resolve
from crio_server.crioctl.errors import BadInput, Problem, Refused
from crio_server.crioctl.main import FLAT, GROUPS
from crio_server.crioctl.text import age, clean, parse_duration_s, short_id, size

SECOND_NS = 1_000_000_000
DURATION = r"\d+(\.\d+)?|(\d+(\.\d+)?(ms|s|m|h|d))+"


@given(st.text())
def test_cleaned_text_has_no_control_character(text: str) -> None:
    """A pod's name or an image's label must not move the cursor or set the title of an operator's terminal."""
    cleaned = clean(text)
    assert cleaned.isprintable()
    assert (cleaned == text) == text.isprintable()


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_data_reads_back_and_has_no_control_character(values: dict[str, str]) -> None:
    """-o json and -o yaml lose nothing that a pod put into its labels, and obey none of it either."""
    as_json, as_yaml = output.data_text(values, "json"), output.data_text(values, "yaml")
    assert json.loads(as_json) == yaml.safe_load(as_yaml) == values
    assert (as_json + as_yaml).replace("\n", "").isprintable()


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_plain_table_keeps_one_line_per_row(rows: list[tuple[str, str]]) -> None:
    """Scripts count and cut lines: no cell may add one."""
    cleaned = [tuple(clean(cell) for cell in row) for row in rows]
    assert len(list(output.plain_table(("A", "B"), cleaned))) == len(rows) + 1


@given(st.integers(0, 4_000_000_000 * SECOND_NS))
def test_rfc3339_reads_back(time_ns: int) -> None:
    """No nanosecond is lost between printing and reading."""
    assert parse_rfc3339_ns(rfc3339(time_ns)) == time_ns


def test_rfc3339_with_zone() -> None:
    """containerd writes local zones into logs."""
    assert parse_rfc3339_ns("2026-01-01T01:00:00.5+01:00") == parse_rfc3339_ns("2026-01-01T00:00:00.500000000Z")


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("2s", 2), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("1.5h", 5400)]
)
def test_duration_is_understood(text: str, seconds: float) -> None:
    """crictl's durations, and plain seconds as in its configuration file."""
    assert parse_duration_s(text) == seconds


@given(st.text("0123456789.hmsd-x ", max_size=8).filter(lambda text: not re.fullmatch(DURATION, text)))
def test_any_other_duration_is_refused_by_name(text: str) -> None:
    """What is not a duration is named in the message, never guessed."""
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (3600, "1 hour ago"),
        (47 * 3600, "47 hours ago"),
        (48 * 3600, "2 days ago"),
        (15 * 86400, "2 weeks ago"),
        (90 * 86400, "3 months ago"),
        (800 * 86400, "2 years ago"),
    ],
)
def test_age_in_words(seconds: int, words: str) -> None:
    """Ages as people say them."""
    assert age(0, seconds * SECOND_NS) == words


@given(st.integers(0, 2**64 - 1))
def test_size_is_short(count_bytes: int) -> None:
    """Any size that CRI can carry fits a column."""
    assert re.fullmatch(r"\d+(\.\d+)?(B|kB|MB|GB|TB)", size(count_bytes))


def test_short_id_of_digest_and_id() -> None:
    """As many characters as crictl shows, so that tables can be compared."""
    assert short_id("sha256:" + "a" * 64) == short_id("a" * 64) == "a" * 13


ids = st.lists(st.text("ab", min_size=1, max_size=6), unique=True, max_size=12)


@given(ids, st.text("ab", max_size=6))
def test_prefix_picks_the_one_that_fits_or_says_why_not(all_ids: list[str], prefix: str) -> None:
    """An ambiguous prefix must never choose, least of all for rm; a whole id wins over longer ones."""
    candidates = [resolve.Candidate(id=one, label="name") for one in all_ids]
    fitting = [one for one in all_ids if one.startswith(prefix)]
    if prefix and prefix in all_ids:
        assert resolve.pick("pod", prefix, candidates) == prefix
    elif prefix and len(fitting) == 1:
        assert resolve.pick("pod", prefix, candidates) == fitting[0]
    else:
        with pytest.raises(Problem) as caught:
            resolve.pick("pod", prefix, candidates)
        assert isinstance(caught.value, Refused if prefix and not fitting else BadInput)
        if prefix:
            assert all(one in caught.value.message for one in fitting[: resolve.CANDIDATES_SHOWN_MAX])


def test_last_below_one_and_bad_patterns_are_refused() -> None:
    """Bad filters are usage errors, not empty lists."""
    with pytest.raises(BadInput, match="--last 0"):
        filters.newest(False, 0)
    with pytest.raises(BadInput, match="not a regular expression"):
        filters.pattern("(", "--name")


@pytest.mark.parametrize("text", ["unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock"])
def test_endpoint_forms_name_one_socket(text: str) -> None:
    """Kubelet, crictl and old crioctl write it differently."""
    assert endpoint.socket_path(text, "-r") == "/run/x.sock"


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:3735", "http://x", "unix://", ""])
def test_endpoint_that_is_no_unix_socket_is_refused(text: str) -> None:
    """CRI is served on unix sockets only; saying so beats a timeout."""
    with pytest.raises(BadInput):
        endpoint.socket_path(text, "-r")


def settle(
    tmp_path: Path, content: str | None, runtime: str | None = None, image: str | None = None
) -> endpoint.Settings:
    path = tmp_path / "crictl.yaml"
    if content is not None:
        path.write_text(content)
    return endpoint.settle(runtime_endpoint=runtime, image_endpoint=image, timeout=None, client_file=path)


def test_client_file_gives_way_to_options(tmp_path: Path) -> None:
    """crictl's file names the node's usual server; an option names another, for images too."""
    content = "runtime-endpoint: unix:///run/a.sock\nimage-endpoint: unix:///run/b.sock\ntimeout: 2\ndebug: false\n"
    from_file = settle(tmp_path, content)
    assert (from_file.runtime_socket, from_file.image_socket, from_file.connect_timeout_s) == (
        "/run/a.sock",
        "/run/b.sock",
        2,
    )
    chosen = settle(tmp_path, content, runtime="/run/c.sock")
    assert (chosen.runtime_socket, chosen.image_socket) == ("/run/c.sock", "/run/c.sock")
    both = settle(tmp_path, content, runtime="/run/c.sock", image="/run/d.sock")
    assert both.image_socket == "/run/d.sock"


@pytest.mark.parametrize("content", [None, "[]", "a: [", "timeout: soon", "runtime-endpoint: tcp://x"])
def test_client_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None) -> None:
    """A file that was named and does not serve stops the command: another server must not be asked instead."""
    with pytest.raises(BadInput):
        settle(tmp_path, content)


def test_every_command_of_the_seed_and_of_crictl_exists() -> None:
    """The words that people type: those of CRI-O's crioctl in groups, and those of crictl."""
    groups = {str(group.name): set(group.commands) for group in GROUPS}
    assert groups["pod"] >= {"run", "status", "stop", "remove", "list"}
    assert groups["image"] >= {"pull", "list", "status", "remove"}
    assert groups["ctr"] >= {"create", "start", "status", "stop", "remove", "list", "execsync", "logs"}
    assert set(FLAT) >= {
        "runp", "create", "start", "stop", "stopp", "ps", "pods", "pull", "images", "inspect", "inspectp", "inspecti",
        "rmp", "rm", "rmi", "logs", "exec", "version", "stats", "runtimeversion", "info", "tree",
    }  # fmt: skip


@pytest.mark.parametrize("command", [*FLAT.values(), *(one for group in GROUPS for one in group.commands.values())])
def test_every_command_has_a_line_of_help(command: click.Command) -> None:
    """`--help` is the manual that is always there."""
    assert command.get_short_help_str()
