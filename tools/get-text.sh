#!/usr/bin/env bash
# Gets the English text for calibration and perplexity: Jane Austen's novels out of Debian's package r-cran-janeaustenr.
#   tools/get-text.sh OUT_FOLDER
# The package is downloaded and unpacked, not installed (it would bring R along); tools/make_text.py does the rest.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: get-text.sh OUT_FOLDER" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

if ! command -v apt-get >/dev/null; then
  echo "This system has no apt-get. Unpack Debian's package r-cran-janeaustenr into a folder and run:" >&2
  echo "  python3 tools/make_text.py THAT_FOLDER $1" >&2
  exit 1
fi
echo "text: downloading Debian's package r-cran-janeaustenr"
download() { (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root r-cran-janeaustenr); }
if ! download 2>"$work/log"; then
  echo "text: refreshing apt's package lists first"
  if [ "$(id -u)" -eq 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
  download
fi
mkdir "$work/package"
dpkg-deb -x "$work"/r-cran-janeaustenr_*.deb "$work/package"
python3 "$root/tools/make_text.py" "$work/package" "$1"
