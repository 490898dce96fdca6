#include "ops/cpu/attention_scalar.h"

#include "core/float_convert.h"
#include "ops/cpu/kv_layout.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace nibble::cpu::scalar {
namespace {

template <DType dtype>
float load(const std::byte* plane, std::int64_t index) {
  if constexpr (dtype == DType::f32) {
    float value;
    std::memcpy(&value, plane + 4 * index, 4);
    return value;
  } else {
    std::uint16_t bits;
    std::memcpy(&bits, plane + 2 * index, 2);
    return dtype == DType::f16 ? half_to_float(bits) : bf16_to_float(bits);
  }
}

template <DType dtype>
void attend(const AttendArgs& a) {
  constexpr bool kPairs = dtype == DType::bf16;
  for (int r = 0; r < a.rows; ++r) {
    const float* q = static_cast<const float*>(a.q) + r * a.head_dim;
    float* acc = a.acc + r * a.acc_stride;
    std::fill(acc, acc + a.acc_stride, 0.0f);
    float max = -std::numeric_limits<float>::infinity();
    float sum = 0;
    const std::int64_t position = a.position + r * a.position_step;
    const std::int64_t first = a.window > 0 ? std::max<std::int64_t>(0, position - a.window + 1) : 0;
    const std::int64_t last = std::min(a.key_end, position + 1);
    for (std::int64_t j = std::max(a.key_begin, first); j < last; ++j) {
      float s = 0;
      for (std::int64_t d = 0; d < a.head_dim; ++d) s += q[d] * load<dtype>(a.k, k_index(kPairs, a.head_dim, j, d));
      if (a.cap > 0) s = a.cap * std::tanh(s);
      if (s > max) {
        const float scale = std::exp2(max - s);
        for (std::int64_t d = 0; d < a.head_dim; ++d) acc[d] *= scale;
        sum *= scale;
        max = s;
      }
      const float p = std::exp2(s - max);
      sum += p;
      for (std::int64_t d = 0; d < a.head_dim; ++d) acc[d] += p * load<dtype>(a.v, v_index(kPairs, a.head_dim, j, d));
    }
    a.max[r] = max;
    a.sum[r] = sum;
  }
}

}  // namespace

void prepare_q(const float* q, std::int64_t stride, int rows, std::int64_t head_dim, float factor, void* out) {
  auto* to = static_cast<float*>(out);
  for (int r = 0; r < rows; ++r) {
    for (std::int64_t d = 0; d < head_dim; ++d) to[r * head_dim + d] = q[r * stride + d] * factor;
  }
}

void attend_f32(const AttendArgs& args) { attend<DType::f32>(args); }
void attend_f16(const AttendArgs& args) { attend<DType::f16>(args); }
void attend_bf16(const AttendArgs& args) { attend<DType::bf16>(args); }

}  // namespace nibble::cpu::scalar
