#include "quant/synth.h"

#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "core/float_convert.h"
#include "core/progress.h"
#include "core/thread_pool.h"
#include "formats/gptq_pack.h"
#include "formats/gptq_tensors.h"
#include "models/family.h"
#include "quant/output_folder.h"
#include "quant/random.h"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <set>
#include <span>
#include <utility>

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Elements made at a time: 16 MB of floats, split among all threads.
constexpr std::int64_t kPiece = 4 << 20;

/// A stream of random numbers for each tensor, so that its values do not depend on what else the folder holds.
std::uint64_t stream_of(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, 64 bits
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

/// Nearly normal with deviation 1: the sum of four uniform numbers of 16 bits. Never beyond 3.5, which suits f16.
inline float normal_of(std::uint64_t bits) {
  constexpr std::uint64_t kEven = 0x0000ffff0000ffffu;
  const std::uint64_t pairs = (bits & kEven) + ((bits >> 16) & kEven);
  const auto sum = static_cast<std::int64_t>((pairs & 0xffffffffu) + (pairs >> 32));
  // Mean 2 * 65535, variance 4 * 65536^2 / 12.
  constexpr float kPerDeviation = 1.0F / 37837.227F;
  return static_cast<float>(sum - 131070) * kPerDeviation;
}

/// Every field of `bits` bits that is 0 becomes the middle code 2^(bits-1). 2, 4 or 8 bits.
inline std::uint32_t without_zeros(std::uint32_t word, int bits) {
  std::uint32_t any = word;  // the lowest bit of each field: whether it has any bit
  for (int shift = 1; shift < bits; shift *= 2) any |= any >> shift;
  const std::uint32_t lowest = 0xffffffffu / ((1u << bits) - 1u);
  return word | ((~any & lowest) << (bits - 1));
}

/// Three words of 32 codes of 3 bits, with the same rule.
void without_zeros_3(std::uint32_t* words) {
  std::uint8_t codes[32];
  unpack_codes({words, 3}, 3, codes);
  for (std::uint8_t& code : codes) code = code == 0 ? 4 : code;
  pack_codes(codes, 3, {words, 3});
}

/// The standard deviation of code - zero for codes that without_zeros() made, and zeros that are the middle code or, if
/// not symmetric, one of the middle code and its two neighbours.
double code_deviation(int bits, bool symmetric) {
  const int middle = 1 << (bits - 1);
  double sum = 0;
  for (int code = 1; code < 2 * middle; ++code) sum += (code - middle) * (code - middle);
  return std::sqrt(sum / (2 * middle) + (symmetric ? 0.0 : 2.0 / 3.0));
}

/// `options` as they are. Throws UsageError for those that cannot be.
SynthOptions checked(SynthOptions options) {
  if (options.dtype != DType::f16 && options.dtype != DType::bf16 && options.dtype != DType::f32) {
    fail_usage("random weights are made in f16, bf16 or f32, not {}", name_of(options.dtype));
  }
  if (options.gptq) {
    const LinearQuant& q = *options.gptq;
    if (q.bits != 2 && q.bits != 3 && q.bits != 4 && q.bits != 8)
      fail_usage("{} bits: GPTQ tensors hold codes of 2, 3, 4 or 8 bits", q.bits);
    if (q.group_size != -1 && q.group_size < 1)
      fail_usage("a group size of {}: expected -1 (one group) or at least 1", q.group_size);
  }
  return options;
}

/// Makes one folder. Its members stand in the order of their making: nothing is on the disk before the options and the
/// config are known to be good.
class Synthesiser {
 public:
  Synthesiser(const nlohmann::ordered_json& config, const fs::path& out, const SynthOptions& options)
      : config_(config),
        options_(checked(options)),
        program_(program_from_config(nlohmann::json::parse(config.dump()))),
        folder_(out, options.overwrite),
        tensors_(declarations()),
        writer_(folder_.partial(), tensors_),
        progress_("random weights", static_cast<std::int64_t>(writer_.total_size() >> 20)) {}

  SynthReport run() {
    for_each_tensor([this](const auto& what) { make(what); });
    writer_.commit();
    write_configs(folder_.partial());
    folder_.commit();
    progress_.finish(fmt::format("{:.1f} GB", static_cast<double>(writer_.total_size()) / 1e9));
    return {tensors_.size(), writer_.total_size(), writer_.files(), seconds_since(start_)};
  }

 private:
  /// Plain values: mean + deviation * normal.
  struct Plain {
    std::string name;
    Shape shape;
    double mean = 0;
    double deviation = 0;
  };
  struct Quantised {
    LinearDesc part;
    std::string site;  // the first part's name: what shares the order of its inputs
    double deviation = 0;
  };

  /// Visits what the program names, each tensor once, in the order of use.
  template <typename Visit>
  void for_each_tensor(const Visit& visit) const {
    std::set<std::string> seen;
    const auto plain = [&](const std::string& name, Shape shape, double mean, double deviation) {
      if (!name.empty() && seen.insert(name).second) visit(Plain{name, std::move(shape), mean, deviation});
    };
    for (const Node& node : program_.nodes) {
      if (const auto* embed = std::get_if<EmbedNode>(&node.op)) {
        const std::int64_t width = columns(embed->y);
        const double deviation = 1 / std::sqrt(static_cast<double>(width));
        plain(embed->table, {program_.vocab, width}, 0, deviation);
        plain(embed->positions, {program_.max_positions + embed->position_offset, width}, 0, deviation);
        plain(embed->types, {program_.types, width}, 0, deviation);
      } else if (const auto* place = std::get_if<PlaceNode>(&node.op)) {
        const std::int64_t width = columns(place->y);
        const double deviation = 1 / std::sqrt(static_cast<double>(width));
        for (const std::string& name : place->leading) plain(name, {1, 1, width}, 0, deviation);
        plain(place->positions, {1, program_.max_positions, width}, 0, deviation);
      } else if (const auto* convolve = std::get_if<ConvolveNode>(&node.op)) {
        convolution(*convolve, plain);
      } else if (const auto* over_time = std::get_if<InstanceNormNode>(&node.op)) {
        const std::int64_t width = columns(over_time->x);
        plain(over_time->module + ".weight", {width}, 1, 0.1);
        plain(over_time->module + ".bias", {width}, 0, 0.02);
      } else if (const auto* attention = std::get_if<SelfAttentionNode>(&node.op)) {
        plain(attention->bias, {attention->bias_buckets, attention->heads}, 0, 0.5);
      } else if (const auto* norm = std::get_if<NormNode>(&node.op)) {
        const std::int64_t width = columns(norm->x) / norm->groups;
        plain(norm->weight, {width}, 1, 0.1);
        plain(norm->bias, {width}, 0, 0.02);
      } else if (const auto* linear = std::get_if<LinearNode>(&node.op)) {
        for (std::size_t i = 0; i < linear->parts.size(); ++i) {
          const LinearDesc& part = linear->parts[i];
          const double deviation =
              1 / std::sqrt(static_cast<double>(part.in_features) *
                            (adds_to_stream(*linear, i) ? 2.0 * static_cast<double>(program_.layers) : 1.0));
          if (options_.gptq && linear->in_block && linear->stored.empty()) {
            if (seen.insert(part.name).second) visit(Quantised{part, linear->parts[0].name, deviation});
          } else if (linear->tied_weight.empty()) {
            const Shape shape = linear->stored.empty() ? Shape{part.out_features, part.in_features} : linear->stored;
            plain(part.name + ".weight", shape, 0, deviation);
          }
          if (part.bias) plain(linear->bias.empty() ? part.name + ".bias" : linear->bias, {part.out_features}, 0, 0.02);
        }
      }
    }
  }

  /// Visits a convolution's tensors; weight norm as PyTorch stores it now.
  template <typename Visit>
  static void convolution(const ConvolveNode& node, const Visit& plain) {
    const ConvolutionShape& s = node.shape;
    const Shape weight = {s.outputs, s.inputs / s.groups, s.kernel};
    if (node.weight_norm) {
      // A direction's length does not matter. Weights of deviation 1 / sqrt(window) have this norm a frame.
      const double magnitude = std::sqrt(static_cast<double>(s.outputs) / static_cast<double>(s.kernel));
      plain(node.module + ".parametrizations.weight.original0", {1, 1, s.kernel}, magnitude, 0.1 * magnitude);
      plain(node.module + ".parametrizations.weight.original1", weight, 0, 1);
    } else {
      plain(node.module + ".weight", weight, 0, 1 / std::sqrt(static_cast<double>(s.window())));
    }
    if (s.bias) plain(node.module + ".bias", {s.outputs}, 0, 0.02);
  }

  std::int64_t columns(BufferId id) const { return program_.buffers[static_cast<std::size_t>(id)].columns; }

  /// Whether a block adds this part's output to the hidden state.
  bool adds_to_stream(const LinearNode& linear, std::size_t part) const {
    for (const Node& node : program_.nodes) {
      const auto* add = std::get_if<AddNode>(&node.op);
      if (add != nullptr && linear.in_block && (add->a == linear.y[part] || add->b == linear.y[part])) return true;
    }
    return false;
  }

  std::int64_t group_size(const LinearDesc& part) const {
    const std::int64_t asked = options_.gptq->group_size;
    return asked > 0 ? std::min(asked, part.in_features) : part.in_features;
  }

  std::vector<TensorDeclaration> declarations() const {
    std::vector<TensorDeclaration> out;
    for_each_tensor([&](const auto& what) { declare(out, what); });
    return out;
  }
  void declare(std::vector<TensorDeclaration>& to, const Plain& t) const {
    to.push_back({t.name, options_.dtype, t.shape});
  }
  void declare(std::vector<TensorDeclaration>& to, const Quantised& t) const {
    declare_gptq(to, t.part.name, options_.gptq->bits, t.part.in_features, t.part.out_features,
                 ceil_div(t.part.in_features, group_size(t.part)));
  }

  /// Fills a tensor of T piece by piece: fill(first, values) makes elements [first, first + values.size()). Pieces and
  /// the parts of threads begin at multiples of `grain`.
  template <typename T, typename Fill>
  void stream(const std::string& name, std::int64_t total, std::int64_t grain, const Fill& fill) {
    const std::int64_t step = round_up(std::min(kPiece, total), grain);
    std::vector<T> piece;
    for (std::int64_t first = 0; first < total; first += step) {
      piece.resize(static_cast<std::size_t>(std::min(step, total - first)));
      ThreadPool::instance().run([&](int thread, int threads) {
        const auto [begin, end] = split_range(static_cast<std::int64_t>(piece.size()), grain, thread, threads);
        fill(first + begin,
             std::span(piece).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
      });
      writer_.append(name, std::as_bytes(std::span(piece)));
      done_ += piece.size() * sizeof(T);
      progress_.update(static_cast<std::int64_t>(done_ >> 20), name);
    }
  }

  template <typename T, typename Convert>
  void normals(const Plain& t, const Convert& convert) {
    const std::uint64_t stream_id = stream_of(t.name);
    stream<T>(t.name, element_count(t.shape), 1, [&](std::int64_t first, std::span<T> values) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint64_t bits = random_bits(options_.seed, stream_id, static_cast<std::uint64_t>(first) + i);
        values[i] = convert(static_cast<float>(t.mean) + static_cast<float>(t.deviation) * normal_of(bits));
      }
    });
  }

  void make(const Plain& t) {
    if (options_.dtype == DType::f32) {
      normals<float>(t, [](float v) { return v; });
    } else if (options_.dtype == DType::bf16) {
      normals<std::uint16_t>(t, float_to_bf16);
    } else {
      normals<std::uint16_t>(t, float_to_half);
    }
  }

  void make(const Quantised& t) {
    make_codes(t);
    make_zeros(t);
    make_scales(t);
    make_groups(t);
  }

  void make_codes(const Quantised& t) {
    const int bits = options_.gptq->bits;
    const std::string name = t.part.name + ".qweight";
    const std::uint64_t stream_id = stream_of(name);
    const auto random_word = [&](std::int64_t at) {
      return static_cast<std::uint32_t>(random_bits(options_.seed, stream_id, static_cast<std::uint64_t>(at)));
    };
    const std::int64_t n = t.part.out_features;
    const std::int64_t rows = packed_words(t.part.in_features, bits);
    if (bits != 3) {
      stream<std::uint32_t>(name, rows * n, 1, [&](std::int64_t first, std::span<std::uint32_t> words) {
        for (std::size_t i = 0; i < words.size(); ++i)
          words[i] = without_zeros(random_word(first + static_cast<std::int64_t>(i)), bits);
      });
      return;
    }
    // 32 codes of 3 bits lie in three words below each other: whole triples of rows go together.
    stream<std::uint32_t>(name, rows * n, 3 * n, [&](std::int64_t first, std::span<std::uint32_t> words) {
      const auto width = static_cast<std::size_t>(n);
      for (std::size_t i = 0; i < words.size(); ++i) words[i] = random_word(first + static_cast<std::int64_t>(i));
      for (std::size_t row = 0; row + 3 * width <= words.size(); row += 3 * width) {
        for (std::size_t c = 0; c < width; ++c) {
          std::uint32_t triple[3] = {words[row + c], words[row + width + c], words[row + 2 * width + c]};
          without_zeros_3(triple);
          for (std::size_t w = 0; w < 3; ++w) words[row + w * width + c] = triple[w];
        }
      }
    });
  }

  void make_zeros(const Quantised& t) {
    const LinearQuant& q = *options_.gptq;
    const std::string name = t.part.name + ".qzeros";
    const std::uint64_t stream_id = stream_of(name);
    const std::int64_t n = t.part.out_features;
    const std::int64_t words = packed_words(n, q.bits);
    const std::uint32_t stored_less = options_.zeros == ZeroFormat::v1 ? 1 : 0;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(n));
    std::vector<std::uint32_t> row(static_cast<std::size_t>(words));
    for (std::int64_t g = 0; g < ceil_div(t.part.in_features, group_size(t.part)); ++g) {
      for (std::int64_t c = 0; c < n; ++c) {
        std::uint32_t zero = 1u << (q.bits - 1);
        // One below to one above the middle: v1 can store it whatever the width.
        if (!q.sym)
          zero += static_cast<std::uint32_t>(
                      random_bits(options_.seed, stream_id, static_cast<std::uint64_t>(g * n + c)) % 3) -
                  1;
        codes[static_cast<std::size_t>(c)] = static_cast<std::uint8_t>(zero - stored_less);
      }
      pack_codes(codes, q.bits, row);
      writer_.append(name, std::as_bytes(std::span(row)));
    }
  }

  void make_scales(const Quantised& t) {
    const std::string name = t.part.name + ".scales";
    const std::uint64_t stream_id = stream_of(name);
    const auto scale = static_cast<float>(t.deviation / code_deviation(options_.gptq->bits, options_.gptq->sym));
    const std::int64_t total = ceil_div(t.part.in_features, group_size(t.part)) * t.part.out_features;
    stream<std::uint16_t>(name, total, 1, [&](std::int64_t first, std::span<std::uint16_t> values) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint64_t bits = random_bits(options_.seed, stream_id, static_cast<std::uint64_t>(first) + i);
        const float uniform = static_cast<float>(bits >> 40) * 0x1p-24F;
        values[i] = float_to_half(scale * (0.8F + 0.4F * uniform));
      }
    });
  }

  void make_groups(const Quantised& t) {
    const std::int64_t k = t.part.in_features;
    std::vector<std::int32_t> order(static_cast<std::size_t>(k));
    std::iota(order.begin(), order.end(), 0);
    if (options_.gptq->desc_act) {
      const std::uint64_t stream_id = stream_of(t.site + " order");
      std::vector<std::uint64_t> keys(order.size());
      for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = random_bits(options_.seed, stream_id, i);
      std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)];
      });
    }
    std::vector<std::int32_t> g_idx(order.size());
    for (std::int64_t i = 0; i < k; ++i) {
      g_idx[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] =
          static_cast<std::int32_t>(i / group_size(t.part));
    }
    writer_.append(t.part.name + ".g_idx", std::as_bytes(std::span(g_idx)));
  }

  void write_configs(const fs::path& folder) const {
    nlohmann::ordered_json config = config_;
    config.erase("quantization_config");
    const char* const type = options_.dtype == DType::f16    ? "float16"
                             : options_.dtype == DType::bf16 ? "bfloat16"
                                                             : "float32";
    config[config.contains("dtype") ? "dtype" : "torch_dtype"] = type;
    if (options_.gptq) {
      QuantConfig quant;
      quant.linear = *options_.gptq;
      quant.zeros = options_.zeros;
      quant.quantizers = {"nibble:" NIBBLE_VERSION};
      config["quantization_config"] = quant.to_json();
      write_text_file(folder / "quantize_config.json", quant.to_json().dump(2) + "\n");
    }
    write_text_file(folder / "config.json", config.dump(2) + "\n");
  }

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  nlohmann::ordered_json config_;
  SynthOptions options_;
  Program program_;
  OutputFolder folder_;
  std::vector<TensorDeclaration> tensors_;
  ShardedWriter writer_;
  Progress progress_;
  std::size_t done_ = 0;  // bytes written
};

}  // namespace

SynthReport synthesise(const nlohmann::ordered_json& config, const fs::path& out, const SynthOptions& options) {
  return Synthesiser(config, out, options).run();
}

}  // namespace nibble
