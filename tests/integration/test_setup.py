"""Setting a machine up changes as little of it as it can, and says clearly what it cannot do."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
# What the scripts themselves call; everything else is hidden from them.
TOOLS = ("bash", "cat", "cut", "dirname", "env", "grep", "head", "id", "mktemp", "readlink", "rm", "sed", "tr", "xargs")
TIMEOUT_S = 60


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The commands of a machine with nothing but a shell; a copy of the scripts lies beside them."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, f"this machine has no {tool}"
        (commands / tool).symlink_to(found)
    shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    # The script looks into the directories of administrators' commands too, which a test cannot hide: take that out.
    script = tmp_path / "scripts" / "packages.sh"
    text = script.read_text()
    assert "export PATH=$PATH:" in text
    script.write_text("".join(line for line in text.splitlines(True) if not line.startswith("export PATH=")))
    return tmp_path


def run_script(machine: Path, script: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(machine / "bin" / "bash"), str(machine / "scripts" / script), *argv]
    env = {"PATH": str(machine / "bin"), "HOME": str(machine)} | env
    return subprocess.run(command, env=env, cwd=machine, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def add_command(machine: Path, name: str, text: str = "#!/bin/sh\nexit 0\n") -> None:
    path = machine / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def write_packages(machine: Path, *lines: str) -> None:
    (machine / "scripts" / "packages.txt").write_text("# comment\n\n" + "\n".join(lines) + "\n")


def test_packages_present_from_anywhere_installs_nothing(machine: Path) -> None:
    """A runc of Docker's is a runc: installing Debian's over it could remove Docker."""
    write_packages(machine, "run runc runc runs containers", "run certs /nowhere/*|/etc/passwd a path counts too")
    add_command(machine, "runc")
    add_command(machine, "apt-get", "#!/bin/sh\necho apt-get was called >&2\nexit 1\n")
    ran = run_script(machine, "packages.sh", "run")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_packages_missing_without_apt_names_them_and_stops(machine: Path) -> None:
    """On another distribution a guess at package names would be worse than a list."""
    write_packages(machine, "run runc runc runs containers", "test umoci umoci unpacks")
    ran = run_script(machine, "packages.sh", "run")
    assert ran.returncode == 1
    assert "runc" in ran.stderr
    assert "runs containers" in ran.stderr
    assert "only apt is known" in ran.stderr
    assert "umoci" not in ran.stderr  # not of the set that was asked for


def test_packages_optional_missing_without_apt_goes_on(machine: Path) -> None:
    """A runtime that only some tests use must not keep a machine from running the others."""
    write_packages(machine, "test runsc? runsc a sandbox")
    ran = run_script(machine, "packages.sh", "test")
    assert (ran.returncode, "runsc" in ran.stderr) == (0, True)


def test_packages_missing_with_apt_are_asked_for_without_services_or_removals(machine: Path) -> None:
    """The one call of apt-get is what protects the machine, so its words are compared whole."""
    write_packages(
        machine,
        "run runc runc runs containers",
        "run libnew|libold /nowhere/lib.so unpacks",
        "run other? nothere compares",
    )
    calls = machine / "calls"
    has = "*runc | *libold"
    add_command(machine, "apt-cache", f"#!/bin/sh\ncase $2 in {has}) echo '  Candidate: 1.0' ;; esac\n")
    # apt-get makes a note of its words, and of whether services may start meanwhile.
    note = f'echo "$* services=$([ -e {machine}/policy ] && echo forbidden)" >> {calls}'
    add_command(machine, "apt-get", f"#!/bin/sh\n{note}\necho 'Setting up runc (1.0) ...'\n")
    for name in ("dpkg", "sudo"):
        add_command(machine, name, '#!/bin/sh\n[ "${0##*/}" = sudo ] && exec "$@"\nexit 0\n')
    for tool in ("tee", "chmod"):
        (machine / "bin" / tool).symlink_to(str(shutil.which(tool)))
    script = machine / "scripts" / "packages.sh"
    script.write_text(script.read_text().replace("policy=/usr/sbin/policy-rc.d", f"policy={machine}/policy"))

    ran = run_script(machine, "packages.sh", "run")

    assert ran.returncode == 0, ran.stderr
    assert calls.read_text().splitlines() == [
        "install -y -q --no-install-recommends --no-remove -o Dpkg::Use-Pty=0 runc libold services=forbidden"
    ]
    assert not (machine / "policy").exists(), "services must be able to start again afterwards"
    assert "not in this system's archive, and not needed: other" in ran.stdout


def test_packages_failing_apt_shows_its_words_and_allows_services_again(machine: Path) -> None:
    """A failed installation must not leave a machine on which no service starts any more."""
    write_packages(machine, "run runc runc runs containers")
    add_command(machine, "apt-cache", "#!/bin/sh\necho '  Candidate: 1.0'\n")
    add_command(machine, "apt-get", "#!/bin/sh\necho 'E: it conflicts' >&2\nexit 100\n")
    for name in ("dpkg", "sudo"):
        add_command(machine, name, '#!/bin/sh\n[ "${0##*/}" = sudo ] && exec "$@"\nexit 0\n')
    for tool in ("tee", "chmod"):
        (machine / "bin" / tool).symlink_to(str(shutil.which(tool)))
    script = machine / "scripts" / "packages.sh"
    script.write_text(script.read_text().replace("policy=/usr/sbin/policy-rc.d", f"policy={machine}/policy"))

    ran = run_script(machine, "packages.sh", "run")

    assert ran.returncode == 1
    assert "E: it conflicts" in ran.stderr
    assert "could not install: runc" in ran.stderr
    assert not (machine / "policy").exists()


OLD_PYTHON = "#!/bin/sh\nexit 1\n"
NEW_PYTHON = """#!/bin/sh
case "$*" in
  --version) echo Python 3.11.9 ;;
  "-m venv "*) mkdir -p "$3/bin"
    printf '#!/bin/sh\necho "$@" >> {calls}\n' > "$3/bin/python"
    chmod 755 "$3/bin/python" ;;
esac
"""


def test_venv_on_a_system_with_a_newer_python_beside_its_own_installs_that(machine: Path) -> None:
    """Ubuntu 22.04: python3 is 3.10, and python3.11 is in the archive. One command must be enough there too."""
    calls = machine / "calls"
    for tool in ("mkdir", "chmod", "touch", "cp"):
        if not (machine / "bin" / tool).exists():
            (machine / "bin" / tool).symlink_to(str(shutil.which(tool)))
    add_command(machine, "python3", OLD_PYTHON)
    add_command(machine, "apt-cache", "#!/bin/sh\ncase $2 in python3.11*) echo '  Candidate: 3.11.0' ;; esac\n")
    new = machine / "new-python"
    new.write_text(NEW_PYTHON.format(calls=calls))
    new.chmod(0o755)
    add_command(machine, "apt-get", f'#!/bin/sh\necho "apt-get $*" >> {calls}\ncp {new} {machine}/bin/python3.11\n')
    add_command(machine, "sudo", '#!/bin/sh\nexec "$@"\n')
    (machine / "pyproject.toml").touch()

    ran = run_script(machine, "venv.sh", "run")

    assert ran.returncode == 0, ran.stderr
    apt, pip = calls.read_text().splitlines()
    assert apt.startswith("apt-get install -y") and apt.endswith(" python3.11 python3.11-venv")
    assert pip.startswith("-m pip install")
    assert "installing python3.11 and python3.11-venv: this system's python3 is too old" in ran.stdout


def test_venv_without_a_new_python_says_which_one_is_needed(machine: Path) -> None:
    """Without this, an old Python fails later, in a syntax error."""
    add_command(machine, "python3", "#!/bin/sh\nexit 1\n")
    (machine / "pyproject.toml").touch()
    ran = run_script(machine, "venv.sh", "run")
    assert ran.returncode == 1
    assert "Python 3.11 or newer is needed" in ran.stderr
    assert not (machine / ".venv").exists()


def test_list_of_packages_gives_each_its_set_proof_and_reason() -> None:
    """A package that nobody can explain stays for ever."""
    rows = [line.split(maxsplit=3) for line in (SCRIPTS / "packages.txt").read_text().splitlines()]
    rows = [row for row in rows if row and row[0] != "#" and not row[0].startswith("#")]
    assert {row[0] for row in rows} == {"run", "test"}
    assert [row for row in rows if len(row) != 4 or len(row[3]) < 10] == []
    names = [row[1] for row in rows]
    assert len(names) == len(set(names))


def test_this_machine_has_what_the_tests_need() -> None:
    """The list must name what shows that a package is there: a wrong path would install it again and again."""
    command = [str(SCRIPTS / "packages.sh"), "run", "test"]
    if shutil.which("runsc") is None:
        pytest.skip("an optional package is missing: this would ask apt for it")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
