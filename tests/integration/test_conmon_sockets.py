"""The monitor's sockets, each with a stand-in at the far end: the journal, readiness, clients that are gone."""

import os
import select
import socket
import time
from pathlib import Path

import pytest

from conmon.attach import CLIENTS_MAX, Attach, listen
from conmon.clients import INPUT_NS
from conmon.journald import JournalLog
from conmon.logs import LINE_BYTES_MAX, STDERR, STDOUT
from tests.integration.conmon_suite import Rig, missing_parts
from tests.integration.leftovers import MINE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_parts()), reason=missing_parts() or "all parts are there"),
]
ID = "0123456789abcdef"


@pytest.fixture
def journal(tmp_path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "journal"))
    server.settimeout(5)
    return server


def fields(datagram: bytes) -> dict[bytes, bytes]:
    return dict(line.split(b"=", 1) for line in datagram.split(b"\n")[:-1])


def test_each_line_is_a_message_with_the_containers_names(journal: socket.socket, tmp_path: Path) -> None:
    """Standard output is information, standard error an error; the tag is what a reader filters by."""
    log = JournalLog(cuuid=ID, name="web", tag="shop", path=str(tmp_path / "journal"))
    log.write(STDOUT, b"one\ntw")
    log.write(STDOUT, b"o\n")
    log.write(STDERR, b"bad\n")
    log.finish()
    log.close()
    with journal:
        got = [fields(journal.recv(65536)) for _ in range(3)]
    assert [(entry[b"MESSAGE"], entry[b"PRIORITY"]) for entry in got] == [
        (b"one", b"6"),
        (b"two", b"6"),
        (b"bad", b"3"),
    ]
    assert got[0][b"CONTAINER_ID_FULL"] == ID.encode()
    assert got[0][b"CONTAINER_ID"] == ID[:12].encode()
    assert (got[0][b"CONTAINER_NAME"], got[0][b"SYSLOG_IDENTIFIER"]) == (b"web", b"shop")


def test_long_and_unfinished_lines_are_marked_as_parts(journal: socket.socket, tmp_path: Path) -> None:
    """R39 holds for the journal too: parts are marked and bounded."""
    log = JournalLog(cuuid=ID, name="", tag="", path=str(tmp_path / "journal"))
    log.write(STDOUT, b"x" * (LINE_BYTES_MAX + 5) + b"\nrest")
    log.finish()
    log.close()
    with journal:
        got = [fields(journal.recv(65536)) for _ in range(3)]
    assert [len(entry[b"MESSAGE"]) for entry in got] == [LINE_BYTES_MAX, 5, 4]
    assert [b"CONTAINER_PARTIAL_MESSAGE" in entry for entry in got] == [True, False, True]


def test_journal_that_is_not_there_costs_lines_and_not_the_container(tmp_path: Path) -> None:
    """R40: what could not be sent is counted."""
    log = JournalLog(cuuid=ID, name="", tag="", path=str(tmp_path / "nobody"))
    log.write(STDOUT, b"lost\n")
    log.finish()
    log.close()
    assert log.dropped_bytes == 4


def test_journal_that_reads_nothing_does_not_block(journal: socket.socket, tmp_path: Path) -> None:
    """R40: a full socket drops lines at once."""
    log = JournalLog(cuuid=ID, name="", tag="", path=str(tmp_path / "journal"))
    for _ in range(2000):
        log.write(STDOUT, b"y" * 1000 + b"\n")
    log.finish()
    log.close()
    journal.close()
    assert log.dropped_bytes > 0
    assert log.dropped_bytes % 1000 == 0


def test_readiness_is_passed_on_and_nothing_else(tmp_path: Path) -> None:
    """A container may say that it is ready; it may not tell systemd which process is the service."""
    rig = Rig("alone", tmp_path)
    host = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    host.bind(str(tmp_path / "host.sock"))
    host.settimeout(5)
    try:
        folder = tmp_path / f"{MINE}-1-alone"
        (folder / "notify").mkdir(parents=True)
        case = rig.create("/bin/sleep", "1000", options=["--sdnotify-socket", str(tmp_path / "host.sock")]).start()
        inside = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        folder_fd = os.open(case.folder, os.O_PATH)
        for message in (b"MAINPID=1", b"STATUS=x\nREADY=1\nMAINPID=1", b"WATCHDOG=1"):
            inside.sendto(message, f"/proc/self/fd/{folder_fd}/notify/notify.sock")
        os.close(folder_fd)
        inside.close()
        assert (host.recv(100), host.recv(100)) == (b"READY=1", b"WATCHDOG=1")
    finally:
        host.close()
        rig.close()


def test_clients_that_wrote_and_left_do_not_keep_others_out_for_ever(tmp_path: Path) -> None:
    """A container that never reads: their input is lost in the end, and not the places or the monitor's rest."""
    input_read, input_write = os.pipe2(os.O_NONBLOCK)
    with select.epoll() as poll:
        clients = Attach(
            poll, listen(str(tmp_path), "attach", socket.SOCK_SEQPACKET, 0o700), leave_stdin_open=True, patient=False
        )

        def turn() -> None:
            while found := poll.poll(0):
                for fd, events in found:
                    if fd == clients.fd:
                        clients.accept()
                    elif fd == clients.stdin_fd:
                        clients.feed_stdin()
                    else:
                        clients.handle(fd, events)

        def connect() -> socket.socket:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.connect(str(tmp_path / "attach"))
            turn()
            return client

        clients.set_stdin(input_write)
        filled = 0
        while len(clients.clients) < CLIENTS_MAX:
            with connect() as client:
                client.send(b"x" * 16384)
            turn()
            filled += 1
        assert filled > CLIENTS_MAX  # the first ones went into the pipe
        with connect() as refused:
            assert refused.recv(1) == b""
        assert 0 < clients.deadline_ns() <= time.monotonic_ns() + INPUT_NS
        clients.expire(time.monotonic_ns() + INPUT_NS)
        assert clients.resting and clients.deadline_ns() == 0
        with connect() as client:
            assert len(clients.clients) == 1
            clients.broadcast(STDOUT, b"here")
            assert client.recv(10)[1:] == b"here"
        turn()
        clients.close()
    os.close(input_read)
