"""The default AppArmor profile: loaded where the node has AppArmor, done without where it cannot be."""

import asyncio
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from crio_core.errors import Code, OperationError
from crio_core.oci.security import DEFAULT_APPARMOR_PROFILE
from crio_io.apparmor import PARSER, PARSER_PATH, PROFILE, SECURITYFS, AppArmor

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Machine:
    """A node with a list of profiles, and a parser that adds what it reads to it.

    Args:
        directory: Stands for the one of securityfs.
        path: Where the parser is.
    """

    directory: Path
    path: Path

    @property
    def apparmor(self) -> AppArmor:
        return AppArmor(self.directory, str(self.path))

    @property
    def loads(self) -> list[str]:
        """The arguments of each call of the parser."""
        called = self.path / "called"
        return called.read_text().splitlines() if called.exists() else []

    def list(self, *names: str) -> None:
        """Have these profiles loaded."""
        lines = "".join(f"{name} (enforce)\n" for name in names)
        (self.directory / "profiles").write_text(lines)

    def parser(self, script: str) -> None:
        """Have a parser that notes its arguments and does this."""
        file = self.path / PARSER
        file.write_text(f'#!/bin/sh\necho "$*" >> {self.path}/called\n{script}\n')
        file.chmod(0o755)

    def loading_parser(self) -> None:
        """Have a parser that loads."""
        self.parser(f"sed -n 's/^profile \\([^ ]*\\) .*/\\1 (enforce)/p' >> {self.directory}/profiles")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "securityfs", tmp_path / "bin")
    made.directory.mkdir()
    made.path.mkdir()
    made.list("/usr/bin/man", "a name (with brackets)")
    return made


def usable(apparmor: AppArmor, name: str = DEFAULT_APPARMOR_PROFILE, times: int = 1) -> set[bool]:
    """What that many containers at once are told."""

    async def ask() -> set[bool]:
        return set(await asyncio.gather(*(apparmor.usable(name) for _ in range(times))))

    return asyncio.run(ask())


def test_the_default_profile_that_is_missing_is_loaded_once_for_all_containers(machine: Machine) -> None:
    """A fresh Debian or Ubuntu has AppArmor and no profile of ours: without this no container would start there."""
    machine.loading_parser()
    assert usable(machine.apparmor, times=5) == {True}
    assert machine.loads == ["-Kr"]
    assert DEFAULT_APPARMOR_PROFILE in (machine.directory / "profiles").read_text()


def test_the_default_profile_that_is_there_is_left_alone(machine: Machine) -> None:
    """An administrator may have written a stricter one under the same name."""
    machine.loading_parser()
    machine.list(DEFAULT_APPARMOR_PROFILE)
    assert usable(machine.apparmor) == {True}
    assert machine.loads == []


def test_the_default_profile_that_somebody_unloaded_is_loaded_again(machine: Machine) -> None:
    """aa-remove-unknown(8) takes away whatever has no file in /etc."""
    machine.loading_parser()
    apparmor = machine.apparmor
    assert usable(apparmor) == {True}
    machine.list()
    assert usable(apparmor) == {True}
    assert machine.loads == ["-Kr", "-Kr"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [("", "not installed"), ("echo no such feature >&2; exit 1", "no such feature"), ("kill -9 $$", "could not load")],
)
def test_a_default_profile_that_cannot_be_loaded_is_done_without_and_said_once(
    machine: Machine, script: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A node without the parser runs containers as one without AppArmor does, and its log says so."""
    if script:
        machine.parser(script)
    apparmor = machine.apparmor
    with caplog.at_level(logging.WARNING):
        assert usable(apparmor, times=3) == {False}
        assert usable(apparmor) == {False}
    (message,) = [record.getMessage() for record in caplog.records]
    assert reason in message and DEFAULT_APPARMOR_PROFILE in message


def test_a_profile_by_name_that_is_not_loaded_is_refused_by_its_name(machine: Machine) -> None:
    """Whoever asks for a profile of his own must not run without it; it may be loaded at any time."""
    machine.loading_parser()
    apparmor = machine.apparmor
    with pytest.raises(OperationError, match="'mine' is not loaded") as refused:
        usable(apparmor, "mine")
    assert refused.value.code is Code.FAILED_PRECONDITION
    machine.list("mine", "a name (with brackets)")
    assert usable(apparmor, "mine") == {True}
    assert usable(apparmor, "a name (with brackets)") == usable(apparmor, "unconfined") == {True}
    assert machine.loads == []


def test_where_the_kernel_lists_no_profiles_the_runtime_decides_about_those_by_name(machine: Machine) -> None:
    """Securityfs may not be mounted where the server runs."""
    (machine.directory / "profiles").unlink()
    assert usable(machine.apparmor, "mine") == {True}
    assert usable(machine.apparmor) == {False}


def test_the_profile_refuses_sockets_that_a_filter_cannot_see() -> None:
    """CVE-2026-31431: socketcall(2) hides the family from seccomp, and a 64-bit program can call it, too."""
    denied = [line.strip() for line in PROFILE.splitlines() if line.strip().startswith("deny network")]
    assert denied == ["deny network alg,", "deny network vsock,"]


def test_the_parser_accepts_the_profile() -> None:
    """Compiled, not loaded: this needs no AppArmor in the kernel."""
    parser = shutil.which(PARSER, path=PARSER_PATH)
    if parser is None:
        pytest.skip(f"needs {PARSER}")
    checked = subprocess.run([parser, "-QK"], input=PROFILE, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_kernel_takes_the_profile() -> None:
    """The real thing, where there is one."""
    if not (SECURITYFS / "profiles").exists() or os.geteuid() != 0:
        pytest.skip("needs a kernel with AppArmor, securityfs and root")
    assert usable(AppArmor()) == {True}
    assert f"{DEFAULT_APPARMOR_PROFILE} (enforce)" in (SECURITYFS / "profiles").read_text()
