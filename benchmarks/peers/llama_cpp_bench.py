"""Times llama.cpp on one GGUF file through llama-cpp-python, and requantises with llama.cpp's own quantiser.

    llama_cpp_bench.py time MODEL.gguf --threads N [--batch 1] [--prompt 512] [--new-tokens 128]
    llama_cpp_bench.py quantise IN.gguf OUT.gguf TYPE            (TYPE: Q4_0, Q4_1, Q4_K_M)

`time` prints one line of JSON: load_s; ttft_ms, one pass over the prompts that ends with the first greedy tokens;
tpot_ms, mean over the further greedy steps. One warm-up of both parts comes before. It uses the C API that the package
exposes, so that Python is outside of what is timed but for one argmax a step and sequence.
"""

import argparse
import ctypes
import json
import random
import time

import llama_cpp
import numpy as np

FTYPES = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
          "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}
PHYSICAL_BATCH = 512  # llama.cpp's own default of rows a pass


class Session:
    def __init__(self, path, threads, batch, tokens):
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        begun = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = tokens * batch
        params.n_batch = tokens * batch
        params.n_ubatch = PHYSICAL_BATCH
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp cannot make a context of {tokens} tokens for {batch} sequences")
        self.load_s = time.perf_counter() - begun
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(tokens * batch, 0, 1)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def forward(self, rows, start):
        """Runs rows[s] (of equal length) of each sequence s from position `start`; returns the argmax after each."""
        batch, ends, n = self.batch, [], 0
        for sequence, tokens in enumerate(rows):
            for offset, token in enumerate(tokens):
                last = offset == len(tokens) - 1
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, start + offset, 1
                batch.seq_id[n][0], batch.logits[n] = sequence, last
                if last:
                    ends.append(n)
                n += 1
        batch.n_tokens = n
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            raise SystemExit(f"llama_decode failed with {code}")
        return [int(np.argmax(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), (self.vocab,))))
                for i in ends]

    def generate(self, prompts, new_tokens):
        self.clear()
        begun = time.perf_counter()
        tokens = self.forward(prompts, 0)
        first = time.perf_counter()
        for step in range(new_tokens - 1):
            tokens = self.forward([[t] for t in tokens], len(prompts[0]) + step)
        ended = time.perf_counter()
        return (first - begun) * 1e3, (ended - first) * 1e3 / max(new_tokens - 1, 1)


def measure(args):
    session = Session(args.model, args.threads, args.batch, args.prompt + args.new_tokens)
    rng = random.Random(0)
    prompts = [[rng.randrange(1, session.vocab - 1) for _ in range(args.prompt)] for _ in range(args.batch)]
    session.generate(prompts, min(args.new_tokens, 8))
    ttft, tpot = session.generate(prompts, args.new_tokens)
    print(json.dumps({"load_s": session.load_s, "ttft_ms": ttft, "tpot_ms": tpot, "version": llama_cpp.__version__,
                      "system": llama_cpp.llama_print_system_info().decode().strip()}))


def quantise(args):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[args.type]
    params.allow_requantize = True
    code = llama_cpp.llama_model_quantize(args.source.encode(), args.target.encode(), ctypes.byref(params))
    if code != 0:
        raise SystemExit(f"{args.source}: llama.cpp's quantiser failed with {code}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    timing = commands.add_parser("time")
    timing.add_argument("model")
    timing.add_argument("--threads", type=int, required=True)
    timing.add_argument("--batch", type=int, default=1)
    timing.add_argument("--prompt", type=int, default=512)
    timing.add_argument("--new-tokens", type=int, default=128)
    timing.set_defaults(run=measure)
    requantise = commands.add_parser("quantise")
    requantise.add_argument("source")
    requantise.add_argument("target")
    requantise.add_argument("type", choices=sorted(FTYPES))
    requantise.set_defaults(run=quantise)

    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
