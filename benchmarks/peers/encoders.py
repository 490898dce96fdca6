"""Forward passes of one BERT encoder on the CPU: nibble and other engines, on the same ragged batches.

    encoders.py --model FOLDER --out FILE.csv [--nibble PROGRAM] [--batch-size 8,16,64] [--seqlen 64,128,256]
                [--padding 0,0.1,0.2,0.5,0.75] [--peers eager:f32,...] [--rounds 3] [--threads 2]

The lengths of a batch are normal around int((1 - padding) * seqlen) with a standard deviation of 10, cut to integers
and to [1, seqlen]; every engine gets the same ones, nibble through the file FILE.lengths.csv. Rows are padded on the
right to seqlen, with a mask.

Every peer is a process of its own (encoder_worker.py) that loads the model once; one works at a time. Before anything
is timed, each peer's hidden states are compared with those of transformers' eager float32 where there are tokens. A
round times every peer once on every batch, and the next round begins with another one, so that a slow minute of the
machine falls on all; one visit is a warm-up and as many runs as fit --seconds. The CSV holds, for each peer and batch,
the median over all runs.

  eager, sdpa    Hugging Face transformers with that attention
  fastpath       torch.nn.TransformerEncoder: nested tensors without the padding, one fused call a layer
  onnxruntime    exported by torch.onnx, fused by ONNX Runtime's tool for transformers (float32 only)
  ctranslate2    converted by CTranslate2, which leaves padding out too
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
PEERS = ("eager:f32", "sdpa:f32", "fastpath:f32", "onnxruntime:f32", "ctranslate2:f32", "eager:bf16", "sdpa:bf16",
         "fastpath:bf16", "ctranslate2:bf16")
STDEV = 10
SEED = 20
# Difference of the hidden states from the reference as a fraction of its norm; measured: 1e-6 and 0.015.
TOLERANCE = {"f32": 2e-5, "bf16": 0.04}
PAUSE = 0.25  # s; OpenMP's threads wait actively for up to 0.2 s after their work, on cores that the next peer needs
CHECKED = (8, 128, 0.5)  # batch size, length and padding of the batch that is compared
COLUMNS = ("peer", "dtype", "threads", "batch_size", "seqlen", "padding", "tokens", "median_ms", "min_ms", "runs",
           "difference")


# The batches.

def draw_lengths(batch_size, seqlen, padding):
    rng = np.random.default_rng([SEED, batch_size, seqlen, round(padding * 1000)])
    lengths = rng.normal(int((1 - padding) * seqlen), STDEV, batch_size).astype(int)
    return np.clip(lengths, 1, seqlen)


def write_lengths(path, configs):
    """One line a batch; its lengths are separated by spaces."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("batch_size", "seqlen", "padding", "lengths"))
        for config in configs:
            writer.writerow((*config, " ".join(str(n) for n in draw_lengths(*config))))


def read_lengths(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {(int(row["batch_size"]), int(row["seqlen"]), float(row["padding"])):
                np.array(row["lengths"].split(), dtype=np.int32) for row in csv.DictReader(file)}


def store_batches(folder, lengths, vocab):
    files = {}
    for config, row_lengths in lengths.items():
        batch_size, seqlen, padding = config
        rng = np.random.default_rng(zlib.crc32(repr(config).encode()))
        ids = rng.integers(1, vocab - 1, (batch_size, seqlen)).astype(np.int32)
        ids[np.arange(seqlen)[None] >= row_lengths[:, None]] = 0
        files[config] = pathlib.Path(folder) / f"batch-{batch_size}-{seqlen}-{padding}.npz"
        np.savez(files[config], ids=ids, lengths=row_lengths)
    return files


# The peers.

class Peer:
    def __init__(self, name, dtype, args, work):
        self.name, self.dtype = name, dtype
        command = [sys.executable, HERE / "encoder_worker.py", name, dtype, args.model, work, str(args.threads)]
        self.log = open(pathlib.Path(work) / f"{name}-{dtype}.log", "w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"{self.name}:{self.dtype} ended: {self.log.read().strip()[-2000:]}")
        return json.loads(line)

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.answer()

    def hidden(self, batch, out):
        self.ask(op="run", batch=str(batch), out=str(out))
        return np.load(out)

    def times(self, config, batch, seconds):  # noqa: ARG002
        return self.ask(op="time", batch=str(batch), seconds=seconds)["ms"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def start_peers(args, work):
    peers = []
    for text in args.peers:
        name, dtype = text.split(":")
        try:
            peers.append(Peer(name, dtype, args, work))
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr, flush=True)
    return peers


def verify(peers, args, work):
    """Each peer's difference from the reference, over the tokens that are not padding."""
    lengths = {CHECKED: draw_lengths(*CHECKED).astype(np.int32)}
    batch = store_batches(work, lengths, args.vocab)[CHECKED]
    reference = Peer("eager", "f32", args, work)
    expected = reference.hidden(batch, pathlib.Path(work) / "expected.npy")
    reference.close()
    tokens = np.arange(CHECKED[1])[None] < lengths[CHECKED][:, None]
    differences = {}
    for peer in peers:
        hidden = peer.hidden(batch, pathlib.Path(work) / "hidden.npy")
        difference = float(np.linalg.norm((hidden - expected)[tokens]) / np.linalg.norm(expected[tokens]))
        print(f"verify: {peer.name}:{peer.dtype} differs by {difference:.1e}", file=sys.stderr, flush=True)
        if not difference <= TOLERANCE[peer.dtype]:
            raise SystemExit(f"{peer.name}:{peer.dtype} does not compute what transformers does: {difference}")
        differences[peer] = difference
    return differences


# nibble. Its command draws ids of its own, reads the lengths from the file and times in its own process.

class Nibble:
    name = "nibble"

    def __init__(self, dtype, args, lengths_file):
        self.dtype, self.args, self.lengths_file = dtype, args, lengths_file

    def times(self, config, batch, seconds):  # noqa: ARG002
        batch_size, seqlen, padding = config
        command = [self.args.nibble, "--quiet", "bench", "bettertransformer", "--model", self.args.model,
                   "--batch-size", str(batch_size), "--seqlen", str(seqlen), "--padding", str(padding),
                   "--lengths-file", str(self.lengths_file), "--dtype", self.dtype, "--path", "fast",
                   "--seconds", str(seconds), "--threads", str(self.args.threads), "--format", "jsonl"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        # One figure a process: the median of its passes.
        return [json.loads(line)["fast_median_ms"] for line in output.splitlines()]

    def close(self):
        pass


# The measurement.

def measure(args, engines, files):
    """samples[config, engine] = milliseconds of all runs."""
    samples = {(config, engine): [] for config in files for engine in engines}
    for turn in range(args.rounds):
        for done, (config, batch) in enumerate(files.items(), start=1):
            for i in range(len(engines)):
                engine = engines[(i + turn) % len(engines)]
                time.sleep(PAUSE)
                samples[config, engine] += engine.times(config, batch, args.seconds)
            medians = {f"{e.name}:{e.dtype}": statistics.median(samples[config, e]) for e in engines}
            best = min(medians, key=medians.get)
            print(f"[round {turn + 1}/{args.rounds}, {done}/{len(files)}] batch {config[0]}, length {config[1]}, "
                  f"padding {config[2]}: fastest so far {best}, {medians[best]:.1f} ms", file=sys.stderr, flush=True)
    return samples


def write_results(args, engines, lengths, samples, differences):
    out = pathlib.Path(args.out)
    part = out.with_name(out.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for config, row_lengths in lengths.items():
            for engine in engines:
                ms = samples[config, engine]
                difference = f"{differences[engine]:.1e}" if engine in differences else ""
                writer.writerow((engine.name, engine.dtype, args.threads, *config, int(row_lengths.sum()),
                                 f"{statistics.median(ms):.3f}", f"{min(ms):.3f}", len(ms), difference))
    os.replace(part, out)


def list_of(kind):
    return lambda text: [kind(part) for part in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--nibble")
    parser.add_argument("--nibble-dtype", type=list_of(str), default=["f32", "bf16"])
    parser.add_argument("--batch-size", type=list_of(int), default=[8, 16, 64])
    parser.add_argument("--seqlen", type=list_of(int), default=[64, 128, 256])
    parser.add_argument("--padding", type=list_of(float), default=[0.0, 0.1, 0.2, 0.5, 0.75])
    parser.add_argument("--peers", type=list_of(str), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="of timed runs in one visit; at least one run")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers {' '.join(sorted(unknown))}; known: {' '.join(PEERS)}")
    args.vocab = json.loads((pathlib.Path(args.model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return args


def main():
    args = arguments()
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    lengths_file = out.with_suffix(".lengths.csv")
    write_lengths(lengths_file, [(b, n, p) for b in args.batch_size for n in args.seqlen for p in args.padding])
    lengths = read_lengths(lengths_file)
    with tempfile.TemporaryDirectory() as work:
        peers = start_peers(args, work)
        engines = list(peers)
        try:
            differences = verify(peers, args, work)
            files = store_batches(work, lengths, args.vocab)
            if args.nibble:
                engines += [Nibble(dtype, args, lengths_file) for dtype in args.nibble_dtype]
            samples = measure(args, engines, files)
        finally:
            for engine in engines:
                engine.close()
    write_results(args, engines, lengths, samples, differences)
    print(f"{out}: {len(samples)} rows")


if __name__ == "__main__":
    main()
