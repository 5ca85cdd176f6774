#!/bin/bash
# Make .venv with a Python that is new enough, and install this project into it: venv.sh run|dev
#
# `run` brings what the programs need, `dev` the tools for tests and checks too. Done again only when pyproject.toml changed.
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "$0")")")
venv=$root/.venv
wanted=${1:?usage: venv.sh run|dev}

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then command -v "$candidate"; return; fi
  done
  fail "Python 3.11 or newer is needed; none of ${PYTHON:-python3, python3.11 to python3.14} is, and no package of this
       system has one (Debian 12 and Ubuntu 24.04 have it as python3). Install one, or name one: make PYTHON=/path/to/python3"
}

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi

in_archive() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep 'Candidate: [^(]' >/dev/null; }

apt_install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove \
    -o Dpkg::Use-Pty=0 "$@" </dev/null >/dev/null
}

# Where the system's own Python is too old, a newer one may stand beside it in the archive: Ubuntu 22.04 has python3.11.
install_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then return; fi
  done
  [ -z "${PYTHON:-}" ] && command -v apt-get >/dev/null || return 0
  for candidate in python3.13 python3.12 python3.11; do
    if in_archive "$candidate" && in_archive "$candidate-venv"; then
      echo "installing $candidate and $candidate-venv: this system's python3 is too old"
      apt_install "$candidate" "$candidate-venv"
      return
    fi
  done
}

# A venv without pip comes from a Python whose ensurepip is a package of its own, as in Debian.
make_venv() {
  local python
  install_python
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    local package
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    command -v apt-get >/dev/null || fail "$python has no ensurepip: install its package of that name, then run this again"
    echo "installing $package: makes Python environments"
    in_archive "$package" || "${as_root[@]}" apt-get -qq update
    apt_install "$package"
  fi
  echo "making .venv with $("$python" --version)"
  "$python" -m venv "$venv"
}

stamp=$venv/.installed-$wanted
if [ "$stamp" -nt "$root/pyproject.toml" ] || { [ "$wanted" = run ] && [ "$venv/.installed-dev" -nt "$root/pyproject.toml" ]; }; then
  exit 0
fi
if ! new_enough "$venv/bin/python"; then make_venv; fi
case $wanted in
  run) what=$root ;;
  dev) what="$root[dev]" ;;
  *) fail "usage: venv.sh run|dev" ;;
esac
echo "installing this project's Python libraries into .venv ($wanted; the first time takes about a minute)"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable "$what"
touch "$stamp"
