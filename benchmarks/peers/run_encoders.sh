#!/usr/bin/env bash
# Measures other engines beside nibble on one encoder.
#   benchmarks/peers/run_encoders.sh MODEL_FOLDER [options of encoders.py]
# They are Python packages (tools/requirements-peers-encoders.txt), installed into .venv: PyTorch for Linux brings
# several GB of GPU libraries along, which it needs for starting even where there is no GPU.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: run_encoders.sh MODEL_FOLDER [OPTION ...]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
model=$1
shift

[ -x "$root/.venv/bin/python" ] || python3 -m venv "$root/.venv"
if ! "$root/.venv/bin/python" -c 'import ctranslate2, onnx, onnxruntime, torch, transformers' 2>/dev/null; then
  echo "peers: installing PyTorch, transformers, ONNX Runtime and CTranslate2 (several GB)"
  "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$root/tools/requirements-peers-encoders.txt"
fi

exec "$root/.venv/bin/python" "$root/benchmarks/peers/encoders.py" --model "$model" --nibble "$root/build/bin/nibble" \
  --out "$root/results/peers-encoders.csv" "$@"
