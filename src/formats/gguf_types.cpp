// The block types of GGUF, each from the description of its layout. d and m are 16-bit floats; a nibble's low half
// comes first. q is a code, x the value.
#include "core/checked.h"
#include "core/float_convert.h"
#include "formats/gguf.h"

#include <array>
#include <cstring>

namespace nibble {
namespace {

constexpr std::array kTypes = {
    GgufTypeInfo{GgufType::f32, "F32", 1, 4},       GgufTypeInfo{GgufType::f16, "F16", 1, 2},
    GgufTypeInfo{GgufType::bf16, "BF16", 1, 2},     GgufTypeInfo{GgufType::q4_0, "Q4_0", 32, 18},
    GgufTypeInfo{GgufType::q4_1, "Q4_1", 32, 20},   GgufTypeInfo{GgufType::q5_0, "Q5_0", 32, 22},
    GgufTypeInfo{GgufType::q5_1, "Q5_1", 32, 24},   GgufTypeInfo{GgufType::q8_0, "Q8_0", 32, 34},
    GgufTypeInfo{GgufType::q4_k, "Q4_K", 256, 144}, GgufTypeInfo{GgufType::q6_k, "Q6_K", 256, 210},
};

std::uint8_t byte_at(const std::byte* at) { return std::to_integer<std::uint8_t>(*at); }

std::uint16_t u16_at(const std::byte* at) {
  std::uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}

float half_at(const std::byte* at) { return half_to_float(u16_at(at)); }

/// 16 bytes of nibbles: elements 0 to 15 are the low halves, 16 to 31 the high ones.
void nibbles(const std::byte* qs, int* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = byte_at(qs + i) & 15;
    q[16 + i] = byte_at(qs + i) >> 4;
  }
}

/// The fifth bits of 32 elements, element i's in bit i.
void add_fifth_bits(const std::byte* qh, int* q) {
  std::uint32_t high;
  std::memcpy(&high, qh, sizeof high);
  for (int i = 0; i < 32; ++i) q[i] += static_cast<int>(high >> i & 1u) << 4;
}

/// Q4_0 and Q5_0: d, [fifth bits,] nibbles; x = d * (q - middle).
void centred(const std::byte* block, bool fifth, float* out) {
  int q[32];
  nibbles(block + (fifth ? 6 : 2), q);
  if (fifth) add_fifth_bits(block + 2, q);
  const float d = half_at(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i] - (fifth ? 16 : 8));
}

/// Q4_1 and Q5_1: d, m, [fifth bits,] nibbles; x = d * q + m.
void offset(const std::byte* block, bool fifth, float* out) {
  int q[32];
  nibbles(block + (fifth ? 8 : 4), q);
  if (fifth) add_fifth_bits(block + 4, q);
  const float d = half_at(block);
  const float m = half_at(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i]) + m;
}

/// Q8_0: d, 32 signed bytes; x = d * q.
void bytes_of_8_bits(const std::byte* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<std::int8_t>(byte_at(block + 2 + i)));
}

/// Q4_K: d, dmin, 12 bytes with a 6-bit scale and a 6-bit minimum for each of 8 sub-blocks of 32, 128 bytes of nibbles,
/// of which each 32 hold one sub-block in their low halves and the next in their high ones; x = d * scale * q - dmin *
/// min.
void q4_k(const std::byte* block, float* out) {
  const float d = half_at(block);
  const float dmin = half_at(block + 2);
  const std::byte* const s = block + 4;
  const std::byte* const qs = block + 16;
  for (int j = 0; j < 8; ++j) {
    const int scale = j < 4 ? byte_at(s + j) & 63 : (byte_at(s + j + 4) & 15) | (byte_at(s + j - 4) >> 6) << 4;
    const int minimum = j < 4 ? byte_at(s + j + 4) & 63 : (byte_at(s + j + 4) >> 4) | (byte_at(s + j) >> 6) << 4;
    const float a = d * static_cast<float>(scale);
    const float b = dmin * static_cast<float>(minimum);
    for (int i = 0; i < 32; ++i) {
      const int both = byte_at(qs + j / 2 * 32 + i);
      out[j * 32 + i] = a * static_cast<float>(j % 2 == 0 ? both & 15 : both >> 4) - b;
    }
  }
}

/// Q6_K: 128 bytes with the low 4 bits of 256 codes, 64 with their high 2 bits, 16 signed scales, d; two halves of 128
/// elements; x = d * scale * (q - 32), a scale for each 16 elements.
void q6_k(const std::byte* block, float* out) {
  const float d = half_at(block + 208);
  for (int half = 0; half < 2; ++half) {
    const std::byte* const low = block + half * 64;
    const std::byte* const high = block + 128 + half * 32;
    const std::byte* const scales = block + 192 + half * 8;
    for (int e = 0; e < 128; ++e) {
      const int l = e % 32;
      const int quarter = e / 32;
      const int nibble = quarter < 2 ? byte_at(low + e) & 15 : byte_at(low + e - 64) >> 4;
      const int q = nibble | (byte_at(high + l) >> (2 * quarter) & 3) << 4;
      const float scale = static_cast<float>(static_cast<std::int8_t>(byte_at(scales + e / 16)));
      out[half * 128 + e] = d * scale * static_cast<float>(q - 32);
    }
  }
}

void one_block(GgufType type, const std::byte* block, float* out) {
  switch (type) {
    case GgufType::f32:
      std::memcpy(out, block, sizeof(float));
      return;
    case GgufType::f16:
      *out = half_at(block);
      return;
    case GgufType::bf16:
      *out = bf16_to_float(u16_at(block));
      return;
    case GgufType::q4_0:
      centred(block, false, out);
      return;
    case GgufType::q5_0:
      centred(block, true, out);
      return;
    case GgufType::q4_1:
      offset(block, false, out);
      return;
    case GgufType::q5_1:
      offset(block, true, out);
      return;
    case GgufType::q8_0:
      bytes_of_8_bits(block, out);
      return;
    case GgufType::q4_k:
      q4_k(block, out);
      return;
    case GgufType::q6_k:
      q6_k(block, out);
      return;
  }
}

}  // namespace

std::optional<GgufTypeInfo> gguf_type_info(std::uint32_t number) {
  for (const GgufTypeInfo& info : kTypes) {
    if (static_cast<std::uint32_t>(info.type) == number) return info;
  }
  return std::nullopt;
}

void gguf_dequantize(GgufType type, const std::byte* blocks, std::int64_t count, float* out) {
  const GgufTypeInfo info = *gguf_type_info(static_cast<std::uint32_t>(type));
  for (std::int64_t i = 0; i < count; i += info.block_elements) {
    one_block(type, blocks, out + i);
    blocks += info.block_bytes;
  }
}

void GgufTensor::rows_to_float(std::int64_t first, std::int64_t count, std::span<float> out) const {
  if (first < 0 || count < 0 || first > rows() || count > rows() - first) {
    fail("rows {} to {} lie outside of tensor {} of shape {}", first, first + count, name, to_string(shape));
  }
  const std::int64_t elements = count * columns();
  if (static_cast<std::int64_t>(out.size()) < elements)
    fail("a buffer of {} floats is too small for {}", out.size(), elements);
  const std::int64_t row_bytes = columns() / info.block_elements * info.block_bytes;
  gguf_dequantize(info.type, bytes.data() + first * row_bytes, elements, out.data());
}

}  // namespace nibble
