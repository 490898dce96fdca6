#pragma once

#include "formats/chat_template.h"
#include "formats/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <vector>

namespace nibble {

/// A conversation as the ids that an Instruct model expects, the opening of its own turn included. Throws Error where
/// the folder has no chat template.
std::vector<std::int32_t> chat_prompt(const std::filesystem::path& folder, const Tokenizer& tokenizer,
                                      const std::vector<ChatMessage>& messages);

}  // namespace nibble
