#include "models/decoder.h"

#include "core/error.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

namespace nibble {
namespace {

void check(bool good, const DecoderSpec& spec, std::string_view what, std::int64_t found) {
  if (!good) fail("config.json of this {} model: {} (found {})", spec.architecture, what, found);
}

void check_spec(const DecoderSpec& s) {
  check(s.hidden > 0 && s.hidden <= kMaxHidden, s, "hidden_size is out of range", s.hidden);
  check(s.intermediate > 0 && s.intermediate <= kMaxHidden * 8, s, "intermediate_size is out of range", s.intermediate);
  check(s.layers > 0 && s.layers <= kMaxLayers, s, "num_hidden_layers is out of range", s.layers);
  check(s.heads > 0 && s.heads <= kMaxHidden, s, "num_attention_heads is out of range", s.heads);
  check(s.kv_heads > 0 && s.heads % s.kv_heads == 0, s, "num_key_value_heads does not divide num_attention_heads",
        s.kv_heads);
  check(s.head_dim > 0 && s.head_dim <= 1024, s, "head_dim is out of range 1 to 1024", s.head_dim);
  check(s.vocab > 0 && s.vocab <= kMaxVocab, s, "vocab_size is out of range", s.vocab);
  check(s.max_positions > 0 && s.max_positions <= kMaxPositions, s, "max_position_embeddings is out of range",
        s.max_positions);
  check(s.rotary.dims % 2 == 0 && s.rotary.dims <= s.head_dim, s,
        "the rotary dimensions are not even or exceed head_dim", s.rotary.dims);
  check(static_cast<std::int64_t>(s.window.size()) == s.layers, s, "the attention windows do not match the layers",
        static_cast<std::int64_t>(s.window.size()));
}

class Builder {
 public:
  explicit Builder(const DecoderSpec& spec) : s_(spec) {
    p_.architecture = s_.architecture;
    p_.prefix = "model.";
    p_.hidden = s_.hidden;
    p_.layers = s_.layers;
    p_.heads = s_.heads;
    p_.kv_heads = s_.kv_heads;
    p_.head_dim = s_.head_dim;
    p_.vocab = s_.vocab;
    p_.max_positions = s_.max_positions;
    p_.rotary = s_.rotary;
  }

  Program build() {
    const std::int64_t q_columns = s_.heads * s_.head_dim;
    const std::int64_t kv_columns = s_.kv_heads * s_.head_dim;
    const BufferId h = buffer("hidden", s_.hidden, RowSet::tokens, true);
    const BufferId normed = buffer("normed", s_.hidden);
    const BufferId q = buffer("q", q_columns);
    const BufferId k = buffer("k", kv_columns);
    const BufferId v = buffer("v", kv_columns);
    const BufferId attended = buffer("attended", q_columns);
    const BufferId branch = buffer("branch", s_.hidden);
    const BufferId gate = buffer("gate", s_.intermediate);
    const BufferId up = buffer("up", s_.intermediate);
    const BufferId inner = buffer("inner", s_.intermediate);
    p_.hidden_state = h;

    layer_ = -1;
    emit(EmbedNode{"model.embed_tokens.weight", 1.0F, h});
    for (layer_ = 0; layer_ < static_cast<int>(s_.layers); ++layer_) {
      const std::string at = fmt::format("model.layers.{}.", layer_);
      norm(at + "input_layernorm.weight", h, normed, 1);
      emit(LinearNode{{linear(at + "self_attn.q_proj", s_.hidden, q_columns, s_.qkv_bias),
                       linear(at + "self_attn.k_proj", s_.hidden, kv_columns, s_.qkv_bias),
                       linear(at + "self_attn.v_proj", s_.hidden, kv_columns, s_.qkv_bias)},
                      {},
                      true,
                      normed,
                      {q, k, v}});
      if (s_.qk_norm) {
        norm(at + "self_attn.q_norm.weight", q, q, s_.heads);
        norm(at + "self_attn.k_norm.weight", k, k, s_.kv_heads);
      }
      if (s_.rotary.dims > 0) {
        emit(RotaryNode{s_.heads, s_.head_dim, s_.rotary.dims, s_.rotary.interleaved, q});
        emit(RotaryNode{s_.kv_heads, s_.head_dim, s_.rotary.dims, s_.rotary.interleaved, k});
      }
      emit(KvStoreNode{k, v});
      emit(AttentionNode{s_.heads, s_.attention_scale, s_.window[static_cast<std::size_t>(layer_)], 0, q, attended});
      emit(
          LinearNode{{linear(at + "self_attn.o_proj", q_columns, s_.hidden, s_.o_bias)}, {}, true, attended, {branch}});
      emit(AddNode{h, branch, h});
      norm(at + "post_attention_layernorm.weight", h, normed, 1);
      emit(LinearNode{{linear(at + "mlp.gate_proj", s_.hidden, s_.intermediate, s_.mlp_bias),
                       linear(at + "mlp.up_proj", s_.hidden, s_.intermediate, s_.mlp_bias)},
                      {},
                      true,
                      normed,
                      {gate, up}});
      emit(GatedNode{s_.activation, gate, up, inner});
      emit(LinearNode{
          {linear(at + "mlp.down_proj", s_.intermediate, s_.hidden, s_.mlp_bias)}, {}, true, inner, {branch}});
      emit(AddNode{h, branch, h});
    }
    const BufferId last = buffer("last", s_.hidden, RowSet::logits, true);
    const BufferId last_normed = buffer("last_normed", s_.hidden, RowSet::logits);
    const BufferId logits = buffer("logits", s_.vocab, RowSet::logits, true);
    emit(GatherNode{h, last});
    norm("model.norm.weight", last, last_normed, 1);
    emit(LinearNode{{linear("lm_head", s_.hidden, s_.vocab, false)},
                    s_.tied_head ? "model.embed_tokens.weight" : "",
                    false,
                    last_normed,
                    {logits}});
    emit(SampleNode{logits});
    p_.logits = logits;
    return std::move(p_);
  }

 private:
  BufferId buffer(std::string name, std::int64_t columns, RowSet rows = RowSet::tokens, bool wide = false) {
    p_.buffers.push_back({std::move(name), columns, rows, wide});
    return static_cast<BufferId>(p_.buffers.size()) - 1;
  }
  template <typename T>
  void emit(T op) {
    p_.nodes.push_back({layer_, std::move(op)});
  }
  void norm(std::string weight, BufferId x, BufferId y, std::int64_t groups) {
    emit(NormNode{NormKind::rms, std::move(weight), {}, groups, s_.norm_eps, x, y});
  }
  static LinearDesc linear(std::string name, std::int64_t in, std::int64_t out, bool bias) {
    return {std::move(name), in, out, bias, std::nullopt};
  }

  const DecoderSpec& s_;
  Program p_;
  int layer_ = -1;
};

}  // namespace

Program build_decoder(const DecoderSpec& spec) {
  check_spec(spec);
  return Builder(spec).build();
}

}  // namespace nibble
