#!/usr/bin/env bash
# Measures llama.cpp beside nibble on the same model.
#   benchmarks/peers/run.sh MODEL_FOLDER QUANTISED_FOLDER MODEL.gguf [options of compare.py]
# llama-cpp-python (tools/requirements-peers.txt) is compiled for this processor into .venv: some minutes, once.
set -euo pipefail

[ $# -ge 3 ] || { echo "usage: run.sh MODEL_FOLDER QUANTISED_FOLDER MODEL.gguf" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
model=$1 quantised=$2 gguf=$3
shift 3

[ -x "$root/.venv/bin/python" ] || python3 -m venv "$root/.venv"
if ! "$root/.venv/bin/python" -c 'import llama_cpp' 2>/dev/null; then
  echo "peers: compiling llama-cpp-python for this processor"
  # g++ 12 compiles llama.cpp's AMX code such that loading a tile configuration faults (seen with 0.3.36 on a Xeon that
  # runs other AMX programs well), so it runs here on its AVX-512 and VNNI code.
  flags="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
  if grep -qw amx_int8 /proc/cpuinfo; then
    flags+=" -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"
  fi
  CMAKE_ARGS=$flags CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$root/.venv/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-binary llama-cpp-python --requirement "$root/tools/requirements-peers.txt"
fi

exec "$root/.venv/bin/python" "$root/benchmarks/peers/compare.py" --nibble "$root/build/bin/nibble" \
  --model "$model" --quantised "$quantised" --gguf "$gguf" --out "$root/results/peers" "$@"
