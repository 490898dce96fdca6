// One quantised linear layer of a GPTQ checkpoint, validated and normalised: what file conventions there are ends here.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

/// W[n, k] = scales[g(k), n] * (q[k, n] - zeros[g(k), n]), g(k) = g_idx[k]; codes are kept packed, in the file's words.
struct GptqTensors {
  int bits = 4;
  std::int64_t in_features = 0;        // K
  std::int64_t out_features = 0;       // N
  std::int64_t group_size = 0;         // rows a group; K where the file says -1
  std::int64_t groups = 0;             // ceil(K / group_size)
  std::vector<std::uint32_t> qweight;  // [ceil(K*bits/32), words_stride], little-endian bit stream along K
  std::int64_t words_stride = 0;       // columns of qweight in memory, >= N
  std::vector<std::uint16_t> zeros;    // [groups, N], the real zero point
  std::vector<float> scales;           // [groups, N]
  std::vector<std::int32_t> g_idx;     // [K], each in [0, groups)
  bool act_order = false;              // g_idx is not k div group_size
  bool symmetric = false;              // every zero is 2^(bits-1)
  std::vector<float> bias;             // [N] or empty

  /// Unpacks the codes of inputs [k0, k1) and outputs [n0, n1) into out[(k - k0) * (n1 - n0) + (n - n0)].
  void codes(std::int64_t k0, std::int64_t k1, std::int64_t n0, std::int64_t n1, std::uint8_t* out) const;
  /// One row of the weight matrix in float: out[k] = W[n, k], K values.
  void dequantize_row(std::int64_t n, float* out) const;
};

}  // namespace nibble
