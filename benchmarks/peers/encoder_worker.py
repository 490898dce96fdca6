"""One engine with the encoder loaded, serving requests: encoders.py starts one of these processes for each peer.

    encoder_worker.py PEER DTYPE MODEL_FOLDER WORK_FOLDER THREADS

Reads lines of JSON and answers each with one: {"op": "run", "batch": FILE.npz, "out": FILE.npy} stores the hidden
states; {"op": "time", "batch": FILE.npz, "seconds": S} runs once to warm up, then at least once and until S have gone
by, and answers with the milliseconds of each run. The first line it writes says that the model is loaded.

A batch holds `ids` [B,L] and `lengths` [B]. What is timed goes from the engine's own tensors of ids and mask to its
last hidden states; making those tensors is not.
"""

import json
import os
import pathlib
import sys
import time

# Before any engine is imported: each reads it while it loads.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = sys.argv[5]

import numpy as np  # noqa: E402


def mask_of(ids, lengths):
    return (np.arange(ids.shape[1])[None] < lengths[:, None]).astype(np.int64)


def torch_model(folder, dtype, attention):
    import torch
    import transformers
    torch.set_num_threads(int(sys.argv[5]))
    return transformers.AutoModel.from_pretrained(
        folder, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[dtype], attn_implementation=attention).eval()


class Transformers:
    """Hugging Face transformers as it is, with the attention that its name says."""

    def __init__(self, folder, dtype, attention):
        import torch
        self.torch = torch
        self.model = torch_model(folder, dtype, attention)

    def prepare(self, ids, lengths):
        mask = self.torch.from_numpy(mask_of(ids, lengths))
        return {"input_ids": self.torch.from_numpy(ids).long(), "attention_mask": mask}

    def run(self, arguments):
        with self.torch.inference_mode():
            return self.model(**arguments).last_hidden_state

    def array(self, hidden):
        return hidden.float().numpy()


class FastPath:
    """PyTorch's own encoder: nested tensors without the padding, one fused call a layer."""

    def __init__(self, folder, dtype):
        import torch
        self.torch = torch
        model = torch_model(folder, dtype, "eager")
        config = model.config
        layer = torch.nn.TransformerEncoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, activation="gelu",
            layer_norm_eps=config.layer_norm_eps, batch_first=True)
        encoder = torch.nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=True)
        for target, source in zip(encoder.layers, model.encoder.layer, strict=True):
            self.copy_layer(target, source)
        self.embeddings = model.embeddings
        self.encoder = encoder.to(model.dtype).eval()

    def copy_layer(self, target, source):
        attention, parts = source.attention, ("query", "key", "value")
        projections = [getattr(attention.self, part) for part in parts]
        pairs = [(target.self_attn.out_proj, attention.output.dense), (target.norm1, attention.output.LayerNorm),
                 (target.linear1, source.intermediate.dense), (target.linear2, source.output.dense),
                 (target.norm2, source.output.LayerNorm)]
        with self.torch.no_grad():
            target.self_attn.in_proj_weight.copy_(self.torch.cat([p.weight for p in projections]))
            target.self_attn.in_proj_bias.copy_(self.torch.cat([p.bias for p in projections]))
            for ours, theirs in pairs:
                ours.weight.copy_(theirs.weight)
                ours.bias.copy_(theirs.bias)

    def prepare(self, ids, lengths):
        return self.torch.from_numpy(ids).long(), self.torch.from_numpy(mask_of(ids, lengths) == 0)

    def run(self, arguments):
        ids, padding = arguments
        with self.torch.inference_mode():
            return self.encoder(self.embeddings(input_ids=ids), src_key_padding_mask=padding)

    def array(self, hidden):
        return hidden.float().numpy()

    def check(self, hidden, mask):
        if hidden[mask == 0].any():  # nested tensors come back padded with zeros
            raise SystemExit("PyTorch did not take its fast path")


class OnnxRuntime:
    """The model exported by torch.onnx, then fused by ONNX Runtime's tool for transformers and by its session."""

    def __init__(self, folder, work):
        import onnxruntime
        path = pathlib.Path(work) / "encoder.fused.onnx"
        if not path.exists():
            self.export(folder, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(sys.argv[5])
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def export(self, folder, path):
        import torch
        from onnxruntime.transformers import optimizer
        model = torch_model(folder, "f32", "eager")
        plain, fused = path.with_name("encoder.onnx"), path.with_name("encoder.part.onnx")
        ids = torch.randint(5, 100, (2, 16))
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        names = ["input_ids", "attention_mask"]
        # Of torch's exporters the older one, on eager attention, gives the graph whose attention the tool recognises.
        torch.onnx.export(hidden_only(model), (ids, mask), plain, input_names=names, output_names=["hidden"],
                          dynamic_axes={name: {0: "batch", 1: "length"} for name in [*names, "hidden"]},
                          opset_version=17, dynamo=False)
        graph = optimizer.optimize_model(str(plain), model_type="bert", num_heads=model.config.num_attention_heads,
                                         hidden_size=model.config.hidden_size)
        counts = graph.get_fused_operator_statistics()
        if counts["Attention"] != model.config.num_hidden_layers:
            raise SystemExit(f"ONNX Runtime's tool did not fuse the attention of every layer: {counts}")
        graph.save_model_to_file(str(fused))
        os.replace(fused, path)

    def prepare(self, ids, lengths):
        return {"input_ids": ids.astype(np.int64), "attention_mask": mask_of(ids, lengths)}

    def run(self, arguments):
        return self.session.run(["hidden"], arguments)[0]

    def array(self, hidden):
        return hidden


class CTranslate2:
    """The checkpoint through CTranslate2's own converter."""

    def __init__(self, folder, dtype, work):
        import ctranslate2
        self.ctranslate2 = ctranslate2
        compute_type = {"f32": "float32", "bf16": "bfloat16"}[dtype]
        if compute_type not in ctranslate2.get_supported_compute_types("cpu"):
            raise SystemExit(f"CTranslate2 does not compute in {compute_type} on this processor")
        converted = pathlib.Path(work) / "ctranslate2"
        if not converted.exists():
            ctranslate2.converters.TransformersConverter(folder).convert(str(converted))
        self.encoder = ctranslate2.Encoder(str(converted), device="cpu", compute_type=compute_type, inter_threads=1,
                                           intra_threads=int(sys.argv[5]))

    def prepare(self, ids, lengths):
        view = self.ctranslate2.StorageView.from_array
        return view(ids.astype(np.int32)), view(lengths.astype(np.int32))

    def run(self, arguments):
        return self.encoder.forward_batch(*arguments).last_hidden_state

    def array(self, hidden):
        return np.array(hidden)


def hidden_only(model):
    """The model as a torch module that gives its hidden states and nothing else."""
    import torch

    class HiddenOnly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return HiddenOnly()


def load(peer, dtype, folder, work):
    if peer in ("eager", "sdpa"):
        return Transformers(folder, dtype, peer)
    if peer == "fastpath":
        return FastPath(folder, dtype)
    if peer == "onnxruntime":
        return OnnxRuntime(folder, work)
    return CTranslate2(folder, dtype, work)


def time_runs(engine, arguments, seconds):
    engine.run(arguments)
    samples, begin = [], time.perf_counter()
    while not samples or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        engine.run(arguments)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def main():
    peer, dtype, folder, work, _ = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engines print what they like; only answers go to the parent
    engine = load(peer, dtype, folder, work)
    print(json.dumps({"loaded": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        batch = np.load(request["batch"])
        arguments = engine.prepare(batch["ids"], batch["lengths"])
        if request["op"] == "time":
            answer = {"ms": time_runs(engine, arguments, request["seconds"])}
        else:
            hidden = engine.array(engine.run(arguments))
            if hasattr(engine, "check"):
                engine.check(hidden, mask_of(batch["ids"], batch["lengths"]))
            np.save(request["out"], hidden)
            answer = {"stored": request["out"]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
