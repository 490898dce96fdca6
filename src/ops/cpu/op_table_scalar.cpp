// The reference: plain C++, one element at a time, statistics in double.
#include "kernels/cpu/scalar_activation.h"
#include "ops/cpu/attention_scalar.h"
#include "ops/cpu/kv_layout.h"
#include "ops/cpu/op_table.h"

#include "core/float_convert.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace nibble::cpu {
namespace {

std::uint16_t half_word(const void* from, std::int64_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, static_cast<const std::byte*>(from) + 2 * i, sizeof bits);
  return bits;
}

void embed(const void* row, DType dtype, float scale, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    float value;
    if (dtype == DType::f32) {
      std::memcpy(&value, static_cast<const std::byte*>(row) + 4 * i, sizeof value);
    } else {
      value = dtype == DType::f16 ? half_to_float(half_word(row, i)) : bf16_to_float(half_word(row, i));
    }
    y[i] = value * scale;
  }
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t n, float* y) {
  double squares = 0;
  for (std::int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const auto factor = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(n) + eps));
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * (weight != nullptr ? weight[i] : 1);
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, std::int64_t n, float* y) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += x[i];
  const double mean = sum / static_cast<double>(n);
  double squares = 0;
  for (std::int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto normed = static_cast<float>((x[i] - mean) * factor);
    y[i] = normed * (weight != nullptr ? weight[i] : 1) + (bias != nullptr ? bias[i] : 0);
  }
}

void rotate(float* head, const float* cosines, const float* sines, std::int64_t pairs, bool interleaved) {
  for (std::int64_t i = 0; i < pairs; ++i) {
    float& a = interleaved ? head[2 * i] : head[i];
    float& b = interleaved ? head[2 * i + 1] : head[i + pairs];
    const float rotated_a = a * cosines[i] - b * sines[i];
    const float rotated_b = b * cosines[i] + a * sines[i];
    a = rotated_a;
    b = rotated_b;
  }
}

void activate(ActivationKind kind, const float* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = activated(kind, x[i]);
}

void gated(ActivationKind kind, const float* gate, const float* up, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = activated(kind, gate[i]) * up[i];
}

void add(const float* a, const float* b, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}

void store_element(DType dtype, std::byte* plane, std::int64_t index, float value) {
  if (dtype == DType::f32) {
    std::memcpy(plane + 4 * index, &value, 4);
  } else {
    const std::uint16_t bits = dtype == DType::f16 ? float_to_half(value) : float_to_bf16(value);
    std::memcpy(plane + 2 * index, &bits, 2);
  }
}

void store_k(DType dtype, const float* k, std::int64_t stride, std::int64_t tokens, std::int64_t head_dim,
             std::byte* plane, std::int64_t token) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t d = 0; d < head_dim; ++d) {
      store_element(dtype, plane, k_index(dtype == DType::bf16, head_dim, token + t, d), k[t * stride + d]);
    }
  }
}

void store_v(DType dtype, const float* v, std::int64_t stride, std::int64_t tokens, std::int64_t head_dim,
             std::byte* plane, std::int64_t token) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t d = 0; d < head_dim; ++d) {
      store_element(dtype, plane, v_index(dtype == DType::bf16, head_dim, token + t, d), v[t * stride + d]);
    }
  }
}

void merge(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, std::int64_t n) {
  if (sum2 == 0) return;
  const float top = max2 > *max ? max2 : *max;
  const float scale = std::exp2(*max - top);
  const float scale2 = std::exp2(max2 - top);
  for (std::int64_t i = 0; i < n; ++i) acc[i] = acc[i] * scale + acc2[i] * scale2;
  *sum = *sum * scale + sum2 * scale2;
  *max = top;
}

void finish(const float* acc, float sum, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = acc[i] / sum;
}

std::int64_t argmax(const float* x, std::int64_t n, float* value) {
  std::int64_t best = -1;
  *value = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < n; ++i) {
    if (x[i] > *value || (best < 0 && !std::isnan(x[i]))) {
      best = i;
      *value = x[i];
    }
  }
  return best;
}

double exp_weights(float* x, std::int64_t n, float max, float inverse_temperature) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    // x == max also where both are infinite, whose difference is NaN.
    const float weight = x[i] == max ? 1 : std::exp((x[i] - max) * inverse_temperature);
    x[i] = std::isnan(weight) ? 0 : weight;
    sum += x[i];
  }
  return sum;
}

}  // namespace

const OpTable& scalar_op_table() {
  static const OpTable table = {
      .embed = embed,
      .rms_norm = rms_norm,
      .layer_norm = layer_norm,
      .rotate = rotate,
      .activate = activate,
      .gated = gated,
      .add = add,
      .store_k = store_k,
      .store_v = store_v,
      .attention_f32 = {scalar::prepare_q, scalar::attend_f32, scalar::attend_f32},
      .attention_f16 = {scalar::prepare_q, scalar::attend_f16, scalar::attend_f16},
      .attention_bf16 = {scalar::prepare_q, scalar::attend_bf16, scalar::attend_bf16},
      .merge = merge,
      .finish = finish,
      .argmax = argmax,
      .exp_weights = exp_weights,
  };
  return table;
}

}  // namespace nibble::cpu
