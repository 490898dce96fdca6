"""Makes the golden fixtures in tests/data/golden_encoders with Hugging Face transformers.

    python tools/make_golden_encoders.py [NAME ...]        (needs torch, transformers, safetensors, numpy)

For each NAME of tools/golden_encoder_models.py:
  tests/data/golden_encoders/NAME/                      a Hugging Face folder with random weights
  tests/data/golden_encoders/NAME.golden.safetensors    the inputs and what transformers makes of them

Inputs, by the model's kind:
  ids [B,L] int32, lengths [B] int32       text: ragged rows, padded on the right; the mask is 1 on the first `lengths`
  types [B,L] int32                        text with token types
  pixels [B,C,H,W] float32                 images, preprocessed
  samples [B,N] float32, lengths [B] int32 speech: ragged rows, padded with 0
  features [B,M,N] float32                 whisper: M bins of the spectrogram
Outputs, float32 arithmetic and eager attention:
  hidden [B,L,H]                           last_hidden_state; rows beyond `lengths` hold what eager attention left there
  frames [B] int32                         speech: how many rows of hidden are not padding
  pooled [B,H]                             pooler_output, where the model has one
  logits                                   the head's output; question answering: [B,L,2], start and end;
                                           CLIP: [images,texts]
  relation [B,2]                           BertForPreTraining: the other head's output
  text_embeds, image_embeds [B,P]          CLIP: the projections, normalised

Weights have a standard deviation of 0.3, norms and biases are random, so that a tensor that is left out or taken for
another one shows far above rounding. All are stored as float32 and are values of bfloat16: a run in bfloat16 differs by
its arithmetic alone.
"""

import inspect
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

import golden_encoder_models
from make_golden import write_json, write_weights

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "golden_encoders"
WEIGHT_STD = 0.3
LENGTHS = (5, 12, 1, 9)
SPEECH_LENGTHS = (517, 700, 333)
IMAGES = 2


def randomise(model, std, generator):
    """Draws every trained tensor. One-dimensional weights belong to norms, three-dimensional `original0` and its old
    name `weight_g` scale a normalised weight: both are centred on 1."""
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            if not tensor.requires_grad:  # Whisper's sinusoids
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name == "logit_scale":
                noise = noise.clamp(-1, 1) + 2.0
            elif (name.endswith(".weight") and tensor.dim() == 1) or name.endswith((".original0", ".weight_g")):
                noise = 1.0 + 0.4 * noise.clamp(-2, 2)
            else:
                noise = std * noise
            tensor.copy_(noise.bfloat16())


def published_names(state, spec):
    names = {}
    for name in state:
        new = spec.get("prefix", "") + name
        for old, replacement in spec.get("rename", ()):
            new = new.replace(old, replacement)
        names[name] = new
    return {names[k]: v for k, v in state.items() if not k.startswith("model.decoder.")}


def fresh_folder(name):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


def make_folder(name, spec, generator):
    """The folder with random weights, read back as the model that computes the golden tensors."""
    folder = fresh_folder(name)
    write_json(folder / "config.json", dict(spec["config"], torch_dtype="float32"))
    architecture = getattr(transformers, spec["config"]["architectures"][0])
    config = architecture.config_class.from_pretrained(folder)
    model = architecture(config)
    randomise(model, spec.get("std", WEIGHT_STD), generator)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)  # undoes what transformers does to names while it loads
        state = load_file(pathlib.Path(saved) / "model.safetensors")
    write_weights(folder, published_names(state, spec), 1)
    model, info = architecture.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                               output_loading_info=True)
    missing = [k for k in info["missing_keys"] if not k.startswith(("model.decoder.", "proj_out."))]
    if missing or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"{name}: transformers does not read what was written: {info}")
    return model.eval()


def text_inputs(spec, config, generator):
    text = config.get("text_config", config)
    lengths = spec.get("lengths", LENGTHS)
    vocab, eos = text["vocab_size"], spec.get("eos")
    ids = torch.randint(3, vocab, (len(lengths), max(lengths)), generator=generator)
    if eos is not None:
        ids[ids == eos] = eos - 1
    for row, length in enumerate(lengths):
        if eos is not None:
            ids[row, length - 1] = eos
        ids[row, length:] = text["pad_token_id"] if eos is None else eos
    if "pad_inside" in spec:
        ids[spec["pad_inside"]] = text["pad_token_id"]
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    tensors = {"ids": ids.int(), "lengths": torch.tensor(lengths, dtype=torch.int32)}
    arguments = {"input_ids": ids, "attention_mask": mask}
    if text.get("type_vocab_size", 1) > 1:
        types = torch.randint(0, 2, ids.shape, generator=generator)
        tensors["types"] = types.int()
        arguments["token_type_ids"] = types
    return tensors, arguments


def image_inputs(config, generator):
    vision = config.get("vision_config", config)
    shape = (IMAGES, vision["num_channels"], vision["image_size"], vision["image_size"])
    pixels = torch.randn(shape, generator=generator)
    return {"pixels": pixels}, {"pixel_values": pixels}


def speech_inputs(spec, generator):
    lengths = torch.tensor(spec.get("lengths", SPEECH_LENGTHS))
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    samples = torch.randn(mask.shape, generator=generator) * mask
    return {"samples": samples, "lengths": lengths.int()}, {"input_values": samples, "attention_mask": mask}


def inputs_of(spec, generator):
    config = spec["config"]
    if config["model_type"] == "whisper":
        shape = (IMAGES, config["num_mel_bins"], 2 * config["max_source_positions"])
        features = torch.randn(shape, generator=generator)
        return {"features": features}, {"input_features": features}
    if "conv_dim" in config:
        return speech_inputs(spec, generator)
    text = text_inputs(spec, config, generator) if "vocab_size" in config.get("text_config", config) else ({}, {})
    images = image_inputs(config, generator) if "image_size" in config.get("vision_config", config) else ({}, {})
    return dict(text[0], **images[0]), dict(text[1], **images[1])


def pick(arguments, function):
    accepted = inspect.signature(function).parameters
    return {k: v for k, v in arguments.items() if k in accepted}


def base_of(model):
    if isinstance(model, transformers.WhisperForConditionalGeneration):
        return model.model.encoder
    return getattr(model, model.base_model_prefix, model)


def outputs_of(model, arguments):
    if isinstance(model, transformers.CLIPModel):
        output = model(**arguments)
        return {"text_embeds": output.text_embeds, "image_embeds": output.image_embeds,
                "logits": output.logits_per_image}
    base = base_of(model)
    output = base(**pick(arguments, base.forward))
    tensors = {"hidden": output.last_hidden_state}
    if output.get("pooler_output") is not None:
        tensors["pooled"] = output.pooler_output
    if "input_values" in arguments:
        tensors["frames"] = model._get_feat_extract_output_lengths(arguments["attention_mask"].sum(-1)).int()
    if base is not model and base is not getattr(getattr(model, "model", None), "encoder", None):
        tensors.update(head_outputs(model(**pick(arguments, model.forward))))
    return tensors


def head_outputs(output):
    if "start_logits" in output:
        return {"logits": torch.stack([output.start_logits, output.end_logits], dim=-1)}
    if "prediction_logits" in output:
        return {"logits": output.prediction_logits, "relation": output.seq_relationship_logits}
    return {"logits": output.logits}


def check(name, spec, tensors):
    """Stops at fixtures that do not show what they are meant to."""
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise SystemExit(f"{name}: {key} is not finite")
    if "eos" in spec and "pooled" in tensors:
        last = tensors["hidden"][torch.arange(len(tensors["lengths"])), tensors["lengths"].long() - 1]
        if not torch.equal(last, tensors["pooled"]):
            raise SystemExit(f"{name}: the pooled rows are not those of the last tokens")


def make(name, spec, seed):
    generator = torch.Generator().manual_seed(seed)
    model = make_folder(name, spec, generator)
    tensors, arguments = inputs_of(spec, generator)
    with torch.no_grad():
        tensors.update(outputs_of(model, arguments))
    check(name, spec, tensors)
    return {k: v.contiguous() for k, v in tensors.items()}


def main(names):
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the missing decoder of Whisper
    torch.set_num_threads(1)
    known = list(golden_encoder_models.ENCODERS)
    for name in names or known:
        if name not in known:
            raise SystemExit(f"unknown fixture {name}; known: {' '.join(known)}")
        tensors = make(name, golden_encoder_models.ENCODERS[name], seed=known.index(name))
        path = OUT / f"{name}.golden.safetensors"
        save_file(tensors, path, metadata={"transformers": transformers.__version__})
        size = path.stat().st_size + sum(f.stat().st_size for f in (OUT / name).iterdir())
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in tensors.items())
        print(f"{name}: {size / 1000:.0f} kB: {shapes}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
