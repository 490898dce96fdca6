// The tensors of one GPTQ linear, read from a checkpoint with all its dialects, and written in the plain one.
// y[m, n] = sum over k of x[m, k] * W[n, k] + bias[n], with W[n, k] = scale[g, n] * (code[k, n] - zero[g, n]), g =
// g_idx[k].
#pragma once

#include "core/tensor.h"
#include "formats/checkpoint.h"
#include "formats/quant_config.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// One quantised linear, validated: every field has the length that the others imply, every group number is in range.
/// K = in_features, N = out_features, G = groups.
struct GptqTensors {
  std::string name;  // the prefix, such as "model.layers.0.mlp.up_proj"
  int bits = 4;
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  std::int64_t group_size = 0;  // in rows of K: K itself where the file says -1
  std::int64_t groups = 0;
  bool sym = true;         // every zero is 2^(bits - 1)
  bool act_order = false;  // g_idx differs from k div group_size

  /// Packed codes, row-major [packed_words(K, bits), qweight_columns]; qweight_columns may exceed N by padding. It
  /// points into the checkpoint's mapping unless that is not aligned to 4 bytes.
  std::span<const std::uint32_t> qweight;
  std::int64_t qweight_columns = 0;

  std::vector<std::uint16_t> zeros;  // the real zero points z, [G, N], 0 to 2^bits - 1
  std::vector<float> scales;         // [G, N]
  std::vector<std::int32_t> g_idx;   // [K], 0 to G - 1
  std::vector<float> bias;           // [N], or empty

  /// Unpacks the codes of input features [k0, k1) and output features [n0, n1) to `out`, row-major [k1 - k0, n1 - n0].
  void codes(std::int64_t k0, std::int64_t k1, std::int64_t n0, std::int64_t n1, std::uint8_t* out) const;
  /// Row n of W as floats, `out` [K].
  void dequantize_row(std::int64_t n, float* out) const;

  std::shared_ptr<const std::vector<std::uint32_t>> qweight_copy;  // what qweight points at where it is not the mapping
};

/// Reads `prefix`.qweight, .qzeros, .scales, and .g_idx and .bias where they exist. `in` and `out` come from the
/// model's config. Where the file's shapes contradict `config` on bits or group size, the shapes win. Handled: v1 and
/// v2 zeros (told apart by the constants of symmetric files whatever the config says), zeros that GPTQModel made by
/// word arithmetic, the 3-bit zeros that its versions before 7.0 damaged, N padded to a multiple of 32 (cut off), no
/// g_idx, a last group that is short, group size -1, biases that are all zero (dropped). Throws Error that names the
/// tensor and both shapes where something does not fit.
GptqTensors load_gptq(const Checkpoint& checkpoint, const std::string& prefix, const QuantConfig& config,
                      std::int64_t in, std::int64_t out);

/// The tensors that a checkpoint holds for one linear: qweight and qzeros i32, scales f16, g_idx i32.
struct PackedGptq {
  Tensor qweight;
  Tensor qzeros;
  Tensor scales;
  Tensor g_idx;
};

/// What pack_gptq packs; all row-major.
struct GptqParts {
  int bits = 4;
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  std::span<const std::uint8_t> codes;    // [K, N]
  std::span<const std::uint16_t> scales;  // f16 bits, [G, N]
  std::span<const std::uint16_t> zeros;   // [G, N]
  std::span<const std::int32_t> g_idx;    // [K]
};

/// Packs one linear for a checkpoint. A zero point of 0 is stored as all ones in v1 ((z - 1) mod 2^bits). Throws Error
/// where lengths do not fit each other, or a code, zero or group number is out of range.
PackedGptq pack_gptq(const GptqParts& parts, ZeroFormat format);

}  // namespace nibble
