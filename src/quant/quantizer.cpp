#include "quant/quantizer.h"

#include "core/checked.h"
#include "core/clock.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/file.h"
#include "core/float_convert.h"
#include "core/log.h"
#include "core/progress.h"
#include "formats/gptq_tensors.h"
#include "formats/json.h"
#include "models/family.h"
#include "quant/block_runner.h"
#include "quant/output_folder.h"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Elements of an unquantised tensor that are converted at a time.
constexpr std::int64_t kPiece = 1 << 20;

// What a model folder has beside weights and config.json, and a quantised copy of it needs as well.
constexpr const char* kCompanions[] = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "LICENSE",
    "LICENSE.txt",
};

struct Target {
  LinearDesc part;
  LinearNode node;        // that the part belongs to
  std::size_t index = 0;  // of the part
};

class Quantizer {
 public:
  Quantizer(const Checkpoint& checkpoint, const QuantizeOptions& options)
      : checkpoint_(checkpoint),
        options_(options),
        zeros_(options.zeros.value_or(options.gptq.symmetric ? ZeroFormat::v1 : ZeroFormat::v2)),
        program_(program_from_checkpoint(checkpoint)) {
    if (zeros_ == ZeroFormat::v1) options_.gptq.least_zero = 1;
    check_options(options_.gptq);
    for (const Node& node : program_.nodes) {
      const auto* linear = std::get_if<LinearNode>(&node.op);
      if (linear == nullptr || !wanted(*linear)) continue;
      for (std::size_t i = 0; i < linear->parts.size(); ++i) add_target(*linear, i);
    }
  }

  QuantizeReport run(const std::vector<std::vector<std::int32_t>>& sequences, const fs::path& out) {
    const auto start = std::chrono::steady_clock::now();
    OutputFolder folder(out, options_.overwrite);
    ShardedWriter writer(folder.partial(), declarations());
    writer_ = &writer;
    Progress progress("quantising", static_cast<std::int64_t>(targets_.size()));
    progress_ = &progress;
    if (options_.method == QuantMethod::rtn) {
      for (const auto& [name, target] : targets_) round_target(target);
    } else {
      run_blocks(sequences);
    }
    copy_others();
    writer.commit();
    write_configs(folder.partial());
    folder.commit();
    progress.finish(fmt::format("{} linear layers to {} bits", targets_.size(), options_.gptq.bits));
    report_.bytes_before = checkpoint_.total_bytes();
    report_.bytes_after = writer.total_size();
    report_.seconds = seconds_since(start);
    return std::move(report_);
  }

 private:
  bool wanted(const LinearNode& linear) const { return linear.in_block || options_.lm_head; }

  void add_target(const LinearNode& linear, std::size_t index) {
    const LinearDesc& part = linear.parts[index];
    if (part.gptq) fail("{} is quantised already: {}.qweight is there", checkpoint_.folder().string(), part.name);
    if (!linear.tied_weight.empty()) {
      fail_usage("--lm-head: the head of {} is tied to its embedding, which is not quantised",
                 checkpoint_.folder().string());
    }
    const std::int64_t group = options_.gptq.group_size;
    if (group > 0 && part.in_features % group != 0 && !warned_.group) {
      log_warn(fmt::format(
          "groups of {} do not divide the {} inputs of {}: the last group is shorter, which some programs cannot read",
          group, part.in_features, part.name));
      warned_.group = true;
    }
    if ((part.in_features % 32 != 0 || part.out_features % 32 != 0) && !warned_.width) {
      log_warn(fmt::format("{} is [{}, {}]: most programs read only multiples of 32", part.name, part.out_features,
                           part.in_features));
      warned_.width = true;
    }
    targets_.emplace(part.name, Target{part, linear, index});
  }

  std::vector<TensorDeclaration> declarations() {
    std::vector<TensorDeclaration> out;
    for (const std::string& name : checkpoint_.names()) {
      if (const auto module = module_of(name, ".weight")) {
        const LinearDesc& part = targets_.at(*module).part;
        const std::int64_t group =
            options_.gptq.group_size > 0 ? std::min(options_.gptq.group_size, part.in_features) : part.in_features;
        declare_gptq(out, *module, options_.gptq.bits, part.in_features, part.out_features,
                     ceil_div(part.in_features, group));
        continue;
      }
      if (is_copy_of_tied_head(name)) continue;
      const TensorView tensor = checkpoint_.tensor(name);
      const DType dtype = becomes_half(name, tensor.dtype) ? DType::f16 : tensor.dtype;
      out.push_back({name, dtype, tensor.shape});
      others_.push_back(name);
    }
    return out;
  }

  /// The target that the tensor belongs to, if it is its weight (".weight") or bias (".bias").
  std::optional<std::string> module_of(const std::string& name, std::string_view suffix) const {
    if (!name.ends_with(suffix)) return std::nullopt;
    std::string module = name.substr(0, name.size() - suffix.size());
    if (!targets_.contains(module)) return std::nullopt;
    return module;
  }

  bool is_copy_of_tied_head(const std::string& name) const {
    for (const Node& node : program_.nodes) {
      const auto* linear = std::get_if<LinearNode>(&node.op);
      if (linear != nullptr && !linear->tied_weight.empty() && name == linear->parts[0].name + ".weight") return true;
    }
    return false;
  }

  bool becomes_half(const std::string& name, DType dtype) const {
    if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f64) return false;
    return !options_.keep_dtype || module_of(name, ".bias").has_value();
  }

  void copy_others() {
    std::vector<float> values;
    std::vector<std::uint16_t> halves;
    for (const std::string& name : others_) {
      const TensorView tensor = checkpoint_.tensor(name);
      if (!becomes_half(name, tensor.dtype)) {
        writer_->append(name, tensor.bytes);
        continue;
      }
      const std::int64_t total = tensor.elements();
      const std::size_t width = bytes_of(tensor.dtype);
      for (std::int64_t first = 0; first < total; first += kPiece) {
        const std::int64_t count = std::min(kPiece, total - first);
        values.resize(static_cast<std::size_t>(count));
        halves.resize(values.size());
        const TensorView piece{tensor.dtype,
                               {count},
                               tensor.bytes.subspan(static_cast<std::size_t>(first) * width, values.size() * width)};
        rows_to_float(piece, 0, 1, values);
        for (std::size_t i = 0; i < values.size(); ++i) {
          halves[i] = float_to_half(values[i]);
          if (!std::isfinite(half_to_float(halves[i]))) {
            fail("tensor {} holds {}, which f16 cannot hold; keep its type with --keep-dtype", name, values[i]);
          }
        }
        writer_->append(name, std::as_bytes(std::span(halves)));
      }
      checkpoint_.drop(name);
    }
  }

  DenseLinear load(const LinearNode& node, std::size_t index) const {
    LoadedLinear loaded;
    load_linear(checkpoint_, std::nullopt, node, index, loaded);
    DenseLinear out{to_float(loaded.tensors.weight), {}};
    if (!loaded.tensors.bias.empty()) out.bias = to_float(loaded.tensors.bias);
    return out;
  }

  void write(const std::string& module, const QuantizedLinear& q) {
    std::vector<std::uint16_t> scales(q.scales.size());
    std::transform(q.scales.begin(), q.scales.end(), scales.begin(), float_to_half);
    const std::vector<std::uint16_t> zeros(q.zeros.begin(), q.zeros.end());
    const PackedGptq packed =
        pack_gptq({q.bits, q.in_features, q.out_features, q.codes, scales, zeros, q.g_idx}, zeros_);
    writer_->append(module + ".qweight", packed.qweight.bytes());
    writer_->append(module + ".qzeros", packed.qzeros.bytes());
    writer_->append(module + ".scales", packed.scales.bytes());
    writer_->append(module + ".g_idx", packed.g_idx.bytes());
  }

  void finish(const std::string& name, const QuantizedLinear& q, double damp_percent) {
    write(name, q);
    checkpoint_.drop(name + ".weight");
    if (q.fell_back)
      log_warn(fmt::format("{}: the Hessian could not be factored; its weights are rounded to nearest", name));
    report_.linears.push_back({name, q.loss, damp_percent, q.fell_back});
    progress_->update(static_cast<std::int64_t>(report_.linears.size()), name);
  }

  void round_target(const Target& target) {
    const DenseLinear dense = load(target.node, target.index);
    finish(target.part.name,
           round_to_nearest(dense.weight, target.part.out_features, target.part.in_features, options_.gptq), 0);
  }

  void check_memory(const std::vector<std::vector<std::int32_t>>& sequences) const {
    std::size_t tokens = 0;
    std::size_t longest = 0;
    for (const auto& sequence : sequences) {
      tokens += sequence.size();
      longest = std::max(longest, sequence.size());
    }
    std::int64_t widest = 0;
    std::int64_t largest = 0;
    for (const auto& [name, target] : targets_) {
      widest = std::max(widest, target.part.in_features);
      largest = std::max(largest, target.part.in_features * target.part.out_features);
    }
    // The Hessian and its factor; of one matrix the weights, their transpose and codes, and those of its neighbours.
    const auto layer = static_cast<std::size_t>(2 * 4 * widest * widest + 16 * largest);
    const std::size_t states =
        BlockRunner::memory(program_, static_cast<std::int64_t>(tokens), static_cast<std::int64_t>(longest));
    const std::size_t saved = options_.true_sequential ? 0 : tokens * static_cast<std::size_t>(program_.hidden) * 4;
    const std::size_t have = usable_memory_bytes();
    if (states + saved + layer > have) {
      fail(
          "quantising with {} calibration tokens needs {:.1f} GB, of which {:.1f} GB are their hidden states, and this "
          "machine has "
          "{:.1f} GB; take fewer with --samples or --sequence-length",
          tokens, static_cast<double>(states + saved + layer) / 1e9, static_cast<double>(states + saved) / 1e9,
          static_cast<double>(have) / 1e9);
    }
  }

  void run_blocks(const std::vector<std::vector<std::int32_t>>& sequences) {
    check_memory(sequences);
    BlockRunner runner(program_, checkpoint_, sequences);
    report_.tokens = runner.tokens();
    for (int layer = 0; layer < program_.layers; ++layer) run_block(runner, layer);
    if (options_.lm_head) {
      runner.begin(static_cast<int>(program_.layers));
      std::vector<DenseLinear> parts = load_parts(*runner.linear());
      quantize_parts(*runner.linear(), runner.inputs(), parts);
    }
  }

  std::vector<DenseLinear> load_parts(const LinearNode& node) const {
    std::vector<DenseLinear> parts;
    parts.reserve(node.parts.size());
    for (std::size_t i = 0; i < node.parts.size(); ++i) parts.push_back(load(node, i));
    return parts;
  }

  /// Quantises and writes the parts, which share their inputs, and replaces their weights by what a reader gets.
  void quantize_parts(const LinearNode& node, const MatrixRef& inputs, std::vector<DenseLinear>& parts) {
    try {
      Hessian hessian(inputs.columns);
      hessian.add(inputs);
      const HessianFactor factor = factor_hessian(hessian, factor_options(options_.gptq));
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const QuantizedLinear q = quantize_layer(parts[i].weight, node.parts[i].out_features, factor, options_.gptq);
        finish(node.parts[i].name, q, factor.damp_percent);
        q.dequantize(parts[i].weight);
      }
    } catch (const UsageError&) {
      throw;
    } catch (const Error& error) {
      fail("{}: {}", node.parts[0].name, error.what());
    }
  }

  void run_block(BlockRunner& runner, int layer) {
    if (options_.true_sequential) {
      runner.begin(layer);
      while (const LinearNode* node = runner.linear()) {
        std::vector<DenseLinear> parts = load_parts(*node);
        quantize_parts(*node, runner.inputs(), parts);
        runner.apply(parts);
      }
      return;
    }
    std::vector<std::vector<DenseLinear>> quantized;
    runner.save();
    runner.begin(layer);
    while (const LinearNode* node = runner.linear()) {
      const std::vector<DenseLinear> parts = load_parts(*node);
      quantize_parts(*node, runner.inputs(), quantized.emplace_back(parts));
      runner.apply(parts);
    }
    runner.restore();
    runner.begin(layer);
    for (const std::vector<DenseLinear>& parts : quantized) runner.apply(parts);
  }

  void write_configs(const fs::path& folder) const {
    QuantConfig config;
    const GptqOptions& gptq = options_.gptq;
    config.linear = {gptq.bits, gptq.group_size, gptq.order == ColumnOrder::activation, gptq.symmetric};
    config.zeros = zeros_;
    config.lm_head = options_.lm_head;
    config.true_sequential = options_.true_sequential;
    config.static_groups = gptq.static_groups;
    config.damp_percent = gptq.damp_percent;
    config.quantizers = {"nibble:" NIBBLE_VERSION};
    nlohmann::ordered_json quant = config.to_json();
    if (gptq.order == ColumnOrder::group_aware) quant["act_group_aware"] = true;
    write_text_file(folder / "quantize_config.json", quant.dump(2) + "\n");

    const fs::path source = checkpoint_.folder() / "config.json";
    nlohmann::ordered_json model = parse_ordered_json(read_text_file(source, kJsonSizeLimit), source.string());
    if (!options_.keep_dtype) {
      model[model.contains("dtype") ? "dtype" : "torch_dtype"] = "float16";
    }
    model["quantization_config"] = quant;
    write_text_file(folder / "config.json", model.dump(2) + "\n");

    std::error_code error;
    for (const char* name : kCompanions) {
      const fs::path from = checkpoint_.folder() / name;
      if (!fs::is_regular_file(from, error)) continue;
      fs::copy_file(from, folder / name, error);
      if (error) fail("cannot copy {}: {}", from.string(), error.message());
    }
  }

  const Checkpoint& checkpoint_;
  QuantizeOptions options_;
  ZeroFormat zeros_;
  Program program_;
  std::map<std::string, Target> targets_;
  std::vector<std::string> others_;  // tensors that are not quantised
  struct {
    bool group = false;
    bool width = false;
  } warned_;
  ShardedWriter* writer_ = nullptr;
  Progress* progress_ = nullptr;
  QuantizeReport report_;
};

}  // namespace

QuantizeReport quantize_checkpoint(const Checkpoint& checkpoint,
                                   const std::vector<std::vector<std::int32_t>>& sequences, const fs::path& out,
                                   const QuantizeOptions& options) {
  return Quantizer(checkpoint, options).run(sequences, out);
}

}  // namespace nibble
