"""The encoders' part of make_tokenizer_fixtures.py: small tokenizers of the kinds that text encoders have, and what the
tokenizers library makes of texts and pairs of texts."""

import base64
import io
import json
import pathlib
import tempfile

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = json.loads((pathlib.Path(__file__).resolve().parent / "encoder_texts.json").read_text())
LINES = TEXTS["lines"]  # to train on
CHARSMAP_RULES = TEXTS["charsmap_rules"]  # some of sentencepiece's nmt_nfkc: the whole table has 240 kB
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


def protobuf_field(message, number):
    """The last field of that number in a protobuf message, where it is of the type with a length."""
    found = None
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            varint()
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        else:
            size = varint()
            if key >> 3 == number:
                found = message[at : at + size]
            at += size
    return found


def precompiled_charsmap(folder, rules=None):
    """The table that sentencepiece compiles of the rules; without rules, that of its nmt_nfkc."""
    import sentencepiece

    options = {"normalization_rule_name": "nmt_nfkc"}
    if rules:
        path = folder / "rules.tsv"

        def code_points(text):
            return " ".join(f"{ord(c):X}" for c in text)

        path.write_text("".join(f"{code_points(a)}\t{code_points(b)}\n" for a, b in rules))
        options = {"normalization_rule_tsv": str(path)}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, vocab_size=200,
        hard_vocab_limit=False, minloglevel=2, **options)
    normalizer_spec = protobuf_field(model.getvalue(), 3)
    return base64.b64encode(protobuf_field(normalizer_spec, 2)).decode()


def precompiled(charsmap):
    return normalizers.Precompiled(base64.b64decode(charsmap))


def wordpiece(normalizer, specials, vocab_size=420):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=vocab_size, show_progress=False,
        special_tokens=specials, limit_alphabet=90))
    return tokenizer


def bert_template(tokenizer):
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=ids)


def roberta_template(tokenizer):
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    return processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids)


def bert(_):
    tokenizer = wordpiece(normalizers.BertNormalizer(), BERT_TOKENS)
    tokenizer.post_processor = bert_template(tokenizer)
    return tokenizer


def bert_cased(_):
    """BertProcessing instead of a template, and a short limit on words."""
    tokenizer = wordpiece(normalizers.BertNormalizer(lowercase=False), BERT_TOKENS, 380)
    file = json.loads(tokenizer.to_str())
    file["model"]["max_input_chars_per_word"] = 12
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.post_processor = processors.BertProcessing(sep=("[SEP]", 3), cls_token=("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


def mpnet(_):
    tokenizer = wordpiece(normalizers.BertNormalizer(), ["<s>", "<pad>", "</s>", "[UNK]"], 380)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = roberta_template(tokenizer)
    return tokenizer


def roberta(_):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=400, show_progress=False,
        special_tokens=ROBERTA_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls_token=("<s>", 0))
    return tokenizer


def unigram(normalizer, pre_tokenizer, specials, unk, vocab_size=400):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(LINES, trainers.UnigramTrainer(vocab_size=vocab_size, show_progress=False,
        special_tokens=specials, unk_token=unk))
    return tokenizer


def xlm_roberta(charsmap):
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer = unigram(precompiled(charsmap), pre_tokenizer, ROBERTA_TOKENS, "<unk>")
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = roberta_template(tokenizer)
    return tokenizer


def albert(charsmap):
    normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'),
        normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), precompiled(charsmap)])
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer = unigram(normalizer, pre_tokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]"], "<unk>", 350)
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    tokenizer.post_processor = bert_template(tokenizer)
    return tokenizer


def unigram_bytes(_):
    """Whole texts as pieces, byte fallback, Nmt, no post-processor, and a model without a type, as in old files."""
    tokenizer = unigram(normalizers.Nmt(), pre_tokenizers.Metaspace(split=False),
        ["<unk>"], "<unk>", 300)
    file = json.loads(tokenizer.to_str())
    file["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    file["model"]["byte_fallback"] = True
    file["decoder"] = json.loads(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
        decoders.Fuse(), decoders.Strip(" ", 1, 0)]).__getstate__())
    return Tokenizer.from_str(json.dumps(file))


KINDS = {f.__name__: f for f in (bert, bert_cased, mpnet, roberta, xlm_roberta, albert, unigram_bytes)}


def chosen(texts):
    """Indexes of the texts that are used: the hard ones at the front of the list, and some of the others."""
    return [i for i in range(len(texts)) if i < 150 or i % 23 == 0]


def places(tokenizer, text):
    """First and last byte of each token, spaces around it left out, one after the other; nothing where tokens are
    unknown or bytes, whose places the library runs together."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    unknown = {tokenizer.token_to_id(token) for token in ("[UNK]", "<unk>")}
    if any(i in unknown or token.startswith("<0x") for i, token in zip(encoding.ids, encoding.tokens)):
        return None
    out = []
    for begin, end in encoding.offsets:
        piece = text[begin:end]
        begin += len(piece) - len(piece.lstrip())
        end = max(begin, end - (len(piece) - len(piece.rstrip())))
        out += [len(text[:begin].encode()), len(text[:end].encode())]
    return out


def expectations(tokenizer, texts, indexes):
    """ids: of every text, with special tokens; decoded: these with and without special tokens; places: of the tokens
    without special ones; pairs: [first, second (positions in indexes), max_length or null, add_special_tokens, ids,
    type ids]."""
    out = {"texts": indexes, "ids": [], "decoded": [], "places": [], "pairs": []}
    strings = [texts[i] for i in indexes]
    for text in strings:
        encoding = tokenizer.encode(text)
        out["ids"].append(encoding.ids)
        out["places"].append(places(tokenizer, text))
        out["decoded"].append(tokenizer.decode(encoding.ids, skip_special_tokens=len(out["decoded"]) % 2 == 1))
    for i in range(0, len(strings), 4):
        k = i // 4
        j = (7 * i + 3) % len(strings)
        max_length = [None, 6, 9, 17, 32][k % 5]
        special = k % 7 != 3
        if max_length is not None:
            tokenizer.enable_truncation(max_length)
        encoding = tokenizer.encode(strings[i], strings[j], add_special_tokens=special)
        tokenizer.no_truncation()
        out["pairs"].append([i, j, max_length, special, encoding.ids, encoding.type_ids])
    return out


def write(write_json, out_folder, texts, retrain):
    """Writes encoders/NAME/tokenizer.json, where there is none, and encoders/NAME.ids.json."""
    indexes = chosen(texts)
    with tempfile.TemporaryDirectory() as folder:
        charsmap = None
        for name, build in KINDS.items():
            path = out_folder / "encoders" / name / "tokenizer.json"
            if retrain or not path.exists():
                charsmap = charsmap or precompiled_charsmap(pathlib.Path(folder), CHARSMAP_RULES)
                file = json.loads(build(charsmap).to_str())
                if name == "unigram_bytes":
                    del file["model"]["type"]
                write_json(f"encoders/{name}/tokenizer.json", file)
            expected = expectations(Tokenizer.from_file(str(path)), texts, indexes)
            write_json(f"encoders/{name}.ids.json", expected)
