#include "kernels/random_site.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/float_convert.h"
#include "formats/gptq_pack.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

namespace nibble {
namespace {

// Stores a float as one element of a 16- or 32-bit type and returns what was stored.
float store(DType dtype, float value, std::byte* at) {
  if (dtype == DType::f32) {
    std::memcpy(at, &value, 4);
    return value;
  }
  const std::uint16_t bits = dtype == DType::bf16 ? float_to_bf16(value) : float_to_half(value);
  std::memcpy(at, &bits, 2);
  return dtype == DType::bf16 ? bf16_to_float(bits) : half_to_float(bits);
}

}  // namespace

std::uint64_t Random::next() {
  state_ += 0x9e3779b97f4a7c15u;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::int64_t Random::below(std::int64_t n) { return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(n)); }

double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

// The sum of four uniforms of 16 bits each has the variance 4/12, so sqrt(3) brings it to 1.
float Random::normal() {
  const std::uint64_t bits = next();
  const auto sum =
      static_cast<float>((bits & 0xffff) + ((bits >> 16) & 0xffff) + ((bits >> 32) & 0xffff) + (bits >> 48));
  return (sum * 0x1p-16f - 2.0f) * 1.7320508f;
}

RandomSite::RandomSite(const RandomSiteOptions& options) {
  Random random(options.seed);
  const std::int64_t inputs = options.in_features;
  site_.prologue = options.prologue;
  site_.epilogue = options.epilogue;
  site_.compute = options.compute;
  site_.x_dtype = options.x_dtype;
  site_.y_dtype = options.y_dtype;

  std::vector<std::int32_t> g_idx;
  if (options.gptq) {
    const std::int64_t group = options.gptq->group_size < 0 ? inputs : options.gptq->group_size;
    for (std::int64_t k = 0; k < inputs; ++k) g_idx.push_back(static_cast<std::int32_t>(k / group));
    if (options.gptq->act_order) {
      for (std::size_t i = g_idx.size(); i > 1; --i) {
        std::swap(g_idx[i - 1], g_idx[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i)))]);
      }
    }
  }

  // The tensors point into these vectors, which therefore must not grow.
  const std::size_t parts = options.out_features.size();
  dense_.reserve(parts);
  biases_.reserve(parts);
  gptq_.reserve(parts);
  for (std::size_t i = 0; i < parts; ++i) {
    const std::int64_t outputs = options.out_features[i];
    LinearDesc desc{"random." + std::to_string(i), inputs, outputs, options.bias, options.gptq};
    if (desc.gptq && desc.gptq->group_size < 0) desc.gptq->group_size = inputs;
    site_.parts.push_back(desc);
    tensors_.emplace_back();
    if (options.gptq) {
      add_gptq(options, outputs, g_idx, random);
    } else {
      add_dense(options, outputs, random);
    }
    if (options.bias) {
      Tensor bias(DType::f32, {outputs});
      // Exact in all types, as a checkpoint's are in its own.
      for (float& b : bias.as<float>()) b = bf16_to_float(float_to_bf16(random.normal()));
      biases_.push_back(std::move(bias));
      tensors_.back().bias = biases_.back().view();
    }
  }
}

void RandomSite::add_dense(const RandomSiteOptions& options, std::int64_t outputs, Random& random) {
  const std::int64_t count = checked_mul(outputs, options.in_features, "a random matrix");
  Tensor tensor(options.weights, {outputs, options.in_features});
  std::vector<float> weights(static_cast<std::size_t>(count));
  const std::size_t width = bytes_of(options.weights);
  // Outputs of the size of the inputs, so that chains of sites neither die out nor overflow.
  const float scale = 1.0f / std::sqrt(static_cast<float>(options.in_features));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = store(options.weights, random.normal() * scale, tensor.bytes().data() + i * width);
  }
  dense_.push_back(std::move(tensor));
  tensors_.back().weight = dense_.back().view();
  weights_.push_back(std::move(weights));
}

void RandomSite::add_gptq(const RandomSiteOptions& options, std::int64_t outputs,
                          const std::vector<std::int32_t>& g_idx, Random& random) {
  const GptqFormat& format = *site_.parts.back().gptq;
  const std::int64_t inputs = options.in_features;
  GptqTensors gptq;
  gptq.bits = format.bits;
  gptq.in_features = inputs;
  gptq.out_features = outputs;
  gptq.group_size = format.group_size;
  gptq.groups = ceil_div(inputs, format.group_size);
  gptq.g_idx = g_idx;
  gptq.act_order = format.act_order;
  gptq.sym = format.symmetric;

  const std::int64_t codes = std::int64_t{1} << format.bits;
  const float unit = 1.0f / (static_cast<float>(codes) * std::sqrt(static_cast<float>(inputs)));
  for (std::int64_t i = 0; i < gptq.groups * outputs; ++i) {
    const std::int64_t zero = format.symmetric ? codes / 2 : random.below(codes);
    gptq.zeros.push_back(static_cast<std::uint16_t>(zero));
    const auto decades = static_cast<float>(3 * random.uniform() - 1.5);
    gptq.scales.push_back(half_to_float(float_to_half(unit * std::pow(10.0f, decades))));
  }

  // Some columns of words more than there are outputs, as padded files have.
  gptq.qweight_columns = outputs + random.below(3);
  if (!options.keep_weights) {
    // Any bits are codes.
    auto words = std::make_shared<std::vector<std::uint32_t>>(
        static_cast<std::size_t>(packed_words(inputs, format.bits) * gptq.qweight_columns));
    for (std::uint32_t& word : *words) word = static_cast<std::uint32_t>(random.next());
    gptq.qweight = *words;
    gptq.qweight_copy = std::move(words);
    gptq_.push_back(std::move(gptq));
    tensors_.back().gptq = &gptq_.back();
    return;
  }
  std::vector<std::uint8_t> all_codes(static_cast<std::size_t>(inputs * gptq.qweight_columns));
  std::vector<float> weights(static_cast<std::size_t>(outputs * inputs));
  for (std::int64_t n = 0; n < outputs; ++n) {
    for (std::int64_t k = 0; k < inputs; ++k) {
      const std::int64_t code = random.below(codes);
      all_codes[static_cast<std::size_t>(k * gptq.qweight_columns + n)] = static_cast<std::uint8_t>(code);
      const auto at = static_cast<std::size_t>(g_idx[static_cast<std::size_t>(k)] * outputs + n);
      weights[static_cast<std::size_t>(n * inputs + k)] = gptq.scales[at] * static_cast<float>(code - gptq.zeros[at]);
    }
  }
  auto words = std::make_shared<std::vector<std::uint32_t>>(
      static_cast<std::size_t>(packed_words(inputs, format.bits) * gptq.qweight_columns));
  pack_columns(all_codes, inputs, gptq.qweight_columns, format.bits, *words);
  gptq.qweight = *words;
  gptq.qweight_copy = std::move(words);
  gptq_.push_back(std::move(gptq));
  tensors_.back().gptq = &gptq_.back();
  weights_.push_back(std::move(weights));
}

}  // namespace nibble
