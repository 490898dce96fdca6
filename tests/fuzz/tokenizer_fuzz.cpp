// Tokenizers as hostile files, and hostile texts in tokenizers of every kind. A first byte that is a number of the list
// below chooses one of these for the text after it; otherwise the input, up to its first zero byte, is a
// tokenizer.json, and after that byte stands a text for it.
#include "core/error.h"
#include "formats/token_places.h"
#include "formats/tokenizer.h"
#include "formats/unicode.h"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

using nibble::Tokenizer;

constexpr std::array<std::string_view, 5> kFiles = {
    R"({"added_tokens": [{"id": 9, "content": "<s>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġa": 4, "Ã": 5, "©": 6, "Ã©": 7, "Ċ": 8},
                  "merges": ["a b", "Ġ a", "Ã ©"]}})",
    R"({"added_tokens": [{"id": 7, "content": " x", "lstrip": true, "rstrip": true, "single_word": true, "normalized": true},
                         {"id": 8, "content": " ", "lstrip": true, "rstrip": true, "normalized": false}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
          {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "Metaspace", "prepend_scheme": "first"}]},
        "decoder": {"type": "Metaspace", "prepend_scheme": "first"},
        "model": {"type": "BPE", "unk_token": "?", "fuse_unk": true, "end_of_word_suffix": "w",
                  "vocab": {"a": 0, "b": 1, "▁": 2, "bw": 3, "abw": 4, "?": 5, "▁a": 6}, "merges": [["a", "bw"], ["▁", "a"]]}})",
    R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
        "behavior": "MergedWithNext", "invert": false},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "BPE", "unk_token": "a", "continuing_subword_prefix": "##", "ignore_merges": true,
                  "vocab": {"a": 0, "##b": 1, "ab": 2, "1": 3, "##1": 4, "11": 5}, "merges": [["a", "##b"], ["1", "##1"]]}})",
    R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "NFC"},
          {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y"}]},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "BPEDecoder", "suffix": "b"},
        "model": {"type": "BPE", "vocab": {"a": 0, "y": 1, "ay": 2}, "merges": [["a", "y"]]}})",
    R"({"model": {"type": "BPE", "vocab": {}, "merges": []}})"};

/// Files of encoders, chosen by the numbers after those above.
constexpr std::array<std::string_view, 2> kEncoderFiles = {
    R"({"added_tokens": [{"id": 2, "content": "[MASK]", "special": true, "lstrip": true}],
        "normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 0], "sep": ["[SEP]", 1]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "?", "max_input_chars_per_word": 9,
          "vocab": {"[CLS]": 0, "[SEP]": 1,
          "?": 3, "a": 4, "##a": 5, "##ab": 6, "é": 7, "##e": 8, "日": 9, "e": 10, "abc": 11, ".": 12, "##": 13}}})",
    R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "Precompiled",
          "precompiled_charsmap": ")"
    "IAEAAAAAAQBBDQAAAAAAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAGJiAA=="
    R"("}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace"}]},
        "decoder": {"type": "Metaspace"},
        "post_processor": {"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "s", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
          "pair": [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "s", "type_id": 1}},
                   {"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {"s": {"id": "s", "ids": [0, 1]}}},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true,
          "vocab": [["<unk>", 0], ["▁", -1], ["▁a", -1.5],
          ["a", -2], ["b", -2], ["ab", -3.5], ["aa", -4], ["<0xC3>", -9], ["<0xA9>", -9], ["é\u0301", -3]]}})"};

/// A Llama-2-like file has all 256 byte tokens, which a list here would drown in.
std::string byte_fallback_file() {
  std::string vocab = R"("<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "aa": 4)";
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte) {
    vocab += std::string(", \"<0x") + kDigits[static_cast<std::size_t>(byte / 16)] +
             kDigits[static_cast<std::size_t>(byte % 16)] + ">\": " + std::to_string(byte + 5);
  }
  return R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
      {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "fuse_unk": true, "vocab": {)" +
         vocab + R"(}, "merges": ["▁ a", "a a"]}})";
}

void use(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::int32_t> ids = tokenizer.encode(text, true);
  if (tokenizer.encode_text(text).ids != ids) std::abort();
  const std::size_t half = text.size() / 2;
  const std::size_t limit = 16 + text.size() / 4;
  const auto pair = tokenizer.encode_pair(text.substr(0, half), text.substr(half), {.max_length = limit});
  if (pair.ids.size() > limit || pair.ids.size() != pair.type_ids.size()) std::abort();
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= tokenizer.vocab_size()) std::abort();
  }
  if (!nibble::is_valid_utf8(tokenizer.decode(ids, false))) std::abort();
  if (const auto places = nibble::find_tokens(tokenizer, text, tokenizer.encode(text, false))) {
    for (const nibble::TextRange place : *places) {
      if (place.begin > place.end || place.end > text.size()) std::abort();
    }
  }
  nibble::StreamingDecoder stream(tokenizer, true);
  for (const std::int32_t id : ids) {
    if (!nibble::is_valid_utf8(stream.push(id))) std::abort();
  }
  if (!nibble::is_valid_utf8(stream.finish())) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<Tokenizer> kTokenizers = [] {
    std::vector<Tokenizer> out;
    for (const std::string_view file : kFiles) out.push_back(Tokenizer::from_json(file, "fuzz"));
    out.push_back(Tokenizer::from_json(byte_fallback_file(), "fuzz"));
    for (const std::string_view file : kEncoderFiles) out.push_back(Tokenizer::from_json(file, "fuzz"));
    return out;
  }();
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    if (data[0] < kTokenizers.size()) {
      use(kTokenizers[data[0]], input.substr(1));
    } else {
      const std::size_t zero = input.find('\0');
      const std::string_view text = zero == std::string_view::npos ? "ab é" : input.substr(zero + 1);
      use(Tokenizer::from_json(input.substr(0, zero), "fuzz"), text);
    }
  } catch (const nibble::Error&) {
  }
  return 0;
}
