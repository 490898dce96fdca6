// From GPTQ codes to a panel of weights (kernels/cpu/common_panels.h), the inner loop of `dequant`.
#pragma once

#include <cstdint>

namespace nibble::panels {

/// The codes of 32 outputs. For each pair of inputs there are 32 bytes, with the first input's code in the low nibble
/// and the second's in the high one; or, `wide`, 64 bytes: 32 of the first, then 32 of the second. K odd: the last is a
/// dummy.
struct PanelCodes {
  const std::uint8_t* codes = nullptr;
  bool wide = false;
  std::int64_t inputs = 0;              // K
  const std::int32_t* group = nullptr;  // [K]
  const float* scales = nullptr;        // [groups][32]
  const std::uint8_t* zeros = nullptr;  // [groups][32]
};

/// Writes scale * (code - zero) for all K as an f32 panel [K][32].
using DequantF32 = void(const PanelCodes& from, float* panel);
/// The same as a bf16 panel [padded / 2][32][2], with zeros from K on.
using DequantBf16 = void(const PanelCodes& from, std::int64_t padded, std::uint16_t* panel);

/// The best for active_isa().
DequantF32* dequant_f32();
DequantBf16* dequant_bf16();

DequantF32 dequant_f32_scalar, dequant_f32_avx2, dequant_f32_avx512;
DequantBf16 dequant_bf16_scalar, dequant_bf16_avx512bf16;

}  // namespace nibble::panels
