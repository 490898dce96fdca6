#!/usr/bin/env bash
# Runs every fuzz target of build-fuzz for a number of seconds each, from its seeds in tests/fuzz/corpus/NAME.
#   tools/fuzz.sh SECONDS [NAME...]
# What it finds new stays in build-fuzz/corpus/NAME. The first crash stops the run; its input lies in build-fuzz/.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: fuzz.sh SECONDS [NAME...]" >&2; exit 2; }
seconds=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root/build-fuzz"

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
  for program in fuzz_*; do
    [ -f "$program" ] && [ -x "$program" ] && names+=("${program#fuzz_}")
  done
fi
[ ${#names[@]} -gt 0 ] || { echo "fuzz: build-fuzz holds no fuzz target" >&2; exit 1; }

for name in "${names[@]}"; do
  mkdir -p "corpus/$name"
  seeds=()
  [ -d "$root/tests/fuzz/corpus/$name" ] && seeds=("$root/tests/fuzz/corpus/$name")
  echo "fuzz: $name for $seconds s"
  # 64 KiB reach every branch of the parsers and keep the rate high; 2 GiB and 10 s an input catch runaway allocation.
  if ! "./fuzz_$name" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
      -artifact_prefix="crash_${name}_" "corpus/$name" "${seeds[@]}" >"log_$name" 2>&1; then
    tail -n 60 "log_$name"
    echo "fuzz: $name failed; the input is beside this log in build-fuzz/" >&2
    exit 1
  fi
  grep -E 'number_of_executed_units|average_exec_per_sec' "log_$name" | sed 's/^stat::/  /'
done
