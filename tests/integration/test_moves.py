"""Announcing moves between control groups: it changes nothing but when the kernel waits."""

import os
import threading
import time
from pathlib import Path

import pytest

from crio_io.cgroups import Cgroups
from crio_io.moves import Moves

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="moves processes between control groups: needs root"),
]
WAIT_S = 10.0


def waiting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "crio-moves"]


def settle() -> None:
    for thread in waiting():
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_expected_moves_leave_the_server_where_it_is() -> None:
    """The server's own place in every hierarchy is its service manager's business."""
    before = Path("/proc/self/cgroup").read_text()
    moves = Moves(Cgroups.detect())
    for _ in range(3):
        moves.expect()
        settle()
    assert Path("/proc/self/cgroup").read_text() == before


def test_expecting_many_moves_at_once_starts_one_thread() -> None:
    """R15: twenty containers at once must not become twenty threads that wait for the same thing."""
    moves = Moves(Cgroups.detect())
    deadline_s = time.monotonic() + 0.2
    while time.monotonic() < deadline_s:
        moves.expect()
        assert len(waiting()) <= 2  # One that works, and one that has just handed over and is about to end.
    settle()
    moves.expect()
    settle()


def test_expecting_moves_without_hierarchies_is_harmless() -> None:
    """Whether it helps is a matter of time only, so nothing of it may fail a creation."""
    found = Cgroups.detect()
    moves = Moves(Cgroups(mode=found.mode, hierarchies=()))
    moves.expect()
    settle()
    moves.expect()
    settle()
