#include "quant/gptq.h"

#include "core/error.h"
#include "core/thread_pool.h"
#include "quant/group_scale.h"
#include "quant/linalg.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace nibble {
namespace {

constexpr std::int64_t kMaxBlock = 1024;

/// Runs body(first, count) for pieces of at most kOutputs outputs, split among threads. A piece's result depends on
/// nothing outside of it, and so not on the number of threads.
template <typename Body>
void for_outputs(std::int64_t outputs, const Body& body) {
  ThreadPool::instance().run([&](int thread, int threads) {
    const auto [begin, end] = split_range(outputs, kOutputs, thread, threads);
    for (std::int64_t n = begin; n < end; n += kOutputs) body(n, std::min(kOutputs, end - n));
  });
}

/// [N, K] -> [K, N], row i being column order[i]; dead columns become 0. Throws where a weight is not finite.
std::vector<float> transpose(std::span<const float> weight, std::int64_t n_rows, std::int64_t k,
                             std::span<const std::int32_t> order, std::span<const std::uint8_t> dead) {
  std::vector<float> out(weight.size());
  for_outputs(n_rows, [&](std::int64_t n0, std::int64_t count) {
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t column = order[static_cast<std::size_t>(i)];
      float* row = out.data() + i * n_rows + n0;
      for (std::int64_t n = 0; n < count; ++n) {
        const float w = weight[static_cast<std::size_t>((n0 + n) * k + column)];
        if (!std::isfinite(w))
          fail("the weight of output {} and input {} is not finite; it cannot be quantised", n0 + n, column);
        row[n] = dead.empty() || dead[static_cast<std::size_t>(column)] == 0 ? w : 0.0F;
      }
    }
  });
  return out;
}

ScaleOptions scale_options(const GptqOptions& options) {
  return {options.bits, options.symmetric, options.least_zero, options.mse};
}

/// The groups and the columns' places in them, with room for codes, scales and zeros.
QuantizedLinear empty_result(std::int64_t out_features, std::int64_t in_features, const GptqOptions& options) {
  QuantizedLinear r;
  r.bits = options.bits;
  r.in_features = in_features;
  r.out_features = out_features;
  r.group_size = options.group_size > 0 ? std::min(options.group_size, in_features) : in_features;
  r.groups = (in_features + r.group_size - 1) / r.group_size;
  r.codes.resize(static_cast<std::size_t>(in_features * out_features));
  r.scales.resize(static_cast<std::size_t>(r.groups * out_features));
  r.zeros.resize(static_cast<std::size_t>(r.groups * out_features));
  r.g_idx.resize(static_cast<std::size_t>(in_features));
  for (std::int64_t k = 0; k < in_features; ++k)
    r.g_idx[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k / r.group_size);
  return r;
}

void store_group(QuantizedLinear& r, std::int64_t group, std::int64_t n0, std::int64_t count, const float* scale,
                 const float* zero) {
  const std::int64_t at = group * r.out_features + n0;
  std::copy_n(scale, count, r.scales.begin() + at);
  for (std::int64_t n = 0; n < count; ++n)
    r.zeros[static_cast<std::size_t>(at + n)] = static_cast<std::uint8_t>(zero[n]);
}

/// Scales of all groups of weights [K, N] in their original order.
void find_all_scales(const std::vector<float>& weights, QuantizedLinear& r, const GptqOptions& options) {
  for_outputs(r.out_features, [&](std::int64_t n0, std::int64_t count) {
    float scale[kOutputs];
    float zero[kOutputs];
    for (std::int64_t g = 0; g < r.groups; ++g) {
      const std::int64_t first = g * r.group_size;
      const std::int64_t rows = std::min(r.group_size, r.in_features - first);
      find_group_scales(weights.data() + first * r.out_features + n0, rows, r.out_features, count,
                        scale_options(options), scale, zero);
      store_group(r, g, n0, count, scale, zero);
    }
  });
}

/// The scale and zero of a group, for some outputs, as floats.
struct GroupScale {
  float scale[kOutputs];
  float zero[kOutputs];

  void load(const QuantizedLinear& r, std::int64_t group, std::int64_t n0, std::int64_t count) {
    const std::int64_t at = group * r.out_features + n0;
    std::copy_n(r.scales.begin() + at, count, scale);
    for (std::int64_t n = 0; n < count; ++n) zero[n] = static_cast<float>(r.zeros[static_cast<std::size_t>(at + n)]);
  }
};

/// The state of one layer's column loop. Positions count columns in the order of their quantisation.
class ColumnLoop {
 public:
  ColumnLoop(std::span<const float> weight, std::int64_t out_features, const HessianFactor& factor,
             const GptqOptions& options)
      : factor_(factor),
        options_(options),
        n_(out_features),
        k_(factor.in_features),
        result_(empty_result(n_, k_, options)) {
    std::vector<std::int32_t> identity(static_cast<std::size_t>(k_));
    std::iota(identity.begin(), identity.end(), 0);
    if (options.static_groups) find_all_scales(transpose(weight, n_, k_, identity, factor.dead), result_, options);
    weights_ = transpose(weight, n_, k_, factor.order, factor.dead);
    // Without static groups, falling activations decide who shares a scale: a group is a run of positions.
    if (options.order == ColumnOrder::activation && !options.static_groups) {
      for (std::int64_t i = 0; i < k_; ++i) {
        result_.g_idx[static_cast<std::size_t>(column_at(i))] = static_cast<std::int32_t>(i / result_.group_size);
      }
    }
    losses_.assign(static_cast<std::size_t>(n_), 0.0);
  }

  QuantizedLinear run() {
    for (std::int64_t begin = 0; begin < k_;) {
      const std::int64_t end = block_end(begin);
      errors_.resize(static_cast<std::size_t>((end - begin) * n_));
      for_outputs(n_, [&](std::int64_t n0, std::int64_t count) { quantize_block(begin, end, n0, count); });
      sgemm(true, false, k_ - end, n_, end - begin, -1, factor_.upper.data() + begin * k_ + end, k_, errors_.data(), n_,
            1, weights_.data() + end * n_, n_);
      begin = end;
    }
    result_.loss = 0.5 * std::accumulate(losses_.begin(), losses_.end(), 0.0);
    return std::move(result_);
  }

 private:
  std::int64_t column_at(std::int64_t position) const { return factor_.order[static_cast<std::size_t>(position)]; }
  std::int64_t group_at(std::int64_t position) const {
    return result_.g_idx[static_cast<std::size_t>(column_at(position))];
  }

  /// Blocks end where a group ends, or lie inside of one group: so a group's scales, found at its first column, see all
  /// errors of the columns before it.
  std::int64_t block_end(std::int64_t begin) const {
    const std::int64_t group = result_.group_size;
    if (options_.static_groups) return std::min(begin + options_.block_size, k_);
    if (group <= options_.block_size) return std::min(begin + options_.block_size / group * group, k_);
    const std::int64_t next_group = (begin / group + 1) * group;
    return std::min({begin + options_.block_size, next_group, k_});
  }

  void quantize_block(std::int64_t begin, std::int64_t end, std::int64_t n0, std::int64_t count) {
    const std::int64_t size = end - begin;
    // The block's weights for these outputs, close together.
    std::vector<float> w(static_cast<std::size_t>(size * kOutputs));
    for (std::int64_t i = 0; i < size; ++i)
      std::copy_n(weights_.data() + (begin + i) * n_ + n0, count, w.data() + i * kOutputs);

    GroupScale group;
    std::int64_t loaded = -1;
    float rounded[kOutputs];
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t position = begin + i;
      const std::int64_t g = group_at(position);
      if (!options_.static_groups && position % result_.group_size == 0) {
        const std::int64_t rows = std::min(result_.group_size, k_ - position);
        if (rows <= size - i) {
          find_group_scales(w.data() + i * kOutputs, rows, kOutputs, count, scale_options(options_), group.scale,
                            group.zero);
        } else {  // a group longer than the block starts with it: nothing in the block has changed yet
          find_group_scales(weights_.data() + position * n_ + n0, rows, n_, count, scale_options(options_), group.scale,
                            group.zero);
        }
        store_group(result_, g, n0, count, group.scale, group.zero);
      } else if (g != loaded) {
        group.load(result_, g, n0, count);
      }
      loaded = g;

      const float* row = w.data() + i * kOutputs;
      const float* u = factor_.upper.data() + position * k_;
      round_weights(row, count, options_.bits, group.scale, group.zero,
                    result_.codes.data() + column_at(position) * n_ + n0, rounded);
      float* error = errors_.data() + i * n_ + n0;
      const float inverse = 1.0F / u[position];
      for (std::int64_t n = 0; n < count; ++n) {
        error[n] = (row[n] - rounded[n]) * inverse;
        losses_[static_cast<std::size_t>(n0 + n)] += static_cast<double>(error[n]) * error[n];
      }
      for (std::int64_t j = i + 1; j < size; ++j) {
        const float factor = u[begin + j];
        float* later = w.data() + j * kOutputs;
        for (std::int64_t n = 0; n < count; ++n) later[n] -= factor * error[n];
      }
    }
  }

  const HessianFactor& factor_;
  const GptqOptions& options_;
  std::int64_t n_;
  std::int64_t k_;
  QuantizedLinear result_;
  std::vector<float> weights_;  // [K, N] in order of positions, with the errors passed on so far
  std::vector<float> errors_;   // [block, N]
  std::vector<double> losses_;  // [N]
};

void check_shape(std::span<const float> weight, std::int64_t out_features, std::int64_t in_features) {
  if (out_features <= 0 || in_features <= 0 || static_cast<std::int64_t>(weight.size()) != out_features * in_features) {
    fail("the quantiser was given {} weights for a layer of {} outputs and {} inputs", weight.size(), out_features,
         in_features);
  }
}

QuantizedLinear round_all(std::span<const float> weight, std::int64_t out_features, std::int64_t in_features,
                          const GptqOptions& options, std::span<const std::uint8_t> dead) {
  QuantizedLinear r = empty_result(out_features, in_features, options);
  std::vector<std::int32_t> identity(static_cast<std::size_t>(in_features));
  std::iota(identity.begin(), identity.end(), 0);
  const std::vector<float> weights = transpose(weight, out_features, in_features, identity, dead);
  find_all_scales(weights, r, options);
  for_outputs(out_features, [&](std::int64_t n0, std::int64_t count) {
    GroupScale group;
    float rounded[kOutputs];
    for (std::int64_t k = 0; k < in_features; ++k) {
      if (k % r.group_size == 0) group.load(r, k / r.group_size, n0, count);
      const std::int64_t at = k * out_features + n0;
      round_weights(weights.data() + at, count, options.bits, group.scale, group.zero, r.codes.data() + at, rounded);
    }
  });
  return r;
}

}  // namespace

void check_options(const GptqOptions& o) {
  if (o.bits != 2 && o.bits != 3 && o.bits != 4 && o.bits != 8)
    fail_usage("{} bits: GPTQ tensors hold codes of 2, 3, 4 or 8 bits", o.bits);
  if (o.group_size != -1 && o.group_size < 1)
    fail_usage("a group size of {}: expected -1 (one group) or at least 1", o.group_size);
  if (o.block_size < 1 || o.block_size > kMaxBlock)
    fail_usage("a block size of {}: expected 1 to {}", o.block_size, kMaxBlock);
  // Asked this way round, a NaN is refused too.
  const bool damping_fits = o.damp_percent > 0 && o.damp_percent < 1;
  if (!damping_fits) fail_usage("damping of {}: expected more than 0 and less than 1", o.damp_percent);
  const bool exponent_fits = o.mse >= 0 && o.mse <= 16;
  if (!exponent_fits) fail_usage("an error exponent of {}: expected 0 (no search) to 16", o.mse);
  if (o.least_zero < 0 || o.least_zero > 1) fail_usage("a least zero point of {}: expected 0 or 1", o.least_zero);
}

FactorOptions factor_options(const GptqOptions& options) {
  return {options.order, options.group_size, options.damp_percent, options.damp_increment};
}

void QuantizedLinear::dequantize(std::span<float> weight) const {
  check_shape(weight, out_features, in_features);
  for_outputs(out_features, [&](std::int64_t n0, std::int64_t count) {
    for (std::int64_t k = 0; k < in_features; ++k) {
      const std::int64_t group = g_idx[static_cast<std::size_t>(k)] * out_features;
      for (std::int64_t n = n0; n < n0 + count; ++n) {
        const int steps =
            codes[static_cast<std::size_t>(k * out_features + n)] - zeros[static_cast<std::size_t>(group + n)];
        weight[static_cast<std::size_t>(n * in_features + k)] =
            scales[static_cast<std::size_t>(group + n)] * static_cast<float>(steps);
      }
    }
  });
}

QuantizedLinear quantize_layer(std::span<const float> weight, std::int64_t out_features, const HessianFactor& factor,
                               const GptqOptions& options) {
  check_options(options);
  check_shape(weight, out_features, factor.in_features);
  if (factor.upper.empty()) {
    QuantizedLinear r = round_all(weight, out_features, factor.in_features, options, factor.dead);
    r.fell_back = true;
    return r;
  }
  return ColumnLoop(weight, out_features, factor, options).run();
}

QuantizedLinear quantize_layer(std::span<const float> weight, std::int64_t out_features, const Hessian& hessian,
                               const GptqOptions& options) {
  return quantize_layer(weight, out_features, factor_hessian(hessian, factor_options(options)), options);
}

QuantizedLinear round_to_nearest(std::span<const float> weight, std::int64_t out_features, std::int64_t in_features,
                                 const GptqOptions& options) {
  check_options(options);
  check_shape(weight, out_features, in_features);
  return round_all(weight, out_features, in_features, options, {});
}

}  // namespace nibble
