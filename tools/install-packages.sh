#!/usr/bin/env bash
# Installs the Debian packages named in the given lists (one name a line), if any is missing.
#   tools/install-packages.sh tools/packages.txt [LIST...]
# Uses apt-get, with sudo where the user is not root. On a system without apt-get it prints the names and stops.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: install-packages.sh LIST..." >&2; exit 2; }
mapfile -t wanted < <(grep -hv '^ *$' "$@" | sort -u)

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "This system has no apt-get. Please install these (Debian's names), then add DEPS=skip to the make command:" >&2
  printf '  %s\n' "${wanted[@]}" >&2
  exit 1
fi

installed() {
  dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null | sed -n 's/^installed //p'
}
mapfile -t missing < <(comm -23 <(printf '%s\n' "${wanted[@]}") <(installed | sort -u))
if [ ${#missing[@]} -eq 0 ]; then
  echo "packages: all ${#wanted[@]} are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "These packages are missing, and neither root nor sudo is at hand: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "packages: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
