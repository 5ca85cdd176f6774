#!/bin/bash
# Install the system packages of the named sets that are missing: packages.sh run|test...
#
# Nothing is installed when everything is there, wherever it came from. Services that come with a package are neither
# started nor enabled, and no installed package is ever removed. On a system without apt it says what is needed, and stops.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi

# present PATTERNS: whether a command or a path of the alternatives exists.
present() {
  local pattern
  for pattern in ${1//|/ }; do
    case $pattern in
      /*) compgen -G "$pattern" >/dev/null && return 0 ;;
      *) command -v "$pattern" >/dev/null && return 0 ;;
    esac
  done
  return 1
}

# missing SETS...: lines of "package-alternatives why" for what is not there.
missing() {
  local set package proof why
  while read -r set package proof why; do
    case $set in '' | '#'*) continue ;; esac
    case " $* " in *" $set "*) ;; *) continue ;; esac
    present "$proof" || printf '%s %s\n' "$package" "$why"
  done <"$here/packages.txt"
}

in_archive() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep 'Candidate: [^(]' >/dev/null; }

# choose ALTERNATIVES: the first that the archive has; nothing when an optional one is not there.
choose() {
  local optional='' package
  case $1 in *\?) optional=yes ;; esac
  for package in $(tr '|' ' ' <<<"${1%\?}"); do
    if in_archive "$package"; then printf '%s\n' "$package"; return; fi
  done
  if [ -z "$optional" ]; then fail "this system's archive has none of: ${1//|/, }"; fi
}

# Keep package scripts from starting services, by the means that Debian has for it, and only while this runs.
policy=/usr/sbin/policy-rc.d
policy_made=''
log=''
forbid_services() {
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    policy_made=yes
    "${as_root[@]}" chmod 755 "$policy"
  fi
}
allow_services() { if [ -n "$policy_made" ]; then "${as_root[@]}" rm -f "$policy"; fi; }

# disable PACKAGES...: what these packages brought does not start at the next boot either.
disable() {
  local package unit script
  for package in "$@"; do
    for unit in $(dpkg -L "$package" | sed -nE 's#^(/usr)?/lib/systemd/system/([^/@]+\.(service|socket|timer))$#\2#p'); do
      if command -v systemctl >/dev/null; then "${as_root[@]}" systemctl disable --quiet "$unit" 2>/dev/null || true; fi
    done
    for script in $(dpkg -L "$package" | sed -n 's#^/etc/init.d/##p'); do
      if command -v update-rc.d >/dev/null; then "${as_root[@]}" update-rc.d "$script" disable >/dev/null; fi
    done
  done
}

main() {
  [ $# -gt 0 ] || fail "usage: packages.sh run|test..."
  local lines optional_only=yes package why
  lines=$(missing "$@")
  [ -n "$lines" ] || return 0

  if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    say "This needs, beside what is installed (names as in Debian):" >&2
    while read -r package why; do printf '  %-32s %s\n' "$package" "$why" >&2; done <<<"$lines"
    while read -r package why; do case $package in *\?) ;; *) optional_only='' ;; esac; done <<<"$lines"
    [ -n "$optional_only" ] && return 0
    fail "only apt is known here: install these by your system's means, then run the same command again"
  fi
  if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
    fail "packages are missing, and neither root nor sudo is here to install them: $(cut -d' ' -f1 <<<"$lines" | xargs)"
  fi

  local first packages=() chosen
  first=$(cut -d' ' -f1 <<<"$lines" | grep -v '?$' | head -n 1 | cut -d'|' -f1) || true
  if [ -n "$first" ] && ! in_archive "$first"; then
    say "reading the package lists (apt-get update)"
    "${as_root[@]}" apt-get -qq update
  fi
  while read -r package why; do
    chosen=$(choose "$package")
    if [ -z "$chosen" ]; then say "not in this system's archive, and not needed: ${package%\?}"; continue; fi
    packages+=("$chosen")
    printf 'installing %-28s %s\n' "$chosen" "$why"
  done <<<"$lines"
  [ ${#packages[@]} -gt 0 ] || return 0

  log=$(mktemp)
  trap 'allow_services; rm -f "$log"' EXIT
  forbid_services
  # --no-remove: a package that conflicts with what is installed stops this instead of replacing it.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-remove \
    -o Dpkg::Use-Pty=0 "${packages[@]}" </dev/null 2>"$log" | sed -nE 's/^(Get:|Fetched|Setting up)/  \1/p' ||
    { cat "$log" >&2; fail "apt-get could not install: ${packages[*]}"; }
  disable "${packages[@]}"
}

main "$@"
