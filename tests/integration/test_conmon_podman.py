"""podman with our monitor: another engine's whole use of conmon's command line."""

import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from crio_io.zygote import default_command
from tests.integration.conmon_suite import APPLETS, BUSYBOX, missing_parts, until
from tests.integration.leftovers import MINE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        bool(missing_parts()) or not shutil.which("podman"), reason=missing_parts() or "podman is not installed"
    ),
]

# This machine grants no raised limits; other machines lose nothing by the low ones.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--network", "none", "--pull", "never")
INSTALLED = Path(sys.executable).with_name("crio-conmon")


class Podman:
    """podman with storage of its own and our monitor."""

    def __init__(self, folder: Path, monitor: Path) -> None:
        self._words = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/runroot"]
        self._words += ["--tmpdir", f"{folder}/tmp", "--cgroup-manager", "cgroupfs", "--conmon", str(monitor)]
        self._words += ["--runtime", "runc", "--storage-driver", "vfs", "--events-backend", "file"]
        rootfs = folder / "rootfs"
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy(BUSYBOX, rootfs / "bin/busybox")
        for name in APPLETS:
            (rootfs / "bin" / name).symlink_to("busybox")
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(folder / "image.tar"), "."], check=True)
        self("import", str(folder / "image.tar"), "criotest")

    def __call__(self, *words: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [*self._words, *words], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def run(self, *words: str, stdin: str = "", code: int = 0) -> str:
        return self("run", *LIMITS, *words, stdin=stdin, code=code)

    def terminal(self, *words: str) -> tuple[int, str]:
        """Run with a terminal of its own, as a person would."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*self._words, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        ) as process:
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # What a terminal says when nobody has its other end any more.
                while part := os.read(ours, 4096):
                    shown += part
            os.close(ours)
            return process.wait(60), shown.decode()


def bare_script(folder: Path) -> Path:
    """`crio-conmon` for an interpreter that loads nothing else: what costs least."""
    monitor = folder / "crio-conmon"
    program = default_command()
    flags, code = " ".join(program[1:3]), program[4]
    monitor.write_text(f"#!{program[0]} {flags.replace(' -', '')}\n{code}\n")
    monitor.chmod(0o755)
    return monitor


@pytest.fixture
def podman(request: pytest.FixtureRequest) -> Iterator[Podman]:
    folder = Path(tempfile.mkdtemp(prefix=f"{MINE}-"))  # podman refuses a run root of more than 50 letters
    try:
        installed = getattr(request, "param", "") == "installed"
        made = Podman(folder, INSTALLED if installed else bare_script(folder))
        try:
            yield made
        finally:
            made("rm", "-a", "-f", "-t", "0")
    finally:
        # The monitor of a health check has podman clean up after it, which may be making files here even now.
        until(lambda: not processes_in(folder), "podman is still at work")
        shutil.rmtree(folder)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes whose arguments name something in a directory."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or ())]


@pytest.mark.parametrize("podman", ["bare", "installed"], indirect=True)
def test_run_gives_output_and_exit_code(podman: Podman) -> None:
    """Attached run, removed afterwards."""
    assert podman.run("--rm", "criotest", "/bin/sh", "-c", "echo out; exit 7", code=7) == "out\n"
    assert podman.run("--rm", "-i", "criotest", "/bin/cat", stdin="given") == "given"
    assert podman.run("--rm", "criotest", "/bin/seq", "200000").endswith("\n200000\n")
    assert podman("ps", "-a", "--format", "{{.Names}}") == ""


def test_run_with_terminal_shows_its_output(podman: Podman) -> None:
    """`run -it`: a terminal on both sides."""
    code, output = podman.terminal(
        "run", *LIMITS, "--rm", "-it", "criotest", "/bin/sh", "-c", "test -t 1 && echo a terminal; exit 4"
    )
    assert code == 4
    assert "a terminal" in output


def test_detached_container_is_logged_executed_in_and_killed(podman: Podman) -> None:
    """`run -d`, `logs`, `exec`, `attach`, `kill`, `wait`."""
    podman.run("-d", "--name", "box", "criotest", "/bin/sh", "-c", "echo hello; while :; do sleep 1; done")
    until(lambda: podman("logs", "box") == "hello\n", "no log")
    assert podman("exec", "box", "/bin/sh", "-c", "echo inside; exit 5", code=5) == "inside\n"
    assert podman("exec", "-i", "box", "/bin/cat", stdin="piped") == "piped"
    assert podman("exec", "box", "/bin/seq", "100000").endswith("\n100000\n")
    podman("kill", "-s", "KILL", "box")
    assert podman("wait", "box") == "137\n"


def test_stop_gives_the_containers_own_code(podman: Podman) -> None:
    """SIGTERM, a trap, and a code."""
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"
    podman.run("-d", "--name", "box", "criotest", "/bin/sh", "-c", script)
    until(lambda: podman("logs", "box") == "up\n", "not up")
    podman("stop", "box")
    assert podman("wait", "box") == "9\n"


def test_restart_policy_runs_it_again(podman: Podman) -> None:
    """The exit command is how podman restarts."""
    podman.run("-d", "--name", "box", "--restart", "on-failure:2", "criotest", "/bin/sh", "-c", "echo x; exit 1")
    until(
        lambda: podman("inspect", "box", "--format", "{{.RestartCount}} {{.State.Status}}") == "2 exited\n", "restarts"
    )
    assert podman("logs", "box") == "x\nx\nx\n"


def test_health_check_tells_its_result(podman: Podman) -> None:
    """A health check is an exec without anybody attached."""
    command = ("--health-cmd", "/bin/true", "--health-interval", "disable")
    podman.run("-d", "--name", "box", *command, "criotest", "/bin/sleep", "100")
    podman("healthcheck", "run", "box")


def test_attach_passes_input_and_output(podman: Podman) -> None:
    """`attach` to a container that waits for a line."""
    podman.run("-d", "-i", "--name", "box", "criotest", "/bin/sh", "-c", "read x; echo got $x")
    assert podman("attach", "box", stdin="word\n").strip() == "got word"
    assert podman("wait", "box") == "0\n"


def test_exec_with_terminal_shows_its_output(podman: Podman) -> None:
    """`exec -it`: the terminal is the command's own, and its code comes back."""
    podman.run("-d", "--name", "box", "criotest", "/bin/sleep", "100")
    code, output = podman.terminal("exec", "-it", "box", "/bin/sh", "-c", "test -t 1 && echo a terminal; exit 6")
    assert code == 6
    assert "a terminal" in output


def test_health_check_that_fails_is_told(podman: Podman) -> None:
    """The code of the command is the answer."""
    command = ("--health-cmd", "/bin/false", "--health-interval", "disable", "--health-retries", "1")
    podman.run("-d", "--name", "box", *command, "criotest", "/bin/sleep", "100")
    assert "unhealthy" in podman("healthcheck", "run", "box", code=1)


def test_container_that_is_always_restarted_is_until_it_is_stopped(podman: Podman) -> None:
    """Each life has a monitor of its own, and its exit command begins the next."""
    podman.run("-d", "--name", "box", "--restart", "always", "criotest", "/bin/sh", "-c", "echo x; sleep 0.2")
    until(lambda: int(podman("inspect", "box", "--format", "{{.RestartCount}}")) >= 3, "no restarts")
    podman("stop", "-t", "0", "box")
    assert podman("inspect", "box", "--format", "{{.State.Status}}") == "exited\n"
