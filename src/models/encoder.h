// An encoder of text, images or audio in canonical words, and the program that it becomes. Families translate their
// config into this.
#pragma once

#include "models/program.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

/// One linear layer of a head with what follows it.
struct HeadStage {
  std::string name;  // module
  std::int64_t out = 0;
  std::optional<ActivationKind> activation = {};
  std::string norm = {};         // module of a layer norm behind it; empty: none
  std::string tied_weight = {};  // the weight is this tensor
  std::string bias = {};         // the bias is this tensor instead of name + ".bias"
  bool has_bias = true;
};

struct HeadSpec {
  HeadKind kind = HeadKind::none;  // a pooler without stages is the row itself
  std::vector<HeadStage> stages;
  std::string norm = {};  // module of a layer norm before the stages; empty: none
  // A linear layer over the row after the one that the stages begin with; the result is the mean of both. Empty: none.
  std::string second = {};
};

/// Images instead of tokens: a linear layer over patches, behind vectors of the model's own.
struct ImageSpec {
  ImageShape shape;
  std::string projection;  // module; its weight is [hidden, channels, patch, patch]
  bool bias = true;
  std::vector<std::string> leading;  // tensors: class token, distillation token
};

/// A convolution over time, and what follows it: a norm, where there is one, then the activation.
struct AudioStage {
  enum class Norm { none, instance, layer };
  std::string module;
  std::int64_t outputs = 0;  // channels
  std::int64_t kernel = 1;
  std::int64_t stride = 1;
  std::int64_t padding = 0;  // on both sides
  bool bias = true;
  Norm norm = Norm::none;
  std::string norm_module = {};
};

/// Audio instead of tokens: convolutions that make frames, then either a table of positions, as many as there are
/// frames (EncoderSpec::position_table), or a projection, and a convolution whose result is added.
struct AudioSpec {
  std::int64_t channels = 1;
  std::int64_t length = 0;  // as AudioShape's
  std::vector<AudioStage> stages;
  ActivationKind activation = ActivationKind::gelu;  // behind each stage, and the positional convolution
  float norm_eps = 1e-5F;                            // of the stages
  std::string projection_norm = {};                  // module; empty: none
  std::string projection = {};                       // module
  std::string positions = {};                        // module of the positional convolution, with weight norm
  std::int64_t positions_kernel = 0;                 // half of it is padding in front
  std::int64_t positions_groups = 1;
};

/// The modules of one block, by their full names in the checkpoint.
struct EncoderLayer {
  std::string q, k, v, o, attention_norm, up, down, output_norm;
};

/// Post-norm (BERT): x = norm(x + o(attention(q, k, v of x))); x = norm(x + down(act(up(x)))).
/// Pre-norm: x += o(attention(.. of norm(x))); x += down(act(up(norm(x)))), and a norm behind the last block.
struct EncoderSpec {
  std::string architecture;
  std::string prefix;
  std::int64_t hidden = 0;
  std::int64_t embedding = 0;  // columns of the embedding tables; they are projected where this is not `hidden`
  std::int64_t intermediate = 0;
  std::int64_t heads = 0;
  std::int64_t vocab = 0;
  std::int64_t max_positions = 0;  // that sequences may have
  std::int64_t position_offset = 0;
  std::int64_t types = 0;  // token types; 0: none
  float norm_eps = 1e-12F;
  ActivationKind activation = ActivationKind::gelu;
  bool pre_norm = false;
  bool causal = false;
  bool qkv_bias = true;
  bool k_bias = true;  // with qkv_bias
  std::int32_t skipped_token = -1;
  std::int32_t head_token = kFirstRow;

  std::string word_table, position_table, type_table;  // tensors
  std::string embedding_norm;                          // module; empty: none
  std::string projection;                              // module, where embedding != hidden
  std::string final_norm;                              // module, with pre_norm; empty: none
  std::string position_bias;                           // tensor [32, heads] as MPNet has it; empty: none
  std::optional<ImageSpec> image;    // then there is no vocabulary, and max_positions follows from the shape
  std::optional<AudioSpec> audio;    // the same
  std::vector<EncoderLayer> layers;  // two with the same names share their weights
  HeadSpec head;
};

/// Throws Error naming the field where sizes do not fit each other or exceed the limits of models/decoder.h.
Program build_encoder(const EncoderSpec& spec);

}  // namespace nibble
