"""Makes the fixtures in tests/data/tokenizers with Hugging Face tokenizers and transformers.

    python tools/make_tokenizer_fixtures.py [--smollm2 FOLDER]        (needs tokenizers, transformers, sentencepiece)

  strings.json        a list of varied texts, made here from a fixed seed
  NAME/tokenizer.json a small tokenizer of each kind, trained on Debian's licence texts and the texts below; one that is
                      there is kept, unless --retrain is given
  NAME.ids.json       what the tokenizers library makes of every text: see `expectations`
  parts.json          one model and many normalizers, pre-tokenizers and decoders around it, with their ids
  encoders/           tokenizers of text encoders and what is made of texts and pairs: see encoder_fixtures.py
  chat.json           chat templates, conversations and snippets of the template language, and what transformers makes
                      of them
  smollm2.ids.json    with --smollm2: the ids of that folder's tokenizer.json, for the test that has the folder
"""

import argparse
import collections
import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import chat_fixtures
import encoder_fixtures

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizers"
LICENSES = pathlib.Path("/usr/share/common-licenses")
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = json.loads((pathlib.Path(__file__).resolve().parent / "tokenizer_texts.json").read_text())
WORLD, EMOJI, CODE, SPECIALS, RAW_SPACE, ODD, CONTRACTIONS = (
    TEXTS[name] for name in ("world", "emoji", "code", "specials", "raw_space", "odd", "contractions"))


def license_words():
    return (LICENSES / "GPL-2").read_text().split()


def make_strings(count=2400, seed=20):
    rng = random.Random(seed)
    words = license_words()

    def number():
        return rng.choice([str(rng.randrange(10 ** rng.randrange(1, 12))), f"{rng.random():.5f}",
            f"{rng.randrange(10**7):,}", "0x1F", "3.14e-10"])

    def snippet():
        start = rng.randrange(len(words) - 8)
        return " ".join(words[start : start + rng.randrange(1, 6)])

    def world():
        text = rng.choice(WORLD)
        start = rng.randrange(len(text))
        return text[start : start + rng.randrange(1, 12)]

    def code():
        text = rng.choice(CODE)
        start = rng.randrange(len(text))
        return text[start : start + rng.randrange(1, 20)]

    def spaces():
        return rng.choice(RAW_SPACE) * rng.choice([1, 1, 1, 2, 3, 7])

    def any_char():
        while True:
            code_point = rng.choice([rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0x3000),
                rng.randrange(0x10000)])
            # Characters of Unicode 12 or before: every library here knows them.
            if not 0xD800 <= code_point < 0xE000 and known(chr(code_point)):
                return chr(code_point)

    makers = [number, snippet, snippet, world, world, code, spaces, spaces, any_char, lambda: rng.choice(EMOJI),
              lambda: rng.choice(SPECIALS), lambda: rng.choice(ODD), lambda: rng.choice(CONTRACTIONS)]
    texts = ["", *WORLD, *CODE, *EMOJI, *SPECIALS, *RAW_SPACE, *ODD, *CONTRACTIONS]
    texts += [" " * 40, "\n" * 9, "\t\t\tx", "a" * 300, "ab" * 150, " a" * 40, "é" * 50, "1" * 40, "!" * 60]
    texts += ["の" * 30]
    while len(texts) < count:
        parts = [rng.choice(makers)() for _ in range(rng.choice([1, 2, 2, 3, 4, 5, 8]))]
        texts.append(rng.choice(["", "", " "]).join(parts))
    return list(dict.fromkeys(texts))


def known(char):
    import unicodedata

    return unicodedata.ucd_3_2_0.category(char) != "Cn"


def training_lines(characters=None):
    """Lines to train on; with `characters`, only of that many of the most frequent characters, ties by code point: the
    trainer's own limit_alphabet settles ties at random."""
    lines = [line for name in ("GPL-2", "Apache-2.0") for line in (LICENSES / name).read_text().splitlines()]
    lines += WORLD * 3 + CODE * 3 + [" ".join(CONTRACTIONS)] * 3 + ["    indented  twice", "\n\n\n",
        "2024 1999 100 365 1000"] * 5
    if characters is None:
        return lines
    counts = collections.Counter("".join(lines))
    kept = set(sorted(counts, key=lambda c: (-counts[c], c))[:characters])
    return ["".join(c for c in line if c in kept) for line in lines]


def train(tokenizer, vocab_size, characters=None, **options):
    tokenizer.train_from_iterator(training_lines(characters), trainers.BpeTrainer(vocab_size=vocab_size,
        show_progress=False, **options))
    return tokenizer


BYTES = pre_tokenizers.ByteLevel.alphabet()


def byte_level(pre_tokenizer, specials, vocab_size=1100, normalizer=None, post=None, **model_options):
    tokenizer = Tokenizer(models.BPE(**model_options))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, vocab_size, initial_alphabet=BYTES, special_tokens=specials)
    if post is not None:
        tokenizer.post_processor = post
    return tokenizer


def gpt2():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"],
        post=processors.ByteLevel(trim_offsets=False))


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def llama3():
    file = json.loads(byte_level(split_then_bytes(LLAMA3_PATTERN), [], ignore_merges=True).to_str())
    # Whole words of the vocabulary that no merges lead to: ignore_merges takes them, merging would not.
    vocab = file["model"]["vocab"]
    for word in ("Ġwarranty", "Ġjumps", "ĠGeneral", "Ġderivative"):
        vocab.setdefault(word, len(vocab))
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]),
    ])
    return tokenizer


def qwen2():
    tokenizer = byte_level(split_then_bytes(QWEN2_PATTERN), [], normalizer=normalizers.NFC())
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken("<extra>", normalized=False), AddedToken("Größe!", normalized=True)])
    return tokenizer


def smollm():
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return byte_level(pre, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def roberta():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("ALONE", single_word=True), AddedToken("[MASK]", rstrip=True, normalized=False)])
    tokenizer.post_processor = processors.RobertaProcessing(sep=("</s>", 1), cls_token=("<s>", 0))
    return tokenizer


def clip():
    tokenizer = byte_level(
        pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r"<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
                "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]),
        ["<unk>"],
        normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase()]),
        unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="", fuse_unk=False,
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=("</s>", tokenizer.token_to_id("</s>")), cls_token=("<s>", tokenizer.token_to_id("<s>")),
            trim_offsets=False, add_prefix_space=False)
    return tokenizer


def sentencepiece(normalizer, pre_tokenizer, strip=True):
    """Llama 2's layout: unknown, begin, end, 256 bytes, then pieces."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    # Trained on words, as sentencepiece does; the file then has its own way of cutting.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, 900, special_tokens=["<unk>", "<s>", "</s>"] + byte_tokens, characters=110)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] not in byte_tokens]
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + ([decoders.Strip(" ", 1, 0)] if strip
            else []))
    return tokenizer


def llama2_legacy():
    return sentencepiece(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)


def llama2_metaspace():
    return sentencepiece(None, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False))


def bert_bpe():
    """BPE with a prefix on pieces that continue a word, unknown characters, and BERT's way of cutting."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(),
        normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train(tokenizer, 1000, special_tokens=["[UNK]", "[CLS]", "[SEP]"], continuing_subword_prefix="##", characters=80)
    tokenizer.post_processor = processors.BertProcessing(sep=("[SEP]", 2), cls_token=("[CLS]", 1))
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def words():
    """Whole words with a suffix, unknown characters each by itself, Metaspace's decoder left out."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    train(tokenizer, 1000, special_tokens=["<unk>"], end_of_word_suffix="</w>", characters=80)
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


KINDS = {f.__name__: f for f in (gpt2, llama3, qwen2, smollm, roberta, clip, llama2_legacy, llama2_metaspace, bert_bpe,
    words)}
STRING_MERGES = {"gpt2", "llama2_legacy"}  # written as older files are: a merge is "left right"


def expectations(tokenizer, texts):
    """ids: of every text, without special tokens; before, after: what add_special_tokens puts around each; decoded:
    {index: text} where decoding them gives something else than the text; decoded_skip: {index: text} where decoding
    them with skip_special_tokens gives something else than without."""
    frame = tokenizer.encode("").ids
    probe = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    at = next(i for i in range(len(whole)) if whole[i : i + len(probe)] == probe) if probe else 0
    before, after = whole[:at], whole[at + len(probe) :]
    assert frame == before + after, frame
    out = {"before": before, "after": after, "ids": [], "decoded": {}, "decoded_skip": {}}
    for index, text in enumerate(texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).ids == before + ids + after
        out["ids"].append(ids)
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if decoded != text:
            out["decoded"][str(index)] = decoded
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        if skipped != decoded:
            out["decoded_skip"][str(index)] = skipped
    return out


def write_json(name, value):
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{path.relative_to(OUT)}: {path.stat().st_size} bytes")


def make_kinds(texts, retrain):
    for name, build in KINDS.items():
        if not retrain and (OUT / name / "tokenizer.json").exists():
            write_json(f"{name}.ids.json", expectations(Tokenizer.from_file(str(OUT / name / "tokenizer.json")), texts))
            continue
        file = json.loads(build().to_str())
        if name in STRING_MERGES:
            file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
        write_json(f"{name}/tokenizer.json", file)
        write_json(f"{name}.ids.json", expectations(Tokenizer.from_file(str(OUT / name / "tokenizer.json")), texts))


def make_parts(texts):
    """One model trained across spaces and punctuation, so that its ids show where a part cuts."""
    base = Tokenizer(models.BPE(unk_token="?", fuse_unk=False))
    train(base, 500, characters=140, special_tokens=["?"])
    variants = []
    norm, pre, dec = "normalizer", "pre_tokenizer", "decoder"

    def add(key, part):
        variants.append((key, part))

    for n in (normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(), normalizers.Lowercase(),
              normalizers.StripAccents(), normalizers.Strip(left=True, right=False), normalizers.Strip(left=False,
                  right=True),
              normalizers.Replace("is", "*is*"), normalizers.Replace(Regex(r"[aeiou]|$"), "-"),
                  normalizers.Replace("\\E.", "x"),
              normalizers.Prepend("of "), normalizers.ByteLevel(),
              normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])):
        add(norm, n)
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            add(pre, pre_tokenizers.Split(Regex(r"[aeo ]"), behavior, invert=invert))
        add(pre, pre_tokenizers.Split(" ", behavior))
        add(pre, pre_tokenizers.Punctuation(behavior))
    add(pre, pre_tokenizers.Split(Regex(r"x*"), "isolated"))
    add(pre, pre_tokenizers.Digits(individual_digits=False))
    add(pre, pre_tokenizers.Digits(individual_digits=True))
    add(pre, pre_tokenizers.Whitespace())
    add(pre, pre_tokenizers.WhitespaceSplit())
    add(pre, pre_tokenizers.BertPreTokenizer())
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            add(pre, pre_tokenizers.Metaspace(replacement="_", prepend_scheme=scheme, split=split))
        add(dec, decoders.Metaspace(replacement="e", prepend_scheme=scheme))
    add(pre, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="_",
        prepend_scheme="first")]))
    add(pre, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True))
    add(pre, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    for d in (decoders.ByteLevel(), decoders.Fuse(), decoders.Replace("e", "E"), decoders.Strip("e", 1, 0),
        decoders.WordPiece(prefix="a", cleanup=True),
              decoders.WordPiece(prefix="o", cleanup=False), decoders.BPEDecoder(suffix="r"), decoders.ByteFallback(),
              decoders.Sequence([decoders.Replace(Regex("[ao]"), "xy"), decoders.Fuse(), decoders.Strip("T", 1, 0)])):
        add(dec, d)
    out = {"base": json.loads(base.to_str()), "variants": []}
    out["strings"] = texts
    for key, part in variants:
        file = dict(out["base"])
        file[key] = json.loads(part.__getstate__())
        tokenizer = Tokenizer.from_str(json.dumps(file))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        variant = {"part": key, "value": file[key]}
        if key == dec:
            variant["decoded"] = [tokenizer.decode(line, skip_special_tokens=False) for line in ids]
        else:
            variant["ids"] = ids
        out["variants"].append(variant)
    write_json("parts.json", out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=pathlib.Path, help="folder with SmolLM2's imported tokenizer.json")
    parser.add_argument("--retrain", action="store_true", help="train all anew: ties among merges then fall otherwise")
    args = parser.parse_args()
    print("tokenizers", tokenizers.__version__)
    texts = make_strings()
    write_json("strings.json", texts)
    make_kinds(texts, args.retrain)
    make_parts([text for text in texts if len(text) < 40][::17])
    chat_fixtures.write(write_json)
    encoder_fixtures.write(write_json, OUT, texts, args.retrain)
    if args.smollm2:
        write_json("smollm2.ids.json", expectations(Tokenizer.from_file(str(args.smollm2 / "tokenizer.json")), texts))


if __name__ == "__main__":
    main()
