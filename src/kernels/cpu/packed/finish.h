// What happens to the sums of a pair of panels: bias, residual, gate. Included by each unit into its own unnamed
// namespace, so that each compiles it for its instruction set; plain loops of 16, which the compiler turns into
// vectors.
#pragma once

#include "kernels/cpu/packed/isa.h"

#include <math.h>

namespace nibble::packed {
namespace {

/// Which panels a pair is.
struct PairRef {
  int first_part = 0;
  int second_part = 0;
  std::int64_t first_panel = 0;
  std::int64_t second_panel = 0;
  bool has_second = true;
};

inline std::int64_t panels_of(const Matrix& matrix) { return (matrix.outputs + kPanel - 1) / kPanel; }

inline PairRef pair_at(const Call& call, std::int64_t pair) {
  PairRef ref;
  if (call.finish > Finish::residual) {
    ref.second_part = 1;
    ref.first_panel = ref.second_panel = pair;
    return ref;
  }
  int part = 0;
  std::int64_t panels = panels_of(call.parts[0]);
  while (pair >= (panels + 1) / 2) {
    pair -= (panels + 1) / 2;
    panels = panels_of(call.parts[++part]);
  }
  ref.first_part = ref.second_part = part;
  ref.first_panel = 2 * pair;
  ref.second_panel = 2 * pair + 1;
  ref.has_second = ref.second_panel < panels;
  return ref;
}

inline float bits_to_float(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

/// e^x to about 2 units in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor polynomial of degree 7 in r,
/// whose next term is below 2^-27. NaN stays NaN.
inline float exponential(float x) {
  x = x > 88.0f ? 88.0f : x;  // e^88 is the last that fits in float with room for the factor 2^n
  x = x < -87.0f ? -87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  // ln 2 in two parts, the first of few bits, so that n times it is exact.
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * bits_to_float((float_to_bits(shifted) - float_to_bits(magic) + 127u) << 23);
}

inline void gate(Finish finish, const float* gate_sums, const float* up_sums, float* out) {
  switch (finish) {
    case Finish::gelu:
      for (int i = 0; i < kPanel; ++i)
        out[i] = 0.5f * gate_sums[i] * (1.0f + ::erff(gate_sums[i] * 0.707106781f)) * up_sums[i];
      return;
    case Finish::gelu_tanh:
      // 0.5 (1 + tanh u) = 1 / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)
      for (int i = 0; i < kPanel; ++i) {
        const float x = gate_sums[i];
        const float u = 1.59576912f * (x + 0.044715f * x * x * x);
        out[i] = x / (1.0f + exponential(-u)) * up_sums[i];
      }
      return;
    case Finish::relu:
      for (int i = 0; i < kPanel; ++i) out[i] = (gate_sums[i] < 0.0f ? 0.0f : gate_sums[i]) * up_sums[i];
      return;
    default:
      for (int i = 0; i < kPanel; ++i) out[i] = gate_sums[i] / (1.0f + exponential(-gate_sums[i])) * up_sums[i];
  }
}

inline void add_bias(const Matrix& matrix, std::int64_t panel, float* sums) {
  if (matrix.bias == nullptr) return;
  const std::int64_t first = panel * kPanel;
  const std::int64_t left = matrix.outputs - first;
  for (int i = 0; i < (left < kPanel ? left : kPanel); ++i) sums[i] += matrix.bias[first + i];
}

inline void write(const Call& call, int part, std::int64_t panel, std::int64_t row, const float* sums) {
  const Output& y = call.y[part];
  const std::int64_t first = panel * kPanel;
  float* const out = y.y + row * y.stride + first;
  const std::int64_t left = call.parts[part].outputs - first;
  if (call.finish == Finish::residual) {
    const float* const residual = call.residual + row * call.residual_stride + first;
    if (left >= kPanel) {
      float total[kPanel];
      for (int i = 0; i < kPanel; ++i) total[i] = residual[i] + sums[i];
      __builtin_memcpy(out, total, sizeof total);
    } else {
      for (int i = 0; i < left; ++i) out[i] = residual[i] + sums[i];
    }
  } else if (left >= kPanel) {
    __builtin_memcpy(out, sums, kPanel * sizeof(float));
  } else {
    for (int i = 0; i < left; ++i) out[i] = sums[i];
  }
}

/// sums [rows][first panel's 16, second panel's 16] of rows from first_row on; they are changed.
inline void finish_pair(const Call& call, const PairRef& pair, std::int64_t first_row, int rows, float* sums) {
  for (int row = 0; row < rows; ++row, sums += kPairFloats) {
    add_bias(call.parts[pair.first_part], pair.first_panel, sums);
    if (pair.has_second) add_bias(call.parts[pair.second_part], pair.second_panel, sums + kPanel);
    if (call.finish > Finish::residual) {
      float gated[kPanel];
      gate(call.finish, sums, sums + kPanel, gated);
      write(call, 0, pair.first_panel, first_row + row, gated);
      continue;
    }
    write(call, pair.first_part, pair.first_panel, first_row + row, sums);
    if (pair.has_second) write(call, pair.second_part, pair.second_panel, first_row + row, sums + kPanel);
  }
}

}  // namespace
}  // namespace nibble::packed
