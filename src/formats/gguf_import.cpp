#include "formats/gguf_import.h"

#include "core/checked.h"
#include "core/float_convert.h"
#include "core/progress.h"
#include "formats/gguf.h"
#include "formats/gguf_tokenizer.h"
#include "formats/safetensors.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// One architecture that llama.cpp names and what Hugging Face calls it.
struct Architecture {
  std::string_view gguf;
  std::string_view model_type;
  std::string_view class_name;
  /// llama.cpp rotates neighbouring pairs of this architecture's q and k, and has reordered their rows for it.
  bool permuted;
};

constexpr std::array kArchitectures = {
    Architecture{"llama", "llama", "LlamaForCausalLM", true},
    Architecture{"qwen2", "qwen2", "Qwen2ForCausalLM", false},
    Architecture{"qwen3", "qwen3", "Qwen3ForCausalLM", false},
};

/// Names inside of a block: the GGUF one, the Hugging Face one.
struct BlockTensor {
  std::string_view gguf;
  std::string_view hf;
  bool required;
};

constexpr std::array kBlockTensors = {
    BlockTensor{"attn_norm.weight", "input_layernorm.weight", true},
    BlockTensor{"attn_q.weight", "self_attn.q_proj.weight", true},
    BlockTensor{"attn_k.weight", "self_attn.k_proj.weight", true},
    BlockTensor{"attn_v.weight", "self_attn.v_proj.weight", true},
    BlockTensor{"attn_output.weight", "self_attn.o_proj.weight", true},
    BlockTensor{"attn_q.bias", "self_attn.q_proj.bias", false},
    BlockTensor{"attn_k.bias", "self_attn.k_proj.bias", false},
    BlockTensor{"attn_v.bias", "self_attn.v_proj.bias", false},
    BlockTensor{"attn_output.bias", "self_attn.o_proj.bias", false},
    BlockTensor{"attn_q_norm.weight", "self_attn.q_norm.weight", false},
    BlockTensor{"attn_k_norm.weight", "self_attn.k_norm.weight", false},
    BlockTensor{"ffn_norm.weight", "post_attention_layernorm.weight", true},
    BlockTensor{"ffn_gate.weight", "mlp.gate_proj.weight", true},
    BlockTensor{"ffn_up.weight", "mlp.up_proj.weight", true},
    BlockTensor{"ffn_down.weight", "mlp.down_proj.weight", true},
};

/// A tensor to write, and the head count by whose heads its rows are reordered (0: not at all).
struct Job {
  const GgufTensor* tensor;
  std::string name;
  std::int64_t heads;
};

class Importer {
 public:
  Importer(const fs::path& path, const GgufImportOptions& options)
      : file_(path), gguf_(file_.contents()), options_(options), architecture_(find_architecture()) {
    if (options.dtype != DType::f16 && options.dtype != DType::bf16) {
      fail_usage("GGUF weights can be written as f16 or bf16, not as {}", name_of(options.dtype));
    }
    if (gguf_.integer(key("expert_count"), 0) > 0)
      fail("{} is a mixture of experts, which nibble does not import", gguf_.where());
    hidden_ = positive("embedding_length");
    layers_ = positive("block_count");
    heads_ = positive("attention.head_count");
    kv_heads_ = gguf_.has(key("attention.head_count_kv")) ? positive("attention.head_count_kv") : heads_;
    head_dim_ = gguf_.has(key("attention.key_length")) ? positive("attention.key_length") : hidden_ / heads_;
    if (head_dim_ <= 0 || head_dim_ % 2 != 0)
      fail("{}: {} heads of {} features make no sense", gguf_.where(), heads_, hidden_);
    if (gguf_.integer(key("attention.value_length"), head_dim_) != head_dim_) {
      fail("{}: heads whose keys and values differ in size are not supported", gguf_.where());
    }
    intermediate_ = positive("feed_forward_length");
    collect();
  }

  Json config() const;

  GgufImportResult result() const {
    GgufImportResult out{std::string(architecture_.model_type), std::string(gguf_.text("general.name", "")),
                         static_cast<std::int64_t>(jobs_.size()), 0, tied_};
    for (const Job& job : jobs_) out.parameters += job.tensor->bytes.empty() ? 0 : element_count(job.tensor->shape);
    return out;
  }

  const GgufContents& contents() const { return gguf_; }

  void write_weights(const fs::path& path) const {
    std::vector<TensorDeclaration> declared;
    declared.reserve(jobs_.size());
    for (const Job& job : jobs_) declared.push_back({job.name, options_.dtype, job.tensor->shape});
    SafetensorsWriter writer(path, declared);
    Progress progress("import", static_cast<std::int64_t>(jobs_.size()));
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
      progress.update(static_cast<std::int64_t>(i), jobs_[i].name);
      write_tensor(jobs_[i], writer);
      file_.drop(*jobs_[i].tensor);
    }
    writer.commit();
    progress.finish(fmt::format("{} tensors", jobs_.size()));
  }

 private:
  const Architecture& find_architecture() const {
    const std::string_view name = gguf_.text("general.architecture");
    for (const Architecture& known : kArchitectures) {
      if (known.gguf == name) return known;
    }
    fail("{}: the architecture is {}; nibble imports llama, qwen2 and qwen3", gguf_.where(), name);
  }

  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_.gguf, name); }

  std::int64_t positive(std::string_view name) const {
    const std::int64_t value = gguf_.integer(key(name));
    // Sizes that large belong to no model, and their products could overflow.
    constexpr std::int64_t kLimit = INT32_MAX;
    if (value <= 0 || value > kLimit) fail("{}: {} is {}, which makes no sense", gguf_.where(), key(name), value);
    return value;
  }

  /// Plans to write a tensor whose shape must be the given one.
  bool add(const std::string& gguf_name, std::string hf_name, const Shape& expected, std::int64_t heads,
           bool required) {
    const GgufTensor* tensor = gguf_.find(gguf_name);
    if (tensor == nullptr) {
      if (required) fail("{} has no tensor {}", gguf_.where(), gguf_name);
      return false;
    }
    if (tensor->shape != expected) {
      fail("{}: tensor {} has the shape {}, but the file's keys make it {}", gguf_.where(), gguf_name,
           to_string(tensor->shape), to_string(expected));
    }
    used_.insert(gguf_name);
    jobs_.push_back({tensor, std::move(hf_name), heads});
    return true;
  }

  Shape block_shape(std::string_view name) const {
    const std::int64_t q = heads_ * head_dim_;
    const std::int64_t kv = kv_heads_ * head_dim_;
    if (name == "attn_q.weight") return {q, hidden_};
    if (name == "attn_k.weight" || name == "attn_v.weight") return {kv, hidden_};
    if (name == "attn_output.weight") return {hidden_, q};
    if (name == "attn_q.bias") return {q};
    if (name == "attn_k.bias" || name == "attn_v.bias") return {kv};
    if (name == "attn_q_norm.weight" || name == "attn_k_norm.weight") return {head_dim_};
    if (name == "ffn_gate.weight" || name == "ffn_up.weight") return {intermediate_, hidden_};
    if (name == "ffn_down.weight") return {hidden_, intermediate_};
    return {hidden_};
  }

  void collect() {
    const GgufTensor* embedding = gguf_.find("token_embd.weight");
    if (embedding == nullptr || embedding->shape.size() != 2)
      fail("{} has no embedding (token_embd.weight) of two dimensions", gguf_.where());
    vocab_ = embedding->shape[0];
    if (gguf_.integer(key("vocab_size"), vocab_) != vocab_) {
      fail("{}: {} is {}, but the embedding has {} rows", gguf_.where(), key("vocab_size"),
           gguf_.integer(key("vocab_size")), vocab_);
    }
    add("token_embd.weight", "model.embed_tokens.weight", {vocab_, hidden_}, 0, true);
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      for (const BlockTensor& part : kBlockTensors) {
        const bool is_q = part.gguf.starts_with("attn_q.");
        const bool is_k = part.gguf.starts_with("attn_k.");
        const std::int64_t heads = !architecture_.permuted ? 0 : is_q ? heads_ : is_k ? kv_heads_ : 0;
        add(fmt::format("blk.{}.{}", layer, part.gguf), fmt::format("model.layers.{}.{}", layer, part.hf),
            block_shape(part.gguf), heads, part.required);
      }
    }
    add("output_norm.weight", "model.norm.weight", {hidden_}, 0, true);
    tied_ = !add("output.weight", "lm_head.weight", {vocab_, hidden_}, 0, false);
    if (gguf_.find("rope_freqs.weight") != nullptr) used_.insert("rope_freqs.weight");
    for (const auto& [name, tensor] : gguf_.tensors()) {
      if (!used_.contains(name))
        fail("{} has the tensor {}, for which the architecture {} has no place", gguf_.where(), name,
             architecture_.gguf);
    }
  }

  std::uint16_t narrowed(float value, const Job& job) const {
    if (options_.dtype == DType::bf16) return float_to_bf16(value);
    // 65520 and above round to infinity in f16.
    if (std::fabs(value) >= 65520.0f) {
      fail("{}: tensor {} holds {}, which f16 cannot; import with --dtype bf16", gguf_.where(), job.tensor->name,
           value);
    }
    return float_to_half(value);
  }

  /// Writes one tensor in pieces of some megabytes.
  void write_tensor(const Job& job, SafetensorsWriter& writer) const {
    const GgufTensor& tensor = *job.tensor;
    // A bias is one row in the file, but its elements move as rows do; it is small enough to take whole.
    const bool is_vector = tensor.shape.size() == 1;
    const std::int64_t columns = is_vector ? 1 : tensor.columns();
    const std::int64_t rows = is_vector ? tensor.columns() : tensor.rows();
    constexpr std::int64_t kPiece = 1 << 20;  // elements: 4 MiB of floats
    const std::int64_t step = is_vector ? rows : std::max<std::int64_t>(1, kPiece / columns);
    std::vector<float> values;
    std::vector<std::uint16_t> narrow;
    if (is_vector) {
      values.resize(static_cast<std::size_t>(rows));
      tensor.rows_to_float(0, 1, values);
    }
    for (std::int64_t first = 0; first < rows; first += step) {
      const std::int64_t count = std::min(step, rows - first);
      narrow.resize(static_cast<std::size_t>(count * columns));
      if (!is_vector) values.resize(narrow.size());
      if (!is_vector && job.heads == 0) tensor.rows_to_float(first, count, values);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t source = job.heads == 0 ? first + r : unpermuted(first + r);
        const float* row = values.data() + r * columns;
        if (is_vector) row = values.data() + source;
        if (!is_vector && job.heads != 0)
          tensor.rows_to_float(source, 1, std::span(values).subspan(r * columns, columns));
        for (std::int64_t c = 0; c < columns; ++c) narrow[r * columns + c] = narrowed(row[c], job);
      }
      writer.append(job.name, std::as_bytes(std::span(narrow)));
    }
  }

  /// The row of the file that holds row `row` in Hugging Face's order: feature r * D/2 + i of a head (half r, pair i)
  /// is stored as 2i + r, because llama.cpp rotates neighbours and Hugging Face rotates halves.
  std::int64_t unpermuted(std::int64_t row) const {
    const std::int64_t in_head = row % head_dim_;
    const std::int64_t half = head_dim_ / 2;
    return row - in_head + 2 * (in_head % half) + in_head / half;
  }

  Json rope_scaling() const;
  Json llama3_scaling(const GgufTensor& divisors) const;

  GgufFile file_;
  const GgufContents& gguf_;
  GgufImportOptions options_;
  const Architecture& architecture_;
  std::int64_t hidden_ = 0, layers_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0, intermediate_ = 0, vocab_ = 0;
  bool tied_ = false;
  std::vector<Job> jobs_;
  std::set<std::string, std::less<>> used_;
};

/// Llama 3.1 and later stand in GGUF as a table of divisors of the rotary frequencies. The largest is the factor; the
/// table must be the one that Hugging Face's "llama3" scaling gives with the constants that all of these models use.
Json Importer::llama3_scaling(const GgufTensor& divisors) const {
  constexpr double kLow = 1.0;
  constexpr double kHigh = 4.0;
  constexpr double kOriginal = 8192.0;
  constexpr double kTolerance = 1e-3;  // the table is in float32
  const std::int64_t pairs = head_dim_ / 2;
  if (divisors.shape != Shape{pairs})
    fail("{}: rope_freqs.weight has the shape {}, not [{}]", gguf_.where(), to_string(divisors.shape), pairs);
  std::vector<float> table(static_cast<std::size_t>(pairs));
  divisors.rows_to_float(0, 1, table);
  const double factor = *std::max_element(table.begin(), table.end());
  const double base = gguf_.number(key("rope.freq_base"), 10000.0);
  for (std::int64_t i = 0; i < pairs; ++i) {
    const double wavelength =
        2.0 * M_PI * std::pow(base, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim_));
    const double smooth = std::clamp((kOriginal / wavelength - kLow) / (kHigh - kLow), 0.0, 1.0);
    const double expected = 1.0 / ((1.0 - smooth) / factor + smooth);
    if (!(std::fabs(table[i] - expected) <= kTolerance * expected)) {
      fail("{}: rope_freqs.weight is not the table of Llama 3's scaling (divisor {} is {}, expected {:.4f})",
           gguf_.where(), i, table[i], expected);
    }
  }
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", kLow},
          {"high_freq_factor", kHigh},
          {"original_max_position_embeddings", static_cast<std::int64_t>(kOriginal)}};
}

Json Importer::rope_scaling() const {
  if (const GgufTensor* divisors = gguf_.find("rope_freqs.weight")) return llama3_scaling(*divisors);
  const std::string_view type = gguf_.text(key("rope.scaling.type"), "none");
  if (type == "none" || type.empty()) return nullptr;
  const double factor = gguf_.number(key("rope.scaling.factor"));
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", factor}};
  if (type == "yarn") {
    return {{"rope_type", "yarn"},
            {"factor", factor},
            {"original_max_position_embeddings", gguf_.integer(key("rope.scaling.original_context_length"))}};
  }
  fail("{}: {} is {}; nibble knows linear and yarn", gguf_.where(), key("rope.scaling.type"), type);
}

Json Importer::config() const {
  if (gguf_.integer(key("rope.dimension_count"), head_dim_) != head_dim_) {
    fail("{}: only {} of {} features of a head are rotated, which the architecture {} does not do", gguf_.where(),
         gguf_.integer(key("rope.dimension_count")), head_dim_, architecture_.gguf);
  }
  const auto has_block = [this](const char* name) { return used_.contains(fmt::format("blk.0.{}", name)); };
  Json json = {
      {"architectures", {architecture_.class_name}},
      {"model_type", architecture_.model_type},
      {"vocab_size", vocab_},
      {"hidden_size", hidden_},
      {"intermediate_size", intermediate_},
      {"num_hidden_layers", layers_},
      {"num_attention_heads", heads_},
      {"num_key_value_heads", kv_heads_},
      {"head_dim", head_dim_},
      {"hidden_act", "silu"},
      {"max_position_embeddings", positive("context_length")},
      {"rms_norm_eps", gguf_.number(key("attention.layer_norm_rms_epsilon"))},
      {"rope_theta", gguf_.number(key("rope.freq_base"), 10000.0)},
      {"rope_scaling", rope_scaling()},
      {"attention_dropout", 0.0},
      {"tie_word_embeddings", tied_},
      {"use_cache", true},
      {"torch_dtype", options_.dtype == DType::f16 ? "float16" : "bfloat16"},
  };
  // qwen2 always has biases on q, k and v, and no key for it; in the other two one key covers all four.
  const bool biased = has_block("attn_q.bias");
  if (architecture_.model_type == "qwen2") {
    json["use_sliding_window"] = false;
    if (!biased || has_block("attn_output.bias"))
      fail("{}: qwen2 needs biases on q, k and v, and none on the output", gguf_.where());
  } else {
    json["attention_bias"] = biased;
    if (biased != has_block("attn_output.bias")) {
      fail("{}: some attention projections have a bias and others none, which {} cannot express", gguf_.where(),
           architecture_.class_name);
    }
  }
  if (architecture_.model_type == "llama") json["mlp_bias"] = false;
  if ((architecture_.model_type == "qwen3") != has_block("attn_q_norm.weight")) {
    fail("{}: norms of q and k belong to qwen3 and to no other architecture", gguf_.where());
  }
  json.update(gguf_generation_config_json(gguf_));
  return json;
}

std::string text_of(const Json& json, const std::string& where) {
  try {
    return json.dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    fail("{}: a name, a token or the chat template is not valid UTF-8", where);
  }
}

}  // namespace

GgufImportResult import_gguf(const fs::path& file, const fs::path& out_folder, const GgufImportOptions& options) {
  const Importer importer(file, options);
  const GgufContents& gguf = importer.contents();
  // Everything that can be refused is, before the first byte is written.
  const std::string config = text_of(importer.config(), gguf.where());
  const std::string tokenizer = text_of(gguf_tokenizer_json(gguf), gguf.where());
  const std::string tokenizer_config = text_of(gguf_tokenizer_config_json(gguf), gguf.where());
  const std::string generation_config = text_of(gguf_generation_config_json(gguf), gguf.where());
  std::error_code error;
  fs::create_directories(out_folder, error);
  if (error) fail("cannot make the folder {}: {}", out_folder.string(), error.message());
  if (!options.overwrite && !fs::is_empty(out_folder, error)) {
    fail("the folder {} has files already; choose another, or pass --overwrite", out_folder.string());
  }
  importer.write_weights(out_folder / "model.safetensors");
  write_text_file(out_folder / "tokenizer.json", tokenizer);
  write_text_file(out_folder / "tokenizer_config.json", tokenizer_config);
  write_text_file(out_folder / "generation_config.json", generation_config);
  write_text_file(out_folder / "config.json", config);
  return importer.result();
}

}  // namespace nibble
