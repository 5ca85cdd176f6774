"""What `make install` and `make install.config` write, as a packager has them: below DESTDIR, for another place."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crio_server.config.render import default_toml

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parent.parent.parent
INSTALL_S = 300
PROGRAMS = ("crio", "crioctl", "crio-conmon")


def make(target: str, destdir: Path) -> str:
    """Run a target of the Makefile; returns what it said."""
    environment = os.environ | {"DESTDIR": str(destdir), "PREFIX": "/opt/node", "PYTHON": sys.executable}
    done = subprocess.run(
        ["make", "-s", target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged installation, which takes its libraries from the package index."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    destdir = tmp_path_factory.mktemp("destdir")
    make("install", destdir)
    return destdir


def test_programs_are_linked_and_run_where_they_will_lie(installed: Path) -> None:
    """A staging path in a script would name a directory that is gone on the machine that gets the package."""
    home = installed / "opt/node/lib/crio"
    for program in PROGRAMS:
        link = installed / "opt/node/bin" / program
        assert link.is_symlink() and link.resolve() == home / "bin" / program
        assert link.read_text().splitlines()[0] == "#!/opt/node/lib/crio/bin/python"
    texts = [path for path in (home / "bin").iterdir() if path.is_file() and not path.is_symlink()]
    assert [path for path in (*texts, home / "pyvenv.cfg") if str(installed).encode() in path.read_bytes()] == []
    version = [str(home / "bin/python"), str(home / "bin/crio"), "version"]
    assert "CRI:      v1" in subprocess.run(version, capture_output=True, text=True, timeout=60, check=True).stdout


def test_unit_starts_the_installed_server_reloads_it_and_spares_the_pods(installed: Path) -> None:
    """A restart of the server that ended its cgroup's processes would end every pod of the node."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys of units have capitals
    assert unit.read(installed / "opt/node/lib/systemd/system/crio.service")
    service = unit["Service"]
    assert service["ExecStart"].split()[0] == "/opt/node/bin/crio"
    assert service["ExecReload"].endswith("-s HUP $MAINPID")
    assert (service["Restart"], service["KillMode"]) == ("on-failure", "process")
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_configuration_is_written_once_and_never_over_anothers(installed: Path) -> None:
    """An upgrade keeps what an administrator has written."""
    path = installed / "etc/crio/crio.conf"
    assert f"wrote: {path}" in make("install.config", installed)
    assert path.read_text().strip() == default_toml().strip()
    assert (path.stat().st_mode & 0o777, (path.parent / "crio.conf.d").is_dir()) == (0o644, True)
    path.write_text("mine")
    assert f"kept: {path}" in make("install.config", installed)
    assert path.read_text() == "mine"
