// The tokenizer that a GGUF file carries, as the files that Hugging Face's libraries read.
#pragma once

#include "formats/gguf.h"

#include <nlohmann/json_fwd.hpp>

namespace nibble {

/// tokenizer.json for tokenizer.ggml.model "gpt2" (byte-level BPE; the pre-tokenizer by tokenizer.ggml.pre) and "llama"
/// (sentencepiece BPE with byte fallback; merges rebuilt from the scores). Throws Error for other models, for an
/// unknown pre-tokenizer, and for tokens or merges that are not text or not unique.
nlohmann::ordered_json gguf_tokenizer_json(const GgufContents& gguf);

/// tokenizer_config.json: the special tokens, and the chat template as it stands in the file.
nlohmann::ordered_json gguf_tokenizer_config_json(const GgufContents& gguf);

/// bos_token_id, eos_token_id (a list where a turn ends with another token than a text), pad_token_id, as
/// generation_config.json has them; absent ones are left out.
nlohmann::ordered_json gguf_generation_config_json(const GgufContents& gguf);

}  // namespace nibble
