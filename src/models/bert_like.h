// What BERT's relatives share in their config.json and their tensor names.
#pragma once

#include "formats/json.h"
#include "models/encoder.h"

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// The first of `architectures`, empty where config.json names none.
std::string architecture_of(const JsonView& config);

/// How many classes a classification head has: num_labels, the entries of id2label, or 2.
std::int64_t label_count(const JsonView& config);

/// Reads the fields that they share, and fills in names as BERT has them below `prefix` ("bert."): embeddings, blocks.
/// The head is left to the family. Throws Error for a model that is used as a decoder, or whose positions are relative.
EncoderSpec read_bert_like(const JsonView& config, std::string_view prefix);

/// Positions as RoBERTa counts them: from pad_token_id + 1 on, the padding token itself apart.
void count_positions_from_padding(const JsonView& config, EncoderSpec& spec);

/// dense + activation + layer norm + the embedding's transpose, whose bias stands by itself.
HeadSpec masked_lm_head(const JsonView& config, const EncoderSpec& spec, const std::string& dense,
                        ActivationKind activation, const std::string& norm, const std::string& decoder,
                        const std::string& bias);
/// One linear layer over every row, or over the vector that earlier stages make of the first row.
HeadSpec linear_head(HeadKind kind, std::string name, std::int64_t out);
HeadSpec sequence_head(HeadStage before, std::string name, std::int64_t out);
/// The vector of the first row: dense + tanh.
HeadStage pooler_stage(const EncoderSpec& spec, std::string name);

/// Heads that all of them name alike: "classifier" for tokens, "qa_outputs". False for other architectures.
bool read_common_head(const JsonView& config, EncoderSpec& spec);

}  // namespace nibble
