"""Makes tests/data/minilm/tokens.json and embeddings.safetensors with Hugging Face transformers.

    python tools/make_minilm_golden.py MODEL_FOLDER        (needs torch, transformers, safetensors, numpy)

MODEL_FOLDER is all-MiniLM-L6-v2 (make encoder). For every line of tests/data/minilm/sentences.txt:
  tokens.json               {"ids": [[...], ...]}: token ids with [CLS] and [SEP], neither cut nor padded
  embeddings.safetensors    embeddings [50,384] float32: last_hidden_state, averaged over all tokens of the sentence and
                            divided by its length as a vector; float32 arithmetic, eager attention, each sentence alone
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "minilm"


def main(folder):
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    sentences = (DATA / "sentences.txt").read_text(encoding="utf-8").splitlines()
    ids = [tokenizer(s, truncation=False, padding=False).input_ids for s in sentences]
    with torch.no_grad():
        means = [model(torch.tensor([row])).last_hidden_state[0].mean(dim=0) for row in ids]
    embeddings = torch.nn.functional.normalize(torch.stack(means), dim=1)
    lines = ",\n  ".join(json.dumps(row) for row in ids)
    (DATA / "tokens.json").write_text(f'{{"ids": [\n  {lines}\n]}}\n', encoding="utf-8")
    save_file({"embeddings": embeddings.contiguous()}, DATA / "embeddings.safetensors",
              metadata={"transformers": transformers.__version__})
    lengths = [len(row) for row in ids]
    print(f"{len(ids)} sentences of {min(lengths)} to {max(lengths)} tokens")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_minilm_golden.py MODEL_FOLDER")
    main(sys.argv[1])
