#!/usr/bin/env bash
# The benchmark of the default model: full precision and 4-bit GPTQ, with every kernel that this machine can run.
#   tools/bench.sh short|full MODEL_FOLDER QUANTISED_FOLDER TEXT_FOLDER
# short: some minutes on two cores; the table's caption states what it leaves out. full: optimum's protocol, 512 new
# tokens after prompts of 512 at batch sizes 1 to 16, half an hour or more on two cores; rows are kept as they are
# measured.
# Rows, tables and a description of the machine go below results/; a further run adds to them.
set -euo pipefail

[ $# -eq 4 ] || { echo "usage: bench.sh short|full MODEL_FOLDER QUANTISED_FOLDER TEXT_FOLDER" >&2; exit 2; }
protocol=$1 model=$2 quantised=$3 text=$4
root=$(cd "$(dirname "$0")/.." && pwd)
nibble=$root/build/bin/nibble

# bench NAME OPTIONS...: into results/NAME
bench() {
  local name=$1
  shift
  "$nibble" bench gptq --model "$model" --gptq-model "$quantised" --kernel all --out "$root/results/$name" "$@"
}

case $protocol in
  short)
    echo "bench: generation at batch sizes 1, 4 and 16, and perplexity"
    bench short --short --batch-size 1,4,16 --ppl "$text/perplexity-short.txt"
    echo "bench: a prompt of 512 tokens by itself"
    bench short-prefill --short --prefill --prompt-length 512
    ;;
  full) bench full --sweep --ppl "$text/perplexity.txt" ;;
  *) echo "bench.sh: the protocol is short or full, not $protocol" >&2; exit 2 ;;
esac
