#!/usr/bin/env python3
"""Writes tests/data/gguf/blocks.gguf: random blocks of every type that nibble reads ("q4_0", ...), and beside each the
values that gguf-py gives them, as F32 ("q4_0.expected").   Needs numpy and gguf."""
import pathlib

import gguf
import numpy as np

ROWS, COLUMNS = 2, 256
# Where the 16-bit scales of a block stand; random bits there would give infinities and NaN.
SCALES = {"F16": None, "BF16": None, "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q6_K": [208]}

random = np.random.default_rng(1)
path = pathlib.Path(__file__).parent.parent / "tests/data/gguf/blocks.gguf"
path.parent.mkdir(parents=True, exist_ok=True)
writer = gguf.GGUFWriter(path, "fixture")
for name, places in SCALES.items():
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if places is None:
        values = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        data = gguf.quantize(values, kind)
        data = data.view(np.uint8).reshape(ROWS, -1)
    else:
        blocks = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
        for place in places:
            scale = random.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, place:place + 2] = scale.view(np.uint8).reshape(-1, 2)
        data = blocks.reshape(ROWS, -1)
    writer.add_tensor(name.lower(), data, raw_dtype=kind)
    stored = data if places is not None else data.view(np.float16 if name == "F16" else np.uint8)
    expected = gguf.dequantize(stored, kind)
    writer.add_tensor(name.lower() + ".expected", expected.reshape(ROWS, COLUMNS).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
