// The inner loops of the CPU's back end, one table an instruction set. Every function works on one contiguous run of
// elements on one thread; who runs which part is decided above (cpu_backend.cpp, attention.cpp, sampling.cpp).
// No two pointers of a call overlap unless it says so.
#pragma once

#include "core/dtype.h"
#include "kernels/linear_kernel.h"

#include <cstddef>
#include <cstdint>

namespace nibble::cpu {

/// Rows of queries that one call of attend() takes at most: two AMX tiles, and small enough that queries, scores and
/// sums of head_dim 64 stay in a 32 KiB L1 cache beside the keys that stream through.
inline constexpr int kMaxQueryRows = 32;

/// Keys that attend() takes at a time; its key_begin is a multiple of it.
inline constexpr std::int64_t kKeyTile = 64;

/// The largest head_dim: it sizes buffers on the stack.
inline constexpr std::int64_t kMaxHeadDim = 256;

/// Some rows of queries of one head (or the heads of one group at one position) against a range of one plane of keys.
/// The result is unnormalised: acc = sum_j 2^(s_j - max) v_j, sum = sum_j 2^(s_j - max), with the scores s in base 2:
/// y = acc / sum. acc, max and sum are replaced.
struct AttendArgs {
  const void* q = nullptr;  // [rows, head_dim] as prepare_q left them
  int rows = 0;             // 1 .. kMaxQueryRows
  std::int64_t head_dim = 0;
  const std::byte* k = nullptr;  // the planes of the (slot, kv head)
  const std::byte* v = nullptr;
  std::int64_t key_begin = 0;      // a multiple of kKeyTile
  std::int64_t key_end = 0;        // no row sees a key from here on
  std::int64_t position = 0;       // of row 0
  std::int64_t position_step = 0;  // of the next row: 1 for rows of a sequence, 0 for heads
  std::int64_t window = 0;         // > 0: keys at or before position - window are not seen
  float cap = 0;                   // > 0: s = cap * tanh(q . k); 0: s = q . k
  float* acc = nullptr;            // [kMaxQueryRows, acc_stride], 64-byte aligned
  std::int64_t acc_stride = 0;     // a multiple of 16
  float* max = nullptr;            // [kMaxQueryRows]
  float* sum = nullptr;            // [kMaxQueryRows]
};

/// Attention over one element type of the cache.
struct AttentionKernel {
  /// Writes factor * q to `out`, in the form that attend wants: at most 4 bytes an element, 64-byte aligned.
  void (*prepare_q)(const float* q, std::int64_t stride, int rows, std::int64_t head_dim, float factor, void* out);
  /// For few rows: bound by reading keys and values.
  void (*attend)(const AttendArgs& args);
  /// For many rows: bound by arithmetic.
  void (*attend_tile)(const AttendArgs& args);
};

struct OpTable {
  void (*embed)(const void* row, DType dtype, float scale, std::int64_t n, float* y);
  /// y = x / sqrt(mean(x^2) + eps) * weight; y may be x; weight may be null.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t n, float* y);
  /// y = (x - mean) / sqrt(variance + eps) * weight + bias, variance biased; y may be x; weight and bias may be null.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, std::int64_t n, float* y);
  /// Rotates one head by `pairs` cosines and as many sines.
  void (*rotate)(float* head, const float* cosines, const float* sines, std::int64_t pairs, bool interleaved);
  /// y = act(x); y may be x.
  void (*activate)(ActivationKind kind, const float* x, std::int64_t n, float* y);
  /// y = act(gate) * up; y may be gate or up.
  void (*gated)(ActivationKind kind, const float* gate, const float* up, std::int64_t n, float* y);
  /// y = a + b; y may be a or b.
  void (*add)(const float* a, const float* b, std::int64_t n, float* y);

  /// Stores `tokens` rows (stride elements apart) of one head from position `token` on in a plane of K or V.
  void (*store_k)(DType dtype, const float* k, std::int64_t stride, std::int64_t tokens, std::int64_t head_dim,
                  std::byte* plane, std::int64_t token);
  void (*store_v)(DType dtype, const float* v, std::int64_t stride, std::int64_t tokens, std::int64_t head_dim,
                  std::byte* plane, std::int64_t token);

  AttentionKernel attention_f32;
  AttentionKernel attention_f16;
  AttentionKernel attention_bf16;
  /// Adds the partial result (acc2, max2, sum2) of one row to (acc, max, sum). n: a multiple of 16.
  void (*merge)(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, std::int64_t n);
  /// y = acc / sum; y may be acc.
  void (*finish)(const float* acc, float sum, std::int64_t n, float* y);

  /// The index of the first largest, -1 where all are NaN; its value to *value.
  std::int64_t (*argmax)(const float* x, std::int64_t n, float* value);
  /// x = exp((x - max) * inverse_temperature), NaN to 0; returns their sum, added in a fixed order.
  double (*exp_weights)(float* x, std::int64_t n, float max, float inverse_temperature);
};

/// The table of the best instruction set that active_isa() allows.
const OpTable& active_op_table();

/// The tables by instruction set. The attention of all but the scalar one takes head_dims that are multiples of 8.
const OpTable& scalar_op_table();
const OpTable& avx2_op_table();
const OpTable& avx512_op_table();

}  // namespace nibble::cpu
