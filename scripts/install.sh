#!/bin/bash
# install.sh programs: an environment of their own in PREFIX/lib/crio, links in PREFIX/bin, a systemd unit.
# install.sh config: the default configuration with comments in SYSCONFDIR/crio/crio.conf, unless there is one.
#
# With DESTDIR everything is written below it, yet names its final place, as packagers need it.
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "$0")")")
prefix=${PREFIX:-/usr/local}
destdir=${DESTDIR:-}
home=$prefix/lib/crio
staged=$destdir$home

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

install_programs() {
  local python='' candidate program
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$("$candidate" -c 'import sys; print(sys.executable)')
      break
    fi
  done
  [ -n "$python" ] || fail "Python 3.11 or newer with venv is needed: install it, or name one: make install PYTHON=/path/to/python3"

  echo "installing into $staged with $("$python" --version)"
  install -d "$destdir$prefix/bin" "$destdir$prefix/lib/systemd/system"
  "$python" -m venv "$staged" >/dev/null
  "$staged/bin/python" -m pip install -qq --disable-pip-version-check --no-compile "$root"
  # The version alone does not tell whether the code changed, so this project is always written anew.
  "$staged/bin/python" -m pip install -qq --disable-pip-version-check --no-compile --no-deps --force-reinstall "$root"

  if [ -n "$destdir" ]; then
    # pip writes the path that it sees into each script: take the staging part out of them.
    grep -rlIZ --exclude-dir=lib "$staged" "$staged/bin" "$staged/pyvenv.cfg" | xargs -0 -r sed -i "s|$staged|$home|g"
  fi
  for program in crio crioctl crio-conmon; do
    ln -sfn "../lib/crio/bin/$program" "$destdir$prefix/bin/$program"
  done
  sed "s|/usr/local/bin/|$prefix/bin/|g" "$root/contrib/crio.service" >"$destdir$prefix/lib/systemd/system/crio.service"
  chmod 644 "$destdir$prefix/lib/systemd/system/crio.service"
  echo "installed: $destdir$prefix/bin/{crio,crioctl,crio-conmon}, $destdir$prefix/lib/systemd/system/crio.service"
}

install_config() {
  local target=$destdir${SYSCONFDIR:-/etc}/crio/crio.conf python=$staged/bin/python
  if [ -e "$target" ]; then
    echo "kept: $target"
    return
  fi
  if [ ! -x "$python" ]; then
    "$root/scripts/venv.sh" run
    python=$root/.venv/bin/python
  fi
  install -d "$(dirname "$target")/crio.conf.d"
  "$python" -c 'from crio_server.main import main; main()' config --default >"$target.new"
  chmod 644 "$target.new"
  mv "$target.new" "$target"
  echo "wrote: $target"
}

case ${1:-} in
  programs) install_programs ;;
  config) install_config ;;
  *) fail "usage: install.sh programs|config" ;;
esac
