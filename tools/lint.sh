#!/usr/bin/env bash
# Checks the form of the sources.
#   tools/lint.sh format [--fix]     clang-format of every C++ file; no line of Python, shell or CMake above 120 columns
#   tools/lint.sh tidy [COMMIT]      clang-tidy of the sources that changed since COMMIT, the latest first (without it:
#                                    of all); units not begun after TIDY_SECONDS are named instead (0: no limit)
#   tools/lint.sh files              no file of code above 800 lines; headers begin with #pragma once
# tidy needs compile_commands.json of a configured build folder (BUILD, default build).
set -euo pipefail

cd "$(dirname "$0")/.."
columns=120
lines=800

sources() { git ls-files -co --exclude-standard -- '*.cpp' '*.h'; }

format() {
  if [ "${1:-}" = --fix ]; then
    sources | xargs -r clang-format-19 -i
    return
  fi
  local count
  count=$(sources | wc -l)
  sources | xargs -r clang-format-19 --dry-run --Werror
  local long
  long=$(git ls-files -co --exclude-standard -- '*.py' '*.sh' '*.cmake' CMakeLists.txt Makefile .ci/run |
    xargs -r awk -v max=$columns 'length > max {print FILENAME ":" FNR ": " length " columns"}')
  [ -z "$long" ] || { printf 'lines above %d columns:\n%s\n' $columns "$long" >&2; return 1; }
  echo "format: $count C++ files are as .clang-format says"
}

# The set of files that a header's change touches is left to the units named for it: x.h brings x.cpp along. What is not
# committed comes first, then the units of the latest commits.
changed_units() {
  local base=$1 file
  { git diff --name-only HEAD -- '*.cpp' '*.h'; git log --name-only --format= "$base..HEAD" -- '*.cpp' '*.h'; } |
    while read -r file; do
      file=${file%.h}
      file=${file%.cpp}.cpp
      if [ -f "$file" ]; then echo "$file"; fi
    done | awk '!seen[$0]++'
}

tidy() {
  local build=${BUILD:-build} units
  if [ ! -f "$build/compile_commands.json" ]; then
    echo "tidy: $build/compile_commands.json is missing; run make configure" >&2
    return 1
  fi
  if [ $# -ge 1 ]; then units=$(changed_units "$1"); else units=$(sources | grep '\.cpp$'); fi
  # Only what this configuration compiles has flags to check it with.
  local compiled
  compiled=$(sed -n "s|^ *\"file\": \"$PWD/\(.*\)\",*$|\1|p" "$build/compile_commands.json")
  units=$(grep -Fx "$compiled" <<<"$units" || true)
  [ -n "$units" ] || { echo "tidy: nothing to check"; return 0; }
  echo "tidy: $(wc -l <<<"$units") units"
  local left
  left=$(mktemp)
  export BUILD=$build TIDY_LEFT=$left
  TIDY_BEGUN=$(date +%s)
  export TIDY_BEGUN
  xargs -P "${JOBS:-$(nproc)}" -n 1 tools/lint.sh tidy_unit <<<"$units" \
    2> >(grep -v 'warnings generated\|Suppressed\|Use -header-filter' >&2)
  if [ -s "$left" ]; then
    echo "tidy: no time was left for $(wc -l <"$left") units (make lint checks all):"
    sed 's/^/  /' "$left"
  fi
  rm -f "$left"
}

# One unit of tidy().
tidy_unit() {
  if [ "${TIDY_SECONDS:-0}" -gt 0 ] && [ $(($(date +%s) - TIDY_BEGUN)) -ge "$TIDY_SECONDS" ]; then
    echo "$1" >>"$TIDY_LEFT"
    return
  fi
  # clang does not know this spelling of gcc's warnings; its own warnings are not the point here.
  clang-tidy-19 -p "$BUILD" --quiet --extra-arg=-Wno-unknown-warning-option "$1"
}

files() {
  local bad
  bad=$(git ls-files -co --exclude-standard -- '*.h' '*.cpp' '*.cu' '*.cuh' '*.py' '*.sh' | xargs -r wc -l |
    awk -v max=$lines '$2 != "total" && $1 > max {print $2 ": " $1 " lines"}')
  [ -z "$bad" ] || { printf 'files above %d lines:\n%s\n' $lines "$bad" >&2; return 1; }
  bad=$(git ls-files -co --exclude-standard -- '*.h' | xargs -r grep -L '^#pragma once$' || true)
  [ -z "$bad" ] || { printf 'headers without #pragma once:\n%s\n' "$bad" >&2; return 1; }
  echo "files: none above $lines lines, every header has #pragma once"
}

case "${1:-}" in
  format | tidy | tidy_unit | files) "$@" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
