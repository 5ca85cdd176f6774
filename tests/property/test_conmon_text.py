"""What a monitor reads and writes as text: log records, control lines, sync messages, options, counters."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conmon import oom
from conmon.control import LINE_BYTES_MAX, ControlLines, ReopenLogs, Resize
from conmon.ending import exit_record
from conmon.log_set import open_logs
from conmon.logs import STDERR, STDOUT, Formatter, Stamps
from conmon.options import UsageError, check, help_text, parse
from conmon.request import Refused, parse_request
from conmon.sync import result_key, sync_message

STAMP = b"2026-11-22T10:00:00.000000001+00:00"
CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.lists(st.sampled_from([b"\n", b"a", b"long " * 9, b"\0", b" F "]), max_size=20).map(b"".join),
    ),
    max_size=12,
)


def parse_records(log: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """Tag and bytes of each record; anything else in the log fails."""
    found = []
    assert log.endswith(b"\n") or not log
    for line in log.split(b"\n")[:-1]:
        stamp, stream, tag, data = line.split(b" ", 3)
        assert (stamp, stream) == (STAMP, b"stdout")
        assert tag in (b"P", b"F")
        assert len(data) <= limit
        found.append((tag, data))
    return found


@settings(max_examples=400)
@given(CHUNKS, st.integers(1, 30), st.lists(st.booleans(), min_size=12, max_size=12))
def test_records_join_to_the_bytes_that_were_written(chunks: list[bytes], limit: int, expire: list[bool]) -> None:
    """R38, R39: any bytes, cut anywhere, held or not; parts are at most the limit, and the last line is closed."""
    formatter = Formatter(STDOUT, limit)
    log = b""
    for chunk, late in zip(chunks, expire, strict=False):
        log += b"".join(formatter.feed(chunk, STAMP))
        if late:
            log += formatter.expire(STAMP)
    log += formatter.finish(STAMP)
    records = parse_records(log, limit)
    written = b"".join(chunks)
    joined = b"".join(data + (b"\n" if tag == b"F" else b"") for tag, data in records)
    assert joined == written + (b"\n" if written and not written.endswith(b"\n") else b"")


@given(st.binary(min_size=1, max_size=200).filter(lambda line: b"\n" not in line), st.integers(1, 40))
def test_long_line_is_parted_at_exactly_the_limit(line: bytes, limit: int) -> None:
    """R39: every part but the last is exactly as long as configured, and a line that fits is one record."""
    records = parse_records(b"".join(Formatter(STDOUT, limit).feed(line + b"\n", STAMP)), limit)
    assert [tag for tag, _ in records] == [b"P"] * (len(records) - 1) + [b"F"]
    assert all(len(data) == limit for _, data in records[:-1])
    assert len(records) == -(-len(line) // limit)


def test_prompt_without_newline_is_held_and_then_shown() -> None:
    """A held part joins what follows at once, and is written when its time is over."""
    formatter = Formatter(STDERR)
    assert formatter.feed(b"name: ", STAMP) == []
    assert formatter.expire(STAMP) == STAMP + b" stderr P name: \n"
    assert b"".join(formatter.feed(b"x\n", STAMP)) == STAMP + b" stderr F x\n"
    assert formatter.finish(STAMP) == b""


def test_part_without_an_end_gets_a_closing_record() -> None:
    """R38: a reader that joins parts is not left waiting."""
    formatter = Formatter(STDOUT)
    formatter.feed(b"half", STAMP)
    formatter.expire(STAMP)
    assert formatter.finish(STAMP) == STAMP + b" stdout F \n"


@given(st.integers(0, 4_000_000_000), st.integers(0, 999_999_999))
def test_stamp_has_nanoseconds_and_a_zone(second: int, nanosecond: int) -> None:
    """RFC 3339 with nine digits, whatever the second before was."""
    stamps = Stamps()
    stamps.stamp((second + 1) * 1_000_000_000)
    text = stamps.stamp(second * 1_000_000_000 + nanosecond).decode()
    assert len(text) == 35
    assert text[10] == "T" and text[19] == "." and text[20:29] == f"{nanosecond:09d}" and text[29] in "+-"


@given(st.lists(st.binary(max_size=30)), st.integers(1, 7))
def test_control_lines_do_not_depend_on_how_they_are_cut(pieces: list[bytes], size: int) -> None:
    """A FIFO joins and cuts writes as it likes; garbage between orders costs no order."""
    data = b"".join(pieces) + b"\n1 24 80\n2 0 0\n"
    whole = ControlLines(typed=True).feed(data)
    cut = ControlLines(typed=True)
    orders: tuple[object, ...] = ()
    for at in range(0, len(data), size):
        orders += cut.feed(data[at : at + size])
    assert orders == whole
    assert whole[-2:] == (Resize(24, 80), ReopenLogs())


@pytest.mark.parametrize(
    "line", [b"1 24\n", b"3 0 0\n", b"1 -1 5\n", b"1 1001 5\n", b"one 2 3\n", b"1 99999 1\n", b"\n"]
)
def test_wrong_control_line_is_no_order(line: bytes) -> None:
    """Rows and columns end at 1000, as in conmon."""
    assert ControlLines(typed=True).feed(line) == ()


def test_control_line_without_end_is_forgotten() -> None:
    """A writer that never ends its line takes bounded memory and loses only that line."""
    lines = ControlLines(typed=False)
    for _ in range(100):
        assert lines.feed(b"9" * LINE_BYTES_MAX) == ()
    assert lines.feed(b"\n10 20\n") == (Resize(10, 20),)


@given(st.text(), st.integers(-5, 99999))
def test_sync_message_is_one_line_of_json(message: str, number: int) -> None:
    """The runtime's words are data: quotes, newlines and broken UTF-8 come through."""
    line = sync_message("data", number, message)
    assert line.count(b"\n") == 1
    expected = {"data": number, "message": message} if message else {"data": number}
    assert json.loads(line) == expected


def test_result_key_depends_on_version_and_mode() -> None:
    """Three kinds of callers read three keys."""
    assert [result_key(1, True), result_key(1, False), result_key(0, True), result_key(0, False)] == [
        *("data", "data", "exit_code", "pid")
    ]


def test_exit_record_is_json_with_units_in_its_names() -> None:
    """The server reads it with a JSON library."""
    record = exit_record(code=137, reason="OOMKilled", finished_at_ns=5, oom_killed=True, pid=7, dropped_bytes=9)
    assert json.loads(record) == {
        "version": 1,
        "exit_code": 137,
        "reason": "OOMKilled",
        "finished_at_ns": 5,
        "oom_killed": True,
        "pid": 7,
        "log_dropped_bytes": 9,
    }


def test_options_of_cri_o_are_understood() -> None:
    """The words that CRI-O passes, in its order; stray words do not disturb."""
    words = "-b /b -c id --exit-dir /e -l /l --log-level info -n name -P /cp -p /p --persist-dir /pd -r /bin/sh"
    words += " --runtime-arg --root=/r --runtime-arg --x --socket-dir-path /s --syslog -u uid -s -ti --api-version 1"
    options = parse([*words.split(), "--log-size-max=-1", "-T5", "--", "--no-such-option"])
    check(options, "/cwd")
    assert (options.bundle, options.cid, options.cuuid, options.persist_dir) == ("/b", "id", "uid", "/pd")
    assert options.runtime_arg == ("--root=/r", "--x")
    assert options.terminal and options.stdin and options.systemd_cgroup and options.syslog
    assert (options.api_version, options.log_size_max, options.timeout) == (1, -1, 5)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("16", 16), ("0x10", 16), ("020", 16), (" +5", 5), ("-3", -3), ("0", 0)),
        *(("08", None), ("5x", None), ("", None), ("1_0", None), ("0x", None), ("--5", None), ("5 ", None)),
        *(("2147483648", None), ("\u0665", None)),
    ],
)
def test_number_of_an_option_is_read_as_the_c_library_does(text: str, number: int | None) -> None:
    """conmon's options are parsed with strtol(3); a caller's octal is no decimal number here."""
    if number is None:
        with pytest.raises(UsageError, match="Cannot parse integer"):
            parse(["-T", text])
    else:
        assert parse(["-T", text]).timeout == number


def test_file_driver_without_a_file_is_refused() -> None:
    """It would make a log with the driver's name in whatever directory is current."""
    for word in ("k8s-file", "k8s-file:"):
        with pytest.raises(UsageError, match="needs a filename"):
            open_logs(parse(["-l", word]))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--no-such", "Unknown option --no-such"),
        ("-z", "Unknown option -z"),
        ("--cid", "Missing argument"),
        ("-T five", "Cannot parse integer"),
        ("--exec=1", "takes no value"),
        ("-u x -r r", "Container ID"),
        ("-c x -r r", "Container UUID"),
        ("-c x -u x", "Runtime path"),
        ("-c x -u x -r r -e", "process spec"),
        ("-c x -u x -r r -e --restore y", "same time"),
        ("-c x -u x -r r", "Log driver not provided"),
        ("-c x -u x -r r -l l --log-level loud", "No such log level"),
        ("-c x -u x -r r -l l --seccomp-notify-socket s", "cannot load"),
        ("-c x -u x -r r --exec-attach", "only be specified with exec"),
    ],
)
def test_wrong_options_are_refused_with_the_reason(words: str, part: str) -> None:
    """A caller shows this line to a person."""
    with pytest.raises(UsageError, match=part):
        check(parse(words.split()), "/")


def test_help_names_every_option() -> None:
    """What the help shows can be parsed."""
    for line in help_text().splitlines()[4:]:
        name, *kind = line.strip().rpartition("--")[2].split()
        parse([f"--{name}", *(["1"] if kind else [])])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"4:memory:/kube/x\n0::/\n", (1, b"/kube/x")),
        (b"7:cpu,memory:/a\n0::/b\n", (1, b"/a")),
        (b"0::/kubepods/x\n", (2, b"/kubepods/x")),
        (b"1:name=systemd:/x\n", None),
        (b"", None),
    ],
)
def test_memory_cgroup_of_each_layout_is_found(text: bytes, found: tuple[int, bytes] | None) -> None:
    """Version 1, hybrid and version 2."""
    assert oom.memory_cgroup(text) == found


def test_oom_kills_are_read_from_both_versions() -> None:
    """Only the count of kills, not that of attempts."""
    assert oom.oom_kills(b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n") == 3
    assert oom.oom_kills(b"low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 1\n") == 2
    assert oom.oom_kills(b"") == 0


@given(st.binary(max_size=200), st.integers(0, 4))
def test_request_to_the_zygote_is_read_or_refused(packet: bytes, descriptors: int) -> None:
    """Whatever arrives, the zygote answers and lives."""
    try:
        request = parse_request(packet, list(range(descriptors)))
    except Refused:
        return
    assert sorted((*request.pipes.values(), *request.held_fds)) == list(range(descriptors))


def test_request_to_the_zygote_keeps_every_word() -> None:
    """Arguments and environment come through as they were."""
    fields = ["spawn", "/cwd", "sync,hold,hold", "2", "A=b=c", "D=", "-c", "x", ""]
    request = parse_request("\0".join(fields).encode(), [7, 8, 9])
    assert (request.cwd, request.pipes, request.held_fds) == ("/cwd", {"sync": 7}, (8, 9))
    assert request.environment == {"A": "b=c", "D": ""}
    assert request.words == ["-c", "x", ""]


def test_counter_of_a_cgroup_that_is_gone_is_not_polled_for_ever() -> None:
    """R41: a removed cgroup's file polls as urgent without end; reading it tells nothing, and that it is over."""
    reader, writer = os.pipe()  # cannot be read at a position, as a removed counter cannot
    watch = oom.OomWatch(reader, -1, 0)
    assert watch.read() is None
    watch.close()
    os.close(writer)
