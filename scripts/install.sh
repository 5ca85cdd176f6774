#!/bin/bash
# Install the programs for good: an environment of their own in PREFIX/lib/crio, links in PREFIX/bin, a systemd unit.
#
# With DESTDIR everything is written below it, yet names its final place, as packagers need it.
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "$0")")")
prefix=${PREFIX:-/usr/local}
destdir=${DESTDIR:-}
home=$prefix/lib/crio
staged=$destdir$home

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

python=''
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$("$candidate" -c 'import sys; print(sys.executable)')
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 or newer with venv is needed: install it, or name one: make install PYTHON=/path/to/python3"

echo "installing into $staged with $("$python" --version)"
install -d "$destdir$prefix/bin" "$destdir$prefix/lib/systemd/system"
"$python" -m venv --upgrade-deps "$staged" >/dev/null
"$staged/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$root"
# The version alone does not tell whether the code changed, so this project is always written anew.
"$staged/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --force-reinstall "$root"

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
