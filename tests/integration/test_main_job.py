"""The demonstration as a person runs it: to its end, again at once, and interrupted at any moment."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RUN_S = 90.0

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, mounts and cgroups"),
]


NOTHING_LISTENS = """
import sys
from scripts import main_job

main_job.REDIS_PORT, main_job.PONG_S = 1, 1.0
sys.exit(main_job.main())
"""


NOTHING_IS_REMOVED = """
import sys
from scripts import main_job
from scripts.demo_node import DemoFailed, DemoNode

def remove_pods(node):
    raise DemoFailed("the server is broken")

DemoNode.remove_pods = remove_pods
main_job.REDIS_PORT, main_job.PONG_S = 1, 1.0
sys.exit(main_job.main())
"""


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *(arguments or ("-m", "scripts.main_job"))],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _read_until(process: subprocess.Popen[bytes], wanted: str) -> str:
    """What it prints, up to and with `wanted`, or all of it."""
    assert process.stdout is not None
    text = b""
    deadline_s = time.monotonic() + RUN_S
    while not wanted or wanted.encode() not in text:
        ready, _, _ = select.select([process.stdout], [], [], deadline_s - time.monotonic())
        assert ready, f"nothing new in {RUN_S:g} s after:\n{text.decode()}"
        chunk = os.read(process.stdout.fileno(), 65536)
        if not chunk:
            break
        text += chunk
    return text.decode()


def _finish(process: subprocess.Popen[bytes]) -> None:
    """Let a run that a failed test left take its things away."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=RUN_S)
    assert process.stdout is not None
    process.stdout.close()


def _groups() -> set[Path]:
    """Control groups of a server that says nothing else, and what is in them."""
    return set(Path("/sys/fs/cgroup").glob("**/crio/**"))


@pytest.fixture(autouse=True)
def no_control_group_is_left() -> Iterator[None]:
    """The demonstration is a server as it comes, so what it makes has no mark of the tests."""
    before = _groups()
    yield
    assert _groups() == before


def _assert_nothing_left(text: str) -> None:
    """Looked at here by other means than the demonstration's own."""
    directory = Path(text.split(maxsplit=5)[4])
    assert directory.name.startswith("crio-run-"), text
    assert not directory.exists()
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    rules = subprocess.run(["iptables-save"], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert directory.name not in rules
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended
            assert str(directory) not in command
    for bridge in re.findall(r"criorun\d+", text):
        assert not Path("/sys/class/net", bridge).exists()


def test_main_job_run_twice_ends_well_and_leaves_nothing() -> None:
    """Issue 2: ends with `main job: ok` and exit code 0, can be run again at once, takes under a minute."""
    for _ in range(2):
        process = _start()
        try:
            text = _read_until(process, "")
            assert process.wait(RUN_S) == 0, text
        finally:
            _finish(process)
        assert text.endswith("\nmain job: ok\n"), text
        assert text.count("\nPONG\n") == 2
        assert re.search(r"└─\d+ .*conmon", text), text
        assert "Ready to accept connections" in text
        _assert_nothing_left(text)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("a registry on loopback", signal.SIGINT),
        ("crioctl runtimeversion", signal.SIGTERM),
        ("crioctl pod run", signal.SIGINT),
        ("crioctl image pull", signal.SIGINT),
        ("crioctl ctr start", signal.SIGINT),
        ("crioctl pod stop", signal.SIGINT),
    ],
)
def test_main_job_interrupted_leaves_nothing(step: str, number: signal.Signals) -> None:
    """Ctrl-C while a step is under way, also one that the server goes on with when its caller has left."""
    process = _start()
    try:
        text = _read_until(process, step)
        process.send_signal(number)
        text += _read_until(process, "")
        assert process.wait(RUN_S) == 128 + number, text
    finally:
        _finish(process)
    assert "main job: ok" not in text
    _assert_nothing_left(text)


def test_main_job_signalled_while_it_cleans_up_still_leaves_nothing() -> None:
    """An impatient second and third Ctrl-C must not cut the removal short."""
    process = _start()
    try:
        text = _read_until(process, "crioctl tree")
        process.send_signal(signal.SIGINT)
        text += _read_until(process, "removing what there is")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        text += _read_until(process, "")
        assert process.wait(RUN_S) == 128 + signal.SIGINT, text
    finally:
        _finish(process)
    assert "still cleaning up" in text
    _assert_nothing_left(text)


def test_main_job_whose_pods_cannot_be_removed_takes_them_away_by_force() -> None:
    """A server that is broken must not leave a firewall rule, a control group and a process behind."""
    process = _start("-c", NOTHING_IS_REMOVED)
    try:
        text = _read_until(process, "")
        assert process.wait(RUN_S) == 1, text
    finally:
        _finish(process)
    assert "FAILED: the server is broken" in text
    assert "└─" in text  # a container ran
    _assert_nothing_left(text)


def test_main_job_that_fails_says_why_and_leaves_nothing() -> None:
    """A demonstration that cannot go on must not leave a pod, a bridge and a server behind."""
    process = _start("-c", NOTHING_LISTENS)
    try:
        text = _read_until(process, "")
        assert process.wait(RUN_S) == 1, text
    finally:
        _finish(process)
    assert "FAILED: nothing listens at" in text
    assert "the server's log ends with:" in text
    assert "main job: ok" not in text
    _assert_nothing_left(text)
