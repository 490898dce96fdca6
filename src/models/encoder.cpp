#include "models/encoder.h"

#include "core/error.h"
#include "models/decoder.h"

#include <cmath>
#include <string>
#include <utility>

namespace nibble {
namespace {

// MPNet's table of biases has 32 buckets; keys 128 and more away share the last one of their side.
constexpr std::int64_t kBiasBuckets = 32;
constexpr std::int64_t kBiasDistance = 128;
// More than any published model has of either, few enough that no product of sizes overflows.
constexpr std::int64_t kMaxChannels = 1024;
constexpr std::int64_t kMaxImageSize = 16384;
constexpr std::size_t kMaxStages = 64;
constexpr std::int64_t kMaxKernel = 4096;
// Frames of a recording where the model has no table of positions: 20 minutes of 20 ms.
constexpr std::int64_t kMaxFrames = 60'000;

void check(bool good, const EncoderSpec& spec, std::string_view what, std::int64_t found) {
  if (!good) fail("config.json of this {} model: {} (found {})", spec.architecture, what, found);
}

AudioShape audio_shape(const AudioSpec& audio) {
  AudioShape shape;
  shape.channels = audio.channels;
  shape.length = audio.length;
  shape.stages.reserve(audio.stages.size());
  for (const AudioStage& stage : audio.stages) {
    shape.stages.push_back({stage.kernel, stage.stride, stage.padding});
    shape.padding_counts = shape.padding_counts || stage.norm == AudioStage::Norm::instance;
  }
  return shape;
}

std::int64_t positions_of(const EncoderSpec& s) {
  if (s.audio) return s.audio->length > 0 ? audio_shape(*s.audio).frames(s.audio->length) : kMaxFrames;
  return s.image ? static_cast<std::int64_t>(s.image->leading.size()) + s.image->shape.patches() : s.max_positions;
}

void check_image(const EncoderSpec& s, const ImageShape& image) {
  check(image.channels > 0 && image.channels <= kMaxChannels, s, "num_channels is out of range", image.channels);
  check(image.size > 0 && image.size <= kMaxImageSize, s, "image_size is out of range", image.size);
  check(image.patch > 0 && image.patch <= image.size, s, "patch_size should be 1 to image_size", image.patch);
}

void check_audio(const EncoderSpec& s, const AudioSpec& audio) {
  check(audio.channels > 0 && audio.channels <= kMaxHidden, s, "the number of bins is out of range", audio.channels);
  check(audio.length >= 0 && audio.length <= kMaxPositions, s, "the length of recordings is out of range",
        audio.length);
  check(!audio.stages.empty() && audio.stages.size() <= kMaxStages, s, "the number of convolutions should be 1 to 64",
        static_cast<std::int64_t>(audio.stages.size()));
  for (const AudioStage& stage : audio.stages) {
    check(stage.outputs > 0 && stage.outputs <= kMaxHidden, s, "a convolution's channels are out of range",
          stage.outputs);
    check(stage.kernel > 0 && stage.kernel <= kMaxKernel, s, "a convolution's kernel should be 1 to 4096",
          stage.kernel);
    check(stage.stride > 0 && stage.stride <= kMaxKernel, s, "a convolution's stride should be 1 to 4096",
          stage.stride);
  }
  // Padding is not taken off: with it, a recording of that many steps would still be read.
  std::int64_t steps = 1;
  for (auto stage = audio.stages.rbegin(); stage != audio.stages.rend(); ++stage) {
    steps = (steps - 1) * stage->stride + stage->kernel;
    check(steps <= kMaxPositions, s, "the convolutions look at too many values for one frame", steps);
  }
  if (audio.positions.empty()) return;
  check(audio.positions_kernel > 0 && audio.positions_kernel <= kMaxKernel, s,
        "num_conv_pos_embeddings should be 1 to 4096", audio.positions_kernel);
  check(audio.positions_groups > 0 && s.hidden % audio.positions_groups == 0, s,
        "num_conv_pos_embedding_groups should divide the hidden size", audio.positions_groups);
}

void check_spec(const EncoderSpec& s) {
  const auto layers = static_cast<std::int64_t>(s.layers.size());
  check(s.hidden > 0 && s.hidden <= kMaxHidden, s, "the hidden size is out of range", s.hidden);
  check(s.embedding > 0 && s.embedding <= kMaxHidden, s, "the embedding size is out of range", s.embedding);
  check(s.intermediate > 0 && s.intermediate <= kMaxHidden * 8, s, "the intermediate size is out of range",
        s.intermediate);
  check(layers > 0 && layers <= kMaxLayers, s, "the number of layers is out of range", layers);
  check(s.heads > 0 && s.hidden % s.heads == 0, s, "the hidden size does not divide among the attention heads",
        s.heads);
  if (s.image) {
    check_image(s, s.image->shape);
  } else if (s.audio) {
    check_audio(s, *s.audio);
  } else {
    check(s.vocab > 0 && s.vocab <= kMaxVocab, s, "vocab_size is out of range", s.vocab);
  }
  const std::int64_t positions = positions_of(s);
  check(positions > 0 && positions <= kMaxPositions, s, "the number of positions is out of range", positions);
  check(s.types >= 0 && s.types <= kMaxVocab, s, "type_vocab_size is out of range", s.types);
}

class Builder {
 public:
  explicit Builder(const EncoderSpec& spec) : s_(spec) {
    p_.architecture = s_.architecture;
    p_.prefix = s_.prefix;
    p_.hidden = s_.hidden;
    p_.layers = static_cast<std::int64_t>(s_.layers.size());
    p_.heads = s_.heads;
    p_.head_dim = s_.hidden / s_.heads;
    p_.vocab = s_.vocab;
    p_.max_positions = positions_of(s_);
    p_.types = s_.types;
    p_.encoder = true;
    p_.head = s_.head.kind;
    p_.skipped_token = s_.skipped_token;
    p_.head_token = s_.head_token;
    if (s_.image) p_.image = s_.image->shape;
    if (s_.audio) p_.audio = audio_shape(*s_.audio);
  }

  Program build() {
    h_ = p_.hidden_state = buffer("hidden", s_.hidden);
    sum_ = buffer("sum", s_.hidden);
    q_ = buffer("q", s_.hidden);
    k_ = buffer("k", s_.hidden);
    v_ = buffer("v", s_.hidden);
    attended_ = buffer("attended", s_.hidden);
    branch_ = buffer("branch", s_.hidden);
    inner_ = buffer("inner", s_.intermediate);
    active_ = buffer("active", s_.intermediate);

    layer_ = -1;
    if (s_.image) {
      embed_image(*s_.image);
    } else if (s_.audio) {
      embed_audio(*s_.audio);
    } else {
      embed();
    }
    for (const EncoderLayer& layer : s_.layers) {
      ++layer_;
      if (s_.pre_norm) {
        pre_norm_block(layer);
      } else {
        post_norm_block(layer);
      }
    }
    ++layer_;
    if (!s_.final_norm.empty()) norm(s_.final_norm, h_, h_);
    head();
    return std::move(p_);
  }

 private:
  BufferId buffer(std::string name, std::int64_t columns, RowSet rows = RowSet::tokens) {
    p_.buffers.push_back({std::move(name), columns, rows, false});
    return static_cast<BufferId>(p_.buffers.size()) - 1;
  }
  BufferId frames(std::string name, std::int64_t columns, std::size_t stages) {
    const BufferId id = buffer(std::move(name), columns, RowSet::frames);
    p_.buffers.back().stages = stages;
    return id;
  }
  template <typename T>
  void emit(T op) {
    p_.nodes.push_back({layer_, std::move(op)});
  }
  void norm(const std::string& module, BufferId x, BufferId y) {
    emit(NormNode{NormKind::layer, module + ".weight", module + ".bias", 1, s_.norm_eps, x, y});
  }
  static LinearDesc linear(std::string name, std::int64_t in, std::int64_t out, bool bias = true) {
    return {std::move(name), in, out, bias, std::nullopt};
  }
  void one(const std::string& name, std::int64_t in, std::int64_t out, BufferId x, BufferId y, bool in_block = true) {
    emit(LinearNode{{linear(name, in, out)}, {}, in_block, x, {y}, {}});
  }

  void embed() {
    const bool projects = s_.embedding != s_.hidden;
    const BufferId e = projects ? buffer("embedding", s_.embedding) : h_;
    EmbedNode node;
    node.table = s_.word_table;
    node.y = e;
    node.positions = s_.position_table;
    node.position_offset = s_.position_offset;
    if (s_.types > 0) node.types = s_.type_table;
    emit(std::move(node));
    if (!s_.embedding_norm.empty()) norm(s_.embedding_norm, e, e);
    if (projects) one(s_.projection, s_.embedding, s_.hidden, e, h_, false);
  }

  void embed_image(const ImageSpec& image) {
    const BufferId patches = buffer("patches", image.shape.patch_values(), RowSet::patches);
    const BufferId projected = buffer("projected", s_.hidden, RowSet::patches);
    emit(PatchNode{patches});
    LinearNode node{{linear(image.projection, image.shape.patch_values(), s_.hidden, image.bias)},
                    {},
                    false,
                    patches,
                    {projected},
                    {}};
    node.stored = {s_.hidden, image.shape.channels, image.shape.patch, image.shape.patch};
    emit(std::move(node));
    emit(PlaceNode{image.leading, s_.position_table, projected, h_});
    if (!s_.embedding_norm.empty()) norm(s_.embedding_norm, h_, h_);
  }

  void convolve(std::string module, const ConvolutionShape& shape, bool weight_norm, BufferId x, BufferId y) {
    ConvolveNode node;
    node.module = std::move(module);
    node.shape = shape;
    node.weight_norm = weight_norm;
    node.x = x;
    node.y = y;
    emit(std::move(node));
  }

  void embed_audio(const AudioSpec& audio) {
    BufferId x = -1;
    std::int64_t channels = audio.channels;
    for (std::size_t i = 0; i < audio.stages.size(); ++i) {
      const AudioStage& stage = audio.stages[i];
      const BufferId y = frames("frames" + std::to_string(i + 1), stage.outputs, i + 1);
      convolve(stage.module, {channels, stage.outputs, stage.kernel, stage.stride, stage.padding, 1, stage.bias}, false,
               x, y);
      if (stage.norm == AudioStage::Norm::instance) {
        emit(InstanceNormNode{stage.norm_module, audio.norm_eps, y, y});
      } else if (stage.norm == AudioStage::Norm::layer) {
        emit(NormNode{NormKind::layer, stage.norm_module + ".weight", stage.norm_module + ".bias", 1, audio.norm_eps, y,
                      y});
      }
      emit(ActivationNode{audio.activation, y, y});
      x = y;
      channels = stage.outputs;
    }
    if (!s_.position_table.empty()) {
      emit(PlaceNode{{}, s_.position_table, x, h_});
      return;
    }
    if (!audio.projection_norm.empty()) norm(audio.projection_norm, x, x);
    const BufferId projected = frames("projected", s_.hidden, audio.stages.size());
    one(audio.projection, channels, s_.hidden, x, projected, false);
    emit(TrimNode{projected, h_});
    convolve(
        audio.positions,
        {s_.hidden, s_.hidden, audio.positions_kernel, 1, audio.positions_kernel / 2, audio.positions_groups, true},
        true, h_, branch_);
    emit(ActivationNode{audio.activation, branch_, branch_});
    emit(AddNode{h_, branch_, h_});
    if (!s_.embedding_norm.empty()) norm(s_.embedding_norm, h_, h_);
  }

  void attention(const EncoderLayer& layer, BufferId x) {
    emit(LinearNode{{linear(layer.q, s_.hidden, s_.hidden, s_.qkv_bias),
                     linear(layer.k, s_.hidden, s_.hidden, s_.qkv_bias && s_.k_bias),
                     linear(layer.v, s_.hidden, s_.hidden, s_.qkv_bias)},
                    {},
                    true,
                    x,
                    {q_, k_, v_},
                    {}});
    SelfAttentionNode node;
    node.heads = s_.heads;
    node.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p_.head_dim)));
    node.causal = s_.causal;
    if (!s_.position_bias.empty()) {
      node.bias = s_.position_bias;
      node.bias_buckets = kBiasBuckets;
      node.bias_distance = kBiasDistance;
    }
    node.q = q_;
    node.k = k_;
    node.v = v_;
    node.y = attended_;
    emit(std::move(node));
    one(layer.o, s_.hidden, s_.hidden, attended_, branch_);
  }
  void mlp(const EncoderLayer& layer, BufferId x) {
    one(layer.up, s_.hidden, s_.intermediate, x, inner_);
    emit(ActivationNode{s_.activation, inner_, active_});
    one(layer.down, s_.intermediate, s_.hidden, active_, branch_);
  }
  void post_norm_block(const EncoderLayer& layer) {
    attention(layer, h_);
    emit(AddNode{h_, branch_, sum_});
    norm(layer.attention_norm, sum_, h_);
    mlp(layer, h_);
    emit(AddNode{h_, branch_, sum_});
    norm(layer.output_norm, sum_, h_);
  }
  void pre_norm_block(const EncoderLayer& layer) {
    norm(layer.attention_norm, h_, sum_);
    attention(layer, sum_);
    emit(AddNode{h_, branch_, h_});
    norm(layer.output_norm, h_, sum_);
    mlp(layer, sum_);
    emit(AddNode{h_, branch_, h_});
  }

  void head() {
    if (s_.head.kind == HeadKind::none) return;
    BufferId x = buffer("head_in", s_.hidden, RowSet::logits);
    emit(GatherNode{h_, x});
    if (!s_.head.norm.empty()) norm(s_.head.norm, x, x);
    std::int64_t width = s_.hidden;
    for (const HeadStage& stage : s_.head.stages) {
      x = head_linear(stage, width, x);
      width = stage.out;
      if (stage.activation) emit(ActivationNode{*stage.activation, x, x});
      if (!stage.norm.empty()) norm(stage.norm, x, x);
    }
    if (!s_.head.second.empty()) {
      const BufferId other = buffer("second_head_in", s_.hidden, RowSet::logits);
      emit(GatherNode{h_, other, 1});
      const BufferId y = head_linear({s_.head.second, width}, s_.hidden, other);
      const BufferId mean = buffer("head_mean", width, RowSet::logits);
      emit(MeanNode{x, y, mean});
      x = mean;
    }
    p_.logits = x;
  }
  BufferId head_linear(const HeadStage& stage, std::int64_t in, BufferId x) {
    const BufferId y = buffer("head_" + stage.name, stage.out, RowSet::logits);
    emit(LinearNode{{linear(stage.name, in, stage.out, stage.has_bias)}, stage.tied_weight, false, x, {y}, stage.bias});
    return y;
  }

  const EncoderSpec& s_;
  Program p_;
  int layer_ = -1;
  BufferId h_ = -1, sum_ = -1, q_ = -1, k_ = -1, v_ = -1, attended_ = -1, branch_ = -1, inner_ = -1, active_ = -1;
};

}  // namespace

Program build_encoder(const EncoderSpec& spec) {
  check_spec(spec);
  return Builder(spec).build();
}

}  // namespace nibble
