"""nibble and llama.cpp on the same model, alternating in one run: prefill of 512 tokens, decode, several batch sizes.

    compare.py --nibble PROGRAM --model FOLDER --quantised FOLDER --gguf FILE --out PATH [--batch-size 1,4] [--rounds 3]

Each measurement is a process of its own with the same number of threads, prompt length and number of new tokens; both
decode greedily from random prompts. A round measures every system once, and the next round begins with another one, so
that a slow minute of the machine falls on all. Printed are medians over the rounds and, as ratios, each system's time
over that of nibble's GPTQ row (above 1: that row is faster). Writes PATH.md and PATH.json.

The systems differ in what they store; the table gives the sizes:
  llama.cpp Q4_1   the file as it was published (token embedding and head: Q8_0)
  llama.cpp Q4_0   the same file requantised by llama.cpp: the type with its fastest kernels
  nibble           GPTQ, 4 bits, groups of 64, made from the file as published (token embedding and head: 16 bits)
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def llama_cpp(args, gguf, batch):
    command = [sys.executable, HERE / "llama_cpp_bench.py", "time", gguf, "--threads", str(args.threads), "--batch",
               str(batch), "--prompt", str(args.prompt_length), "--new-tokens", str(args.new_tokens)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def nibble(args, folder, kernel, batch):
    command = [args.nibble, "--quiet", "--threads", str(args.threads), "bench", "gptq", "--device", "cpu", "--model",
               folder, "--kernel", kernel, "--batch-size", str(batch), "--prompt-length", str(args.prompt_length),
               "--new-tokens", str(args.new_tokens), "--num-batches", "1", "--format", "jsonl"]
    row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if row["status"] != "ok":
        raise SystemExit(f"{folder}, kernel {kernel}: {row['status']}")
    return {"ttft_ms": row["ttft_ms"], "tpot_ms": row["tpot_ms"], "load_s": row["load_time_s"]}


def megabytes(path):
    path = pathlib.Path(path)
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(f.stat().st_size for f in files) / 1e6


def requantised(args):
    target = pathlib.Path(args.gguf).with_suffix(".q4_0.gguf")
    if not target.exists():
        part = target.with_suffix(".part")
        subprocess.run([sys.executable, HERE / "llama_cpp_bench.py", "quantise", args.gguf, part, "Q4_0"], check=True)
        os.replace(part, target)
    return target


def measure(args, systems):
    """samples[batch][system] = list of results, one a round."""
    samples = {batch: {name: [] for name, _, _ in systems} for batch in args.batch_size}
    total, done = args.rounds * len(args.batch_size) * len(systems), 0
    for turn in range(args.rounds):
        for batch in args.batch_size:
            for i in range(len(systems)):
                name, run, _ = systems[(i + turn) % len(systems)]
                result = run(batch)
                samples[batch][name].append(result)
                done += 1
                print(f"[{done}/{total}] batch {batch}, {name}: prefill {result['ttft_ms']:.1f} ms, "
                      f"decode {result['tpot_ms']:.2f} ms a token", file=sys.stderr, flush=True)
    return samples


def table(args, systems, samples):
    ours = systems[-1][0]
    lines = [f"Prompt {args.prompt_length}, {args.new_tokens} new tokens, {args.threads} threads, medians of "
             f"{args.rounds} alternating rounds; ratios are that system's time over {ours}'s.", "",
             "| batch | system | weights (MB) | prefill (ms) | ratio | decode (ms/token) | ratio |",
             "|---|---|---|---|---|---|---|"]
    for batch in args.batch_size:
        def median(name, key, batch=batch):
            return statistics.median(r[key] for r in samples[batch][name])
        for name, _, size in systems:
            prefill, decode = median(name, "ttft_ms"), median(name, "tpot_ms")
            lines.append(f"| {batch} | {name} | {size:.1f} | {prefill:.1f} | {prefill / median(ours, 'ttft_ms'):.2f} "
                         f"| {decode:.2f} | {decode / median(ours, 'tpot_ms'):.2f} |")
    return "\n".join(lines) + "\n"


def replace_text(path, text):
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def integers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("nibble", "model", "quantised", "gguf", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--batch-size", type=integers, default=[1, 4])
    parser.add_argument("--prompt-length", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    q4_0 = requantised(args)
    systems = [
        ("llama.cpp Q4_1", lambda batch: llama_cpp(args, args.gguf, batch), megabytes(args.gguf)),
        ("llama.cpp Q4_0", lambda batch: llama_cpp(args, q4_0, batch), megabytes(q4_0)),
        ("nibble bf16", lambda batch: nibble(args, args.model, "dense", batch), megabytes(args.model)),
        ("nibble GPTQ", lambda batch: nibble(args, args.quantised, args.kernel, batch), megabytes(args.quantised)),
    ]
    samples = measure(args, systems)
    text = table(args, systems, samples)
    print(text)
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out.with_suffix(".md"), text)
    facts = {k: v for k, v in vars(args).items() if k not in ("out",)}
    replace_text(out.with_suffix(".json"), json.dumps({"arguments": facts, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
