// Where tokens stand in the text that they were made of.
#pragma once

#include "formats/tokenizer.h"
#include "formats/tokenizer_regex.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

/// The bytes of `text` that each token was made of, in order and without spaces around them; those of tokens that share
/// a character overlap. `ids`: of the whole text, without special tokens around it. Found by spelling, as normalisers
/// keep no places: none where the normalised text is not its characters' one after the other, or a token's spelling is
/// not found in it (an added token spelled otherwise, say). Tokens without a spelling (unknown and special
/// ones) have what is between their neighbours.
std::optional<std::vector<TextRange>> find_tokens(const Tokenizer& tokenizer, std::string_view text,
                                                  std::span<const std::int32_t> ids);

}  // namespace nibble
