#include "formats/gptq_tensors.h"

#include "core/checked.h"
#include "core/log.h"
#include "formats/gptq_pack.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace nibble {
namespace {

/// AutoGPTQ's exllama class pads the output features to a multiple of this.
constexpr std::int64_t kOutputPadding = 32;
/// Group and column numbers are 32-bit; below this no product of a size and a bit width can overflow.
constexpr std::int64_t kFeatureLimit = INT32_MAX;

/// Copies the words of an i32 tensor, which may lie at any address.
std::vector<std::uint32_t> words_of(const TensorView& tensor) {
  std::vector<std::uint32_t> words(static_cast<std::size_t>(tensor.elements()));
  if (!words.empty()) std::memcpy(words.data(), tensor.bytes.data(), words.size() * sizeof(std::uint32_t));
  return words;
}

/// Reads one linear; what several steps need is kept here.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const std::string& prefix, const QuantConfig& config, std::int64_t in,
         std::int64_t out)
      : checkpoint_(checkpoint), config_(config) {
    if (in <= 0 || out <= 0 || in > kFeatureLimit || out > kFeatureLimit)
      fail("{}: a linear of {} inputs and {} outputs makes no sense", prefix, in, out);
    const auto quant = config.for_module(prefix);
    if (!quant) {
      fail("{} holds {}.qweight, but `dynamic` in {} says that this module is not quantised",
           checkpoint.folder().string(), prefix, config.source);
    }
    quant_ = *quant;
    t_.name = prefix;
    t_.in_features = in;
    t_.out_features = out;
  }

  GptqTensors load() {
    read_qweight();
    read_groups();
    read_zeros();
    read_bias();
    return std::move(t_);
  }

 private:
  std::string full(std::string_view part) const { return t_.name + "." + std::string(part); }

  [[noreturn]] void refuse_shape(std::string_view part, const TensorView& tensor, const std::string& expected) const {
    fail("{}: {} is {} of shape {}, but {} inputs, {} outputs and {} bits need {}",
         checkpoint_.file_of(full(part)).string(), full(part), name_of(tensor.dtype), to_string(tensor.shape),
         t_.in_features, t_.out_features, t_.bits, expected);
  }

  TensorView words(std::string_view part, std::size_t rank) const {
    TensorView tensor = checkpoint_.tensor(full(part));
    if ((tensor.dtype != DType::i32 && tensor.dtype != DType::u32) || tensor.shape.size() != rank) {
      refuse_shape(part, tensor, fmt::format("an i32 tensor of {} dimension{}", rank, rank == 1 ? "" : "s"));
    }
    return tensor;
  }

  TensorView floats(std::string_view part) const {
    TensorView tensor = checkpoint_.tensor(full(part));
    if (tensor.dtype != DType::f16 && tensor.dtype != DType::bf16 && tensor.dtype != DType::f32) {
      refuse_shape(part, tensor, "f16, bf16 or f32");
    }
    return tensor;
  }

  void read_qweight() {
    const TensorView tensor = words("qweight", 2);
    const std::int64_t rows = tensor.shape[0];
    t_.bits = quant_.bits;
    if (rows != packed_words(t_.in_features, t_.bits)) {
      // The shape knows better than the config; 32 features of each width take a different number of words.
      constexpr std::array kWidths = {2, 3, 4, 8};
      const auto* const width = std::find_if(kWidths.begin(), kWidths.end(),
                                             [&](int bits) { return packed_words(t_.in_features, bits) == rows; });
      if (width == kWidths.end())
        refuse_shape("qweight", tensor, fmt::format("{} rows", packed_words(t_.in_features, t_.bits)));
      t_.bits = *width;
    }
    const std::int64_t columns = tensor.shape[1];
    if (columns != t_.out_features && columns != round_up(t_.out_features, kOutputPadding)) {
      refuse_shape("qweight", tensor, fmt::format("{} columns", t_.out_features));
    }
    t_.qweight_columns = columns;
    const auto count = static_cast<std::size_t>(rows * columns);
    if (reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % alignof(std::uint32_t) == 0) {
      t_.qweight = {reinterpret_cast<const std::uint32_t*>(tensor.bytes.data()), count};
    } else {
      t_.qweight_copy = std::make_shared<const std::vector<std::uint32_t>>(words_of(tensor));
      t_.qweight = *t_.qweight_copy;
    }
  }

  void read_groups() {
    const TensorView scales = floats("scales");
    if (scales.shape.size() != 2 || scales.shape[1] != t_.qweight_columns || scales.shape[0] < 1 ||
        scales.shape[0] > t_.in_features) {
      refuse_shape("scales", scales, fmt::format("[groups, {}]", t_.qweight_columns));
    }
    t_.groups = scales.shape[0];
    const std::vector<float> padded = to_float(scales);
    t_.scales.resize(static_cast<std::size_t>(t_.groups * t_.out_features));
    for (std::int64_t g = 0; g < t_.groups; ++g) {
      std::copy_n(padded.data() + g * t_.qweight_columns, t_.out_features, t_.scales.data() + g * t_.out_features);
    }
    read_g_idx();
    set_group_size(scales);
    if (t_.g_idx.empty()) {
      if (quant_.desc_act && t_.groups > 1 && !config_.static_groups) {
        log_warn(
            fmt::format("{} has no g_idx although desc_act is set: groups are taken to follow each other", t_.name));
      }
      t_.g_idx.resize(static_cast<std::size_t>(t_.in_features));
      for (std::int64_t k = 0; k < t_.in_features; ++k) t_.g_idx[k] = static_cast<std::int32_t>(k / t_.group_size);
    }
    for (std::int64_t k = 0; k < t_.in_features; ++k) t_.act_order |= t_.g_idx[k] != k / t_.group_size;
  }

  void read_g_idx() {
    if (!checkpoint_.has(full("g_idx"))) return;
    const TensorView tensor = words("g_idx", 1);
    if (tensor.shape[0] == 0) return;  // a placeholder of tools that sort rows at load
    if (tensor.shape[0] != t_.in_features) refuse_shape("g_idx", tensor, fmt::format("[{}]", t_.in_features));
    t_.g_idx.resize(static_cast<std::size_t>(t_.in_features));
    std::memcpy(t_.g_idx.data(), tensor.bytes.data(), tensor.bytes.size());
    for (std::int64_t k = 0; k < t_.in_features; ++k) {
      if (t_.g_idx[k] < 0 || t_.g_idx[k] >= t_.groups) {
        fail("{}: {}.g_idx puts input feature {} in group {}, but scales have {} groups",
             checkpoint_.file_of(full("g_idx")).string(), t_.name, k, t_.g_idx[k], t_.groups);
      }
    }
  }

  void set_group_size(const TensorView& scales) {
    const auto fits = [this](std::int64_t size) { return size > 0 && ceil_div(t_.in_features, size) == t_.groups; };
    t_.group_size = quant_.group_size == -1 ? t_.in_features : quant_.group_size;
    if (fits(t_.group_size)) {
      t_.group_size = std::min(t_.group_size, t_.in_features);
      return;
    }
    // The config is wrong: the largest group has the size, or without g_idx groups of equal size are the only guess.
    if (!t_.g_idx.empty()) {
      std::vector<std::int64_t> members(static_cast<std::size_t>(t_.groups));
      for (const std::int32_t g : t_.g_idx) ++members[g];
      t_.group_size = *std::max_element(members.begin(), members.end());
    } else {
      t_.group_size = t_.in_features % t_.groups == 0 ? t_.in_features / t_.groups : 0;
    }
    if (!fits(t_.group_size)) {
      refuse_shape(
          "scales", scales,
          fmt::format("{} groups of {}", ceil_div(t_.in_features, std::max<std::int64_t>(quant_.group_size, 1)),
                      quant_.group_size));
    }
  }

  void read_zeros() {
    const TensorView tensor = words("qzeros", 2);
    const std::int64_t row_words = packed_words(t_.qweight_columns, t_.bits);
    if (tensor.shape != Shape{t_.groups, row_words})
      refuse_shape("qzeros", tensor, to_string(Shape{t_.groups, row_words}));
    std::vector<std::uint32_t> stored = words_of(tensor);
    const std::uint32_t mask = (1u << t_.bits) - 1u;
    const auto middle = static_cast<std::uint16_t>(1u << (t_.bits - 1));

    if (t_.bits == 3 && config_.zeros == ZeroFormat::v1 && has_damaged_3bit_zeros(stored, row_words)) {
      t_.zeros.assign(static_cast<std::size_t>(t_.groups * t_.out_features), middle);
      t_.sym = true;
      return;
    }
    std::uint32_t offset = config_.zeros == ZeroFormat::v1 ? 1 : 0;
    if (offset == 1 && !quant_.sym && t_.bits != 3 && config_.packed_by_gptqmodel()) {
      // That tool subtracts 1 from all fields of a word at once, so that a zero field borrows from its neighbour;
      // adding to the whole word gives the fields back. 0xFFFFFFFF / mask is the word with a 1 in every field.
      for (std::uint32_t& word : stored) word += 0xFFFFFFFFu / mask;
      offset = 0;
    }
    unpack_zeros(stored, row_words);
    const auto all_are = [this](std::uint32_t value) {
      return std::all_of(t_.zeros.begin(), t_.zeros.end(), [value](std::uint16_t z) { return z == value; });
    };
    // The constants of symmetric files tell v1 from v2, whatever the config says.
    if (quant_.sym && all_are(middle)) offset = 0;
    if (quant_.sym && all_are(middle - 1u)) offset = 1;
    for (std::uint16_t& z : t_.zeros) z = static_cast<std::uint16_t>((z + offset) & mask);
    t_.sym = all_are(middle);
  }

  void unpack_zeros(const std::vector<std::uint32_t>& stored, std::int64_t row_words) {
    t_.zeros.resize(static_cast<std::size_t>(t_.groups * t_.out_features));
    for (std::int64_t g = 0; g < t_.groups; ++g) {
      const std::uint32_t* const row = stored.data() + g * row_words;
      for (std::int64_t n = 0; n < t_.out_features; ++n) {
        t_.zeros[g * t_.out_features + n] = static_cast<std::uint16_t>(unpack_code(row, 1, n, t_.bits));
      }
    }
  }

  /// GPTQModel before 7.0 turned the zeros of symmetric 3-bit models into these words: it took the constants that it
  /// subtracts from each three words in the wrong order.
  bool has_damaged_3bit_zeros(const std::vector<std::uint32_t>& stored, std::int64_t row_words) const {
    constexpr std::array<std::uint32_t, 3> kDamaged = {0x00000000u, 0xB6DB6DB7u, 0x49249249u};
    if (!quant_.sym || row_words % 3 != 0) return false;
    for (std::size_t i = 0; i < stored.size(); ++i) {
      if (stored[i] != kDamaged[i % 3]) return false;
    }
    return true;
  }

  void read_bias() {
    if (!checkpoint_.has(full("bias"))) return;
    const TensorView tensor = floats("bias");
    if (tensor.shape != Shape{t_.qweight_columns} && tensor.shape != Shape{t_.out_features}) {
      refuse_shape("bias", tensor, fmt::format("[{}]", t_.qweight_columns));
    }
    t_.bias = to_float(tensor);
    t_.bias.resize(static_cast<std::size_t>(t_.out_features));
    // AutoGPTQ wrote zero biases for linears that have none.
    if (std::all_of(t_.bias.begin(), t_.bias.end(), [](float b) { return b == 0.0f; })) t_.bias.clear();
  }

  const Checkpoint& checkpoint_;
  const QuantConfig& config_;
  LinearQuant quant_;
  GptqTensors t_;
};

}  // namespace

void GptqTensors::codes(std::int64_t k0, std::int64_t k1, std::int64_t n0, std::int64_t n1, std::uint8_t* out) const {
  unpack_columns(qweight.data(), qweight_columns, bits, k0, k1, n0, n1, out);
}

void GptqTensors::dequantize_row(std::int64_t n, float* out) const {
  for (std::int64_t k = 0; k < in_features; ++k) {
    const std::int64_t at = g_idx[k] * out_features + n;
    const auto code = static_cast<int>(unpack_code(qweight.data() + n, qweight_columns, k, bits));
    out[k] = scales[at] * static_cast<float>(code - static_cast<int>(zeros[at]));
  }
}

GptqTensors load_gptq(const Checkpoint& checkpoint, const std::string& prefix, const QuantConfig& config,
                      std::int64_t in, std::int64_t out) {
  return Loader(checkpoint, prefix, config, in, out).load();
}

PackedGptq pack_gptq(const GptqParts& parts, ZeroFormat format) {
  const std::int64_t in = parts.in_features;
  const std::int64_t out = parts.out_features;
  const int bits = parts.bits;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    fail("GPTQ codes of {} bits cannot be packed: only 2, 3, 4 and 8", bits);
  if (in <= 0 || out <= 0 || parts.codes.size() != static_cast<std::size_t>(checked_mul(in, out, "a linear")) ||
      parts.scales.empty() || parts.scales.size() % static_cast<std::size_t>(out) != 0 ||
      parts.zeros.size() != parts.scales.size() || parts.g_idx.size() != static_cast<std::size_t>(in)) {
    fail("the parts of a linear [{}, {}] do not fit each other: {} codes, {} scales, {} zeros, {} group numbers", out,
         in, parts.codes.size(), parts.scales.size(), parts.zeros.size(), parts.g_idx.size());
  }
  const std::int64_t groups = static_cast<std::int64_t>(parts.scales.size()) / out;
  const std::uint32_t mask = (1u << bits) - 1u;
  const auto too_wide = [mask](std::uint32_t value) { return value > mask; };
  if (std::any_of(parts.codes.begin(), parts.codes.end(), too_wide)) fail("a GPTQ code does not fit in {} bits", bits);
  if (std::any_of(parts.zeros.begin(), parts.zeros.end(), too_wide))
    fail("a GPTQ zero point does not fit in {} bits", bits);
  if (std::any_of(parts.g_idx.begin(), parts.g_idx.end(), [groups](std::int32_t g) { return g < 0 || g >= groups; })) {
    fail("a group number is not below {}, the number of groups", groups);
  }
  PackedGptq packed{Tensor(DType::i32, {packed_words(in, bits), out}),
                    Tensor(DType::i32, {groups, packed_words(out, bits)}), Tensor(DType::f16, {groups, out}),
                    Tensor(DType::i32, {in})};
  pack_columns(parts.codes, in, out, bits, packed.qweight.as<std::uint32_t>());
  const std::uint32_t offset = format == ZeroFormat::v1 ? 1 : 0;
  std::vector<std::uint8_t> row(static_cast<std::size_t>(out));
  const std::int64_t row_words = packed_words(out, bits);
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t n = 0; n < out; ++n)
      row[n] = static_cast<std::uint8_t>((parts.zeros[g * out + n] - offset) & mask);
    pack_codes(row, bits, packed.qzeros.as<std::uint32_t>().subspan(g * row_words, row_words));
  }
  std::memcpy(packed.scales.bytes().data(), parts.scales.data(), parts.scales.size_bytes());
  std::memcpy(packed.g_idx.bytes().data(), parts.g_idx.data(), parts.g_idx.size_bytes());
  return packed;
}

}  // namespace nibble
