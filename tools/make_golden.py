"""Makes the golden fixtures in tests/data/golden with Hugging Face transformers.

    python tools/make_golden.py [NAME ...]        (needs torch, transformers, safetensors, numpy)

For each NAME of tools/golden_models.py:
  tests/data/golden/NAME/                      a Hugging Face folder with random weights
  tests/data/golden/NAME.golden.safetensors    for each of three rows r of different length:
      r.ids      [T]    int32    the prompt
      r.logits   [T,V]  float32  logits of every position: float32 arithmetic, eager attention, the row alone
      r.greedy   [16]   int32    the greedy continuation, with transformers' key/value cache
      r.margins  [16]   float32  at each of its steps, largest logit minus the second largest

Weights have a standard deviation of 0.3, norms and biases are random, so that a wrong rope, mask or order of rows shows
far above rounding. Seeds are searched until no greedy step has a margin below MIN_MARGIN of the largest logit: another
order of float32 summation then gives the same tokens.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

import golden_models

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"
ROW_LENGTHS = (5, 23, 67)  # the longest crosses every sliding window and original_max_position_embeddings of the models
NEW_TOKENS = 16
MIN_MARGIN = 0.004  # twenty times the 2e-4 that the tests allow between two logits
WEIGHT_STD = 0.3


def random_state(config, generator):
    """Random tensors under the checkpoint's names."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(pathlib.Path(folder) / "config.json", config)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        state[name] = 1.0 + 0.4 * noise.clamp(-2, 2) if name.endswith("norm.weight") else WEIGHT_STD * noise
    return state


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_weights(folder, state, shards, name="model.safetensors"):
    state = {k: v.contiguous() for k, v in state.items()}
    if shards == 1:
        save_file(state, folder / name, metadata={"format": "pt"})
        return
    names = sorted(state)
    weight_map = {n: f"model-{i * shards // len(names) + 1:05d}-of-{shards:05d}.safetensors"
                  for i, n in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        save_file({n: state[n] for n in names if weight_map[n] == file}, folder / file, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in state.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()


def run_row(folder, ids):
    """Logits, greedy continuation and its margins; None if a margin is too small. A fresh model each time, because
    transformers keeps the state of dynamic rope between calls."""
    with torch.no_grad():
        logits = load(folder)(ids[None]).logits[0].float()
        model = load(folder)
        output = model(ids[None], use_cache=True)
        greedy, margins = [], []
        for _ in range(NEW_TOKENS):
            last = output.logits[0, -1].float()
            top = last.topk(2)
            margin = (top.values[0] - top.values[1]).item()
            if margin < MIN_MARGIN * last.abs().max().item():
                return None
            greedy.append(top.indices[0].item())
            margins.append(margin)
            output = model(torch.tensor([[greedy[-1]]]), past_key_values=output.past_key_values, use_cache=True)
    return logits, greedy, margins


def golden_rows(folder, vocab, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    tensors = {}
    for row, length in enumerate(ROW_LENGTHS):
        for _ in range(60):
            ids = torch.randint(0, vocab, (length,), generator=generator)
            result = run_row(folder, ids)
            if result is not None:
                break
        else:
            return None
        logits, greedy, margins = result
        tensors[f"{row}.ids"] = ids.to(torch.int32)
        tensors[f"{row}.logits"] = logits.contiguous()
        tensors[f"{row}.greedy"] = torch.tensor(greedy, dtype=torch.int32)
        tensors[f"{row}.margins"] = torch.tensor(margins)
    return tensors


def make_dense(name, config, dtype, shards, seed):
    dtype_of = getattr(torch, dtype)
    state = {k: v.to(dtype_of) for k, v in random_state(config, torch.Generator().manual_seed(seed)).items()}
    folder = fresh_folder(name)
    write_json(folder / "config.json", dict(config, torch_dtype=dtype))
    write_weights(folder, state, shards)
    return golden_rows(folder, config["vocab_size"], seed)


def fresh_folder(name):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


def pack(codes, bits):
    """[n, m] unsigned codes -> [n * bits / 32, m] int32: a little-endian stream of codes down each column."""
    n, m = codes.shape
    stream = ((codes[:, None, :].astype(np.uint32) >> np.arange(bits, dtype=np.uint32)[None, :, None]) & 1)
    stream = stream.reshape(n * bits // 32, 32, m)
    return (stream << np.arange(32, dtype=np.uint32)[None, :, None]).sum(axis=1, dtype=np.uint32).view(np.int32)


def random_linear(prefix, out_features, in_features, g_idx, spec, rng):
    """GPTQ tensors of one linear, and its dequantised weight [out, in] in float32."""
    bits, groups, top = spec["bits"], int(g_idx.max()) + 1, 2 ** spec["bits"]
    codes = rng.integers(0, top, (in_features, out_features))
    # Uniform codes have a standard deviation of top / sqrt(12).
    scales = (WEIGHT_STD * np.sqrt(12.0) / top * rng.uniform(0.5, 1.5, (groups, out_features))).astype(np.float16)
    if spec["sym"]:
        zeros = np.full((groups, out_features), top // 2)
    else:
        zeros = np.rint(rng.normal((top - 1) / 2, top / 5, (groups, out_features))).clip(0, top - 1).astype(np.int64)
    stored = zeros if spec.get("format") == "gptq_v2" else (zeros - 1) % top
    weight = (codes - zeros[g_idx]).astype(np.float32) * scales[g_idx].astype(np.float32)
    tensors = {
        f"{prefix}.qweight": pack(codes, bits),
        f"{prefix}.qzeros": np.ascontiguousarray(pack(stored.T, bits).T),
        f"{prefix}.scales": scales,
    }
    if spec.get("g_idx", True):
        tensors[f"{prefix}.g_idx"] = g_idx.astype(np.int32)
    return {k: torch.from_numpy(v) for k, v in tensors.items()}, torch.from_numpy(np.ascontiguousarray(weight.T))


def quantise(state, spec, rng):
    """What the GPTQ file holds, and the same model dequantised. Sites with one input (q, k, v; gate, up) share their
    group order, as the algorithm gives it."""
    stored, dense, orders = {}, {}, {}
    for name, tensor in state.items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor.to(torch.float16)
            dense[name] = stored[name].float()
            continue
        prefix = name.removesuffix(".weight")
        out_features, in_features = tensor.shape
        block, site = prefix.rsplit(".", 1)
        shared_input = prefix if site in ("o_proj", "down_proj") else block
        group_size = in_features if spec["group_size"] == -1 else spec["group_size"]
        if shared_input not in orders:
            rank = rng.permutation(in_features) if spec.get("desc_act") else np.arange(in_features)
            orders[shared_input] = rank // group_size
        tensors, weight = random_linear(prefix, out_features, in_features, orders[shared_input], spec, rng)
        stored.update(tensors)
        dense[name] = weight
    return stored, dense


def make_gptq(name, spec, seed):
    config = spec["model"]
    state = random_state(config, torch.Generator().manual_seed(seed))
    stored, dense = quantise(state, spec, np.random.default_rng(seed))
    quantisation = dict(bits=spec["bits"], group_size=spec["group_size"], sym=spec["sym"],
                        desc_act=spec.get("desc_act", False), damp_percent=0.01, true_sequential=True,
                        quant_method="gptq", checkpoint_format=spec.get("format", "gptq"))
    folder = fresh_folder(name)
    place = spec.get("config", "config.json")
    if place == "config.json":
        write_json(folder / "config.json", dict(config, quantization_config=quantisation))
    else:
        write_json(folder / "config.json", config)
        write_json(folder / place, quantisation)
    write_weights(folder, stored, 1, spec.get("weights", "model.safetensors"))
    with tempfile.TemporaryDirectory() as plain:
        plain = pathlib.Path(plain)
        write_json(plain / "config.json", dict(config, torch_dtype="float32"))
        write_weights(plain, dense, 1)
        return golden_rows(plain, config["vocab_size"], seed)


def main(names):
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    known = list(golden_models.DENSE) + list(golden_models.GPTQ)
    for name in names or known:
        if name not in known:
            raise SystemExit(f"unknown fixture {name}; known: {' '.join(known)}")
        for seed in range(1000):
            if name in golden_models.DENSE:
                tensors = make_dense(name, *golden_models.DENSE[name], seed)
            else:
                tensors = make_gptq(name, golden_models.GPTQ[name], seed)
            if tensors is not None:
                break
        save_file(tensors, OUT / f"{name}.golden.safetensors", metadata={"transformers": transformers.__version__})
        smallest = min(tensors[f"{r}.margins"].min().item() for r in range(len(ROW_LENGTHS)))
        print(f"{name}: seed {seed}, smallest margin {smallest:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
