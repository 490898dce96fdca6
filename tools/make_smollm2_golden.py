"""Makes tests/data/smollm2_greedy.json: what Hugging Face transformers says on the default model's weights.

    python tools/make_smollm2_golden.py MODEL_FOLDER PERPLEXITY_TEXT      (needs torch and transformers)

MODEL_FOLDER is the imported SmolLM2-135M-Instruct (make model), PERPLEXITY_TEXT its short text (make text). Everything
is float32 with eager attention. The file holds
  prompts      five of them: messages or plain text, the text after the chat template, token ids, the 64 greedy tokens
               (no stop at the end of text), and at each step the largest logit minus the second
  perplexity   of PERPLEXITY_TEXT: `windows_N` is exp of the mean, over disjoint windows of N tokens, of their
               mean losses; `autogptq_512` scores the second half of each window of 512, whose first token is
               replaced by BOS, as the final value and as the mean of the running values
Candidates with a margin below MIN_MARGIN are passed over, so that another order of summation gives the same text.
"""

import json
import pathlib
import sys

import torch
import transformers

NEW_TOKENS = 64
PROMPTS = 5
MIN_MARGIN = 0.01  # logits are about 20, float32 noise in them about 1e-4
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "smollm2_greedy.json"

CANDIDATES = [
    [{"role": "user", "content": "Explain in a few sentences why the sky is blue."}],
    [{"role": "system", "content": "You are a patient teacher."},
     {"role": "user", "content": "What is the difference between a list and a tuple in Python?"}],
    "Once upon a time, in a village between two mountains,",
    [{"role": "user", "content": "Give me a recipe for a simple tomato soup."},
     {"role": "assistant", "content": "Fry an onion, add a can of tomatoes and a cup of stock, and blend it."},
     {"role": "user", "content": "How do I make it spicier, and what can I serve with it?"}],
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    [{"role": "user", "content": "Write a short poem about the sea in winter."}],
    "The three most important inventions of the nineteenth century were",
    [{"role": "user", "content": "Summarise the causes of the French Revolution."}],
    "It is a truth universally acknowledged, that",
    [{"role": "user", "content": "Translate to French: 'The weather is nice today.' Then explain each word."}],
    "Photosynthesis is the process by which",
    "In mathematics, a prime number is",
]


def greedy(model, ids):
    tokens, margins = [], []
    with torch.no_grad():
        output = model(torch.tensor([ids]), use_cache=True)
        for _ in range(NEW_TOKENS):
            top = output.logits[0, -1].topk(2)
            tokens.append(top.indices[0].item())
            margins.append(round((top.values[0] - top.values[1]).item(), 5))
            output = model(torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values, use_cache=True)
    return tokens, margins


def prompts(model, tokenizer):
    found = []
    for candidate in CANDIDATES:
        if len(found) == PROMPTS:
            break
        chat = not isinstance(candidate, str)
        text = candidate
        if chat:
            text = tokenizer.apply_chat_template(candidate, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=not chat).input_ids
        tokens, margins = greedy(model, ids)
        print(f"smallest margin {min(margins):.4f}: {candidate}\n    {tokenizer.decode(tokens)!r}", flush=True)
        if min(margins) < MIN_MARGIN:
            continue
        found.append({"messages" if chat else "prompt": candidate, "text": text, "ids": ids, "greedy": tokens,
                      "greedy_text": tokenizer.decode(tokens), "margins": margins})
    if len(found) < PROMPTS:
        raise SystemExit(f"only {len(found)} of {PROMPTS} candidates have margins of {MIN_MARGIN} or more")
    return found


def losses(model, window, scored=None):
    """-log p of each token but the first, under the tokens before it; `scored` are those to compare with."""
    with torch.no_grad():
        logits = model(torch.tensor([window])).logits[0, :-1].double()
    targets = torch.tensor((scored or window)[1:])
    return -torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]


def perplexities(model, tokenizer, text):
    ids = tokenizer(text).input_ids
    result = {"tokens": len(ids)}
    for size in (512, 2048):
        means = [losses(model, ids[i:i + size]).mean() for i in range(0, len(ids) - size + 1, size)]
        result[f"windows_{size}"] = torch.stack(means).mean().exp().item()
    total, count, running = 0.0, 0, []
    for i in range(0, len(ids) - 512 + 1, 512):
        window = ids[i:i + 512]
        scored = losses(model, [tokenizer.bos_token_id] + window[1:], window)[256:]
        total, count = total + scored.sum().item(), count + len(scored)
        running.append(torch.tensor(total / count).exp().item())
    result["autogptq_512"] = {"final": running[-1], "mean_of_running": sum(running) / len(running)}
    return result


def main(folder, text_file):
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()
    text = pathlib.Path(text_file).read_text(encoding="utf-8")
    result = {"transformers": transformers.__version__, "prompts": prompts(model, tokenizer),
              "perplexity": perplexities(model, tokenizer, text)}
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{OUT}: {json.dumps(result['perplexity'])}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: make_smollm2_golden.py MODEL_FOLDER PERPLEXITY_TEXT")
    main(*sys.argv[1:])
