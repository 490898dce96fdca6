#include "kernels/cpu/dequant_panel.h"

#include "core/cpu.h"
#include "core/float_convert.h"
#include "kernels/cpu/common_panels.h"

#include <algorithm>

namespace nibble::panels {
namespace {

float weight(const PanelCodes& from, std::int64_t k, std::int64_t n) {
  const std::uint8_t* pair = from.codes + k / 2 * (from.wide ? 2 * kWidth : kWidth);
  const int code = from.wide ? pair[k % 2 * kWidth + n] : k % 2 == 0 ? pair[n] & 15 : pair[n] >> 4;
  const std::int64_t at = from.group[k] * kWidth + n;
  return from.scales[at] * static_cast<float>(code - from.zeros[at]);
}

}  // namespace

DequantF32* dequant_f32() {
  return pick<DequantF32>(
      {{Isa::scalar, dequant_f32_scalar}, {Isa::avx2, dequant_f32_avx2}, {Isa::avx512, dequant_f32_avx512}});
}

DequantBf16* dequant_bf16() {
  return pick<DequantBf16>({{Isa::scalar, dequant_bf16_scalar}, {Isa::avx512bf16, dequant_bf16_avx512bf16}});
}

void dequant_f32_scalar(const PanelCodes& from, float* panel) {
  for (std::int64_t k = 0; k < from.inputs; ++k) {
    for (std::int64_t n = 0; n < kWidth; ++n) panel[k * kWidth + n] = weight(from, k, n);
  }
}

void dequant_bf16_scalar(const PanelCodes& from, std::int64_t padded, std::uint16_t* panel) {
  std::fill(panel, panel + padded * kWidth, std::uint16_t{0});
  for (std::int64_t k = 0; k < from.inputs; ++k) {
    std::uint16_t* pairs = panel + k / 2 * 2 * kWidth + k % 2;
    for (std::int64_t n = 0; n < kWidth; ++n) pairs[2 * n] = float_to_bf16(weight(from, k, n));
  }
}

}  // namespace nibble::panels
